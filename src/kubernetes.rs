//! The cluster around the pod that the agent may run in (protocol chapter 13).
//!
//! ```text
//!   mount of the pod ─► account (token, authority, namespace) ─┬─► relay: requests on behalf of users
//!                                                              └─► api (get, create, replace) ─► object: one Secret
//! ```
//!
//! The client of the cluster's API is our own: three HTTP verbs on one object. The library for it would add 46 crates and
//! 4 MiB, a second set of choices about TLS and retries, and a major version every few months, to the one thing that must
//! not fail in a pod: finding the identity again. The cargo feature `kubernetes` decides whether it is built in.

pub mod account;
#[cfg(feature = "kubernetes")]
pub mod api;
pub mod failure;
#[cfg(feature = "kubernetes")]
pub mod object;

use std::fmt;

pub use self::account::{MOUNT, ServiceAccount};
pub use self::failure::Failure;
use crate::config::KubernetesConfig;

/// Where the Secret lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl Place {
    /// `BAMF_NAMESPACE`, else `POD_NAMESPACE`, else the mounted namespace, else `default`.
    #[must_use]
    pub fn of(config: &KubernetesConfig, account: &ServiceAccount) -> Self {
        let namespace = config.namespace.clone().or_else(|| account.namespace());
        Self { namespace: namespace.unwrap_or_else(|| "default".to_owned()), name: config.cert_secret_name.clone() }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_namespace_is_the_configured_one_else_the_mounted_one_without_its_line_end_else_default() {
        let mount = tempfile::tempdir().unwrap();
        let account = ServiceAccount::new(mount.path());
        let mut config =
            KubernetesConfig { cert_secret_name: "certs".into(), namespace: None, api_host: None, api_port: 443 };
        assert_eq!(Place::of(&config, &account).to_string(), "default/certs");
        crate::durable::write(&mount.path().join("namespace"), b"bamf\n", 0o600).unwrap();
        assert_eq!(Place::of(&config, &account).to_string(), "bamf/certs");
        config.namespace = Some("other".into());
        assert_eq!(Place::of(&config, &account).to_string(), "other/certs");
    }
}
