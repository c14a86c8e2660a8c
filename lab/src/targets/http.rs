//! The web site: one request after the other, each answered as its path says.

use std::io;
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use super::message::{Connection, Request};
use super::{Shared, sites};

/// Whether a connection goes on after an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum After {
    Keep,
    End,
}

pub(super) fn serve(stream: TcpStream, shared: &Shared) -> io::Result<()> {
    let mut connection = Connection::new(stream);
    while let Some(request) = connection.request()? {
        let closes = request.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
        let (site, argument) = route(&request.path);
        if site.starts_with("ws") && site != "ws-refused" {
            shared.note(|seen| seen.requested(request.clone()));
            return sites::websocket(connection, &request, site == "ws-greeting", shared);
        }
        let after = answer(&mut connection, request, (&site, &argument), shared)?;
        if after == After::End || closes {
            break;
        }
    }
    let stream = connection.into_stream();
    // Unread input would make a reset of the end, which may overtake the answer.
    stream.shutdown(Shutdown::Write)?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    drop(super::tcp::drain(stream, shared));
    Ok(())
}

/// The first part of the path, and the second without its query.
fn route(path: &str) -> (String, String) {
    let mut parts = path.trim_start_matches('/').splitn(2, '/');
    let without_query = |part: Option<&str>| part.unwrap_or_default().split('?').next().unwrap_or_default().to_owned();
    (without_query(parts.next()), without_query(parts.next()))
}

fn answer(
    connection: &mut Connection,
    mut request: Request,
    (site, argument): (&str, &str),
    shared: &Shared,
) -> io::Result<After> {
    let number: u64 = argument.split('/').next().and_then(|number| number.parse().ok()).unwrap_or_default();
    if matches!(site, "hasty" | "rude") {
        shared.note(|seen| seen.requested(request.clone()));
        connection.send(sites::text(200, "too soon"))?;
        if site == "rude" {
            return Ok(After::End);
        }
        connection.body(&mut request)?;
        return Ok(After::Keep);
    }
    if site == "continue" {
        connection.send("HTTP/1.1 100 Continue\r\n\r\n")?;
    }
    connection.body(&mut request)?;
    shared.note(|seen| seen.requested(request.clone()));
    match site {
        "big" | "chunked" | "close-delimited" | "http10" => sites::bulk(connection, &request, site, number, shared),
        "steady" => sites::steady(connection, argument, shared),
        "reset" => sites::reset(connection, number, shared),
        "never" | "slow" | "sse" | "sse-endless" | "sse-every" | "sse-silent" => {
            sites::slow(connection, site, number, shared)
        }
        "both-lengths" | "two-lengths" | "bad-chunk" | "huge-head" | "garbage" => sites::malformed(connection, site),
        _ => sites::plain(connection, &request, (site, argument)),
    }
}
