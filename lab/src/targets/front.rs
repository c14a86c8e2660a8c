//! TLS in front of a target: for `https` resources and for clusters, whose API is never plain.

use std::io;
use std::net::SocketAddr;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use crate::plane::WebIdentity;
use crate::runtime::handle;
use crate::serve::Network;

/// A port that speaks TLS and hands what is inside to a target; no new connections after this is dropped.
#[derive(Debug)]
pub struct TlsFront {
    address: SocketAddr,
    ca_pem: String,
    /// Its end is seen by the task that accepts.
    _open: watch::Sender<()>,
}

impl TlsFront {
    /// Makes an authority and a certificate for `localhost`, 127.0.0.1 and `names`, and begins to listen.
    ///
    /// # Errors
    /// See [`Network::bind`]; or a name is no DNS name.
    pub fn start(network: &Network, names: &[String], target: SocketAddr) -> io::Result<Self> {
        let identity = WebIdentity::new(names).map_err(io::Error::other)?;
        let listener = network.bind(0)?;
        listener.set_nonblocking(true)?;
        let (open, mut closed) = watch::channel(());
        let front = Self { address: listener.local_addr()?, ca_pem: identity.ca_pem, _open: open };
        handle().spawn(async move {
            tokio::select! {
                _ = closed.changed() => {}
                () = accept(listener, TlsAcceptor::from(identity.tls), target) => {}
            }
        });
        Ok(front)
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// The authority of its certificate.
    #[must_use]
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }
}

async fn accept(listener: std::net::TcpListener, tls: TlsAcceptor, target: SocketAddr) {
    let Ok(listener) = TcpListener::from_std(listener) else { return };
    while let Ok((stream, _)) = listener.accept().await {
        let tls = tls.clone();
        tokio::spawn(async move {
            let mut outside = tls.accept(stream).await?;
            let mut inside = TcpStream::connect(target).await?;
            tokio::io::copy_bidirectional(&mut outside, &mut inside).await
        });
    }
}
