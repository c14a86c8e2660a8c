//! The record layer against other people's TLS: handshakes by rustls, then hand-overs all the time, and every byte compared.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "record/links.rs"]
mod links;
#[path = "record/openssl.rs"]
mod openssl;
#[path = "record/rustls_server.rs"]
mod rustls_server;
#[path = "record/speed.rs"]
mod speed;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bamf_agent::tunnel::record::{Error, Records, State, sealed_len};
use bamf_agent::tunnel::tls::Handshake;
use bamf_lab::plane::{CertificateAuthority, IssuedCertificate, Role, SessionNames};
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, SupportedCipherSuite};

const SUITES: [SupportedCipherSuite; 3] = [
    cipher_suite::TLS13_AES_128_GCM_SHA256,
    cipher_suite::TLS13_AES_256_GCM_SHA384,
    cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
];

fn issued(ca: &CertificateAuthority) -> IssuedCertificate {
    let names = SessionNames {
        session: "s".into(),
        resource: "thing".into(),
        bridge: "bridge-0".into(),
        kind: Some("tcp".into()),
    };
    let now = SystemTime::now();
    ca.session("agent", Role::Agent, &names, now, now + Duration::from_secs(3600)).unwrap()
}

/// A client that believes `ca` and shows a certificate of `signer`.
fn client_config(
    ca: &CertificateAuthority,
    signer: &CertificateAuthority,
    suite: SupportedCipherSuite,
) -> ClientConfig {
    let issued = issued(signer);
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.pem().as_bytes()).unwrap()).unwrap();
    let provider = CryptoProvider { cipher_suites: vec![suite], ..default_provider() };
    ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(
            vec![CertificateDer::from_pem_slice(issued.certificate_pem.as_bytes()).unwrap()],
            PrivateKeyDer::from_pem_slice(issued.private_key_pem.as_bytes()).unwrap(),
        )
        .unwrap()
}

fn client(ca: &CertificateAuthority, signer: &CertificateAuthority, suite: SupportedCipherSuite) -> Handshake {
    Handshake::new(&client_config(ca, signer, suite), ServerName::try_from("localhost").unwrap()).unwrap()
}

/// Our end of a connection: its state, and the bytes beside it.
struct Ours {
    records: Option<Records>,
    /// Not opened yet.
    incoming: Vec<u8>,
    /// Sealed and not sent yet.
    outgoing: Vec<u8>,
    hand_overs: usize,
    /// Those with half a record on either side.
    cut: usize,
}

impl Ours {
    fn new(records: Records, incoming: Vec<u8>) -> Self {
        Self { records: Some(records), incoming, outgoing: Vec::new(), hand_overs: 0, cut: 0 }
    }

    fn records(&mut self) -> &mut Records {
        self.records.as_mut().unwrap()
    }

    fn send(&mut self, plain: &[u8]) {
        let start = self.outgoing.len();
        self.outgoing.resize(start + sealed_len(plain.len()), 0);
        let written = self.records.as_mut().unwrap().seal(plain, &mut self.outgoing[start..]).unwrap();
        self.outgoing.truncate(start + written);
    }

    /// Takes what has come; says whether the peer has ended.
    fn receive(&mut self, bytes: &[u8], sink: &mut dyn FnMut(&[u8])) -> Result<bool, Error> {
        self.incoming.extend_from_slice(bytes);
        let records = self.records.as_mut().unwrap();
        let mut answer = Vec::new();
        let opened = records.open(&mut self.incoming, &mut answer, sink);
        self.outgoing.extend(answer);
        let opened = opened?;
        self.incoming.drain(..opened.consumed);
        Ok(opened.ended)
    }

    /// Another process goes on. It gets text and bytes, nothing else.
    fn hand_over(&mut self) {
        let text = serde_json::to_string(&self.records.take().unwrap().export()).unwrap();
        let state: State = serde_json::from_str(&text).unwrap();
        self.records = Some(Records::import(state).unwrap());
        self.hand_overs += 1;
        self.cut += usize::from(!self.incoming.is_empty() && !self.outgoing.is_empty());
    }
}

/// Numbers that look random and are the same in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % limit
    }
}
