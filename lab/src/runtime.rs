//! The runtime behind the blocking sides of the lab's tools; one for the process, so that a test may have many of them.

use std::future::Future;
use std::io;
use std::sync::OnceLock;

use tokio::runtime::{Builder, Handle, Runtime};

use crate::serve::Network;

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

/// A runtime whose threads are inside a network: what is connected to or listened on by its tasks belongs there.
#[derive(Debug)]
pub struct Inside {
    /// Absent only while it is being dropped.
    runtime: Option<Runtime>,
}

impl Inside {
    /// Starts so many threads and lets them enter.
    ///
    /// # Errors
    /// No thread can be started, or the network cannot be entered (that needs root).
    pub fn new(network: &Network, threads: usize) -> io::Result<Self> {
        // A thread of a runtime has nobody to tell that it failed.
        network.within(|| ())?;
        let network = network.clone();
        let mut builder = Builder::new_multi_thread();
        builder.worker_threads(threads).thread_name("lab-inside").enable_all();
        let runtime = builder.on_thread_start(move || drop(network.enter())).build()?;
        Ok(Self { runtime: Some(runtime) })
    }

    /// Runs a task beside the others.
    ///
    /// # Panics
    /// Never: there is a runtime until this is dropped.
    pub fn spawn<F>(&self, task: F) -> tokio::task::JoinHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        self.runtime.as_ref().expect("it is not dropped").spawn(task)
    }

    /// Runs a task inside and waits for it from outside any runtime.
    ///
    /// # Panics
    /// The task does, or this is called from async code.
    pub fn run<F>(&self, task: F) -> F::Output
    where
        F: Future<Output: Send> + Send + 'static,
    {
        block_on(self.spawn(task)).unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
