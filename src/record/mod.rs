//! Record batches: what a producer sends, a partition keeps and a consumer gets.
//!
//! A batch is a protobuf `streambus.v1.RecordBatch`. Inside the broker it stays the bytes that the producer sent:
//!
//! - [`skim()`] checks those bytes once, against [`Limits`], without allocating, and counts the records.
//! - [`command`] frames skimmed batches into the command that a partition's Raft group replicates, and reads them
//!   back as slices of the same bytes.
//! - [`for_each_traceparent`] finds the trace contexts of a batch when it is delivered.
//! - [`dead_letter`] copies a record out of a batch for a dead-letter topic.
//! - [`decompress_batch`] serves a consumer that does not know a batch's [`Codec`].
//!
//! Clients build batches with [`BatchBuilder`] and read them with [`decode`], neither of which makes a message
//! object per record, and choose a partition for a key with [`partition_for_key`].
//!
//! Invariants: nothing here does I/O, reads a clock or keeps state between calls. Nothing panics on any input
//! bytes. Whatever [`skim()`] accepts, any protobuf library can decode, with the same number of records.

mod builder;
mod codec;
pub mod command;
mod compression;
pub mod dead_letter;
mod decode;
mod error;
mod fields;
mod frame;
mod offset;
mod partitioner;
mod skim;
mod traceparent;
mod wire;

#[cfg(test)]
mod agreement;

pub use builder::{BatchBuilder, Draft};
pub use codec::{Codec, CodecSet};
pub use compression::{compress_batch, decompress_batch};
pub use decode::{Header, Record, Records, decode};
pub use error::Error;
pub use frame::{Frame, FrameHeader, ProducerSequence, SpanLink};
pub use offset::Offset;
pub use partitioner::partition_for_key;
pub use skim::{Limits, Skim, for_each_traceparent, skim};
