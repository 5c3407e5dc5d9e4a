//! Sealing of what is secret in etcd: whoever reads etcd or its backups has nothing without a key file that is not in it.
//!
//! The key file stands on each server, readable by its owner alone: one key a line (32 bytes as base64), `#` begins a
//! comment. The **first** key seals, **any** opens; so a key is rotated by putting a new line on top on every server,
//! writing all sealed values again, and then removing the old line.
//!
//! A sealed value is the text `sealed:v1:KEYID:BASE64` of nonce and ChaCha20-Poly1305 ciphertext. The path of the etcd key
//! it stands at is authenticated with it: a sealed value moved to another key does not open. Nonces are random: fine for
//! 2^32 values a key, far beyond ours.
//!
//! On failure nothing is opened and nothing of a key or a value is in the error or in any `Debug`. A lost key file means
//! that what it sealed is lost: keep a copy of it with your backups, and not on the same medium.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use sha2::{Digest, Sha256};

const KEY_BYTES: usize = 32;
const PREFIX: &str = "sealed:v1:";

/// Many keys are a mistake: somebody pointed at another file.
const MAX_FILE_BYTES: u64 = 64 * 1024;

/// What can go wrong. None of it holds anything secret.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("key file {path}: {source}")]
    File { path: PathBuf, source: io::Error },
    /// The file is not one that secrets can rest on.
    #[error("key file {path}: {why}")]
    Unfit { path: PathBuf, why: String },
    /// Not text that [`Sealer::seal`] made.
    #[error("the value at {at} is not sealed, or its seal is malformed")]
    Malformed { at: String },
    #[error("the value at {at} is sealed with key {key_id}, which is not in the key file: put it back there")]
    UnknownKey { at: String, key_id: String },
    /// Changed, or moved here from another key of the store.
    #[error("the value at {at} does not open: it was changed or belongs to another place")]
    Forged { at: String },
    /// Beyond what one nonce may seal: 256 GiB.
    #[error("the secret for {at} is too large to seal")]
    TooLarge { at: String },
    #[error("the system has no random bytes")]
    NoRandom,
}

/// The keys of one server.
pub struct Sealer {
    /// Never empty; the first seals.
    keys: Vec<Key>,
    random: SystemRandom,
}

struct Key {
    id: String,
    key: LessSafeKey,
}

impl Sealer {
    /// Reads the key file; makes one with a new key if there is none. Two servers on one machine that do so at once
    /// end up with the same.
    pub fn load_or_create(path: &Path) -> Result<Sealer, Error> {
        match Sealer::load(path) {
            Err(Error::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                create(path)?;
                Sealer::load(path)
            }
            other => other,
        }
    }

    /// Reads the key file. It must be a regular file of ours (no symbolic link) that nobody else can read.
    pub fn load(path: &Path) -> Result<Sealer, Error> {
        let failed = |source| Error::File { path: path.to_path_buf(), source };
        let unfit = |why: &str| Error::Unfit { path: path.to_path_buf(), why: why.to_string() };
        let mut file = OpenOptions::new()
            .read(true)
            .custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK)
            .open(path)
            .map_err(failed)?;
        // Of the open file, so that it can't be exchanged in between.
        let about = file.metadata().map_err(failed)?;
        if !about.is_file() {
            return Err(unfit("is not a regular file"));
        }
        if about.mode() & 0o077 != 0 {
            return Err(unfit(&format!(
                "has mode {:04o}, others can reach it: take it for compromised, or `chmod 600` it",
                about.mode() & 0o7777
            )));
        }
        if about.uid() != nix::unistd::geteuid().as_raw() {
            return Err(unfit("belongs to another user: `chown` it"));
        }
        if about.len() > MAX_FILE_BYTES {
            return Err(unfit("is too large to be a key file"));
        }
        let mut text = Wiped(Vec::new());
        file.read_to_end(&mut text.0).map_err(failed)?;
        let text = std::str::from_utf8(&text.0).map_err(|_| unfit("is not text"))?;
        Sealer::parse(text).map_err(|why| unfit(&why))
    }

    fn parse(text: &str) -> Result<Sealer, String> {
        let mut keys: Vec<Key> = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default().trim();
            if line.is_empty() {
                continue;
            }
            let number = number + 1;
            let bytes = BASE64.decode(line).map(Wiped).map_err(|_| format!("line {number} is not base64"))?;
            let key = Key::new(&bytes.0).ok_or_else(|| {
                format!("the key on line {number} has {} bytes, it must have {KEY_BYTES}", bytes.0.len())
            })?;
            if keys.iter().any(|other| other.id == key.id) {
                return Err(format!("the key on line {number} is there twice"));
            }
            keys.push(key);
        }
        if keys.is_empty() {
            return Err("holds no key".into());
        }
        Ok(Sealer { keys, random: SystemRandom::new() })
    }

    /// Seals `secret` for the place `at`, the path of the store's key that holds it.
    pub fn seal(&self, at: &str, secret: &[u8]) -> Result<String, Error> {
        let key = &self.keys[0];
        let mut nonce = [0; NONCE_LEN];
        self.random.fill(&mut nonce).map_err(|_| Error::NoRandom)?;
        let mut sealed = secret.to_vec();
        let done = key.key.seal_in_place_append_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(bound_to(&key.id, at)),
            &mut sealed,
        );
        if done.is_err() {
            drop(Wiped(sealed));
            return Err(Error::TooLarge { at: at.to_string() });
        }
        let mut whole = nonce.to_vec();
        whole.append(&mut sealed);
        Ok(format!("{PREFIX}{}:{}", key.id, BASE64.encode(whole)))
    }

    /// Opens what was sealed for the place `at`. The caller holds the secret then: not to be printed, not to be kept.
    pub fn open(&self, at: &str, sealed: &str) -> Result<Vec<u8>, Error> {
        let malformed = || Error::Malformed { at: at.to_string() };
        let (key_id, text) = parts(sealed).ok_or_else(malformed)?;
        let mut whole = Wiped(BASE64.decode(text).map_err(|_| malformed())?);
        let key = self
            .keys
            .iter()
            .find(|key| key.id == key_id)
            .ok_or_else(|| Error::UnknownKey { at: at.to_string(), key_id: key_id.to_string() })?;
        let (nonce, cipher) = whole.0.split_at_mut_checked(NONCE_LEN).ok_or_else(malformed)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| malformed())?;
        let opened = key
            .key
            .open_in_place(nonce, Aad::from(bound_to(key_id, at)), cipher)
            .map_err(|_| Error::Forged { at: at.to_string() })?;
        Ok(opened.to_vec())
    }

    /// Whether `sealed` is to be written again: it is not sealed with the first key.
    pub fn is_outdated(&self, sealed: &str) -> bool {
        parts(sealed).is_none_or(|(key_id, _)| key_id != self.keys[0].id)
    }

    /// The id of the key that seals, for logs.
    pub fn key_id(&self) -> &str {
        &self.keys[0].id
    }
}

impl Key {
    fn new(bytes: &[u8]) -> Option<Key> {
        if bytes.len() != KEY_BYTES {
            return None;
        }
        let key = UnboundKey::new(&CHACHA20_POLY1305, bytes).ok()?;
        // Tells the key apart and nothing about it.
        let digest = Sha256::new().chain_update(b"enoki seal key id\0").chain_update(bytes).finalize();
        let id = digest[..4].iter().map(|b| format!("{b:02x}")).collect();
        let key = LessSafeKey::new(key);
        Some(Key { id, key })
    }
}

/// The key id and the base64 of a sealed text.
fn parts(sealed: &str) -> Option<(&str, &str)> {
    sealed.strip_prefix(PREFIX)?.split_once(':')
}

/// What is authenticated beside the secret. A key id holds no zero byte, so that the parts can't be shifted.
fn bound_to(key_id: &str, at: &str) -> Vec<u8> {
    [b"enoki seal v1", key_id.as_bytes(), at.as_bytes()].join(&0)
}

/// Writes the file whole under another name and links it to its own, which fails if somebody was first: there is never
/// half a key file, and never a second one over the first.
fn create(path: &Path) -> Result<(), Error> {
    let failed = |source| Error::File { path: path.to_path_buf(), source };
    let mut bytes = Wiped(vec![0; KEY_BYTES]);
    let mut name = [0; 8];
    let random = SystemRandom::new();
    random.fill(&mut bytes.0).map_err(|_| Error::NoRandom)?;
    random.fill(&mut name).map_err(|_| Error::NoRandom)?;
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    let draft = folder.join(format!(".seal-key-{:016x}", u64::from_ne_bytes(name)));
    let written = write_draft(&draft, &bytes.0).and_then(|()| fs::hard_link(&draft, path));
    let cleaned = fs::remove_file(&draft);
    match written {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        Err(error) => return Err(failed(error)),
    }
    cleaned.map_err(failed)?;
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)
}

fn write_draft(draft: &Path, key: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(draft)?;
    let line = Wiped(format!("{}\n", BASE64.encode(key)).into_bytes());
    file.write_all(&line.0)?;
    file.sync_all()
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ids: Vec<&str> = self.keys.iter().map(|key| key.id.as_str()).collect();
        f.debug_struct("Sealer").field("ids", &ids).finish()
    }
}

/// Bytes that are overwritten when dropped.
struct Wiped(Vec<u8>);

impl Drop for Wiped {
    fn drop(&mut self) {
        wipe(&mut self.0);
    }
}

fn wipe(bytes: &mut [u8]) {
    bytes.fill(0);
    // So that the compiler does not take the writes for useless.
    std::hint::black_box(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    const AT: &str = "/enoki/v1/secrets/default/db";

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    fn key(byte: u8) -> String {
        BASE64.encode([byte; KEY_BYTES])
    }

    fn ring(keys: &[u8]) -> Sealer {
        let lines: Vec<String> = keys.iter().map(|k| key(*k)).collect();
        Sealer::parse(&lines.join("\n")).unwrap()
    }

    fn write(path: &Path, text: &str, mode: u32) {
        fs::write(path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn seals_and_opens() {
        let ring = ring(&[1]);
        for secret in [&b""[..], b"x", &[0xff; 5000]] {
            let sealed = ring.seal(AT, secret).unwrap();
            assert!(sealed.starts_with(&format!("sealed:v1:{}:", ring.key_id())));
            assert_eq!(ring.open(AT, &sealed).unwrap(), secret);
            assert_ne!(ring.seal(AT, secret).unwrap(), sealed, "never the same twice");
        }
    }

    #[test]
    fn a_sealed_value_opens_only_at_its_place() {
        let ring = ring(&[1]);
        let sealed = ring.seal(AT, b"secret").unwrap();
        assert!(matches!(ring.open("/enoki/v1/secrets/evil/db", &sealed), Err(Error::Forged { .. })));
    }

    #[test]
    fn every_changed_bit_is_noticed() {
        let ring = ring(&[1]);
        let sealed = ring.seal(AT, b"secret").unwrap();
        let (head, text) = sealed.rsplit_once(':').unwrap();
        let whole = BASE64.decode(text).unwrap();
        for bit in 0..whole.len() * 8 {
            let mut forged = whole.clone();
            forged[bit / 8] ^= 1 << (bit % 8);
            let forged = format!("{head}:{}", BASE64.encode(forged));
            assert!(matches!(ring.open(AT, &forged), Err(Error::Forged { .. })));
        }
        for malformed in ["", "secret", "sealed:v1:", "sealed:v1:00000000", "sealed:v2:a:b"] {
            assert!(matches!(ring.open(AT, malformed), Err(Error::Malformed { .. })));
        }
        for malformed in [format!("{head}:"), format!("{head}:AAAA"), format!("{head}:%%")] {
            assert!(matches!(ring.open(AT, &malformed), Err(Error::Malformed { .. })));
        }
    }

    #[test]
    fn keys_rotate() {
        let (old, both, new) = (ring(&[1]), ring(&[2, 1]), ring(&[2]));
        let sealed = old.seal(AT, b"secret").unwrap();
        assert!(!old.is_outdated(&sealed) && both.is_outdated(&sealed));
        assert_eq!(both.open(AT, &sealed).unwrap(), b"secret");
        assert!(matches!(
            new.open(AT, &sealed),
            Err(Error::UnknownKey { key_id, .. }) if key_id == old.key_id()
        ));
        let again = both.seal(AT, b"secret").unwrap();
        assert!(!both.is_outdated(&again));
        assert_eq!(new.open(AT, &again).unwrap(), b"secret");
        // A key that passes itself off as another does not open.
        let swapped = sealed.replace(old.key_id(), new.key_id());
        assert!(matches!(both.open(AT, &swapped), Err(Error::Forged { .. })));
    }

    #[test]
    fn a_key_file_is_made_once_and_private() {
        let folder = folder();
        let path = folder.path().join("seal.key");
        assert!(Sealer::load(&path).is_err());
        let rings: Vec<Sealer> = std::thread::scope(|scope| {
            let open = || Sealer::load_or_create(&path).unwrap();
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(open)).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        assert!(rings.iter().all(|ring| ring.key_id() == rings[0].key_id()));
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        let names: Vec<_> = fs::read_dir(folder.path()).unwrap().collect();
        assert_eq!(names.len(), 1, "no drafts stay");
        let sealed = rings[0].seal(AT, b"x").unwrap();
        assert!(Sealer::load(&path).unwrap().open(AT, &sealed).is_ok());
    }

    #[test]
    fn unfit_key_files_are_refused_and_left_alone() {
        let folder = folder();
        let path = folder.path().join("seal.key");
        for (text, mode, why) in [
            (key(1), 0o640, "mode 0640"),
            (key(1), 0o604, "mode 0604"),
            (String::new(), 0o600, "no key"),
            ("# nothing\n".into(), 0o600, "no key"),
            (BASE64.encode([1; 31]), 0o600, "31 bytes"),
            (format!("{}\n{}", key(1), BASE64.encode([1; 33])), 0o600, "line 2"),
            (format!("{}\n{}", key(1), key(1)), 0o600, "twice"),
            ("not base64!".into(), 0o600, "line 1"),
        ] {
            write(&path, &text, mode);
            let error = Sealer::load_or_create(&path).unwrap_err();
            assert!(matches!(error, Error::Unfit { .. }), "{error}");
            let said = format!("{error} {error:?}");
            assert!(said.contains(why), "{said}");
            assert!(!said.contains(&key(1)) && !said.contains("not base64!"), "{said}");
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        let real = folder.path().join("real");
        write(&real, &key(1), 0o600);
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(&real, &path).unwrap();
        assert!(Sealer::load_or_create(&path).is_err(), "a link is refused");
        assert!(Sealer::load_or_create(folder.path()).is_err(), "a folder too");
        let commented = format!("# 2026\n{} # new\n\n{}\n", key(2), key(1));
        write(&real, &commented, 0o600);
        assert_eq!(Sealer::load(&real).unwrap().key_id(), ring(&[2]).key_id());
    }

    #[test]
    fn nothing_secret_is_printed() {
        let ring = ring(&[1]);
        let sealed = ring.seal(AT, b"hunter2").unwrap();
        let said = format!("{ring:?}");
        assert!(!sealed.contains("hunter2"));
        assert_eq!(said, format!("Sealer {{ ids: [\"{}\"] }}", ring.key_id()));
    }
}
