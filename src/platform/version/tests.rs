//! What counts as a report, as silence, and as an API that could not be asked.

use std::collections::BTreeMap;
use std::sync::Arc;

use bamf_lab::serve::{Body, Handler, Network, Server};
use http_body_util::{BodyExt, Full};

use super::*;
use crate::config::NetworkConfig;

fn body(text: &str) -> Answer {
    Answer::Body(text.as_bytes().to_vec())
}

fn released(version: &str) -> Version {
    version.parse().unwrap()
}

fn reported(version: &str, at: &'static str) -> Option<ApiVersion> {
    Some(ApiVersion::Reported { version: version.parse().unwrap(), at })
}

#[test]
fn the_first_report_wins_and_the_constant_of_todays_servers_is_none() {
    let healthy = r#"{"status":"healthy"}"#;
    let constant = r#"{"info":{"title":"BAMF API","version":"0.1.0"},"paths":{}}"#;
    let html = "<!doctype html><title>Sign in</title>";
    let table = [
        (
            [body(r#"{"version":"1.2.0"}"#), body(r#"{"version":"9.9.9"}"#), body(constant)],
            reported("1.2.0", "/api/v1/version"),
        ),
        ([body(r#"{"version":"v1.2.0"}"#), Answer::Silent, Answer::Silent], reported("1.2.0", "/api/v1/version")),
        (
            [body(r#"{"version":" 1.2.0-rc.1+abc "}"#), Answer::Silent, Answer::Silent],
            reported("1.2.0-rc.1", "/api/v1/version"),
        ),
        // The constant is only a constant in the description.
        ([body(r#"{"version":"0.1.0"}"#), Answer::Silent, Answer::Silent], reported("0.1.0", "/api/v1/version")),
        ([Answer::Silent, body(r#"{"version":"1.2.0"}"#), body(constant)], reported("1.2.0", "/health")),
        ([Answer::Failed, body(r#"{"version":"1.2.0"}"#), body(constant)], reported("1.2.0", "/health")),
        ([body(html), body(healthy), body(r#"{"info":{"version":"v1.2.0"}}"#)], reported("1.2.0", "/api/openapi.json")),
        ([Answer::Silent, body(healthy), body(constant)], Some(ApiVersion::NotReported)),
        ([Answer::Silent, body(healthy), body(r#"{"info":{"version":"v0.1.0"}}"#)], Some(ApiVersion::NotReported)),
        ([Answer::Silent, Answer::Silent, Answer::Silent], Some(ApiVersion::NotReported)),
        ([body(html), body(html), body(html)], Some(ApiVersion::NotReported)),
        ([body(r#"{"version":12}"#), body(r#"{"version":null}"#), body("[]")], Some(ApiVersion::NotReported)),
        ([body(r#"{"version":"latest"}"#), body(r#"{"version":"1.2"}"#), body("{}")], Some(ApiVersion::NotReported)),
        ([body(""), body("\u{0}"), body(r#"{"info":[]}"#)], Some(ApiVersion::NotReported)),
        // One that could not be asked might have reported.
        ([Answer::Failed, body(healthy), body(constant)], None),
        ([Answer::Silent, body(healthy), Answer::Failed], None),
    ];
    for (answers, expected) in table {
        assert_eq!(decide(&answers), expected, "{answers:?}");
    }
}

#[test]
fn an_absurdly_long_version_is_none() {
    let long = format!(r#"{{"version":"1.2.0-{}"}}"#, "9".repeat(1000));
    assert_eq!(decide(&[body(&long), Answer::Silent, Answer::Silent]), Some(ApiVersion::NotReported));
}

#[test]
fn a_report_wins_over_an_assumption_and_a_conflict_is_a_warning() {
    let assumed: Version = "1.3.0".parse().unwrap();
    let found = ApiVersion::Reported { version: "1.2.0".parse().unwrap(), at: "/health" };
    let settled = settle(found.clone(), Some(&assumed));
    assert_eq!((settled.version, settled.origin), (Some("1.2.0".parse().unwrap()), Some("/health")));
    let warning = settled.warning.unwrap();
    assert!(warning.contains("1.2.0") && warning.contains("1.3.0"), "{warning}");

    assert_eq!(settle(found.clone(), Some(&"1.2.0+build".parse().unwrap())).warning, None);
    assert_eq!(settle(found, None).warning, None);
}

#[test]
fn an_assumption_stands_in_for_a_silent_api_only() {
    let assumed: Version = "1.3.0".parse().unwrap();
    let settled = settle(ApiVersion::NotReported, Some(&assumed));
    assert_eq!((settled.version, settled.origin), (Some(assumed), Some("assume_api_version")));
    assert_eq!(settle(ApiVersion::NotReported, None).version, None);
}

/// An API that answers by path: status and body; 404 elsewhere.
fn api(answers: &[(&'static str, u16, String)]) -> Server {
    let answers: BTreeMap<_, _> = answers.iter().map(|(path, status, body)| (*path, (*status, body.clone()))).collect();
    let handler: Handler = Arc::new(move |request| {
        let (status, text) = answers.get(request.uri().path()).cloned().unwrap_or((404, "{}".into()));
        let body: Body = Full::from(text).map_err(|never| match never {}).boxed();
        Box::pin(async move { Ok(hyper::Response::builder().status(status).body(body).unwrap()) })
    });
    Server::start(&Network::Host, 0, None, handler).unwrap()
}

fn ask_at(address: &str) -> Result<ApiVersion, Error> {
    let client = http::client(&NetworkConfig::default(), http::Purpose::Platform, "1.2.0").unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(discover(&client, &Url::parse(address).unwrap()))
}

#[test]
fn the_description_of_the_api_may_be_large_and_the_base_may_end_in_a_slash() {
    let openapi = format!(r#"{{"paths":"{}","info":{{"version":"1.2.0"}}}}"#, "x".repeat(1 << 20));
    let api = api(&[("/api/openapi.json", 200, openapi)]);
    let found = ask_at(&format!("http://{}/", api.address())).unwrap();
    assert_eq!(Some(found), reported("1.2.0", "/api/openapi.json"));
}

#[test]
fn an_answer_beyond_its_cap_reports_nothing() {
    let padding = " ".repeat(SMALL_ANSWER_BYTES);
    let api = api(&[("/api/v1/version", 200, format!(r#"{{"version":"1.2.0"}}{padding}"#))]);
    assert_eq!(ask_at(&format!("http://{}", api.address())).unwrap(), ApiVersion::NotReported);
}

#[test]
fn an_ingress_that_answers_for_an_api_that_is_away_is_no_silent_api() {
    let away = "<html>503 Service Unavailable</html>".to_owned();
    let paths = ["/api/v1/version", "/health", "/api/openapi.json"];
    let api = api(&paths.map(|path| (path, 503, away.clone())));
    let error = ask_at(&format!("http://{}", api.address())).unwrap_err();
    assert_eq!(error.reason(), Reason::ApiUnreachable);
    assert!(error.to_string().contains("/api/v1/version answered 503"), "{error}");
}

#[test]
fn an_api_that_cannot_be_reached_is_an_error_that_shows_no_password() {
    let error = ask_at("http://user:hunter2@127.0.0.1:1").unwrap_err();
    assert_eq!(error.reason(), Reason::ApiUnreachable);
    let text = http::chain(&error);
    assert!(text.contains("refused") && !text.contains("hunter2"), "{text}");
}

#[test]
fn an_agent_ahead_of_its_api_is_told_the_command_that_steps_down() {
    let advice = ahead_of_api(&released("1.3.0"), &released("1.2.0")).unwrap();
    assert!(
        advice.contains("1.3.0") && advice.contains("1.2.0") && advice.contains("update --allow-downgrade"),
        "{advice}"
    );
    assert_eq!(ahead_of_api(&released("1.2.0"), &released("1.2.0")), None);
    assert_eq!(ahead_of_api(&released("1.2.0-dev"), &released("1.2.0")), None);
}
