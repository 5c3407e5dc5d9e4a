//! Mount tables, as the kernel shows them in `/proc/PID/mountinfo`.

use std::path::PathBuf;

/// A line of a mount table.
#[derive(Clone, Debug, PartialEq)]
pub struct Mount {
    /// Of the file system: `MAJOR:MINOR`.
    pub device: String,
    /// The part of the file system that is mounted.
    pub root: PathBuf,
    pub point: PathBuf,
    pub kind: String,
    pub source: String,
    /// The file system's own options.
    pub options: String,
}

/// None: not a line of a mount table.
fn row(line: &str) -> Option<Mount> {
    let (left, right) = line.split_once(" - ")?;
    let left: Vec<&str> = left.split(' ').collect();
    let right: Vec<&str> = right.split(' ').collect();
    Some(Mount {
        device: (*left.get(2)?).to_owned(),
        root: PathBuf::from(unescape(left.get(3)?)),
        point: PathBuf::from(unescape(left.get(4)?)),
        kind: (*right.first()?).to_owned(),
        source: unescape(right.get(1)?),
        options: unescape(right.get(2).unwrap_or(&"")),
    })
}

/// The kernel writes blanks, tabs, newlines and backslashes as three octal digits.
fn unescape(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let code = text.get(at + 1..at + 4).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match (bytes[at], code) {
            (b'\\', Some(code)) => {
                plain.push(code);
                at += 4;
            }
            (byte, _) => {
                plain.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&plain).into_owned()
}

/// Lines that are not understood are left out.
pub fn table(text: &str) -> Vec<Mount> {
    text.lines().filter_map(row).collect()
}

/// What is mounted in our own mount namespace.
pub fn own() -> std::io::Result<Vec<Mount>> {
    Ok(table(&std::fs::read_to_string("/proc/self/mountinfo")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unescaped() {
        let text = "36 35 98:0 /a\\040b /mnt/x\\134y rw,noatime shared:1 master:2 - ext3 /dev/root rw,errors=continue\nnonsense\n";
        let table = table(text);
        assert_eq!(table.len(), 1);
        assert_eq!((table[0].root.to_str(), table[0].point.to_str()), (Some("/a b"), Some("/mnt/x\\y")));
        assert_eq!((table[0].kind.as_str(), table[0].options.as_str()), ("ext3", "rw,errors=continue"));
        assert_eq!(table[0].device, "98:0");
    }
}
