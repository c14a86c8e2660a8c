//! The far end of measured sessions: a bridge and its client in one, so that nothing but the agent lies in between.

use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde_json::json;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::sync::{Mutex, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::agent::NAME;
use crate::bridge::{self, Certificate};
use crate::plane::{CertificateAuthority, ControlPlane, IssuedCertificate, Role, SessionNames};
use crate::runtime::{block_on, handle};

const ID: &str = "far-end";
const LIFETIME: Duration = Duration::from_secs(3600);
/// How long a connection that was asked for may take to come.
const LIMIT: Duration = Duration::from_secs(30);

/// Accepts the connections that commands ask for.
pub(super) struct FarEnd {
    ca: Arc<CertificateAuthority>,
    port: u16,
    accepted: Mutex<mpsc::Receiver<TlsStream<TcpStream>>>,
}

impl FarEnd {
    /// Listens on loopback, under `ca`.
    ///
    /// # Errors
    /// The port cannot be bound.
    pub(super) fn start(ca: Arc<CertificateAuthority>) -> io::Result<Self> {
        let acceptor = TlsAcceptor::from(bridge::server(&ca, ID, "localhost", &Certificate::Proper)?);
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let port = listener.local_addr()?.port();
        let (queue, accepted) = mpsc::channel(2048);
        handle().spawn(async move {
            let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, queue) = (acceptor.clone(), queue.clone());
                tokio::spawn(async move {
                    drop(stream.set_nodelay(true));
                    let Ok(mut stream) = acceptor.accept(stream).await else { return };
                    if header(&mut stream).await.is_ok() {
                        drop(queue.send(stream).await);
                    }
                });
            }
        });
        Ok(Self { ca, port, accepted: Mutex::new(accepted) })
    }

    /// Where it listens.
    #[must_use]
    pub(super) const fn port(&self) -> u16 {
        self.port
    }

    /// A certificate for an agent's end of `session`.
    #[must_use]
    pub(super) fn certificate(&self, session: &str, kind: &str) -> IssuedCertificate {
        let names = SessionNames {
            session: session.to_owned(),
            resource: "thing".to_owned(),
            bridge: ID.to_owned(),
            kind: Some(kind.to_owned()),
        };
        let now = SystemTime::now();
        self.ca.session("agent", Role::Agent, &names, now, now + LIFETIME).expect("the names are ASCII")
    }

    /// Asks the agent for a session to `resource`, and waits for it to come.
    ///
    /// # Errors
    /// It does not come.
    pub(super) fn open(
        &self,
        plane: &ControlPlane,
        session: &str,
        resource: &str,
        kind: &str,
    ) -> Result<TlsStream<TcpStream>, String> {
        let issued = self.certificate(session, kind);
        let data = json!({
            "command": "dial", "session_id": session, "bridge_host": "localhost", "bridge_port": self.port,
            "resource_name": resource, "resource_type": kind, "session_cert": issued.certificate_pem,
            "session_key": issued.private_key_pem, "ca_certificate": self.ca.pem(),
        });
        plane.send(NAME, "tunnel_request", &data).ok_or("no instance of the agent is there")?;
        self.next()
    }

    /// The next connection.
    ///
    /// # Errors
    /// None comes.
    pub(super) fn next(&self) -> Result<TlsStream<TcpStream>, String> {
        let next = async { self.accepted.lock().await.recv().await };
        let next = block_on(async { tokio::time::timeout(LIMIT, next).await });
        next.ok().flatten().ok_or_else(|| "the agent did not dial".to_owned())
    }
}

/// Both header lines; the bytes behind them stay in the stream.
async fn header(stream: &mut TlsStream<TcpStream>) -> io::Result<()> {
    let mut lines = 0;
    while lines < 2 {
        lines += usize::from(stream.read_u8().await? == b'\n');
    }
    Ok(())
}
