//! The BAMF agent: it joins once, keeps its certificate, holds an event stream, and updates itself safely.
//!
//! ARCHITECTURE.md has the drawing and the order in which to read the rooms.

pub mod backoff;
pub mod clock;
pub mod config;
pub mod durable;
pub mod exit;
pub mod secret;
pub mod service;
pub mod tasks;
pub mod update;
