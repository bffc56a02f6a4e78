//! A batch inside an append command.
//!
//! The layout is in [`command`](super::command).

use bytes::{BufMut, Bytes};

use super::command::Error;
use super::{Codec, Skim};

/// Length of a frame's header.
pub(super) const HEADER_LEN: usize = 64;

const PRODUCER: u8 = 1;

/// Makes a batch recognisable when its producer sends it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ProducerSequence {
    /// The producer, as the broker numbered it.
    pub producer_id: u64,
    /// Which incarnation of the producer; a newer one fences older ones.
    pub epoch: u32,
    /// Number of records that the producer sent to the partition before this batch, modulo 2^32.
    pub base_sequence: u32,
}

/// A span of a sampled trace. Neither id is all zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SpanLink {
    /// W3C trace id.
    pub trace_id: [u8; 16],
    /// W3C span id.
    pub span_id: [u8; 8],
}

/// What a frame says of its batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// Number of records, at least 1.
    pub records: u32,
    /// How the batch is compressed.
    pub codec: Codec,
    /// Who sent the batch and as which of its batches. `None` from a producer without deduplication.
    pub producer: Option<ProducerSequence>,
    /// The largest record timestamp, in milliseconds since the Unix epoch; zero if unknown.
    pub max_timestamp_ms: i64,
    /// The span in which the broker got the batch. `None` if it is not sampled.
    pub span: Option<SpanLink>,
}

impl FrameHeader {
    /// The header of a batch that was skimmed.
    #[must_use]
    pub fn new(skim: &Skim, producer: Option<ProducerSequence>, span: Option<SpanLink>) -> Self {
        FrameHeader {
            records: skim.records,
            codec: skim.codec,
            producer,
            max_timestamp_ms: skim.max_timestamp_ms,
            span,
        }
    }

    pub(super) fn write(&self, batch_len: u32, buf: &mut impl BufMut) {
        let producer =
            self.producer.unwrap_or(ProducerSequence { producer_id: 0, epoch: 0, base_sequence: 0 });
        let span = self.span.unwrap_or(SpanLink { trace_id: [0; 16], span_id: [0; 8] });
        let mut header = [0; HEADER_LEN];
        header[0..4].copy_from_slice(&batch_len.to_le_bytes());
        header[4..8].copy_from_slice(&self.records.to_le_bytes());
        header[8] = if self.producer.is_some() { PRODUCER } else { 0 };
        header[9] = self.codec as u8;
        header[12..16].copy_from_slice(&producer.epoch.to_le_bytes());
        header[16..24].copy_from_slice(&producer.producer_id.to_le_bytes());
        header[24..28].copy_from_slice(&producer.base_sequence.to_le_bytes());
        header[32..40].copy_from_slice(&self.max_timestamp_ms.to_le_bytes());
        header[40..56].copy_from_slice(&span.trace_id);
        header[56..64].copy_from_slice(&span.span_id);
        buf.put_slice(&header);
    }

    /// Reads the header and the batch's length from the start of `bytes`. `at` is where that is in the command.
    pub(super) fn read(bytes: &[u8], at: usize) -> Result<(FrameHeader, usize), Error> {
        let invalid = |what| Error::InvalidFrame { at, what };
        let Some((raw, _)) = bytes.split_first_chunk::<HEADER_LEN>() else {
            return Err(Error::Truncated { at, needed: HEADER_LEN, left: bytes.len() });
        };
        if raw[10..12] != [0; 2] || raw[28..32] != [0; 4] {
            return Err(invalid("reserved bytes are not zero"));
        }
        let batch_len = u32::from_le_bytes(field(raw, 0)) as usize;
        let records = u32::from_le_bytes(field(raw, 4));
        if batch_len == 0 || records == 0 {
            return Err(invalid("the batch is empty"));
        }
        let header = FrameHeader {
            records,
            codec: Codec::try_from(i32::from(raw[9])).map_err(|_| invalid("unknown codec"))?,
            producer: read_producer(raw).map_err(invalid)?,
            max_timestamp_ms: i64::from_le_bytes(field(raw, 32)),
            span: read_span(raw).map_err(invalid)?,
        };
        Ok((header, batch_len))
    }
}

/// A batch and what its frame says of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What the frame says of the batch.
    pub header: FrameHeader,
    /// The `RecordBatch` as the producer sent it; a slice of the command.
    pub batch: Bytes,
}

fn read_producer(raw: &[u8; HEADER_LEN]) -> Result<Option<ProducerSequence>, &'static str> {
    let producer = ProducerSequence {
        producer_id: u64::from_le_bytes(field(raw, 16)),
        epoch: u32::from_le_bytes(field(raw, 12)),
        base_sequence: u32::from_le_bytes(field(raw, 24)),
    };
    match raw[8] {
        PRODUCER => Ok(Some(producer)),
        0 if producer == (ProducerSequence { producer_id: 0, epoch: 0, base_sequence: 0 }) => Ok(None),
        0 => Err("producer fields without their flag"),
        _ => Err("unknown flags"),
    }
}

fn read_span(raw: &[u8; HEADER_LEN]) -> Result<Option<SpanLink>, &'static str> {
    let span = SpanLink { trace_id: field(raw, 40), span_id: field(raw, 56) };
    match (span.trace_id == [0; 16], span.span_id == [0; 8]) {
        (true, true) => Ok(None),
        (false, false) => Ok(Some(span)),
        _ => Err("trace id and span id do not go together"),
    }
}

fn field<const N: usize>(raw: &[u8; HEADER_LEN], at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&raw[at..at + N]);
    bytes
}
