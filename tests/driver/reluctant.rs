//! A target that is there and does not answer the call, for as long as a test wants.

use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::timeout;

/// Nothing takes longer, however busy the machine is.
const LIMIT: Duration = Duration::from_secs(60);

/// A target that lets callers wait until [`Self::open`].
pub(super) struct Reluctant {
    listener: TcpListener,
    waiting: Vec<TcpStream>,
}

impl Reluctant {
    pub(super) async fn new() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(1).unwrap();
        let mut waiting = Vec::new();
        // The kernel answers no further caller once its queue is full; how long that is, is its own affair.
        while let Ok(connected) =
            timeout(Duration::from_millis(200), TcpStream::connect(listener.local_addr().unwrap())).await
        {
            waiting.push(connected.unwrap());
        }
        Self { listener, waiting }
    }

    pub(super) fn port(&self) -> u16 {
        self.listener.local_addr().unwrap().port()
    }

    /// Takes whoever waited before, and then the one that comes.
    pub(super) async fn open(&mut self) -> TcpStream {
        for _ in self.waiting.drain(..) {
            self.listener.accept().await.unwrap();
        }
        self.accept().await
    }

    async fn accept(&self) -> TcpStream {
        loop {
            let (mut stream, _) = timeout(LIMIT, self.listener.accept()).await.expect("nobody calls").unwrap();
            // Who gave up waiting in the queue says nothing.
            let mut first = [0];
            if stream.peek(&mut first).await.unwrap() == 1 {
                return stream;
            }
            stream.shutdown().await.ok();
        }
    }
}
