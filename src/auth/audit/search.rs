//! Reading the audit, from the end: the newest is what one looks for. Holds one block, one line and what was found; what
//! it reads is bounded by the size at which the file is moved aside.

use enoki_api::audit::AuditEntry;
use jiff::Timestamp;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

const BLOCK: usize = 64 << 10;
/// No entry is as long as this; what is (a hole that a power cut left) is kept only so far.
const LINE_MAX: usize = 1 << 20;

/// Which lines. What is not set takes all.
#[derive(Clone, Debug, Default)]
pub struct Query {
    /// Not before.
    pub since: Option<Timestamp>,
    /// As it is written: `token ci`.
    pub actor: Option<String>,
    /// How the path begins.
    pub path: Option<String>,
    pub status: Option<u16>,
    /// At most so many, the newest.
    pub limit: usize,
}

impl Query {
    fn takes(&self, entry: &AuditEntry) -> bool {
        self.actor.as_ref().is_none_or(|actor| *actor == entry.actor)
            && self.path.as_ref().is_none_or(|path| entry.path.as_ref().is_some_and(|p| p.starts_with(path)))
            && self.status.is_none_or(|status| entry.status == Some(status))
    }
}

/// What is asked for in the files, of which the newest comes first. The newest entry comes last.
pub fn search(files: &[File], query: &Query) -> io::Result<Vec<AuditEntry>> {
    let mut found = Vec::new();
    'files: for file in files {
        let mut lines = Backwards::new(file)?;
        while found.len() < query.limit {
            let Some(line) = lines.next()? else { continue 'files };
            // What was cut off when a disk was full, or is of another version, is no entry.
            let Ok(entry) = serde_json::from_slice::<AuditEntry>(&line) else { continue };
            if query.since.is_some_and(|since| entry.at < since) {
                break 'files;
            }
            if query.takes(&entry) {
                found.push(entry);
            }
        }
        break;
    }
    found.reverse();
    Ok(found)
}

/// The lines of a file, the last first.
struct Backwards<'a> {
    file: &'a File,
    /// Where the part begins that was read.
    from: u64,
    /// What was read from there on and not given yet, without a line's end behind it.
    rest: Vec<u8>,
}

impl<'a> Backwards<'a> {
    fn new(file: &'a File) -> io::Result<Self> {
        Ok(Backwards { file, from: file.metadata()?.len(), rest: Vec::new() })
    }

    /// Empty lines are none.
    fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        // Behind this no line ends: it was looked at.
        let mut looked_at = self.rest.len();
        loop {
            if let Some(end) = self.rest[..looked_at].iter().rposition(|byte| *byte == b'\n') {
                let line = self.rest.split_off(end + 1);
                self.rest.truncate(end);
                if line.is_empty() {
                    looked_at = end;
                    continue;
                }
                return Ok(Some(line));
            }
            if self.from == 0 {
                let line = std::mem::take(&mut self.rest);
                return Ok(Some(line).filter(|line| !line.is_empty()));
            }
            let length = BLOCK.min(usize::try_from(self.from).unwrap_or(BLOCK));
            let mut block = vec![0; length];
            self.from -= length as u64;
            self.file.read_exact_at(&mut block, self.from)?;
            self.rest.truncate(LINE_MAX);
            block.append(&mut self.rest);
            self.rest = block;
            looked_at = length;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::actor::Actor;
    use crate::auth::audit::Audit;
    use enoki_api::token::Role;
    use std::io::Write;

    fn file(folder: &tempfile::TempDir, name: &str, text: &str) -> File {
        let path = folder.path().join(name);
        File::create(&path).unwrap().write_all(text.as_bytes()).unwrap();
        File::open(path).unwrap()
    }

    fn line(second: i64, actor: &str, path: &str, status: u16) -> String {
        let at = Timestamp::from_second(second).unwrap();
        format!(r#"{{"at":"{at}","actor":"{actor}","method":"POST","path":"{path}","status":{status}}}"#)
            + "\n"
    }

    #[test]
    fn lines_backwards_across_blocks() {
        let folder = tempfile::tempdir().unwrap();
        for size in [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK] {
            let long = "x".repeat(size);
            let text = format!("first\n\n{long}\nlast but one\nlast\n");
            let read = file(&folder, "lines", &text);
            let mut lines = Backwards::new(&read).unwrap();
            let mut all = Vec::new();
            while let Some(line) = lines.next().unwrap() {
                all.push(String::from_utf8(line).unwrap());
            }
            let wanted: Vec<&str> = text.lines().rev().filter(|line| !line.is_empty()).collect();
            assert_eq!(all, wanted, "{size}");
        }
        for (text, wanted) in [("", None), ("\n\n", None), ("cut", Some("cut"))] {
            let read = file(&folder, "few", text);
            let line = Backwards::new(&read).unwrap().next().unwrap();
            assert_eq!(line.as_deref(), wanted.map(str::as_bytes));
        }
    }

    #[test]
    fn the_newest_that_are_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let older: String = (0..2000).map(|n| line(n, "uid 0", "/v1/projects/shop/volumes", 201)).collect();
        let newer = line(2000, "token ci", "/v1/projects/shop/instances", 201)
            + "{\"at\": cut off\n"
            + &line(2001, "token ci", "/v1/hosts", 403)
            + r#"{"at":"1970-01-01T00:33:22Z","actor":"host h2","what":"open a session","outcome":"h2 is alive"}"#
            + "\n"
            // As they were written once: without a uid is null, not left out.
            + r#"{"actor":"uid 0","at":"1970-01-01T00:33:23Z","method":"PUT","path":"/v1/hosts","pid":null,"status":200,"uid":null}"#
            + "\n";
        let files = [file(&folder, "new", &newer), file(&folder, "old", &older)];
        let seconds = |query: Query| -> Vec<i64> {
            search(&files, &query).unwrap().iter().map(|entry| entry.at.as_second()).collect()
        };
        let all = Query { limit: 5000, ..Query::default() };
        assert_eq!(seconds(all.clone()).len(), 2004);
        assert_eq!(seconds(Query { limit: 2, ..all.clone() }), [2002, 2003]);
        assert_eq!(seconds(Query { limit: 6, ..all.clone() }), [1998, 1999, 2000, 2001, 2002, 2003]);
        let since = Some(Timestamp::from_second(1999).unwrap());
        assert_eq!(seconds(Query { since, ..all.clone() }), [1999, 2000, 2001, 2002, 2003]);
        assert_eq!(seconds(Query { actor: Some("token ci".into()), ..all.clone() }), [2000, 2001]);
        assert_eq!(seconds(Query { status: Some(403), ..all.clone() }), [2001]);
        let path = |path: &str| Query { path: Some(path.into()), ..all.clone() };
        assert_eq!(seconds(path("/v1/hosts")), [2001, 2003]);
        assert_eq!(seconds(path("/v1/projects/shop/")).len(), 2001);
        assert_eq!(seconds(Query { actor: Some("token".into()), ..all }), [0i64; 0]);
    }

    #[test]
    fn what_is_written_is_found_before_and_after_it_is_moved_aside() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.log");
        // Each line in a file of its own.
        let audit = Audit::rotating_at(&path, 1).unwrap();
        let actor = Actor::Bearer { token: "ci".into(), role: Role::Member, projects: vec!["shop".into()] };
        let found = || search(&audit.files().unwrap(), &Query { limit: 10, ..Query::default() }).unwrap();
        assert_eq!(found(), []);
        audit.request(&actor, "POST", "/v1/projects/shop/volumes".into(), 201);
        assert_eq!(found().len(), 1);
        audit.note(&Actor::Local { uid: Some(0), pid: Some(7) }, "add a server", "done");
        let both = found();
        assert_eq!((both[0].actor.as_str(), both[0].status), ("token ci", Some(201)));
        assert_eq!((both[1].actor.as_str(), both[1].what.as_deref()), ("uid 0", Some("add a server")));
        assert!(both[0].at <= both[1].at && both[1].pid == Some(7) && both[1].method.is_none());
        audit.request(&actor, "GET", "/v1/hosts".into(), 403);
        assert_eq!(found().iter().map(|entry| entry.status).collect::<Vec<_>>(), [None, Some(403)]);
    }
}
