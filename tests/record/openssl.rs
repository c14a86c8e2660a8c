//! OpenSSL as the peer, over a socket: its server copies standard input to us and what we say to standard output, and
//! updates its keys when it reads `k`, or `K` to have ours updated as well.

use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use super::*;

/// Nothing here takes longer, however busy the machine is.
const LIMIT: Duration = Duration::from_secs(60);

pub(super) struct Server {
    process: Child,
    pub(super) stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    pub(super) port: u16,
    _files: tempfile::TempDir,
}

impl Server {
    pub(super) fn start(ca: &CertificateAuthority) -> Self {
        let files = tempfile::tempdir().unwrap();
        let now = SystemTime::now();
        let host = ["localhost".to_owned()];
        let issued = ca.bridge("bridge-0", &host, now, now + Duration::from_secs(3600)).unwrap();
        let write = |name: &str, text: &str| {
            let path = files.path().join(name);
            std::fs::File::create(&path).unwrap().write_all(text.as_bytes()).unwrap();
            path
        };
        let (certificate, key) = (write("crt", &issued.certificate_pem), write("key", &issued.private_key_pem));
        let authority = write("ca", ca.pem());
        let mut process = command(&certificate, &key, &authority).spawn().expect("scripts/setup installs openssl");
        let (stdin, stdout) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
        let mut server = Self { process, stdin, stdout: BufReader::new(stdout), port: 0, _files: files };
        let line = server.line_with("ACCEPT");
        server.port = line.trim().rsplit(':').next().unwrap().parse().unwrap();
        server
    }

    /// Reads its standard output up to a line with this in it.
    pub(super) fn line_with(&mut self, word: &str) -> String {
        loop {
            let mut line = String::new();
            assert!(self.stdout.read_line(&mut line).unwrap() > 0, "it ended before it said {word}");
            if line.contains(word) {
                return line;
            }
        }
    }

    pub(super) fn type_in(&mut self, text: &str) {
        self.stdin.write_all(text.as_bytes()).unwrap();
        self.stdin.flush().unwrap();
    }

    /// What it was told, [`numbers`] of this length.
    pub(super) fn copy(&mut self, length: usize) -> String {
        let mut heard = self.line_with("000000000");
        while heard.len() < length {
            self.stdout.read_line(&mut heard).unwrap();
            // What it says of records that bring no data.
            heard.truncate(heard.trim_end_matches("Read BLOCK\n").len());
        }
        heard
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

fn command(certificate: &Path, key: &Path, authority: &Path) -> Command {
    let mut command = Command::new("openssl");
    command.args(["s_server", "-accept", "127.0.0.1:0", "-tls1_3", "-naccept", "1"]);
    command.args(["-Verify", "2", "-verify_return_error"]);
    command.arg("-cert").arg(certificate).arg("-key").arg(key).arg("-CAfile").arg(authority);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    command
}

/// Our end, with a socket.
struct Socket {
    stream: TcpStream,
    ours: Ours,
}

impl Socket {
    fn connect(server: &Server, ca: &CertificateAuthority, suite: SupportedCipherSuite) -> Self {
        let mut stream = TcpStream::connect(("127.0.0.1", server.port)).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let mut handshake = client(ca, ca, suite);
        let (mut input, mut output) = (Vec::new(), Vec::new());
        loop {
            let (consumed, records) = handshake.proceed(&mut input, &mut output).unwrap();
            input.drain(..consumed);
            stream.write_all(&std::mem::take(&mut output)).unwrap();
            if let Some(records) = records {
                return Self { stream, ours: Ours::new(records, input) };
            }
            let mut buffer = [0; 4096];
            let count = stream.read(&mut buffer).unwrap();
            assert!(count > 0);
            input.extend_from_slice(&buffer[..count]);
        }
    }

    /// Reads at most `most` bytes of the wire and returns what they complete; `None` at the end.
    fn read(&mut self, most: usize) -> Option<Vec<u8>> {
        let mut buffer = vec![0; most];
        let count = self.stream.read(&mut buffer).unwrap();
        let mut plain = Vec::new();
        let ended = self.ours.receive(&buffer[..count], &mut |piece| plain.extend_from_slice(piece)).unwrap();
        (count > 0 && !ended).then_some(plain)
    }

    /// Reads until this has come, byte for byte.
    fn expect(&mut self, text: &str) {
        let mut heard = Vec::new();
        while heard.len() < text.len() {
            heard.extend(self.read(7).expect("it ended"));
            self.ours.hand_over();
        }
        assert_eq!(String::from_utf8(heard).unwrap(), text);
    }

    /// Gives an order and waits for what it causes, so that the server does not read it together with a text.
    fn expect_update(&mut self, server: &mut Server, order: &str) {
        server.type_in(order);
        loop {
            assert_eq!(self.read(3), Some(Vec::new()));
            self.ours.hand_over();
            if self.ours.incoming.is_empty() {
                return;
            }
        }
    }

    /// Sends everything in two pieces, with a hand-over in between.
    fn flush(&mut self) {
        let bytes = std::mem::take(&mut self.ours.outgoing);
        let (now, later) = bytes.split_at(bytes.len() / 2);
        self.stream.write_all(now).unwrap();
        self.ours.hand_over();
        self.stream.write_all(later).unwrap();
    }
}

#[test]
fn key_updates_of_openssl_and_of_ours_are_followed_in_the_middle_of_a_conversation() {
    for suite in SUITES {
        let ca = CertificateAuthority::new();
        let mut server = Server::start(&ca);
        let mut socket = Socket::connect(&server, &ca, suite);
        for round in 0..20 {
            server.type_in(&format!("{round} down\n"));
            socket.expect(&format!("{round} down\n"));
            socket.ours.send(format!("{round} up\n").as_bytes());
            socket.flush();
            assert_eq!(server.line_with(&format!("{round} up")), format!("{round} up\n"));
            match round % 3 {
                0 => socket.ours.records().refresh(),
                1 => socket.expect_update(&mut server, "K\n"),
                _ => socket.expect_update(&mut server, "k\n"),
            }
        }
        let mut bye = Vec::new();
        socket.ours.records().close_notify(&mut bye).unwrap();
        socket.ours.outgoing.extend(bye);
        socket.flush();
        server.line_with("DONE");
        assert_eq!(socket.read(4096), None);
    }
}

/// A text that tells where it is, without a letter that would be an order.
pub(super) fn numbers(bytes: usize) -> String {
    (0..bytes.div_ceil(10)).map(|number| format!("{number:09}\n")).collect()
}

#[test]
fn bulk_in_both_directions_with_hundreds_of_hand_overs_is_exact_against_openssl() {
    const BYTES: usize = 4_000_000;
    for suite in SUITES {
        let ca = CertificateAuthority::new();
        let mut server = Server::start(&ca);
        let mut socket = Socket::connect(&server, &ca, suite);
        let text = numbers(BYTES);
        let mut dice = Dice(7);

        server.line_with("CIPHER is");
        std::thread::scope(|threads| {
            threads.spawn(|| server.stdin.write_all(text.as_bytes()).unwrap());
            let mut heard = Vec::new();
            while heard.len() < text.len() {
                heard.extend(socket.read(1 + dice.below(30_000)).expect("it ended"));
                socket.ours.hand_over();
            }
            assert!(heard == text.as_bytes(), "every byte from OpenSSL");
        });
        assert!(socket.ours.hand_overs > 200, "{}", socket.ours.hand_overs);

        std::thread::scope(|threads| {
            let reading = threads.spawn(|| server.copy(text.len()));
            for piece in text.as_bytes().chunks(1 + dice.below(20_000)) {
                if dice.below(20) == 0 {
                    socket.ours.records().refresh();
                }
                socket.ours.send(piece);
                socket.flush();
            }
            assert!(reading.join().unwrap() == text, "every byte to OpenSSL");
        });
    }
}

#[test]
fn the_end_of_openssl_is_the_end_and_its_alerts_have_names() {
    let ca = CertificateAuthority::new();
    let mut server = Server::start(&ca);
    let mut socket = Socket::connect(&server, &ca, SUITES[0]);
    server.line_with("CIPHER is");
    server.type_in("Q\n");
    while socket.read(4096).is_some() {}

    let mut server = Server::start(&ca);
    let mut socket = Socket::connect(&server, &ca, SUITES[1]);
    server.line_with("CIPHER is");
    socket.stream.write_all(&[23, 3, 3, 0, 20]).unwrap();
    socket.stream.write_all(&[7; 20]).unwrap();
    let error = loop {
        let mut buffer = [0; 4096];
        match socket.stream.read(&mut buffer) {
            Ok(count) => match socket.ours.receive(&buffer[..count], &mut |_| ()) {
                Ok(_) => assert!(count > 0, "it ended without a word"),
                Err(error) => break error,
            },
            Err(error) => assert_eq!(error.kind(), ErrorKind::Interrupted, "{error}"),
        }
    };
    assert_eq!(error.to_string(), "the peer ended the connection with the alert bad_record_mac");
}
