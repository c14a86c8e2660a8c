//! The runtime behind the blocking sides of the lab's tools; one for the process, so that a test may have many of them.

use std::future::Future;
use std::sync::OnceLock;

use tokio::runtime::{Builder, Handle, Runtime};

/// Waits for a future from outside any runtime.
///
/// # Panics
/// It is called from async code, or no thread can be started.
pub fn block_on<F: Future>(future: F) -> F::Output {
    runtime().block_on(future)
}

/// A handle to spawn with.
///
/// # Panics
/// No thread can be started.
#[must_use]
pub fn handle() -> &'static Handle {
    runtime().handle()
}

fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        let mut builder = Builder::new_multi_thread();
        builder.worker_threads(2).thread_name("lab-tools").enable_all().build().expect("threads can be started")
    })
}
