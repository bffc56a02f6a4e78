//! What brokers say to each other is the same after it is written and read again.

#![no_main]

use libfuzzer_sys::fuzz_target;
use streambus::cluster::peers::fuzzing::{failure, frame};

fuzz_target!(|data: &[u8]| {
    frame(data);
    failure(data);
});
