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
    /// Bytes of a trim.
    pub const TRIM_LEN: usize = HEADER_LEN;

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

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::option;
    use proptest::prelude::*;

    use super::*;
    use crate::record::{Codec, ProducerSequence, SpanLink};

    const PRODUCER: ProducerSequence =
        ProducerSequence { producer_id: 0x0102_0304, epoch: 5, base_sequence: 6 };

    fn header() -> FrameHeader {
        FrameHeader { records: 2, codec: Codec::None, producer: None, max_timestamp_ms: 0, span: None }
    }

    fn full_header() -> FrameHeader {
        FrameHeader {
            records: 2,
            codec: Codec::Zstd,
            producer: Some(PRODUCER),
            max_timestamp_ms: -2,
            span: Some(SpanLink { trace_id: [0xaa; 16], span_id: [0xbb; 8] }),
        }
    }

    fn write(append_time_ms: i64, frames: &[(FrameHeader, &[u8])]) -> BytesMut {
        let mut buf = BytesMut::new();
        let mut writer = AppendWriter::new(&mut buf, append_time_ms);
        for (header, batch) in frames {
            writer.push(header, batch);
        }
        writer.finish();
        buf
    }

    fn decode(bytes: impl AsRef<[u8]>) -> Result<Command, Error> {
        Command::decode(&Bytes::copy_from_slice(bytes.as_ref()))
    }

    fn edited(mut bytes: BytesMut, at: usize, byte: u8) -> Result<Command, Error> {
        bytes[at] = byte;
        decode(bytes)
    }

    #[test]
    fn an_append_has_these_bytes() {
        let mut golden = Vec::new();
        golden.extend([1, 1, 0, 0, 2, 0, 0, 0, 0x15, 0xcd, 0x5b, 0x07, 0, 0, 0, 0]);
        // A frame with everything.
        golden.extend([3, 0, 0, 0, 2, 0, 0, 0, 1, 2, 0, 0, 5, 0, 0, 0]);
        golden.extend([4, 3, 2, 1, 0, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0]);
        golden.extend([0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
        golden.extend([0xaa; 16]);
        golden.extend([0xbb; 8]);
        golden.extend(b"abc");
        // A frame with as little as can be.
        golden.extend([1, 0, 0, 0, 2, 0, 0, 0]);
        golden.extend([0; 56]);
        golden.extend(b"z");
        assert_eq!(write(123_456_789, &[(full_header(), b"abc"), (header(), b"z")]), golden);
    }

    #[test]
    fn a_trim_has_these_bytes() {
        let mut buf = BytesMut::new();
        Command::encode_trim(Offset(0x0102), &mut buf);
        assert_eq!(buf[..], [1, 2, 0, 0, 0, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(decode(buf), Ok(Command::Trim { before: Offset(0x0102) }));
    }

    #[test]
    fn batches_are_slices_of_the_command() {
        let bytes = write(1, &[(header(), b"abc")]).freeze();
        let Ok(Command::Append(append)) = Command::decode(&bytes) else { panic!("not an append") };
        let frame = append.frames().next().unwrap();
        assert_eq!(frame.batch.as_ptr(), bytes[bytes.len() - 3..].as_ptr());
    }

    #[test]
    fn a_command_follows_what_is_in_the_buffer() {
        let mut buf = BytesMut::from(&b"row header"[..]);
        let mut writer = AppendWriter::new(&mut buf, 7);
        assert!(writer.is_empty());
        writer.push(&header(), b"abc");
        let expected = AppendWriter::COMMAND_OVERHEAD + AppendWriter::FRAME_OVERHEAD + 3;
        assert_eq!((writer.len(), writer.frame_count()), (expected, 1));
        writer.finish();
        assert!(buf.starts_with(b"row header"));
        assert!(decode(&buf[10..]).is_ok());
    }

    #[test]
    fn a_dropped_writer_leaves_nothing() {
        let mut buf = BytesMut::from(&b"row header"[..]);
        let mut writer = AppendWriter::new(&mut buf, 7);
        writer.push(&header(), b"abc");
        drop(writer);
        assert_eq!(&buf[..], b"row header");
    }

    #[test]
    fn refuses_what_this_version_does_not_write() {
        let whole = || write(1, &[(full_header(), b"abc")]);
        let bare = || write(1, &[(header(), b"abc")]);
        let header = |what| Err(Error::InvalidHeader { what });
        let frame = |what| Err(Error::InvalidFrame { at: 16, what });
        assert_eq!(edited(whole(), 0, 2), Err(Error::UnknownVersion { version: 2 }));
        assert_eq!(edited(whole(), 1, 9), Err(Error::UnknownKind { kind: 9 }));
        assert_eq!(edited(whole(), 3, 1), header("reserved bytes are not zero"));
        assert_eq!(edited(whole(), 4, 0), header("an append has no frames"));
        assert_eq!(edited(whole(), 1, TRIM), header("a trim has frames"));
        assert_eq!(edited(whole(), 16, 0), frame("the batch is empty"));
        assert_eq!(edited(whole(), 20, 0), frame("the batch is empty"));
        assert_eq!(edited(whole(), 24, 3), frame("unknown flags"));
        assert_eq!(edited(whole(), 24, 0), frame("producer fields without their flag"));
        assert_eq!(edited(whole(), 25, 3), frame("unknown codec"));
        assert_eq!(edited(whole(), 26, 1), frame("reserved bytes are not zero"));
        assert_eq!(edited(whole(), 47, 1), frame("reserved bytes are not zero"));
        assert_eq!(edited(bare(), 56, 1), frame("trace id and span id do not go together"));
        assert_eq!(edited(bare(), 79, 1), frame("trace id and span id do not go together"));
    }

    #[test]
    fn refuses_other_lengths_than_the_headers_say() {
        let whole = || write(1, &[(header(), b"abc")]);
        assert_eq!(edited(whole(), 16, 4), Err(Error::Truncated { at: 80, needed: 4, left: 3 }));
        assert_eq!(edited(whole(), 16, 2), Err(Error::TrailingBytes { bytes: 1 }));
        assert_eq!(edited(whole(), 4, 2), Err(Error::Truncated { at: 83, needed: 64, left: 0 }));
        for len in 0..whole().len() {
            assert!(matches!(decode(&whole()[..len]), Err(Error::Truncated { .. })), "{len} bytes");
        }
        let mut trim = BytesMut::new();
        Command::encode_trim(Offset(1), &mut trim);
        trim.put_u8(0);
        assert_eq!(decode(trim), Err(Error::TrailingBytes { bytes: 1 }));
    }

    fn any_span() -> impl Strategy<Value = SpanLink> {
        any::<([u8; 16], [u8; 8])>()
            .prop_filter("neither id is zero", |(trace, span)| *trace != [0; 16] && *span != [0; 8])
            .prop_map(|(trace_id, span_id)| SpanLink { trace_id, span_id })
    }

    fn any_producer() -> impl Strategy<Value = ProducerSequence> {
        any::<(u64, u32, u32)>().prop_map(|(producer_id, epoch, base_sequence)| ProducerSequence {
            producer_id,
            epoch,
            base_sequence,
        })
    }

    fn any_frame() -> impl Strategy<Value = Frame> {
        let codec = prop::sample::select(&Codec::ALL[..]);
        let batch = vec(any::<u8>(), 1..100).prop_map(Bytes::from);
        (1u32.., codec, option::of(any_producer()), any::<i64>(), option::of(any_span()), batch).prop_map(
            |(records, codec, producer, max_timestamp_ms, span, batch)| Frame {
                header: FrameHeader { records, codec, producer, max_timestamp_ms, span },
                batch,
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(time: i64, frames in vec(any_frame(), 1..10)) {
            let parts: Vec<_> = frames.iter().map(|frame| (frame.header, &frame.batch[..])).collect();
            let Ok(Command::Append(append)) = decode(write(time, &parts)) else { panic!("not an append") };
            prop_assert_eq!(append.append_time_ms(), time);
            prop_assert_eq!(append.frames().len(), frames.len());
            prop_assert_eq!(append.frames().collect::<Vec<_>>(), frames);
        }

        #[test]
        fn damage_never_panics_and_what_is_read_is_written_the_same(
            frames in vec(any_frame(), 1..4),
            edits in vec((0usize..200, any::<u8>()), 1..3),
        ) {
            let parts: Vec<_> = frames.iter().map(|frame| (frame.header, &frame.batch[..])).collect();
            let mut bytes = write(1, &parts);
            for (at, byte) in edits {
                let at = at % bytes.len();
                bytes[at] = byte;
            }
            if let Ok(Command::Append(append)) = decode(&bytes) {
                let frames: Vec<_> = append.frames().collect();
                let parts: Vec<_> = frames.iter().map(|frame| (frame.header, &frame.batch[..])).collect();
                prop_assert_eq!(write(append.append_time_ms(), &parts), bytes);
            }
        }
    }
}
