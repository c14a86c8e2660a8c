//! The service account that a pod has mounted: whom the agent is for its cluster.
//!
//! Everything is read from the disk when it is needed: tokens rotate while the pod runs, and so may the authority.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};

use crate::durable;
use crate::secret::Secret;

/// Where Kubernetes mounts a service account (protocol chapter 13).
pub const MOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Tokens have 1 to 2 kB, bundles of authorities a few more.
const MAX_BYTES: u64 = 1 << 20;

/// The mounted service account.
#[derive(Debug)]
pub struct ServiceAccount {
    directory: PathBuf,
    /// The authority's text and what was made of it.
    tls: Mutex<Option<(Vec<u8>, Arc<ClientConfig>)>>,
}

/// The cluster's authority is of no use.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// It cannot be read.
    #[error("the cluster's ca.crt cannot be read")]
    Read(#[from] io::Error),
    /// It holds no certificate.
    #[error("the cluster's ca.crt holds no certificate")]
    Empty,
    /// The TLS library refused it.
    #[error("the cluster's ca.crt cannot be used")]
    Tls(#[from] rustls::Error),
}

impl ServiceAccount {
    /// The service account that is mounted at `directory`, usually [`MOUNT`].
    #[must_use]
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into(), tls: Mutex::default() }
    }

    /// The token as it is at this moment: tokens rotate.
    ///
    /// # Errors
    /// There is none, it cannot be read, or it is not one.
    pub fn token(&self) -> io::Result<Secret> {
        let text = String::from_utf8(read(&self.directory.join("token"))?).map_err(io::Error::other)?;
        let token = text.trim();
        // It becomes a header line.
        if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(io::Error::other("not a token"));
        }
        Ok(Secret::new(token.to_owned()))
    }

    /// The namespace that the pod runs in, where it is mounted.
    #[must_use]
    pub fn namespace(&self) -> Option<String> {
        let text = String::from_utf8(read(&self.directory.join("namespace")).ok()?).ok()?;
        Some(text.trim().to_owned()).filter(|name| !name.is_empty())
    }

    /// TLS 1.3 under the mounted authority alone (protocol 9.5, step 5), made anew when the file has changed.
    ///
    /// # Errors
    /// See [`CaError`].
    pub fn tls(&self) -> Result<Arc<ClientConfig>, CaError> {
        let pem = read(&self.directory.join("ca.crt"))?;
        let mut kept = self.tls.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((text, config)) = kept.as_ref()
            && *text == pem
        {
            return Ok(Arc::clone(config));
        }
        let mut roots = RootCertStore::empty();
        let (added, _unusable) = roots.add_parsable_certificates(CertificateDer::pem_slice_iter(&pem).flatten());
        if added == 0 {
            return Err(CaError::Empty);
        }
        let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let config = Arc::new(config);
        *kept = Some((pem, Arc::clone(&config)));
        Ok(config)
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    durable::open_regular(path)?.take(MAX_BYTES).read_to_end(&mut text)?;
    Ok(text)
}
