//! Do these three texts belong together? Pure: text in, [`Identity`] or the flaw out.
//!
//! The check happens on every load, because the Go agent writes its files one by one and a crash between two of them
//! leaves a pair that does not match (protocol 4.2). It says which file is wrong; it never shows what is in one.

use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::sign::CertifiedKey;
use sha2::{Digest, Sha256};
use x509_cert::Certificate;
use x509_cert::der::Decode;

use super::{Identity, Material};

/// Why a set of identity files cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// One of the files is missing while others are there.
    #[error("{file} is missing")]
    Missing {
        /// Which one.
        file: &'static str,
    },
    /// One of the files cannot be read as what it should be.
    #[error("{file} is not {expected}")]
    Malformed {
        /// Which one.
        file: &'static str,
        /// What it should be.
        expected: &'static str,
    },
    /// Certificate and key are of different pairs.
    #[error("agent.key does not belong to agent.crt")]
    KeyMismatch,
    /// The certificate was signed by another authority than the stored one.
    #[error("agent.crt was not signed by the authority in ca.crt")]
    ForeignAuthority,
    /// The certificate names nobody.
    #[error("agent.crt has no common name, so it names no agent")]
    Nameless,
}

/// Checks that certificate, key and authority belong together and reads what the agent needs from them.
///
/// Validity in time is not judged here: an expired set is still a set, and says who the agent was.
///
/// # Errors
/// The first [`Flaw`] found.
pub fn inspect(material: Material) -> Result<Identity, Flaw> {
    let der = certificate(material.certificate_pem.expose(), "agent.crt")?;
    let ca = certificate(&material.ca_pem, "ca.crt")?;
    let key = PrivateKeyDer::from_pem_slice(material.private_key_pem.expose().as_bytes())
        .map_err(|_| Flaw::Malformed { file: "agent.key", expected: "a PEM private key" })?;

    let malformed = |_| Flaw::Malformed { file: "agent.crt", expected: "an X.509 certificate" };
    let parsed = Certificate::from_der(&der).map_err(malformed)?;
    let subject = parsed.tbs_certificate().subject();
    let name = subject.common_name().map_err(malformed)?.map(|name| name.value().into_owned());
    let name = name.filter(|name| !name.trim().is_empty()).ok_or(Flaw::Nameless)?;
    let validity = parsed.tbs_certificate().validity();
    let (not_before, not_after) = (validity.not_before.to_system_time(), validity.not_after.to_system_time());

    check_key(&der, &key)?;
    check_authority(&der, ca, validity.not_before.to_unix_duration())?;

    Ok(Identity { sha256: fingerprint(&der), name, not_before, not_after, material })
}

/// When the first certificate of a PEM text ends; `None` where it cannot be read.
#[must_use]
pub fn valid_until(certificate_pem: &str) -> Option<std::time::SystemTime> {
    let der = certificate(certificate_pem, "certificate").ok()?;
    Some(Certificate::from_der(&der).ok()?.tbs_certificate().validity().not_after.to_system_time())
}

/// SHA-256 of DER bytes in lower-case hex, the platform's fingerprint (protocol 4.4).
#[must_use]
pub fn fingerprint(der: &[u8]) -> String {
    use std::fmt::Write as _;
    Sha256::digest(der).iter().fold(String::with_capacity(64), |mut hex, byte| {
        // Writing to a String cannot fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

/// The first certificate of a PEM text: the one that the API looks at (protocol 3.2).
fn certificate(pem: &str, file: &'static str) -> Result<CertificateDer<'static>, Flaw> {
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|_| Flaw::Malformed { file, expected: "a PEM certificate" })
}

fn check_key(certificate: &CertificateDer<'static>, key: &PrivateKeyDer<'_>) -> Result<(), Flaw> {
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let signer = provider
        .key_provider
        .load_private_key(key.clone_key())
        .map_err(|_| Flaw::Malformed { file: "agent.key", expected: "a private key of a known kind" })?;
    CertifiedKey::new(vec![certificate.clone()], signer).keys_match().map_err(|_| Flaw::KeyMismatch)
}

fn check_authority(
    certificate: &CertificateDer<'static>,
    ca: CertificateDer<'static>,
    at: std::time::Duration,
) -> Result<(), Flaw> {
    let mut roots = RootCertStore::empty();
    roots.add(ca).map_err(|_| Flaw::Malformed { file: "ca.crt", expected: "a certificate authority's certificate" })?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(|_| Flaw::Malformed { file: "ca.crt", expected: "a certificate authority's certificate" })?;
    // Judged at the certificate's own first second: whether it is still valid is another question.
    verifier
        .verify_client_cert(certificate, &[], UnixTime::since_unix_epoch(at))
        .map(|_| ())
        .map_err(|_| Flaw::ForeignAuthority)
}

#[cfg(test)]
mod tests;
