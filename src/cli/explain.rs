//! `streambus explain`.

use std::fmt::Write as _;
use std::time::SystemTime;

use clap::Args;
use serde_json::{Value, json};

use super::Global;
use super::connect::connect;
use super::failure::Usage;
use super::output::{self, Format, line, list, note};
use crate::client::{
    Admin, Explanation, GroupFacts, Offset, RecordFacts, TopicPartition, TraceReference, WhenKnown,
};

/// Batches of a trace that are explained.
const BATCHES_MAX: usize = 10;

/// Tells what became of a record.
#[derive(Debug, Args)]
pub(super) struct Explain {
    /// The record, as TOPIC/PARTITION/OFFSET
    #[arg(value_parser = record, required_unless_present = "trace", conflicts_with = "trace")]
    record: Option<(TopicPartition, Offset)>,
    /// Explain the first record of each batch that came in this trace, 32 hexadecimal digits
    #[arg(long, value_name = "TRACE_ID")]
    trace: Option<String>,
}

fn record(text: &str) -> Result<(TopicPartition, Offset), &'static str> {
    let wrong = "write TOPIC/PARTITION/OFFSET, such as orders/0/17";
    let mut parts = text.splitn(3, '/');
    let (Some(topic), Some(partition), Some(offset)) = (parts.next(), parts.next(), parts.next()) else {
        return Err(wrong);
    };
    match (partition.parse(), offset.parse()) {
        (Ok(partition), Ok(offset)) if !topic.is_empty() => {
            Ok((TopicPartition::new(topic, partition), Offset(offset)))
        }
        _ => Err(wrong),
    }
}

/// No broker remembers a batch of the trace.
#[derive(Debug, thiserror::Error)]
#[error(
    "no broker remembers a batch of trace {0}: it was not sampled, or it is older than the newest 16,384 sampled batches \
     of each broker, or than its last start"
)]
struct NotFound(String);

impl Explain {
    pub(super) async fn run(self, global: &Global) -> anyhow::Result<()> {
        if let Some(trace) = &self.trace
            && (trace.len() != 32 || !trace.bytes().all(|digit| digit.is_ascii_hexdigit()))
        {
            return Err(Usage(format!("{trace:?} is no trace id: write its 32 hexadecimal digits")).into());
        }
        let (admin, format) = (connect(global).await?.admin(), global.output);
        match (self.record, self.trace) {
            (Some((at, offset)), _) => print(&admin.explain_record(&at, offset).await?, format),
            (None, Some(trace)) => explain_trace(&admin, &trace, format).await,
            (None, None) => Err(Usage("name a record or a trace".to_owned()).into()),
        }
    }
}

async fn explain_trace(admin: &Admin, trace: &str, format: Format) -> anyhow::Result<()> {
    let found = admin.find_records(trace).await?;
    if !found.unreached.is_empty() {
        note(format_args!(
            "not reached: brokers {}; what is remembered there is missing",
            list(&found.unreached)
        ));
    }
    if found.batches.is_empty() {
        return Err(NotFound(trace.to_owned()).into());
    }
    let mut explained = Vec::new();
    for batch in found.batches.iter().take(BATCHES_MAX) {
        explained.push(admin.explain_record(&batch.at, batch.base).await?);
    }
    if found.batches.len() > BATCHES_MAX {
        let more = found.batches.len() - BATCHES_MAX;
        note(format_args!("{more} further batches of the trace are not shown"));
    }
    if format == Format::Json {
        return line(explained.iter().map(to_json).collect::<Value>());
    }
    for (number, explanation) in explained.iter().enumerate() {
        if number > 0 {
            line("")?;
        }
        print(explanation, format)?;
    }
    Ok(())
}

fn print(explanation: &Explanation, format: Format) -> anyhow::Result<()> {
    match format {
        Format::Json => line(to_json(explanation)),
        Format::Text => line(text(explanation).trim_end()),
    }
}

fn at(time: Option<SystemTime>) -> String {
    time.map_or_else(|| "?".to_owned(), output::time)
}

// INVARIANT of every `writeln!` below: writing into a `String` cannot fail, so its result is not looked at.
fn text(explanation: &Explanation) -> String {
    let record = &explanation.record;
    let mut text = format!("{}/{}/{}\n", record.at.topic, record.at.partition, record.offset);
    let last = Offset(record.batch_base.0 + u64::from(record.batch_records.saturating_sub(1)));
    let _ = writeln!(
        text,
        "  batch      records {} to {last}, {} bytes",
        record.batch_base,
        output::grouped(record.batch_bytes)
    );
    let _ = match &record.producer {
        None => writeln!(text, "  producer   not idempotent, so the log does not say who sent it"),
        Some(producer) => writeln!(
            text,
            "  producer   {}, epoch {}, sequence {}; {}",
            producer.id,
            producer.epoch,
            producer.sequence,
            producer
                .user_agent
                .as_deref()
                .unwrap_or("its user agent is not known (older than the brokers' memory)"),
        ),
    };
    let _ = writeln!(
        text,
        "  appended   {} by broker {}, term {}, log index {}",
        at(record.append_time),
        record.appended_by,
        record.raft_term,
        record.raft_index
    );
    let _ = match &record.append_span {
        None => writeln!(text, "  trace      not sampled"),
        Some(span) => writeln!(text, "  trace      {} span {}", span.trace_id, span.span_id),
    };
    let _ = writeln!(
        text,
        "  committed  yes: the partition has records {} to before {}",
        record.log_start, record.high_watermark
    );
    let _ = writeln!(text, "  replicas   {}", replicas(record));
    if explanation.groups.is_empty() {
        let _ = writeln!(text, "  groups     none has a position in the partition");
    }
    for group in &explanation.groups {
        write_group(&mut text, record, group);
    }
    if !explanation.unreached.is_empty() {
        let _ = writeln!(
            text,
            "  not reached: brokers {}; what is remembered there of groups is missing",
            list(&explanation.unreached)
        );
    }
    text
}

fn replicas(record: &RecordFacts) -> String {
    let one = |replica: &crate::client::ReplicaFacts| {
        let role = if replica.broker_id == record.leader_id { " (leader" } else { " (follower" };
        let stored = if replica.stored { ", has it)" } else { ", not known to have it)" };
        format!("{}{role}{stored}", replica.broker_id)
    };
    let list: Vec<_> = record.replicas.iter().map(one).collect();
    format!("{}; term {} now", list.join(", "), record.leader_term)
}

fn write_group(text: &mut String, record: &RecordFacts, group: &GroupFacts) {
    let coordinator = match group.coordinator_id {
        Some(id) => format!("coordinated by broker {id}"),
        None => "no coordinator at the moment".to_owned(),
    };
    let _ = writeln!(text, "\n  group {} ({}, {coordinator})", group.group, group.kind);
    // The coordinator may have taken over, or started, after the append: then an earlier delivery is not known.
    let begins =
        group.memory_since.filter(|since| record.append_time.is_some_and(|appended| appended < *since));
    let doubt = begins
        .map(|since| format!(" (its memory begins {}; earlier ones are not known)", output::time(since)));
    let delivered = match group.delivery {
        WhenKnown::Done(when) => format!(
            "{} to member {}{}",
            at(when),
            group.member_id.as_deref().unwrap_or("?"),
            doubt.unwrap_or_default()
        ),
        WhenKnown::NotYet => "not yet".to_owned(),
        WhenKnown::NotKnown => "not known (older than this broker's memory)".to_owned(),
    };
    let _ = writeln!(text, "    first delivered     {delivered}");
    if let Some(TraceReference { trace_id, span_id }) = &group.delivery_span {
        let _ = writeln!(text, "    delivery trace      {trace_id} span {span_id}");
    }
    let (verb, done) = match group.kind.as_str() {
        "share" => ("first done with", "accepted or given up"),
        _ => ("first committed", "committed"),
    };
    let acknowledged = match group.acknowledgement {
        WhenKnown::Done(Some(when)) => output::time(when),
        WhenKnown::Done(None) => format!("{done}; when is not known (older than this broker's memory)"),
        WhenKnown::NotYet => "not yet".to_owned(),
        WhenKnown::NotKnown => "not known".to_owned(),
    };
    let _ = writeln!(text, "    {verb:<19} {acknowledged}");
    let when = group.commit_time.map(|time| format!(", since {}", output::time(time))).unwrap_or_default();
    let _ = writeln!(text, "    committed offset    {}{when}", group.committed);
}

fn span_json(span: Option<&TraceReference>) -> Value {
    span.map_or(Value::Null, |span| json!({ "trace_id": span.trace_id, "span_id": span.span_id }))
}

fn when_json(when: WhenKnown) -> Value {
    match when {
        WhenKnown::Done(time) => json!({ "state": "done", "time": time.map(output::time) }),
        WhenKnown::NotYet => json!({ "state": "not_yet", "time": null }),
        WhenKnown::NotKnown => json!({ "state": "not_known", "time": null }),
    }
}

fn to_json(explanation: &Explanation) -> Value {
    let record = &explanation.record;
    let producer = record.producer.as_ref().map(|producer| {
        json!({
            "id": producer.id,
            "epoch": producer.epoch,
            "sequence": producer.sequence,
            "user_agent": producer.user_agent,
        })
    });
    let group = |group: &GroupFacts| {
        json!({
            "group": group.group,
            "kind": group.kind,
            "coordinator_id": group.coordinator_id,
            "committed_offset": group.committed.0,
            "commit_time": group.commit_time.map(output::time),
            "delivery": when_json(group.delivery),
            "delivery_member_id": group.member_id,
            "delivery_span": span_json(group.delivery_span.as_ref()),
            "acknowledgement": when_json(group.acknowledgement),
            "memory_since": group.memory_since.map(output::time),
        })
    };
    json!({
        "topic": &*record.at.topic,
        "partition": record.at.partition,
        "offset": record.offset.0,
        "batch": {
            "base_offset": record.batch_base.0,
            "record_count": record.batch_records,
            "size_bytes": record.batch_bytes,
        },
        "producer": producer,
        "append_time": record.append_time.map(output::time),
        "append_span": span_json(record.append_span.as_ref()),
        "raft_index": record.raft_index,
        "raft_term": record.raft_term,
        "appended_by": record.appended_by,
        "leader_id": record.leader_id,
        "leader_term": record.leader_term,
        "replicas": record.replicas.iter()
            .map(|one| json!({ "broker_id": one.broker_id, "stored": one.stored })).collect::<Value>(),
        "log_start_offset": record.log_start.0,
        "high_watermark": record.high_watermark.0,
        "groups": explanation.groups.iter().map(group).collect::<Value>(),
        "unreached_broker_ids": explanation.unreached,
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn second(second: u64) -> Option<SystemTime> {
        Some(SystemTime::UNIX_EPOCH + Duration::from_secs(second))
    }

    fn explanation() -> Explanation {
        let replicas = [(1, true), (2, false)];
        let group = |name: &str, kind: &str, delivery, acknowledgement, since| GroupFacts {
            group: name.to_owned(),
            kind: kind.to_owned(),
            coordinator_id: Some(2),
            committed: Offset(9),
            commit_time: None,
            delivery,
            member_id: Some("m1".to_owned()),
            delivery_span: None,
            acknowledgement,
            memory_since: since,
        };
        Explanation {
            record: RecordFacts {
                at: TopicPartition::new("orders", 3),
                offset: Offset(7),
                batch_base: Offset(5),
                batch_records: 4,
                batch_bytes: 1_234,
                producer: None,
                append_time: second(10),
                append_span: None,
                raft_index: 42,
                raft_term: 2,
                appended_by: 1,
                leader_id: 1,
                leader_term: 3,
                replicas: replicas
                    .map(|(broker_id, stored)| crate::client::ReplicaFacts { broker_id, stored })
                    .into(),
                log_start: Offset(0),
                high_watermark: Offset(9),
            },
            groups: vec![
                group(
                    "early",
                    "consumer",
                    WhenKnown::Done(second(11)),
                    WhenKnown::Done(second(12)),
                    second(1),
                ),
                group("late", "consumer", WhenKnown::Done(second(30)), WhenKnown::NotYet, second(20)),
                group("lost", "share", WhenKnown::NotKnown, WhenKnown::Done(None), None),
            ],
            unreached: vec![3],
        }
    }

    #[test]
    fn the_text_says_what_is_known_and_what_is_not() {
        let text = text(&explanation());
        for expected in [
            "orders/3/7\n",
            "batch      records 5 to 8, 1,234 bytes",
            "not idempotent, so the log does not say who sent it",
            "appended   1970-01-01T00:00:10Z by broker 1, term 2, log index 42",
            "1 (leader, has it), 2 (follower, not known to have it); term 3 now",
            "first delivered     1970-01-01T00:00:11Z to member m1\n",
            "first committed     1970-01-01T00:00:12Z",
            "to member m1 (its memory begins 1970-01-01T00:00:20Z; earlier ones are not known)",
            "first delivered     not known (older than this broker's memory)",
            "accepted or given up; when is not known (older than this broker's memory)",
            "not reached: brokers 3;",
        ] {
            assert!(text.contains(expected), "{expected:?} is not in\n{text}");
        }
    }

    #[test]
    fn json_has_the_states_and_times() {
        let json = to_json(&explanation());
        assert_eq!(json["groups"][0]["delivery"]["time"], "1970-01-01T00:00:11Z");
        assert_eq!(json["groups"][2]["delivery"]["state"], "not_known");
        assert_eq!((&json["producer"], &json["offset"]), (&Value::Null, &7.into()));
    }

    #[test]
    fn a_record_is_named_by_topic_partition_and_offset() {
        assert_eq!(record("orders/1/17"), Ok((TopicPartition::new("orders", 1), Offset(17))));
        for wrong in ["orders", "orders/1", "/1/2", "orders/a/2", "orders/1/2/3", "orders/1/-2"] {
            assert!(record(wrong).is_err(), "{wrong}");
        }
    }
}
