//! A control plane, a release server and real-systemd machines to try the agent in.

pub mod agent;
pub mod bench;
pub mod binaries;
pub mod bridge;
pub mod cable;
pub mod client;
pub mod crowd;
pub mod demo;
pub mod kubernetes;
pub mod machine;
pub mod pattern;
pub mod plane;
pub mod playground;
pub mod proxy;
pub mod rehearsal;
pub mod release;
pub mod runtime;
pub mod sbom;
pub mod scene;
pub mod serve;
pub mod servers;
pub mod site;
pub mod targets;
pub mod visitor;
