//! The BAMF agent: it joins once, keeps its certificate, holds an event stream, and updates itself safely.
//!
//! ARCHITECTURE.md has the drawing and the order in which to read the rooms.

pub mod agent;
pub mod backoff;
pub mod cli;
pub mod clock;
pub mod config;
pub mod control;
pub mod durable;
pub mod exit;
pub mod handoff;
pub mod heap;
pub mod http;
pub mod identity;
pub mod kubernetes;
pub mod listen;
pub mod platform;
pub mod relay;
pub mod secret;
pub mod service;
pub mod stream;
pub mod tasks;
pub mod telemetry;
pub mod tunnel;
pub mod uninstall;
pub mod update;
