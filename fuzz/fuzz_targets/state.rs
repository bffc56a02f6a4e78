//! States and commands of partitions, of the control group and of coordinators are the same after they are written and read
//! again.

#![no_main]

use libfuzzer_sys::fuzz_target;
use streambus::{coordination, metadata, partition};

macro_rules! round_trip {
    ($data:expr, $kind:ty) => {
        if let Ok(read) = <$kind>::decode($data) {
            assert_eq!(<$kind>::decode(&read.encode()).expect("what is written can be read"), read);
        }
    };
}

fuzz_target!(|data: &[u8]| {
    round_trip!(data, partition::machine::State);
    round_trip!(data, metadata::State);
    round_trip!(data, metadata::Command);
    round_trip!(data, coordination::State);
    if let Ok(entry) = coordination::decode_entry(data) {
        let mut bytes = coordination::encode_entry(&entry.commands);
        if let Some(term) = entry.term {
            coordination::put_term(&mut bytes, term);
        }
        assert_eq!(coordination::decode_entry(&bytes).expect("what is written can be read"), entry);
    }
});
