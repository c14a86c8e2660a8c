//! Web requests through the real agent: from the platform's proxy over a bridge to a target, with everything that breaks.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "relay/bodies.rs"]
mod bodies;
#[path = "relay/cluster.rs"]
mod cluster;
#[path = "relay/hostile.rs"]
mod hostile;
#[path = "relay/outside.rs"]
mod outside;
#[path = "relay/pools.rs"]
mod pools;
#[path = "relay/requests.rs"]
mod requests;
#[path = "relay/restarts.rs"]
mod restarts;
#[path = "relay/scene.rs"]
mod scene;
#[path = "relay/streams.rs"]
mod streams;
