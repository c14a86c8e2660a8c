//! What the agent is compared with: a program that copies between TLS and TCP with a well-known library, and does nothing
//! else. It has neither frames nor acknowledgements, one thread, and buffers of 64 KiB.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

const BUFFER: usize = 64 * 1024;

/// Connects to a bridge on loopback and to a target, and copies both ways until one side ends. The directory has
/// `cert.pem`, `key.pem` and `ca.pem`.
///
/// # Errors
/// Anything that fails.
pub fn run(bridge_port: u16, target: SocketAddr, directory: &Path) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
    runtime.block_on(copy(bridge_port, target, directory)).map_err(|error| error.to_string())
}

async fn copy(bridge_port: u16, target: SocketAddr, directory: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(directory.join("ca.pem"))?)?;
    let chain = vec![CertificateDer::from_pem_file(directory.join("cert.pem"))?];
    let key = PrivateKeyDer::from_pem_file(directory.join("key.pem"))?;
    // The cipher that the agent gets too: both ends have to do the same work.
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.cipher_suites = vec![rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256];
    let config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)?;
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let bridge = TcpStream::connect(("127.0.0.1", bridge_port)).await?;
    bridge.set_nodelay(true)?;
    let mut bridge = connector.connect(ServerName::try_from("localhost")?, bridge).await?;
    bridge.write_all(b"plain\ntype=plain\n").await?;
    let mut target = TcpStream::connect(target).await?;
    target.set_nodelay(true)?;
    // An end without close_notify is an end all the same.
    drop(tokio::io::copy_bidirectional_with_sizes(&mut bridge, &mut target, BUFFER, BUFFER).await);
    Ok(())
}
