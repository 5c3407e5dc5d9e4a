//! TLS between machines: whom a connection is trusted to, and who is at its other end.
//!
//! A cloud has one CA, and a server is known by its identity in a certificate of that CA, not by the name or address
//! it was dialled at: servers move, and stand behind addresses that are not theirs. Tools that know names only, such as
//! curl, find those in the same certificate.

use crate::identity::Identity;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, SignatureScheme};
use sha2::{Digest, Sha256};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// The SHA-256 of a CA's certificate: what a token carries, so that a first contact is to the right cloud.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    pub fn of(certificate: &CertificateDer<'_>) -> Self {
        Fingerprint(Sha256::digest(certificate).into())
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for Fingerprint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let strange = || format!("`{text}` is not 64 hexadecimal digits");
        if text.len() != 64 || !text.is_ascii() {
            return Err(strange());
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| strange())?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| strange())?;
        }
        Ok(Fingerprint(bytes))
    }
}

/// How a server is known to be of the right cloud.
#[derive(Clone, Debug)]
pub enum Trust {
    /// By its CA's certificate.
    Ca(CertificateDer<'static>),
    /// By the fingerprint of the CA that the server shows.
    Pin(Fingerprint),
}

/// A certificate with its key, as a client shows them.
pub struct Credentials {
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
}

/// What is wrong with certificates or keys that were given.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{what} is not PEM: {source}")]
    Pem { what: &'static str, source: rustls::pki_types::pem::Error },
    #[error("these cannot be used: {0}")]
    Unusable(#[from] rustls::Error),
}

impl Trust {
    /// The CA in a PEM text.
    pub fn ca_pem(pem: &[u8]) -> Result<Self, Error> {
        let ca = CertificateDer::from_pem_slice(pem);
        Ok(Trust::Ca(ca.map_err(|source| Error::Pem { what: "the CA's certificate", source })?))
    }
}

impl Credentials {
    /// From PEM texts; the certificate may be followed by its CA's.
    pub fn from_pem(certificate: &[u8], key: &[u8]) -> Result<Self, Error> {
        let chain = CertificateDer::pem_slice_iter(certificate).collect::<Result<_, _>>();
        Ok(Credentials {
            chain: chain.map_err(|source| Error::Pem { what: "the certificate", source })?,
            key: PrivateKeyDer::from_pem_slice(key)
                .map_err(|source| Error::Pem { what: "the key", source })?,
        })
    }
}

/// The identity in a certificate whose chain was verified. None: it has none of ours.
pub fn identity(certificate: &CertificateDer<'_>) -> Option<Identity> {
    let certificate = webpki::EndEntityCert::try_from(certificate).ok()?;
    certificate.valid_uri_names().find_map(|uri| uri.parse().ok())
}

/// The one provider of cryptography that all of Enoki uses.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// How a client of ours dials: to servers of the trusted cloud only, with its own credentials if it has any.
pub fn client_config(trust: Trust, credentials: Option<Credentials>) -> Result<ClientConfig, Error> {
    let provider = provider();
    let verifier = Servers { trust, algorithms: provider.signature_verification_algorithms };
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    Ok(match credentials {
        None => config.with_no_client_auth(),
        Some(Credentials { chain, key }) => config.with_client_auth_cert(chain, key)?,
    })
}

/// Takes servers of one cloud.
#[derive(Debug)]
struct Servers {
    trust: Trust,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Servers {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _dialled: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let ca = match &self.trust {
            Trust::Ca(ca) => Some(ca),
            Trust::Pin(pin) => intermediates.iter().find(|shown| Fingerprint::of(shown) == *pin),
        };
        let bad = |error| rustls::Error::InvalidCertificate(error);
        let anchor = webpki::anchor_from_trusted_cert(ca.ok_or(bad(CertificateError::UnknownIssuer))?);
        let anchor = anchor.map_err(|_| bad(CertificateError::UnknownIssuer))?;
        let certificate =
            webpki::EndEntityCert::try_from(end_entity).map_err(|_| bad(CertificateError::BadEncoding))?;
        certificate
            .verify_for_usage(
                self.algorithms.all,
                &[anchor],
                intermediates,
                now,
                webpki::KeyUsage::server_auth(),
                None,
                None,
            )
            .map_err(|error| match error {
                webpki::Error::CertExpired { .. } => bad(CertificateError::Expired),
                webpki::Error::CertNotValidYet { .. } => bad(CertificateError::NotValidYet),
                _ => bad(CertificateError::UnknownIssuer),
            })?;
        match identity(end_entity) {
            Some(Identity::Server(_)) => Ok(ServerCertVerified::assertion()),
            // A host's certificate is of the same CA and must not pass for a server's.
            Some(Identity::Host { .. }) | None => Err(bad(CertificateError::NotValidForName)),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// From when until when a certificate is valid, in Unix seconds; `None` for what is not a certificate.
/// RFC 5280 4.1: Certificate { tbs { [0] version, serial, algorithm, issuer, validity { Time, Time }, ..
pub fn validity(certificate: &CertificateDer<'_>) -> Option<(u64, u64)> {
    let (_, certificate, _) = element(certificate)?;
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
