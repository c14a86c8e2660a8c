//! The HTTP relay: bridges send web requests over connections that the agent keeps open to them (protocol chapter 9).

pub mod body;
pub mod conversation;
pub mod counters;
pub mod exchange;
pub mod head;
pub mod headers;
pub mod route;
pub mod rules;
pub mod targets;

/// The protocol's vectors.
#[cfg(test)]
fn vectors() -> serde_json::Value {
    serde_json::from_str(include_str!("../tests/vectors.json")).unwrap()
}
