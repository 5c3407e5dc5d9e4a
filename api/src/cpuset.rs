//! Sets of CPUs, written as the kernel writes them.

use serde::{Deserialize, Deserializer, Serialize, de};
use std::fmt;
use std::str::FromStr;
use utoipa::ToSchema;

/// CPUs as the kernel lists them: `0-1,3`. Kept in its shortest form.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, ToSchema)]
#[serde(transparent)]
#[schema(value_type = String, example = "0-1")]
pub struct CpuSet(String);

impl CpuSet {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The numbers of its CPUs, ascending.
    pub fn cpus(&self) -> Vec<u32> {
        parse_cpus(&self.0).unwrap_or_default()
    }
}

fn parse_cpus(text: &str) -> Option<Vec<u32>> {
    let mut cpus = std::collections::BTreeSet::new();
    for part in text.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        if first > last || last > 8191 {
            return None;
        }
        cpus.extend(first..=last);
    }
    Some(cpus.into_iter().collect())
}

impl FromStr for CpuSet {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let cpus = parse_cpus(text).ok_or_else(|| format!("`{text}` is not a list of CPUs, as in 0-1,3"))?;
        let mut ranges: Vec<(u32, u32)> = Vec::new();
        for cpu in cpus {
            match ranges.last_mut() {
                Some((_, last)) if *last + 1 == cpu => *last = cpu,
                _ => ranges.push((cpu, cpu)),
            }
        }
        let parts = ranges.iter().map(|(a, b)| if a == b { a.to_string() } else { format!("{a}-{b}") });
        Ok(CpuSet(parts.collect::<Vec<_>>().join(",")))
    }
}

impl fmt::Display for CpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for CpuSet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_kept_in_their_shortest_form() {
        assert_eq!("3,0-1,1".parse::<CpuSet>().unwrap().as_str(), "0-1,3");
        for bad in ["", "1-0", "a", "0-99999"] {
            assert!(bad.parse::<CpuSet>().is_err(), "{bad}");
        }
    }
}
