//! What the partition's state machine costs: `cargo bench --bench apply`.

use std::hint::black_box;

use bytes::{Bytes, BytesMut};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use streambus::partition::machine::State;
use streambus::record::command::{Append, AppendWriter, Command};
use streambus::record::{Codec, FrameHeader, ProducerSequence};

/// Records in each batch.
const RECORDS: u32 = 100;
/// Producers of a busy partition.
const PRODUCERS: u64 = 1_000;

/// An entry of `frames` batches, each from a producer of its own if they are idempotent.
fn entry(frames: u32, idempotent: bool) -> Append {
    let mut buffer = BytesMut::new();
    let mut writer = AppendWriter::new(&mut buffer, 1_760_000_000_000);
    for number in 0..frames {
        let producer = idempotent.then_some(ProducerSequence {
            producer_id: u64::from(number) % PRODUCERS,
            epoch: 0,
            base_sequence: 0,
        });
        let header =
            FrameHeader { records: RECORDS, codec: Codec::None, producer, max_timestamp_ms: 0, span: None };
        writer.push(&header, b"the state machine does not look at the batch");
    }
    writer.finish();
    match Command::decode(&Bytes::from(buffer)) {
        Ok(Command::Append(append)) => append,
        other => panic!("an append was written: {other:?}"),
    }
}

fn apply(c: &mut Criterion) {
    let mut group = c.benchmark_group("apply");
    for (name, frames, idempotent) in
        [("1_batch", 1, false), ("100_batches", 100, false), ("100_batches_idempotent", 100, true)]
    {
        let append = entry(frames, idempotent);
        group.throughput(Throughput::Elements(frames.into()));
        group.bench_function(name, |b| {
            b.iter_batched_ref(
                State::default,
                |state| black_box(state.append(1, black_box(&append))),
                BatchSize::SmallInput,
            );
        });
    }
    let mut state = State::default();
    state.append(1, &entry(1_000, true));
    group.throughput(Throughput::Elements(1));
    group.bench_function("checkpoint_1000_producers", |b| b.iter(|| black_box(state.encode())));
    group.finish();
}

criterion_group!(benches, apply);
criterion_main!(benches);
