//! Quantities: exact to parse, to order and to print. Always printed as strings in the largest unit that divides them.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;
use utoipa::ToSchema;

/// Starts every message about a quantity, so that the edge can tell `invalid_quantity` from other faults.
pub const INVALID: &str = "invalid quantity";

/// Why a text is not a quantity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{INVALID} `{text}`: {why}")]
pub struct Error {
    pub text: String,
    pub why: &'static str,
}

type Units = &'static [(&'static str, u64)];

const BYTES: Units = &[
    ("Ti", 1 << 40),
    ("T", 1_000_000_000_000),
    ("Gi", 1 << 30),
    ("G", 1_000_000_000),
    ("Mi", 1 << 20),
    ("M", 1_000_000),
    ("Ki", 1 << 10),
    ("k", 1_000),
    ("", 1),
];
const BITS: Units = &[("Gbit", 1_000_000_000), ("Mbit", 1_000_000), ("kbit", 1_000), ("bit", 1)];
const SPANS: Units = &[("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

fn parse_with(text: &str, units: Units, suffix: Option<&str>, expected: &'static str) -> Result<u64, Error> {
    let error = |why| Error { text: text.to_owned(), why };
    let trimmed = text.trim();
    let digits = trimmed.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = trimmed.split_at(digits);
    if number.is_empty() {
        return Err(error(expected));
    }
    let number: u64 = number.parse().map_err(|_| error("too large"))?;
    let bare = suffix.and_then(|s| unit.strip_suffix(s)).unwrap_or(unit);
    let (_, factor) =
        units.iter().find(|(name, _)| *name == bare || *name == unit).ok_or_else(|| error(expected))?;
    number.checked_mul(*factor).filter(|n| *n <= i64::MAX as u64).ok_or_else(|| error("too large"))
}

fn print_with(value: u64, units: Units, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let smallest = units[units.len() - 1];
    let (unit, factor) = units
        .iter()
        .copied()
        .find(|(_, factor)| value != 0 && value.is_multiple_of(*factor))
        .unwrap_or(smallest);
    write!(f, "{}{unit}", value / factor)
}

/// A quantity that is read from a string or a number.
struct Reader<T>(PhantomData<T>);

trait FromNumber: FromStr<Err = Error> {
    fn from_integer(number: u64) -> Result<Self, Error>;
    fn from_float(number: f64) -> Result<Self, Error> {
        Err(Error { text: number.to_string(), why: "takes whole numbers; write it in a smaller unit" })
    }
    const EXPECTED: &'static str;
}

impl<T: FromNumber> de::Visitor<'_> for Reader<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", T::EXPECTED)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<T, E> {
        T::from_integer(number).map_err(E::custom)
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
        let unsigned = u64::try_from(number)
            .map_err(|_| Error { text: number.to_string(), why: "must not be negative" });
        unsigned.and_then(T::from_integer).map_err(E::custom)
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<T, E> {
        T::from_float(number).map_err(E::custom)
    }
}

macro_rules! quantity {
    ($name:ident, $doc:literal, $example:literal) => {
        #[doc = $doc]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, ToSchema)]
        #[schema(value_type = String, example = $example)]
        pub struct $name(pub u64);

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_any(Reader(PhantomData))
            }
        }
    };
}

quantity!(
    Bytes,
    "Bytes, or bytes a second where a rate is meant: an integer, or `512Mi`, `20G`, `1MiB`.",
    "512Mi"
);
quantity!(BitRate, "Bits a second: `100Mbit`, `1Gbit`.", "100Mbit");
quantity!(MilliCpu, "Thousandths of a CPU: written `0.5`, `2`, `1.125`.", "1.5");
quantity!(Span, "Milliseconds: `500ms`, `90s`, `5m`, `1h`, `30d`.", "90s");

const BYTES_EXPECTED: &str =
    "expected an integer with an optional unit k M G T (1000) or Ki Mi Gi Ti (1024), as in 512Mi";
const BITS_EXPECTED: &str = "expected an integer with a unit bit, kbit, Mbit or Gbit, as in 100Mbit";
const CPUS_EXPECTED: &str = "expected CPUs with at most three decimals, as in 1.5";
const SPAN_EXPECTED: &str = "expected an integer with a unit ms, s, m, h or d, as in 90s";

impl FromStr for Bytes {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        // `MB` and `MiB` mean what `M` and `Mi` mean; a lone `B` means bytes.
        parse_with(text, BYTES, Some("B"), BYTES_EXPECTED).map(Bytes)
    }
}

impl FromNumber for Bytes {
    const EXPECTED: &'static str = "bytes, as in 512Mi";
    fn from_integer(number: u64) -> Result<Self, Error> {
        if number > i64::MAX as u64 {
            return Err(Error { text: number.to_string(), why: "too large" });
        }
        Ok(Bytes(number))
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        print_with(self.0, BYTES, f)
    }
}

impl FromStr for BitRate {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        parse_with(text, BITS, None, BITS_EXPECTED).map(BitRate)
    }
}

impl FromNumber for BitRate {
    const EXPECTED: &'static str = "a network rate, as in 100Mbit";
    fn from_integer(number: u64) -> Result<Self, Error> {
        Err(Error { text: number.to_string(), why: BITS_EXPECTED })
    }
}

impl fmt::Display for BitRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        print_with(self.0, BITS, f)
    }
}

impl FromStr for Span {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        parse_with(text, SPANS, None, SPAN_EXPECTED).map(Span)
    }
}

impl FromNumber for Span {
    const EXPECTED: &'static str = "a duration, as in 90s";
    fn from_integer(number: u64) -> Result<Self, Error> {
        Err(Error { text: number.to_string(), why: SPAN_EXPECTED })
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 {
            return f.write_str("0s");
        }
        print_with(self.0, SPANS, f)
    }
}

impl Span {
    pub fn duration(self) -> std::time::Duration {
        std::time::Duration::from_millis(self.0)
    }

    /// To reckon with timestamps. What is longer than can be is the longest.
    pub fn signed(self) -> jiff::SignedDuration {
        jiff::SignedDuration::from_millis(i64::try_from(self.0).unwrap_or(i64::MAX))
    }
}

impl FromStr for MilliCpu {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        let error = |why| Error { text: text.to_owned(), why };
        let trimmed = text.trim();
        let (whole, fraction) = trimmed.split_once('.').unwrap_or((trimmed, "0"));
        let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
        if !digits(whole) || !digits(fraction) || fraction.len() > 3 {
            return Err(error(CPUS_EXPECTED));
        }
        let whole: u64 = whole.parse().map_err(|_| error("too large"))?;
        // Three digits always fit; the width pads `5` to `500`.
        let thousandths: u64 = format!("{fraction:0<3}").parse().map_err(|_| error(CPUS_EXPECTED))?;
        whole
            .checked_mul(1000)
            .and_then(|n| n.checked_add(thousandths))
            .filter(|n| *n <= 1_000_000_000)
            .map(MilliCpu)
            .ok_or_else(|| error("too large"))
    }
}

impl FromNumber for MilliCpu {
    const EXPECTED: &'static str = "CPUs, as in 1.5";
    fn from_integer(number: u64) -> Result<Self, Error> {
        number.to_string().parse()
    }
    fn from_float(number: f64) -> Result<Self, Error> {
        // The shortest text of a float is what its writer wrote: 0.1 stays "0.1".
        number.to_string().parse()
    }
}

impl fmt::Display for MilliCpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, rest) = (self.0 / 1000, self.0 % 1000);
        if rest == 0 {
            return write!(f, "{whole}");
        }
        write!(f, "{whole}.{}", format!("{rest:03}").trim_end_matches('0'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn bytes() {
        for (text, value) in [
            ("0", 0),
            ("1", 1),
            ("1B", 1),
            ("1k", 1000),
            ("1kB", 1000),
            ("512Mi", 512 << 20),
            ("1MiB", 1 << 20),
            ("1MB", 1_000_000),
            ("20G", 20_000_000_000),
            ("2Ti", 2 << 40),
        ] {
            assert_eq!(text.parse(), Ok(Bytes(value)), "{text}");
        }
        for bad in
            ["", "Mi", "-1", "1.5Gi", "1 Gi", "1K", "1gi", "1MiBB", "99999999999999999999", "9999999Ti"]
        {
            assert!(bad.parse::<Bytes>().is_err(), "{bad}");
        }
        assert_eq!(Bytes(512 << 20).to_string(), "512Mi");
        assert_eq!(Bytes(1_000_000).to_string(), "1M");
        assert_eq!(Bytes(1_024_000).to_string(), "1000Ki");
        assert_eq!(Bytes(1025).to_string(), "1025");
        assert_eq!(Bytes(0).to_string(), "0");
    }

    #[test]
    fn rates_and_spans() {
        assert_eq!("100Mbit".parse(), Ok(BitRate(100_000_000)));
        assert!("100".parse::<BitRate>().is_err());
        assert!("100Mi".parse::<BitRate>().is_err());
        assert_eq!(BitRate(1500).to_string(), "1500bit");
        assert_eq!("90s".parse(), Ok(Span(90_000)));
        assert_eq!(Span(90_000).to_string(), "90s");
        assert_eq!(Span(60_000).to_string(), "1m");
        assert_eq!(Span(1500).to_string(), "1500ms");
        assert_eq!(Span(0).to_string(), "0s");
        assert!("90".parse::<Span>().is_err());
    }

    #[test]
    fn cpus() {
        for (text, value) in [("1", 1000), ("0.5", 500), ("1.125", 1125), ("0.001", 1), ("2.50", 2500)] {
            assert_eq!(text.parse(), Ok(MilliCpu(value)), "{text}");
        }
        for bad in ["", ".5", "1.", "1.0001", "-1", "1e3", "two"] {
            assert!(bad.parse::<MilliCpu>().is_err(), "{bad}");
        }
        assert_eq!(serde_json::from_str::<MilliCpu>("1.5").unwrap(), MilliCpu(1500));
        assert_eq!(serde_json::from_str::<MilliCpu>("2").unwrap(), MilliCpu(2000));
        assert!(serde_json::from_str::<MilliCpu>("-0.5").is_err());
        assert_eq!(serde_json::to_string(&MilliCpu(1500)).unwrap(), "\"1.5\"");
    }

    proptest! {
        #[test]
        fn print_and_parse_agree(value in 0u64..=i64::MAX as u64) {
            prop_assert_eq!(Bytes(value).to_string().parse(), Ok(Bytes(value)));
            prop_assert_eq!(BitRate(value).to_string().parse(), Ok(BitRate(value)));
            prop_assert_eq!(Span(value).to_string().parse(), Ok(Span(value)));
            let cpus = MilliCpu(value % 1_000_000_001);
            prop_assert_eq!(cpus.to_string().parse(), Ok(cpus));
        }
    }
}
