//! Makes connections to bridges: TCP, TLS 1.3, and nothing believed that the command did not bring (protocol 7.1).

use std::io;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{self, cipher_suite};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use serde::{Deserialize, Serialize};

use super::BridgeAddress;
use super::link::Link;
use super::tls::Handshake;
use crate::secret::Secret;

/// How long TCP may take to connect, and TLS to shake hands (protocol 7.1 recommends both).
const STEP_LIMIT: Duration = Duration::from_secs(10);
/// A certificate chain of the platform has one certificate of 1 KiB; no honest handshake is longer.
const HANDSHAKE_BYTES: usize = 64 * 1024;

/// Idle time after which a connection is probed, time between probes, and how many may stay unanswered: a dead peer is
/// noticed after half a minute (protocol W14; the platform's own agent probes after 15 s).
///
/// There is no `TCP_USER_TIMEOUT` beside it: the kernel counts the time in which the peer's window is closed as well, so that
/// a user who looks at a pager for half a minute would lose the connection. A link that dies with bytes under way is
/// replaced by the redial that its client causes, however long the kernel goes on trying.
const KEEP_ALIVE: (Duration, Duration, u32) = (Duration::from_secs(15), Duration::from_secs(5), 3);

/// Why a bridge cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The command's certificate, key or authority cannot be used.
    #[error("the {what} that came with the command cannot be used: {why}")]
    Credentials {
        /// Which part.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// The bridge's name is none.
    #[error("{0} is not a host name")]
    Name(String),
    /// TCP does not get through.
    #[error("bridge {bridge} cannot be reached")]
    Connect {
        /// The bridge.
        bridge: BridgeAddress,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// TLS fails.
    #[error("bridge {bridge}: the TLS handshake failed")]
    Handshake {
        /// The bridge.
        bridge: BridgeAddress,
        /// What is wrong.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// Whether it may work a moment later: the way to the bridge is at fault, not what either side shows the other.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            Self::Connect { .. } => true,
            Self::Handshake { source, .. } => source.kind() != io::ErrorKind::InvalidData,
            Self::Credentials { .. } | Self::Name(_) => false,
        }
    }
}

/// Only TLS 1.3, and the cipher that is fastest with the processor's help first; bridges take it when it is offered first.
static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
    let suites = vec![
        cipher_suite::TLS13_AES_128_GCM_SHA256,
        cipher_suite::TLS13_AES_256_GCM_SHA384,
        cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    ];
    Arc::new(CryptoProvider { cipher_suites: suites, ..aws_lc_rs::default_provider() })
});

/// A client certificate, its key, and whom to believe.
#[derive(Clone, Debug)]
pub struct Credentials {
    config: Arc<ClientConfig>,
    material: Arc<Material>,
}

/// The texts that credentials are made of, for a process that goes on with a dial.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Material {
    /// PEM.
    pub certificate_pem: Secret,
    /// PEM.
    pub private_key_pem: Secret,
    /// PEM.
    pub ca_pem: String,
}

impl Credentials {
    /// Reads the three PEM texts of a command.
    ///
    /// # Errors
    /// One of them is not what it should be.
    pub fn new(certificate_pem: &str, private_key_pem: &str, ca_pem: &str) -> Result<Self, Error> {
        let bad = |what: &'static str| {
            move |error: &dyn std::fmt::Display| Error::Credentials { what, why: error.to_string() }
        };
        let chain = CertificateDer::pem_slice_iter(certificate_pem.as_bytes()).collect::<Result<Vec<_>, _>>();
        let chain = chain.map_err(|error| bad("certificate")(&error))?;
        if chain.is_empty() {
            return Err(bad("certificate")(&"there is none"));
        }
        let key =
            PrivateKeyDer::from_pem_slice(private_key_pem.as_bytes()).map_err(|error| bad("private key")(&error))?;
        let mut roots = RootCertStore::empty();
        for authority in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
            let authority = authority.map_err(|error| bad("CA certificate")(&error))?;
            roots.add(authority).map_err(|error| bad("CA certificate")(&error))?;
        }
        if roots.is_empty() {
            return Err(bad("CA certificate")(&"there is none"));
        }
        let mut config = ClientConfig::builder_with_provider(Arc::clone(&PROVIDER))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("the provider has TLS 1.3 suites")
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .map_err(|error| bad("certificate")(&error))?;
        // A resumed handshake would make probes look faster than the path is (protocol 5.4).
        config.resumption = rustls::client::Resumption::disabled();
        let material = Material {
            certificate_pem: Secret::new(certificate_pem.to_owned()),
            private_key_pem: Secret::new(private_key_pem.to_owned()),
            ca_pem: ca_pem.to_owned(),
        };
        Ok(Self { config: Arc::new(config), material: Arc::new(material) })
    }

    /// What they were made of.
    #[must_use]
    pub fn material(&self) -> &Material {
        &self.material
    }
}

/// Connects, shakes hands, and says how long both took together.
///
/// In TLS 1.3 the bridge judges our certificate after our side is done: success here is no acceptance (protocol 1.4).
///
/// # Errors
/// See [`Error`].
pub async fn connect(bridge: &BridgeAddress, credentials: &Credentials) -> Result<(Link, Duration), Error> {
    let begun = tokio::time::Instant::now();
    let name = ServerName::try_from(bridge.host.clone()).map_err(|_| Error::Name(bridge.host.clone()))?;
    let failed = |source| Error::Connect { bridge: bridge.clone(), source };
    let connecting = TcpStream::connect((bridge.host.as_str(), bridge.port));
    let socket = limited(connecting).await.map_err(failed)?;
    tune(&socket).map_err(failed)?;
    let failed = |source| Error::Handshake { bridge: bridge.clone(), source };
    let handshake = Handshake::new(&credentials.config, name).map_err(|error| failed(io::Error::other(error)))?;
    let link = limited(shake_hands(socket, handshake)).await.map_err(failed)?;
    Ok((link, begun.elapsed()))
}

async fn limited<T>(step: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let late = || io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {} s", STEP_LIMIT.as_secs()));
    timeout(STEP_LIMIT, step).await.map_err(|_| late())?
}

/// Answers at once, and dead peers found: for bridges and targets alike.
pub(super) fn tune(socket: &TcpStream) -> io::Result<()> {
    use rustix::net::sockopt;
    socket.set_nodelay(true)?;
    let (idle, interval, count) = KEEP_ALIVE;
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, idle)?;
    sockopt::set_tcp_keepintvl(socket, interval)?;
    sockopt::set_tcp_keepcnt(socket, count)?;
    Ok(())
}

async fn shake_hands(mut socket: TcpStream, mut handshake: Handshake) -> io::Result<Link> {
    let (mut input, mut output) = (Vec::with_capacity(4096), Vec::new());
    loop {
        let outcome = handshake.proceed(&mut input, &mut output);
        // Also the alert that tells the bridge what is wrong with it.
        socket.write_all(&output).await?;
        output.clear();
        let (consumed, records) = outcome.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        input.drain(..consumed);
        if let Some(records) = records {
            return Ok(Link::new(socket, records, input));
        }
        if input.len() > HANDSHAKE_BYTES {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the handshake does not end"));
        }
        if socket.read_buf(&mut input).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}
