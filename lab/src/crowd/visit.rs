//! Members who come through the relay.

use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

use super::Common;
use super::meter::{Errand, Meter};
use crate::pattern::Pattern;
use crate::visitor::{Visit, Visitor};

/// No progress for so long is a fault.
const PATIENCE: Duration = Duration::from_secs(15);
/// Between two turns, in milliseconds.
const PAUSE: std::ops::Range<u64> = 60..200;
/// The longest message of a WebSocket and body of a request.
const MOST: usize = 8 << 10;
/// Events come so far apart, in milliseconds.
const EVENTS: u64 = 80;
/// The length of a long answer, and how many bytes of it come in a second.
const ANSWER: (u64, u64) = (512 << 10, 128 << 10);

struct Guest {
    visitor: Visitor,
    meter: Arc<Meter>,
    common: Arc<Common>,
    random: Rng,
}

/// Comes, works until it is time to leave, and goes.
pub(super) async fn come(errand: Errand, visitor: Visitor, random: Rng, meter: Arc<Meter>, common: Arc<Common>) {
    let mut guest = Guest { visitor, meter, common, random };
    let worked = match errand {
        Errand::WebSocket => guest.echo().await,
        Errand::EventStream => guest.listen().await,
        Errand::Downloads => guest.download().await,
        Errand::Browses => {
            guest.browse().await;
            Ok(())
        }
    };
    if let Err(why) = worked {
        guest.meter.fault(why);
    }
}

impl Guest {
    async fn pause(&mut self) {
        let pause = Duration::from_millis(self.random.u64(PAUSE));
        self.common.pause(pause).await;
    }

    async fn echo(&mut self) -> Result<(), String> {
        let opened = {
            let _admitted = self.common.door.acquire().await;
            self.visitor.websocket("/ws", None).await
        };
        let mut socket = opened.map_err(|error| format!("no WebSocket: {error:?}"))?;
        self.common.arrived();
        let mut pattern = Pattern::default();
        while !self.common.leaves() {
            let message = Message::binary(pattern.bytes(self.random.usize(1..MOST)));
            self.meter.wants();
            let exchange = async {
                socket.send(message.clone()).await.map_err(|error| error.to_string())?;
                socket.next().await.ok_or("the WebSocket has ended")?.map_err(|error| error.to_string())
            };
            let answer = timeout(PATIENCE, exchange).await.map_err(|_| nothing())??;
            if answer != message {
                return Err(format!("{} bytes came back changed as {}", message.len(), answer.len()));
            }
            self.meter.progress(answer.len());
            self.meter.turn();
            self.pause().await;
        }
        let farewell = async {
            drop(socket.close(None).await);
            socket.next().await
        };
        match timeout(PATIENCE, farewell).await {
            Ok(None | Some(Ok(Message::Close(_)))) => Ok(()),
            other => Err(format!("does not end as it should: {other:?}")),
        }
    }

    async fn listen(&mut self) -> Result<(), String> {
        let opened = {
            let _admitted = self.common.door.acquire().await;
            self.visitor.stream(&format!("/sse-every/{EVENTS}")).await
        };
        let mut events = opened.map_err(|error| format!("no event stream: {error:?}"))?;
        if events.status != 200 {
            return Err(format!("the event stream is answered with {}", events.status));
        }
        let mut number = 0;
        while !self.common.leaves() {
            number += 1;
            self.meter.wants();
            let event = events.next(PATIENCE).await.map_err(|error| format!("event {number}: {error:?}"))?;
            let event = event.ok_or_else(|| format!("the stream has ended before event {number}"))?;
            if !event.ends_with(&format!("data: {{\"number\":{number}}}")) {
                return Err(format!("event {number} is {event:?}"));
            }
            self.meter.progress(event.len());
            self.meter.turn();
            if number == 1 {
                self.common.arrived();
            }
        }
        Ok(())
    }

    async fn download(&mut self) -> Result<(), String> {
        let mut first = true;
        while !self.common.leaves() {
            self.meter.wants();
            let answer = self.visitor.stream(&format!("/steady/{}/{}", ANSWER.0, ANSWER.1)).await;
            let mut answer = answer.map_err(|error| format!("no answer: {error:?}"))?;
            if answer.status != 200 {
                return Err(format!("the answer is {}", answer.status));
            }
            if std::mem::take(&mut first) {
                self.common.arrived();
            }
            let mut pattern = Pattern::default();
            let broken = |at: u64, error| format!("the answer broke at byte {at}: {error:?}");
            while let Some(piece) = answer.piece(PATIENCE).await.map_err(|error| broken(pattern.position(), error))? {
                pattern.check(&piece).map_err(|wrong| wrong.to_string())?;
                self.meter.progress(piece.len());
            }
            if pattern.position() != ANSWER.0 {
                return Err(format!("the answer ended at byte {} of {}", pattern.position(), ANSWER.0));
            }
            self.meter.turn();
        }
        Ok(())
    }

    /// A failed request is a fault, and the next one is sent all the same.
    async fn browse(&mut self) {
        let (mut visit, mut number) = (None, 0_u64);
        while !self.common.leaves() {
            self.meter.wants();
            match timeout(PATIENCE, self.request(&mut visit, number)).await {
                Ok(Ok(length)) => {
                    self.meter.progress(length);
                    self.meter.turn();
                }
                Ok(Err(why)) => {
                    visit = None;
                    self.meter.fault(format!("request {number}: {why}"));
                }
                Err(_) => {
                    visit = None;
                    self.meter.fault(format!("request {number}: {}", nothing()));
                }
            }
            if number == 0 {
                self.common.arrived();
            }
            number += 1;
            self.pause().await;
        }
        self.meter.content();
    }

    /// A page, or a form with a body; returns how much came and went.
    async fn request(&mut self, visit: &mut Option<Visit>, number: u64) -> Result<usize, String> {
        let length = self.random.usize(1..MOST);
        if visit.is_none() {
            *visit = Some(self.visitor.session().await.map_err(|error| format!("{error:?}"))?);
        }
        let Some(visit) = visit else { return Err("no visit".to_owned()) };
        let sent = Pattern::default().bytes(if number.is_multiple_of(2) { length } else { 0 });
        let answer = if number.is_multiple_of(2) {
            visit.ask("POST", "/sink", &[], &sent).await
        } else {
            visit.ask("GET", &format!("/big/{length}"), &[], b"").await
        };
        let answer = answer.map_err(|error| format!("{error:?}"))?;
        if answer.status != 200 {
            return Err(format!("answered with {}: {}", answer.status, answer.text()));
        }
        if number.is_multiple_of(2) {
            let all = answer.text() == length.to_string();
            return if all { Ok(length) } else { Err(format!("{} bytes arrived of {length}", answer.text())) };
        }
        if answer.body.len() != length {
            return Err(format!("{} bytes came instead of {length}", answer.body.len()));
        }
        Pattern::default().check(&answer.body).map_err(|wrong| wrong.to_string())?;
        Ok(length)
    }
}

fn nothing() -> String {
    format!("nothing came for {} s", PATIENCE.as_secs())
}
