//! Copies of records for a dead-letter topic.
//!
//! The copy has the record's key, value, headers (its `traceparent` too) and timestamp, and after them these headers,
//! whose values are UTF-8 text:
//!
//! | header | value |
//! |---|---|
//! | `streambus-dead-letter-topic` | the topic that the record is from |
//! | `streambus-dead-letter-partition` | its partition, in decimal |
//! | `streambus-dead-letter-offset` | its offset, in decimal |
//! | `streambus-dead-letter-group` | the group that could not process it |
//! | `streambus-dead-letter-delivery-count` | how often it was delivered, in decimal |
//! | `streambus-dead-letter-reason` | `max_deliveries` or `rejected` |
//! | `streambus-dead-letter-detail` | what the member said that rejected it; left out if it said nothing |
//! | `streambus-dead-letter-time` | when the copy was made, in decimal milliseconds since the Unix epoch, as record timestamps are |
//! | `streambus-dead-letter-dropped-headers` | how many of the record's own headers had to go, in decimal; left out if none |
//!
//! Headers of these names that the record has already, since it comes from a dead-letter topic itself, are replaced: a
//! copy says where its record was last, and the record there, where it was before.
//!
//! A record's own headers go where the dead-letter topic would refuse the copy because of them: those that have no name
//! or one that is too long, which compressed batches may have; and those above the most headers of a record, the last
//! ones first, but `traceparent` only if nothing else is left. Key and value are never cut: a copy that is too large for
//! the topic is an error, and [`ADDED_BYTES_MAX`] tells how much larger than the record's its limit must be.

use std::fmt;

use bytes::Bytes;

use super::decode::Header;
use super::{BatchBuilder, Codec, Limits, Offset, Record, decode, skim, traceparent};

/// What the names of the added headers begin with.
pub const HEADER_PREFIX: &str = "streambus-dead-letter-";

/// The most bytes by which a copy is larger than its record, if names of topics and groups have at most 249 bytes and
/// the detail at most 1 KiB.
pub const ADDED_BYTES_MAX: u32 = 2 << 10;

/// Why a record goes to the dead-letter topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It was delivered as often as it may be.
    MaxDeliveries,
    /// A member said that it cannot be processed.
    Rejected,
}

impl Reason {
    /// As the header has it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Reason::MaxDeliveries => "max_deliveries",
            Reason::Rejected => "rejected",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What the copy says of its record.
#[derive(Clone, Copy, Debug)]
pub struct Death<'a> {
    /// The topic that the record is from.
    pub topic: &'a str,
    /// Its partition.
    pub partition: u32,
    /// Its offset.
    pub offset: Offset,
    /// The group that could not process it.
    pub group: &'a str,
    /// How often it was delivered.
    pub delivery_count: u32,
    /// Why it is dead.
    pub reason: Reason,
    /// What the member said that rejected it; may be empty.
    pub detail: &'a str,
    /// When the copy is made, in milliseconds since the Unix epoch.
    pub at_ms: i64,
}

/// Why there is no copy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The record is not in the batch.
    #[error("offset {offset} is not in the batch of {records} records from offset {base_offset} on")]
    NotInBatch {
        /// Where the record should be.
        offset: Offset,
        /// Offset of the batch's first record.
        base_offset: Offset,
        /// How many records the batch has.
        records: usize,
    },
    /// The batch that the record is in cannot be read.
    #[error("the batch at offset {base_offset} cannot be read: {source}")]
    Unreadable {
        /// Offset of the batch's first record.
        base_offset: Offset,
        /// What is wrong with it.
        source: super::Error,
    },
    /// The dead-letter topic would refuse the copy.
    #[error("the dead-letter topic does not take the record at offset {offset}: {source}")]
    Refused {
        /// Where the record is.
        offset: Offset,
        /// Why.
        source: super::Error,
    },
}

/// A batch with one record: the copy of the record at `death.offset` in `batch`, whose first record is at `base_offset`
/// and which is decompressed to at most `uncompressed_bytes_max` bytes. `limits` are those of the dead-letter topic.
///
/// # Errors
///
/// See [`Error`].
pub fn copy(
    batch: &Bytes,
    base_offset: Offset,
    uncompressed_bytes_max: usize,
    death: &Death<'_>,
    limits: &Limits,
) -> Result<Bytes, Error> {
    let records = decode(batch, uncompressed_bytes_max);
    let mut records = records.map_err(|source| Error::Unreadable { base_offset, source })?;
    let missing = Error::NotInBatch { offset: death.offset, base_offset, records: records.len() };
    let Some(number) = death.offset.checked_since(base_offset) else { return Err(missing) };
    let record = usize::try_from(number).ok().and_then(|number| records.nth(number));
    let mut record = record.ok_or(missing)?;
    replace_headers(&mut record, death, limits);
    encode(&record, limits).map_err(|source| Error::Refused { offset: death.offset, source })
}

fn encode(record: &Record, limits: &Limits) -> Result<Bytes, super::Error> {
    // A batch of one record is rarely worth compressing, unless the topic takes nothing else.
    let mut codecs = Codec::ALL.into_iter().filter(|codec| limits.codecs.contains(*codec));
    let mut builder = BatchBuilder::default();
    builder.push(&record.draft());
    let batch = builder.finish_for(codecs.next().unwrap_or_default(), limits.codecs)?;
    skim(&batch, limits)?;
    Ok(batch)
}

/// Adds what `death` says, and drops what of the record's own headers does not fit.
fn replace_headers(record: &mut Record, death: &Death<'_>, limits: &Limits) {
    record.headers.retain(|header| !header.key().starts_with(HEADER_PREFIX));
    let own = record.headers.len();
    let key_bytes = 1..=limits.header_key_bytes_max as usize;
    record.headers.retain(|header| key_bytes.contains(&header.key().len()));

    let mut added = headers(death);
    let room = (limits.headers_max as usize).saturating_sub(added.len());
    if record.headers.len() > room || record.headers.len() < own {
        // The header that says so takes a place too.
        keep_first(&mut record.headers, room.saturating_sub(1));
        let dropped = own - record.headers.len();
        added.push(header("dropped-headers", dropped.to_string()));
    }
    record.headers.append(&mut added);
}

fn headers(death: &Death<'_>) -> Vec<Header> {
    let mut headers = vec![
        header("topic", death.topic.to_owned()),
        header("partition", death.partition.to_string()),
        header("offset", death.offset.to_string()),
        header("group", death.group.to_owned()),
        header("delivery-count", death.delivery_count.to_string()),
        header("reason", death.reason.to_string()),
    ];
    if !death.detail.is_empty() {
        headers.push(header("detail", death.detail.to_owned()));
    }
    headers.push(header("time", death.at_ms.to_string()));
    headers
}

fn header(name: &str, value: String) -> Header {
    Header::new(format!("{HEADER_PREFIX}{name}"), value)
}

/// Keeps the first `count` of `headers`, of which the first `traceparent` is one.
fn keep_first(headers: &mut Vec<Header>, count: usize) {
    let is_trace = |header: &Header| header.key().as_bytes() == traceparent::HEADER;
    if let Some(at) = headers.iter().position(is_trace)
        && at >= count
        && count > 0
    {
        headers.swap(at, count - 1);
    }
    headers.truncate(count);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::record::CodecSet;

    const SAMPLED: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    const DEATH: Death<'_> = Death {
        topic: "orders",
        partition: 3,
        offset: Offset(101),
        group: "billing",
        delivery_count: 5,
        reason: Reason::Rejected,
        detail: "no such customer",
        at_ms: 1_700_000_000_123,
    };

    fn record(headers: Vec<Header>) -> Record {
        Record {
            key: Some("key".into()),
            value: Some("value".into()),
            headers,
            timestamp_ms: 1_600_000_000_000,
        }
    }

    fn numbered(count: usize) -> Vec<Header> {
        (0..count).map(|number| Header::new(format!("h{number}"), "v")).collect()
    }

    /// A batch whose first record is at offset 100.
    fn batch(records: &[Record], codec: Codec) -> Bytes {
        let mut builder = BatchBuilder::default();
        for record in records {
            builder.push(&record.draft());
        }
        builder.finish(codec).unwrap()
    }

    fn copy_of(batch: &Bytes, death: &Death<'_>, limits: &Limits) -> Result<Record, Error> {
        let copy = copy(batch, Offset(100), 1 << 20, death, limits)?;
        let skim = skim(&copy, limits).unwrap();
        assert_eq!(skim.records, 1);
        Ok(decode(&copy, 1 << 20).unwrap().next().unwrap())
    }

    /// The copy of a record with these headers, in a topic with the usual limits.
    fn copy_with(headers: Vec<Header>) -> Record {
        let batch = batch(&[Record::default(), record(headers)], Codec::None);
        copy_of(&batch, &DEATH, &Limits::default()).unwrap()
    }

    fn text<'a>(record: &'a Record, name: &str) -> Option<&'a str> {
        let value = record.header(&format!("{HEADER_PREFIX}{name}"))?;
        Some(std::str::from_utf8(value).unwrap())
    }

    #[test]
    fn a_copy_is_its_record_with_the_story_of_its_death() {
        let own = vec![Header::new("a", "1"), Header::new("traceparent", SAMPLED), Header::new("a", "2")];
        let mut copy = copy_with(own.clone());
        let added: Vec<_> = copy.headers.split_off(3);
        assert_eq!(copy, record(own));
        let expected = [
            ("streambus-dead-letter-topic", "orders"),
            ("streambus-dead-letter-partition", "3"),
            ("streambus-dead-letter-offset", "101"),
            ("streambus-dead-letter-group", "billing"),
            ("streambus-dead-letter-delivery-count", "5"),
            ("streambus-dead-letter-reason", "rejected"),
            ("streambus-dead-letter-detail", "no such customer"),
            ("streambus-dead-letter-time", "1700000000123"),
        ];
        assert_eq!(added, expected.map(|(key, value)| Header::new(key, value)));
    }

    #[test]
    fn a_copy_without_detail_has_no_header_for_it() {
        let batch = batch(&[Record::default(), Record::default()], Codec::None);
        let death = Death { reason: Reason::MaxDeliveries, detail: "", ..DEATH };
        let copy = copy_of(&batch, &death, &Limits::default()).unwrap();
        assert_eq!(text(&copy, "reason"), Some("max_deliveries"));
        assert_eq!((text(&copy, "detail"), copy.headers.len()), (None, 7));
        assert_eq!((copy.key, copy.value, copy.timestamp_ms), (None, None, 0));
    }

    #[test]
    fn the_record_is_found_in_a_compressed_batch() {
        for codec in [Codec::Lz4, Codec::Zstd] {
            let number = |n: usize| Record { value: Some(format!("{n:0100}").into()), ..Record::default() };
            let batch = batch(&[number(0), number(1), number(2)], codec);
            assert_eq!(skim(&batch, &Limits::default()).unwrap().codec, codec);
            let copy = copy_of(&batch, &DEATH, &Limits::default()).unwrap();
            assert_eq!(copy.value, number(1).value);
        }
    }

    #[test]
    fn a_topic_that_takes_only_compressed_batches_gets_one() {
        for codec in [Codec::Lz4, Codec::Zstd] {
            let record = Record { value: Some("v".into()), ..Record::default() };
            let limits = Limits { codecs: CodecSet::EMPTY.with(codec), ..Limits::default() };
            let batch = encode(&record, &limits).unwrap();
            assert_eq!(skim(&batch, &limits).unwrap().codec, codec);
        }
    }

    #[test]
    fn a_record_that_dies_again_says_where_it_was_last() {
        let earlier = Header::new("streambus-dead-letter-topic", "earlier");
        let dropped = Header::new("streambus-dead-letter-dropped-headers", "7");
        let copy = copy_with(vec![earlier, Header::new("a", "1"), dropped]);
        assert_eq!((text(&copy, "topic"), text(&copy, "dropped-headers")), (Some("orders"), None));
        assert_eq!((copy.headers.len(), copy.headers[0].key()), (9, "a"));
    }

    #[test]
    fn headers_go_only_if_there_is_no_room_for_all() {
        let full = copy_with(numbered(120));
        assert_eq!((full.headers.len(), text(&full, "dropped-headers")), (128, None));

        let copy = copy_with(numbered(121));
        assert_eq!((copy.headers.len(), text(&copy, "dropped-headers")), (128, Some("2")));
        assert_eq!((copy.headers[118].key(), text(&copy, "time")), ("h118", Some("1700000000123")));
    }

    #[test]
    fn the_trace_context_is_kept_before_all_others() {
        let mut headers = numbered(127);
        headers.push(Header::new("traceparent", SAMPLED));
        let copy = copy_with(headers);
        assert_eq!(copy.header("traceparent").map(|value| &value[..]), Some(SAMPLED.as_bytes()));
        assert_eq!((copy.headers[117].key(), copy.headers[118].key()), ("h117", "traceparent"));
        assert_eq!(text(&copy, "dropped-headers"), Some("9"));
    }

    #[test]
    fn headers_that_no_topic_takes_go() {
        // Only compressed batches come with such, since they are not looked into when they arrive.
        let mut long = record(numbered(1));
        long.headers.push(Header::new("n".repeat(256), "v"));
        long.headers.push(Header::new("", "v"));
        long.headers.push(Header::new("last", "v"));
        let copy =
            copy_of(&batch(&[Record::default(), long], Codec::Zstd), &DEATH, &Limits::default()).unwrap();
        assert_eq!((copy.headers[0].key(), copy.headers[1].key()), ("h0", "last"));
        assert_eq!((copy.headers.len(), text(&copy, "dropped-headers")), (11, Some("2")));
    }

    #[test]
    fn a_topic_that_takes_compressed_batches_only_gets_one() {
        let limits = Limits { codecs: [Codec::Zstd].into_iter().collect::<CodecSet>(), ..Limits::default() };
        let large = Record { value: Some(vec![b'v'; 10_000].into()), ..Record::default() };
        let copy =
            copy_of(&batch(&[Record::default(), large.clone()], Codec::None), &DEATH, &limits).unwrap();
        assert_eq!(copy.value, large.value);
    }

    #[test]
    fn says_why_there_is_no_copy() {
        let batch = batch(&[record(vec![]), record(vec![])], Codec::None);
        for offset in [Offset(99), Offset(102), Offset(u64::MAX)] {
            let death = Death { offset, ..DEATH };
            let missing = Error::NotInBatch { offset, base_offset: Offset(100), records: 2 };
            assert_eq!(copy_of(&batch, &death, &Limits::default()), Err(missing));
        }
        assert!(matches!(
            copy_of(&batch.slice(1..), &DEATH, &Limits::default()),
            Err(Error::Unreadable { base_offset: Offset(100), .. })
        ));
        let small = Limits { record_bytes_max: 100, ..Limits::default() };
        let refused = copy_of(&batch, &DEATH, &small).unwrap_err();
        let too_large = |error: &Error| match error {
            Error::Refused { source, .. } => matches!(source, crate::record::Error::RecordTooLarge { .. }),
            _ => false,
        };
        assert!(too_large(&refused), "{refused}");
    }

    #[test]
    fn knows_how_much_larger_a_copy_may_become() {
        let name = "n".repeat(249);
        let detail = "d".repeat(1 << 10);
        let worst = Death {
            topic: &name,
            partition: u32::MAX,
            offset: Offset(u64::MAX - 1),
            group: &name,
            delivery_count: u32::MAX,
            reason: Reason::MaxDeliveries,
            detail: &detail,
            at_ms: i64::MIN,
        };
        let mut copy = Record::default();
        // One that must go adds the header that says so, and takes nothing away.
        copy.headers.push(Header::new("", ""));
        let before = Record::default().draft().encoded_len();
        replace_headers(&mut copy, &worst, &Limits::default());
        let added = copy.draft().encoded_len() - before;
        assert!(added <= ADDED_BYTES_MAX as usize, "{added} bytes were added");
        assert!(added > ADDED_BYTES_MAX as usize / 2, "{added} bytes are far from the bound");
    }

    fn any_key() -> impl Strategy<Value = String> {
        prop_oneof![20 => "[a-z]{1,3}", 1 => Just("traceparent".into()), 1 => (0..2usize).prop_map(|n| "n".repeat(n * 256))]
    }

    proptest! {
        #[test]
        fn a_topic_with_the_usual_limits_takes_every_copy(
            headers in prop::collection::vec((any_key(), "[a-z]{0,3}"), 0..200),
            compressed: bool,
        ) {
            let own: Vec<_> = headers.into_iter().map(|(key, value)| Header::new(key, value)).collect();
            let codec = if compressed { Codec::Zstd } else { Codec::None };
            let batch = batch(&[Record::default(), record(own.clone())], codec);
            let copy = copy_of(&batch, &DEATH, &Limits::default()).unwrap();
            let dropped = text(&copy, "dropped-headers").map_or(0, |count| count.parse::<usize>().unwrap());
            let kept = copy.headers.iter().filter(|header| !header.key().starts_with(HEADER_PREFIX)).count();
            prop_assert_eq!(kept + dropped, own.len());
        }
    }
}
