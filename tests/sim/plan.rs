//! What is run: a seed, and for controls a world in which something is not as it is.

use std::str::FromStr;

#[derive(Clone, Copy, Debug, Default)]
pub struct Plan {
    pub seed: u64,
    pub broken: Option<Broken>,
}

/// What a control takes away, to see that it is missed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// Transactions arrive without the compare of the leader's key.
    NoFence,
    /// The leader looks only at what wakes it.
    NoSlowTimer,
    /// A watch loses one change, in silence.
    LosesAChange,
}

impl Broken {
    const ALL: [(&str, Broken); 3] = [
        ("no-fence", Broken::NoFence),
        ("no-slow-timer", Broken::NoSlowTimer),
        ("loses-a-change", Broken::LosesAChange),
    ];

    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, one)| *one == self).map_or("", |(name, _)| name)
    }
}

impl FromStr for Broken {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.iter().find(|(name, _)| *name == text);
        found.map(|(_, broken)| *broken).ok_or_else(|| format!("`{text}` is none of {:?}", Self::ALL))
    }
}
