//! The header fields of a request, as the proxy makes them of a browser's (protocol 9.4, 9.8).

/// How a resource is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A web application of type `http`, `http-audit` or `https`: the proxy builds the same origin for all of them.
    Web,
    /// The same, called by a webhook: nobody is signed in.
    Webhook,
    /// A cluster's API.
    Kubernetes,
}

/// What the platform knows about a resource.
#[derive(Clone, Debug)]
pub struct Resource {
    /// How it is reached.
    pub kind: Kind,
    /// Host from the agent's heartbeat; empty if it named none.
    pub hostname: String,
    /// Port from the agent's heartbeat.
    pub port: Option<u16>,
    /// Sub-domain for web access.
    pub tunnel_hostname: String,
}

impl Resource {
    /// A web application.
    #[must_use]
    pub fn web(tunnel_hostname: &str, hostname: &str, port: u16) -> Self {
        Self {
            kind: Kind::Web,
            hostname: hostname.to_owned(),
            port: Some(port),
            tunnel_hostname: tunnel_hostname.to_owned(),
        }
    }

    /// A cluster.
    #[must_use]
    pub fn kubernetes(hostname: &str, port: Option<u16>) -> Self {
        Self { kind: Kind::Kubernetes, hostname: hostname.to_owned(), port, tunnel_hostname: String::new() }
    }

    /// The same resource, reached in another way.
    #[must_use]
    pub fn as_kind(self, kind: Kind) -> Self {
        Self { kind, ..self }
    }

    /// What `X-Bamf-Target` says.
    #[must_use]
    pub fn origin(&self) -> String {
        let host = |default: &str| if self.hostname.is_empty() { default.to_owned() } else { self.hostname.clone() };
        match (self.kind, self.port) {
            (Kind::Kubernetes, port) => format!("https://{}:{}", host("kubernetes.default.svc"), port.unwrap_or(6443)),
            (Kind::Web | Kind::Webhook, None | Some(80 | 443)) => format!("http://{}", host("localhost")),
            (Kind::Web | Kind::Webhook, Some(port)) => format!("http://{}:{port}", host("localhost")),
        }
    }

    fn authority(&self) -> String {
        self.origin().split("//").nth(1).unwrap_or_default().to_owned()
    }
}

/// Who is signed in.
#[derive(Clone, Debug)]
pub struct User {
    /// E-mail address.
    pub email: String,
    /// Roles on the platform.
    pub roles: Vec<String>,
    /// Groups in clusters.
    pub kubernetes_groups: Vec<String>,
    /// The platform session's token.
    pub session_token: String,
    /// Where the browser is.
    pub address: String,
}

impl Default for User {
    fn default() -> Self {
        Self {
            email: "ana@example.com".to_owned(),
            roles: vec!["dev".to_owned(), "ops".to_owned()],
            kubernetes_groups: vec!["developers".to_owned(), "view".to_owned()],
            session_token: "tok-123".to_owned(),
            address: "198.51.100.7".to_owned(),
        }
    }
}

/// The fields of a request to the bridge, of which `browser` gives the browser's.
pub(super) fn fields(resource: &Resource, user: &User, browser: &[(&str, &str)]) -> Vec<(String, String)> {
    let mut fields = vec![("Host".to_owned(), resource.authority())];
    fields.extend(browser.iter().filter_map(|(name, value)| passed_on(resource, name, value)));
    let mut set = |name: &str, value: &str| fields.push((name.to_owned(), value.to_owned()));
    set("Accept-Encoding", "identity");
    set("X-Bamf-Target", &resource.origin());
    let roles = user.roles.join(",");
    match resource.kind {
        Kind::Webhook => set("X-Bamf-Resource", &resource.tunnel_hostname),
        Kind::Web => {
            set("X-Bamf-Resource", &resource.tunnel_hostname);
            set("X-Bamf-Session-Token", &user.session_token);
            set("X-Forwarded-Email", &user.email);
            set("X-Forwarded-For", &user.address);
            set("X-Forwarded-Host", &format!("{}.tunnel.example.com", resource.tunnel_hostname));
            set("X-Forwarded-Proto", "https");
            set("X-Forwarded-Roles", &roles);
            set("X-Forwarded-User", &user.email);
        }
        Kind::Kubernetes => {
            set("Authorization", &format!("Bearer {}", user.session_token));
            set("X-Forwarded-Email", &user.email);
            set("X-Forwarded-K8s-Groups", &user.kubernetes_groups.join(","));
            set("X-Forwarded-Roles", &roles);
            set("X-Forwarded-User", &user.email);
        }
    }
    fields
}

/// What a browser may say of itself.
fn passed_on(resource: &Resource, name: &str, value: &str) -> Option<(String, String)> {
    let lower = name.to_ascii_lowercase();
    let hop_by_hop = [
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "host",
        "accept-encoding",
    ];
    let claimed = ["x-forwarded-", "x-bamf-", "impersonate-"].iter().any(|prefix| lower.starts_with(prefix));
    let value = match lower.as_str() {
        _ if claimed || hop_by_hop.contains(&lower.as_str()) => return None,
        "authorization" if resource.kind != Kind::Webhook => return None,
        "origin" => format!("http://{}", resource.authority()),
        "cookie" => value
            .split(';')
            .map(str::trim)
            .filter(|cookie| !cookie.starts_with("bamf_session="))
            .collect::<Vec<_>>()
            .join("; "),
        _ => value.to_owned(),
    };
    (!value.is_empty()).then(|| (name.to_owned(), value))
}
