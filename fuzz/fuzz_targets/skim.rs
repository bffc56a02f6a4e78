//! A batch that the broker accepts decodes into as many records as it was counted to have.

#![no_main]

use std::ops::ControlFlow;

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use streambus::record::{Codec, Limits, decode, for_each_traceparent, skim};

fuzz_target!(|data: &[u8]| {
    let strict = Limits { record_bytes_max: 64, batch_bytes_max: 256, headers_max: 2, ..Limits::default() };
    let accepted_by_strict = skim(data, &strict).is_ok();
    let skimmed = skim(data, &Limits::default());
    assert!(skimmed.is_ok() || !accepted_by_strict, "a stricter limit accepts more");

    let mut first = None;
    for_each_traceparent(data, |_, value| {
        first = Some(value.to_vec());
        ControlFlow::Break(())
    });
    let Ok(skimmed) = skimmed else { return };
    if skimmed.codec != Codec::None {
        return;
    }
    assert_eq!(skimmed.traceparent.map(|range| data[range].to_vec()), first);
    let records = decode(&Bytes::copy_from_slice(data), 0).expect("an accepted batch decodes");
    assert_eq!(records.len(), skimmed.records as usize);
    assert_eq!(records.count(), skimmed.records as usize);
});
