//! The built-in certificate authorities: one that signs who is who in this cloud, and one of etcd's own, because etcd lets in
//! whomever its CA vouches for: no certificate of a host or server is good for it.
//!
//! Everything stands in one root-only folder, `NAME.crt` and `NAME.key` (PEM, 0600): `ca` with, where the API listens on
//! TLS, `server`; `etcd-ca` with `etcd` (the store's own, for clients and its peer port), `server-client` and `etcdctl`.
//! Identity is in subject alternative names. Hosts get theirs by [`Authority::sign`]; their keys never leave them.
//!
//! [`Pki::ensure`] is idempotent and runs at each `enoki up`, at each start of etcd and once a day. It makes what is
//! missing and renews what ends within 30 days. **A renewal keeps the key** and replaces the certificate alone, by rename:
//! there is no moment at which key and certificate differ, and what the old CA certificate signed stays valid under the new.
//! etcd and our clients read a leaf anew at each handshake or connection; only a renewed CA (every ten years) needs an etcd
//! restart, which the caller sees in [`Renewed::ca`].
//!
//! On failure nothing is half done: each file is replaced whole, and the next call goes on where this one stopped.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use nix::fcntl::{Flock, FlockArg};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose as Eku, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};

use crate::config::write_atomic;
use enoki_api::identity::Identity;
use enoki_api::tls::validity;

const DAY: u64 = 86_400;
const CA_DAYS: u64 = 3650;
const LEAF_DAYS: u64 = 365;
/// What a host gets; it asks anew when a third is left.
pub const MACHINE_DAYS: u64 = 30;
/// What ends sooner than this is renewed: a month of daily attempts before anybody notices.
const RENEW_DAYS: u64 = 30;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{}: {source}", path.display())]
    File { path: PathBuf, source: std::io::Error },
    #[error("{}: not a private key that can be used ({message}); restore it from a copy, or move it away to have a new one made", path.display())]
    Key { path: PathBuf, message: String },
    #[error("cannot make a certificate for {name}: {source}")]
    Sign { name: String, source: rcgen::Error },
    #[error("`{0}` is neither a DNS name nor an address that a certificate can be for")]
    Name(String),
    #[error("this is not an ECDSA P-256 public key")]
    PublicKey,
    #[error("{0} is not among what the cloud gave")]
    Missing(String),
}

/// What a call of [`Pki::ensure`] wrote.
#[derive(Debug, Default, PartialEq)]
pub struct Renewed {
    /// The certificate of etcd's CA was made or renewed: a running etcd must be restarted to trust it.
    pub etcd_ca: bool,
    pub leaves: Vec<&'static str>,
}

/// The folder of keys and certificates.
#[derive(Debug, Clone)]
pub struct Pki {
    folder: PathBuf,
}

const CA: &str = "ca";
const ETCD_CA: &str = "etcd-ca";

/// A certificate that its CA keeps valid.
struct Leaf {
    name: &'static str,
    identities: Vec<SanType>,
    usages: &'static [Eku],
}

/// What every machine with a server has of etcd's CA; `names`: where etcd is reached besides loopback.
fn leaves(names: &[String]) -> Result<[Leaf; 3], Error> {
    let mut etcd = loopback();
    etcd.extend(names.iter().map(|name| machine(name)).collect::<Result<Vec<_>, _>>()?);
    Ok([
        // etcd dials itself (its gateway, its peer port) with the certificate that it serves: it must be good for both.
        Leaf { name: "etcd", identities: etcd, usages: &[Eku::ServerAuth, Eku::ClientAuth] },
        Leaf { name: "server-client", identities: role("server"), usages: &[Eku::ClientAuth] },
        Leaf { name: "etcdctl", identities: role("etcdctl"), usages: &[Eku::ClientAuth] },
    ])
}

/// A DNS name or an address.
fn machine(name: &str) -> Result<SanType, Error> {
    match name.parse() {
        Ok(address) => Ok(SanType::IpAddress(address)),
        Err(_) => Ok(SanType::DnsName(name.try_into().map_err(|_| Error::Name(name.to_owned()))?)),
    }
}

fn loopback() -> Vec<SanType> {
    use std::net::{Ipv4Addr, Ipv6Addr};
    let mut names: Vec<SanType> = "localhost".try_into().map(SanType::DnsName).into_iter().collect();
    names.push(SanType::IpAddress(Ipv4Addr::LOCALHOST.into()));
    names.push(SanType::IpAddress(Ipv6Addr::LOCALHOST.into()));
    names
}

fn role(name: &str) -> Vec<SanType> {
    uri(&format!("enoki://role/{name}"))
}

fn uri(uri: &str) -> Vec<SanType> {
    uri.try_into().map(SanType::URI).into_iter().collect()
}

impl Pki {
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    pub fn ca(&self) -> PathBuf {
        self.cert(CA)
    }

    /// Of etcd's CA.
    pub fn etcd_ca(&self) -> PathBuf {
        self.cert(ETCD_CA)
    }

    pub fn cert(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.crt"))
    }

    pub fn key(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.key"))
    }

    /// Makes what is missing, renews what is near its end (module doc). `etcd_names`: DNS names and addresses where this
    /// machine's etcd is reached besides loopback. Blocks while another process does the same.
    pub fn ensure(&self, now: SystemTime, etcd_names: &[String]) -> Result<Renewed, Error> {
        make_private_folder(&self.folder)?;
        let _alone = self.lock()?;
        let now = seconds(now);
        self.renew_authority(CA, now)?;
        let mut renewed = Renewed { etcd_ca: self.renew_authority(ETCD_CA, now)?, leaves: Vec::new() };
        let authority = self.load_authority(ETCD_CA, now)?;
        for leaf in &leaves(etcd_names)? {
            if self.renew(leaf, &authority, now)? {
                renewed.leaves.push(leaf.name);
            }
        }
        Ok(renewed)
    }

    /// True: its certificate was written.
    fn renew_authority(&self, name: &'static str, now: u64) -> Result<bool, Error> {
        let key = self.load_or_make_key(name)?;
        if self.good(name, &key, None, now)? {
            return Ok(false);
        }
        let cert = ca_params(name, now)
            .self_signed(&key)
            .map_err(|source| Error::Sign { name: name.to_owned(), source })?;
        self.write(&self.cert(name), cert.pem().as_bytes())?;
        Ok(true)
    }

    /// What a new server needs to be one of this cloud: both authorities, by file name.
    pub fn authorities(&self) -> Result<BTreeMap<String, String>, Error> {
        let read = |path: PathBuf| match std::fs::read_to_string(&path) {
            Ok(text) => Ok((file_name(&path), text)),
            Err(source) => Err(Error::File { path, source }),
        };
        [self.cert(CA), self.key(CA), self.cert(ETCD_CA), self.key(ETCD_CA)].into_iter().map(read).collect()
    }

    /// Makes this machine one with the authorities of a cloud. Whatever it had before signed by others is made anew by the
    /// next [`Pki::ensure`].
    pub fn adopt(&self, authorities: &BTreeMap<String, String>) -> Result<(), Error> {
        make_private_folder(&self.folder)?;
        let _alone = self.lock()?;
        for path in [self.cert(CA), self.key(CA), self.cert(ETCD_CA), self.key(ETCD_CA)] {
            let text = authorities.get(&file_name(&path)).ok_or_else(|| Error::Missing(file_name(&path)))?;
            self.write(&path, text.as_bytes())?;
        }
        Ok(())
    }

    /// Makes or renews the certificate that a server shows on TLS (`server`), under the CA that is there. It says which
    /// server this is, and is good for these DNS names and addresses.
    pub fn ensure_server(&self, now: SystemTime, server: &str, names: &[String]) -> Result<(), Error> {
        let _alone = self.lock()?;
        let now = seconds(now);
        let mut identities = uri(&Identity::Server(server.to_owned()).to_string());
        identities.extend(names.iter().map(|name| machine(name)).collect::<Result<Vec<_>, _>>()?);
        let leaf = Leaf { name: "server", identities, usages: &[Eku::ServerAuth, Eku::ClientAuth] };
        self.renew(&leaf, &self.load_authority(CA, now)?, now).map(drop)
    }

    /// The CA, to sign with.
    pub fn authority(&self, now: SystemTime) -> Result<Authority, Error> {
        self.load_authority(CA, seconds(now))
    }

    fn load_authority(&self, name: &str, now: u64) -> Result<Authority, Error> {
        Ok(Authority::of(ca_params(name, now), self.load_key(name)?))
    }

    /// True: it was written.
    fn renew(&self, leaf: &Leaf, authority: &Authority, now: u64) -> Result<bool, Error> {
        let key = self.load_or_make_key(leaf.name)?;
        if self.good(leaf.name, &key, Some((&authority.id, &leaf.identities)), now)? {
            return Ok(false);
        }
        let params =
            leaf_params(&format!("enoki {}", leaf.name), &leaf.identities, leaf.usages, now, LEAF_DAYS);
        let sign = |source| Error::Sign { name: leaf.name.to_owned(), source };
        let cert = params.signed_by(&key, &authority.issuer).map_err(sign)?;
        self.write(&self.cert(leaf.name), cert.pem().as_bytes())?;
        Ok(true)
    }

    /// Whether a certificate may stay: it is there, belongs to this key, this CA and these names, has begun, and lasts 30
    /// days more.
    fn good(
        &self,
        name: &str,
        key: &KeyPair,
        issued: Option<(&[u8], &[SanType])>,
        now: u64,
    ) -> Result<bool, Error> {
        let path = self.cert(name);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            Err(source) => return Err(Error::File { path, source }),
        };
        let Some(der) = pem_body(&text) else {
            return Ok(false);
        };
        let Some((begins, ends)) = validity(&der.clone().into()) else {
            return Ok(false);
        };
        // A key and a key id are random bytes: where they occur in the certificate, they are its key and its issuer's.
        Ok(contains(&der, key.public_key_raw())
            && issued.is_none_or(|(id, names)| {
                contains(&der, id) && names.iter().all(|name| contains(&der, &name_bytes(name)))
            })
            && begins <= now
            && ends > now + RENEW_DAYS * DAY)
    }

    fn load_key(&self, name: &str) -> Result<KeyPair, Error> {
        let path = self.key(name);
        let text =
            std::fs::read_to_string(&path).map_err(|source| Error::File { path: path.clone(), source })?;
        KeyPair::from_pem(&text).map_err(|e| Error::Key { path, message: e.to_string() })
    }

    fn load_or_make_key(&self, name: &str) -> Result<KeyPair, Error> {
        match self.load_key(name) {
            Err(Error::File { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                let sign = |source| Error::Sign { name: name.to_owned(), source };
                let key = KeyPair::generate().map_err(sign)?;
                self.write(&self.key(name), key.serialize_pem().as_bytes())?;
                Ok(key)
            }
            other => other,
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

fn ca_params(authority: &str, now: u64) -> CertificateParams {
    let mut params = CertificateParams::default();
    // The name never changes: it is how a leaf finds its issuer across renewals.
    params.distinguished_name = name(if authority == CA { "Enoki CA" } else { "Enoki etcd CA" });
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    valid_for(&mut params, now, CA_DAYS);
    params
}

fn leaf_params(
    common_name: &str,
    identities: &[SanType],
    usages: &[Eku],
    now: u64,
    days: u64,
) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = name(common_name);
    params.subject_alt_names = identities.to_vec();
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = usages.to_vec();
    params.use_authority_key_identifier_extension = true;
    valid_for(&mut params, now, days);
    params
}

/// What a name looks like inside a certificate.
fn name_bytes(name: &SanType) -> Vec<u8> {
    match name {
        SanType::DnsName(text) | SanType::URI(text) | SanType::Rfc822Name(text) => text.as_str().into(),
        SanType::IpAddress(std::net::IpAddr::V4(address)) => address.octets().to_vec(),
        SanType::IpAddress(std::net::IpAddr::V6(address)) => address.octets().to_vec(),
        _ => Vec::new(),
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn seconds(now: SystemTime) -> u64 {
    now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// The CA with its key.
pub struct Authority {
    /// The key's identifier, which is in every certificate that it signed.
    id: Vec<u8>,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn of(params: CertificateParams, key: KeyPair) -> Self {
        Authority { id: params.key_identifier(&key), issuer: Issuer::new(params, key) }
    }

    /// A certificate (PEM) for the machine that has the private half of this key: an uncompressed point of P-256, as in
    /// SEC 1, 2.3.3. Valid for [`MACHINE_DAYS`]. That the machine has that half it shows by using the certificate.
    pub fn sign(&self, identity: &Identity, public_key: &[u8], now: SystemTime) -> Result<String, Error> {
        if public_key.len() != 65 || public_key[0] != 4 {
            return Err(Error::PublicKey);
        }
        let names = uri(&identity.to_string());
        let params = leaf_params("enoki machine", &names, &[Eku::ClientAuth], seconds(now), MACHINE_DAYS);
        let sign = |source| Error::Sign { name: identity.to_string(), source };
        let cert = params.signed_by(&PublicKey(public_key.to_vec()), &self.issuer).map_err(sign)?;
        Ok(cert.pem())
    }
}

/// Somebody else's key.
struct PublicKey(Vec<u8>);

impl rcgen::PublicKeyData for PublicKey {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
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
        let made = pki.ensure(at(NOW), &[]).unwrap();
        assert_eq!(made, Renewed { etcd_ca: true, leaves: vec!["etcd", "server-client", "etcdctl"] });
        let before = std::fs::read(pki.cert("etcd")).unwrap();
        assert_eq!(pki.ensure(at(NOW + 300 * DAY), &[]).unwrap(), Renewed::default());
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
        pki.ensure(at(NOW), &[]).unwrap();
        let dates = |name| {
            validity(&pem_body(&std::fs::read_to_string(pki.cert(name)).unwrap()).unwrap().into()).unwrap()
        };
        assert_eq!(dates("etcd"), (NOW - DAY, NOW + LEAF_DAYS * DAY));
        assert_eq!(dates("ca"), (NOW - DAY, NOW + CA_DAYS * DAY));
        // Past 2049 the other time format is used.
        pki.ensure(at(2_600_000_000), &[]).unwrap();
        assert_eq!(dates("etcd").1, 2_600_000_000 + LEAF_DAYS * DAY);
    }

    #[test]
    fn a_leaf_is_renewed_a_month_before_its_end_with_its_key() {
        let (_folder, pki) = fresh();
        pki.ensure(at(NOW), &[]).unwrap();
        let key = std::fs::read(pki.key("etcd")).unwrap();
        let renewed = pki.ensure(at(NOW + 336 * DAY), &[]).unwrap();
        assert_eq!(renewed, Renewed { etcd_ca: false, leaves: vec!["etcd", "server-client", "etcdctl"] });
        assert_eq!(std::fs::read(pki.key("etcd")).unwrap(), key);
    }

    #[test]
    fn a_renewed_ca_keeps_its_leaves() {
        let (_folder, pki) = fresh();
        pki.ensure(at(NOW), &[]).unwrap();
        let ca_key = std::fs::read(pki.key("etcd-ca")).unwrap();
        std::fs::remove_file(pki.etcd_ca()).unwrap();
        assert_eq!(pki.ensure(at(NOW), &[]).unwrap(), Renewed { etcd_ca: true, leaves: vec![] });
        assert_eq!(std::fs::read(pki.key("etcd-ca")).unwrap(), ca_key);
    }

    #[test]
    fn a_lost_ca_key_or_a_foreign_certificate_leads_to_new_ones() {
        let (_folder, pki) = fresh();
        pki.ensure(at(NOW), &[]).unwrap();
        std::fs::remove_file(pki.key("etcd-ca")).unwrap();
        assert_eq!(pki.ensure(at(NOW), &[]).unwrap().leaves.len(), 3);
        std::fs::copy(pki.cert("etcdctl"), pki.cert("etcd")).unwrap();
        assert_eq!(pki.ensure(at(NOW), &[]).unwrap().leaves, ["etcd"]);
        std::fs::write(pki.cert("etcdctl"), "garbage").unwrap();
        assert_eq!(pki.ensure(at(NOW), &[]).unwrap().leaves, ["etcdctl"]);
    }

    #[test]
    fn etcd_is_reached_by_further_names_and_known_to_no_other_ca() {
        let (_folder, pki) = fresh();
        pki.ensure(at(NOW), &[]).unwrap();
        let more = ["198.18.0.1".to_owned(), "s1.example.internal".to_owned()];
        assert_eq!(pki.ensure(at(NOW), &more).unwrap().leaves, ["etcd"]);
        assert_eq!(pki.ensure(at(NOW), &more).unwrap(), Renewed::default());
        assert!(matches!(pki.ensure(at(NOW), &["\u{e9}".to_owned()]), Err(Error::Name(_))));
        assert_ne!(std::fs::read(pki.key("ca")).unwrap(), std::fs::read(pki.key("etcd-ca")).unwrap());
    }

    #[test]
    fn a_new_server_has_the_authorities_of_the_cloud() {
        let ((_one, old), (_two, new)) = (fresh(), fresh());
        old.ensure(at(NOW), &[]).unwrap();
        new.ensure(at(NOW), &[]).unwrap();
        new.adopt(&old.authorities().unwrap()).unwrap();
        // All that was signed by authorities of its own is not good any more.
        assert_eq!(new.ensure(at(NOW), &[]).unwrap().leaves.len(), 3);
        assert_eq!(new.authorities().unwrap(), old.authorities().unwrap());
        assert!(matches!(new.adopt(&BTreeMap::new()), Err(Error::Missing(_))));
    }

    #[test]
    fn a_clock_that_was_ahead_is_mended() {
        let (_folder, pki) = fresh();
        pki.ensure(at(NOW + 400 * DAY), &[]).unwrap();
        assert!(pki.ensure(at(NOW), &[]).unwrap().etcd_ca);
    }

    #[test]
    fn a_broken_key_is_named_and_left_alone() {
        let (_folder, pki) = fresh();
        pki.ensure(at(NOW), &[]).unwrap();
        std::fs::write(pki.key("etcd"), "garbage").unwrap();
        let error = pki.ensure(at(NOW), &[]).unwrap_err().to_string();
        assert!(error.contains("etcd.key") && error.contains("move it away"), "{error}");
        assert_eq!(std::fs::read(pki.key("etcd")).unwrap(), b"garbage");
    }

    #[test]
    fn rustls_accepts_the_chain() {
        use rustls::pki_types::pem::PemObject;
        use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
        let (_folder, pki) = fresh();
        pki.ensure(at(NOW), &[]).unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(pki.etcd_ca()).unwrap()).unwrap();
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
