//! Reads what an instance printed, from the files that its init keeps: also when it is stopped or Docker is away.
//!
//! Files are `N` (oldest) ... `1`, `current`; the init renames them when one is full. A reader holds its file open,
//! so a rotation takes nothing away from it; at the end of a file it looks where that file is now and goes on with
//! the next newer one.

use super::beneath;
use enoki_api::protocol::Channel;
use enoki_helpers::logline::{self, Stream, Tag};
use jiff::Timestamp;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The init keeps five files; a few more were kept by another setting.
const FILES_MOST: u32 = 32;
/// Of one file at most so much is read, its end: the init's own bound is 10 MiB, but the folder is the instance's.
const FILE_MOST: u64 = 64 << 20;
/// A line without an end is told in pieces by the init, so what is longer is no line of its.
const LINE_MOST: usize = 64 << 10;
/// Bytes read at a time.
const PIECE: usize = 64 << 10;

/// What of the output is asked for.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// The last so many lines. None: all that are kept.
    pub tail: Option<u64>,
    pub since: Option<Timestamp>,
    /// Put the time before each line.
    pub timestamps: bool,
}

/// Text of one of the two streams.
pub type Piece = (Channel, Vec<u8>);

/// One reader's place in the output.
pub struct Reader {
    /// The instance's `machine/` folder.
    folder: OwnedFd,
    /// Opened, from the one being read to the newest.
    files: VecDeque<File>,
    /// Read and not ended by a newline yet.
    rest: Vec<u8>,
    /// Compared as text: times are of one length.
    since: Option<String>,
    timestamps: bool,
    /// Whether the next text of stdout, stderr begins a line.
    begins: [bool; 2],
    /// Lines to leave out before the first that is told.
    skip: u64,
}

impl Reader {
    /// `folder`: the instance's state folder on the host. Output that is not there (never started) is empty.
    pub fn open(folder: &Path, wanted: &Wanted) -> io::Result<Self> {
        let mut reader = Reader {
            folder: beneath::folder(folder)?,
            files: VecDeque::new(),
            rest: Vec::new(),
            since: wanted.since.map(|since| format!("{since:.9}")),
            timestamps: wanted.timestamps,
            begins: [true; 2],
            skip: 0,
        };
        reader.files = reader.all()?;
        if let Some(tail) = wanted.tail {
            reader.skip = reader.count()?.saturating_sub(tail);
        }
        Ok(reader)
    }

    fn file(&self, name: &str) -> io::Result<Option<File>> {
        match beneath::open(&self.folder, &format!("log/{name}")) {
            Ok(mut file) => {
                let length = file.metadata()?.len();
                file.seek(SeekFrom::Start(length.saturating_sub(FILE_MOST)))?;
                Ok(Some(file))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// All files, the oldest first. Opened from the newest on: one that is renamed meanwhile is met twice, not missed.
    fn all(&self) -> io::Result<VecDeque<File>> {
        let mut files: VecDeque<File> = VecDeque::new();
        let names =
            std::iter::once(logline::CURRENT.to_owned()).chain((1..FILES_MOST).map(|n| n.to_string()));
        for name in names {
            match self.file(&name)? {
                Some(file) if files.iter().any(|known| same(known, &file)) => {}
                Some(file) => files.push_front(file),
                // The moment between the renaming of `current` and its new one.
                None if name == logline::CURRENT => {}
                None => break,
            }
        }
        Ok(files)
    }

    /// Lines that are there now and wanted by time. Leaves the files as they were.
    fn count(&mut self) -> io::Result<u64> {
        let mut lines = 0;
        for file in &mut self.files {
            let start = file.stream_position()?;
            let mut rest = Vec::new();
            let mut piece = vec![0; PIECE];
            loop {
                let read = file.read(&mut piece)?;
                if read == 0 {
                    break;
                }
                rest.extend_from_slice(&piece[..read]);
                let since = self.since.as_deref();
                take_lines(&mut rest, |line| {
                    let wanted = since.is_none_or(|since| line.time >= since);
                    lines += u64::from(wanted && line.tag == Tag::Full);
                });
            }
            file.seek(SeekFrom::Start(start))?;
        }
        Ok(lines)
    }

    /// The next piece of output, by stream. None: there is no more at the moment.
    pub fn step(&mut self) -> io::Result<Option<Vec<Piece>>> {
        let mut piece = vec![0; PIECE];
        loop {
            let Some(file) = self.files.front_mut() else {
                self.files = self.all()?;
                if self.files.is_empty() {
                    return Ok(None);
                }
                continue;
            };
            let read = file.read(&mut piece)?;
            if read > 0 {
                self.rest.extend_from_slice(&piece[..read]);
                let told = self.tell();
                if !told.is_empty() {
                    return Ok(Some(told));
                }
                continue;
            }
            if self.files.len() > 1 {
                self.files.pop_front();
                continue;
            }
            // At the end of the newest file that was known.
            let newer = self.newer()?;
            if newer.is_empty() {
                return Ok(None);
            }
            // It was written to until it was renamed: read to its end once more before the next.
            self.files.extend(newer);
        }
    }

    /// Files that are newer than the one being read.
    fn newer(&self) -> io::Result<VecDeque<File>> {
        let Some(mine) = self.files.front() else { return Ok(VecDeque::new()) };
        match self.file(logline::CURRENT)? {
            Some(current) if same(&current, mine) => return Ok(VecDeque::new()),
            None => return Ok(VecDeque::new()),
            Some(_) => {}
        }
        let mut all = self.all()?;
        // Not among them: rotated away while nobody read. What is left is all newer.
        if let Some(at) = all.iter().position(|file| same(file, mine)) {
            all.drain(..=at);
        }
        Ok(all)
    }

    fn tell(&mut self) -> Vec<Piece> {
        let mut told: Vec<Piece> = Vec::new();
        let Reader { rest, since, timestamps, begins, skip, .. } = self;
        take_lines(rest, |line| {
            if since.as_deref().is_some_and(|since| line.time < since) {
                return;
            }
            if *skip > 0 {
                *skip -= u64::from(line.tag == Tag::Full);
                return;
            }
            let (channel, at) = match line.stream {
                Stream::Stdout => (Channel::Stdout, 0),
                Stream::Stderr => (Channel::Stderr, 1),
            };
            if told.last().is_none_or(|(last, _)| *last != channel) {
                told.push((channel, Vec::new()));
            }
            let Some((_, text)) = told.last_mut() else { return };
            if *timestamps && begins[at] {
                text.extend_from_slice(line.time.as_bytes());
                text.push(b' ');
            }
            text.extend_from_slice(line.text);
            begins[at] = line.tag == Tag::Full;
            if begins[at] {
                text.push(b'\n');
            }
        });
        told
    }
}

/// Takes whole lines off the front. Torn ones are left out.
fn take_lines(rest: &mut Vec<u8>, mut each: impl FnMut(logline::Line<'_>)) {
    let mut from = 0;
    while let Some(length) = rest[from..].iter().position(|byte| *byte == b'\n') {
        if let Some(line) = logline::parse(&rest[from..from + length]) {
            each(line);
        }
        from += length + 1;
    }
    rest.drain(..from);
    if rest.len() > LINE_MOST {
        rest.clear();
    }
}

fn same(a: &File, b: &File) -> bool {
    match (a.metadata(), b.metadata()) {
        (Ok(a), Ok(b)) => a.ino() == b.ino() && a.dev() == b.dev(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::Write;

    struct Log(tempfile::TempDir);

    impl Log {
        fn new() -> Self {
            let log = Log(tempfile::tempdir().unwrap());
            fs::create_dir(log.0.path().join("log")).unwrap();
            log
        }

        fn path(&self, name: &str) -> std::path::PathBuf {
            self.0.path().join("log").join(name)
        }

        fn line(&self, second: u32, rest: &str) {
            let mut file =
                fs::OpenOptions::new().create(true).append(true).open(self.path("current")).unwrap();
            writeln!(file, "2026-11-22T10:00:{second:02}.000000000Z {rest}").unwrap();
        }

        fn rotate(&self) {
            for n in (1..4).rev() {
                let _ = fs::rename(self.path(&n.to_string()), self.path(&(n + 1).to_string()));
            }
            fs::rename(self.path("current"), self.path("1")).unwrap();
        }

        fn read(&self, wanted: &Wanted) -> String {
            drain(&mut Reader::open(self.0.path(), wanted).unwrap())
        }
    }

    fn drain(reader: &mut Reader) -> String {
        let mut text = String::new();
        while let Some(pieces) = reader.step().unwrap() {
            for (channel, bytes) in pieces {
                let mark = if channel == Channel::Stderr { "!" } else { "" };
                text.push_str(&format!("{mark}{}", String::from_utf8(bytes).unwrap()));
            }
        }
        text
    }

    #[test]
    fn all_files_in_order_with_partial_lines_joined() {
        let log = Log::new();
        log.line(1, "stdout F one");
        log.rotate();
        log.line(2, "stdout P tw");
        log.rotate();
        log.line(3, "stdout F o");
        log.line(4, "stderr F bad");
        assert_eq!(log.read(&Wanted::default()), "one\ntwo\n!bad\n");
        let stamped = log.read(&Wanted { timestamps: true, ..Wanted::default() });
        assert!(stamped.contains("2026-11-22T10:00:02.000000000Z two\n"), "{stamped}");
    }

    #[test]
    fn tail_and_since() {
        let log = Log::new();
        for second in 0..10 {
            log.line(second, &format!("stdout F l{second}"));
            if second == 7 {
                log.rotate();
            }
        }
        let tail = |n| Wanted { tail: Some(n), ..Wanted::default() };
        assert_eq!(log.read(&tail(3)), "l7\nl8\nl9\n");
        assert_eq!(log.read(&tail(0)), "");
        assert_eq!(log.read(&tail(100)).lines().count(), 10);
        let since = Some("2026-11-22T10:00:08Z".parse().unwrap());
        assert_eq!(log.read(&Wanted { since, ..Wanted::default() }), "l8\nl9\n");
        assert_eq!(log.read(&Wanted { since, tail: Some(1), ..Wanted::default() }), "l9\n");
    }

    #[test]
    fn following_over_rotations() {
        let log = Log::new();
        let mut reader = Reader::open(log.0.path(), &Wanted::default()).unwrap();
        assert_eq!(drain(&mut reader), "");
        log.line(1, "stdout F one");
        assert_eq!(drain(&mut reader), "one\n");
        log.line(2, "stdout F two");
        log.rotate();
        assert_eq!(drain(&mut reader), "two\n");
        log.line(3, "stdout F three");
        log.rotate();
        log.line(4, "stdout F four");
        assert_eq!(drain(&mut reader), "three\nfour\n");
        // So many that its own file is gone.
        for second in 5..15 {
            log.line(second, &format!("stdout F l{second}"));
            log.rotate();
        }
        log.line(20, "stdout F last");
        let told = drain(&mut reader);
        assert!(told.ends_with("l14\nlast\n"), "{told}");
    }

    #[test]
    fn torn_and_hostile_lines_are_left_out() {
        let log = Log::new();
        log.line(1, "stdout F ok");
        fs::OpenOptions::new()
            .append(true)
            .open(log.path("current"))
            .unwrap()
            .write_all(b"garbage\n2026\n")
            .unwrap();
        log.line(2, "stdout F ok2");
        fs::OpenOptions::new()
            .append(true)
            .open(log.path("current"))
            .unwrap()
            .write_all(b"2026-11-22T10:00:03.0")
            .unwrap();
        assert_eq!(log.read(&Wanted::default()), "ok\nok2\n");
        let other = Log::new();
        std::os::unix::fs::symlink("/etc/passwd", other.path("current")).unwrap();
        assert!(Reader::open(other.0.path(), &Wanted::default()).is_err());
    }
}
