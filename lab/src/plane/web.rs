//! The API's HTTPS identity: a web certificate from a web authority that has nothing to do with the BAMF CA.
//!
//! The real platform stands behind an ingress with a public certificate (protocol 1.3), so an agent that trusted its BAMF
//! CA for the API's host name would be wrong. Keeping the two apart lets a test see that.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use rustls::pki_types::PrivatePkcs8KeyDer;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// The authority's certificate, and what a server needs to speak TLS under it.
#[derive(Clone, Debug)]
pub(crate) struct WebIdentity {
    pub(crate) ca_pem: String,
    pub(crate) tls: Arc<rustls::ServerConfig>,
}

impl WebIdentity {
    /// A fresh authority and a certificate for `localhost`, 127.0.0.1 and `names`.
    pub(crate) fn new(names: &[String]) -> Result<Self, WebIdentityError> {
        let (ca_key, ca_params) = (KeyPair::generate()?, authority());
        let ca_pem = ca_params.self_signed(&ca_key)?.pem();
        let key = KeyPair::generate()?;
        let certificate = server(names)?.signed_by(&key, &Issuer::new(ca_params, ca_key))?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], PrivatePkcs8KeyDer::from(key.serialize_der()).into())?;
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { ca_pem, tls: Arc::new(tls) })
    }
}

/// Why a web identity could not be made; in practice a server name that is no DNS name.
#[derive(Debug)]
pub(crate) enum WebIdentityError {
    Certificate(rcgen::Error),
    Tls(rustls::Error),
}

impl std::fmt::Display for WebIdentityError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Certificate(source) => write!(f, "cannot issue the API's web certificate: {source}"),
            Self::Tls(source) => write!(f, "cannot serve the API's web certificate: {source}"),
        }
    }
}

impl std::error::Error for WebIdentityError {}

impl From<rcgen::Error> for WebIdentityError {
    fn from(source: rcgen::Error) -> Self {
        Self::Certificate(source)
    }
}

impl From<rustls::Error> for WebIdentityError {
    fn from(source: rustls::Error) -> Self {
        Self::Tls(source)
    }
}

fn authority() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "Lab Web Authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    limit_validity(&mut params);
    params
}

fn server(names: &[String]) -> Result<CertificateParams, rcgen::Error> {
    let mut dns = vec!["localhost".to_owned()];
    dns.extend(names.iter().cloned());
    let mut params = CertificateParams::new(dns)?;
    params.subject_alt_names.push(SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST)));
    params.distinguished_name.push(DnType::CommonName, "localhost");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    limit_validity(&mut params);
    Ok(params)
}

/// A day of slack, as public authorities give; strictness about clocks belongs to the BAMF CA.
fn limit_validity(params: &mut CertificateParams) {
    let now = SystemTime::now();
    params.not_before = (now - DAY).into();
    params.not_after = (now + 365 * DAY).into();
}
