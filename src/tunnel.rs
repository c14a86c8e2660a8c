//! Tunnels: what somebody does at a target, carried between the target and a bridge (protocol chapter 7).
//!
//! ```text
//!   dial / redial ─► Tunnels ─► Session ──────────────────────────────┐
//!   (event stream)    table      target socket ◄─► stream ◄─► Link ◄──┼─► bridge ◄─► client
//!                                 lazily dialled    or raw   TLS 1.3  │
//!                                └────────────────────────────────────┘
//! ```
//!
//! A session is one task that owns both sockets and never waits for one of them alone, so that nothing one side does can
//! stop the other (protocol W8, W9). Below the session lies [`Link`]: bytes in, bytes out.

pub mod dial;
pub mod link;
pub mod record;
mod scratch;
mod session;
pub mod table;
mod target;
pub mod tls;

pub use self::dial::Credentials;
pub use self::link::Link;
pub use self::table::Tunnels;
pub use crate::platform::wire::BridgeAddress;
