//! A command that is read is written again as the same bytes.

#![no_main]

use bytes::{Bytes, BytesMut};
use libfuzzer_sys::fuzz_target;
use streambus::record::command::{AppendWriter, Command};

fuzz_target!(|data: &[u8]| {
    let Ok(command) = Command::decode(&Bytes::copy_from_slice(data)) else { return };
    let mut again = BytesMut::new();
    match command {
        Command::Append(append) => {
            let mut writer = AppendWriter::new(&mut again, append.append_time_ms());
            append.frames().for_each(|frame| writer.push(&frame.header, &frame.batch));
            writer.finish();
        }
        Command::Trim { before } => Command::encode_trim(before, &mut again),
    }
    assert_eq!(again, data);
});
