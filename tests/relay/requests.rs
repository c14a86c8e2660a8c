//! What becomes of a request's head and of an answer's, and which requests go nowhere.

use bamf_lab::agent::{LIMIT, NAME};
use bamf_lab::runtime::block_on;
use bamf_lab::serve::Network;
use bamf_lab::targets::{Closed, Target, Tcp, TlsFront};
use bamf_lab::visitor::{Kind, Resource, User};

use super::scene::{POOL, Scene, wiki};

#[test]
fn the_first_web_request_opens_the_pool_within_the_platforms_second() {
    let scene = Scene::of("");
    assert_eq!(scene.bridge.relays(NAME), 0, "nobody has asked");
    let bridge = block_on(scene.plane.open_proxy_route(NAME, "")).unwrap();
    assert_eq!(bridge.internal, scene.bridge.internal_address());
    let answer = scene.visitor().get("/first").unwrap();
    assert_eq!((answer.status, &answer.json()["path"]), (200, &"/first".into()));
    scene.full();
    assert_eq!(scene.bridge.relays_ever(NAME), POOL);
    assert_eq!((scene.bridge.unsolicited(), scene.bridge.turned_away(), scene.bridge.failed_handshakes()), (0, 0, 0));
}

#[test]
fn path_query_and_header_reach_the_target_as_the_bridge_sent_them() {
    let scene = Scene::open();
    let lines = "Impersonate-User: root\r\nX_Forwarded_Email: eve@example.com\r\nX-Two: a\r\nX-Two: b\r\nTE: trailers\r\n\
                 x-CaSe: Kept\r\n";
    let head = scene.head("GET", "/a%2Fb//c/%C3%A4;v=1?q=%2F&empty=&a+b", lines);
    let answer = scene.raw(head);
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let request = scene.target.seen().requests.pop().unwrap();
    assert_eq!((&*request.method, &*request.version), ("GET", "HTTP/1.1"));
    // The bridge decodes and encodes paths anew; the agent changes nothing.
    assert_eq!(request.path, "/a/b//c/%C3%A4;v=1?q=%2F&empty=&a+b");
    assert_eq!(request.header("host"), Some(&*scene.target.address().to_string()));
    assert_eq!(request.all("host").count(), 1);
    assert_eq!(request.all("x-two").collect::<Vec<_>>(), ["a", "b"]);
    assert!(request.headers.iter().any(|(name, value)| name == "x-CaSe" && value == "Kept"));
    for (name, value) in [
        ("x-forwarded-email", "ana@example.com"),
        ("x-forwarded-user", "ana@example.com"),
        ("x-forwarded-roles", "dev,ops"),
        ("x-forwarded-for", "198.51.100.7"),
        ("x-forwarded-host", "wiki.tunnel.example.com"),
        ("x-forwarded-proto", "https"),
        ("accept-encoding", "identity"),
    ] {
        assert_eq!(request.all(name).collect::<Vec<_>>(), [value], "{name}");
    }
    let gone =
        ["x-bamf-target", "x-bamf-resource", "x-bamf-session-token", "impersonate-user", "x_forwarded_email", "te"];
    for name in gone {
        assert_eq!(request.header(name), None, "{name}");
    }
}

#[test]
fn the_users_session_reaches_only_resources_that_may_have_it() {
    let scene = Scene::with(|port| {
        let resource = |name: &str, extra: &str| {
            format!(
                "  - {{name: {name}, type: http, hostname: 127.0.0.1, port: {port}, tunnel_hostname: {name}{extra}}}\n"
            )
        };
        [
            resource("wiki", ""),
            resource("trusted", ", forward_session_token: true"),
            resource("gui", ", labels: {managed-by: bamf}"),
            resource("not-gui", ", labels: {managed-by: bamf}, forward_session_token: false"),
            resource("other", ", labels: {managed-by: somebody}"),
        ]
        .concat()
    })
    .opened();
    let port = scene.target.address().port();
    for (name, token) in [
        ("wiki", None),
        ("trusted", Some("tok-123")),
        ("gui", Some("tok-123")),
        ("not-gui", None),
        ("other", None),
        ("who", None),
    ] {
        let answer = scene.visitor_of(Resource::web(name, "127.0.0.1", port)).get("/").unwrap();
        assert_eq!(answer.status, 200);
        let request = scene.target.seen().requests.pop().unwrap();
        assert_eq!(request.header("x-bamf-session-token"), token, "{name}");
    }
}

#[test]
fn a_webhook_keeps_its_authorization_and_names_nobody() {
    let scene = Scene::open();
    let resource = Resource::web("wiki", "127.0.0.1", scene.target.address().port()).as_kind(Kind::Webhook);
    let answer = scene.visitor_of(resource).send("POST", "/hook", &[("Authorization", "Basic eA==")], b"{}").unwrap();
    assert_eq!(answer.status, 200);
    let request = scene.target.seen().requests.pop().unwrap();
    assert_eq!(request.header("authorization"), Some("Basic eA=="));
    assert_eq!((request.header("x-forwarded-email"), request.body_length), (None, 2));
}

#[test]
fn redirects_and_their_cookies_are_handed_through_and_not_followed() {
    let scene = Scene::open();
    let answer = scene.visitor().get("/redirect/elsewhere").unwrap();
    assert_eq!((answer.status, answer.header("location")), (302, Some("/elsewhere")));
    let cookies: Vec<_> = answer.headers.get_all("set-cookie").iter().collect();
    assert_eq!(cookies, ["stop=here", "and=there"]);
    assert_eq!(scene.target.seen().requests.len(), 1);
}

#[test]
fn what_no_resource_has_as_its_origin_is_refused_and_nothing_is_dialled() {
    let trap = Target::tcp(&Network::Host, Tcp::Sink).unwrap();
    let secret = trap.address().port();
    // A database is reached through a tunnel or not at all.
    let scene = Scene::with(|port| {
        format!("{}\n  - {{name: db, type: tcp, hostname: 127.0.0.1, port: {secret}}}\n", wiki(port, ""))
    })
    .opened();
    let port = scene.target.address().port();
    let origins = [
        format!("http://127.0.0.1:{secret}"),
        "http://127.0.0.1:22".to_owned(),
        "http://127.0.0.1".to_owned(),
        "http://169.254.169.254".to_owned(),
        format!("http://localhost:{port}"),
        format!("https://127.0.0.1:{port}"),
        format!("http://127.0.0.1:{port}@127.0.0.1:{secret}"),
        format!("http://ana@127.0.0.1:{port}"),
        format!("http://127.0.0.1:{port}/path"),
        format!("http://127.0.0.1:{port}?"),
        format!("http://127.0.0.1:{port}#"),
        format!("http://127.0.0.1:{port}//"),
        format!("http://127.0.0.1:0{port}"),
        format!("http://127.0.0.1.:{port}"),
        format!("http://127.1:{port}"),
        format!("http://2130706433:{port}"),
        format!("http://0x7f000001:{port}"),
        format!("http://[::ffff:127.0.0.1]:{port}"),
        format!("http://127.0.0.1:{port},http://127.0.0.1:{secret}"),
        format!("http:\\\\127.0.0.1:{port}"),
        format!("127.0.0.1:{port}"),
        "file:///etc/passwd".to_owned(),
        "unix:///run/bamf-agent/agent.sock".to_owned(),
    ];
    let own = format!("X-Bamf-Target: http://127.0.0.1:{port}\r\n");
    let head = scene.head("GET", "/x", "");
    assert!(head.contains(&own));
    for origin in origins {
        let answer = scene.raw(head.replace(&own, &format!("X-Bamf-Target: {origin}\r\n")));
        assert!(answer.starts_with("HTTP/1.1 403 "), "{origin}: {answer}");
    }
    for (lines, why) in [(String::new(), "none"), ("X-Bamf-Target: \r\n".to_owned(), "empty"), (own.repeat(2), "two")] {
        let answer = scene.raw(head.replace(&own, &lines));
        assert!(answer.starts_with("HTTP/1.1 502 "), "{why}: {answer}");
    }
    // A head for a cluster does not open the way to a web application.
    let answer = scene.raw(scene.head("GET", "/x", "X-Forwarded-K8s-Groups: view\r\n"));
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
    assert_eq!((trap.seen().accepted, scene.target.seen().accepted), (0, 0));
    scene.still_serves();
    assert_eq!(scene.bridge.relays_ever(NAME), POOL, "every connection stayed usable");
}

#[test]
fn a_target_that_is_down_is_a_502_that_the_proxy_turns_into_503() {
    let closed = Closed::reserve(&Network::Host).unwrap();
    let down = closed.address().port();
    let scene = Scene::with(|port| {
        format!(
            "{}\n  - {{name: down, type: http, hostname: 127.0.0.1, port: {down}, tunnel_hostname: down}}\n",
            wiki(port, "")
        )
    })
    .opened();
    let visitor = scene.visitor_of(Resource::web("down", "127.0.0.1", down));
    let answer = visitor.send("POST", "/", &[], &[7; 100_000]).unwrap();
    assert_eq!((answer.status, answer.header("content-type")), (502, Some("text/plain")));
    assert!(answer.text().contains("the target cannot be reached"), "{}", answer.text());
    let replayed = visitor.with_replays().get("/").unwrap();
    assert_eq!((replayed.status, replayed.sent), (503, 3));
    scene.still_serves();
    assert_eq!(scene.bridge.relays_ever(NAME), POOL);
}

#[test]
fn a_502_of_the_targets_own_does_not_run_a_post_three_times() {
    let scene = Scene::open();
    let visitor = scene.visitor().with_replays();
    let answer = visitor.send("POST", "/status/502", &[], b"order").unwrap();
    assert_eq!((answer.status, answer.sent), (504, 1));
    assert_eq!(visitor.get("/status/502").unwrap().sent, 3);
    assert_eq!(scene.target.seen().requests.len(), 4);
}

#[test]
fn an_https_resource_is_spoken_to_in_tls_under_its_own_authority() {
    let target = Target::http(&Network::Host).unwrap();
    let front = TlsFront::start(&Network::Host, &[], target.address()).unwrap();
    let stranger = TlsFront::start(&Network::Host, &[], target.address()).unwrap();
    let (good, bad) = (front.address().port(), stranger.address().port());
    let scene = Scene::in_home(
        |_| {
            let resource = |name: &str, port| {
                format!(
                    "  - {{name: {name}, type: https, hostname: localhost, port: {port}, tunnel_hostname: {name}}}\n"
                )
            };
            resource("secure", good) + &resource("strange", bad)
        },
        |home| {
            let roots = home.path("web-ca.pem");
            let both = bamf_lab::agent::read(&roots) + front.ca_pem();
            bamf_lab::agent::write(roots, both);
        },
    )
    .opened();
    let visitor = scene.visitor_of(Resource::web("secure", "localhost", good));
    for number in 0..3 {
        let answer = visitor.get(&format!("/{number}")).unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    assert_eq!(target.seen().accepted, 1, "the connection is kept");
    assert_eq!(target.seen().requests[0].header("host"), Some(&*format!("localhost:{good}")));
    super::scene::is_pattern(&visitor.get("/big/8388608").unwrap().body, 8 << 20);
    let answer = scene.visitor_of(Resource::web("strange", "localhost", bad)).get("/").unwrap();
    assert_eq!(answer.status, 502);
    assert!(answer.text().contains("no TLS with the target"), "{}", answer.text());
    assert_eq!(target.seen().accepted, 1, "{}", scene.agent.log());
}

#[test]
fn several_users_at_once_get_each_their_own_answer() {
    let scene = Scene::open();
    std::thread::scope(|scope| {
        for user in 0..16 {
            let email = format!("user-{user}@example.com");
            let visitor = scene.visitor().by(User { email: email.clone(), ..User::default() });
            scope.spawn(move || {
                for round in 0..50 {
                    let path = format!("/{user}/{round}");
                    let answer = visitor.get(&path).unwrap().json();
                    assert_eq!(answer["path"], path);
                    let headers = answer["headers"].as_array().unwrap();
                    let is = |field: &str| field.eq_ignore_ascii_case("x-forwarded-email");
                    assert!(
                        headers.iter().any(|field| is(field[0].as_str().unwrap()) && field[1] == email),
                        "{answer}"
                    );
                }
            });
        }
    });
    assert!(scene.target.wait_for(LIMIT, |seen| seen.requests.len() == 800));
    assert_eq!(scene.bridge.unsolicited(), 0);
}
