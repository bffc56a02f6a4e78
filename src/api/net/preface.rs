//! Recognising what a client speaks on the gRPC port by its first bytes.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt as _};

/// What every HTTP/2 client sends first (RFC 9113, section 3.4).
pub(super) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const METHODS: [&[u8]; 9] =
    [b"GET ", b"HEAD ", b"POST ", b"PUT ", b"DELETE ", b"OPTIONS ", b"PATCH ", b"TRACE ", b"CONNECT "];

/// The first byte of a TLS handshake record.
const TLS_HANDSHAKE: u8 = 0x16;

/// What the first bytes of a connection are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spoken {
    /// The HTTP/2 preface, complete.
    Http2,
    /// An HTTP/1 request line.
    Http1,
    /// A TLS handshake, which this port does not offer.
    Tls,
    /// Something else.
    Garbage,
    /// Nothing: the client closed first.
    Nothing,
}

/// Reads just as much as it takes to tell, at most the preface.
///
/// # Errors
/// If the connection breaks.
pub(super) async fn recognise(connection: &mut (impl AsyncRead + Unpin)) -> io::Result<Spoken> {
    let mut bytes = [0_u8; PREFACE.len()];
    let mut filled = 0;
    loop {
        let read = connection.read(&mut bytes[filled..]).await?;
        filled += read;
        if read == 0 {
            return Ok(if filled == 0 { Spoken::Nothing } else { Spoken::Garbage });
        }
        if let Some(spoken) = classify(&bytes[..filled]) {
            return Ok(spoken);
        }
    }
}

/// `None` while there are too few bytes to tell.
fn classify(bytes: &[u8]) -> Option<Spoken> {
    if PREFACE.starts_with(bytes) {
        return (bytes.len() == PREFACE.len()).then_some(Spoken::Http2);
    }
    if bytes[0] == TLS_HANDSHAKE {
        return Some(Spoken::Tls);
    }
    if METHODS.iter().any(|method| bytes.starts_with(method)) {
        return Some(Spoken::Http1);
    }
    let may_become_a_method = METHODS.iter().any(|method| method.starts_with(bytes));
    (!may_become_a_method).then_some(Spoken::Garbage)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recognises_protocols_by_their_first_bytes() {
        assert_eq!(classify(PREFACE), Some(Spoken::Http2));
        assert_eq!(classify(b"GET /metrics HTTP/1.1\r\n"), Some(Spoken::Http1));
        assert_eq!(classify(b"POST "), Some(Spoken::Http1));
        assert_eq!(classify(&[TLS_HANDSHAKE, 3, 1]), Some(Spoken::Tls));
        assert_eq!(classify(b"\x00\x01\x02"), Some(Spoken::Garbage));
        assert_eq!(classify(b"PRI * HTTP/3"), Some(Spoken::Garbage));
    }

    #[test]
    fn waits_while_the_bytes_fit_several_protocols() {
        for undecided in [&b"P"[..], b"PO", b"PR", b"OPTIONS", &PREFACE[..23]] {
            assert_eq!(classify(undecided), None, "{undecided:?}");
        }
    }

    #[tokio::test]
    async fn reads_nothing_beyond_the_preface() {
        let mut sent = PREFACE.to_vec();
        sent.extend_from_slice(b"next");
        let mut rest = &sent[..];
        assert_eq!(recognise(&mut rest).await.unwrap(), Spoken::Http2);
        assert_eq!(rest, b"next");
        assert_eq!(recognise(&mut &b""[..]).await.unwrap(), Spoken::Nothing);
        assert_eq!(recognise(&mut &b"PRI"[..]).await.unwrap(), Spoken::Garbage);
    }
}
