//! Connections of a client end: HTTPS to the platform, and TLS 1.3 with the session's certificate to a bridge.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::api::Session;
use super::carrier::Link;
use super::options::Options;

const LIMIT: Duration = Duration::from_secs(10);
/// The TLS library asks for a few KiB at a time; each would be a system call.
const READ_AHEAD: usize = 256 << 10;

/// What is written before anything else on a connection to a bridge (protocol 7.1).
#[must_use]
pub fn header(session_id: &str, resource_type: &str) -> String {
    format!("{session_id}\ntype={resource_type}\n")
}

/// Connects to the session's bridge and writes the header.
pub(super) async fn to_bridge(session: &Session, options: &Options) -> io::Result<Link> {
    let config = session_config(session).map_err(io::Error::other)?;
    let address = (session.bridge_hostname.as_str(), session.bridge_port);
    let mut stream = tls(tcp(address, options).await?, &session.bridge_hostname, config).await?;
    stream.write_all(header(&session.session_id, &session.resource_type).as_bytes()).await?;
    stream.flush().await?;
    if options.preflight && session.resource_type == "ssh-audit" {
        preflight(&mut stream).await?;
    }
    Ok(Box::new(stream))
}

/// The pre-flight of a user without keys (protocol 11.5): the bridge will ask for a password.
async fn preflight(stream: &mut TlsStream<BufReader<TcpStream>>) -> io::Result<()> {
    stream.write_all(b"pubkeys-done\n").await?;
    stream.flush().await?;
    let mut line = Vec::new();
    // Byte by byte: what follows the line is SSH.
    while line.last() != Some(&b'\n') && line.len() < 1024 {
        line.push(stream.read_u8().await?);
    }
    if line == b"ready\n" {
        return Ok(());
    }
    Err(io::Error::other(format!("the bridge says {:?} instead of ready", String::from_utf8_lossy(&line))))
}

/// Connects to the host of a URL; returns its authority too.
pub(super) async fn to_url(url: &str, web_ca_pem: &str, options: &Options) -> io::Result<(String, Link)> {
    let invalid = || io::Error::new(io::ErrorKind::InvalidInput, format!("{url} is no URL of a platform"));
    let (scheme, rest) = url.split_once("://").ok_or_else(invalid)?;
    let authority = rest.split('/').next().unwrap_or_default();
    let default = match scheme {
        "https" => 443,
        "http" => 80,
        _ => return Err(invalid()),
    };
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) => (host, port.parse().map_err(|_| invalid())?),
        None => (authority, default),
    };
    let stream = tcp((host, port), options).await?;
    if scheme == "http" {
        return Ok((authority.to_owned(), Box::new(stream)));
    }
    let roots = roots(web_ca_pem).map_err(io::Error::other)?;
    let config = builder(rustls::DEFAULT_VERSIONS)?.with_root_certificates(roots).with_no_client_auth();
    Ok((authority.to_owned(), Box::new(tls(stream, host, config).await?)))
}

async fn tcp(address: (&str, u16), options: &Options) -> io::Result<TcpStream> {
    let (host, port) = address;
    let connect = async {
        match options.hosts.get(host) {
            Some(address) => TcpStream::connect(address).await,
            // RFC 6761, 6.3: names below `localhost` are this machine; not every resolver knows.
            None if host.ends_with("localhost") => {
                TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await
            }
            None => TcpStream::connect((host, port)).await,
        }
    };
    let stream = timeout(LIMIT, connect).await.map_err(|_| io::ErrorKind::TimedOut)??;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn tls(stream: TcpStream, host: &str, config: ClientConfig) -> io::Result<TlsStream<BufReader<TcpStream>>> {
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    let stream = BufReader::with_capacity(READ_AHEAD, stream);
    let handshake = TlsConnector::from(Arc::new(config)).connect(name, stream);
    timeout(LIMIT, handshake).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

fn session_config(session: &Session) -> Result<ClientConfig, Box<dyn std::error::Error + Send + Sync>> {
    let certificates = CertificateDer::pem_slice_iter(session.session_cert.as_bytes()).collect::<Result<_, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(session.session_key.as_bytes())?;
    let builder = builder(&[&rustls::version::TLS13])?.with_root_certificates(roots(&session.ca_certificate)?);
    let mut config = builder.with_client_auth_cert(certificates, key)?;
    // As the platform's client does.
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

fn builder(
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> io::Result<rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    ClientConfig::builder_with_provider(provider).with_protocol_versions(versions).map_err(io::Error::other)
}

fn roots(pem: &str) -> Result<RootCertStore, Box<dyn std::error::Error + Send + Sync>> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        roots.add(certificate?)?;
    }
    Ok(roots)
}
