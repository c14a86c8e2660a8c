//! The cable between a dialler and a listener.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

const SHORT: Duration = Duration::from_millis(200);
const LONG: Duration = Duration::from_secs(20);

/// Both ends of a cable.
async fn ends(cable: &Cable, target: &TcpListener) -> (TcpStream, TcpStream) {
    let near = TcpStream::connect(cable.address()).await.unwrap();
    (near, target.accept().await.unwrap().0)
}

async fn laid() -> (Cable, TcpListener) {
    let target = TcpListener::bind("127.0.0.1:0").await.unwrap();
    (Cable::start(target.local_addr().unwrap()).unwrap(), target)
}

async fn ends_with(end: &mut TcpStream) -> io::Result<usize> {
    tokio::time::timeout(LONG, end.read(&mut [0; 16])).await.expect("an end")
}

#[tokio::test]
async fn bytes_and_half_closes_pass_through() {
    let (cable, target) = laid().await;
    let (mut near, mut far) = ends(&cable, &target).await;
    near.write_all(b"request").await.unwrap();
    near.shutdown().await.unwrap();
    let mut read = Vec::new();
    far.read_to_end(&mut read).await.unwrap();
    assert_eq!(read, b"request");
    far.write_all(b"answer").await.unwrap();
    drop(far);
    read.clear();
    near.read_to_end(&mut read).await.unwrap();
    assert_eq!(read, b"answer");
    assert_eq!(cable.connections(), 1);
}

#[tokio::test]
async fn a_snapped_cable_resets_both_ends_and_a_cut_one_closes_them() {
    let (cable, target) = laid().await;
    let (mut near, mut far) = ends(&cable, &target).await;
    cable.snap();
    for end in [&mut near, &mut far] {
        assert_eq!(ends_with(end).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }
    let (mut near, mut far) = ends(&cable, &target).await;
    cable.cut();
    for end in [&mut near, &mut far] {
        assert_eq!(ends_with(end).await.unwrap(), 0);
    }
}

#[tokio::test]
async fn a_reset_at_one_end_is_a_reset_at_the_other() {
    let (cable, target) = laid().await;
    let (near, mut far) = ends(&cable, &target).await;
    near.set_zero_linger().unwrap();
    drop(near);
    assert_eq!(ends_with(&mut far).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_stalled_cable_holds_everything_back_and_loses_nothing() {
    let (cable, target) = laid().await;
    let (mut near, mut far) = ends(&cable, &target).await;
    cable.stall_direction(Direction::Up);
    near.write_all(b"up").await.unwrap();
    far.write_all(b"down").await.unwrap();
    let mut read = [0; 4];
    near.read_exact(&mut read).await.unwrap();
    assert!(tokio::time::timeout(SHORT, far.read_u8()).await.is_err());
    cable.stall();
    cable.resume();
    far.read_exact(&mut read[..2]).await.unwrap();
    assert_eq!(&read[..2], b"up");
}

#[tokio::test]
async fn a_stalled_cable_pushes_back() {
    let (cable, target) = laid().await;
    let (mut near, _far) = ends(&cable, &target).await;
    cable.stall();
    let endless = async { while near.write_all(&[0; 1 << 16]).await.is_ok() {} };
    assert!(tokio::time::timeout(SHORT * 5, endless).await.is_err(), "the writer is held up");
}

#[tokio::test]
async fn everything_takes_its_time_and_keeps_its_order() {
    let (cable, target) = laid().await;
    let (mut near, mut far) = ends(&cable, &target).await;
    cable.delay(SHORT);
    let begun = Instant::now();
    near.write_all(b"one").await.unwrap();
    near.write_all(b"two").await.unwrap();
    let mut read = [0; 6];
    far.read_exact(&mut read).await.unwrap();
    assert_eq!(&read, b"onetwo");
    assert!(begun.elapsed() >= SHORT);
}

#[tokio::test]
async fn a_limited_cable_is_slow_and_pieces_are_small() {
    let (cable, target) = laid().await;
    let (mut near, mut far) = ends(&cable, &target).await;
    cable.split(10);
    cable.limit(Some(1000));
    let begun = Instant::now();
    near.write_all(&[7; 300]).await.unwrap();
    let mut all = Vec::new();
    while all.len() < 300 {
        let mut read = [0; 300];
        let length = far.read(&mut read).await.unwrap();
        all.extend_from_slice(&read[..length]);
    }
    assert!(begun.elapsed() >= Duration::from_millis(280) && all == [7; 300]);
    cable.limit(None);
    cable.split(1);
    near.write_all(&[8; 300]).await.unwrap();
    let mut read = [0; 300];
    far.read_exact(&mut read).await.unwrap();
    assert_eq!(read, [8; 300]);
}

#[tokio::test]
async fn a_cable_that_refuses_or_leads_nowhere_resets_new_connections_only() {
    let (cable, target) = laid().await;
    let (mut near, mut far) = ends(&cable, &target).await;
    let fails = async || {
        // The reset may come before the dialler has looked at its connection.
        let Ok(mut end) = TcpStream::connect(cable.address()).await else { return true };
        ends_with(&mut end).await.is_err()
    };
    cable.refuse(true);
    assert!(fails().await);
    cable.refuse(false);
    cable.retarget(SocketAddr::from(([127, 0, 0, 1], 1)));
    assert!(fails().await);
    near.write_all(b"x").await.unwrap();
    assert_eq!(far.read_u8().await.unwrap(), b'x');
    assert_eq!(cable.connections(), 3);
}
