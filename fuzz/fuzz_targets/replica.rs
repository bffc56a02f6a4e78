//! What a replica keeps besides its log (checkpoints, members, votes) is the same after it is written and read again.

#![no_main]

use libfuzzer_sys::fuzz_target;
use streambus::raft::fuzzing::{ballot, checkpoint, members};

fuzz_target!(|data: &[u8]| {
    checkpoint(data);
    members(data);
    ballot(data);
});
