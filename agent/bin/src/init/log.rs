//! The output of the instance as bounded files: `current` and the older `1`, `2`, ... of the log folder.
//!
//! Whatever happens to the folder (full disk, read-only, removed), writing never fails and never waits: what cannot be written is dropped
//! and counted, and one line tells how much as soon as the log works again. Records are buffered and written when the buffer is full or the
//! machine is idle; a failed write is cut off the file again, so that no torn record stays.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use enoki_helpers::clock::{LEN, Timestamp};
use enoki_helpers::logline::{self, CURRENT, MAX_TEXT, OVERHEAD, Stream, Tag};

/// Written at once when reached.
const BUFFER: usize = 64 * 1024;
/// How long a broken log rests before the next attempt.
const RETRY: Duration = Duration::from_secs(1);
/// How often a working log looks whether somebody removed its file.
const LOOK: Duration = Duration::from_secs(1);
/// Files beyond the wanted number (after it was lowered) are searched this far.
const MOST_FILES: u32 = 1000;

#[derive(Debug)]
pub struct Log {
    dir: PathBuf,
    /// No file grows past this.
    max: u64,
    /// How many files, the current one included.
    files: u32,
    state: State,
    /// Records not yet in the file, and how many bytes of the program's they tell.
    pending: Vec<u8>,
    pending_text: u64,
    /// The unfinished line of each stream.
    carry: [Vec<u8>; 2],
    dropped: u64,
}

#[derive(Debug)]
enum State {
    Open { file: File, len: u64, look_at: Instant },
    Broken { why: String, retry_at: Instant },
}

impl Log {
    /// Opens or makes the log. A folder that cannot be written is a broken log, not an error.
    pub fn open(dir: PathBuf, max: u64, files: u32) -> Log {
        let max = max.max(2 * BUFFER as u64);
        let files = files.clamp(1, MOST_FILES);
        let state = State::Broken { why: "not opened yet".into(), retry_at: Instant::now() };
        let mut log = Log {
            dir,
            max,
            files,
            state,
            pending: Vec::with_capacity(BUFFER),
            pending_text: 0,
            carry: [Vec::new(), Vec::new()],
            dropped: 0,
        };
        for number in log.files..MOST_FILES {
            if fs::remove_file(log.dir.join(number.to_string())).is_err() {
                break;
            }
        }
        log.reopen();
        log
    }

    /// Takes what the program wrote.
    pub fn append(&mut self, stream: Stream, data: &[u8]) {
        if !self.works() {
            self.dropped += data.len() as u64;
            return;
        }
        let now = Timestamp::now().to_bytes();
        let mut rest = data;
        while let Some(end) = position_of_newline(rest) {
            self.line(&now, stream, &rest[..end], Tag::Full);
            rest = &rest[end + 1..];
        }
        while self.carry[index(stream)].len() + rest.len() >= MAX_TEXT {
            let (piece, after) = rest.split_at(MAX_TEXT - self.carry[index(stream)].len());
            self.record(&now, stream, piece, Tag::Partial);
            rest = after;
        }
        self.carry[index(stream)].extend_from_slice(rest);
    }

    /// A line of the init's own.
    pub fn note(&mut self, text: &str) {
        let now = Timestamp::now().to_bytes();
        self.tell_partial();
        for line in text.lines() {
            if self.works() {
                self.record(&now, Stream::Stderr, format!("enoki-init: {line}").as_bytes(), Tag::Full);
            }
        }
        self.flush();
    }

    /// Is there something that [`Log::flush`] would write?
    pub fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Does an unfinished line wait to be told?
    pub fn has_partial(&self) -> bool {
        self.carry.iter().any(|c| !c.is_empty())
    }

    /// Does it make sense to call [`Log::mend`] soon? None: no. Some: how long to wait.
    pub fn mend_in(&self) -> Option<Duration> {
        match &self.state {
            State::Broken { retry_at, .. } if self.dropped > 0 => {
                Some(retry_at.saturating_duration_since(Instant::now()))
            }
            _ => None,
        }
    }

    /// Tries a broken log again when it has rested.
    pub fn mend(&mut self) {
        self.works();
    }

    /// Tells unfinished lines as pieces: a prompt waits for its answer on the same line.
    pub fn tell_partial(&mut self) {
        let now = Timestamp::now().to_bytes();
        for stream in [Stream::Stdout, Stream::Stderr] {
            if !self.carry[index(stream)].is_empty() {
                self.record(&now, stream, &[], Tag::Partial);
            }
        }
    }

    /// Brings what is buffered into the file.
    pub fn flush(&mut self) {
        let State::Open { file, len, .. } = &mut self.state else {
            return self.forget_pending();
        };
        match file.write_all(&self.pending) {
            Ok(()) => {
                *len += self.pending.len() as u64;
                self.pending.clear();
                self.pending_text = 0;
            }
            Err(error) => {
                // What had got there would be torn. Shrinking works on a full disk; where it does not, the next opening adds a newline.
                let _ = file.set_len(*len);
                self.break_off(&error);
            }
        }
        self.look();
    }

    /// The last call: everything that was taken goes to the file.
    pub fn finish(&mut self) {
        let now = Timestamp::now().to_bytes();
        for stream in [Stream::Stdout, Stream::Stderr] {
            if !self.carry[index(stream)].is_empty() {
                self.record(&now, stream, &[], Tag::Full);
            }
        }
        self.flush();
    }

    /// One line, in as many pieces as it needs. Takes the carry along.
    fn line(&mut self, now: &[u8; LEN], stream: Stream, text: &[u8], tag: Tag) {
        let mut rest = text;
        while self.carry[index(stream)].len() + rest.len() > MAX_TEXT {
            let (piece, after) = rest.split_at(MAX_TEXT - self.carry[index(stream)].len());
            self.record(now, stream, piece, Tag::Partial);
            rest = after;
        }
        self.record(now, stream, rest, tag);
    }

    /// One record: the stream's carry and `text`. Rotates and flushes where the bounds demand it.
    fn record(&mut self, now: &[u8; LEN], stream: Stream, text: &[u8], tag: Tag) {
        let text_len = self.carry[index(stream)].len() + text.len();
        let size = OVERHEAD + text_len;
        if self.pending.len() + size > BUFFER {
            self.flush();
        }
        if let State::Open { len, .. } = &self.state
            && len + (self.pending.len() + size) as u64 > self.max
        {
            self.flush();
            self.rotate();
        }
        let mut carry = std::mem::take(&mut self.carry[index(stream)]);
        logline::write(&mut self.pending, now, stream, tag, &carry, text);
        self.pending_text += text_len as u64 + u64::from(tag == Tag::Full);
        carry.clear();
        self.carry[index(stream)] = carry;
    }

    /// Can records be taken? Tries to mend a broken log that has rested.
    fn works(&mut self) -> bool {
        match &self.state {
            State::Open { .. } => true,
            State::Broken { retry_at, .. } if Instant::now() < *retry_at => false,
            State::Broken { .. } => {
                self.reopen();
                matches!(self.state, State::Open { .. })
            }
        }
    }

    /// Opens the current file and tells what was dropped meanwhile.
    fn reopen(&mut self) {
        let why = match &self.state {
            State::Broken { why, .. } => why.clone(),
            State::Open { .. } => String::new(),
        };
        let opened = self
            .open_current()
            .and_then(|(file, len)| self.tell_dropped(&file, &why).map(|told| (file, len + told)));
        match opened {
            Ok((file, len)) => {
                self.dropped = 0;
                self.state = State::Open { file, len, look_at: Instant::now() + LOOK };
                if len > self.max {
                    self.rotate();
                }
            }
            Err(error) => self.break_off(&error),
        }
    }

    fn tell_dropped(&self, mut file: &File, why: &str) -> io::Result<u64> {
        if self.dropped == 0 {
            return Ok(0);
        }
        let mut record = Vec::new();
        let text = format!(
            "enoki-init: dropped {} bytes of output: the log could not be written ({why})",
            self.dropped
        );
        logline::write(
            &mut record,
            &Timestamp::now().to_bytes(),
            Stream::Stderr,
            Tag::Full,
            text.as_bytes(),
            &[],
        );
        let before = file.metadata()?.len();
        file.write_all(&record).inspect_err(|_| {
            let _ = file.set_len(before);
        })?;
        Ok(record.len() as u64)
    }

    /// Whoever is root inside can put anything at this path: only a regular file is written to.
    fn open_current(&self) -> io::Result<(File, u64)> {
        fs::create_dir_all(&self.dir)?;
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o640)
            .custom_flags(flags)
            .open(self.dir.join(CURRENT))?;
        let meta = file.metadata()?;
        if !meta.is_file() {
            return Err(io::Error::other("it is not a regular file"));
        }
        let mut len = meta.len();
        let mut last = [0];
        // A crash can leave half a record: the next one starts on its own line.
        if len > 0 && file.read_at(&mut last, len - 1)? == 1 && last != *b"\n" {
            file.write_all(b"\n")?;
            len += 1;
        }
        Ok((file, len))
    }

    /// Numbers the files up by one, forgets the oldest and starts a new current one.
    fn rotate(&mut self) {
        let name = |number: u32| self.dir.join(number.to_string());
        let oldest = self.files - 1;
        if oldest > 0 {
            let _ = fs::remove_file(name(oldest));
        }
        for number in (1..oldest).rev() {
            let _ = fs::rename(name(number), name(number + 1));
        }
        let current = self.dir.join(CURRENT);
        let moved = if oldest > 0 { fs::rename(&current, name(1)) } else { fs::remove_file(&current) };
        match moved {
            Err(error) if error.kind() != io::ErrorKind::NotFound => self.break_off(&error),
            _ => match self.open_current() {
                Ok((file, len)) => self.state = State::Open { file, len, look_at: Instant::now() + LOOK },
                Err(error) => self.break_off(&error),
            },
        }
    }

    /// Notices that somebody removed or replaced the current file, and starts a new one.
    fn look(&mut self) {
        let State::Open { file, look_at, .. } = &mut self.state else {
            return;
        };
        if Instant::now() < *look_at {
            return;
        }
        *look_at = Instant::now() + LOOK;
        let there = fs::symlink_metadata(self.dir.join(CURRENT));
        let same = file
            .metadata()
            .is_ok_and(|ours| there.is_ok_and(|t| (t.dev(), t.ino()) == (ours.dev(), ours.ino())));
        if !same {
            self.reopen();
        }
    }

    fn break_off(&mut self, error: &io::Error) {
        self.state = State::Broken { why: error.to_string(), retry_at: Instant::now() + RETRY };
        self.forget_pending();
    }

    fn forget_pending(&mut self) {
        self.dropped += self.pending_text;
        self.pending.clear();
        self.pending_text = 0;
    }
}

fn index(stream: Stream) -> usize {
    match stream {
        Stream::Stdout => 0,
        Stream::Stderr => 1,
    }
}

/// libc's memchr, which uses the widest registers of this machine.
fn position_of_newline(data: &[u8]) -> Option<usize> {
    // SAFETY: the pointer and length are those of one slice.
    let found = unsafe { libc::memchr(data.as_ptr().cast(), i32::from(b'\n'), data.len()) };
    (!found.is_null()).then(|| found as usize - data.as_ptr() as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn texts(file: &Path) -> Vec<(Stream, Tag, String)> {
        let bytes = fs::read(file).expect("the file");
        let lines = bytes.split_inclusive(|b| *b == b'\n');
        lines
            .map(|l| logline::parse(l).unwrap_or_else(|| panic!("torn: {l:?}")))
            .map(|l| (l.stream, l.tag, String::from_utf8_lossy(l.text).into_owned()))
            .collect()
    }

    fn joined(file: &Path, stream: Stream) -> String {
        let whole = texts(file).into_iter().filter(|(s, ..)| *s == stream);
        whole.map(|(_, tag, text)| if tag == Tag::Full { text + "\n" } else { text }).collect()
    }

    #[test]
    fn lines_in_pieces_of_any_size_come_out_whole() {
        let input = format!("one\n\ntwo two\n{}\nlast without newline", "x".repeat(40_000));
        for size in [1, 7, 16_383, 16_384, 16_385, 100_000] {
            let dir = tempfile::tempdir().expect("a folder");
            let mut log = Log::open(dir.path().into(), 1 << 20, 3);
            for chunk in input.as_bytes().chunks(size) {
                log.append(Stream::Stdout, chunk);
                log.append(Stream::Stderr, b"e");
            }
            log.finish();
            assert_eq!(
                joined(&dir.path().join(CURRENT), Stream::Stdout),
                format!("{input}\n"),
                "chunks of {size}"
            );
        }
    }

    #[test]
    fn files_are_bounded_in_size_and_number() {
        let dir = tempfile::tempdir().expect("a folder");
        fs::write(dir.path().join("3"), "from a time with more files").expect("writes");
        fs::write(dir.path().join("4"), "from a time with more files").expect("writes");
        let mut log = Log::open(dir.path().into(), 0, 3);
        for i in 0..20_000 {
            log.append(Stream::Stdout, format!("line number {i}\n").as_bytes());
        }
        log.finish();
        let mut names: Vec<String> = fs::read_dir(dir.path())
            .expect("the folder")
            .map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        assert_eq!(names, ["1", "2", "current"]);
        for name in &names {
            assert!(fs::metadata(dir.path().join(name)).expect("a file").len() <= log.max);
        }
        let all: Vec<String> =
            ["2", "1", "current"].iter().flat_map(|n| texts(&dir.path().join(n))).map(|(.., t)| t).collect();
        assert_eq!(all.last().map(String::as_str), Some("line number 19999"));
        let first: usize = all[0].rsplit(' ').next().and_then(|n| n.parse().ok()).expect("a number");
        assert_eq!(all.len(), 20_000 - first, "none lost between the files");
    }

    #[test]
    fn prompts_are_told_and_continued() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut log = Log::open(dir.path().into(), 0, 3);
        log.append(Stream::Stdout, b"name? ");
        log.tell_partial();
        log.append(Stream::Stdout, b"joe\n");
        log.finish();
        let want =
            [(Stream::Stdout, Tag::Partial, "name? ".into()), (Stream::Stdout, Tag::Full, "joe".into())];
        assert_eq!(texts(&dir.path().join(CURRENT)), want);
    }

    #[test]
    fn a_torn_end_and_a_removed_file_are_survived() {
        let dir = tempfile::tempdir().expect("a folder");
        let current = dir.path().join(CURRENT);
        fs::write(&current, "2026-11-22T10:47:58.000000007Z stdout F torn").expect("writes");
        let mut log = Log::open(dir.path().into(), 0, 3);
        log.append(Stream::Stdout, b"a\n");
        log.flush();
        assert_eq!(texts(&current).len(), 2);
        fs::remove_file(&current).expect("removes");
        if let State::Open { look_at, .. } = &mut log.state {
            *look_at = Instant::now();
        }
        log.flush();
        log.append(Stream::Stdout, b"b\n");
        log.finish();
        assert_eq!(texts(&current), [(Stream::Stdout, Tag::Full, "b".into())]);
    }

    #[test]
    fn a_broken_log_drops_counts_and_tells() {
        let dir = tempfile::tempdir().expect("a folder");
        let current = dir.path().join(CURRENT);
        fs::create_dir(&current).expect("something in the way");
        let mut log = Log::open(dir.path().into(), 0, 3);
        log.append(Stream::Stdout, b"12345");
        log.append(Stream::Stderr, b"678\n");
        assert!(log.mend_in().is_some());
        fs::remove_dir(&current).expect("out of the way");
        if let State::Broken { retry_at, .. } = &mut log.state {
            *retry_at = Instant::now();
        }
        log.append(Stream::Stdout, b"back\n");
        log.finish();
        let lines = texts(&current);
        assert!(lines[0].2.starts_with("enoki-init: dropped 9 bytes of output"), "{lines:?}");
        assert_eq!(lines[1].2, "back");
        assert_eq!(log.mend_in(), None);
    }
}
