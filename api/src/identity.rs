//! Who a certificate of the cloud's own CA speaks for. It stands in a URI among the certificate's alternative names:
//! `enoki://server/NAME` or `enoki://host/NAME/UID`.

use crate::object::Uid;
use std::fmt;
use std::str::FromStr;

#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Identity {
    /// A server of the control plane.
    Server(String),
    /// The agent of one host. A machine that takes over a name has another uid.
    Host { name: String, uid: Uid },
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Identity::Server(name) => write!(f, "enoki://server/{name}"),
            Identity::Host { name, uid } => write!(f, "enoki://host/{name}/{uid}"),
        }
    }
}

impl From<Identity> for String {
    fn from(identity: Identity) -> String {
        identity.to_string()
    }
}

impl TryFrom<String> for Identity {
    type Error = &'static str;

    fn try_from(uri: String) -> Result<Self, &'static str> {
        uri.parse().map_err(|()| "not the identity of a machine")
    }
}

impl FromStr for Identity {
    type Err = ();

    fn from_str(uri: &str) -> Result<Self, ()> {
        let parts: Vec<&str> = uri.strip_prefix("enoki://").ok_or(())?.split('/').collect();
        match parts.as_slice() {
            ["server", name] if !name.is_empty() => Ok(Identity::Server((*name).to_owned())),
            ["host", name, uid] if !name.is_empty() => {
                Ok(Identity::Host { name: (*name).to_owned(), uid: Uid::parse(uid).ok_or(())? })
            }
            _ => Err(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_what_it_prints() {
        let uid = Uid::random();
        for identity in
            [Identity::Server("s1".into()), Identity::Host { name: "h1".into(), uid: uid.clone() }]
        {
            assert_eq!(identity.to_string().parse(), Ok(identity));
        }
        for strange in
            ["", "enoki://", "enoki://host/h1", "enoki://host/h1/x", "enoki://server/a/b", "https://server/a"]
        {
            assert_eq!(strange.parse::<Identity>(), Err(()), "{strange}");
        }
    }
}
