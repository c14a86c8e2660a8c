//! `/health`, `/ready` and `/metrics` (contract section 5, protocol 10.2).

use std::sync::Arc;

use bytes::Bytes;
use hyper::{Method, StatusCode};
use tokio::net::TcpListener;

use super::Board;
use crate::listen::{self, Routes};
use crate::tasks::Tasks;
use crate::telemetry::metrics;

pub(super) async fn serve(listener: TcpListener, board: Board, tasks: Tasks) {
    let routes: Routes = Arc::new(move |request| {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return listen::text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
        }
        match request.uri().path() {
            "/health" => listen::text(StatusCode::OK, "ok\n"),
            "/ready" if board.connected() => listen::text(StatusCode::OK, "ready\n"),
            "/ready" => listen::text(StatusCode::SERVICE_UNAVAILABLE, "not ready\n"),
            "/metrics" => listen::with_type(StatusCode::OK, metrics::CONTENT_TYPE, Bytes::from(board.scrape())),
            _ => listen::text(StatusCode::NOT_FOUND, "see /health, /ready and /metrics\n"),
        }
    });
    listen::serve(listener, routes, tasks).await;
}
