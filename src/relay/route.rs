//! Which configured resource a request is for (protocol 9.4). Pure.
//!
//! A bridge names an origin; whatever it names, only what the operator configured is dialled. So each resource yields the
//! few spellings of its origin that the platform's proxy can produce, a request's origin is compared with those as a
//! text, and the address comes from the configuration. Nothing of the request's text is parsed into an address.

use serde::{Deserialize, Serialize};

use crate::config::Resource;

/// How a target is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scheme {
    /// Plain HTTP.
    Http,
    /// TLS under the system's roots.
    Https,
    /// TLS under the cluster's own authority, with the mounted service account.
    Kubernetes,
}

/// Where a target is. Connections to equal targets are interchangeable.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Target {
    /// How it is spoken to.
    pub scheme: Scheme,
    /// Configured host name or address, without brackets.
    pub host: String,
    /// Configured port.
    pub port: u16,
}

/// Where a request goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// What is dialled.
    pub target: Target,
    /// The `Host` field.
    pub authority: String,
    /// `X-Bamf-Session-Token` is handed on.
    pub forward_session_token: bool,
}

/// No configured resource has this origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unknown;

/// One spelling of a resource's origin.
#[derive(Clone, Debug)]
struct Spelling {
    /// Lower case, without a trailing slash.
    origin: String,
    authority: String,
}

#[derive(Clone, Debug)]
struct Entry {
    target: Target,
    tunnel_hostname: Option<String>,
    forward_session_token: bool,
    spellings: Vec<Spelling>,
}

/// The origins of the configured resources.
#[derive(Clone, Debug, Default)]
pub struct Router {
    entries: Vec<Entry>,
}

impl Router {
    /// Knows the web and Kubernetes resources among `resources`.
    #[must_use]
    pub fn new(resources: &[Resource]) -> Self {
        Self { entries: resources.iter().filter_map(Entry::of).collect() }
    }

    /// True if there is nothing that requests could go to.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether a resource has this target.
    #[must_use]
    pub fn reaches(&self, target: &Target) -> bool {
        self.entries.iter().any(|entry| entry.target == *target)
    }

    /// The route to `origin` (`X-Bamf-Target`); `resource` (`X-Bamf-Resource`) decides where several resources share
    /// one origin.
    ///
    /// # Errors
    /// Nothing that is configured has that origin.
    pub fn route(&self, origin: &str, resource: Option<&str>, kubernetes: bool) -> Result<Route, Unknown> {
        let origin = origin.strip_suffix('/').unwrap_or(origin);
        let mut found: Option<(&Entry, &Spelling)> = None;
        let mut forward_session_token = true;
        for entry in self.entries.iter().filter(|entry| (entry.target.scheme == Scheme::Kubernetes) == kubernetes) {
            let Some(spelling) = entry.spellings.iter().find(|spelling| spelling.origin.eq_ignore_ascii_case(origin))
            else {
                continue;
            };
            if entry.is_named(resource) {
                return Ok(entry.route(spelling, entry.forward_session_token));
            }
            // The user's live session goes nowhere unless every resource behind this origin may have it.
            forward_session_token &= entry.forward_session_token;
            found = found.or(Some((entry, spelling)));
        }
        found.map(|(entry, spelling)| entry.route(spelling, forward_session_token)).ok_or(Unknown)
    }
}

impl Entry {
    fn of(resource: &Resource) -> Option<Self> {
        let (scheme, default_host, default_port) = match resource.resource_type.as_str() {
            "http" | "http-audit" => (Scheme::Http, "localhost", 80),
            "https" => (Scheme::Https, "localhost", 443),
            "kubernetes" => (Scheme::Kubernetes, "kubernetes.default.svc", 6443),
            _ => return None,
        };
        let host = match resource.hostname.trim_start_matches('[').trim_end_matches(']') {
            "" => default_host.to_owned(),
            host => host.to_owned(),
        };
        let port = if resource.port == 0 { default_port } else { resource.port };
        Some(Self {
            spellings: spellings(scheme, &host, port),
            target: Target { scheme, host, port },
            tunnel_hostname: resource.tunnel_hostname.clone(),
            forward_session_token: resource.forward_session_token,
        })
    }

    fn is_named(&self, resource: Option<&str>) -> bool {
        match (resource, &self.tunnel_hostname) {
            (Some(asked), Some(own)) => asked.eq_ignore_ascii_case(own),
            _ => false,
        }
    }

    fn route(&self, spelling: &Spelling, forward_session_token: bool) -> Route {
        Route { target: self.target.clone(), authority: spelling.authority.clone(), forward_session_token }
    }
}

/// What the proxy can call this origin. It writes `http://` for `https` resources too, and leaves out 80 and 443
/// whatever the scheme; an IPv6 address it writes as configured, without brackets.
fn spellings(scheme: Scheme, host: &str, port: u16) -> Vec<Spelling> {
    let bracketed = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    let own_port = match scheme {
        Scheme::Http => 80,
        Scheme::Https | Scheme::Kubernetes => 443,
    };
    let full = format!("{bracketed}:{port}");
    let short = if port == own_port || matches!((scheme, port), (Scheme::Http, 443)) { &bracketed } else { &full };
    let prefixes: &[&str] = match scheme {
        Scheme::Http => &["http://"],
        Scheme::Https => &["http://", "https://"],
        Scheme::Kubernetes => &["https://"],
    };
    let mut spellings = Vec::new();
    for prefix in prefixes {
        for written in [host, &bracketed] {
            let mut add = |origin: String, authority: &str| {
                let origin = origin.to_ascii_lowercase();
                spellings.push(Spelling { origin, authority: authority.to_owned() });
            };
            let authority = if scheme == Scheme::Https { short } else { &full };
            add(format!("{prefix}{written}:{port}"), authority);
            let may_be_short = match scheme {
                Scheme::Http => port == 80 || port == 443,
                Scheme::Https => port == 443 || (port == 80 && *prefix == "http://"),
                Scheme::Kubernetes => port == 443,
            };
            if may_be_short {
                add(format!("{prefix}{written}"), short);
            }
        }
    }
    spellings
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A resource as the configuration makes it.
    pub(in super::super) fn resource(name: &str, kind: &str, hostname: &str, port: u16) -> Resource {
        Resource {
            name: name.into(),
            resource_type: kind.into(),
            hostname: hostname.into(),
            port,
            labels: Default::default(),
            tunnel_hostname: (kind != "kubernetes").then(|| name.to_owned()),
            webhooks: Vec::new(),
            forward_session_token: false,
            dial: Default::default(),
        }
    }

    fn router() -> Router {
        Router::new(&[
            resource("wiki", "http", "wiki.internal", 8085),
            resource("plain", "http-audit", "plain.internal", 80),
            resource("odd", "http", "odd.internal", 443),
            resource("safe", "https", "safe.internal", 443),
            resource("safe2", "https", "safe.internal", 8443),
            resource("both", "http", "safe.internal", 80),
            resource("here", "http", "", 3000),
            resource("six", "http", "fd00::1", 8080),
            resource("cluster", "kubernetes", "", 6443),
            resource("cluster2", "kubernetes", "10.0.0.1", 443),
            resource("shell", "ssh", "wiki.internal", 22),
            resource("db", "postgres", "db.internal", 5432),
        ])
    }

    fn shown(origin: &str, resource: Option<&str>, kubernetes: bool) -> Option<String> {
        let route = router().route(origin, resource, kubernetes).ok()?;
        let Target { scheme, host, port } = route.target;
        Some(format!("{scheme:?} {host} {port}, {}", route.authority))
    }

    #[test]
    fn an_origin_finds_the_configured_address() {
        let table = [
            ("http://wiki.internal:8085", None, "Http wiki.internal 8085, wiki.internal:8085"),
            ("HTTP://Wiki.Internal:8085/", Some("wiki"), "Http wiki.internal 8085, wiki.internal:8085"),
            ("http://plain.internal", None, "Http plain.internal 80, plain.internal"),
            ("http://plain.internal:80", None, "Http plain.internal 80, plain.internal:80"),
            ("http://odd.internal", None, "Http odd.internal 443, odd.internal"),
            ("http://localhost:3000", Some("here"), "Http localhost 3000, localhost:3000"),
            ("http://fd00::1:8080", Some("six"), "Http fd00::1 8080, [fd00::1]:8080"),
            ("http://[fd00::1]:8080", None, "Http fd00::1 8080, [fd00::1]:8080"),
            // The repair of `https`: by name where the spelling is ambiguous, in TLS, at the configured port.
            ("http://safe.internal", Some("safe"), "Https safe.internal 443, safe.internal"),
            ("http://safe.internal", Some("both"), "Http safe.internal 80, safe.internal"),
            ("http://safe.internal:8443", Some("safe2"), "Https safe.internal 8443, safe.internal:8443"),
            ("https://safe.internal:443", None, "Https safe.internal 443, safe.internal"),
        ];
        for (origin, resource, expected) in table {
            assert_eq!(shown(origin, resource, false).as_deref(), Some(expected), "{origin} {resource:?}");
        }
        let cluster = "https://kubernetes.default.svc:6443";
        let expected = "Kubernetes kubernetes.default.svc 6443, kubernetes.default.svc:6443";
        assert_eq!(shown(cluster, None, true).as_deref(), Some(expected));
        assert_eq!(shown("https://10.0.0.1", None, true).as_deref(), Some("Kubernetes 10.0.0.1 443, 10.0.0.1"));
    }

    #[test]
    fn what_is_not_configured_has_no_route() {
        let web = [
            "http://wiki.internal",
            "http://wiki.internal:22",
            "https://wiki.internal:8085",
            "http://db.internal:5432",
            "http://169.254.169.254",
            "http://wiki.internal:8085/path",
            "http://wiki.internal:8085?x",
            "http://user@wiki.internal:8085",
            "http://wiki.internal:8085@evil",
            "http://wiki.internal.:8085",
            "http://wiki.internal:08085",
            "http://wiki.internal:8085//",
            "file:///etc/passwd",
            "https://kubernetes.default.svc:6443",
            "wiki.internal:8085",
            "",
            "/",
        ];
        for origin in web {
            assert_eq!(shown(origin, Some("wiki"), false), None, "{origin}");
        }
        for origin in ["http://kubernetes.default.svc:6443", "http://wiki.internal:8085", "http://10.0.0.1", ""] {
            assert_eq!(shown(origin, None, true), None, "{origin}");
        }
    }

    #[test]
    fn the_session_token_goes_only_where_every_resource_of_that_origin_may_have_it() {
        let mut trusted = resource("gui", "http", "gui.internal", 3001);
        trusted.forward_session_token = true;
        let shared = resource("other", "http", "gui.internal", 3001);
        let alone = Router::new(std::slice::from_ref(&trusted));
        let both = Router::new(&[trusted, shared]);
        let forwards = |router: &Router, name| {
            router.route("http://gui.internal:3001", name, false).unwrap().forward_session_token
        };
        assert!(forwards(&alone, None));
        assert!(forwards(&both, Some("gui")));
        assert!(!forwards(&both, Some("other")));
        assert!(!forwards(&both, Some("someone")));
        assert!(!forwards(&both, None));
    }
}
