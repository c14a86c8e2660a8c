//! Tells the program which compiler and which commit it was built from. The version is not set here: it is read in the
//! thin binary alone, so that building another version recompiles one file.

#![expect(clippy::disallowed_methods, reason = "a build script is configured by its environment")]

use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=BAMF_COMMIT");
    // Grows with every commit and checkout; absent outside a plain checkout.
    if std::path::Path::new(".git/logs/HEAD").exists() {
        println!("cargo::rerun-if-changed=.git/logs/HEAD");
    }
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".into());
    let rustc = first_line(&rustc, &["--version"]);
    let rustc = rustc.as_deref().and_then(|line| line.split(' ').nth(1)).unwrap_or("unknown").to_owned();
    let commit = std::env::var("BAMF_COMMIT").ok().or_else(|| first_line("git", &["rev-parse", "--short=12", "HEAD"]));
    println!("cargo::rustc-env=BAMF_BUILD_RUSTC={rustc}");
    println!("cargo::rustc-env=BAMF_BUILD_COMMIT={}", commit.as_deref().unwrap_or("unknown"));
}

fn first_line(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok().filter(|output| output.status.success())?;
    String::from_utf8(output.stdout).ok()?.lines().next().map(str::to_owned)
}
