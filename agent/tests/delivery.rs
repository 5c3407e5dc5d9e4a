//! Uploaded files on a host: fetched once, whole or not at all, linked where they are named, and pruned.

use enoki_agent::delivery::{Delivery, is_whole};
use enoki_agent::disk::Disks;
use enoki_agent::session::socket::Dialer;
use enoki_api::file::FileRef;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;

/// A host's folders, and a server that gives what it is told to.
struct Site {
    folder: tempfile::TempDir,
    delivery: Delivery,
    answers: Arc<Mutex<BTreeMap<String, Vec<u8>>>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Site {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("agent.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let (answers, asked) =
            (Arc::<Mutex<BTreeMap<String, Vec<u8>>>>::default(), Arc::<Mutex<Vec<String>>>::default());
        let (gives, notes) = (answers.clone(), asked.clone());
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = vec![0; 4096];
                let length = stream.read(&mut request).await.unwrap();
                let request = String::from_utf8_lossy(&request[..length]).into_owned();
                let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
                let answer = gives.lock().unwrap().get(&path).cloned();
                notes.lock().unwrap().push(path);
                // Long enough for others to come for the same.
                tokio::time::sleep(Duration::from_millis(20)).await;
                stream.write_all(&answer.unwrap_or_else(|| head("404 Not Found", 0))).await.unwrap();
            }
        });
        let disks = Disks::open(folder.path()).await.unwrap();
        let delivery = Delivery::new(&folder.path().join("files"), Dialer::unix(&socket), disks).unwrap();
        Site { folder, delivery, answers, asked }
    }

    /// From now on the server answers so when it is asked for the file.
    fn give(&self, file: &FileRef, answer: Vec<u8>) {
        self.answers.lock().unwrap().insert(format!("/agent/v1/files/shop/{}", file.digest), answer);
    }

    fn job(&self, name: &str) -> PathBuf {
        self.folder.path().join("instances").join(name)
    }

    fn kept(&self) -> Vec<String> {
        let entries = fs::read_dir(self.folder.path().join("files")).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    async fn deliver(&self, files: &BTreeMap<String, FileRef>, job: &Path) -> Result<(), String> {
        self.delivery.deliver("shop", files, job).await
    }
}

fn head(status: &str, length: usize) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n").into_bytes()
}

fn good(content: &str) -> Vec<u8> {
    [head("200 OK", content.len()), content.as_bytes().to_vec()].concat()
}

fn file(content: &str) -> FileRef {
    let hex: String = Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect();
    FileRef { digest: format!("sha256:{hex}"), size: content.len() as u64 }
}

fn named(files: &[(&str, &FileRef)]) -> BTreeMap<String, FileRef> {
    files.iter().map(|&(name, file)| (name.to_owned(), file.clone())).collect()
}

#[tokio::test]
async fn fetched_once_and_linked_where_it_is_named() {
    let site = Site::new().await;
    let (job, data, empty) = (file("print()"), file("1,2"), file(""));
    for (file, content) in [(&job, "print()"), (&data, "1,2"), (&empty, "")] {
        site.give(file, good(content));
    }
    let files =
        named(&[("a job.py", &job), ("again.py", &job), ("data.csv", &data), ("__init__.py", &empty)]);
    let folders = [site.job("one"), site.job("two"), site.job("three")];
    assert!(!is_whole(&files, &folders[0]).unwrap());
    let all = folders.iter().map(|folder| site.deliver(&files, folder));
    for done in futures::future::join_all(all).await {
        done.unwrap();
    }
    assert_eq!(site.asked.lock().unwrap().len(), 3, "{:?}", site.asked);
    for folder in &folders {
        assert!(is_whole(&files, folder).unwrap());
        assert_eq!(fs::read_to_string(folder.join("a job.py")).unwrap(), "print()");
        assert_eq!(fs::read_to_string(folder.join("data.csv")).unwrap(), "1,2");
        assert_eq!(fs::metadata(folder).unwrap().mode() & 0o7777, 0o755);
    }
    let seen = fs::metadata(folders[0].join("again.py")).unwrap();
    assert_eq!((seen.mode() & 0o7777, seen.nlink()), (0o644, 7));
    // What is missing or was meddled with is put back from what is here, without the server.
    fs::remove_file(folders[0].join("data.csv")).unwrap();
    fs::remove_file(folders[0].join("again.py")).unwrap();
    fs::write(folders[0].join("again.py"), "x").unwrap();
    assert!(!is_whole(&files, &folders[0]).unwrap());
    site.deliver(&files, &folders[0]).await.unwrap();
    assert!(is_whole(&files, &folders[0]).unwrap());
    assert_eq!(fs::read_to_string(folders[0].join("again.py")).unwrap(), "print()");
    assert_eq!(site.asked.lock().unwrap().len(), 3);
}

#[tokio::test]
async fn what_is_not_the_file_never_counts() {
    let site = Site::new().await;
    let job = file("print()");
    let (files, folder) = (named(&[("job.py", &job)]), site.job("one"));
    let problem = r#"{"type":"","title":"Not allowed","status":403,"code":"forbidden","detail":"host h2 needs no file"}"#;
    let refusal = [head("403 Forbidden", problem.len()), problem.as_bytes().to_vec()].concat();
    for (answer, words) in [
        (good("prinT()"), "what the server gave is sha256:"),
        (good("print("), "what the server gave is sha256:"),
        (good("print() and more"), "more than its 7 bytes"),
        ([head("200 OK", 7), b"prin".to_vec()].concat(), "broke off after 4 bytes"),
        (refusal, "403 Forbidden: host h2 needs no file"),
        (head("404 Not Found", 0), "404"),
    ] {
        site.give(&job, answer);
        let why = site.deliver(&files, &folder).await.unwrap_err();
        assert!(why.contains(words) && why.contains("file job.py (sha256:"), "{why}");
        assert!(!is_whole(&files, &folder).unwrap(), "{words}");
        assert!(!site.kept().contains(&job.digest[7..].to_owned()), "{words}: {:?}", site.kept());
    }
    site.give(&job, good("print()"));
    site.deliver(&files, &folder).await.unwrap();
    assert_eq!(fs::read_to_string(folder.join("job.py")).unwrap(), "print()");
    assert_eq!(site.kept(), [&job.digest[7..]]);
    // More than the host has room for is not begun.
    let asked = site.asked.lock().unwrap().len();
    let huge = FileRef { size: 1 << 60, ..file("huge") };
    let why = site.deliver(&named(&[("huge", &huge)]), &folder).await.unwrap_err();
    assert!(why.contains("room"), "{why}");
    assert_eq!(site.asked.lock().unwrap().len(), asked);
}

#[tokio::test]
async fn what_nobody_names_goes_and_its_links_stay() {
    let site = Site::new().await;
    let (old, new) = (file("old"), file("new"));
    site.give(&old, good("old"));
    site.give(&new, good("new"));
    let (files, folder) = (named(&[("old", &old), ("new", &new)]), site.job("one"));
    site.deliver(&files, &folder).await.unwrap();
    let at = |name: &str| site.folder.path().join("files").join(name);
    fs::write(at(&format!("{}.part", "cd".repeat(32))), "half").unwrap();
    let none = Vec::new();
    site.delivery.prune(none.iter()).unwrap();
    assert_eq!(site.kept().len(), 3, "all of them are new");
    for name in site.kept() {
        let past = SystemTime::now() - Duration::from_secs(61);
        fs::File::open(at(&name)).unwrap().set_modified(past).unwrap();
    }
    site.delivery.prune([&new].into_iter()).unwrap();
    assert_eq!(site.kept(), [&new.digest[7..]]);
    assert!(is_whole(&files, &folder).unwrap());
    assert_eq!(fs::read_to_string(folder.join("old")).unwrap(), "old");
}
