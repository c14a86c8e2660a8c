//! Tells a client that its session is not opened. The platform has no word for it (protocol 6.2): a client that hears
//! nothing waits for the bridge's 30 s, so the session is opened and closed at once.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::stream::frame;
use crate::tunnel::dial::{self, Credentials};
use crate::tunnel::{BridgeAddress, session};

/// How long the bridge may take to pass it on: it waits for the client up to 30 s.
const LIMIT: Duration = Duration::from_secs(35);

pub(super) async fn tell(bridge: BridgeAddress, credentials: Credentials, session_id: String, session_type: String) {
    let telling = async {
        let (mut link, _took) = dial::connect(&bridge, &credentials).await.ok()?;
        let mut words = session::header(&session_id, &session_type);
        if !session::is_raw(&session_type) {
            words.push(frame::CLOSE);
        }
        link.write_all(&words).await.ok()?;
        link.shutdown().await.ok()?;
        // Until the bridge ends its side; what it sends is of no interest.
        let mut ignored = [0; 512];
        while link.read(&mut ignored).await.ok()? > 0 {}
        Some(())
    };
    drop(tokio::time::timeout(LIMIT, telling).await);
}
