//! The alerts of TLS 1.3 and their names (RFC 8446, 6).

use std::fmt;

/// What one end tells the other before it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alert(pub u8);

impl Alert {
    /// Nothing follows.
    pub const CLOSE_NOTIFY: Self = Self(0);
    /// A message at the wrong time.
    pub const UNEXPECTED_MESSAGE: Self = Self(10);
    /// A record that does not come from the peer, or not in this order.
    pub const BAD_RECORD_MAC: Self = Self(20);
    /// A record that is too long.
    pub const RECORD_OVERFLOW: Self = Self(22);
    /// A field with a value that it cannot have.
    pub const ILLEGAL_PARAMETER: Self = Self(47);
    /// A message that is not as long as it has to be.
    pub const DECODE_ERROR: Self = Self(50);
    /// Another version of the protocol.
    pub const PROTOCOL_VERSION: Self = Self(70);
    /// Something on the sender's side.
    pub const INTERNAL_ERROR: Self = Self(80);
    /// Somebody does not want to go on; a `close_notify` follows.
    pub const USER_CANCELED: Self = Self(90);

    const fn name(self) -> Option<&'static str> {
        Some(match self.0 {
            0 => "close_notify",
            10 => "unexpected_message",
            20 => "bad_record_mac",
            22 => "record_overflow",
            40 => "handshake_failure",
            42 => "bad_certificate",
            43 => "unsupported_certificate",
            44 => "certificate_revoked",
            45 => "certificate_expired",
            46 => "certificate_unknown",
            47 => "illegal_parameter",
            48 => "unknown_ca",
            49 => "access_denied",
            50 => "decode_error",
            51 => "decrypt_error",
            70 => "protocol_version",
            71 => "insufficient_security",
            80 => "internal_error",
            86 => "inappropriate_fallback",
            90 => "user_canceled",
            109 => "missing_extension",
            110 => "unsupported_extension",
            112 => "unrecognized_name",
            113 => "bad_certificate_status_response",
            115 => "unknown_psk_identity",
            116 => "certificate_required",
            120 => "no_application_protocol",
            _ => return None,
        })
    }
}

impl fmt::Display for Alert {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "number {}", self.0),
        }
    }
}
