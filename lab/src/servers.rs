//! Real servers to reach through the agent: PostgreSQL and sshd, each in a directory of its own on a free port, of this host or of a machine.

use std::ffi::OsStr;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::machine::report_skipped;
use crate::serve::Network;

/// How long a server may take to answer after its start.
const START_LIMIT: Duration = Duration::from_secs(30);
/// Where Debian puts the server programs of each version of PostgreSQL.
const POSTGRES_VERSIONS: &str = "/usr/lib/postgresql";

/// Why a server is not there.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The machine lacks the program.
    #[error("{0} is not installed")]
    Missing(&'static str),
    /// A step failed.
    #[error("{step}: {why}")]
    Failed {
        /// What was tried.
        step: &'static str,
        /// What came of it.
        why: String,
    },
}

/// A server, or a note by the test's name that it is not there.
///
/// # Panics
/// It is there and does not start.
pub fn started<T>(test: &str, server: Result<T, Error>) -> Option<T> {
    match server {
        Err(Error::Missing(what)) => {
            report_skipped(test, &format!("{what} is not installed"));
            None
        }
        started => Some(started.unwrap_or_else(|error| panic!("{error}"))),
    }
}

/// Whether a program is installed; a note by the test's name if it is not.
#[must_use]
pub fn has(test: &str, program: &str) -> bool {
    let found = Command::new(program).arg("-V").output().is_ok();
    if !found {
        report_skipped(test, &format!("{program} is not installed"));
    }
    found
}

impl Error {
    fn failed(step: &'static str, why: impl std::fmt::Display) -> Self {
        Self::Failed { step, why: why.to_string() }
    }
}

fn free_port(network: &Network) -> io::Result<u16> {
    Ok(network.bind(0)?.local_addr()?.port())
}

fn wait_for_port(network: &Network, port: u16, child: &mut Child) -> Result<(), Error> {
    let begun = Instant::now();
    while begun.elapsed() < START_LIMIT {
        let connected = network.within(|| TcpStream::connect((Ipv4Addr::LOCALHOST, port)));
        if connected.is_ok_and(|connected| connected.is_ok()) {
            return Ok(());
        }
        if let Ok(Some(status)) = child.try_wait() {
            return Err(Error::failed("start", status));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Err(Error::failed("start", "no answer within 30 s"))
}

fn run(step: &'static str, command: &mut Command) -> Result<(), Error> {
    let output = command.stdin(Stdio::null()).output().map_err(|error| Error::failed(step, error))?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::failed(step, String::from_utf8_lossy(&output.stderr)))
}

/// A server program; killed when dropped.
#[derive(Debug)]
struct Server {
    child: Child,
    port: u16,
    directory: TempDir,
}

impl Server {
    /// Starts it and waits until it listens.
    fn launch(network: &Network, command: &mut Command, port: u16, directory: TempDir) -> Result<Self, Error> {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().map_err(|error| Error::failed("start", error))?;
        let mut server = Self { child, port, directory };
        wait_for_port(network, port, &mut server.child)?;
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A PostgreSQL server with a superuser `lab` who needs no password.
#[derive(Debug)]
pub struct Postgres(Server);

impl Postgres {
    /// [`Self::start_in`] on this host.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn start() -> Result<Self, Error> {
        Self::start_in(&Network::Host)
    }

    /// Makes a database cluster and starts it in this network.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn start_in(network: &Network) -> Result<Self, Error> {
        let programs = newest_postgres().ok_or(Error::Missing("postgresql"))?;
        let directory = tempfile::tempdir().map_err(|error| Error::failed("make a directory", error))?;
        let data = directory.path().join("data");
        if nix::unistd::geteuid().is_root() {
            // It refuses to run as root.
            run("chown", Command::new("chown").arg("postgres").arg(directory.path()))?;
        }
        let initdb = programs.join("initdb");
        run(
            "initdb",
            as_postgres(&Network::Host, &initdb).arg("-D").arg(&data).args(["-U", "lab", "-A", "trust", "--no-sync"]),
        )?;
        let port = free_port(network).map_err(|error| Error::failed("find a port", error))?;
        let settings = ["fsync=off", "listen_addresses=127.0.0.1", "unix_socket_directories="];
        let mut command = as_postgres(network, &programs.join("postgres"));
        command.arg("-D").arg(&data).args(["-p", &port.to_string()]);
        for setting in settings {
            command.args(["-c", setting]);
        }
        Server::launch(network, &mut command, port, directory).map(Self)
    }

    /// Where it listens, on 127.0.0.1.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.0.port
    }
}

fn newest_postgres() -> Option<PathBuf> {
    let versions = std::fs::read_dir(POSTGRES_VERSIONS).ok()?.flatten();
    let number = |path: &Path| path.file_name()?.to_str()?.parse::<u32>().ok();
    let newest = versions.map(|entry| entry.path()).max_by_key(|path| number(path))?;
    Some(newest.join("bin")).filter(|programs| programs.join("initdb").exists())
}

/// A command in a network. The caller's own thread starts it: a program that is to die with its parent dies with that thread.
fn in_network(network: &Network, program: impl AsRef<OsStr>) -> Command {
    let Network::Namespace(path) = network else { return Command::new(program) };
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", path.display())).arg("--").arg(program);
    command
}

/// A command as the user `postgres` where we are root, else as ourselves.
fn as_postgres(network: &Network, program: &Path) -> Command {
    let mut command = if nix::unistd::geteuid().is_root() {
        let mut command = in_network(network, "setpriv");
        command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "--pdeathsig=KILL", "--"]).arg(program);
        command
    } else {
        in_network(network, program)
    };
    command.current_dir("/");
    command
}

/// An sshd that lets the caller in with one key.
#[derive(Debug)]
pub struct Sshd(Server);

impl Sshd {
    /// [`Self::start_in`] on this host.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn start() -> Result<Self, Error> {
        Self::start_in(&Network::Host)
    }

    /// Makes keys and starts it in this network.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn start_in(network: &Network) -> Result<Self, Error> {
        let program = Path::new("/usr/sbin/sshd");
        if !program.exists() {
            return Err(Error::Missing("openssh-server"));
        }
        let directory = tempfile::tempdir().map_err(|error| Error::failed("make a directory", error))?;
        for key in ["host", "user"] {
            let path = directory.path().join(key);
            run("ssh-keygen", Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(path))?;
        }
        let port = free_port(network).map_err(|error| Error::failed("find a port", error))?;
        let path = |name: &str| directory.path().join(name).display().to_string();
        let config = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {}\nAuthorizedKeysFile {}\nPidFile none\nUsePAM no\n\
             StrictModes no\nPermitRootLogin yes\nPasswordAuthentication no\nSubsystem sftp internal-sftp\n",
            path("host"),
            path("user.pub"),
        );
        std::fs::write(path("config"), config).map_err(|error| Error::failed("write the configuration", error))?;
        // sshd insists on it, and packages make it at boot only.
        drop(std::fs::create_dir_all("/run/sshd"));
        let mut command = in_network(network, program);
        command.args(["-D", "-f", &path("config")]);
        Server::launch(network, &mut command, port, directory).map(Self)
    }

    /// Where it listens, on 127.0.0.1.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.0.port
    }

    /// The private key that opens it.
    #[must_use]
    pub fn key(&self) -> PathBuf {
        self.0.directory.path().join("user")
    }

    /// The address, for clients that go there without a tunnel.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.0.port))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn postgres_answers_psql() {
        let server = match Postgres::start() {
            Err(Error::Missing(what)) => return crate::machine::report_skipped("postgres_answers_psql", what),
            started => started.unwrap(),
        };
        let port = server.port().to_string();
        let arguments = ["-h", "127.0.0.1", "-p", &port, "-U", "lab", "-d", "postgres", "-Atc", "select 6 * 7"];
        let output = Command::new("psql").args(arguments).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "42", "{output:?}");
    }

    #[test]
    fn sshd_lets_its_key_in() {
        let server = match Sshd::start() {
            Err(Error::Missing(what)) => return crate::machine::report_skipped("sshd_lets_its_key_in", what),
            started => started.unwrap(),
        };
        let port = server.port().to_string();
        let output = Command::new("ssh")
            .args(["-F", "none", "-p", &port, "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"])
            .args(["-o", "BatchMode=yes", "-i"])
            .arg(server.key())
            .args(["127.0.0.1", "echo", "hello"])
            .output()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "hello", "{output:?}");
    }
}
