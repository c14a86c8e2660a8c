//! rustls as the peer, in memory: no socket, no scheduling, the same in every run.

use bamf_agent::tunnel::record::Alert;
use bamf_lab::bridge::server_config;
use bamf_lab::pattern::Pattern;
use rustls::ServerConnection;

use super::*;

/// A server and the bytes on their way to us.
pub(super) struct Server {
    pub(super) connection: ServerConnection,
    pub(super) wire: Vec<u8>,
}

impl Server {
    fn new(ca: &CertificateAuthority) -> Self {
        let mut connection = ServerConnection::new(server_config(ca, "bridge-0", "localhost").unwrap()).unwrap();
        connection.set_buffer_limit(None);
        Self { connection, wire: Vec::new() }
    }

    /// Takes bytes and returns what was in them.
    pub(super) fn hear(&mut self, mut bytes: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        let mut heard = Vec::new();
        while !bytes.is_empty() {
            self.connection.read_tls(&mut bytes).unwrap();
            let state = self.connection.process_new_packets();
            self.flush();
            let mut plain = vec![0; state?.plaintext_bytes_to_read()];
            std::io::Read::read_exact(&mut self.connection.reader(), &mut plain).unwrap();
            heard.extend(plain);
        }
        Ok(heard)
    }

    pub(super) fn say(&mut self, plain: &[u8]) {
        std::io::Write::write_all(&mut self.connection.writer(), plain).unwrap();
        self.flush();
    }

    fn flush(&mut self) {
        while self.connection.wants_write() {
            self.connection.write_tls(&mut self.wire).unwrap();
        }
    }
}

/// Shakes hands. A server that refuses the certificate is no error on this side yet.
pub(super) fn connect(
    ca: &CertificateAuthority,
    signer: &CertificateAuthority,
    suite: SupportedCipherSuite,
) -> (Ours, Server) {
    let (mut handshake, mut server) = (client(ca, signer, suite), Server::new(ca));
    let (mut input, mut output) = (Vec::new(), Vec::new());
    loop {
        let (consumed, records) = handshake.proceed(&mut input, &mut output).unwrap();
        input.drain(..consumed);
        drop(server.hear(&std::mem::take(&mut output)));
        input.append(&mut server.wire);
        if let Some(records) = records {
            return (Ours::new(records, input), server);
        }
    }
}

#[test]
fn a_transfer_with_hundreds_of_hand_overs_and_key_updates_of_both_sides_is_exact() {
    for suite in SUITES {
        let ca = CertificateAuthority::new();
        let (mut ours, mut server) = connect(&ca, &ca, suite);
        let mut dice = Dice(u64::from(u16::from(suite.suite())));
        let [mut up, mut up_check, mut down, mut down_check] = [(); 4].map(|()| Pattern::default());
        for round in 0..1000 {
            ours.send(&up.bytes(dice.below(20_000)));
            server.say(&down.bytes(dice.below(20_000)));
            match dice.below(10) {
                0 => ours.records().refresh(),
                1 => server.connection.refresh_traffic_keys().unwrap(),
                2 if round > 0 => server.say(&[]),
                _ => {}
            }
            // Each wire is left anywhere.
            let count = dice.below(server.wire.len() + 1);
            let bytes: Vec<u8> = server.wire.drain(..count).collect();
            ours.receive(&bytes, &mut |piece| down_check.check(piece).unwrap()).unwrap();
            let count = dice.below(ours.outgoing.len() + 1);
            let bytes: Vec<u8> = ours.outgoing.drain(..count).collect();
            up_check.check(&server.hear(&bytes).unwrap()).unwrap();
            ours.hand_over();
        }
        let mut bye = Vec::new();
        ours.records().close_notify(&mut bye).unwrap();
        ours.outgoing.extend(bye);
        up_check.check(&server.hear(&std::mem::take(&mut ours.outgoing)).unwrap()).unwrap();
        server.connection.send_close_notify();
        server.flush();
        let ended = ours.receive(&server.wire, &mut |piece| down_check.check(piece).unwrap()).unwrap();
        assert!(ended && ours.incoming.is_empty());
        assert_eq!((up.position(), down.position()), (up_check.position(), down_check.position()));
        assert!(up.position() > 8_000_000 && down.position() > 8_000_000);
        assert!(ours.hand_overs == 1000 && ours.cut > 500, "{}", ours.cut);
    }
}

#[test]
fn a_conversation_byte_by_byte_with_a_hand_over_at_each_is_exact() {
    for suite in SUITES {
        let ca = CertificateAuthority::new();
        let (mut ours, mut server) = connect(&ca, &ca, suite);
        let [mut up, mut up_check, mut down, mut down_check] = [(); 4].map(|()| Pattern::default());
        for round in 0..12 {
            ours.send(&up.bytes(50 + round));
            server.say(&down.bytes(60 + round));
            if round % 4 == 1 {
                ours.records().refresh();
            } else if round % 4 == 3 {
                server.connection.refresh_traffic_keys().unwrap();
            }
            while !ours.outgoing.is_empty() || !server.wire.is_empty() {
                for byte in server.wire.drain(..server.wire.len().min(1)).collect::<Vec<_>>() {
                    ours.receive(&[byte], &mut |piece| down_check.check(piece).unwrap()).unwrap();
                }
                let byte: Vec<u8> = ours.outgoing.drain(..ours.outgoing.len().min(1)).collect();
                up_check.check(&server.hear(&byte).unwrap()).unwrap();
                ours.hand_over();
            }
        }
        assert_eq!((up.position(), down.position()), (up_check.position(), down_check.position()));
    }
}

#[test]
fn a_refused_certificate_is_an_alert_with_a_name() {
    let (ca, foreign) = (CertificateAuthority::new(), CertificateAuthority::new());
    let (mut ours, _server) = connect(&ca, &foreign, SUITES[0]);
    let outcome = ours.receive(&[], &mut |_| panic!("there is nothing to hear"));
    let Err(Error::Alert(alert)) = outcome else { panic!("{outcome:?}") };
    assert!([48, 51].map(Alert).contains(&alert), "{alert}");
}

#[test]
fn a_forged_record_is_answered_with_an_alert_that_rustls_understands() {
    let ca = CertificateAuthority::new();
    let (mut ours, mut server) = connect(&ca, &ca, SUITES[0]);
    ours.receive(&[], &mut |_| ()).unwrap();
    server.say(b"something to change");
    *server.wire.last_mut().unwrap() ^= 1;
    let error = ours.receive(&std::mem::take(&mut server.wire), &mut |_| panic!("it was forged")).unwrap_err();
    assert!(matches!(error, Error::Violation { alert: Alert::BAD_RECORD_MAC, .. }), "{error}");
    let told = server.hear(&ours.outgoing).unwrap_err();
    assert_eq!(told, rustls::Error::AlertReceived(rustls::AlertDescription::BadRecordMac));
}

/// `cargo test --release --test record -- --ignored` has it done in seconds.
#[test]
#[ignore = "eight million records take minutes without optimisation"]
fn eight_million_records_get_new_keys_without_being_asked() {
    let ca = CertificateAuthority::new();
    let (mut ours, mut server) = connect(&ca, &ca, SUITES[0]);
    let mut heard = 0;
    for _ in 0..(1 << 23) / 1024 + 2 {
        for _ in 0..1024 {
            ours.send(b"x");
        }
        heard += server.hear(&std::mem::take(&mut ours.outgoing)).unwrap().len();
    }
    assert_eq!(heard, (1 << 23) + 2048);
    let sequence = ours.records.take().unwrap().export().outbound.sequence;
    assert!(sequence < 4096, "{sequence}");
    server.say(b"and back");
}
