//! Decides about each request, with the configured resources and the pod's mounted credentials at hand.

use std::sync::Arc;

use super::body::Framing;
use super::conversation::{Prepared, Refusal, Rules};
use super::head::Request;
use super::headers;
use super::route::{Router, Target};
use crate::kubernetes::ServiceAccount;

/// The rules of this agent.
#[derive(Debug)]
pub struct RuleBook {
    router: Router,
    cluster: Arc<ServiceAccount>,
}

impl RuleBook {
    /// Whether a resource has this target.
    #[must_use]
    pub fn reaches(&self, target: &Target) -> bool {
        self.router.reaches(target)
    }

    /// Rules that lead to the resources that `router` knows.
    #[must_use]
    pub const fn new(router: Router, cluster: Arc<ServiceAccount>) -> Self {
        Self { router, cluster }
    }
}

impl Rules for RuleBook {
    fn prepare(&self, head: &Request<'_>, framing: Framing) -> Result<Prepared, Refusal> {
        let Some(address) = headers::address(head) else {
            return Err(Refusal::new(502, "missing X-Bamf-Target header"));
        };
        let kubernetes = headers::is_kubernetes(head);
        let impersonation = if kubernetes {
            let missing = |_| Refusal::new(403, "missing X-Forwarded-Email for K8s request");
            Some(headers::impersonation(head).map_err(missing)?)
        } else {
            None
        };
        // Not 502, which the proxy would repeat: it will not be configured a moment later either.
        let unknown = |_| Refusal::new(403, "no resource with this target is configured at the agent");
        let route = self.router.route(address.origin, address.resource, kubernetes).map_err(unknown)?;
        let upgrade = headers::is_upgrade(head);
        let token = match impersonation {
            Some(_) => {
                let unreadable = |error| {
                    tracing::warn!(%error, "the service account's token cannot be read");
                    Refusal::new(502, "the agent's service account token cannot be read")
                };
                Some(self.cluster.token().map_err(unreadable)?)
            }
            None => None,
        };
        let cluster = impersonation.as_ref().zip(token.as_ref());
        Ok(Prepared {
            head: headers::to_target(head, &route, framing, upgrade, cluster),
            target: route.target,
            upgrade,
        })
    }
}
