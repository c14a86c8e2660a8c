//! The identity in a Secret: pods that share one, lose one, race for one, and may not have one.
//!
//! The agent is the real one, in a mount namespace where the service account lies as Kubernetes mounts it, so that nothing in
//! it needs to know of tests. That takes root.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "kubernetes/joining.rs"]
mod joining;
#[path = "kubernetes/pods.rs"]
mod pods;
#[path = "kubernetes/renewing.rs"]
mod renewing;
#[path = "kubernetes/scene.rs"]
mod scene;
#[path = "kubernetes/trouble.rs"]
mod trouble;
