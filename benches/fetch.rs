//! What it takes to read batches of a partition, from memory and from the store: `cargo bench --bench fetch`.

mod partition;

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use partition::{Bench, batch};
use streambus::record::Offset;
use streambus::storage::Sync;

const RECORDS: u32 = 100;
const BATCHES: usize = 256;
/// What one read asks for.
const READ_BYTES: usize = 1 << 20;

fn fetch(c: &mut Criterion) {
    let mut group = c.benchmark_group("fetch_1MiB");
    group.throughput(Throughput::Bytes(READ_BYTES as u64));
    // All of the partition stays in memory, or next to nothing does.
    for (name, tail_bytes) in [("from_memory", 64 << 20), ("from_store", 1)] {
        let bench = Bench::open(Sync::Interval, tail_bytes);
        bench.runtime.block_on(bench.append(&batch(RECORDS), BATCHES));
        group.bench_function(name, |b| {
            let read = async || bench.partition.read(Offset(0), READ_BYTES).await;
            b.iter(|| black_box(bench.runtime.block_on(read()).expect("the records are there")));
        });
    }
    group.finish();
}

criterion_group!(benches, fetch);
criterion_main!(benches);
