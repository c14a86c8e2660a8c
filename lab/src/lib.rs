//! A control plane, a release server and real-systemd machines to try the agent in.

pub mod agent;
pub mod bench;
pub mod binaries;
pub mod bridge;
pub mod cable;
pub mod demo;
pub mod machine;
pub mod plane;
pub mod playground;
pub mod proxy;
pub mod release;
pub mod serve;
pub mod site;
