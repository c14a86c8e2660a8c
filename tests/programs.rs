//! Real programs at both ends: psql and PostgreSQL, ssh and sshd, with the agent between them.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use bamf_lab::agent::{LIMIT, until, write};
use bamf_lab::client::local::LocalPort;
use bamf_lab::client::{Client, Options};
use bamf_lab::pattern::Pattern;
use bamf_lab::runtime::block_on;
use bamf_lab::scene::{Scene, Setting};
use bamf_lab::servers::{Postgres, Sshd, has, started};
use bamf_lab::targets::Tcp;

const BINARY: &str = env!("CARGO_BIN_EXE_bamf-agent");

fn scene(kind: &'static str, port: u16) -> Scene {
    // The lab's own target is not used.
    Scene::of(BINARY, Tcp::Silent, Setting { kind, port: Some(port), ..Setting::default() })
}

/// A port of this machine that leads to the resource, for one connection.
fn local_port(client: &Client) -> LocalPort {
    LocalPort::open(block_on(client.connect("thing")).unwrap()).unwrap()
}

#[track_caller]
fn succeeded(output: Output) -> Vec<u8> {
    assert!(output.status.success(), "{}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// What psql answers to a script on its standard input.
#[track_caller]
fn psql(client: &Client, script: &[u8]) -> Vec<u8> {
    let port = local_port(client);
    let mut command = Command::new("psql");
    command
        .args(["-X", "-v", "ON_ERROR_STOP=1", "-At", "-h", "127.0.0.1", "-U", "lab", "-d", "postgres", "-p"])
        .arg(port.address().port().to_string());
    fed(&mut command, script)
}

/// Runs a command with this input.
#[track_caller]
fn fed(command: &mut Command, input: &[u8]) -> Vec<u8> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let output = std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(input).unwrap());
        child.wait_with_output().unwrap()
    });
    succeeded(output)
}

#[test]
fn psql_works_in_transactions_and_copies_mebibytes_both_ways() {
    let test = "psql_works_in_transactions_and_copies_mebibytes_both_ways";
    let Some(server) = started(test, Postgres::start()).filter(|_| has(test, "psql")) else { return };
    let scene = scene("postgres", server.port());
    let client = scene.client(Options::robust());
    let script = b"begin; create table t (n int, word text); insert into t values (1, 'one'); rollback;
        begin; create table t (n int, word text); insert into t values (2, 'two'); commit; select n, word from t;";
    assert_eq!(
        psql(&client, script),
        b"BEGIN\nCREATE TABLE\nINSERT 0 1\nROLLBACK\nBEGIN\nCREATE TABLE\nINSERT 0 1\nCOMMIT\n2|two\n"
    );
    let rows: String = (0..200_000).map(|n| format!("{n}\tline number {n} of the copy\n")).collect();
    assert!(rows.len() > 4 << 20);
    let upload =
        [b"truncate t; copy t from stdin;\n", rows.as_bytes(), b"\\.\nselect count(*), sum(n) from t;"].concat();
    assert_eq!(psql(&client, &upload), b"TRUNCATE TABLE\nCOPY 200000\n200000|19999900000\n");
    let back = psql(&client, b"copy (select * from t order by n) to stdout;");
    assert!(back == rows.as_bytes(), "{} bytes came back of {}", back.len(), rows.len());
    assert!(scene.wait_active(0, LIMIT), "{}", scene.agent.log());
}

#[test]
fn an_audited_postgres_is_the_same_to_psql() {
    let test = "an_audited_postgres_is_the_same_to_psql";
    let Some(server) = started(test, Postgres::start()).filter(|_| has(test, "psql")) else { return };
    let scene = scene("postgres-audit", server.port());
    assert_eq!(psql(&scene.client(Options::robust()), b"select 6 * 7;"), b"42\n");
}

/// `ssh`, `scp` or `sftp` with what it needs to go to a local port.
fn secure(program: &str, server: &Sshd, port: &LocalPort) -> Command {
    let mut command = Command::new(program);
    command
        .args(["-F", "none", "-q", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no"])
        .args(["-o", "UserKnownHostsFile=/dev/null", "-i"])
        .arg(server.key())
        .arg("-o")
        .arg(format!("Port={}", port.address().port()));
    command
}

fn ssh_works(scene: &Scene, client: &Client, server: &Sshd) {
    let ssh = |input: &[u8], words: &[&str]| {
        let port = local_port(client);
        fed(secure("ssh", server, &port).arg("127.0.0.1").args(words), input)
    };
    assert_eq!(ssh(b"", &["echo", "hello"]), b"hello\n");
    let bytes = Pattern::default().bytes(8 << 20);
    assert!(ssh(&bytes, &["cat"]) == bytes, "8 MiB through cat are not the same");
    let zeros = ssh(b"", &["head", "-c", "8388608", "/dev/zero"]);
    assert_eq!((zeros.len(), zeros.iter().find(|byte| **byte != 0)), (8 << 20, None));
    assert!(scene.wait_active(0, LIMIT), "{}", scene.agent.log());
}

#[test]
fn ssh_runs_commands_and_pipes_mebibytes_over_frames() {
    let test = "ssh_runs_commands_and_pipes_mebibytes_over_frames";
    let Some(server) = started(test, Sshd::start()).filter(|_| has(test, "ssh")) else { return };
    let scene = scene("ssh", server.port());
    ssh_works(&scene, &scene.client(Options::robust()), &server);
}

#[test]
fn ssh_runs_commands_and_pipes_mebibytes_without_frames() {
    let test = "ssh_runs_commands_and_pipes_mebibytes_without_frames";
    let Some(server) = started(test, Sshd::start()).filter(|_| has(test, "ssh")) else { return };
    let scene = scene("ssh", server.port());
    let options = Options { protocol: Some("web-ssh".into()), ..Options::robust() };
    ssh_works(&scene, &scene.client(options), &server);
}

/// Copies a file there and back with `scp`, over SFTP or the older protocol.
fn copies_a_file(scene: &Scene, server: &Sshd, older: bool) {
    let client = scene.client(Options::robust());
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    write(path("original"), Pattern::default().bytes(5 << 20));
    let scp = |from: &str, to: &str| {
        let port = local_port(&client);
        let mut command = secure("scp", server, &port);
        succeeded(command.args(older.then_some("-O")).args([from, to]).output().unwrap());
    };
    let remote = |path: &Path| format!("127.0.0.1:{}", path.display());
    scp(&path("original").display().to_string(), &remote(&path("there")));
    scp(&remote(&path("there")), &path("back").display().to_string());
    assert!(std::fs::read(path("original")).unwrap() == std::fs::read(path("back")).unwrap());
}

#[test]
fn scp_copies_a_file_there_and_back() {
    let test = "scp_copies_a_file_there_and_back";
    let Some(server) = started(test, Sshd::start()).filter(|_| has(test, "scp")) else { return };
    let scene = scene("ssh", server.port());
    copies_a_file(&scene, &server, false);
    copies_a_file(&scene, &server, true);
}

#[test]
fn ssh_survives_cuts_of_the_bridge_connection() {
    let test = "ssh_survives_cuts_of_the_bridge_connection";
    let Some(server) = started(test, Sshd::start()).filter(|_| has(test, "ssh")) else { return };
    let setting = Setting { kind: "ssh", port: Some(server.port()), ..Setting::friendly() };
    let scene = Scene::of(BINARY, Tcp::Silent, setting);
    let port = local_port(&scene.client(Options::robust()));
    let bytes = Pattern::default().bytes(16 << 20);
    let mut command = secure("ssh", &server, &port);
    let returned = std::thread::scope(|scope| {
        let running = scope.spawn(|| fed(command.args(["127.0.0.1", "cat"]), &bytes));
        for cut in 1..=3 {
            let come = |counts: bamf_lab::client::Counts| counts.bytes_received >= cut * (3 << 20);
            assert!(until(LIMIT, || come(port.tunnel().counts())), "{}", scene.agent.log());
            scene.cable.snap();
            assert!(block_on(port.tunnel().wait_reconnects(cut, LIMIT)), "{}", scene.agent.log());
        }
        running.join().unwrap()
    });
    assert!(returned == bytes, "{} bytes came back", returned.len());
}
