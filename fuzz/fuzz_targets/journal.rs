//! A journal with arbitrary bytes is followed, and cut where it must be, without a panic.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| streambus::storage::follow_journal(data));
