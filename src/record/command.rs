//! What a partition's Raft group replicates.
//!
//! A command is a header of 16 bytes, all numbers little-endian, and for an append its frames:
//!
//! | bytes | field | append | trim |
//! |---|---|---|---|
//! | 0 | version | 1 | 1 |
//! | 1 | kind | 1 | 2 |
//! | 2..4 | reserved | zero | zero |
//! | 4..8 | frame count | u32, at least 1 | zero |
//! | 8..16 | argument | append time, i64, milliseconds since the Unix epoch | first offset that stays, u64 |
//! | 16.. | frames | frame count times a frame | nothing |
//!
//! A frame is a header of 64 bytes and the batch as the producer sent it:
//!
//! | bytes | field | |
//! |---|---|---|
//! | 0..4 | batch length | u32, at least 1 |
//! | 4..8 | record count | u32, at least 1 |
//! | 8 | flags | bit 0: the producer fields are set; others zero |
//! | 9 | codec | number of the [`Codec`](super::Codec) |
//! | 10..12 | reserved | zero |
//! | 12..16 | producer epoch | u32, zero without a producer |
//! | 16..24 | producer id | u64, zero without a producer |
//! | 24..28 | base sequence | u32, zero without a producer |
//! | 28..32 | reserved | zero |
//! | 32..40 | largest record timestamp | i64, milliseconds since the Unix epoch, zero if unknown |
//! | 40..56 | trace id | zero if not sampled |
//! | 56..64 | span id | zero if and only if the trace id is |

use bytes::{BufMut, Bytes, BytesMut};

use super::frame::HEADER_LEN as FRAME_HEADER_LEN;
use super::{Frame, FrameHeader, Offset};

const VERSION: u8 = 1;
const APPEND: u8 = 1;
const TRIM: u8 = 2;
const HEADER_LEN: usize = 16;
/// Where the frame count lies in a command.
const FRAME_COUNT_AT: usize = 4;

/// Why bytes are not a command. Since commands come from a broker's own log or leader, each of these means damage
/// or a newer version, never a mistake of a client.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The command ends early.
    #[error("the command is cut short: {needed} bytes are needed at byte {at}, {left} are left")]
    Truncated {
        /// Position in the command.
        at: usize,
        /// Bytes that should be there.
        needed: usize,
        /// Bytes that are there.
        left: usize,
    },
    /// The command was written by another version.
    #[error("the command has version {version}; this broker knows version 1")]
    UnknownVersion {
        /// The version.
        version: u8,
    },
    /// The command is of a kind that this broker does not know.
    #[error("the command is of unknown kind {kind}")]
    UnknownKind {
        /// Number of the kind.
        kind: u8,
    },
    /// The command's header contradicts itself.
    #[error("the command's header is invalid: {what}")]
    InvalidHeader {
        /// What is wrong.
        what: &'static str,
    },
    /// A frame's header contradicts itself.
    #[error("the frame at byte {at} is invalid: {what}")]
    InvalidFrame {
        /// Position of the frame in the command.
        at: usize,
        /// What is wrong.
        what: &'static str,
    },
    /// Bytes follow the last frame.
    #[error("{bytes} bytes follow the end of the command")]
    TrailingBytes {
        /// How many.
        bytes: usize,
    },
}

/// A command of a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Appends batches.
    Append(Append),
    /// Removes the records below an offset.
    Trim {
        /// The first offset that stays.
        before: Offset,
    },
}

impl Command {
    /// Reads a command and checks all of it, down to each frame's header. Batches are not looked into.
    ///
    /// # Errors
    ///
    /// See [`Error`].
    pub fn decode(bytes: &Bytes) -> Result<Command, Error> {
        let Some((header, _)) = bytes.split_first_chunk::<HEADER_LEN>() else {
            return Err(Error::Truncated { at: 0, needed: HEADER_LEN, left: bytes.len() });
        };
        let [version, kind, reserved @ .., _, _, _, _, _, _, _, _, _, _, _, _] = *header;
        if version != VERSION {
            return Err(Error::UnknownVersion { version });
        }
        if reserved != [0; 2] {
            return Err(Error::InvalidHeader { what: "reserved bytes are not zero" });
        }
        let [_, _, _, _, f0, f1, f2, f3, argument @ ..] = *header;
        let frame_count = u32::from_le_bytes([f0, f1, f2, f3]);
        match kind {
            APPEND => Append::check(bytes, frame_count, i64::from_le_bytes(argument)).map(Command::Append),
            TRIM if frame_count != 0 => Err(Error::InvalidHeader { what: "a trim has frames" }),
            TRIM if bytes.len() > HEADER_LEN => Err(Error::TrailingBytes { bytes: bytes.len() - HEADER_LEN }),
            TRIM => Ok(Command::Trim { before: Offset(u64::from_le_bytes(argument)) }),
            _ => Err(Error::UnknownKind { kind }),
        }
    }

    /// Writes a command that removes the records below `before` to the end of `buf`.
    pub fn encode_trim(before: Offset, buf: &mut impl BufMut) {
        put_header(TRIM, buf);
        buf.put_u64_le(before.0);
    }
}

/// An append command that was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Append {
    append_time_ms: i64,
    frame_count: u32,
    /// INVARIANT: exactly `frame_count` valid frames.
    frames: Bytes,
}

impl Append {
    /// When the leader appended the batches, in milliseconds since the Unix epoch.
    #[must_use]
    pub fn append_time_ms(&self) -> i64 {
        self.append_time_ms
    }

    /// Number of batches, at least 1.
    #[must_use]
    pub fn frame_count(&self) -> u32 {
        self.frame_count
    }

    /// The batches, in order, as slices of the command.
    #[must_use]
    pub fn frames(&self) -> Frames {
        Frames { rest: self.frames.clone(), left: self.frame_count }
    }

    fn check(bytes: &Bytes, frame_count: u32, append_time_ms: i64) -> Result<Append, Error> {
        if frame_count == 0 {
            return Err(Error::InvalidHeader { what: "an append has no frames" });
        }
        let mut at = HEADER_LEN;
        for _ in 0..frame_count {
            let (_, batch_len) = FrameHeader::read(&bytes[at..], at)?;
            at += FRAME_HEADER_LEN;
            let left = bytes.len() - at;
            if left < batch_len {
                return Err(Error::Truncated { at, needed: batch_len, left });
            }
            at += batch_len;
        }
        if at < bytes.len() {
            return Err(Error::TrailingBytes { bytes: bytes.len() - at });
        }
        Ok(Append { append_time_ms, frame_count, frames: bytes.slice(HEADER_LEN..) })
    }
}

/// The batches of an [`Append`].
#[derive(Clone, Debug)]
pub struct Frames {
    /// INVARIANT: exactly `left` valid frames.
    rest: Bytes,
    left: u32,
}

impl Iterator for Frames {
    type Item = Frame;

    fn next(&mut self) -> Option<Frame> {
        self.left = self.left.checked_sub(1)?;
        let (header, batch_len) =
            FrameHeader::read(&self.rest, 0).expect("an Append holds as many valid frames as it counts");
        let batch = self.rest.slice(FRAME_HEADER_LEN..FRAME_HEADER_LEN + batch_len);
        bytes::Buf::advance(&mut self.rest, FRAME_HEADER_LEN + batch_len);
        Some(Frame { header, batch })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left as usize, Some(self.left as usize))
    }
}

impl ExactSizeIterator for Frames {}

/// Writes an append command to the end of a buffer, batch by batch.
///
/// A command without batches is not valid: dropping a writer takes back what it wrote.
#[derive(Debug)]
pub struct AppendWriter<'a> {
    buf: &'a mut BytesMut,
    /// Where the command starts in `buf`.
    start: usize,
    frame_count: u32,
    finished: bool,
}

impl<'a> AppendWriter<'a> {
    /// Bytes that each batch takes beside its own.
    pub const FRAME_OVERHEAD: usize = FRAME_HEADER_LEN;
    /// Bytes that each command takes beside its frames.
    pub const COMMAND_OVERHEAD: usize = HEADER_LEN;

    /// Starts a command at the end of `buf`, which may hold something else before. `append_time_ms` is the
    /// leader's time in milliseconds since the Unix epoch; the caller sees to it that it never decreases within a
    /// partition.
    pub fn new(buf: &'a mut BytesMut, append_time_ms: i64) -> Self {
        let start = buf.len();
        put_header(APPEND, buf);
        buf.put_i64_le(append_time_ms);
        AppendWriter { buf, start, frame_count: 0, finished: false }
    }

    /// Adds a batch. It must be the one that `header` was made for.
    ///
    /// # Panics
    ///
    /// If the batch is empty, has no records or exceeds `u32::MAX` bytes, which [`skim`](super::skim()) refuses.
    pub fn push(&mut self, header: &FrameHeader, batch: &[u8]) {
        assert!(!batch.is_empty() && header.records > 0, "a skimmed batch has records");
        let batch_len = u32::try_from(batch.len()).expect("limits of skimmed batches have 32 bits");
        self.buf.reserve(FRAME_HEADER_LEN + batch.len());
        header.write(batch_len, self.buf);
        self.buf.put_slice(batch);
        self.frame_count += 1;
    }

    /// Number of batches so far.
    #[must_use]
    pub fn frame_count(&self) -> u32 {
        self.frame_count
    }

    /// Bytes of the command so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.buf.len() - self.start
    }

    /// Whether there is no batch yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.frame_count == 0
    }

    /// Completes the command.
    ///
    /// # Panics
    ///
    /// If no batch was pushed.
    pub fn finish(mut self) {
        assert!(self.frame_count > 0, "an append command has at least one batch");
        let count_at = self.start + FRAME_COUNT_AT;
        self.buf[count_at..count_at + 4].copy_from_slice(&self.frame_count.to_le_bytes());
        self.finished = true;
    }
}

impl Drop for AppendWriter<'_> {
    fn drop(&mut self) {
        if !self.finished {
            self.buf.truncate(self.start);
        }
    }
}

/// Writes all of the header but its argument.
fn put_header(kind: u8, buf: &mut impl BufMut) {
    buf.put_slice(&[VERSION, kind, 0, 0]);
    buf.put_u32_le(0);
}
