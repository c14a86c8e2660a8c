//! Well-formed requests with arbitrary bodies, one after the other: no byte of a body is ever taken for a request.

#![no_main]

use arbitrary::Arbitrary;
use bamf_agent_fuzz::cuts;
use bamf_agent_fuzz::desk::{Desk, Writing, check_request};
use bamf_agent_fuzz::message::{Kind, Message};
use libfuzzer_sys::fuzz_target;

const MAX_REQUESTS: usize = 6;

#[derive(Debug, Arbitrary)]
enum Body {
    None,
    Length(Vec<u8>),
    Chunks(Vec<Vec<u8>>),
}

#[derive(Debug, Arbitrary)]
struct Request {
    body: Body,
    /// It names no target, so that the agent answers it.
    refused: bool,
    /// The target answers when it has the head.
    early: bool,
    lengths: Vec<u8>,
}

impl Request {
    fn content(&self) -> Vec<u8> {
        match &self.body {
            Body::None => Vec::new(),
            Body::Length(bytes) => bytes.clone(),
            Body::Chunks(chunks) => chunks.concat(),
        }
    }

    fn wire(&self, serial: usize) -> Vec<u8> {
        let target = if self.refused { "" } else { "X-Bamf-Target: http://wiki.internal:8085\r\n" };
        let mut wire = format!("POST /{serial} HTTP/1.1\r\n{target}").into_bytes();
        match &self.body {
            Body::None => wire.extend_from_slice(b"\r\n"),
            Body::Length(bytes) => {
                wire.extend_from_slice(format!("Content-Length: {}\r\n\r\n", bytes.len()).as_bytes());
                wire.extend_from_slice(bytes);
            }
            Body::Chunks(chunks) => {
                wire.extend_from_slice(b"Transfer-Encoding: chunked\r\n\r\n");
                for chunk in chunks.iter().filter(|chunk| !chunk.is_empty()) {
                    wire.extend_from_slice(format!("{:X};x=y\r\n", chunk.len()).as_bytes());
                    wire.extend_from_slice(chunk);
                    wire.extend_from_slice(b"\r\n");
                }
                wire.extend_from_slice(b"0\r\nTrailer: dropped\r\n\r\n");
            }
        }
        wire
    }
}

fuzz_target!(|requests: Vec<Request>| {
    let requests = &requests[..requests.len().min(MAX_REQUESTS)];
    let mut desk = Desk::new(Writing::AtOnce, true);
    for (serial, request) in requests.iter().enumerate() {
        exchange(&mut desk, serial, request);
    }
    let paths: Vec<String> = (0..requests.len()).map(|serial| format!("/{serial}")).collect();
    assert_eq!(desk.asked(), paths, "each request was judged once, and nothing else");
    let mut answers = &desk.to_bridge[..];
    for request in requests {
        let answer = Message::read(answers, Kind::Response).expect("each request is answered");
        assert_eq!((answer.complete, answer.status()), (true, if request.refused { 502 } else { 200 }));
        answers = answer.rest;
    }
    assert!(answers.is_empty(), "an answer to nothing");
});

fn exchange(desk: &mut Desk, serial: usize, request: &Request) {
    let mut answered = request.refused;
    for piece in cuts::pieces(&request.lengths, &request.wire(serial)) {
        desk.bridge(piece);
        // Until its head is there, the last connection to the target is that of the request before.
        let here = desk.request().filter(|at_target| at_target.first == format!("POST /{serial} HTTP/1.1"));
        let Some(at_target) = here.filter(|_| !answered) else { continue };
        check_request(&at_target);
        assert!(at_target.rest.is_empty(), "the target got more than one request");
        assert!(request.content().starts_with(&at_target.body), "the target got another body");
        if at_target.complete || request.early {
            answered = true;
            desk.target(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi");
        }
    }
    assert!(answered, "the target never got the whole request");
    assert!(desk.conversation.is_idle(), "the connection is good for the next request");
}
