//! Targets in TLS, under the roots that count for each, and connections that are used again.

use std::path::Path;

use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::PrivatePkcs8KeyDer;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;

/// A server in TLS that answers `hi` to each `?`, and its certificate.
struct Server {
    listener: TcpListener,
    acceptor: TlsAcceptor,
    pem: String,
}

impl Server {
    async fn new(versions: &[&'static rustls::SupportedProtocolVersion]) -> Self {
        let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let key = PrivatePkcs8KeyDer::from(certified.signing_key.serialize_der());
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(versions)
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certified.cert.der().clone()], key.into())
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self { listener, acceptor: TlsAcceptor::from(Arc::new(config)), pem: certified.cert.pem() }
    }

    fn target(&self, scheme: Scheme) -> Target {
        Target { scheme, host: "localhost".into(), port: self.listener.local_addr().unwrap().port() }
    }

    /// Serves one connection until it ends; false if there was no handshake.
    async fn serve(&self) -> bool {
        let (stream, _) = self.listener.accept().await.unwrap();
        let Ok(mut stream) = self.acceptor.accept(stream).await else { return false };
        while let Ok(1..) = stream.read(&mut [0]).await {
            stream.write_all(b"hi").await.unwrap();
        }
        true
    }
}

fn put(directory: &Path, name: &str, text: &str) {
    crate::durable::write(&directory.join(name), text.as_bytes(), 0o600).unwrap();
}

async fn ask(stream: &mut Stream) {
    stream.write_all(b"?").await.unwrap();
    stream.flush().await.unwrap();
    let mut answer = [0; 2];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"hi");
}

const BOTH: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS13, &rustls::version::TLS12];

#[tokio::test]
async fn an_https_target_is_spoken_to_in_tls_and_its_connection_is_used_again() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::new(BOTH).await;
    put(directory.path(), "roots.pem", &server.pem);
    let extra_roots = Some(directory.path().join("roots.pem"));
    let network = NetworkConfig { extra_roots, ..NetworkConfig::default() };
    let targets = Targets::new(network, Arc::new(ServiceAccount::new(directory.path())));
    let target = server.target(Scheme::Https);
    let using = async {
        for reused in [false, true, true] {
            let (mut stream, was) = targets.connect(&target, Reuse::Any).await.unwrap();
            assert_eq!(was, reused);
            ask(&mut stream).await;
            targets.keep(target.clone(), stream);
        }
    };
    tokio::select! {
        () = using => {}
        _ = server.serve() => panic!("the connection ended"),
    }
    assert_eq!(targets.idle(), 1);
}

#[tokio::test]
async fn a_server_that_no_root_vouches_for_gets_nothing() {
    let server = Server::new(BOTH).await;
    let targets = Targets::new(NetworkConfig::default(), Arc::new(ServiceAccount::new("/nonexistent")));
    let target = server.target(Scheme::Https);
    let (refused, served) = tokio::join!(targets.connect(&target, Reuse::Any), server.serve());
    assert_eq!((refused.unwrap_err().status, served), (502, false));
}

#[tokio::test]
async fn a_cluster_is_trusted_by_the_mounted_authority_alone_as_it_is_at_the_time() {
    let directory = tempfile::tempdir().unwrap();
    let (server, other) = (Server::new(BOTH).await, Server::new(BOTH).await);
    let targets = Targets::new(NetworkConfig::default(), Arc::new(ServiceAccount::new(directory.path())));
    let target = server.target(Scheme::Kubernetes);
    for unusable in [None, Some("no certificate")] {
        unusable.inspect(|text| put(directory.path(), "ca.crt", text));
        assert_eq!(targets.connect(&target, Reuse::Any).await.unwrap_err().status, 502, "{unusable:?}");
    }
    put(directory.path(), "ca.crt", &other.pem);
    let (refused, _) = tokio::join!(targets.connect(&target, Reuse::Any), server.serve());
    assert_eq!(refused.unwrap_err().status, 502);
    put(directory.path(), "ca.crt", &server.pem);
    let using = async {
        let (mut stream, _) = targets.connect(&target, Reuse::Any).await.unwrap();
        ask(&mut stream).await;
    };
    assert!(tokio::join!(using, server.serve()).1);
}

#[tokio::test]
async fn a_cluster_below_tls_1_3_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::new(&[&rustls::version::TLS12]).await;
    put(directory.path(), "ca.crt", &server.pem);
    let targets = Targets::new(NetworkConfig::default(), Arc::new(ServiceAccount::new(directory.path())));
    let target = server.target(Scheme::Kubernetes);
    let (refused, served) = tokio::join!(targets.connect(&target, Reuse::Any), server.serve());
    assert_eq!((refused.unwrap_err().status, served), (502, false));
}

#[tokio::test]
async fn what_came_unasked_or_is_too_old_is_not_used_again() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let target = Target { scheme: Scheme::Http, host: "127.0.0.1".into(), port };
    let targets = Targets::new(NetworkConfig::default(), Arc::new(ServiceAccount::new("/nonexistent")));
    let pair = async || {
        let (near, far) = tokio::join!(targets.connect(&target, Reuse::Never), listener.accept());
        (near.unwrap().0, far.unwrap().0)
    };
    let (near, mut far) = pair().await;
    far.write_all(b"HTTP/1.1 408 Too Slow\r\n\r\n").await.unwrap();
    targets.keep(target.clone(), near);
    assert!(targets.take(&target, Reuse::Any).is_none());

    let (near, _far) = pair().await;
    targets.keep(target.clone(), near);
    tokio::time::pause();
    tokio::time::advance(RECENT).await;
    assert!(targets.take(&target, Reuse::Recent).is_none());
    assert!(targets.take(&target, Reuse::Never).is_none());
    let near = targets.take(&target, Reuse::Any).unwrap();
    targets.keep(target.clone(), near);
    tokio::time::advance(IDLE_LIMIT).await;
    targets.sweep();
    assert_eq!(targets.idle(), 0);
}

#[tokio::test]
async fn a_target_that_vanishes_is_found_by_probes() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let targets = Targets::new(NetworkConfig::default(), Arc::new(ServiceAccount::new("/nonexistent")));
    let target = Target { scheme: Scheme::Http, host: "127.0.0.1".into(), port };
    let (stream, _) = targets.connect(&target, Reuse::Any).await.unwrap();
    assert!(sockopt::socket_keepalive(stream.socket()).unwrap());
    assert!(stream.socket().nodelay().unwrap());
}
