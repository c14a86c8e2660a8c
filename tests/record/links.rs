//! A whole `Link` against other people's TLS over sockets: carried as the agent carries it, through a sealed file, with half
//! of a record received and half of another not sent.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::task::{Context, Poll};

use bamf_agent::handoff::snapshot::Kind;
use bamf_agent::handoff::{self, Departure};
use bamf_agent::stream::{Connection, Stream};
use bamf_agent::tasks::Tasks;
use bamf_agent::tunnel::Link;
use bamf_agent::tunnel::link::{self, SEND};
use bamf_agent::tunnel::record::Ask;
use bamf_lab::bridge::server_config;
use bamf_lab::pattern::Pattern;
use rustix::net::sockopt::set_socket_send_buffer_size;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead as _, AsyncWrite as _, ReadBuf};

use super::rustls_server::Server;
use super::*;

/// Nothing here takes longer, however busy the machine is.
const LIMIT: Duration = Duration::from_secs(60);

/// A link and what its owner knows.
#[derive(Serialize, Deserialize)]
struct Record<T> {
    socket: u32,
    link: link::State,
    beside: T,
}

/// Our end of a connection, in one process after the other.
#[derive(Default)]
struct Ours {
    link: Option<Link>,
    hand_overs: usize,
    /// Those with something sealed and not sent, and with a part of a record.
    unsent: usize,
    partial: usize,
    /// The number of the next record that comes.
    inbound: u64,
}

impl Ours {
    /// Shakes hands; what comes behind that is left to the link.
    fn connect(mut stream: TcpStream, mut handshake: Handshake) -> Self {
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let (mut incoming, mut output) = (Vec::new(), Vec::new());
        loop {
            let (consumed, records) = handshake.proceed(&mut incoming, &mut output).unwrap();
            incoming.drain(..consumed);
            stream.write_all(&std::mem::take(&mut output)).unwrap();
            if let Some(records) = records {
                let records = records.export();
                let state = link::State {
                    records,
                    incoming,
                    outgoing: Vec::new(),
                    plain: Vec::new(),
                    ended: false,
                    closing: false,
                };
                return Self { link: Some(Link::import(stream.into(), state).unwrap()), ..Self::default() };
            }
            let mut buffer = [0; 4096];
            let count = stream.read(&mut buffer).unwrap();
            assert!(count > 0);
            incoming.extend_from_slice(&buffer[..count]);
        }
    }

    fn link(&mut self) -> &mut Link {
        self.link.as_mut().unwrap()
    }

    /// Another process goes on, if asked with new keys.
    fn hand_over<T: Serialize + DeserializeOwned>(&mut self, beside: T, refresh: bool) -> T {
        let mut departure = Departure::new().unwrap();
        let (socket, mut link) = self.link.take().unwrap().export().unwrap();
        let standing = &mut link.records.standing;
        standing.update_due |= refresh;
        if refresh && standing.ask == Ask::No {
            standing.ask = Ask::Due;
        }
        self.hand_overs += 1;
        self.unsent += usize::from(!link.outgoing.is_empty());
        self.partial += usize::from(!link.incoming.is_empty());
        self.inbound = link.records.inbound.sequence;
        let socket = departure.take(socket);
        departure.put(Kind::SESSION, &Record { socket, link, beside }).unwrap();

        let mut arrival = departure.seal(1).unwrap().take_back();
        let mut reader = arrival.read().unwrap();
        let (kind, payload) = reader.record().unwrap().unwrap();
        assert_eq!(kind, Kind::SESSION);
        let record: Record<T> = handoff::parse(payload).unwrap();
        let socket = arrival.socket(record.socket).unwrap();
        self.link = Some(Link::import(socket, record.link).unwrap());
        arrival.settle();
        record.beside
    }

    /// What has come, once anything has; `None` at the end.
    async fn receive(&mut self) -> Option<Vec<u8>> {
        let link = self.link.as_mut().unwrap();
        let mut plain = Vec::new();
        let count = std::future::poll_fn(|cx| link.poll_receive(cx, &mut |piece| plain.extend_from_slice(piece))).await;
        (count.unwrap() > 0).then_some(plain)
    }

    /// Seals these bytes; what the kernel does not take stays with the link.
    async fn send(&mut self, plain: &[u8]) {
        self.flush().await;
        let link = self.link();
        std::future::poll_fn(|cx| Poll::Ready(link.send(cx, plain))).await.unwrap();
    }

    async fn flush(&mut self) {
        let link = self.link();
        std::future::poll_fn(|cx| link.poll_flush_outgoing(cx)).await.unwrap();
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

async fn limited<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, work).await.expect("it stands still")
}

fn run<T>(test: impl Future<Output = T>) -> T {
    runtime().block_on(limited(test))
}

/// Two ends of a connection that take little at a time.
fn narrow_pair() -> [TcpStream; 2] {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (far, _) = listener.accept().unwrap();
    for end in [&near, &far] {
        set_socket_send_buffer_size(end, 4096).unwrap();
        end.set_nodelay(true).unwrap();
    }
    [near, far]
}

/// One end of a transfer in both directions.
struct Transfer {
    said: Pattern,
    heard: Pattern,
    total: u64,
    /// What was offered last and not taken yet.
    offer: Vec<u8>,
    dice: Dice,
}

impl Transfer {
    fn new(total: u64, seed: u64) -> Self {
        let [said, heard] = [(); 2].map(|()| Pattern::default());
        Self { said, heard, total, offer: Vec::new(), dice: Dice(seed) }
    }

    fn next(&mut self, most: usize) -> Option<Vec<u8>> {
        let left = usize::try_from(self.total - self.said.position()).unwrap();
        let length = (1 + self.dice.below(most)).min(left);
        (length > 0).then(|| self.said.bytes(length))
    }

    fn heard_all(&self) -> bool {
        self.heard.position() == self.total
    }
}

/// The far end: rustls through tokio, which now and then changes its keys.
async fn serve(stream: TcpStream, acceptor: tokio_rustls::TlsAcceptor, total: u64) {
    stream.set_nonblocking(true).unwrap();
    let stream = tokio::net::TcpStream::from_std(stream).unwrap();
    let mut tls = acceptor.accept(stream).await.unwrap();
    let mut transfer = Transfer::new(total, 3);
    let mut ended = false;
    std::future::poll_fn(|cx| serve_some(cx, &mut tls, &mut transfer, &mut ended)).await;
    assert!(transfer.heard_all() && transfer.said.position() == total);
    std::future::poll_fn(|cx| std::pin::Pin::new(&mut tls).poll_shutdown(cx)).await.unwrap();
}

fn serve_some(
    cx: &mut Context<'_>,
    tls: &mut tokio_rustls::server::TlsStream<tokio::net::TcpStream>,
    transfer: &mut Transfer,
    ended: &mut bool,
) -> Poll<()> {
    let mut buffer = [0; 5000];
    loop {
        let mut progress = false;
        let mut space = ReadBuf::new(&mut buffer);
        if !*ended && let Poll::Ready(read) = std::pin::Pin::new(&mut *tls).poll_read(cx, &mut space) {
            read.unwrap();
            transfer.heard.check(space.filled()).unwrap();
            (*ended, progress) = (space.filled().is_empty(), true);
        }
        if transfer.offer.is_empty() {
            transfer.offer = transfer.next(20_000).unwrap_or_default();
            if !transfer.offer.is_empty() && transfer.dice.below(20) == 0 {
                tls.get_mut().1.refresh_traffic_keys().unwrap();
            }
        }
        if !transfer.offer.is_empty()
            && let Poll::Ready(written) = std::pin::Pin::new(&mut *tls).poll_write(cx, &transfer.offer)
        {
            transfer.offer.drain(..written.unwrap());
            progress = true;
        }
        let flushed = std::pin::Pin::new(&mut *tls).poll_flush(cx).is_ready();
        if *ended && transfer.offer.is_empty() && transfer.said.position() == transfer.total && flushed {
            return Poll::Ready(());
        }
        if !progress {
            return Poll::Pending;
        }
    }
}

/// One step of our end, as small as the sockets make it; false once everything was heard and is sent.
fn step(cx: &mut Context<'_>, link: &mut Link, transfer: &mut Transfer) -> Poll<bool> {
    let mut progress = false;
    if !transfer.heard_all() {
        let heard = &mut transfer.heard;
        if let Poll::Ready(count) = link.poll_receive(cx, &mut |piece| heard.check(piece).unwrap()) {
            assert!(count.unwrap() > 0, "it ended at {}", transfer.heard.position());
            progress = true;
        }
    }
    let flushed = link.poll_flush_outgoing(cx);
    if let Poll::Ready(flushed) = flushed {
        flushed.unwrap();
        if let Some(plain) = transfer.next(SEND / 4) {
            link.send(cx, &plain).unwrap();
            progress = true;
        } else if transfer.heard_all() {
            return Poll::Ready(false);
        }
    }
    if progress { Poll::Ready(true) } else { Poll::Pending }
}

#[test]
fn bulk_both_ways_through_narrow_sockets_with_a_hand_over_at_every_step_is_exact_against_rustls() {
    const TOTAL: u64 = 6_000_000;
    for suite in SUITES {
        run(async {
            let ca = CertificateAuthority::new();
            let acceptor = tokio_rustls::TlsAcceptor::from(server_config(&ca, "bridge-0", "localhost").unwrap());
            let [near, far] = narrow_pair();
            let peer = Tasks::new();
            let serving = peer.spawn("peer", serve(far, acceptor, TOTAL));
            let handshake = client(&ca, &ca, suite);
            let mut ours = tokio::task::spawn_blocking({
                let handle = tokio::runtime::Handle::current();
                move || {
                    let _runtime = handle.enter();
                    Ours::connect(near, handshake)
                }
            })
            .await
            .unwrap();
            let mut transfer = Transfer::new(TOTAL, 9);
            loop {
                let link = ours.link();
                let went_on = std::future::poll_fn(|cx| {
                    let outcome = step(cx, link, &mut transfer);
                    // Whatever the kernel took of it, this is where the process changes.
                    if outcome.is_pending() && transfer.dice.below(3) == 0 { Poll::Ready(true) } else { outcome }
                });
                if !went_on.await {
                    break;
                }
                let refresh = transfer.dice.below(30) == 0;
                ours.hand_over((), refresh);
                tokio::task::yield_now().await;
            }
            let link = ours.link();
            std::future::poll_fn(|cx| link.poll_close(cx)).await.unwrap();
            ours.hand_over((), false);
            assert_eq!(ours.receive().await, None, "the end of the other side");
            serving.await.unwrap();
            let Ours { hand_overs, unsent, partial, .. } = ours;
            assert!(hand_overs > 100 && unsent > 30 && partial > 30, "{hand_overs} {unsent} {partial}");
        });
    }
}

/// The far end of a stream over rustls, with the wire in its hands.
struct Far {
    tls: Server,
    socket: TcpStream,
    stream: Stream,
    connection: Connection,
    heard: Vec<u8>,
}

impl Far {
    fn say(&mut self, payload: &[u8]) {
        self.stream.push(payload);
        self.stream.acknowledge(&mut self.connection);
        loop {
            let piece = self.stream.transmit(&mut self.connection).to_vec();
            if piece.is_empty() {
                return;
            }
            self.stream.sent(&mut self.connection, piece.len());
            // Frames and records do not end together.
            piece.chunks(23).for_each(|piece| self.tls.say(piece));
        }
    }

    /// Takes whatever our end has sent.
    fn hear(&mut self) {
        let mut buffer = [0; 4096];
        loop {
            match self.socket.read(&mut buffer) {
                Ok(0) => panic!("our end has closed"),
                Ok(count) => {
                    let plain = self.tls.hear(&buffer[..count]).unwrap();
                    let heard = &mut self.heard;
                    let mut deliver = |piece: &[u8]| heard.extend_from_slice(piece);
                    self.stream.receive(&mut self.connection, &plain, &mut deliver).unwrap();
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => panic!("{error}"),
            }
        }
    }
}

/// One turn of our end: everything that has come goes up, everything that should go goes down.
fn turn(cx: &mut Context<'_>, link: &mut Link, stream: &mut Stream, connection: &mut Connection, heard: &mut Vec<u8>) {
    while let Poll::Ready(count) = link.poll_receive(cx, &mut |piece| {
        stream.receive(connection, piece, &mut |payload| heard.extend_from_slice(payload)).unwrap();
    }) {
        assert!(count.unwrap() > 0, "it ended");
    }
    while link.poll_flush_outgoing(cx).map(Result::unwrap).is_ready() {
        let piece = stream.transmit(connection);
        if piece.is_empty() {
            return;
        }
        let count = piece.len();
        link.send(cx, piece).unwrap();
        stream.sent(connection, count);
    }
}

#[test]
fn a_stream_over_a_link_goes_on_after_a_hand_over_at_every_byte_of_the_wire() {
    for suite in SUITES {
        run(async {
            let ca = CertificateAuthority::new();
            let (ours, tls) = rustls_server::connect(&ca, &ca, suite);
            let [near, far] = narrow_pair();
            far.set_nonblocking(true).unwrap();
            let witness = near.try_clone().unwrap();
            let mut ours = Ours::of(near.into(), ours);
            let stream = Stream::new();
            let connection = stream.first();
            let mut far = Far { tls, socket: far, stream, connection, heard: Vec::new() };
            let (mut stream, mut heard, mut said) = (Stream::new(), Vec::new(), Vec::new());
            let mut connection = stream.first();
            let [mut up, mut down] = [(); 2].map(|()| Pattern::default());
            for round in 0..8 {
                far.say(&down.bytes(30 + round));
                if round % 3 == 1 {
                    far.tls.connection.refresh_traffic_keys().unwrap();
                }
                let words = up.bytes(20 + round);
                stream.push(&words);
                said.extend(words);
                for byte in std::mem::take(&mut far.tls.wire) {
                    far.socket.write_all(&[byte]).unwrap();
                    let link = ours.link();
                    std::future::poll_fn(|cx| {
                        turn(cx, link, &mut stream, &mut connection, &mut heard);
                        // Until the byte is in the process, or in the next one it would be new.
                        let left = rustix::io::ioctl_fionread(&witness).unwrap();
                        if left == 0 { Poll::Ready(()) } else { Poll::Pending }
                    })
                    .await;
                    stream.acknowledge(&mut connection);
                    (stream, connection) = ours.hand_over((stream, connection), round % 4 == 2 && byte % 64 == 0);
                    stream = stream.checked().unwrap();
                    stream.check(&connection).unwrap();
                    far.hear();
                }
            }
            assert!(ours.hand_overs > 500 && ours.partial > 400, "{} {}", ours.hand_overs, ours.partial);
            let mut expected = Pattern::default();
            expected.check(&heard).unwrap();
            assert_eq!(expected.position(), down.position(), "every byte from the far end");
            // The last words of our end may need one more turn.
            let link = ours.link();
            std::future::poll_fn(|cx| {
                turn(cx, link, &mut stream, &mut connection, &mut heard);
                far.hear();
                if far.heard.len() == said.len() { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
            assert!(far.heard == said, "every byte to the far end");
        });
    }
}

impl Ours {
    /// Goes on with what was an exercise without sockets.
    fn of(socket: OwnedFd, ours: super::Ours) -> Self {
        let super::Ours { records, incoming, outgoing, .. } = ours;
        let records = records.unwrap().export();
        let state = link::State { records, incoming, outgoing, plain: Vec::new(), ended: false, closing: false };
        Self { link: Some(Link::import(socket, state).unwrap()), ..Self::default() }
    }
}

#[test]
fn openssl_and_its_key_updates_are_followed_by_one_process_after_the_other() {
    for suite in SUITES {
        let ca = CertificateAuthority::new();
        let mut server = openssl::Server::start(&ca);
        let stream = TcpStream::connect(("127.0.0.1", server.port)).unwrap();
        run(async {
            let mut ours = Ours::connect(stream, client(&ca, &ca, suite));
            server.line_with("CIPHER is");
            for round in 0..12 {
                let (down, up) = (format!("{round} down\n"), format!("{round} up\n"));
                server.type_in(&down);
                let mut heard = Vec::new();
                while heard.len() < down.len() {
                    heard.extend(ours.receive().await.expect("it ended"));
                    ours.hand_over((), false);
                }
                assert_eq!(String::from_utf8(heard).unwrap(), down);
                ours.send(up.as_bytes()).await;
                ours.hand_over((), false);
                ours.flush().await;
                assert_eq!(server.line_with(&up), up);
                let order = ["K\n", "k\n"].get(round % 3);
                let Some(order) = order else {
                    ours.hand_over((), true);
                    continue;
                };
                server.type_in(order);
                // Its new keys are there when its records are counted anew.
                while ours.inbound > 0 {
                    let link = ours.link();
                    let nothing = std::future::poll_fn(|cx| {
                        let outcome = link.poll_receive(cx, &mut |_| panic!("there is nothing to hear"));
                        Poll::Ready(outcome.is_pending())
                    });
                    assert!(nothing.await);
                    ours.hand_over((), false);
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        });
    }
}

#[test]
fn bulk_through_narrow_sockets_with_hand_overs_all_the_time_is_exact_against_openssl() {
    const BYTES: usize = 4_000_000;
    for suite in SUITES {
        let ca = CertificateAuthority::new();
        let mut server = openssl::Server::start(&ca);
        let stream = TcpStream::connect(("127.0.0.1", server.port)).unwrap();
        set_socket_send_buffer_size(&stream, 4096).unwrap();
        let text = openssl::numbers(BYTES);
        let mut dice = Dice(5);
        let runtime = runtime();
        let mut ours = runtime.block_on(async { Ours::connect(stream, client(&ca, &ca, suite)) });

        server.line_with("CIPHER is");
        std::thread::scope(|threads| {
            threads.spawn(|| server.stdin.write_all(text.as_bytes()).unwrap());
            let mut heard = Vec::new();
            runtime.block_on(limited(async {
                while heard.len() < text.len() {
                    heard.extend(ours.receive().await.expect("it ended"));
                    ours.hand_over((), false);
                }
            }));
            assert!(heard == text.as_bytes(), "every byte from OpenSSL");
        });

        std::thread::scope(|threads| {
            let reading = threads.spawn(|| server.copy(text.len()));
            runtime.block_on(limited(async {
                let mut rest = text.as_bytes();
                while !rest.is_empty() {
                    let (now, later) = rest.split_at((1 + dice.below(SEND)).min(rest.len()));
                    ours.send(now).await;
                    ours.hand_over((), dice.below(5) == 0);
                    rest = later;
                }
                ours.flush().await;
            }));
            assert!(reading.join().unwrap() == text, "every byte to OpenSSL");
        });
        let Ours { hand_overs, unsent, partial, .. } = ours;
        assert!(hand_overs > 60 && unsent > 10 && partial > 5, "{hand_overs} {unsent} {partial}");
    }
}
