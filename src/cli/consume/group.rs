//! Consuming as a member of a group.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;

use futures_util::{FutureExt as _, StreamExt as _};
use tokio::sync::Notify;

use crate::client::{
    AssignedPartition, Client, Committer, GroupConfig, GroupConsumer, Offset, OffsetReset, Position,
    RebalanceListener, ShareConfig, ShareConsumer, SharedRecord, TopicPartition,
};

use super::Printer;
use crate::cli::position::{partitions, resolve};

/// Records that a member of a share group is given ahead, if it says nothing.
const PREFETCHED: u32 = 500;
/// Records of a share group that are printed before they are accepted, as long as more are there.
const ACCEPTED_TOGETHER: usize = 256;

/// As a member of which group to read, and how.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Membership {
    pub(super) group: String,
    pub(super) topic: String,
    pub(super) offset_reset: OffsetReset,
    pub(super) share: bool,
    pub(super) follow: bool,
}

/// Says when partitions were assigned.
struct Assignments(Arc<Notify>);

impl RebalanceListener for Assignments {
    async fn on_assigned(&self, _: &[AssignedPartition], _: &Committer) {
        self.0.notify_one();
    }
}

impl Membership {
    /// Prints until there is enough, or Ctrl-C or SIGTERM; then leaves the group. A second one does not wait for that.
    pub(super) async fn print_all(&self, client: &Client, printer: &mut Printer) -> anyhow::Result<()> {
        if self.share {
            let config = ShareConfig {
                offset_reset: self.offset_reset,
                // What is not asked for is not to count as delivered.
                in_flight_records_max: u32::try_from(printer.left)
                    .map_or(0, |count| if count < PREFETCHED { count } else { 0 }),
                ..ShareConfig::new(&self.group, [&self.topic])
            };
            let mut consumer = client.share_consumer(config).await?;
            let printed = until_interrupted(print_shared(&mut consumer, printer)).await;
            return end(printed, consumer.close()).await;
        }
        // Where to end is known before the member is given anything.
        let ends = if self.follow { HashMap::new() } else { self.ends(client).await? };
        let config =
            GroupConfig { offset_reset: self.offset_reset, ..GroupConfig::new(&self.group, [&self.topic]) };
        let assigned = Arc::new(Notify::new());
        let listener = Assignments(Arc::clone(&assigned));
        let mut consumer = client.group_consumer_with(config, listener).await?;
        let printed = until_interrupted(self.print(&mut consumer, printer, &ends, &assigned)).await;
        // What was not printed is not to be committed, and leaving would.
        printed?;
        end(Ok(()), consumer.close()).await
    }

    async fn ends(&self, client: &Client) -> anyhow::Result<HashMap<TopicPartition, Offset>> {
        let partitions = partitions(client, &self.topic, &[]).await?;
        let ends = resolve(client, &partitions, Position::Latest).await?;
        Ok(partitions.into_iter().zip(ends).collect())
    }

    async fn print(
        &self,
        consumer: &mut GroupConsumer,
        printer: &mut Printer,
        ends: &HashMap<TopicPartition, Offset>,
        assigned: &Notify,
    ) -> anyhow::Result<()> {
        let processor = consumer.processor();
        while printer.left > 0 {
            if !self.follow && is_at_end(consumer, ends) {
                break;
            }
            // One by one if not all of them may be wanted: what is asked for counts as printed. In both cases it is
            // printed before more is asked for.
            if printer.left < u64::MAX {
                tokio::select! {
                    record = consumer.next() => {
                        let Some(record) = record else { break };
                        printer.print_record(&processor, &record?).await?;
                    }
                    () = assigned.notified() => {}
                }
            } else {
                tokio::select! {
                    batch = consumer.next_batch() => {
                        let Some(batch) = batch else { break };
                        printer.print(&processor, batch?, Offset(u64::MAX)).await?;
                    }
                    () = assigned.notified() => {}
                }
            }
            printer.flush()?;
        }
        Ok(())
    }
}

/// Whether the member has partitions, and has read each to where it ended.
fn is_at_end(consumer: &GroupConsumer, ends: &HashMap<TopicPartition, Offset>) -> bool {
    let assignment = consumer.assignment();
    let is_read = |at: &TopicPartition| {
        ends.get(at).is_some_and(|end| consumer.position(at).is_some_and(|position| position >= *end))
    };
    !assignment.is_empty() && assignment.iter().all(is_read)
}

async fn print_shared(consumer: &mut ShareConsumer, printer: &mut Printer) -> anyhow::Result<()> {
    let processor = consumer.processor();
    let mut printed: Vec<SharedRecord> = Vec::new();
    while printer.left > 0 {
        let next = match consumer.next().now_or_never() {
            Some(next) if printed.len() < ACCEPTED_TOGETHER => next,
            ready => {
                // Accepted is what was printed and not what is in the buffer.
                printer.flush()?;
                accept(&mut printed);
                match ready {
                    Some(next) => next,
                    None => consumer.next().await,
                }
            }
        };
        let Some(record) = next else { break };
        let record = record?;
        printer.print_record(&processor, &record).await?;
        printed.push(record);
    }
    printer.flush()?;
    accept(&mut printed);
    Ok(())
}

fn accept(printed: &mut Vec<SharedRecord>) {
    for record in printed.drain(..) {
        // Leaving waits for the results; a lease that was lost means that somebody prints the record again.
        drop(record.accept());
    }
}

/// Waits for Ctrl-C, or for SIGTERM, with which whoever supervises a process ends it.
pub(super) async fn asked_to_end() {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut terminate) = signal(SignalKind::terminate()) else {
        return drop(tokio::signal::ctrl_c().await);
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
}

/// Does `work` until it is done or interrupted.
async fn until_interrupted(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    tokio::select! {
        result = work => result,
        () = asked_to_end() => Ok(()),
    }
}

/// Leaves the group, unless somebody is in a hurry.
async fn end(
    printed: anyhow::Result<()>,
    close: impl Future<Output = Result<(), crate::client::Error>>,
) -> anyhow::Result<()> {
    let close = pin!(close);
    tokio::select! {
        closed = close => printed.and(closed.map_err(Into::into)),
        () = asked_to_end() => printed,
    }
}
