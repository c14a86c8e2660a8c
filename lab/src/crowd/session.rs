//! Members with a session: what they send is the pattern, and what comes back is compared with it byte by byte.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use fastrand::Rng;
use tokio::time::{Instant, timeout};

use super::Common;
use super::meter::{Habit, Meter};
use super::surroundings::{GREETING, KINDS, Kind, Surroundings};
use crate::client::{Client, Tunnel};
use crate::pattern::Pattern;

/// No progress for so long is a fault.
const PATIENCE: Duration = Duration::from_secs(15);
/// Between two turns of somebody who talks, in milliseconds.
const TALK: std::ops::Range<u64> = 150..400;
/// Between two turns of somebody who idles, in milliseconds.
const IDLE: std::ops::Range<u64> = 1500..4000;
/// What most messages are at most long, and what one in ten is.
const MESSAGE: (usize, usize) = (2 << 10, 32 << 10);
/// The bridge reads eight bytes of an audited database's client before it forwards anything.
const SHORTEST: usize = 8;
/// What a download asks for at a time; whoever leaves waits for the end of one.
const PORTION: usize = 256 << 10;
/// How much an upload sends at a time, and how often: 96 KiB a second.
const UPLOAD: (usize, Duration) = (5900, Duration::from_millis(60));
/// What a slow reader asks for at a time, more than is under way anywhere.
const HEAP: usize = 1 << 20;
/// How much of it a slow reader takes at a time, and how often: 40 KiB a second.
const SIP: (usize, Duration) = (8 << 10, Duration::from_millis(200));
/// What a client holds for a user that does not read.
const ROOMY: usize = 1 << 20;
const NARROW: usize = 16 << 10;
/// How long the end of a closed session may take.
const END: Duration = Duration::from_secs(15);

/// Somebody with a session.
pub(super) struct User {
    habit: Habit,
    kind: Kind,
    target: &'static str,
    client: Client,
    random: Rng,
}

/// What a member sees on its session.
struct Desk {
    tunnel: Tunnel,
    meter: Arc<Meter>,
    common: Arc<Common>,
    random: Rng,
    up: Pattern,
    down: Pattern,
    buffer: Vec<u8>,
}

impl User {
    /// The `number`th of those who spend their time this way; kinds of sessions come in turn.
    pub(super) fn new(surroundings: &Surroundings, habit: Habit, number: usize) -> Self {
        let kind = KINDS[number % KINDS.len()];
        let target = match habit {
            Habit::Downloads => "steady",
            Habit::ReadsSlowly => "gush",
            Habit::Uploads => "receipts",
            Habit::Talks | Habit::Idles | Habit::IsSilent => {
                if kind.is_eager() {
                    "greeter"
                } else {
                    "echo"
                }
            }
        };
        let room = if habit == Habit::ReadsSlowly { NARROW } else { ROOMY };
        let client = surroundings.client(kind, room);
        Self { habit, kind, target, client, random: Rng::with_seed(number as u64 ^ ((habit as u64) << 32)) }
    }

    /// The resource, and how its session is carried.
    pub(super) fn thing(&self) -> String {
        let carried = self.kind.protocol.map(|protocol| format!(" as {protocol}")).unwrap_or_default();
        format!("{}{carried}", self.resource())
    }

    fn resource(&self) -> String {
        format!("{}-{}", self.target, self.kind.resource)
    }

    /// Comes, works until it is time to leave, and goes.
    pub(super) async fn come(self, meter: Arc<Meter>, common: Arc<Common>) {
        let desk = {
            let _admitted = common.door.acquire().await;
            self.sit_down(&meter, &common).await
        };
        let worked = match desk {
            Ok(mut desk) => self.stay(&mut desk).await,
            Err(why) => Err(why),
        };
        if let Err(why) = worked {
            meter.fault(why);
        }
    }

    /// Works to the end, which is this side's: whoever has nothing to say notices another one as well.
    async fn stay(&self, desk: &mut Desk) -> Result<(), String> {
        let tunnel = desk.tunnel.clone();
        tokio::select! {
            biased;
            worked = self.work(desk) => worked?,
            () = tunnel.wait_over() => return Err(format!("the session has ended: {:?}", tunnel.status())),
        }
        desk.close().await
    }

    async fn sit_down(&self, meter: &Arc<Meter>, common: &Arc<Common>) -> Result<Desk, String> {
        let tunnel = self.client.connect(&self.resource()).await;
        let tunnel = tunnel.map_err(|error| format!("no session: {error}"))?;
        if let Some(session) = tunnel.session() {
            let mut sessions = common.sessions.lock().unwrap_or_else(PoisonError::into_inner);
            sessions.push(session.session_id.clone());
        }
        let mut desk = Desk {
            tunnel,
            meter: Arc::clone(meter),
            common: Arc::clone(common),
            random: self.random.clone(),
            up: Pattern::default(),
            down: Pattern::default(),
            buffer: vec![0; 32 << 10],
        };
        if self.kind.is_eager() {
            common.dialled(self.target);
        }
        if self.target == "greeter" {
            desk.greeting().await?;
        }
        match self.habit {
            // The target is not there yet, and that is the point.
            Habit::IsSilent => {}
            Habit::Talks | Habit::Idles => {
                self.speaks(&desk);
                desk.round_trip().await?;
            }
            Habit::Downloads | Habit::Uploads | Habit::ReadsSlowly => self.speaks(&desk),
        }
        common.arrived();
        Ok(desk)
    }

    /// To be called before the first byte of the client.
    fn speaks(&self, desk: &Desk) {
        if !self.kind.is_eager() {
            desk.common.dialled(self.target);
        }
    }

    async fn work(&self, desk: &mut Desk) -> Result<(), String> {
        match self.habit {
            Habit::Talks => desk.talk(TALK).await?,
            Habit::Idles => desk.talk(IDLE).await?,
            Habit::Downloads => desk.download().await?,
            Habit::ReadsSlowly => desk.sip().await?,
            Habit::Uploads => desk.upload().await?,
            Habit::IsSilent => {
                let common = Arc::clone(&desk.common);
                tokio::select! {
                    permit = common.awake.acquire() => permit.map_err(|_| "nobody can wake it".to_owned())?.forget(),
                    () = common.time_to_leave() => {}
                }
                self.speaks(desk);
                desk.round_trip().await?;
                desk.talk(IDLE).await?;
            }
        }
        Ok(())
    }
}

impl Desk {
    async fn talk(&mut self, pauses: std::ops::Range<u64>) -> Result<(), String> {
        while !self.common.leaves() {
            let pause = Duration::from_millis(self.random.u64(pauses.clone()));
            self.common.pause(pause).await;
            self.round_trip().await?;
        }
        Ok(())
    }

    async fn round_trip(&mut self) -> Result<(), String> {
        let most = if self.random.u32(0..10) == 0 { MESSAGE.1 } else { MESSAGE.0 };
        let length = self.random.usize(SHORTEST..most);
        let message = self.up.bytes(length);
        self.meter.wants();
        self.write(&message).await?;
        self.receive(length).await?;
        self.meter.turn();
        Ok(())
    }

    /// Asks for portions and takes them as they come.
    async fn download(&mut self) -> Result<(), String> {
        while !self.common.leaves() {
            self.meter.wants();
            self.write(&(PORTION as u64).to_be_bytes()).await?;
            self.receive(PORTION).await?;
            self.meter.turn();
        }
        Ok(())
    }

    /// Asks for more than it takes, until it is time to leave.
    async fn sip(&mut self) -> Result<(), String> {
        while !self.common.leaves() {
            self.write(&(HEAP as u64).to_be_bytes()).await?;
            let mut left = HEAP;
            while left > 0 {
                self.common.pause(SIP.1).await;
                let piece = left.min(SIP.0);
                self.meter.wants();
                self.receive(piece).await?;
                self.meter.turn();
                left -= piece;
            }
        }
        Ok(())
    }

    /// Sends at a steady rate, and hears how much has arrived.
    async fn upload(&mut self) -> Result<(), String> {
        let common = Arc::clone(&self.common);
        let (mut arrived, mut receipt, mut heard) = (0, Vec::new(), Instant::now());
        let mut tick = tokio::time::interval(UPLOAD.1);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while !common.leaves() || arrived < self.up.position() {
            tokio::select! {
                _ = tick.tick(), if !common.leaves() => {
                    if heard.elapsed() > PATIENCE {
                        return Err(format!("nothing has arrived for {} s", PATIENCE.as_secs()));
                    }
                    let piece = self.up.bytes(UPLOAD.0);
                    self.meter.wants();
                    self.write(&piece).await?;
                }
                // Whoever leaves goes on in the other branch.
                () = common.time_to_leave(), if !common.leaves() => {}
                read = timeout(PATIENCE, self.tunnel.read(&mut self.buffer)) => {
                    let count = self.came(read)?;
                    heard = Instant::now();
                    receipt.extend_from_slice(&self.buffer[..count]);
                    arrived = self.receipts(arrived, &mut receipt)?;
                }
            }
        }
        self.meter.turn();
        Ok(())
    }

    /// Takes whole receipts out of what has come; returns how much has arrived by now.
    fn receipts(&self, mut arrived: u64, received: &mut Vec<u8>) -> Result<u64, String> {
        let whole = received.len() / 8 * 8;
        for number in received[..whole].chunks_exact(8) {
            let number = number.iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
            if number <= arrived || number > self.up.position() {
                return Err(format!("{number} bytes have arrived, says the target, of {} sent", self.up.position()));
            }
            self.meter.progress(usize::try_from(number - arrived).unwrap_or(usize::MAX));
            arrived = number;
        }
        received.drain(..whole);
        if arrived == self.up.position() {
            self.meter.content();
        }
        Ok(arrived)
    }

    async fn greeting(&mut self) -> Result<(), String> {
        let mut heard = Vec::new();
        while heard.len() < GREETING.len() {
            let most = GREETING.len() - heard.len();
            let read = timeout(PATIENCE, self.tunnel.read(&mut self.buffer[..most])).await;
            let count = self.came(read)?;
            heard.extend_from_slice(&self.buffer[..count]);
        }
        if heard == GREETING { Ok(()) } else { Err(format!("the greeting is {heard:?}")) }
    }

    async fn write(&self, bytes: &[u8]) -> Result<(), String> {
        match timeout(PATIENCE, self.tunnel.write(bytes)).await {
            Err(_) => Err(format!("nothing was taken for {} s", PATIENCE.as_secs())),
            Ok(Err(error)) => Err(format!("cannot be written to: {error}")),
            Ok(Ok(())) => Ok(()),
        }
    }

    /// Reads exactly so many bytes and compares them.
    async fn receive(&mut self, length: usize) -> Result<(), String> {
        let mut left = length;
        while left > 0 {
            let most = left.min(self.buffer.len());
            let read = timeout(PATIENCE, self.tunnel.read(&mut self.buffer[..most])).await;
            let count = self.came(read)?;
            self.down.check(&self.buffer[..count]).map_err(|wrong| wrong.to_string())?;
            self.meter.progress(count);
            left -= count;
        }
        Ok(())
    }

    fn came(&self, read: Result<std::io::Result<usize>, tokio::time::error::Elapsed>) -> Result<usize, String> {
        match read {
            Err(_) => Err(format!("nothing came for {} s", PATIENCE.as_secs())),
            Ok(Err(error)) => Err(format!("cannot be read: {error}")),
            Ok(Ok(0)) => Err(format!("the session has ended: {:?}", self.tunnel.status())),
            Ok(Ok(count)) => Ok(count),
        }
    }

    /// Closes the session when everything has come back; nothing more may come.
    async fn close(&mut self) -> Result<(), String> {
        self.meter.content();
        self.tunnel.close().await;
        match timeout(END, self.tunnel.read(&mut self.buffer)).await {
            Ok(Ok(0)) => Ok(()),
            Ok(Ok(count)) => Err(format!("{count} bytes came that nobody asked for")),
            Ok(Err(error)) => Err(format!("does not end as it should: {error}")),
            Err(_) => Err("does not end".to_owned()),
        }
    }
}
