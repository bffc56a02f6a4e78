//! Tests that everything here agrees with each other and with an ordinary protobuf library.

use bytes::Bytes;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use prost::Message;

use crate::proto::v1;

use super::command::Command;
use super::*;

const MIB: usize = 1 << 20;
const SAMPLED: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

fn any_bytes(max: usize) -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..max).prop_map(Bytes::from)
}

fn any_header() -> impl Strategy<Value = Header> {
    prop_oneof![
        4 => ("\\PC{1,20}", any_bytes(200)).prop_map(|(key, value)| Header::new(key, value)),
        1 => Just(Header::new("traceparent", SAMPLED)),
    ]
}

fn any_record() -> impl Strategy<Value = Record> {
    let timestamp = prop_oneof![Just(0), any::<i64>(), 1_700_000_000_000..1_800_000_000_000i64];
    (option::of(any_bytes(40)), option::of(any_bytes(400)), vec(any_header(), 0..4), timestamp)
        .prop_map(|(key, value, headers, timestamp_ms)| Record { key, value, headers, timestamp_ms })
}

fn any_codec() -> impl Strategy<Value = Codec> {
    prop::sample::select(&Codec::ALL[..])
}

fn build(records: &[Record], codec: Codec) -> Bytes {
    let mut builder = BatchBuilder::default();
    for record in records {
        let would_be = builder.would_be_len(&record.draft());
        builder.push(&record.draft());
        assert_eq!(builder.len(), would_be);
    }
    builder.finish(codec).unwrap()
}

fn to_public(record: &Record) -> v1::Record {
    let headers = record.headers.iter();
    v1::Record {
        key: record.key.clone(),
        value: record.value.clone(),
        headers: headers.map(|h| v1::Header { key: h.key().to_owned(), value: h.value().clone() }).collect(),
        timestamp_ms: record.timestamp_ms,
    }
}

fn damage(batch: &[u8], edits: &[(prop::sample::Index, u8)]) -> Bytes {
    let mut damaged = batch.to_vec();
    for (at, byte) in edits {
        let at = at.index(damaged.len());
        damaged[at] = *byte;
    }
    damaged.into()
}

/// A batch that is accepted decodes everywhere to as many records; one that is malformed decodes nowhere.
fn assert_agrees_with_protobuf(batch: &Bytes) -> Result<(), TestCaseError> {
    let public = v1::RecordBatch::decode(batch.clone());
    match skim(batch, &Limits::default()) {
        Ok(skimmed) if skimmed.codec == Codec::None => {
            let public = public.expect("protobuf decodes what is accepted");
            prop_assert_eq!(public.records.len(), skimmed.records as usize);
            let decoded: Vec<_> = decode(batch, MIB).unwrap().map(|record| to_public(&record)).collect();
            prop_assert_eq!(decoded, public.records);
        }
        Ok(_) => prop_assert!(public.is_ok()),
        Err(Error::Malformed { what: "groups are not allowed", .. }) => {}
        Err(error @ Error::Malformed { .. }) => prop_assert!(public.is_err(), "{error}, but it decodes"),
        Err(_) => {}
    }
    Ok(())
}

proptest! {
    #[test]
    fn records_survive_a_batch(records in vec(any_record(), 1..20), codec in any_codec()) {
        let batch = build(&records, codec);

        let skimmed = skim(&batch, &Limits::default()).unwrap();
        prop_assert_eq!(skimmed.records as usize, records.len());
        prop_assert_eq!(skimmed.uncompressed_bytes as usize, build(&records, Codec::None).len());
        let decoded: Vec<_> = decode(&batch, MIB).unwrap().collect();
        prop_assert_eq!(decoded, records);
    }

    #[test]
    fn a_batch_is_what_protobuf_encodes(records in vec(any_record(), 1..20)) {
        let public = v1::RecordBatch { records: records.iter().map(to_public).collect(), ..Default::default() };
        prop_assert_eq!(&build(&records, Codec::None)[..], public.encode_to_vec());
    }

    #[test]
    fn a_skim_finds_what_the_records_say(records in vec(any_record(), 1..20)) {
        let batch = build(&records, Codec::None);
        let skimmed = skim(&batch, &Limits::default()).unwrap();
        let times = records.iter().map(|record| record.timestamp_ms);
        prop_assert_eq!(skimmed.max_timestamp_ms, times.filter(|time| *time != 0).max().unwrap_or(0));

        let sampled = records.iter().zip(0..).flat_map(|(record, number)| {
            record.headers.iter().filter(|h| h.key() == "traceparent").map(move |_| number)
        });
        let sampled: Vec<u32> = sampled.collect();
        let mut found = Vec::new();
        for_each_traceparent(&batch, |number, value| {
            assert_eq!(value, SAMPLED.as_bytes());
            found.push(number);
            std::ops::ControlFlow::Continue(())
        });
        prop_assert_eq!(&found, &sampled);
        prop_assert_eq!(skimmed.traceparent.is_some(), !sampled.is_empty());
        if let Some(range) = skimmed.traceparent {
            prop_assert_eq!(&batch[range], SAMPLED.as_bytes());
        }
    }

    #[test]
    fn a_batch_cut_short_is_an_error_or_a_prefix(records in vec(any_record(), 1..5)) {
        let batch = build(&records, Codec::None);
        for len in 0..batch.len() {
            let cut = batch.slice(..len);
            let Ok(skimmed) = skim(&cut, &Limits::default()) else { continue };
            prop_assert!((skimmed.records as usize) < records.len());
            let decoded: Vec<_> = decode(&cut, MIB).unwrap().collect();
            prop_assert_eq!(&decoded[..], &records[..skimmed.records as usize]);
        }
    }

    #[test]
    fn a_compressed_batch_cut_short_is_an_error(codec in prop::sample::select(&Codec::ALL[1..])) {
        let record = Record { value: Some(vec![7; 600].into()), ..Record::default() };
        let batch = build(&[record.clone(), record], codec);
        for len in 0..batch.len() {
            prop_assert!(decode(&batch.slice(..len), MIB).is_err(), "{len} of {} bytes", batch.len());
        }
    }

    #[test]
    fn a_damaged_batch_is_judged_as_protobuf_does(
        records in vec(any_record(), 1..5),
        edits in vec(any::<(prop::sample::Index, u8)>(), 1..4),
    ) {
        assert_agrees_with_protobuf(&damage(&build(&records, Codec::None), &edits))?;
    }

    #[test]
    fn a_damaged_compressed_batch_never_panics(
        records in vec(any_record(), 1..5),
        codec in any_codec(),
        edits in vec(any::<(prop::sample::Index, u8)>(), 1..4),
    ) {
        let damaged = damage(&build(&records, codec), &edits);
        assert_agrees_with_protobuf(&damaged)?;
        if let Ok(records) = decode(&damaged, MIB) {
            let count = records.len();
            prop_assert_eq!(records.count(), count);
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in any_bytes(300)) {
        assert_agrees_with_protobuf(&bytes)?;
        let _ = decode(&bytes, MIB);
        if let Ok(Command::Append(append)) = Command::decode(&bytes) {
            prop_assert_eq!(append.frames().count(), append.frame_count() as usize);
        }
        for_each_traceparent(&bytes, |_, _| std::ops::ControlFlow::Continue(()));
    }
}
