//! The application records of RFC 8448, section 3.

use super::*;

const CLIENT: &str = "9e40646ce79a7f9dc05af8889bce6552875afa0b06df0087f792ebb7c17504a5";
const SERVER: &str = "a11af9f05531f856ad47116b45a950328204b4f44bfb6b3a4b4f1f3fcb631643";

const CLIENT_DATA: &str = "1703030043a23f7054b62c94d0affafe8228ba55cbefacea42f914aa66bcab3f2b9819a8a5b46b395bd54a9a\
                           20441e2b62974e1f5a6292a2977014bd1e3deae63aeebb21694915e4";
const SERVER_DATA: &str = "17030300432e937e11ef4ac740e538ad36005fc4a46932fc3225d05f82aa1b36e30efaf97d90e6dffc602dcb\
                           501a59a8fcc49c4bf2e5f0a21c0047c2abf332540dd032e167c2955d";
const CLIENT_BYE: &str = "1703030013c9872760655666b74d7ff1153efd6db6d0b0e3";
const SERVER_BYE: &str = "1703030013b58fd67166ebf599d24720cfbe7efa7a8864a9";

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(|digit| !digit.is_ascii_whitespace()).collect();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

fn client() -> Records {
    let secret = |hex| TrafficSecret::new(&bytes(hex));
    let mut state = Records::new(Suite::Aes128Gcm, secret(CLIENT), secret(SERVER)).unwrap().export();
    // The server's first record is a ticket.
    state.inbound.sequence = 1;
    Records::import(state).unwrap()
}

#[test]
fn the_client_of_rfc_8448_says_what_it_says_there() {
    let plain: Vec<u8> = (0..50).collect();
    let mut client = client();
    assert_eq!(sealed(&mut client, &plain), bytes(CLIENT_DATA));
    let mut bye = Vec::new();
    client.close_notify(&mut bye).unwrap();
    assert_eq!(bye, bytes(CLIENT_BYE));
}

#[test]
fn the_server_of_rfc_8448_is_understood() {
    let mut client = client();
    let wire = [bytes(SERVER_DATA), bytes(SERVER_BYE)].concat();
    let (outcome, plain, answer) = opened(&mut client, &wire);
    assert_eq!(outcome, Ok(Opened { consumed: wire.len(), plain: 50, ended: true }));
    assert!(plain.into_iter().eq(0..50));
    assert!(answer.is_empty());
}
