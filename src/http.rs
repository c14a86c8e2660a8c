//! Builds the one kind of HTTP client that the platform's room and the updater share.
//!
//! Both talk to hosts on the Internet under the system's trust roots, through whatever proxy the operator configured, and
//! with a limit on every wait. They differ in what a redirect may do and how long an answer may take: a [`Purpose`] names
//! the difference. Everything comes from [`NetworkConfig`]; reqwest's own reading of the environment is switched off, so
//! that `config show` tells the whole truth.

use std::error::Error as StdError;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use reqwest::redirect::{Action, Attempt, Policy};
use reqwest::{Client, ClientBuilder, NoProxy, Proxy};
use rustls::ClientConfig;
use rustls::crypto::aws_lc_rs;
use url::{Host, Url};

use crate::config::NetworkConfig;
use crate::secret::Secret;

mod roots;

/// Long enough for a lost SYN to be sent three times, short enough to try again while somebody watches.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Protocol 3.1: a call to the platform takes at most 30 s, body included.
const PLATFORM_TIMEOUT: Duration = Duration::from_secs(30);
/// A download may take hours but must not stand still.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Load balancers commonly drop idle connections after 60 s without a word; ours go first.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(50);
/// Finds a peer that vanished behind a NAT, on connections that only listen.
const TCP_KEEPALIVE: Duration = Duration::from_secs(30);
/// The cluster's API answers at once or is in trouble; an agent that waits for it has an identity to go on with.
#[cfg(feature = "kubernetes")]
const CLUSTER_TIMEOUT: Duration = Duration::from_secs(10);
/// Same-origin redirects that a call to the platform may need, e.g. for a trailing slash.
const PLATFORM_REDIRECTS: usize = 3;
/// Contract section 4: at most 10.
const RELEASE_REDIRECTS: usize = 10;
/// Always reached directly, as Go's and curl's users expect: a proxy has a loopback of its own.
const LOOPBACK: &str = "localhost,127.0.0.0/8,::1";

/// What a client is for; decides its limits and which redirects it follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Calls to the platform: 30 s in all, redirects within the origin only.
    Platform,
    /// The platform's event stream: no limit on the whole; the reader limits the silence. Redirects as for `Platform`.
    Events,
    /// The API of the cluster around the pod: 10 s in all, no redirects, no proxy.
    #[cfg(feature = "kubernetes")]
    Cluster,
    /// Release files: no limit on the whole, 30 s without a byte ends it; redirects to any host over HTTPS.
    Releases,
}

/// Why no client could be built.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file of further trust roots cannot be read.
    #[error("cannot read the trust roots in {} (SSL_CERT_FILE)", path.display())]
    ReadRoots {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file of further trust roots holds none.
    #[error("{} (SSL_CERT_FILE) holds no certificate in PEM form", path.display())]
    NoCertificate {
        /// The file.
        path: PathBuf,
    },
    /// A proxy's address is of no use. It is not shown: it may carry a password.
    #[error("{variable} is not an http:// or https:// address of a proxy")]
    Proxy {
        /// The environment variable that it comes from.
        variable: &'static str,
    },
    /// The TLS library refused its configuration.
    #[error("cannot configure TLS")]
    Tls(#[source] rustls::Error),
    /// The HTTP library refused its configuration.
    #[error("cannot set up the HTTP client")]
    Build(#[source] reqwest::Error),
}

/// TLS 1.2 and 1.3 under the system's trust roots plus those of `network.extra_roots`.
///
/// A machine without any root still gets a configuration, because it may only talk to loopback; its handshakes fail with
/// a sentence that says what to install.
///
/// # Errors
/// [`Error::ReadRoots`] and [`Error::NoCertificate`] about the extra roots.
pub fn tls_config(network: &NetworkConfig) -> Result<ClientConfig, Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(Error::Tls)?;
    let mut config = roots::trust(builder, network.extra_roots.as_deref())?;
    // The only protocol that this build of the HTTP library speaks.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// A client for `purpose` that names itself `bamf-agent/<version>`.
///
/// # Errors
/// See [`tls_config`], and [`Error::Proxy`].
pub fn client(network: &NetworkConfig, purpose: Purpose, version: &str) -> Result<Client, Error> {
    client_over(tls_config(network)?, network, purpose, version)
}

/// The same over a configuration that was made already: reading the trust roots is a good part of the agent's start.
///
/// # Errors
/// See [`Error::Proxy`].
pub fn client_over(
    tls: ClientConfig,
    network: &NetworkConfig,
    purpose: Purpose,
    version: &str,
) -> Result<Client, Error> {
    let builder = Client::builder()
        .tls_backend_preconfigured(tls)
        .user_agent(format!("bamf-agent/{version}"))
        .connect_timeout(CONNECT_TIMEOUT)
        .pool_idle_timeout(POOL_IDLE_TIMEOUT)
        .tcp_keepalive(TCP_KEEPALIVE)
        .referer(false);
    let builder = match purpose {
        Purpose::Platform => builder.timeout(PLATFORM_TIMEOUT).redirect(Policy::custom(within_origin)),
        Purpose::Events => builder.redirect(Policy::custom(within_origin)),
        // Inside the cluster there is no proxy to go through, and none should be asked to.
        #[cfg(feature = "kubernetes")]
        Purpose::Cluster => {
            let builder = builder.timeout(CLUSTER_TIMEOUT).redirect(Policy::none()).no_proxy();
            return builder.build().map_err(Error::Build);
        }
        Purpose::Releases => builder.read_timeout(STALL_TIMEOUT).redirect(Policy::custom(over_https)),
    };
    proxied(builder, network)?.build().map_err(Error::Build)
}

/// True where `url` names this machine: `localhost` or a loopback address.
#[must_use]
pub fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name.eq_ignore_ascii_case("localhost"),
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

/// An error with all its causes in one line; nothing is said twice, and no address keeps its query or password.
///
/// reqwest's `Display` ends at "error sending request": the cause that an operator needs is further down.
#[must_use]
pub fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let said = cause.to_string();
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        next = cause.source();
    }
    without_secrets(&text)
}

/// Replaces user, password, query and fragment of every address in `text`.
fn without_secrets(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = ["https://", "http://"].iter().filter_map(|scheme| rest.find(scheme)).min() {
        let (before, from) = rest.split_at(start);
        let end = from.find(|c: char| c.is_whitespace() || "()<>\"'`,;".contains(c)).unwrap_or(from.len());
        let (address, after) = from.split_at(end);
        clean.push_str(before);
        clean.push_str(&public_part(address));
        rest = after;
    }
    clean.push_str(rest);
    clean
}

/// One that does not parse keeps its scheme only.
fn public_part(address: &str) -> String {
    let unparsed = || format!("{}://…", address.split(':').next().unwrap_or_default());
    Url::parse(address).map_or_else(|_| unparsed(), |url| shown(&url))
}

/// An address as messages and logs may show it: without user, password, query and fragment.
#[must_use]
pub fn shown(url: &Url) -> String {
    let mut url = url.clone();
    if url.set_username("").is_err() || url.set_password(None).is_err() {
        return format!("{}://…", url.scheme());
    }
    url.set_query(None);
    url.set_fragment(None);
    url.into()
}

fn proxied(builder: ClientBuilder, network: &NetworkConfig) -> Result<ClientBuilder, Error> {
    let direct = network.no_proxy.as_deref().map(str::trim).unwrap_or_default();
    // Also forgets what reqwest would read from the environment.
    let mut builder = builder.no_proxy();
    if direct == "*" {
        return Ok(builder);
    }
    let exceptions = NoProxy::from_string(&format!("{LOOPBACK},{direct}"));
    if let Some(address) = &network.https_proxy {
        let proxy = Proxy::https(proxy_address(address, "HTTPS_PROXY")?);
        builder = builder.proxy(proxy.map_err(Error::Build)?.no_proxy(exceptions.clone()));
    }
    if let Some(address) = &network.http_proxy {
        let proxy = Proxy::http(proxy_address(address, "http_proxy")?);
        builder = builder.proxy(proxy.map_err(Error::Build)?.no_proxy(exceptions));
    }
    Ok(builder)
}

/// A proxy's address; `proxy:3128` without a scheme means `http://`, as everywhere else.
fn proxy_address(written: &Secret, variable: &'static str) -> Result<Url, Error> {
    let text = written.expose().trim();
    let with_scheme = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    Url::parse(&with_scheme)
        .ok()
        // Anything else, e.g. socks5://, would be ignored in silence and the request sent directly.
        .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
        .ok_or(Error::Proxy { variable })
}

/// Protocol 3.1: the identity header must not follow a redirect to another origin.
fn within_origin(attempt: Attempt<'_>) -> Action {
    let leaves = attempt.previous().first().is_none_or(|first| first.origin() != attempt.url().origin());
    if leaves {
        let target = attempt.url().origin().ascii_serialization();
        return attempt.error(format!("it redirects to {target}: set platform_url to the address it should be"));
    }
    if attempt.previous().len() > PLATFORM_REDIRECTS {
        return attempt.error(format!("more than {PLATFORM_REDIRECTS} redirects"));
    }
    attempt.follow()
}

/// Contract section 4: "Redirects: HTTPS only (loopback excepted), at most 10." Any host will do: the signature decides
/// what is believed, and release hosts change. reqwest drops `Authorization` where the host, port or scheme changes.
fn over_https(attempt: Attempt<'_>) -> Action {
    if attempt.previous().len() > RELEASE_REDIRECTS {
        return attempt.error(format!("more than {RELEASE_REDIRECTS} redirects"));
    }
    let secure = attempt.url().scheme() == "https";
    // A host elsewhere has no business with what listens on this machine's loopback.
    let stays_here = is_loopback(attempt.url()) && attempt.previous().last().is_some_and(is_loopback);
    if secure || stays_here {
        return attempt.follow();
    }
    let target = attempt.url().origin().ascii_serialization();
    attempt.error(format!("it redirects to {target}, which is not HTTPS"))
}

#[cfg(test)]
mod tests;
