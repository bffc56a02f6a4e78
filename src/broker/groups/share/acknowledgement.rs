//! What a member says of the records that are leased to it.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::stream::FuturesOrdered;
use tokio::sync::oneshot;

use super::ShareMember;
use crate::broker::Error;
use crate::broker::groups::journal::{Journal, Place};
use crate::broker::groups::queue::Queue;
use crate::broker::groups::registry::Coordinated as _;
use crate::clock::Timestamp;
use crate::cluster::coordinator;
use crate::coordination::{Command, OffsetRange, Outcome, PartitionKey, Returned, ShareUpdate};
use crate::record::Offset;
use crate::task::Criticality;
use crate::telemetry::AckKind as Acked;

/// Longest delay of a release.
const DELAY_MAX: Duration = Duration::from_secs(24 * 3600);
/// Longest reason of a rejection, in bytes.
const REASON_BYTES_MAX: usize = 1 << 10;
/// Requests to acknowledge that may be on their way.
const ACKS_IN_FLIGHT: usize = 64;

/// What a member says of records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AckKind {
    /// Done.
    Accept,
    /// Deliver them again, after the delay.
    Release(Duration),
    /// To the dead-letter topic, with the reason.
    Reject(String),
    /// The lease begins anew.
    Extend,
}

/// Something said of a run of records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acknowledgement {
    /// Topic name.
    pub topic: String,
    /// Partition number.
    pub partition: u32,
    /// The first record.
    pub first: Offset,
    /// The last record.
    pub last: Offset,
    /// What is said.
    pub kind: AckKind,
}

pub(super) type Answers = FuturesOrdered<Pin<Box<dyn Future<Output = (u64, Vec<Option<Error>>)> + Send>>>;

impl ShareMember {
    /// Whether another request to acknowledge may be begun now.
    pub fn can_acknowledge(&self) -> bool {
        self.answers.len() < ACKS_IN_FLIGHT
    }

    /// Whether answers are on their way.
    pub fn is_acknowledging(&self) -> bool {
        !self.answers.is_empty()
    }

    /// Does what is said of records. [`ShareMember::next`] delivers the answers in the order of the requests.
    ///
    /// # Errors
    /// The coordinator cannot take it. What is wrong with one acknowledgement is said in the answer.
    pub async fn acknowledge(
        &mut self,
        correlation_id: u64,
        acknowledgements: Vec<Acknowledgement>,
    ) -> Result<(), Error> {
        let broker = self.broker.clone();
        let groups = broker.groups()?;
        // Room first, so that updates are handed over in the order in which the leases made them.
        let slot = groups.coordinators.of(&self.queue.name).reserve().await?;
        let mut errors = Vec::with_capacity(acknowledgements.len());
        let mut updates: BTreeMap<PartitionKey, Vec<ShareUpdate>> = BTreeMap::new();
        let mut accepted = Vec::new();
        for (place, wanted) in acknowledgements.into_iter().enumerate() {
            let done = self.acknowledge_one(&wanted);
            errors.push(done.as_ref().err().cloned());
            let Ok((key, said, accepts)) = done else { continue };
            if !said.is_empty() {
                updates.entry(key).or_default().extend(said);
            }
            if let Some(range) = accepts {
                accepted.push((place, key, range));
            }
        }
        groups.dead.notify_one();
        groups.changed.notify_one();
        if updates.is_empty() {
            self.answers.push_back(Box::pin(std::future::ready((correlation_id, errors))));
            return Ok(());
        }
        let updates = updates.into_iter().collect();
        let at = self.broker.0.clock.now();
        let command = Command::UpdateShares { group: self.queue.name.clone(), at, updates };
        let receiver = slot.submit_in(self.queue.term().into(), command);
        let (queue, journal) = (self.queue.clone(), groups.journal.clone());
        let (done, answer) = oneshot::channel();
        // On a task of its own: the leases must learn what became of it, also if the stream ends.
        groups.tasks.spawn("share acknowledgement", Criticality::BestEffort, async move {
            let _ = done.send(conclude(&queue, &journal, at, receiver, accepted, errors).await);
        });
        self.answers.push_back(Box::pin(async move { (correlation_id, answer.await.unwrap_or_default()) }));
        Ok(())
    }

    /// What one acknowledgement changes: updates to replicate, and the range that is accepted by them.
    fn acknowledge_one(
        &mut self,
        wanted: &Acknowledgement,
    ) -> Result<(PartitionKey, Vec<ShareUpdate>, Option<OffsetRange>), Error> {
        let Acknowledgement { topic, partition, first, last, kind } = wanted;
        let invalid = |field, problem: String| Error::InvalidArgument { field, problem };
        if last < first {
            return Err(invalid("last_offset", format!("{last} is below first_offset, {first}")));
        }
        let expired = || Error::LeaseExpired {
            topic: topic.clone(),
            partition: *partition,
            first: *first,
            last: *last,
        };
        let key = self.key_of(topic, *partition).ok_or_else(expired)?;
        let range = OffsetRange { first: *first, last: *last };
        let records = last.saturating_since(*first).saturating_add(1);
        let (session, now) = (self.session, Instant::now());
        let (acked, done) = match kind {
            AckKind::Accept => {
                let update = self.queue.with(key, |leases| leases.accept(session, range));
                let update = update.ok_or_else(expired)?.map_err(|_| expired())?;
                self.timed(key, range);
                (Acked::Accept, (key, vec![update], Some(range)))
            }
            AckKind::Release(delay) => {
                if *delay > DELAY_MAX {
                    return Err(invalid("delay", format!("{delay:?} is above 24 h")));
                }
                let returned = self.queue.with(key, |leases| leases.release(now, session, range, *delay));
                let returned = returned.ok_or_else(expired)?.map_err(|_| expired())?;
                (Acked::Release, (key, self.returned(topic, returned), None))
            }
            AckKind::Reject(reason) => {
                if reason.len() > REASON_BYTES_MAX {
                    let problem = format!("has {} bytes, at most {REASON_BYTES_MAX} are kept", reason.len());
                    return Err(invalid("reason", problem));
                }
                let detail: Arc<str> = reason.as_str().into();
                let returned = self.queue.with(key, |leases| leases.reject(session, range, &detail));
                let returned = returned.ok_or_else(expired)?.map_err(|_| expired())?;
                (Acked::Reject, (key, self.returned(topic, returned), None))
            }
            AckKind::Extend => {
                let extended = self.queue.with(key, |leases| leases.extend(now, session, range));
                extended.ok_or_else(expired)?.map_err(|_| expired())?;
                (Acked::Extend, (key, Vec::new(), None))
            }
        };
        self.metrics.acknowledgements(acked, records);
        Ok(done)
    }

    fn returned(&self, topic: &str, returned: Returned) -> Vec<ShareUpdate> {
        if returned.missed > 0 {
            self.metrics.missed(topic, returned.missed);
        }
        self.queue.ring();
        returned.updates
    }

    /// Records how long it took from the append of the records to here.
    fn timed(&mut self, key: PartitionKey, range: OffsetRange) {
        let Some(given) = self.given.get_mut(&key) else { return };
        let now = self.broker.0.clock.now();
        let within: Vec<_> = given
            .range(..=range.last)
            .filter(|(_, (last, _))| *last >= range.first)
            .map(|(f, v)| (*f, *v))
            .collect();
        for (first, (last, appended)) in within {
            self.metrics.acknowledged(Duration::from_millis(now.millis_since(appended)));
            if last <= range.last {
                given.remove(&first);
            }
        }
    }
}

/// Waits for what becomes of acknowledgements, and tells the leases.
async fn conclude(
    queue: &Queue,
    journal: &Journal,
    at: Timestamp,
    receiver: oneshot::Receiver<Result<Outcome, coordinator::Error>>,
    accepted: Vec<(usize, PartitionKey, OffsetRange)>,
    mut errors: Vec<Option<Error>>,
) -> Vec<Option<Error>> {
    let unknown = Err(coordinator::Error::Raft(crate::raft::Error::OutcomeUnknown));
    let outcome = receiver.await.unwrap_or(unknown);
    for (place, key, range) in accepted {
        match &outcome {
            Ok(_) => {
                queue.with(key, |leases| leases.committed(range));
                let place = Place { group: &queue.name, key, term: queue.term() };
                journal.acknowledged(&place, range.first..range.last.saturating_add(1), at);
                // There is room in the window again.
                queue.ring();
            }
            Err(error) => {
                // It may be committed yet: what is replicated by the time that somebody reads the partition again
                // decides.
                queue.reopen(key);
                errors[place] = Some(Error::from(error.clone()));
            }
        }
    }
    errors
}
