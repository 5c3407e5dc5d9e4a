//! Ethernet addresses of interfaces.

use crate::object::Uid;
use serde::{Deserialize, Deserializer, Serialize, de};
use std::fmt;
use std::str::FromStr;
use utoipa::ToSchema;

/// A unicast Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, ToSchema)]
#[schema(value_type = String, example = "02:00:00:00:00:01")]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// A locally administered address that follows from the instance and the interface.
    pub fn derive(uid: &Uid, nic: &str) -> Self {
        let hex = uid.derive(&format!("mac/{nic}")).hex();
        let byte = |at: usize| u8::from_str_radix(&hex[at * 2..at * 2 + 2], 16).unwrap_or(0);
        Mac([0x02, byte(0), byte(1), byte(2), byte(3), byte(4)])
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for Mac {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let error = || format!("`{text}` is not a unicast Ethernet address, as in 02:00:00:00:00:01");
        let parts: Vec<&str> = text.split(':').collect();
        let bytes: Option<Vec<u8>> =
            parts.iter().map(|p| (p.len() == 2).then(|| u8::from_str_radix(p, 16).ok()).flatten()).collect();
        let bytes: [u8; 6] = bytes.and_then(|b| b.try_into().ok()).ok_or_else(error)?;
        if bytes[0] & 1 == 1 || bytes == [0; 6] {
            return Err(error());
        }
        Ok(Mac(bytes))
    }
}

impl Serialize for Mac {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Mac {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_follows_from_instance_and_interface() {
        let uid = Uid::random();
        let mac = Mac::derive(&uid, "eth0");
        assert_eq!(mac.to_string().parse(), Ok(mac));
        assert_ne!(mac, Mac::derive(&uid, "eth1"));
        for bad in ["", "01:00:00:00:00:00", "00:00:00:00:00:00", "02:00:00:00:00", "2:0:0:0:0:0"] {
            assert!(bad.parse::<Mac>().is_err(), "{bad}");
        }
    }
}
