//! Real programs at both ends of a session, in the middle of something when the agent is restarted.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

use bamf_lab::bridge::{Bridge, BridgeOptions};
use bamf_lab::client::local::LocalPort;
use bamf_lab::client::{Client, Options};
use bamf_lab::machine::or_skip;
use bamf_lab::plane::Role;
use bamf_lab::runtime::Inside;
use bamf_lab::serve::Network;
use bamf_lab::servers::{Postgres, Sshd, has, started};
use bamf_lab::site::Site;

use super::scene::{LIMIT, journal, restart};

/// Restarts that a program lives through.
const RESTARTS: u64 = 3;

/// A site whose agent serves a real server as the resource `thing`, and a user inside the same network.
struct Desk {
    site: Site,
    bridge: Bridge,
    inside: Inside,
    network: Network,
}

impl Desk {
    /// Installs everything but the server, which needs the network, and which `serve` starts; it names type and port.
    fn with<T>(serve: impl FnOnce(&Network) -> Option<(T, &'static str, u16)>) -> Option<(Self, T)> {
        let site = Site::install("1.0.0").unwrap();
        site.plane.set_version(Some("1.0.0"));
        let network = site.machine.network();
        let (server, kind, port) = serve(&network)?;
        let options = BridgeOptions { network: network.clone(), ..BridgeOptions::default() };
        let bridge = Bridge::start(&site.plane, options).unwrap();
        site.offer(&format!("resources:\n  - {{name: thing, type: {kind}, hostname: 127.0.0.1, port: {port}}}\n"))
            .unwrap();
        site.start().unwrap();
        let inside = Inside::new(&network, 1).unwrap();
        Some((Self { site, bridge, inside, network }, server))
    }

    /// A port of the machine that leads to the server, for one connection that never comes back.
    fn port(&self, protocol: Option<&str>) -> LocalPort {
        let options =
            Options { reconnect_pauses: Vec::new(), protocol: protocol.map(str::to_owned), ..Options::robust() };
        let plane = &self.site.plane;
        let client = Client::new(&plane.url(), plane.web_ca_pem(), "token").with(options);
        self.inside.run(async move { LocalPort::open(client.connect("thing").await.unwrap()).unwrap() })
    }

    fn restart(&self) {
        let before = self.site.status()["pid"].clone();
        restart(&self.site);
        self.site.connected().unwrap();
        assert_ne!(self.site.status()["pid"], before);
    }

    /// The agent has come once for the session, in all of its processes together.
    #[track_caller]
    fn carried(&self, port: &LocalPort) {
        let session = &port.tunnel().session().unwrap().session_id;
        assert_eq!(self.bridge.session_handshakes(session, Role::Agent), 1, "{}", journal(&self.site));
        let status = self.site.status();
        assert_eq!((&status["sessions"]["adopted"], &status["sessions"]["lost"]), (&1.into(), &0.into()), "{status}");
        assert_eq!((self.site.plane.drains().len(), self.site.plane.offlines().len()), (0, 0));
    }
}

/// A program in the machine's network whose lines are read as they come.
struct Talk {
    child: Child,
    stdin: ChildStdin,
    lines: Receiver<String>,
}

impl Talk {
    fn begin(network: &Network, mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = network.within(|| command.spawn().unwrap()).unwrap();
        let (line, lines) = channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for text in stdout.lines().map_while(Result::ok) {
                // Nobody listens any more when the test has failed.
                drop(line.send(text.trim_end_matches('\r').to_owned()));
            }
        });
        Self { stdin: child.stdin.take().unwrap(), child, lines }
    }

    fn say(&mut self, text: &str) {
        self.stdin.write_all(text.as_bytes()).unwrap();
        self.stdin.flush().unwrap();
    }

    #[track_caller]
    fn hear(&mut self) -> String {
        let heard = self.lines.recv_timeout(LIMIT);
        heard.unwrap_or_else(|_| panic!("nothing comes any more: {}", self.complaints()))
    }

    fn complaints(&mut self) -> String {
        drop(self.child.kill());
        let stderr = self.child.stderr.take().map(std::io::read_to_string);
        stderr.and_then(Result::ok).unwrap_or_default()
    }

    /// Everything that it says until it ends well.
    #[track_caller]
    fn finish(self) -> Vec<String> {
        let Self { mut child, stdin, lines } = self;
        drop(stdin);
        let rest: Vec<String> = std::iter::from_fn(|| lines.recv_timeout(LIMIT).ok()).collect();
        let status = child.wait().unwrap();
        let stderr = std::io::read_to_string(child.stderr.take().unwrap()).unwrap();
        assert!(status.success(), "{status}: {stderr}");
        rest
    }
}

/// Rows that a query returns one by one, each a hundredth of a second after the other and longer than a kilobyte.
const SLOW_ROWS: u32 = 300;

#[test]
fn psql_in_a_transaction_lives_through_restarts() {
    let test = "psql_in_a_transaction_lives_through_restarts";
    if or_skip(test) || !has(test, "psql") {
        return;
    }
    let Some((desk, _server)) = Desk::with(|network| {
        let server = started(test, Postgres::start_in(network))?;
        let port = server.port();
        Some((server, "postgres", port))
    }) else {
        return;
    };
    let port = desk.port(None);
    let mut command = Command::new("psql");
    command
        .args(["-X", "-v", "ON_ERROR_STOP=1", "-At", "-h", "127.0.0.1", "-U", "lab", "-d", "postgres", "-p"])
        .arg(port.address().port().to_string());
    let mut psql = Talk::begin(&desk.network, command);
    psql.say("begin; create table t (n int); insert into t values (0); select pg_backend_pid(), txid_current();\n");
    assert_eq!([psql.hear(), psql.hear(), psql.hear()], ["BEGIN", "CREATE TABLE", "INSERT 0 1"]);
    let who = psql.hear();

    for number in 1..=RESTARTS {
        desk.restart();
        psql.say(&format!("insert into t values ({number}); select pg_backend_pid(), txid_current();\n"));
        assert_eq!([psql.hear(), psql.hear()], ["INSERT 0 1", &who], "{}", journal(&desk.site));
        desk.carried(&port);
    }

    psql.say(&format!(
        "copy (select n, repeat('x', 1000), pg_sleep(0.01) from generate_series(1, {SLOW_ROWS}) n) to stdout;\n"
    ));
    let row = |number| format!("{number}\t{}\t", "x".repeat(1000));
    for number in 1..=SLOW_ROWS {
        assert_eq!(psql.hear(), row(number), "{}", journal(&desk.site));
        if number == SLOW_ROWS / 4 {
            desk.restart();
        }
    }
    desk.carried(&port);
    psql.say("commit; select n from t order by n;\n");
    let expected: Vec<String> =
        ["COMMIT".to_owned()].into_iter().chain((0..=RESTARTS).map(|n| n.to_string())).collect();
    assert_eq!(psql.finish(), expected);
}

/// Lines of the interactive session, one every twenty milliseconds.
const LINES: usize = 400;

/// A shell with a terminal that prints line after line, then waits for a word.
fn ssh_lives_through_restarts(test: &str, protocol: Option<&str>) {
    if or_skip(test) || !has(test, "ssh") {
        return;
    }
    let Some((desk, server)) = Desk::with(|network| {
        let server = started(test, Sshd::start_in(network))?;
        let port = server.port();
        Some((server, "ssh", port))
    }) else {
        return;
    };
    let port = desk.port(protocol);
    let mut command = Command::new("ssh");
    command
        .args(["-F", "none", "-q", "-tt", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no"])
        .args(["-o", "UserKnownHostsFile=/dev/null", "-i"])
        .arg(server.key())
        .args(["-p", &port.address().port().to_string(), "127.0.0.1"])
        .arg(format!(
            "stty -echo; tty; for n in $(seq 1 {LINES}); do echo line $n; sleep 0.02; done; read word; echo got $word"
        ));
    let mut ssh = Talk::begin(&desk.network, command);
    let terminal = ssh.hear();
    assert!(terminal.starts_with("/dev/"), "{terminal}");
    for number in 1..=LINES {
        assert_eq!(ssh.hear(), format!("line {number}"), "{}", journal(&desk.site));
        if number % (LINES / 4) == 0 && number < LINES {
            desk.restart();
        }
    }
    desk.carried(&port);
    // It waits for a word now; the process that brings it is another one again.
    desk.restart();
    ssh.say("hello\n");
    assert_eq!(ssh.hear(), "got hello", "{}", journal(&desk.site));
    desk.carried(&port);
    assert_eq!(ssh.finish(), [""; 0]);
}

#[test]
fn an_interactive_ssh_session_in_the_middle_of_output_lives_through_restarts() {
    ssh_lives_through_restarts("an_interactive_ssh_session_in_the_middle_of_output_lives_through_restarts", None);
}

#[test]
fn an_interactive_ssh_session_without_frames_lives_through_restarts() {
    ssh_lives_through_restarts("an_interactive_ssh_session_without_frames_lives_through_restarts", Some("web-ssh"));
}
