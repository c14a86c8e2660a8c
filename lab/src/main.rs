//! The lab as a program: `demo` shows the whole story, `serve` is a control plane to try things on by hand.

use std::process::ExitCode;

use bamf_lab::client::{Client, local};
use bamf_lab::{bench, demo, playground, rehearsal, sbom};
use clap::{Parser, Subcommand};

/// A control plane, a release server and real-systemd machines to try bamf-agent in.
#[derive(Debug, Parser)]
#[command(name = "bamf-lab")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show the main job: join, reconnect, update, refuse, roll back
    Demo,
    /// Measure size, memory, start, sessions, web requests and updates
    Bench {
        /// Only these parts
        #[arg(value_enum)]
        parts: Vec<bench::Part>,
        /// Measure this agent instead of one that is built
        #[arg(long)]
        agent: Option<std::path::PathBuf>,
    },
    /// Copy between TLS and TCP, for comparison
    #[command(hide = true)]
    PlainCopy {
        /// Port of the far end on loopback
        bridge_port: u16,
        /// Where to
        target: std::net::SocketAddr,
        /// Directory with certificate, key and authority
        directory: std::path::PathBuf,
    },
    /// Run a control plane and a bridge on loopback until Ctrl-C, and print how to join it
    Serve {
        /// Version that the API reports
        #[arg(long, default_value = "1.0.0")]
        api_version: String,
    },
    /// Print the bill of materials of a release
    Sbom {
        /// The release's version, without a `v`
        #[arg(long)]
        version: String,
        /// When it is made, in seconds since 1970
        #[arg(long)]
        epoch: i64,
    },
    /// Update an agent on a machine to a finished release
    Rehearse {
        /// The agent that updates: the previous release's
        #[arg(long)]
        agent: std::path::PathBuf,
        /// Directory that has the release as `vX.Y.Z/`
        #[arg(long)]
        releases: std::path::PathBuf,
        /// The release's version, without a `v`
        #[arg(long)]
        version: String,
    },
    /// Be a user's end of a tunnel
    Client {
        /// What it offers to programs
        #[arg(value_enum)]
        kind: local::Kind,
        /// URL of the platform's API
        #[arg(long)]
        api: String,
        /// File with the authority of the API's certificate
        #[arg(long)]
        ca: std::path::PathBuf,
        /// Session token
        #[arg(long)]
        token: String,
        /// Name of the resource
        resource: String,
    },
}

fn main() -> ExitCode {
    let ended = match Arguments::parse().command {
        Command::Demo => demo::run(),
        Command::Bench { parts, agent } => bench::run(&parts, agent.as_deref()),
        Command::PlainCopy { bridge_port, target, directory } => bench::plain::run(bridge_port, target, &directory),
        Command::Serve { api_version } => playground::serve(&api_version),
        Command::Sbom { version, epoch } => sbom::of_workspace(std::path::Path::new("."), &version, epoch)
            .map(|text| demo::screen::line(text.trim_end())),
        Command::Rehearse { agent, releases, version } => rehearsal::run(&agent, &releases, &version),
        Command::Client { kind, api, ca, token, resource } => {
            std::fs::read_to_string(&ca).map_err(|error| format!("{}: {error}", ca.display())).and_then(|ca| {
                let listening = |address| demo::screen::line(&format!("{address}"));
                local::run(&Client::new(&api, &ca, &token), &resource, kind, listening)
            })
        }
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            demo::screen::error(&error);
            ExitCode::FAILURE
        }
    }
}
