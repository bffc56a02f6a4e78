//! `streambus group`.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, bail};
use clap::{ArgGroup, Args, Subcommand};
use serde_json::{Value, json};

use crate::client::{
    Admin, CommittedOffset, ErrorCode, GroupDescription, GroupKind, GroupListing, GroupMember,
    GroupPartition, Offset, ResetOffset, ResetSpec, ResetTo, TopicPartition,
};

use super::Global;
use super::connect::connect;
use super::failure::Usage;
use super::output::{self, Format, line, note, table};
use super::position;

/// Looks at consumer groups, and manages them.
#[derive(Debug, Subcommand)]
pub(super) enum Group {
    /// List groups
    List,
    /// Show a group: its members, what they read, and how far behind it is
    Describe {
        /// Group
        name: String,
    },
    /// Show what a group has committed
    Offsets {
        /// Group
        name: String,
        #[command(flatten)]
        chosen: Chosen,
    },
    /// Move the committed offsets of a group without members. Only says what would change, unless told to --execute
    Reset(Reset),
    /// Delete groups and their offsets
    Delete {
        /// Groups
        #[arg(required = true)]
        names: Vec<String>,
        /// Do not fail for groups that do not exist
        #[arg(long)]
        if_exists: bool,
    },
}

/// Some of a group's partitions.
#[derive(Debug, Default, Args)]
pub(super) struct Chosen {
    /// Only of this topic; repeatable
    #[arg(short, long, value_name = "TOPIC")]
    topic: Vec<String>,
    /// Only of this partition of the one --topic; repeatable
    #[arg(short, long, value_name = "NUMBER", requires = "topic")]
    partition: Vec<u32>,
}

/// An offset to be moved.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("to").required(true))]
pub(super) struct Reset {
    /// Group
    name: String,
    /// To the oldest retained records
    #[arg(long, group = "to")]
    to_earliest: bool,
    /// To the end: what is there already is skipped
    #[arg(long, group = "to")]
    to_latest: bool,
    /// To this offset, or the end of the log that is nearest to it
    #[arg(long, group = "to", value_name = "OFFSET")]
    to_offset: Option<u64>,
    /// To the first record appended at or after this time, such as 2026-01-31T12:00:00Z or @UNIX_MS
    #[arg(long, group = "to", value_name = "TIME", value_parser = position::time)]
    to_time: Option<SystemTime>,
    /// Forward by so many records, or back if negative
    #[arg(long, group = "to", value_name = "COUNT", allow_negative_numbers = true)]
    shift_by: Option<i64>,
    #[command(flatten)]
    chosen: Chosen,
    /// Move the offsets
    #[arg(long)]
    execute: bool,
}

impl Chosen {
    /// The partitions and the whole topics that are meant.
    fn resolve(&self) -> Result<(Vec<TopicPartition>, Vec<String>), Usage> {
        match self.topic.as_slice() {
            [topic] if !self.partition.is_empty() => {
                let partitions = self.partition.iter();
                Ok((
                    partitions.map(|number| TopicPartition::new(topic.as_str(), *number)).collect(),
                    Vec::new(),
                ))
            }
            topics if self.partition.is_empty() => Ok((Vec::new(), topics.to_vec())),
            _ => Err(Usage("--partition needs exactly one --topic".to_owned())),
        }
    }
}

impl Reset {
    fn spec(&self) -> Result<ResetSpec, Usage> {
        let to = if self.to_earliest {
            ResetTo::Earliest
        } else if self.to_latest {
            ResetTo::Latest
        } else if let Some(offset) = self.to_offset {
            ResetTo::Offset(Offset(offset))
        } else if let Some(time) = self.to_time {
            ResetTo::Time(time)
        } else if let Some(records) = self.shift_by {
            ResetTo::Shift(records)
        } else {
            return Err(Usage("say where to move the offsets, for example --to-earliest".to_owned()));
        };
        let (partitions, topics) = self.chosen.resolve()?;
        let spec = ResetSpec::new(&self.name, to).partitions(partitions).topics(topics);
        Ok(spec.execute(self.execute))
    }
}

impl Group {
    pub(super) async fn run(self, global: &Global) -> anyhow::Result<()> {
        // What needs no broker is checked before one is looked for.
        match &self {
            Group::Reset(reset) => drop(reset.spec()?),
            Group::Offsets { chosen, .. } => drop(chosen.resolve()?),
            _ => {}
        }
        let (admin, format) = (connect(global).await?.admin(), global.output);
        match self {
            Group::List => print_list(&admin.list_groups().await?, format),
            Group::Describe { name } => print_group(&admin.describe_group(&name).await?, format),
            Group::Offsets { name, chosen } => {
                let (partitions, topics) = chosen.resolve()?;
                let mut offsets = admin.fetch_offsets(&name, &partitions).await?;
                offsets.retain(|of| topics.is_empty() || topics.iter().any(|topic| **topic == *of.at.topic));
                print_offsets(&offsets, format)
            }
            Group::Reset(reset) => {
                let moved = admin.reset_offsets(reset.spec()?).await?;
                print_reset(&moved, reset.execute, format)
            }
            Group::Delete { names, if_exists } => delete(&admin, &names, if_exists, format).await,
        }
    }
}

fn print_list(groups: &[GroupListing], format: Format) -> anyhow::Result<()> {
    if format == Format::Json {
        let json = |group: &GroupListing| json!({"group": group.group, "kind": group.kind.name(), "member_count": group.members});
        return line(groups.iter().map(json).collect::<Value>());
    }
    let row =
        |group: &GroupListing| [group.group.clone(), group.kind.name().to_owned(), group.members.to_string()];
    table(["GROUP", "KIND", "MEMBERS"], &groups.iter().map(row).collect::<Vec<_>>())
}

fn print_group(group: &GroupDescription, format: Format) -> anyhow::Result<()> {
    if format == Format::Json {
        return line(group_json(group));
    }
    let lag: u64 = group.partitions.iter().map(|partition| partition.lag).sum();
    let longest = group.partitions.iter().map(|partition| partition.lag_time).max().unwrap_or_default();
    line(format_args!(
        "group        {}\nkind         {}\nmembers      {}\nepoch        {}\ncoordinator  {}\nlag          {}, {}\n",
        group.group,
        group.kind.name(),
        group.members.len(),
        group.epoch,
        group.coordinator_id,
        messages(lag),
        seconds(longest),
    ))?;
    if !group.members.is_empty() {
        let rows: Vec<_> = group.members.iter().map(member_row).collect();
        table(["MEMBER", "CLIENT", "INSTANCE", "RACK", "STATE", "READS", "GIVES UP"], &rows)?;
        line("")?;
    }
    if group.partitions.is_empty() {
        return line("nothing is committed");
    }
    // The last column is whatever the kind of group has.
    let (last, of): (_, fn(&GroupPartition) -> String) = match group.kind {
        GroupKind::Share => ("LEASED", |partition| partition.leased.to_string()),
        _ => ("MEMBER", |partition| or_dash(partition.member_id.as_deref())),
    };
    let row = |partition: &GroupPartition| {
        [
            partition.at.topic.to_string(),
            partition.at.partition.to_string(),
            or_dash(partition.committed),
            partition.high_watermark.to_string(),
            output::grouped(partition.lag),
            seconds(partition.lag_time),
            of(partition),
        ]
    };
    let rows: Vec<_> = group.partitions.iter().map(row).collect();
    table(["TOPIC", "PARTITION", "COMMITTED", "END", "LAG", "LAG TIME", last], &rows)
}

fn member_row(member: &GroupMember) -> [String; 7] {
    [
        member.member_id.clone(),
        or_dash(member.client_id.as_deref()),
        or_dash(member.instance_id.as_deref()),
        or_dash(member.rack.as_deref()),
        if member.connected { "connected" } else { "away" }.to_owned(),
        partitions_text(&member.assigned),
        partitions_text(&member.revoking),
    ]
}

fn group_json(group: &GroupDescription) -> Value {
    let at = |at: &TopicPartition| json!({"topic": &*at.topic, "partition": at.partition});
    let member = |member: &GroupMember| {
        json!({
            "member_id": member.member_id,
            "instance_id": member.instance_id,
            "client_id": member.client_id,
            "rack": member.rack,
            "epoch": member.epoch,
            "connected": member.connected,
            "assigned": member.assigned.iter().map(at).collect::<Value>(),
            "revoking": member.revoking.iter().map(at).collect::<Value>(),
        })
    };
    let partition = |partition: &GroupPartition| {
        json!({
            "topic": &*partition.at.topic,
            "partition": partition.at.partition,
            "committed_offset": partition.committed.map(|offset| offset.0),
            "metadata": partition.metadata,
            "commit_time": partition.commit_time.map(output::time),
            "log_start_offset": partition.log_start.0,
            "high_watermark": partition.high_watermark.0,
            "lag": partition.lag,
            "lag_seconds": partition.lag_time.as_secs_f64(),
            "member_id": partition.member_id,
            "leased": partition.leased,
        })
    };
    json!({
        "group": group.group,
        "kind": group.kind.name(),
        "epoch": group.epoch,
        "coordinator_id": group.coordinator_id,
        "members": group.members.iter().map(member).collect::<Value>(),
        "partitions": group.partitions.iter().map(partition).collect::<Value>(),
    })
}

fn print_offsets(offsets: &[CommittedOffset], format: Format) -> anyhow::Result<()> {
    if format == Format::Json {
        let json = |committed: &CommittedOffset| {
            json!({
                "topic": &*committed.at.topic,
                "partition": committed.at.partition,
                "offset": committed.offset.map(|offset| offset.0),
                "metadata": committed.metadata,
                "commit_time": committed.commit_time.map(output::time),
            })
        };
        return line(offsets.iter().map(json).collect::<Value>());
    }
    let row = |committed: &CommittedOffset| {
        [
            committed.at.topic.to_string(),
            committed.at.partition.to_string(),
            or_dash(committed.offset),
            or_dash(committed.commit_time.map(output::time)),
            or_dash(Some(committed.metadata.as_str()).filter(|metadata| !metadata.is_empty())),
        ]
    };
    let rows: Vec<_> = offsets.iter().map(row).collect();
    table(["TOPIC", "PARTITION", "OFFSET", "COMMITTED AT", "METADATA"], &rows)
}

fn print_reset(moved: &[ResetOffset], executed: bool, format: Format) -> anyhow::Result<()> {
    match format {
        Format::Json => line(reset_json(moved, executed))?,
        Format::Text => {
            let rows: Vec<_> = moved.iter().map(reset_row).collect();
            table(["TOPIC", "PARTITION", "FROM", "TO", "CHANGE"], &rows)?;
        }
    }
    let failed = moved.iter().filter(|offset| offset.to.is_err()).count();
    if failed > 0 {
        bail!("{failed} of {} offsets cannot be moved", moved.len());
    }
    if !executed && !moved.is_empty() {
        note("nothing was changed; add --execute to move the offsets");
    }
    Ok(())
}

fn reset_row(reset: &ResetOffset) -> [String; 5] {
    let (to, change) = match (&reset.to, reset.from) {
        (Err(error), _) => ("-".to_owned(), error.to_string()),
        (Ok(to), None) => (to.to_string(), "new".to_owned()),
        (Ok(to), Some(from)) => (to.to_string(), format!("{:+}", i128::from(to.0) - i128::from(from.0))),
    };
    let at = &reset.at;
    [at.topic.to_string(), at.partition.to_string(), or_dash(reset.from), to, change]
}

fn reset_json(moved: &[ResetOffset], executed: bool) -> Value {
    let json = |reset: &ResetOffset| {
        json!({
            "topic": &*reset.at.topic,
            "partition": reset.at.partition,
            "from_offset": reset.from.map(|offset| offset.0),
            "to_offset": reset.to.as_ref().ok().map(|offset| offset.0),
            "error": reset.to.as_ref().err().map(ToString::to_string),
        })
    };
    json!({"executed": executed, "offsets": moved.iter().map(json).collect::<Value>()})
}

async fn delete(admin: &Admin, names: &[String], if_exists: bool, format: Format) -> anyhow::Result<()> {
    let mut deleted = Vec::new();
    for name in names {
        match admin.delete_group(name).await {
            Ok(()) => deleted.push(name),
            Err(error) if if_exists && error.code() == Some(ErrorCode::UnknownGroup) => continue,
            Err(error) => return Err(error).with_context(|| format!("cannot delete group {name}")),
        }
        if format == Format::Text {
            line(format_args!("group {name} deleted"))?;
        }
    }
    if format == Format::Json { line(json!({"deleted": deleted})) } else { Ok(()) }
}

/// Partitions by topic, consecutive ones as a range: `orders:0-3,5 payments:1`.
fn partitions_text(partitions: &[TopicPartition]) -> String {
    let mut topics: BTreeMap<&str, Vec<u32>> = BTreeMap::new();
    for at in partitions {
        topics.entry(&at.topic).or_default().push(at.partition);
    }
    let texts = topics.into_iter().map(|(topic, mut numbers)| {
        numbers.sort_unstable();
        let runs = numbers.chunk_by(|a, b| a + 1 == *b).map(|run| match run {
            [first, .., last] => format!("{first}-{last}"),
            run => run[0].to_string(),
        });
        format!("{topic}:{}", runs.collect::<Vec<_>>().join(","))
    });
    let text = texts.collect::<Vec<_>>().join(" ");
    if text.is_empty() { "-".to_owned() } else { text }
}

fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

fn messages(count: u64) -> String {
    let noun = if count == 1 { "message" } else { "messages" };
    format!("{} {noun}", output::grouped(count))
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};
    use crate::client::Error;

    fn reset(args: &str) -> Result<ResetSpec, String> {
        let args = format!("streambus group reset g {args}");
        let cli = Cli::try_parse_from(args.split_whitespace()).map_err(|error| error.to_string())?;
        let Command::Group(Group::Reset(reset)) = cli.command else { panic!("it is a reset") };
        reset.spec().map_err(|error| error.to_string())
    }

    #[test]
    fn a_reset_goes_to_one_place_and_changes_nothing_unless_told_to() {
        let spec = |to| ResetSpec::new("g", to);
        assert_eq!(reset("--to-earliest"), Ok(spec(ResetTo::Earliest)));
        assert_eq!(reset("--to-latest --execute"), Ok(spec(ResetTo::Latest).execute(true)));
        assert_eq!(reset("--to-offset 7"), Ok(spec(ResetTo::Offset(Offset(7)))));
        assert_eq!(reset("--shift-by -7"), Ok(spec(ResetTo::Shift(-7))));
        let time = SystemTime::UNIX_EPOCH + Duration::from_millis(1_500);
        assert_eq!(reset("--to-time @1500"), Ok(spec(ResetTo::Time(time))));
        assert!(reset("").is_err());
        assert!(reset("--to-earliest --to-latest").is_err());
    }

    #[test]
    fn a_reset_can_be_of_topics_or_of_partitions_of_one() {
        let spec = || ResetSpec::new("g", ResetTo::Earliest);
        assert_eq!(reset("--to-earliest -t a -t b"), Ok(spec().topics(["a", "b"])));
        let partitions = [TopicPartition::new("a", 1), TopicPartition::new("a", 4)];
        assert_eq!(reset("--to-earliest -t a -p 1 -p 4"), Ok(spec().partitions(partitions)));
        assert!(reset("--to-earliest -p 1").is_err());
        assert!(reset("--to-earliest -t a -t b -p 1").is_err());
    }

    #[test]
    fn consecutive_partitions_are_a_range() {
        let at = |topic: &str, partition| TopicPartition::new(topic, partition);
        let partitions = [at("b", 1), at("a", 3), at("a", 0), at("a", 1), at("a", 2), at("a", 5)];
        assert_eq!(partitions_text(&partitions), "a:0-3,5 b:1");
        assert_eq!(partitions_text(&[]), "-");
    }

    #[test]
    fn a_reset_shows_what_changes_and_what_cannot() {
        let at = TopicPartition::new("t", 2);
        let moved = |from: Option<u64>, to| ResetOffset { at: at.clone(), from: from.map(Offset), to };
        assert_eq!(reset_row(&moved(Some(9), Ok(Offset(4)))), ["t", "2", "9", "4", "-5"]);
        assert_eq!(reset_row(&moved(None, Ok(Offset(4)))), ["t", "2", "-", "4", "new"]);
        let failed = moved(None, Err(Error::UnknownTopic { topic: "t".to_owned() }));
        assert_eq!(reset_row(&failed)[3..], ["-", "topic t does not exist"]);
        let json = reset_json(&[failed], false);
        assert_eq!(json["offsets"][0]["error"], "topic t does not exist");
        assert_eq!(json["offsets"][0]["to_offset"], Value::Null);
    }

    #[test]
    fn json_has_members_and_lag() {
        let at = TopicPartition::new("t", 0);
        let group = GroupDescription {
            group: "g".to_owned(),
            kind: GroupKind::Consumer,
            epoch: 7,
            coordinator_id: 1,
            members: vec![GroupMember {
                member_id: "m".to_owned(),
                instance_id: None,
                client_id: Some("app".to_owned()),
                rack: None,
                epoch: 7,
                connected: true,
                assigned: vec![at.clone()],
                revoking: Vec::new(),
            }],
            partitions: vec![GroupPartition {
                at,
                committed: Some(Offset(3)),
                metadata: String::new(),
                commit_time: None,
                log_start: Offset(0),
                high_watermark: Offset(10),
                lag: 7,
                lag_time: Duration::from_millis(2_500),
                member_id: Some("m".to_owned()),
                leased: 0,
            }],
        };
        let json = group_json(&group);
        assert_eq!(json["members"][0]["assigned"][0], json!({"topic": "t", "partition": 0}));
        assert_eq!(json["members"][0]["instance_id"], Value::Null);
        assert_eq!(
            (&json["partitions"][0]["lag"], &json["partitions"][0]["lag_seconds"]),
            (&json!(7), &json!(2.5))
        );
    }
}
