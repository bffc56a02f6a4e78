//! What a batch of 100 records of 1 KiB costs in CPU: `cargo bench --bench codec`.

use std::hint::black_box;

use bytes::{Bytes, BytesMut};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use streambus::record::command::{AppendWriter, Command};
use streambus::record::{
    BatchBuilder, Codec, CodecSet, Draft, FrameHeader, Limits, compress_batch, decode, decompress_batch,
    partition_for_key, skim,
};

const RECORDS: u32 = 100;
const TRACEPARENT: &[u8] = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";
const MAX: usize = 4 << 20;

/// 1 KiB that compresses about as well as JSON does.
fn value() -> Vec<u8> {
    let mut state = 1u32;
    let mut value = Vec::new();
    while value.len() < 1024 {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        value.extend(format!("{{\"order\":{},\"state\":\"paid\"}},", state >> 16).bytes());
    }
    value.truncate(1024);
    value
}

fn build(builder: &mut BatchBuilder, value: &[u8]) -> Bytes {
    for _ in 0..RECORDS {
        builder.push(&Draft {
            key: Some(b"order-1234567890"),
            value: Some(value),
            headers: [("traceparent", TRACEPARENT)].into_iter(),
            timestamp_ms: 1_760_000_000_000,
        });
    }
    builder.finish(Codec::None).expect("there are records")
}

fn batches(c: &mut Criterion) {
    let value = value();
    let batch = build(&mut BatchBuilder::default(), &value);
    let limits = Limits::default();
    let mut group = c.benchmark_group("batch_100x1KiB");
    group.throughput(Throughput::Elements(RECORDS.into()));
    group.bench_function("skim", |b| b.iter(|| skim(black_box(&batch), &limits)));
    group.bench_function("decode", |b| {
        b.iter(|| {
            decode(black_box(&batch), MAX).expect("a good batch").for_each(|record| drop(black_box(record)))
        });
    });
    group.bench_function("build", |b| {
        b.iter_batched_ref(
            || BatchBuilder::with_capacity(batch.len()),
            |builder| build(builder, &value),
            BatchSize::SmallInput,
        );
    });
    for codec in [Codec::Lz4, Codec::Zstd] {
        let compressed = compress_batch(&batch, RECORDS, codec, CodecSet::ALL).expect("enough memory");
        group.bench_function(format!("skim_{codec}"), |b| b.iter(|| skim(black_box(&compressed), &limits)));
        group.bench_function(format!("compress_{codec}"), |b| {
            b.iter(|| compress_batch(black_box(&batch), RECORDS, codec, CodecSet::ALL));
        });
        group.bench_function(format!("decompress_{codec}"), |b| {
            b.iter(|| decompress_batch(black_box(&compressed), MAX));
        });
    }
    group.finish();
}

fn commands(c: &mut Criterion) {
    let batch = build(&mut BatchBuilder::default(), &value());
    let header = FrameHeader::new(&skim(&batch, &Limits::default()).expect("a good batch"), None, None);
    let write = |buf: &mut BytesMut| {
        let mut writer = AppendWriter::new(buf, 1_760_000_000_000);
        (0..10).for_each(|_| writer.push(&header, &batch));
        writer.finish();
    };
    let mut buf = BytesMut::new();
    write(&mut buf);
    let len = buf.len();
    let command = buf.freeze();
    let mut group = c.benchmark_group("command_10x100KiB");
    group.throughput(Throughput::Elements(10));
    group.bench_function("write", |b| {
        let mut buf = BytesMut::with_capacity(len);
        b.iter(|| {
            buf.clear();
            write(black_box(&mut buf));
        });
    });
    group.bench_function("read", |b| {
        b.iter(|| match Command::decode(black_box(&command)).expect("a good command") {
            Command::Append(append) => append.frames().map(|frame| frame.batch.len()).sum(),
            Command::Trim { .. } => 0,
        });
    });
    group.finish();
    c.bench_function("partition_for_key_16B", |b| {
        b.iter(|| partition_for_key(black_box(b"order-1234567890"), 12))
    });
}

criterion_group!(benches, batches, commands);
criterion_main!(benches);
