//! Sessions: speed and processor time beside a plain copy, round trips, and memory with a thousand of them.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::far::FarEnd;
use super::{LIMIT, mebibytes, process};
use crate::agent::{Agent, Home, NAME, identity};
use crate::client::{AckPolicy, Duplex, Link, Options, Tunnel, Window};
use crate::demo::screen;
use crate::pattern::Pattern;
use crate::plane::{self, ControlPlane};
use crate::runtime::{block_on, handle};
use crate::serve::Network;
use crate::targets::{Target, Tcp, Then};

const GIB: u64 = 1 << 30;
/// Repetitions of each transfer; medians are shown.
const RUNS: usize = 3;
const CHUNK: usize = 256 * 1024;
/// Round trips that are timed.
const ROUND_TRIPS: usize = 20_000;
/// How long the agent is left alone before its memory is looked at.
const SETTLED: Duration = Duration::from_secs(3);
/// Sessions whose memory is measured.
const MANY: usize = 1_000;

/// Which way the bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// From the client to the target.
    Up,
    /// From the target to the client.
    Down,
}

impl Way {
    const fn word(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Down => "down",
        }
    }
}

/// What one transfer took.
#[derive(Clone, Copy, Debug)]
struct Run {
    seconds: f64,
    cpu: f64,
}

struct Stage {
    plane: ControlPlane,
    far: FarEnd,
    source: Target,
    whole: Target,
    sink: Target,
    echo: Target,
    agent: Agent,
    home: Home,
    serial: std::cell::Cell<usize>,
}

/// Measures and prints.
///
/// # Errors
/// The agent does not connect, or bytes are lost.
pub(super) fn run(binary: &Path) -> Result<(), String> {
    let stage = Stage::set_up(binary).map_err(|error| error.to_string())?;
    stage.memory()?;
    for way in [Way::Down, Way::Up] {
        stage.compare(way, 1)?;
        stage.compare(way, 16)?;
    }
    stage.round_trips()
}

impl Stage {
    fn set_up(binary: &Path) -> io::Result<Self> {
        let plane = ControlPlane::start(plane::Options::default())?;
        let far = FarEnd::start(plane.ca())?;
        let target = |behaviour| Target::tcp(&Network::Host, behaviour);
        let (source, whole) =
            (target(Tcp::EagerSource(GIB / 16, Then::Close))?, target(Tcp::EagerSource(GIB, Then::Close))?);
        let (sink, echo) = (target(Tcp::Sink)?, target(Tcp::PingPong)?);
        let resource = |name: &str, target: &Target| {
            format!(
                "  - {{name: {name}, type: tcp, hostname: 127.0.0.1, port: {}, dial: eager}}\n",
                target.address().port()
            )
        };
        let resources = [("source", &source), ("whole", &whole), ("sink", &sink), ("echo", &echo)]
            .map(|(name, target)| resource(name, target));
        let home = Home::of(binary, &plane, &format!("resources:\n{}", resources.concat()));
        let identity = identity(&plane, NAME);
        plane.register(&identity);
        home.store(&identity);
        let agent = home.connect(&plane);
        Ok(Self { plane, far, source, whole, sink, echo, agent, home, serial: std::cell::Cell::new(0) })
    }

    fn session_id(&self) -> String {
        self.serial.set(self.serial.get() + 1);
        format!("{:06}-session-of-the-bench", self.serial.get())
    }

    /// A framed session, whose far end acknowledges every 50 ms as the platform's client does.
    fn tunnel(&self, resource: &str) -> Result<Tunnel, String> {
        let stream = self.far.open(&self.plane, &self.session_id(), resource, "tcp")?;
        let options = Options {
            acks: AckPolicy::EveryMs(50),
            window: Window::Blocking(64 << 20),
            receive_buffer: 16 << 20,
            ..Options::robust()
        };
        let _runtime = handle().enter();
        Ok(Tunnel::framed(Box::new(stream), None, options))
    }

    fn target(&self, way: Way, sessions: usize) -> &Target {
        match way {
            Way::Up => &self.sink,
            Way::Down if sessions == 1 => &self.whole,
            Way::Down => &self.source,
        }
    }

    fn compare(&self, way: Way, sessions: usize) -> Result<(), String> {
        let (mut ours, mut plain) = (Vec::new(), Vec::new());
        for _ in 0..RUNS {
            plain.push(self.plain(way, sessions)?);
            ours.push(self.ours(way, sessions)?);
        }
        let median = |runs: &[Run], of: fn(&Run) -> f64| super::median(runs.iter().map(of).collect());
        let (speed, plain_speed) =
            (1024.0 / median(&ours, |run| run.seconds), 1024.0 / median(&plain, |run| run.seconds));
        let (cpu, plain_cpu) = (median(&ours, |run| run.cpu), median(&plain, |run| run.cpu));
        let what = format!("1 GiB {} through {sessions} sessions", way.word());
        screen::line(&format!(
            "{what:<36} agent {speed:>5.0} MiB/s {cpu:.2} CPU-s   plain copy {plain_speed:>5.0} MiB/s {plain_cpu:.2} CPU-s   \
             speed x{:.2}  CPU x{:.2}",
            speed / plain_speed,
            cpu / plain_cpu
        ));
        Ok(())
    }

    fn ours(&self, way: Way, sessions: usize) -> Result<Run, String> {
        let resource = match way {
            Way::Up => "sink",
            Way::Down if sessions == 1 => "whole",
            Way::Down => "source",
        };
        let before = process::cpu(self.agent.pid());
        let sunk = self.sink.seen().received;
        let began = Instant::now();
        let ends = (0..sessions).map(|_| self.tunnel(resource).map(End::Tunnel)).collect::<Result<Vec<_>, _>>()?;
        transfer(way, ends)?;
        self.wait_for_sink(way, sunk)?;
        let run = Run {
            seconds: began.elapsed().as_secs_f64(),
            cpu: (process::cpu(self.agent.pid()) - before).as_secs_f64(),
        };
        self.all_closed()?;
        Ok(run)
    }

    fn plain(&self, way: Way, sessions: usize) -> Result<Run, String> {
        let sunk = self.sink.seen().received;
        let began = Instant::now();
        let mut ends = Vec::new();
        let mut copies = Vec::new();
        for _ in 0..sessions {
            copies.push(PlainCopy::start(&self.far, self.plane.ca_pem(), self.target(way, sessions).address())?);
            ends.push(End::Plain(Box::new(self.far.next()?)));
        }
        transfer(way, ends)?;
        self.wait_for_sink(way, sunk)?;
        let seconds = began.elapsed().as_secs_f64();
        let cpu = copies.iter().map(|copy| process::cpu(copy.0.id()).as_secs_f64()).sum();
        Ok(Run { seconds, cpu })
    }

    fn wait_for_sink(&self, way: Way, before: u64) -> Result<(), String> {
        let arrived = way == Way::Down || self.sink.wait_for(LIMIT, |seen| seen.received >= before + GIB);
        let complaints = self.sink.seen().complaints;
        if arrived && complaints.is_empty() {
            Ok(())
        } else {
            Err(format!("the target got something else: {complaints:?}"))
        }
    }

    fn all_closed(&self) -> Result<(), String> {
        let closed = crate::agent::until(LIMIT, || self.home.status()["sessions"]["active"] == 0);
        if closed { Ok(()) } else { Err(format!("sessions stay open:\n{}", self.agent.log())) }
    }

    /// 64 bytes there and back, beside the same without anything in between.
    fn round_trips(&self) -> Result<(), String> {
        let tunnel = self.tunnel("echo")?;
        let before = process::cpu(self.agent.pid());
        let mut times = block_on(async {
            let mut times = Vec::with_capacity(ROUND_TRIPS);
            let mut buffer = [7; 64];
            for _ in 0..ROUND_TRIPS {
                let began = Instant::now();
                tunnel.write(&buffer).await?;
                tunnel.read_exact(&mut buffer).await?;
                times.push(began.elapsed());
            }
            Ok::<_, io::Error>(times)
        })
        .map_err(|error| error.to_string())?;
        let cpu = (process::cpu(self.agent.pid()) - before).as_secs_f64() * 100_000.0 / ROUND_TRIPS as f64;
        block_on(tunnel.close());
        let copy = PlainCopy::start(&self.far, self.plane.ca_pem(), self.echo.address())?;
        let mut plain = ping(Box::new(self.far.next()?))?;
        drop(copy);
        let direct =
            block_on(tokio::net::TcpStream::connect(self.echo.address())).map_err(|error| error.to_string())?;
        direct.set_nodelay(true).map_err(|error| error.to_string())?;
        let mut direct = ping(Box::new(direct))?;
        let line = |what: &str, times: &mut Vec<Duration>, rest: &str| {
            times.sort_unstable();
            let at = |part: usize| times[times.len() * part / 100].as_secs_f64() * 1e6;
            screen::line(&format!(
                "64 bytes there and back, {what:<12} p50 {:>4.0} us  p99 {:>4.0} us{rest}",
                at(50),
                at(99)
            ));
        };
        line("agent", &mut times, &format!("  {cpu:.1} CPU-s per 100,000"));
        line("plain copy", &mut plain, "");
        line("direct", &mut direct, "");
        self.all_closed()
    }

    /// Resident memory for each of a thousand sessions: idle, after all have talked, and when they are closed.
    fn memory(&self) -> Result<(), String> {
        let resident = || process::memory(self.agent.pid(), "Rss:");
        // What a first session makes once and for all does not count for the thousand.
        block_on(self.tunnel("echo")?.close());
        self.all_closed()?;
        let (before, descriptors) = (resident()?, process::descriptors(self.agent.pid()));
        let tunnels = (0..MANY).map(|_| self.tunnel("echo")).collect::<Result<Vec<_>, _>>()?;
        std::thread::sleep(SETTLED);
        let idle = resident()?;
        block_on(async {
            for tunnel in &tunnels {
                tunnel.write(&[1; 64 * 1024]).await?;
            }
            let mut buffer = vec![0; 64 * 1024];
            for tunnel in &tunnels {
                tunnel.read_exact(&mut buffer).await?;
            }
            Ok::<_, io::Error>(())
        })
        .map_err(|error| error.to_string())?;
        std::thread::sleep(SETTLED);
        let busy = resident()?;
        block_on(async {
            for tunnel in &tunnels {
                tunnel.close().await;
            }
        });
        self.all_closed()?;
        std::thread::sleep(SETTLED);
        let each = |now: u64| now.saturating_sub(before) as f64 / 1024.0 / MANY as f64;
        screen::line(&format!(
            "memory of {MANY} sessions: idle {:.1} KiB each, after 64 KiB each way {:.1} KiB each; \
             before {:.1} MiB, closed {:.1} MiB; descriptors {descriptors} -> {}",
            each(idle),
            each(busy),
            mebibytes(before),
            mebibytes(resident()?),
            process::descriptors(self.agent.pid())
        ));
        Ok(())
    }
}

fn ping(mut stream: Link) -> Result<Vec<Duration>, String> {
    block_on(async move {
        let mut times = Vec::with_capacity(ROUND_TRIPS);
        let mut buffer = [7; 64];
        for _ in 0..ROUND_TRIPS {
            let began = Instant::now();
            stream.write_all(&buffer).await?;
            stream.flush().await?;
            stream.read_exact(&mut buffer).await?;
            times.push(began.elapsed());
        }
        Ok::<_, io::Error>(times)
    })
    .map_err(|error| error.to_string())
}

/// A far end, of either kind.
enum End {
    Tunnel(Tunnel),
    Plain(Box<dyn Duplex>),
}

/// Moves a GiB over all ends together, checking every byte that comes.
fn transfer(way: Way, ends: Vec<End>) -> Result<(), String> {
    let share = GIB / ends.len() as u64;
    block_on(async move {
        let tasks: Vec<_> = ends.into_iter().map(|end| tokio::spawn(move_one(way, end, share))).collect();
        for task in tasks {
            task.await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
        }
        Ok(())
    })
}

async fn move_one(way: Way, mut end: End, share: u64) -> io::Result<()> {
    let mut pattern = Pattern::default();
    let mut buffer = vec![0; CHUNK];
    while pattern.position() < share {
        match way {
            Way::Up => {
                pattern.fill(&mut buffer);
                match &mut end {
                    End::Tunnel(tunnel) => tunnel.write(&buffer).await?,
                    End::Plain(stream) => stream.write_all(&buffer).await?,
                }
            }
            Way::Down => {
                let count = match &mut end {
                    End::Tunnel(tunnel) => tunnel.read(&mut buffer).await?,
                    End::Plain(stream) => stream.read(&mut buffer).await?,
                };
                if count == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                pattern.check(&buffer[..count]).map_err(io::Error::other)?;
            }
        }
    }
    match end {
        End::Tunnel(tunnel) => tunnel.close().await,
        End::Plain(mut stream) => {
            stream.flush().await?;
            drop(stream.shutdown().await);
        }
    }
    Ok(())
}

/// The program of `plain`; killed when dropped.
struct PlainCopy(Child, #[expect(dead_code, reason = "held, not read")] Arc<tempfile::TempDir>);

impl PlainCopy {
    fn start(far: &FarEnd, ca_pem: String, target: SocketAddr) -> Result<Self, String> {
        let directory = tempfile::tempdir().map_err(|error| error.to_string())?;
        let issued = far.certificate("plain", "plain");
        for (name, text) in
            [("cert.pem", issued.certificate_pem), ("key.pem", issued.private_key_pem), ("ca.pem", ca_pem)]
        {
            std::fs::write(directory.path().join(name), text).map_err(|error| error.to_string())?;
        }
        let program = std::env::current_exe().map_err(|error| error.to_string())?;
        let child = Command::new(program)
            .args(["plain-copy", &far.port().to_string(), &target.to_string()])
            .arg(directory.path())
            .stdin(Stdio::null())
            .spawn()
            .map_err(|error| error.to_string())?;
        Ok(Self(child, Arc::new(directory)))
    }
}

impl Drop for PlainCopy {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}
