//! The bridge's TLS: 1.3 only, a client certificate of the platform's CA required, and what that certificate says.
//!
//! Host names are the only thing that a peer checks of a bridge, so they are what a test can get wrong on purpose.

use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use crate::plane::{CertificateAuthority, Role};

/// Bridge certificates live for a day (protocol 1.2).
const LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);

/// The certificate that a bridge shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Certificate {
    /// For the host that it advertises.
    #[default]
    Proper,
    /// For these host names instead.
    ForHosts(Vec<String>),
    /// For the right host, but signed by an authority that nobody knows.
    Foreign,
    /// For the right host, but its validity has ended.
    Expired,
    /// For the right host, shown by a bridge that speaks TLS 1.2 and nothing newer.
    OverTls12,
}

/// What a bridge of this id and host serves TLS with, for bridges that a test writes itself.
///
/// # Errors
/// The id or the host does not fit into a certificate.
pub fn server_config(ca: &CertificateAuthority, id: &str, host: &str) -> io::Result<Arc<ServerConfig>> {
    server(ca, id, host, &Certificate::Proper)
}

/// What a bridge serves TLS with.
pub(crate) fn server(
    ca: &CertificateAuthority,
    id: &str,
    host: &str,
    certificate: &Certificate,
) -> io::Result<Arc<ServerConfig>> {
    let now = SystemTime::now();
    let proper = vec![host.to_owned(), format!("{id}.bamf.svc.cluster.local")];
    let hour = Duration::from_secs(60 * 60);
    let issued = match certificate {
        Certificate::Proper | Certificate::OverTls12 => ca.bridge(id, &proper, now, now + LIFETIME),
        Certificate::ForHosts(hosts) => ca.bridge(id, hosts, now, now + LIFETIME),
        Certificate::Foreign => CertificateAuthority::new().bridge(id, &proper, now, now + LIFETIME),
        Certificate::Expired => ca.bridge(id, &proper, now - LIFETIME, now - hour),
    };
    let issued = issued.map_err(io::Error::other)?;
    let mut roots = RootCertStore::empty();
    let root = CertificateDer::from_pem_slice(ca.pem().as_bytes()).map_err(io::Error::other)?;
    roots.add(root).map_err(io::Error::other)?;
    let chain = CertificateDer::from_pem_slice(issued.certificate_pem.as_bytes()).map_err(io::Error::other)?;
    let key = PrivateKeyDer::from_pem_slice(issued.private_key_pem.as_bytes()).map_err(io::Error::other)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let versions: &[_] = match certificate {
        Certificate::OverTls12 => &[&rustls::version::TLS12],
        Certificate::Proper | Certificate::ForHosts(_) | Certificate::Foreign | Certificate::Expired => {
            &[&rustls::version::TLS13]
        }
    };
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build();
    let config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .map_err(io::Error::other)?
        .with_client_cert_verifier(verifier.map_err(io::Error::other)?)
        .with_single_cert(vec![chain], key)
        .map_err(io::Error::other)?;
    Ok(Arc::new(config))
}

/// What a client certificate says (protocol 1.2): the URI's host selects the field, the last one wins, empty ones and
/// unknown ones do not count.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Names {
    pub(crate) session: Option<String>,
    pub(crate) bridge: Option<String>,
    pub(crate) role: Option<Role>,
    pub(crate) kind: Option<String>,
}

impl Names {
    pub(crate) fn of(certificate: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
        let mut names = Self::default();
        let alternative = certificate.subject_alternative_name().ok().flatten();
        for name in alternative.iter().flat_map(|names| &names.value.general_names) {
            if let GeneralName::URI(uri) = name {
                names.take_in(uri);
            }
        }
        if names.role.is_none() {
            let common_name = certificate.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
            let is_mail = common_name.is_some_and(|name| name.contains('@'));
            names.role = Some(if is_mail { Role::Client } else { Role::Agent });
        }
        Some(names)
    }

    fn take_in(&mut self, uri: &str) {
        let Some((field, value)) = uri.strip_prefix("bamf://").and_then(|rest| rest.split_once('/')) else { return };
        if value.is_empty() {
            return;
        }
        match field {
            "session" => self.session = Some(value.to_owned()),
            "bridge" => self.bridge = Some(value.to_owned()),
            "type" => self.kind = Some(value.to_owned()),
            "role" if value == "client" => self.role = Some(Role::Client),
            "role" => self.role = Some(Role::Agent),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_session_certificate_says_what_is_documented() {
        let vectors: serde_json::Value = serde_json::from_str(include_str!("../../../tests/vectors.json")).unwrap();
        let vector = &vectors["session_cert"];
        let der = CertificateDer::from_pem_slice(vector["cert_pem"].as_str().unwrap().as_bytes()).unwrap();
        let expected = Names {
            session: Some("Zk3vQ0m_8h-TtYx2LrW7cPq1Ab9Dn4Ke".into()),
            bridge: Some("demo-bridge-1".into()),
            role: Some(Role::Agent),
            kind: Some("postgres".into()),
        };
        assert_eq!(Names::of(&der), Some(expected));
    }

    #[test]
    fn unknown_and_empty_fields_do_not_count_and_the_last_one_wins() {
        let mut names = Names::default();
        for uri in ["bamf://bridge/a", "bamf://bridge/b", "bamf://bridge/", "bamf://novelty/x", "https://bridge/c"] {
            names.take_in(uri);
        }
        assert_eq!(names, Names { bridge: Some("b".into()), ..Names::default() });
    }
}
