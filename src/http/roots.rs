//! Which certificate authorities are believed: the system's, and those in the operator's file.
//!
//! `SSL_CERT_FILE` *adds* roots (contract section 2). The usual loaders let it replace the system's, after which an agent
//! that was given a company root can no longer fetch releases; so the system's bundle is looked for here, without a look
//! at the environment. One bundle file is preferred over a directory, where every root is a file of its own: reading 140
//! small files is what a slow start of a TLS client usually is.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WantsClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ConfigBuilder, DigitallySignedStruct, RootCertStore, SignatureScheme, WantsVerifier};

use super::Error;

/// Where distributions keep all roots in one file, most common first.
const BUNDLES: [&str; 6] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
    "/etc/pki/tls/cacert.pem",
];
/// A bundle of all public roots is about 230 kB; a file beyond this is something else.
const MAX_FILE_BYTES: u64 = 8 << 20;
/// Links included, the fullest directories hold some 600 entries.
const MAX_DIRECTORY_ENTRIES: usize = 4096;

/// Completes a TLS configuration with the roots to trust.
pub(super) fn trust(
    builder: ConfigBuilder<ClientConfig, WantsVerifier>,
    extra: Option<&Path>,
) -> Result<ClientConfig, Error> {
    let mut roots = system(&BUNDLES.map(PathBuf::from), openssl_probe::candidate_cert_dirs());
    if let Some(path) = extra {
        add_extra(&mut roots, path)?;
    }
    let builder: ConfigBuilder<ClientConfig, WantsClientCert> = if roots.is_empty() {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(NoRoots))
    } else {
        builder.with_root_certificates(roots)
    };
    Ok(builder.with_no_client_auth())
}

/// The system's roots: the first bundle that has any, else the first directory that has any, else none.
fn system<'a>(bundles: &[PathBuf], directories: impl Iterator<Item = &'a Path>) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    for bundle in bundles {
        if add(&mut roots, bundle).is_ok_and(|added| added > 0) {
            return roots;
        }
    }
    for directory in directories {
        let Ok(entries) = std::fs::read_dir(directory) else { continue };
        for entry in entries.flatten().take(MAX_DIRECTORY_ENTRIES) {
            // Keys and unreadable files lie in such directories too; what is no certificate is passed over.
            drop(add(&mut roots, &entry.path()));
        }
        if !roots.is_empty() {
            return roots;
        }
    }
    roots
}

/// The operator named this file, so that a mistake in it must not pass in silence.
fn add_extra(roots: &mut RootCertStore, path: &Path) -> Result<(), Error> {
    match add(roots, path) {
        Ok(0) => Err(Error::NoCertificate { path: path.to_owned() }),
        Ok(_) => Ok(()),
        Err(source) => Err(Error::ReadRoots { path: path.to_owned(), source }),
    }
}

/// Adds what certificates a PEM file holds and says how many were of use as roots.
fn add(roots: &mut RootCertStore, path: &Path) -> io::Result<usize> {
    let mut pem = Vec::new();
    let file = File::open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut pem)?;
    if pem.len() as u64 > MAX_FILE_BYTES {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "larger than 8 MiB"));
    }
    let certificates = CertificateDer::pem_slice_iter(&pem).flatten();
    let (added, _unusable) = roots.add_parsable_certificates(certificates);
    Ok(added)
}

/// Refuses every server and says why: there is nothing to believe it by.
///
/// With an empty store rustls would say "unknown issuer", which sends an operator to the server instead of to this
/// machine.
#[derive(Debug)]
struct NoRoots;

impl NoRoots {
    fn refusal() -> rustls::Error {
        rustls::Error::General("no trust roots found: install ca-certificates or set SSL_CERT_FILE".to_owned())
    }
}

impl ServerCertVerifier for NoRoots {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Err(Self::refusal())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(Self::refusal())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(Self::refusal())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A self-signed certificate whose key was thrown away.
    const ROOT: &str = "\
-----BEGIN CERTIFICATE-----\n\
MIIBjDCCATGgAwIBAgIUMZRES9XD5dxNYgCgRfSLY5IcOBUwCgYIKoZIzj0EAwIw\n\
GjEYMBYGA1UEAwwPdGhyb3ctYXdheSByb290MCAXDTI2MTEyMjE0NDY1NFoYDzIx\n\
MjYxMDI5MTQ0NjU0WjAaMRgwFgYDVQQDDA90aHJvdy1hd2F5IHJvb3QwWTATBgcq\n\
hkjOPQIBBggqhkjOPQMBBwNCAAQnLO6xv8jjhBvHex9oOKbqOwv4y5+3uMeVqc3M\n\
jw0RdiaHwB//SwuHgQ6hfW3pvgx1OczQOSWCxv8X8rBTwb3Ao1MwUTAdBgNVHQ4E\n\
FgQUCsfrryiTuC+RhhPvEZpzaYGj1lcwHwYDVR0jBBgwFoAUCsfrryiTuC+RhhPv\n\
EZpzaYGj1lcwDwYDVR0TAQH/BAUwAwEB/zAKBggqhkjOPQQDAgNJADBGAiEAixvS\n\
9sHv149PgGNejZ8pY9OK3MFGp4k93C0lIp7f/A0CIQCcbTjYg+UzpuDXrSQ+tQ0w\n\
NnHPXcY4/JH6bAmWrjS4JA==\n\
-----END CERTIFICATE-----\n";

    fn file(directory: &Path, name: &str, content: &str) -> PathBuf {
        let path = directory.join(name);
        crate::durable::write(&path, content.as_bytes(), 0o600).unwrap();
        path
    }

    #[test]
    fn the_first_bundle_with_a_root_is_taken_and_the_directory_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let empty = file(directory.path(), "empty.crt", "");
        let bundle = file(directory.path(), "bundle.crt", &format!("# comment\n{ROOT}{ROOT}"));
        let missing = directory.path().join("missing");
        assert_eq!(system(&[missing, empty, bundle], [directory.path()].into_iter()).len(), 2);
    }

    #[test]
    fn a_directory_is_read_where_no_bundle_exists_and_what_is_no_certificate_is_passed_over() {
        let directory = tempfile::tempdir().unwrap();
        file(directory.path(), "key.pem", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n");
        file(directory.path(), "0123abcd.0", ROOT);
        let nowhere = directory.path().join("nowhere");
        assert_eq!(system(&[], [nowhere.as_path(), directory.path()].into_iter()).len(), 1);
    }

    #[test]
    fn extra_roots_add_to_the_others() {
        let directory = tempfile::tempdir().unwrap();
        let bundle = file(directory.path(), "bundle.crt", ROOT);
        let extra = file(directory.path(), "extra.pem", ROOT);
        let mut roots = system(&[bundle], std::iter::empty());
        add_extra(&mut roots, &extra).unwrap();
        assert_eq!(roots.len(), 2);
    }

    #[test]
    fn without_any_root_a_handshake_says_what_to_install() {
        let error = NoRoots
            .verify_server_cert(
                &CertificateDer::from_slice(&[]),
                &[],
                &ServerName::try_from("api.example").unwrap(),
                &[],
                UnixTime::since_unix_epoch(std::time::Duration::ZERO),
            )
            .unwrap_err();
        assert!(error.to_string().contains("install ca-certificates or set SSL_CERT_FILE"), "{error}");
    }
}
