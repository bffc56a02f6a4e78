//! `streambus topic`.

use anyhow::Context as _;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::client::{
    Admin, Client, Codec, CodecSet, ErrorCode, Offset, PartitionDescription, Position, TopicConfig,
    TopicSpec, TopicSummary,
};
use crate::units::{ByteSize, HumanDuration};

use super::Global;
use super::connect::connect;
use super::failure::Usage;
use super::output::{self, Format, line, table};
use super::position::{PositionArg, partitions, resolve};

/// Manages topics.
#[derive(Debug, Subcommand)]
pub(super) enum Topic {
    /// Create a topic
    Create(Create),
    /// List topics
    List,
    /// Show a topic, its settings and its partitions
    Describe {
        /// Topic
        name: String,
    },
    /// Change settings of a topic; those that are not given stay
    Alter {
        /// Topic
        name: String,
        #[command(flatten)]
        settings: TopicSettings,
    },
    /// Raise the number of partitions. Keys may then map to other partitions than before
    AddPartitions {
        /// Topic
        name: String,
        /// How many there shall be in total
        #[arg(value_name = "TOTAL")]
        total: u32,
    },
    /// Delete topics and their records
    Delete {
        /// Topics
        #[arg(required = true)]
        names: Vec<String>,
        /// Do not fail for topics that do not exist
        #[arg(long)]
        if_exists: bool,
    },
    /// Delete the oldest records of a topic
    DeleteRecords {
        /// Topic
        name: String,
        /// Delete what is before this time or, with one --partition, before this offset; `latest` deletes all
        #[arg(long, value_name = "POSITION")]
        before: PositionArg,
        /// Only of this partition; repeatable
        #[arg(short, long, value_name = "NUMBER")]
        partition: Vec<u32>,
    },
    /// Show where partitions begin and end, or which offset a time has
    Offsets {
        /// Topic
        name: String,
        /// Show the offset of this position instead: a time such as 2026-01-31T12:00:00Z or @UNIX_MS
        #[arg(long, value_name = "POSITION")]
        at: Option<PositionArg>,
        /// Only of this partition; repeatable
        #[arg(short, long, value_name = "NUMBER")]
        partition: Vec<u32>,
    },
}

/// A topic to be created.
#[derive(Debug, Args)]
pub(super) struct Create {
    /// Topic: 1 to 249 of a-z A-Z 0-9 . _ -
    name: String,
    /// Number of partitions [default: the broker's broker.default_partitions]
    #[arg(short, long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    partitions: Option<u32>,
    /// Number of replicas of each partition
    #[arg(long, default_value_t = 1, value_name = "COUNT")]
    replication_factor: u32,
    #[command(flatten)]
    settings: TopicSettings,
    /// Do not fail if there is a topic of that name already; it stays as it is
    #[arg(long)]
    if_not_exists: bool,
    /// Check everything and create nothing
    #[arg(long)]
    validate_only: bool,
}

/// Settings of a topic.
#[derive(Debug, Default, Args)]
pub(super) struct TopicSettings {
    /// How long records are kept, for example 12h or 7d; 0 keeps them without limit
    #[arg(long, value_name = "TIME")]
    retention_time: Option<HumanDuration>,
    /// How much a partition keeps, for example 10GiB; 0 keeps all
    #[arg(long, value_name = "SIZE")]
    retention_bytes: Option<ByteSize>,
    /// Largest record
    #[arg(long, value_name = "SIZE")]
    record_bytes_max: Option<ByteSize>,
    /// Largest batch before compression
    #[arg(long, value_name = "SIZE")]
    batch_bytes_max: Option<ByteSize>,
    /// How batches may be compressed; several with commas between
    #[arg(long, value_name = "CODECS", value_delimiter = ',', value_parser = codec_parser())]
    codecs: Vec<Codec>,
}

/// Reads the name of a codec.
pub(super) fn codec_parser() -> impl TypedValueParser<Value = Codec> {
    PossibleValuesParser::new(Codec::ALL.map(Codec::name)).map(|name| {
        let named = Codec::ALL.into_iter().find(|codec| codec.name() == name);
        named.expect("only names of codecs pass the parser above")
    })
}

impl TopicSettings {
    fn config(&self) -> Result<TopicConfig, Usage> {
        let small = |name: &str, size: Option<ByteSize>| {
            let small = size.map(|size| u32::try_from(size.0)).transpose();
            small.map_err(|_| Usage(format!("{name} must be below 4GiB")))
        };
        Ok(TopicConfig {
            retention_time: self.retention_time.map(|time| time.0),
            retention_bytes: self.retention_bytes.map(|size| size.0),
            record_bytes_max: small("--record-bytes-max", self.record_bytes_max)?,
            batch_bytes_max: small("--batch-bytes-max", self.batch_bytes_max)?,
            codecs_allowed: (!self.codecs.is_empty()).then(|| self.codecs.iter().copied().collect()),
        })
    }
}

impl Topic {
    pub(super) async fn run(self, global: &Global) -> anyhow::Result<()> {
        // What needs no broker is checked before one is looked for.
        if let Topic::Alter { settings, .. } = &self
            && settings.config()? == TopicConfig::default()
        {
            let what = "nothing to change: give a setting, for example --retention-time 7d";
            return Err(Usage(what.to_owned()).into());
        }
        let client = connect(global).await?;
        let (admin, format) = (client.admin(), global.output);
        match self {
            Topic::Create(create) => create.run(&admin, format).await,
            Topic::List => print_list(&admin.list_topics().await?, format),
            Topic::Describe { name } => describe(&admin, &name, format).await,
            Topic::Alter { name, settings } => {
                print_topic(&admin.alter_topic(&name, settings.config()?).await?, "altered", format)
            }
            Topic::AddPartitions { name, total } => {
                print_topic(&admin.add_partitions(&name, total).await?, "extended", format)
            }
            Topic::Delete { names, if_exists } => delete(&admin, &names, if_exists, format).await,
            Topic::DeleteRecords { name, before, partition } => {
                delete_records(&client, &name, before.0, &partition, format).await
            }
            Topic::Offsets { name, at, partition } => {
                offsets(&client, &name, at.map(|at| at.0), &partition, format).await
            }
        }
    }
}

impl Create {
    async fn run(self, admin: &Admin, format: Format) -> anyhow::Result<()> {
        let spec = TopicSpec::new(&self.name)
            .partitions(self.partitions.unwrap_or(0))
            .replication_factor(self.replication_factor)
            .config(self.settings.config()?)
            .validate_only(self.validate_only);
        match admin.create_topic(spec).await {
            Ok(topic) if self.validate_only => print_topic(&topic, "could be created", format),
            Ok(topic) => print_topic(&topic, "created", format),
            Err(error) if self.if_not_exists && error.code() == Some(ErrorCode::TopicExists) => {
                print_topic(&admin.describe_topic(&self.name).await?.topic, "exists already", format)
            }
            Err(error) => Err(error.into()),
        }
    }
}

fn print_topic(topic: &TopicSummary, what: &str, format: Format) -> anyhow::Result<()> {
    match format {
        Format::Json => line(topic_json(topic)),
        Format::Text => {
            let partitions = topic.partitions;
            let noun = if partitions == 1 { "partition" } else { "partitions" };
            line(format_args!(
                "topic {} {what}: {partitions} {noun}, {}",
                topic.name,
                settings_text(&topic.config)
            ))
        }
    }
}

fn print_list(topics: &[TopicSummary], format: Format) -> anyhow::Result<()> {
    match format {
        Format::Json => line(Value::from_iter(topics.iter().map(topic_json))),
        Format::Text => {
            let row = |topic: &TopicSummary| {
                let config = &topic.config;
                [
                    topic.name.clone(),
                    topic.partitions.to_string(),
                    topic.replication_factor.to_string(),
                    retention_time(config),
                    retention_bytes(config),
                ]
            };
            let rows: Vec<_> = topics.iter().map(row).collect();
            table(["TOPIC", "PARTITIONS", "REPLICAS", "KEPT FOR", "KEPT BYTES"], &rows)
        }
    }
}

async fn describe(admin: &Admin, name: &str, format: Format) -> anyhow::Result<()> {
    let described = admin.describe_topic(name).await?;
    let topic = &described.topic;
    if format == Format::Json {
        let mut value = topic_json(topic);
        value["partitions"] = described.partitions.iter().map(partition_json).collect();
        return line(value);
    }
    line(format_args!(
        "topic      {}\nid         {}\ncreated    {}\nreplicas   {}\nsettings   {}\n",
        topic.name,
        topic.topic_id,
        topic.created.map_or_else(|| "unknown".to_owned(), output::time),
        topic.replication_factor,
        settings_text(&topic.config),
    ))?;
    let row = |partition: &PartitionDescription| {
        let replicas: Vec<_> = partition.replica_ids.iter().map(u64::to_string).collect();
        [
            partition.partition.to_string(),
            partition.leader_id.map_or_else(|| "none".to_owned(), |id| id.to_string()),
            replicas.join(","),
            partition.log_start.to_string(),
            partition.high_watermark.to_string(),
            partition.high_watermark.saturating_since(partition.log_start).to_string(),
            output::grouped(partition.size_bytes),
        ]
    };
    let rows: Vec<_> = described.partitions.iter().map(row).collect();
    table(["PARTITION", "LEADER", "REPLICAS", "START", "END", "RECORDS", "BYTES"], &rows)
}

async fn delete(admin: &Admin, names: &[String], if_exists: bool, format: Format) -> anyhow::Result<()> {
    let mut deleted = Vec::new();
    let mut outcome = Ok(());
    for name in names {
        match admin.delete_topic(name).await {
            Ok(()) => deleted.push(name),
            Err(error) if if_exists && error.code() == Some(ErrorCode::UnknownTopic) => continue,
            Err(error) => {
                outcome = Err(error).with_context(|| format!("cannot delete topic {name}"));
                break;
            }
        }
        if format == Format::Text {
            line(format_args!("topic {name} deleted"))?;
        }
    }
    // Also what went before a failure is gone.
    if format == Format::Json {
        line(json!({"deleted": deleted}))?;
    }
    outcome
}

async fn delete_records(
    client: &Client,
    name: &str,
    before: Position,
    chosen: &[u32],
    format: Format,
) -> anyhow::Result<()> {
    let partitions = partitions(client, name, chosen).await?;
    if matches!(before, Position::Offset(_)) && partitions.len() > 1 {
        let what = "an offset means something else in each partition: give one of them with --partition";
        return Err(Usage(what.to_owned()).into());
    }
    let offsets = resolve(client, &partitions, before).await?;
    let mut rows = Vec::new();
    for (at, before) in partitions.iter().zip(offsets) {
        let start = client
            .admin()
            .delete_records(at, before)
            .await
            .with_context(|| format!("cannot delete records of partition {}", at.partition))?;
        rows.push((at.partition, start));
    }
    match format {
        Format::Json => line(
            rows.iter()
                .map(|(partition, start)| json!({"partition": partition, "log_start_offset": start.0}))
                .collect::<Value>(),
        ),
        Format::Text => {
            let rows: Vec<_> =
                rows.iter().map(|(partition, start)| [partition.to_string(), start.to_string()]).collect();
            table(["PARTITION", "START"], &rows)
        }
    }
}

async fn offsets(
    client: &Client,
    name: &str,
    at: Option<Position>,
    chosen: &[u32],
    format: Format,
) -> anyhow::Result<()> {
    let partitions = partitions(client, name, chosen).await?;
    let numbers = partitions.iter().map(|at| at.partition);
    if let Some(at) = at {
        let rows: Vec<_> = numbers.zip(resolve(client, &partitions, at).await?).collect();
        return match format {
            Format::Json => line(
                rows.iter()
                    .map(|(partition, offset)| json!({"partition": partition, "offset": offset.0}))
                    .collect::<Value>(),
            ),
            Format::Text => {
                let rows: Vec<_> = rows
                    .iter()
                    .map(|(partition, offset)| [partition.to_string(), offset.to_string()])
                    .collect();
                table(["PARTITION", "OFFSET"], &rows)
            }
        };
    }
    let starts = resolve(client, &partitions, Position::Earliest).await?;
    let ends = resolve(client, &partitions, Position::Latest).await?;
    let rows: Vec<_> = numbers.zip(starts.into_iter().zip(ends)).collect();
    match format {
        Format::Json => line(
            rows.iter()
                .map(|(partition, (start, end))| {
                    json!({"partition": partition, "log_start_offset": start.0, "high_watermark": end.0})
                })
                .collect::<Value>(),
        ),
        Format::Text => {
            let row = |(partition, (start, end)): &(u32, (Offset, Offset))| {
                [
                    partition.to_string(),
                    start.to_string(),
                    end.to_string(),
                    end.saturating_since(*start).to_string(),
                ]
            };
            let rows: Vec<_> = rows.iter().map(row).collect();
            table(["PARTITION", "START", "END", "RECORDS"], &rows)
        }
    }
}

fn topic_json(topic: &TopicSummary) -> Value {
    let config = &topic.config;
    json!({
        "name": topic.name,
        "topic_id": topic.topic_id,
        "partition_count": topic.partitions,
        "replication_factor": topic.replication_factor,
        "created": topic.created.map(output::time),
        "config": {
            "retention_ms": config.retention_time.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
            "retention_bytes": config.retention_bytes,
            "record_bytes_max": config.record_bytes_max,
            "batch_bytes_max": config.batch_bytes_max,
            "codecs_allowed": config.codecs_allowed.map(codec_names),
        },
    })
}

fn partition_json(partition: &PartitionDescription) -> Value {
    json!({
        "partition": partition.partition,
        "leader_id": partition.leader_id,
        "replica_ids": partition.replica_ids,
        "log_start_offset": partition.log_start.0,
        "high_watermark": partition.high_watermark.0,
        "size_bytes": partition.size_bytes,
        "term": partition.term,
    })
}

fn codec_names(codecs: CodecSet) -> Vec<&'static str> {
    codecs.iter().map(Codec::name).collect()
}

fn settings_text(config: &TopicConfig) -> String {
    let size = |bytes: Option<u32>| {
        bytes.map_or_else(|| "unknown".to_owned(), |bytes| ByteSize(bytes.into()).to_string())
    };
    format!(
        "kept for {}, kept bytes {}, records up to {}, batches up to {}, codecs {}",
        retention_time(config),
        retention_bytes(config),
        size(config.record_bytes_max),
        size(config.batch_bytes_max),
        config.codecs_allowed.map(codec_names).unwrap_or_default().join(","),
    )
}

fn retention_time(config: &TopicConfig) -> String {
    match config.retention_time {
        Some(time) if !time.is_zero() => HumanDuration(time).to_string(),
        _ => "unlimited".to_owned(),
    }
}

fn retention_bytes(config: &TopicConfig) -> String {
    match config.retention_bytes {
        Some(bytes) if bytes > 0 => ByteSize(bytes).to_string(),
        _ => "unlimited".to_owned(),
    }
}
