//! `streambus consume`.

mod format;
mod group;

use std::collections::HashMap;
use std::io::{BufWriter, Stdout, Write as _};

use anyhow::bail;
use clap::Args;

use crate::client::{
    Client, ConsumedBatch, ConsumedRecord, Consumer, ConsumerConfig, Offset, OffsetReset, Position,
    Processor, TopicPartition,
};

use super::Global;
use super::connect::builder;
use super::failure::Usage;
use super::observe::{Roots, Telemetry};
use super::output::{Format, note, written};
use super::position::{PositionArg, partitions, resolve};
use format::RecordFormat;
use group::Membership;

/// Prints the records of a topic, those of a partition in order. Ends at what was the end when it started, unless it is
/// to follow.
///
/// With --group it is a member of a consumer group: it shares the partitions with the other members, begins at what the
/// group has committed, and commits what it has printed. It leaves the group when it ends, also on Ctrl-C.
#[derive(Debug, Args)]
pub(super) struct Consume {
    /// Topic
    topic: String,
    /// Where to begin: earliest, latest, an offset, a time such as 2026-01-31T12:00:00Z, or @UNIX_MS. Partitions that do not
    /// reach as far as the offset begin at their end, and those that do not go back as far at what they have. With --group: where to begin if nothing is committed, earliest or
    /// latest
    #[arg(long, value_name = "POSITION", default_value = "earliest")]
    from: PositionArg,
    /// Only this partition; repeatable
    #[arg(short, long, value_name = "NUMBER", conflicts_with = "group")]
    partition: Vec<u32>,
    /// Read as a member of this group, which is made if it does not exist
    #[arg(short, long, value_name = "NAME")]
    group: Option<String>,
    /// The group is a share group (a queue): each record goes to one member, which accepts it once it is printed. Goes on
    /// with what comes, as with --follow
    #[arg(long, requires = "group")]
    share: bool,
    /// End after this many records
    #[arg(short = 'n', long, value_name = "COUNT")]
    count: Option<u64>,
    /// `value`, `json`, or a template in which %k is the key, %v the value, %o the offset, %p the partition, %t the time
    /// in Unix milliseconds, %h the headers and %% a percent sign, and \t \n \0 \\ are what they are elsewhere. A line
    /// feed follows each record [default: value, or json with -o json]
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<RecordFormat>,
    /// Go on with what comes
    #[arg(short = 'F', long)]
    follow: bool,
}

/// Bytes that are printed at once.
const OUTPUT_BUFFER_BYTES: usize = 256 << 10;

impl Consume {
    /// The group to read as a member of, if one is given.
    fn membership(&self) -> Result<Option<Membership>, Usage> {
        let Some(group) = self.group.clone() else { return Ok(None) };
        let offset_reset = match self.from.0 {
            Position::Earliest => OffsetReset::Earliest,
            Position::Latest => OffsetReset::Latest,
            _ => {
                let what = "a member of a group begins at what the group has committed: --from can be earliest or \
                            latest, for what nothing is committed of; `streambus group reset` moves what is committed";
                return Err(Usage(what.to_owned()));
            }
        };
        let (topic, share, follow) = (self.topic.clone(), self.share, self.follow);
        Ok(Some(Membership { group, topic, offset_reset, share, follow }))
    }

    pub(super) async fn run(self, global: &Global) -> anyhow::Result<()> {
        // What needs no broker is checked before one is looked for.
        let membership = self.membership()?;
        let telemetry = Telemetry::start(Roots::None)?;
        let client = telemetry.applied_to(builder(global)).connect().await?;
        let format = match (&self.format, global.output) {
            (Some(format), _) => format.clone(),
            (None, Format::Json) => RecordFormat::Json,
            (None, Format::Text) => RecordFormat::Value,
        };
        let mut printer = Printer {
            out: BufWriter::with_capacity(OUTPUT_BUFFER_BYTES, std::io::stdout()),
            format,
            left: self.count.unwrap_or(u64::MAX),
            traces: telemetry.traces(),
        };
        if let Some(membership) = membership {
            let result = membership.print_all(&client, &mut printer).await;
            let flushed = printer.flush();
            telemetry.finish().await;
            return result.and(flushed);
        }
        let printing = self.print_all(&client, &mut printer);
        let result = if telemetry.traces() {
            // Otherwise an interrupt just ends the process.
            tokio::select! {
                result = printing => result,
                () = group::asked_to_end() => Ok(()),
            }
        } else {
            printing.await
        };
        let flushed = printer.flush();
        telemetry.finish().await;
        result.and(flushed)
    }

    async fn print_all(&self, client: &Client, printer: &mut Printer) -> anyhow::Result<()> {
        let Some((mut consumer, mut ends)) = self.open(client).await? else { return Ok(()) };
        while printer.left > 0 {
            let Some(batch) = consumer.next_batch().await else { break };
            let batch = batch?;
            let (at, next) = (batch.topic_partition(), batch.next_offset());
            let end = ends.get(&at).copied().unwrap_or(Offset(u64::MAX));
            printer.print(&consumer.processor(), batch, end).await?;
            if self.follow {
                printer.flush()?;
            } else if next >= end {
                consumer.remove([&at]);
                ends.remove(&at);
                if ends.is_empty() {
                    break;
                }
            }
        }
        Ok(())
    }

    /// A consumer, and where to end in each of its partitions (nowhere, if it is to follow). `None` if there is nothing
    /// to read.
    async fn open(
        &self,
        client: &Client,
    ) -> anyhow::Result<Option<(Consumer, HashMap<TopicPartition, Offset>)>> {
        let partitions = partitions(client, &self.topic, &self.partition).await?;
        let config = |begins_at_start| ConsumerConfig {
            // Retention may move the start on between asking for it and reading.
            on_out_of_range: if begins_at_start { OffsetReset::Earliest } else { OffsetReset::Fail },
            ..ConsumerConfig::default()
        };
        let mut begins_at_start = self.from.0 == Position::Earliest;
        if self.follow && !matches!(self.from.0, Position::Offset(_)) {
            let start = partitions.into_iter().map(|at| (at, self.from.0));
            let consumer = client.consumer(start, config(begins_at_start)).await?;
            return Ok(Some((consumer, HashMap::new())));
        }
        let ends = resolve(client, &partitions, Position::Latest).await?;
        let mut starts = resolve(client, &partitions, self.from.0).await?;
        begin_no_later(&mut starts, &ends, &partitions)?;
        if matches!(self.from.0, Position::Offset(_)) {
            let firsts = resolve(client, &partitions, Position::Earliest).await?;
            begins_at_start = begin_no_earlier(&mut starts, &firsts, &partitions);
        }
        let mut from = Vec::new();
        let mut to = HashMap::new();
        for ((at, start), end) in partitions.into_iter().zip(starts).zip(ends) {
            if self.follow {
                from.push((at, Position::Offset(start)));
            } else if start != end {
                from.push((at.clone(), Position::Offset(start)));
                to.insert(at, end);
            }
        }
        if from.is_empty() {
            if self.from.0 == Position::Latest {
                note("nothing to print: this is the end already; --follow waits for more");
            }
            return Ok(None);
        }
        Ok(Some((client.consumer(from, config(begins_at_start)).await?, to)))
    }
}

/// Lets partitions begin at their end that do not reach as far as was asked for, and says which these are.
///
/// # Errors
/// If none does: the offset is a mistake.
fn begin_no_later(
    starts: &mut [Offset],
    ends: &[Offset],
    partitions: &[TopicPartition],
) -> anyhow::Result<()> {
    let mut shorter = Vec::new();
    for ((start, end), at) in starts.iter_mut().zip(ends).zip(partitions) {
        if *start > *end {
            shorter.push(format!("partition {} ends at {}", at.partition, end.0));
            *start = *end;
        }
    }
    let told = shorter.join(", ");
    if !partitions.is_empty() && shorter.len() == partitions.len() {
        bail!("there is no such offset yet as --from: {told}");
    }
    if !shorter.is_empty() {
        note(format_args!("begins at the end where --from is beyond it: {told}"));
    }
    Ok(())
}

/// Lets partitions begin at their log start that do not go back as far as was asked for, and says which these are. Returns
/// whether there are any.
fn begin_no_earlier(starts: &mut [Offset], firsts: &[Offset], partitions: &[TopicPartition]) -> bool {
    let mut cut = Vec::new();
    for ((start, first), at) in starts.iter_mut().zip(firsts).zip(partitions) {
        if *start < *first {
            cut.push(format!("partition {} begins at {}", at.partition, first.0));
            *start = *first;
        }
    }
    if !cut.is_empty() {
        note(format_args!("begins at the log start where --from is before it: {}", cut.join(", ")));
    }
    !cut.is_empty()
}

struct Printer {
    out: BufWriter<Stdout>,
    format: RecordFormat,
    /// Records that may still be printed.
    left: u64,
    traces: bool,
}

impl Printer {
    /// Prints what is before `end`.
    async fn print(
        &mut self,
        processor: &Processor,
        batch: ConsumedBatch,
        end: Offset,
    ) -> anyhow::Result<()> {
        for record in batch {
            if record.offset >= end || self.left == 0 {
                break;
            }
            self.print_record(processor, &record).await?;
        }
        Ok(())
    }

    async fn print_record(&mut self, processor: &Processor, record: &ConsumedRecord) -> anyhow::Result<()> {
        self.left -= 1;
        let (out, format) = (&mut self.out, &self.format);
        written(if self.traces {
            processor.process(record, async |record| format.write(record, out)).await
        } else {
            format.write(record, out)
        })
    }

    fn flush(&mut self) -> anyhow::Result<()> {
        written(self.out.flush())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};

    fn membership(args: &str) -> Result<Option<Membership>, String> {
        let args = format!("streambus consume orders {args}");
        let cli = Cli::try_parse_from(args.split_whitespace()).map_err(|error| error.to_string())?;
        let Command::Consume(consume) = cli.command else { panic!("it is consume") };
        consume.membership().map_err(|error| error.to_string())
    }

    #[test]
    fn a_member_begins_at_either_end_only() {
        let latest =
            membership("--group g --from latest").expect("it makes sense").expect("a group is given");
        assert_eq!((latest.offset_reset, latest.share), (OffsetReset::Latest, false));
        assert!(membership("--group g --from 7").expect_err("refused").contains("group reset"));
        assert_eq!(membership("--from 7"), Ok(None));
    }

    #[test]
    fn a_member_is_given_its_partitions() {
        assert!(membership("--group g --partition 1").is_err());
        assert!(membership("--share").is_err(), "sharing is among the members of a group");
    }
}
