//! The platform's API as the agent sees it: a few calls and one event stream (protocol chapters 3 to 6).
//!
//! [`client`] carries the calls, [`wire`] their bodies, [`failure`] what an answer means for the agent, [`sse`] and
//! [`events`] the command stream, [`version`] what the platform says about itself. Nothing here retries: how long to wait
//! and whether to go on is decided by whoever holds the loop.

pub mod client;
pub mod events;
pub mod failure;
pub mod sse;
pub mod version;
pub mod wire;

pub use client::Client;
pub use failure::{Failure, Kind};
