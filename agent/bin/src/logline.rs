//! One line of an instance's log: `<RFC 3339 ns UTC> <stdout|stderr> <F|P> <text>\n`.
//!
//! `F` ends a line of the program's; `P` is a piece of one that goes on in the next record of the same stream (a line longer than
//! [`MAX_TEXT`], or a prompt that waits without a newline). Text is the program's bytes, not necessarily UTF-8, never holding `\n`.
//! A reader that meets something else (a torn file) gets `None` and skips that line.

use crate::clock;

/// Most text bytes in one record; longer lines are told in pieces.
pub const MAX_TEXT: usize = 16 * 1024;
/// What stands around the text: time, stream, tag, their spaces, the newline.
pub const OVERHEAD: usize = clock::LEN + 1 + 6 + 1 + 1 + 1 + 1;
/// The file being written, in the log folder; older ones are `1`, `2`, ... with the highest number the oldest.
pub const CURRENT: &str = "current";
/// Default size of one file, bytes.
pub const DEFAULT_MAX: u64 = 10 * 1024 * 1024;
/// Default number of files, the current one included.
pub const DEFAULT_FILES: u32 = 5;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    pub fn name(self) -> &'static [u8; 6] {
        match self {
            Stream::Stdout => b"stdout",
            Stream::Stderr => b"stderr",
        }
    }
}

/// Whether a record ends a line of the program's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tag {
    Full,
    Partial,
}

/// A record as read back.
#[derive(Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// RFC 3339, 30 bytes: sorts as time.
    pub time: &'a str,
    pub stream: Stream,
    pub tag: Tag,
    pub text: &'a [u8],
}

/// Appends one record whose text is `head` followed by `tail`.
pub fn write(out: &mut Vec<u8>, time: &[u8; clock::LEN], stream: Stream, tag: Tag, head: &[u8], tail: &[u8]) {
    out.extend_from_slice(time);
    out.push(b' ');
    out.extend_from_slice(stream.name());
    out.extend_from_slice(match tag {
        Tag::Full => b" F ",
        Tag::Partial => b" P ",
    });
    out.extend_from_slice(head);
    out.extend_from_slice(tail);
    out.push(b'\n');
}

/// Reads one record, with or without its newline.
pub fn parse(line: &[u8]) -> Option<Line<'_>> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let time = std::str::from_utf8(line.get(..clock::LEN)?).ok()?;
    let rest = line.get(clock::LEN..)?.strip_prefix(b" ")?;
    let stream = match rest.get(..6)? {
        b"stdout" => Stream::Stdout,
        b"stderr" => Stream::Stderr,
        _ => return None,
    };
    let tag = match rest.get(6..9)? {
        b" F " => Tag::Full,
        b" P " => Tag::Partial,
        _ => return None,
    };
    let well_formed = time.ends_with('Z') && time.as_bytes()[10] == b'T';
    well_formed.then_some(Line { time, stream, tag, text: &rest[9..] })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;

    #[test]
    fn what_is_written_is_read() {
        let time = Timestamp { secs: 1_795_344_478, nanos: 7 }.to_bytes();
        let mut out = Vec::new();
        write(&mut out, &time, Stream::Stderr, Tag::Partial, b"ab \xff", b"c");
        assert_eq!(out, b"2026-11-22T10:47:58.000000007Z stderr P ab \xffc\n");
        assert_eq!(out.len(), OVERHEAD + 5);
        let line = parse(&out).expect("a record");
        assert_eq!((line.stream, line.tag, line.text), (Stream::Stderr, Tag::Partial, &b"ab \xffc"[..]));
        assert_eq!(parse(b"2026-11-22T10:47:58.000000007Z stdout F \n").map(|l| l.text.len()), Some(0));
    }

    #[test]
    fn torn_lines_are_none() {
        for torn in [
            "",
            "\n",
            "2026-11-22T10:47:58.000000007Z",
            "2026-11-22T10:47:58.000000007Z stdin F x",
            "x 2026-11-22T10:47:58.000000007Z stdout F x",
            "2026-11-22T10:47:58.000000007Z stdout Q x",
        ] {
            assert_eq!(parse(torn.as_bytes()), None, "{torn:?}");
        }
    }
}
