//! A `traceparent` that is accepted is written back as it was read, up to what W3C Trace Context leaves out of a
//! version 00 header.

#![no_main]

use libfuzzer_sys::fuzz_target;
use streambus::telemetry::TraceParent;
use streambus::telemetry::traceparent::parse_tracestate;

fuzz_target!(|data: &[u8]| {
    // No input panics; what a vendor wrote is accepted or left out.
    let _ = parse_tracestate(data);
    let Some(parent) = TraceParent::parse(data) else { return };
    assert!(parent.ids.is_valid(), "ids of zeros are refused");
    let written = TraceParent::parse(&parent.format()).expect("what is written can be read");
    assert_eq!((written.ids, written.sampled), (parent.ids, parent.sampled));
});
