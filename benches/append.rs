//! What it takes to commit batches to a partition, disk included: `cargo bench --bench append`.

mod partition;

use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use partition::{Bench, batch};
use streambus::storage::Sync;

/// Records in a batch, and batches under way at once.
const SHAPES: [(&str, u32, usize); 4] = [
    ("one_in_flight_1x1KiB", 1, 1),
    ("window_1000_of_1x1KiB", 1, 1_000),
    ("window_64_of_100x1KiB", 100, 64),
    ("window_16_of_1000x1KiB", 1_000, 16),
];

/// After this many bytes what was written is deleted, outside the measured time.
const KEPT_BYTES: u64 = 256 << 20;

fn append(c: &mut Criterion) {
    for (name, sync) in [("append_interval", Sync::Interval), ("append_always", Sync::Always)] {
        let bench = Bench::open(sync, 8 << 20);
        let mut group = c.benchmark_group(name);
        group.sample_size(10).warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(4));
        for (shape, records, window) in SHAPES {
            let batch = batch(records);
            let bytes = (batch.0.len() * window) as u64;
            group.throughput(Throughput::Bytes(bytes));
            group.bench_function(shape, |b| {
                b.iter_custom(|rounds| {
                    bench.runtime.block_on(async {
                        let mut took = Duration::ZERO;
                        for _ in 0..rounds {
                            let started = Instant::now();
                            bench.append(&batch, window).await;
                            took += started.elapsed();
                            if bench.partition.view().size_bytes() > KEPT_BYTES {
                                let end = bench.partition.bounds().high_watermark;
                                bench.partition.trim(end).await.expect("records can be deleted");
                            }
                        }
                        took
                    })
                });
            });
        }
        group.finish();
    }
}

criterion_group!(benches, append);
criterion_main!(benches);
