//! Bodies: long ones, odd ones, and those that nobody reads.

use bamf_lab::agent::{LIMIT, NAME};
use bamf_lab::pattern::Pattern;

use super::scene::{POOL, Scene, is_pattern};

const LONG: usize = 64 << 20;
const ODD: usize = 1_000_003;

#[test]
fn sixty_four_mebibytes_come_down_exactly() {
    let scene = Scene::open();
    is_pattern(&scene.visitor().get(&format!("/big/{LONG}")).unwrap().body, LONG);
    assert_eq!(scene.bridge.relays_ever(NAME), POOL);
}

#[test]
fn sixty_four_mebibytes_go_up_exactly() {
    let scene = Scene::open();
    let body = Pattern::default().bytes(LONG);
    let answer = scene.visitor().send("PUT", "/sink", &[], &body).unwrap();
    assert_eq!((answer.status, answer.text()), (200, LONG.to_string()));
    let request = scene.target.seen().requests.pop().unwrap();
    assert!(request.body_is_pattern && request.body_length == LONG as u64);
    assert_eq!(scene.bridge.relays_ever(NAME), POOL);
}

#[test]
fn every_framing_of_a_target_ends_where_it_should_and_the_connection_stays_usable() {
    let scene = Scene::open();
    for framing in ["big", "chunked", "close-delimited", "http10"] {
        for length in [0, 1, ODD] {
            let answer = scene.visitor().get(&format!("/{framing}/{length}")).unwrap();
            assert_eq!(answer.status, 200);
            is_pattern(&answer.body, length);
            let declared = answer.header("content-length").map(str::to_owned);
            assert_eq!(declared, (framing == "big").then(|| length.to_string()), "{framing}");
            scene.still_serves();
        }
    }
    assert_eq!((scene.bridge.relays_ever(NAME), scene.bridge.unsolicited()), (POOL, 0));
}

#[test]
fn a_chunked_upload_arrives_whole() {
    let scene = Scene::open();
    let mut pattern = Pattern::default();
    let mut body = Vec::new();
    for size in [1, 15, 16, 4095, 65_536, 100_003] {
        body.extend(format!("{size:X};note=\"a b\"\r\n").bytes());
        body.extend(pattern.bytes(size));
        body.extend(b"\r\n");
    }
    body.extend(b"0\r\nTrailer: dropped\r\n\r\n");
    let head = scene.head("POST", "/sink", "Transfer-Encoding: chunked\r\n");
    let answer = scene.raw([head.as_bytes(), &body].concat());
    assert!(answer.ends_with(&pattern.position().to_string()), "{answer}");
    let request = scene.target.seen().requests.pop().unwrap();
    assert_eq!((request.header("transfer-encoding"), request.header("content-length")), (Some("chunked"), None));
}

#[test]
fn answers_without_a_body_have_none() {
    let scene = Scene::open();
    let answer = scene.visitor().send("HEAD", "/page", &[], b"").unwrap();
    assert_eq!((answer.status, answer.header("content-length"), answer.body.len()), (200, Some("4711"), 0));
    scene.still_serves();
    for path in ["/big/1000", "/chunked/1000", "/close-delimited/1000"] {
        let answer = scene.visitor().send("HEAD", path, &[], b"").unwrap();
        assert_eq!((answer.status, answer.body.len()), (200, 0), "{path}");
        scene.still_serves();
    }
    for status in [204, 304] {
        let answer = scene.visitor().get(&format!("/status/{status}")).unwrap();
        assert_eq!((answer.status, answer.body.len(), answer.header("x-site")), (status, 0, Some("lab")));
        scene.still_serves();
    }
    assert_eq!((scene.bridge.relays_ever(NAME), scene.bridge.unsolicited()), (POOL, 0));
}

#[test]
fn the_bridge_never_sees_an_interim_answer() {
    let scene = Scene::open();
    let expecting = [("Expect", "100-continue")];
    let body = Pattern::default().bytes(ODD);
    for path in ["/continue", "/early-hints", "/sink"] {
        let answer = scene.visitor().send("POST", path, &expecting, &body).unwrap();
        assert_eq!(answer.status, 200, "{path}");
        let request = scene.target.seen().requests.pop().unwrap();
        assert_eq!((request.header("expect"), request.body_length), (None, ODD as u64), "{path}");
    }
    assert_eq!(scene.visitor().get("/early-hints").unwrap().text(), "after hints");
    assert_eq!((scene.bridge.interim_responses(), scene.bridge.relays_ever(NAME)), (0, POOL));
}

#[test]
fn an_answer_before_the_body_is_read_arrives_after_all_of_it() {
    let scene = Scene::open();
    let body = Pattern::default().bytes(8 << 20);
    let answer = scene.visitor().send("POST", "/hasty", &[], &body).unwrap();
    assert_eq!((answer.status, answer.text()), (200, "too soon".into()));
    scene.still_serves();
    assert_eq!(scene.bridge.unsolicited(), 0);
}

#[test]
fn a_target_that_answers_and_leaves_without_reading_does_not_spoil_the_connection() {
    let scene = Scene::open();
    for length in [10, 200_000, 16 << 20] {
        let answer = scene.visitor().send("POST", "/rude", &[], &vec![b'x'; length]).unwrap();
        assert_eq!((answer.status, answer.text()), (200, "too soon".into()), "{length}");
        scene.still_serves();
    }
    scene.full();
    scene.still_serves();
    assert_eq!(scene.bridge.unsolicited(), 0);
}

#[test]
fn a_request_in_a_body_that_nobody_read_is_never_carried_out() {
    let scene = Scene::open();
    let own = format!("X-Bamf-Target: http://127.0.0.1:{}\r\n", scene.target.address().port());
    let smuggled = format!("GET /smuggled HTTP/1.1\r\nHost: x\r\n{own}\r\n");
    for length in [smuggled.len(), 100_000, 3 << 20] {
        let body = smuggled.repeat(length / smuggled.len());
        let lines = format!("Content-Length: {}\r\n", body.len());
        for (method, path, unknown) in [("POST", "/refused", true), ("POST", "/rude", false), ("GET", "/hasty", false)]
        {
            let mut head = scene.head(method, path, &lines);
            if unknown {
                head = head.replace(&own, "X-Bamf-Target: http://elsewhere\r\n");
            }
            let answer = scene.raw(head + &body);
            let statuses: Vec<_> = answer.split("HTTP/1.1 ").skip(1).map(|rest| &rest[..3]).collect();
            assert_eq!(statuses, [if unknown { "403" } else { "200" }], "{path}, {length}: {answer}");
            scene.still_serves();
        }
    }
    assert!(scene.target.seen().requests.iter().all(|request| request.path != "/smuggled"));
    assert_eq!(scene.bridge.unsolicited(), 0);
}

#[test]
fn malformed_answers_are_504_or_cut_off_and_their_bytes_reach_nobody() {
    let scene = Scene::open();
    for path in ["/both-lengths", "/two-lengths", "/garbage", "/huge-head"] {
        let answer = scene.visitor().get(path).unwrap();
        // Something reached the target, so the proxy must not repeat it.
        assert_eq!(answer.status, 504, "{path}");
        assert!(!answer.text().contains("smug"), "{path}");
        scene.still_serves();
    }
    assert!(scene.visitor().get("/bad-chunk").is_err(), "cut off");
    assert!(scene.visitor().get("/reset/100000").is_err(), "cut off");
    scene.still_serves();
    assert_eq!(scene.bridge.unsolicited(), 0);
    scene.full();
}

#[test]
fn a_visitor_who_breaks_off_an_upload_frees_the_target() {
    let scene = Scene::open();
    let head = scene.head("POST", "/sink", "Content-Length: 1000000\r\n");
    let mut stream = std::net::TcpStream::connect(scene.bridge.internal_address()).unwrap();
    std::io::Write::write_all(&mut stream, (head + "some").as_bytes()).unwrap();
    assert!(scene.target.wait_for(LIMIT, |seen| seen.accepted == 1));
    drop(stream);
    assert!(scene.target.wait_for(LIMIT, |seen| seen.ended == 1), "{}", scene.agent.log());
    scene.full();
    scene.still_serves();
}
