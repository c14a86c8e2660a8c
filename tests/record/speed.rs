//! How fast it is, beside rustls: `cargo test --release --test record speed -- --ignored --nocapture`.

use std::time::Instant;

use bamf_lab::bridge::server_config;
use rustls::client::UnbufferedClientConnection;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::ConnectionState;

use super::*;

/// What a link seals and reads at once.
const BATCH: usize = 128 * 1024;
const TOTAL: usize = 1 << 30;

/// Both ends in one pair of hands: seals a batch here, opens it there.
trait Ends {
    fn seal(&mut self, plain: &[u8], wire: &mut [u8]) -> usize;
    fn open(&mut self, wire: &mut [u8]) -> usize;
}

struct Own(Records, Records);

impl Ends for Own {
    fn seal(&mut self, plain: &[u8], wire: &mut [u8]) -> usize {
        self.0.seal(plain, wire).unwrap()
    }

    fn open(&mut self, wire: &mut [u8]) -> usize {
        self.1.open(wire, &mut Vec::new(), &mut |piece| assert!(!std::hint::black_box(piece).is_empty())).unwrap().plain
    }
}

struct Rustls(UnbufferedClientConnection, UnbufferedServerConnection);

impl Ends for Rustls {
    fn seal(&mut self, plain: &[u8], wire: &mut [u8]) -> usize {
        let state = self.0.process_tls_records(&mut []).state.unwrap();
        let ConnectionState::WriteTraffic(mut traffic) = state else { panic!("{state:?}") };
        traffic.encrypt(plain, wire).unwrap()
    }

    fn open(&mut self, wire: &mut [u8]) -> usize {
        let (mut plain, mut consumed) = (0, 0);
        loop {
            let status = self.1.process_tls_records(&mut wire[consumed..]);
            consumed += status.discard;
            let ConnectionState::ReadTraffic(mut traffic) = status.state.unwrap() else { break };
            while let Some(record) = traffic.next_record() {
                let record = record.unwrap();
                consumed += record.discard;
                plain += std::hint::black_box(record.payload).len();
            }
        }
        plain
    }
}

/// Seals and opens, in GiB for a second of work.
fn measure(ends: &mut dyn Ends) -> [f64; 2] {
    let plain = vec![7; BATCH];
    let mut wire = vec![0; BATCH + 1024];
    let mut spent = [Duration::ZERO; 2];
    for _ in 0..TOTAL / BATCH {
        let begun = Instant::now();
        let sealed = ends.seal(&plain, &mut wire);
        spent[0] += begun.elapsed();
        let begun = Instant::now();
        assert_eq!(ends.open(&mut wire[..sealed]), BATCH);
        spent[1] += begun.elapsed();
    }
    spent.map(|spent| 1.0 / spent.as_secs_f64())
}

fn own(suite: SupportedCipherSuite) -> Own {
    use bamf_agent::tunnel::record::{Suite, TrafficSecret};
    let suite = Suite::from_number(suite.suite().into()).unwrap();
    let len = if suite == Suite::Aes256Gcm { 48 } else { 32 };
    let secret = |byte| TrafficSecret::new(&vec![byte; len]);
    let end = |ours, theirs| Records::new(suite, secret(ours), secret(theirs)).unwrap();
    Own(end(1, 2), end(2, 1))
}

fn theirs(suite: SupportedCipherSuite) -> Rustls {
    let ca = CertificateAuthority::new();
    let config = client_config(&ca, &ca, suite);
    let name = ServerName::try_from("localhost").unwrap();
    let mut client = UnbufferedClientConnection::new(Arc::new(config), name).unwrap();
    let mut server = UnbufferedServerConnection::new(server_config(&ca, "bridge-0", "localhost").unwrap()).unwrap();
    let [mut up, mut down] = [Vec::new(), Vec::new()];
    loop {
        let (consumed, client_done) = step(client.process_tls_records(&mut down), &mut up);
        down.drain(..consumed);
        let (consumed, server_done) = step(server.process_tls_records(&mut up), &mut down);
        up.drain(..consumed);
        if client_done && server_done && up.is_empty() && down.is_empty() {
            return Rustls(client, server);
        }
    }
}

/// One step of a handshake: bytes that are done with, and whether it is over.
fn step<Data>(status: rustls::unbuffered::UnbufferedStatus<'_, '_, Data>, output: &mut Vec<u8>) -> (usize, bool) {
    let mut done = false;
    let state = status.state.unwrap();
    if let ConnectionState::EncodeTlsData(mut data) = state {
        let start = output.len();
        output.resize(start + 8192, 0);
        let written = data.encode(&mut output[start..]).unwrap();
        output.truncate(start + written);
    } else if let ConnectionState::TransmitTlsData(data) = state {
        data.done();
    } else {
        done = matches!(state, ConnectionState::WriteTraffic(_));
    }
    (status.discard, done)
}

#[test]
#[ignore = "a measurement"]
fn speed_beside_rustls() {
    for suite in SUITES {
        let (mut own, mut theirs) = (own(suite), theirs(suite));
        let [mut ours, mut rustls] = [[0.0_f64; 2]; 2];
        for _ in 0..5 {
            for (best, now) in [(&mut ours, measure(&mut own)), (&mut rustls, measure(&mut theirs))] {
                *best = [best[0].max(now[0]), best[1].max(now[1])];
            }
        }
        println!(
            "{:?}: seal {:.1} GiB/s (rustls {:.1}), open {:.1} GiB/s (rustls {:.1})",
            suite.suite(),
            ours[0],
            rustls[0],
            ours[1],
            rustls[1]
        );
    }
}
