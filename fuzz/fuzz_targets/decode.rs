//! Records that decode are the same after they are encoded and decoded again, however the batch was compressed.

#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use streambus::record::{BatchBuilder, Codec, Record, decode};

const UNCOMPRESSED_BYTES_MAX: usize = 1 << 16;

fuzz_target!(|data: &[u8]| {
    let Ok(records) = decode(&Bytes::copy_from_slice(data), UNCOMPRESSED_BYTES_MAX) else { return };
    let declared = records.len();
    let records: Vec<Record> = records.collect();
    assert_eq!(records.len(), declared);
    let mut builder = BatchBuilder::default();
    for record in &records {
        builder.push(&record.draft());
    }
    if let Ok(batch) = builder.finish(Codec::None) {
        let again: Vec<Record> =
            decode(&batch, UNCOMPRESSED_BYTES_MAX).expect("a built batch decodes").collect();
        assert_eq!(again, records);
    }
});
