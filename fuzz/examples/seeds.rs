//! Writes seed inputs for every fuzz target into `fuzz/corpus/`.

use std::path::Path;
use std::{fs, io};

use bytes::{Bytes, BytesMut};
use streambus::record::command::{AppendWriter, Command};
use streambus::record::{
    BatchBuilder, Codec, FrameHeader, Header, Limits, Offset, ProducerSequence, Record, SpanLink, skim,
};

const TRACEPARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

fn main() -> io::Result<()> {
    for codec in Codec::ALL {
        let batch = batch(codec);
        write("skim", codec.name(), &batch)?;
        write("decode", codec.name(), &batch)?;
        write("command", codec.name(), &append(&batch))?;
    }
    write("skim", "smallest", &[0x0a, 0])?;
    write("decode", "smallest", &[0x0a, 0])?;
    let mut trim = BytesMut::new();
    Command::encode_trim(Offset(42), &mut trim);
    write("command", "trim", &trim)
}

fn batch(codec: Codec) -> Bytes {
    let mut builder = BatchBuilder::default();
    let record = Record {
        key: Some("key".into()),
        value: Some(vec![b'v'; 100].into()),
        headers: vec![Header::new("traceparent", TRACEPARENT), Header::new("content-type", "text/plain")],
        timestamp_ms: 1_760_000_000_000,
    };
    for record in [record.clone(), Record { value: None, ..record }, Record::default()] {
        builder.push(&record.draft());
    }
    builder.finish(codec).expect("there are records")
}

fn append(batch: &[u8]) -> BytesMut {
    let skim = skim(batch, &Limits::default()).expect("a built batch is within the default limits");
    let producer = ProducerSequence { producer_id: 1, epoch: 2, base_sequence: 3 };
    let span = SpanLink { trace_id: [1; 16], span_id: [2; 8] };
    let mut buf = BytesMut::new();
    let mut writer = AppendWriter::new(&mut buf, 1_760_000_000_000);
    writer.push(&FrameHeader::new(&skim, Some(producer), Some(span)), batch);
    writer.push(&FrameHeader::new(&skim, None, None), batch);
    writer.finish();
    buf
}

fn write(target: &str, name: &str, input: &[u8]) -> io::Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    fs::create_dir_all(&folder)?;
    fs::write(folder.join(name), input)
}
