//! Reading lines.

use std::io::{self, Read};

use bytes::{Bytes, BytesMut};
use tokio::sync::mpsc;

const CHUNK_BYTES: usize = 256 << 10;
/// Chunks that are read ahead. A full queue lets the reading thread wait.
const CHUNKS_AHEAD: usize = 8;
/// Largest line; no broker takes larger records than this anyway.
const LINE_BYTES_MAX: usize = 64 << 20;

/// Reads `source` on a thread of its own and gives it in pieces that end where a line ends; the last one perhaps not.
/// After an error there is nothing more.
///
/// The thread ends with the source, or at its next piece after the receiver is gone.
pub(super) fn read(source: impl Read + Send + 'static) -> mpsc::Receiver<io::Result<Bytes>> {
    let (chunks, receiver) = mpsc::channel(CHUNKS_AHEAD);
    // A thread and not a blocking task, since a runtime waits for its blocking tasks, and reading a terminal may never
    // end.
    let spawned = std::thread::Builder::new().name("streambus-read".to_owned()).spawn({
        let chunks = chunks.clone();
        move || {
            // An error to send means that nobody wants more.
            let _ = pump(source, &chunks);
        }
    });
    if let Err(error) = spawned {
        // The queue is empty, so there is room.
        let _ = chunks.try_send(Err(error));
    }
    receiver
}

type Gone = mpsc::error::SendError<io::Result<Bytes>>;

fn pump(mut source: impl Read, chunks: &mpsc::Sender<io::Result<Bytes>>) -> Result<(), Gone> {
    let mut buffer = BytesMut::new();
    loop {
        let old = buffer.len();
        buffer.resize(old + CHUNK_BYTES, 0);
        let read = match source.read(&mut buffer[old..]) {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return chunks.blocking_send(Err(error)),
        };
        buffer.truncate(old + read);
        if read == 0 {
            if !buffer.is_empty() {
                chunks.blocking_send(Ok(buffer.freeze()))?;
            }
            return Ok(());
        }
        if let Some(end) = buffer[old..].iter().rposition(|byte| *byte == b'\n') {
            chunks.blocking_send(Ok(buffer.split_to(old + end + 1).freeze()))?;
        } else if buffer.len() > LINE_BYTES_MAX {
            let error = format!("the line is longer than {LINE_BYTES_MAX} bytes");
            return chunks.blocking_send(Err(io::Error::new(io::ErrorKind::InvalidData, error)));
        }
    }
}

/// The lines of a chunk without their line feeds, otherwise unchanged. A line feed at the end begins no line.
pub(super) fn split(mut chunk: Bytes) -> impl Iterator<Item = Bytes> {
    std::iter::from_fn(move || {
        if chunk.is_empty() {
            return None;
        }
        match chunk.iter().position(|byte| *byte == b'\n') {
            Some(end) => {
                let mut line = chunk.split_to(end + 1);
                line.truncate(end);
                Some(line)
            }
            None => Some(std::mem::take(&mut chunk)),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives a few bytes at a time.
    struct Trickle(&'static [u8], usize);

    impl Read for Trickle {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let count = self.1.min(self.0.len()).min(into.len());
            let (now, later) = self.0.split_at(count);
            into[..count].copy_from_slice(now);
            self.0 = later;
            Ok(count)
        }
    }

    fn lines(source: impl Read + Send + 'static) -> Vec<Bytes> {
        let mut chunks = read(source);
        let mut lines = Vec::new();
        while let Some(chunk) = chunks.blocking_recv() {
            lines.extend(split(chunk.expect("readable")));
        }
        lines
    }

    #[test]
    fn lines_keep_every_byte_but_the_line_feed() {
        for step in 1..8 {
            assert_eq!(
                lines(Trickle(b"one\r\n\n two \xff\nlast", step)),
                ["one\r".as_bytes(), b"", b" two \xff", b"last"]
            );
        }
    }

    #[test]
    fn a_final_line_feed_adds_no_record() {
        assert_eq!(lines(Trickle(b"a\nb\n", 64)), ["a", "b"]);
        assert_eq!(lines(Trickle(b"", 64)), [""; 0]);
        assert_eq!(lines(Trickle(b"\n", 64)), [""]);
    }

    #[test]
    fn an_error_is_the_last_that_comes() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::ErrorKind::StaleNetworkFileHandle.into())
            }
        }
        let mut chunks = read(Broken);
        assert!(chunks.blocking_recv().expect("an answer").is_err());
        assert!(chunks.blocking_recv().is_none());
    }
}
