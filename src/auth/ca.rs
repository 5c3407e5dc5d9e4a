//! The built-in certificate authority: one key that signs who may speak to this cloud's etcd.
//!
//! Everything stands in one root-only folder, `NAME.crt` and `NAME.key` (PEM, 0600): `ca`, `etcd` (the store's own, for
//! clients and its peer port), `server-client` and `etcdctl`. Identity is in subject alternative names.
//!
//! [`Pki::ensure`] is idempotent and runs at each `enoki up`, at each start of etcd and once a day. It makes what is
//! missing and renews what ends within 30 days. **A renewal keeps the key** and replaces the certificate alone, by rename:
//! there is no moment at which key and certificate differ, and what the old CA certificate signed stays valid under the new.
//! etcd and our clients read a leaf anew at each handshake or connection; only a renewed CA (every ten years) needs an etcd
//! restart, which the caller sees in [`Renewed::ca`].
//!
//! On failure nothing is half done: each file is replaced whole, and the next call goes on where this one stopped.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use nix::fcntl::{Flock, FlockArg};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose as Eku, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};

use crate::config::write_atomic;

const DAY: u64 = 86_400;
const CA_DAYS: u64 = 3650;
const LEAF_DAYS: u64 = 365;
/// What ends sooner than this is renewed: a month of daily attempts before anybody notices.
const RENEW_DAYS: u64 = 30;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{}: {source}", path.display())]
    File { path: PathBuf, source: std::io::Error },
    #[error("{}: not a private key that can be used ({message}); restore it from a copy, or move it away to have a new one made", path.display())]
    Key { path: PathBuf, message: String },
    #[error("cannot make a certificate for {name}: {source}")]
    Sign { name: &'static str, source: rcgen::Error },
}

/// What a call of [`Pki::ensure`] wrote.
#[derive(Debug, Default, PartialEq)]
pub struct Renewed {
    /// The CA's own certificate was made or renewed: a running etcd must be restarted to trust it.
    pub ca: bool,
    pub leaves: Vec<&'static str>,
}

/// The folder of keys and certificates.
#[derive(Debug, Clone)]
pub struct Pki {
    folder: PathBuf,
}

/// A certificate that the CA keeps valid.
struct Leaf {
    name: &'static str,
    identities: fn() -> Vec<SanType>,
    usages: &'static [Eku],
}

const LEAVES: [Leaf; 3] = [
    // etcd dials itself (its gateway, its peer port) with the certificate that it serves: it must be good for both.
    Leaf { name: "etcd", identities: loopback, usages: &[Eku::ServerAuth, Eku::ClientAuth] },
    Leaf { name: "server-client", identities: || role("server"), usages: &[Eku::ClientAuth] },
    Leaf { name: "etcdctl", identities: || role("etcdctl"), usages: &[Eku::ClientAuth] },
];

fn loopback() -> Vec<SanType> {
    use std::net::{Ipv4Addr, Ipv6Addr};
    let mut names: Vec<SanType> = "localhost".try_into().map(SanType::DnsName).into_iter().collect();
    names.push(SanType::IpAddress(Ipv4Addr::LOCALHOST.into()));
    names.push(SanType::IpAddress(Ipv6Addr::LOCALHOST.into()));
    names
}

fn role(name: &str) -> Vec<SanType> {
    format!("enoki://role/{name}").as_str().try_into().map(SanType::URI).into_iter().collect()
}

impl Pki {
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    pub fn ca(&self) -> PathBuf {
        self.folder.join("ca.crt")
    }

    pub fn cert(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.crt"))
    }

    pub fn key(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.key"))
    }

    /// Makes what is missing, renews what is near its end (module doc). Blocks while another process does the same.
    pub fn ensure(&self, now: SystemTime) -> Result<Renewed, Error> {
        make_private_folder(&self.folder)?;
        let _alone = self.lock()?;
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let mut renewed = Renewed::default();

        let ca_key = self.load_or_make_key("ca")?;
        let ca_params = ca_params(now);
        if !self.good("ca", &ca_key, None, now)? {
            let cert = ca_params.self_signed(&ca_key).map_err(|source| Error::Sign { name: "ca", source })?;
            self.write(&self.ca(), cert.pem().as_bytes())?;
            renewed.ca = true;
        }
        let authority = ca_params.key_identifier(&ca_key);
        let issuer = Issuer::new(ca_params, ca_key);
        for leaf in &LEAVES {
            let key = self.load_or_make_key(leaf.name)?;
            if self.good(leaf.name, &key, Some(&authority), now)? {
                continue;
            }
            let sign = |source| Error::Sign { name: leaf.name, source };
            let cert = leaf_params(leaf, now).signed_by(&key, &issuer).map_err(sign)?;
            self.write(&self.cert(leaf.name), cert.pem().as_bytes())?;
            renewed.leaves.push(leaf.name);
        }
        Ok(renewed)
    }

    /// Whether a certificate may stay: it is there, belongs to this key and CA, has begun, and lasts 30 days more.
    fn good(&self, name: &str, key: &KeyPair, authority: Option<&[u8]>, now: u64) -> Result<bool, Error> {
        let path = self.cert(name);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            Err(source) => return Err(Error::File { path, source }),
        };
        let Some(der) = pem_body(&text) else {
            return Ok(false);
        };
        let Some((begins, ends)) = validity(&der) else {
            return Ok(false);
        };
        // A key and a key id are random bytes: where they occur in the certificate, they are its key and its issuer's.
        Ok(contains(&der, key.public_key_raw())
            && authority.is_none_or(|id| contains(&der, id))
            && begins <= now
            && ends > now + RENEW_DAYS * DAY)
    }

    fn load_or_make_key(&self, name: &'static str) -> Result<KeyPair, Error> {
        let path = self.key(name);
        match std::fs::read_to_string(&path) {
            Ok(text) => KeyPair::from_pem(&text).map_err(|e| Error::Key { path, message: e.to_string() }),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let key = KeyPair::generate().map_err(|source| Error::Sign { name, source })?;
                self.write(&path, key.serialize_pem().as_bytes())?;
                Ok(key)
            }
            Err(source) => Err(Error::File { path, source }),
        }
    }

    fn lock(&self) -> Result<Flock<std::fs::File>, Error> {
        let path = self.folder.join(".lock");
        let file = |source| Error::File { path: path.clone(), source };
        let lock =
            std::fs::OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(file)?;
        Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, e)| file(e.into()))
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> Result<(), Error> {
        write_atomic(path, bytes, 0o600).map_err(|source| Error::File { path: path.into(), source })
    }
}

/// A folder that only root enters, made with its parents; a wider mode is narrowed.
fn make_private_folder(folder: &Path) -> Result<(), Error> {
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
    let file = |source| Error::File { path: folder.into(), source };
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(file)?;
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700)).map_err(file)
}

fn ca_params(now: u64) -> CertificateParams {
    let mut params = CertificateParams::default();
    // The name never changes: it is how a leaf finds its issuer across renewals.
    params.distinguished_name = name("Enoki CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    valid_for(&mut params, now, CA_DAYS);
    params
}

fn leaf_params(leaf: &Leaf, now: u64) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = name(&format!("enoki {}", leaf.name));
    params.subject_alt_names = (leaf.identities)();
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = leaf.usages.to_vec();
    params.use_authority_key_identifier_extension = true;
    valid_for(&mut params, now, LEAF_DAYS);
    params
}

fn name(common: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common);
    name
}

/// From yesterday, so that a clock set back a little does no harm.
fn valid_for(params: &mut CertificateParams, now: u64, days: u64) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + Duration::from_secs(now.saturating_sub(DAY));
    params.not_after = epoch + Duration::from_secs(now + days * DAY);
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    !needle.is_empty() && haystack.windows(needle.len()).any(|window| window == needle)
}

/// The first PEM block's bytes; `None` when there is none.
fn pem_body(text: &str) -> Option<Vec<u8>> {
    let body: String = text
        .lines()
        .skip_while(|l| !l.starts_with("-----BEGIN"))
        .skip(1)
        .take_while(|l| !l.starts_with("-----END"))
        .collect();
    base64::engine::general_purpose::STANDARD.decode(body).ok().filter(|der| !der.is_empty())
}

/// From when until when a certificate is valid, in Unix seconds; `None` for what is not a certificate.
/// RFC 5280 4.1: Certificate { tbs { [0] version, serial, algorithm, issuer, validity { Time, Time }, ..
fn validity(der: &[u8]) -> Option<(u64, u64)> {
    let (_, certificate, _) = element(der)?;
    let (_, mut rest, _) = element(certificate)?;
    let (tag, _, after) = element(rest)?;
    if tag == 0xa0 {
        rest = after;
    }
    for _serial_algorithm_issuer in 0..3 {
        rest = element(rest)?.2;
    }
    let (_, times, _) = element(rest)?;
    let (tag, begins, after) = element(times)?;
    let begins = time(tag, begins)?;
    let (tag, ends, _) = element(after)?;
    Some((begins, time(tag, ends)?))
}

/// One DER element: tag, content, and what follows it.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = der.split_first()?;
    let (&first, mut rest) = rest.split_first()?;
    let mut length = usize::from(first);
    if first >= 0x80 {
        let bytes = usize::from(first & 0x7f);
        if bytes == 0 || bytes > 4 {
            return None;
        }
        length = rest.get(..bytes)?.iter().fold(0, |sum, &byte| sum << 8 | usize::from(byte));
        rest = &rest[bytes..];
    }
    Some((tag, rest.get(..length)?, &rest[length..]))
}

/// UTCTime `YYMMDDHHMMSSZ` (years 1950-2049) or GeneralizedTime `YYYYMMDDHHMMSSZ`, as RFC 5280 4.1.2.5 fixes them.
fn time(tag: u8, content: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(content).ok()?.strip_suffix('Z')?;
    let text = match tag {
        0x17 if text.len() == 12 => format!("{}{text}", if text < "50" { "20" } else { "19" }),
        0x18 if text.len() == 14 => text.to_owned(),
        _ => return None,
    };
    let number = |at: std::ops::Range<usize>| text.get(at)?.parse::<i64>().ok();
    let (year, month, day) = (number(0..4)?, number(4..6)?, number(6..8)?);
    let date =
        jiff::civil::Date::new(year.try_into().ok()?, month.try_into().ok()?, day.try_into().ok()?).ok()?;
    let days = date.duration_since(jiff::civil::date(1970, 1, 1)).as_secs();
    u64::try_from(days + number(8..10)? * 3600 + number(10..12)? * 60 + number(12..14)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    const NOW: u64 = 1_800_000_000;

    fn fresh() -> (tempfile::TempDir, Pki) {
        let folder = tempfile::tempdir().unwrap();
        let pki = Pki::new(folder.path().join("pki"));
        (folder, pki)
    }

    #[test]
    fn everything_is_made_once_and_private() {
        let (folder, pki) = fresh();
        let made = pki.ensure(at(NOW)).unwrap();
        assert_eq!(made, Renewed { ca: true, leaves: vec!["etcd", "server-client", "etcdctl"] });
        let before = std::fs::read(pki.cert("etcd")).unwrap();
        assert_eq!(pki.ensure(at(NOW + 300 * DAY)).unwrap(), Renewed::default());
        assert_eq!(std::fs::read(pki.cert("etcd")).unwrap(), before);
        for entry in std::fs::read_dir(folder.path().join("pki")).unwrap() {
            let entry = entry.unwrap();
            if entry.file_name() != ".lock" {
                assert_eq!(
                    entry.metadata().unwrap().permissions().mode() & 0o777,
                    0o600,
                    "{:?}",
                    entry.file_name()
                );
            }
        }
        assert_eq!(std::fs::metadata(folder.path().join("pki")).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn the_dates_are_read_back() {
        let (_folder, pki) = fresh();
        pki.ensure(at(NOW)).unwrap();
        let dates =
            |name| validity(&pem_body(&std::fs::read_to_string(pki.cert(name)).unwrap()).unwrap()).unwrap();
        assert_eq!(dates("etcd"), (NOW - DAY, NOW + LEAF_DAYS * DAY));
        assert_eq!(dates("ca"), (NOW - DAY, NOW + CA_DAYS * DAY));
        // Past 2049 the other time format is used.
        pki.ensure(at(2_600_000_000)).unwrap();
        assert_eq!(dates("etcd").1, 2_600_000_000 + LEAF_DAYS * DAY);
    }

    #[test]
    fn a_leaf_is_renewed_a_month_before_its_end_with_its_key() {
        let (_folder, pki) = fresh();
        pki.ensure(at(NOW)).unwrap();
        let key = std::fs::read(pki.key("etcd")).unwrap();
        let renewed = pki.ensure(at(NOW + 336 * DAY)).unwrap();
        assert_eq!(renewed, Renewed { ca: false, leaves: vec!["etcd", "server-client", "etcdctl"] });
        assert_eq!(std::fs::read(pki.key("etcd")).unwrap(), key);
    }

    #[test]
    fn a_renewed_ca_keeps_its_leaves() {
        let (_folder, pki) = fresh();
        pki.ensure(at(NOW)).unwrap();
        let ca_key = std::fs::read(pki.key("ca")).unwrap();
        std::fs::remove_file(pki.ca()).unwrap();
        assert_eq!(pki.ensure(at(NOW)).unwrap(), Renewed { ca: true, leaves: vec![] });
        assert_eq!(std::fs::read(pki.key("ca")).unwrap(), ca_key);
    }

    #[test]
    fn a_lost_ca_key_or_a_foreign_certificate_leads_to_new_ones() {
        let (_folder, pki) = fresh();
        pki.ensure(at(NOW)).unwrap();
        std::fs::remove_file(pki.key("ca")).unwrap();
        assert_eq!(pki.ensure(at(NOW)).unwrap().leaves.len(), 3);
        std::fs::copy(pki.cert("etcdctl"), pki.cert("etcd")).unwrap();
        assert_eq!(pki.ensure(at(NOW)).unwrap().leaves, ["etcd"]);
        std::fs::write(pki.cert("etcdctl"), "garbage").unwrap();
        assert_eq!(pki.ensure(at(NOW)).unwrap().leaves, ["etcdctl"]);
    }

    #[test]
    fn a_clock_that_was_ahead_is_mended() {
        let (_folder, pki) = fresh();
        pki.ensure(at(NOW + 400 * DAY)).unwrap();
        assert!(pki.ensure(at(NOW)).unwrap().ca);
    }

    #[test]
    fn a_broken_key_is_named_and_left_alone() {
        let (_folder, pki) = fresh();
        pki.ensure(at(NOW)).unwrap();
        std::fs::write(pki.key("etcd"), "garbage").unwrap();
        let error = pki.ensure(at(NOW)).unwrap_err().to_string();
        assert!(error.contains("etcd.key") && error.contains("move it away"), "{error}");
        assert_eq!(std::fs::read(pki.key("etcd")).unwrap(), b"garbage");
    }

    #[test]
    fn rustls_accepts_the_chain() {
        use rustls::pki_types::pem::PemObject;
        use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
        let (_folder, pki) = fresh();
        pki.ensure(at(NOW)).unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(pki.ca()).unwrap()).unwrap();
        let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
        let verifier = rustls::client::WebPkiServerVerifier::builder_with_provider(roots.into(), provider)
            .build()
            .unwrap();
        let leaf = CertificateDer::from_pem_file(pki.cert("etcd")).unwrap();
        let now = UnixTime::since_unix_epoch(Duration::from_secs(NOW));
        use rustls::client::danger::ServerCertVerifier;
        for name in ["127.0.0.1", "localhost"] {
            verifier.verify_server_cert(&leaf, &[], &ServerName::try_from(name).unwrap(), &[], now).unwrap();
        }
        verifier
            .verify_server_cert(&leaf, &[], &ServerName::try_from("example.org").unwrap(), &[], now)
            .unwrap_err();
    }
}
