//! What brokers tell each other of the partitions that they lead, and whether they serve clients.
//!
//! A broker that has no replica of a partition learns from these reports who leads it and how far it reaches, and its
//! readers are woken by them. A report goes out at once when there was none for a while, otherwise a few milliseconds
//! later with what has changed by then.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::sync::{mpsc, watch};
use tonic::Status;

use super::link::Link;
use super::{Hub, link};
use crate::cluster::partition_ref::PartitionRef;
use crate::cluster::routing::Routing;
use crate::partition::signal::Signal;
use crate::proto::internal::peer_service_client::PeerServiceClient;
use crate::proto::internal::{PartitionReport, PartitionReports, ReportRequest};
use crate::raft::NodeId;
use crate::storage::GroupId;

/// Changes within this time share a message.
const GATHER: Duration = Duration::from_millis(2);
/// How often everything is told again: what came before the listener knew the partition was lost on it, and which
/// replicas lag changes without ringing.
const REPEAT_EVERY: Duration = Duration::from_secs(1);
/// After how long a broken stream is opened anew.
const REOPEN: Duration = Duration::from_millis(100);

/// Tells one broker of the partitions that this one leads, and whether this one is `ready`, until it goes away.
pub(super) async fn tell(
    routing: Arc<Routing>,
    mut ready: watch::Receiver<bool>,
    outgoing: mpsc::Sender<Result<PartitionReports, Status>>,
) {
    let mut teller = Teller::new();
    let mut repeat = tokio::time::interval(REPEAT_EVERY);
    repeat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut partitions = routing.changes();
    teller.listen(&routing);
    let mut told_ready = None;
    loop {
        let reports = tokio::select! {
            () = outgoing.closed() => return,
            _ = repeat.tick() => teller.all(),
            changed = partitions.changed() => {
                if changed.is_err() {
                    return;
                }
                let new = teller.listen(&routing);
                teller.changed_of(new.into_iter())
            }
            rung = teller.signal.wait() => teller.changed_of(rung.into_iter()),
            changed = ready.changed() => {
                if changed.is_err() {
                    return;
                }
                Vec::new()
            }
        };
        let ready = *ready.borrow_and_update();
        if !reports.is_empty() || told_ready != Some(ready) {
            if outgoing.send(Ok(PartitionReports { reports, ready })).await.is_err() {
                return;
            }
            told_ready = Some(ready);
            tokio::time::sleep(GATHER).await;
        }
    }
}

struct Teller {
    signal: Arc<Signal>,
    /// By slot of the signal. Those of partitions that are gone are empty until others get them.
    slots: Vec<Option<PartitionRef>>,
    by_group: HashMap<GroupId, usize>,
    sent: HashMap<GroupId, PartitionReport>,
}

impl Teller {
    fn new() -> Self {
        Teller { signal: Signal::new(), slots: Vec::new(), by_group: HashMap::new(), sent: HashMap::new() }
    }

    /// Listens to partitions that are new, and lets go those that are gone. Gives the slots of the new ones.
    fn listen(&mut self, routing: &Routing) -> Vec<usize> {
        let partitions = routing.partitions();
        let (slots, mut new) = (&mut self.slots, Vec::new());
        self.by_group.retain(|group, slot| {
            let stays = |known: &mut PartitionRef| partitions.get(group).is_some_and(|now| known.is(now));
            let gone = slots[*slot].take_if(|known| !stays(known));
            if let Some(gone) = &gone {
                gone.unlisten(&self.signal, *slot);
            }
            gone.is_none()
        });
        let free = slots.iter().enumerate().filter(|(_, partition)| partition.is_none());
        let mut free: Vec<usize> = free.map(|(slot, _)| slot).collect();
        for (group, partition) in partitions.iter() {
            if self.by_group.contains_key(group) {
                continue;
            }
            let slot = free.pop().unwrap_or_else(|| {
                slots.push(None);
                slots.len() - 1
            });
            partition.listen(&self.signal, slot);
            slots[slot] = Some(partition.clone());
            self.by_group.insert(*group, slot);
            new.push(slot);
        }
        new
    }

    /// Reports of all partitions that this broker leads, and of those that it ceased to.
    fn all(&mut self) -> Vec<PartitionReport> {
        let before = std::mem::take(&mut self.sent);
        let mut reports = self.changed_of(0..self.slots.len());
        let ceased = before.into_iter().filter(|(group, _)| !self.sent.contains_key(group));
        reports.extend(ceased.map(|(_, last)| PartitionReport { resigned: true, ..last }));
        reports
    }

    /// Reports of those slots whose partitions this broker leads, as far as they differ from the last ones.
    fn changed_of(&mut self, slots: impl Iterator<Item = usize>) -> Vec<PartitionReport> {
        let mut reports = Vec::new();
        for slot in slots {
            let Some(Some(partition)) = self.slots.get(slot) else { continue };
            let group = partition.group();
            match partition.report() {
                Some(report) if self.sent.get(&group) != Some(&report) => {
                    self.sent.insert(group, report.clone());
                    reports.push(report);
                }
                Some(_) => {}
                None => {
                    if let Some(last) = self.sent.remove(&group) {
                        reports.push(PartitionReport { resigned: true, ..last });
                    }
                }
            }
        }
        reports
    }
}

/// Listens to the reports of `node` as long as its link exists.
pub(super) fn follow(hub: &Hub, node: NodeId, link: &Arc<Link>) {
    let (hub_of_task, link) = (hub.clone(), Arc::downgrade(link));
    hub.spawn("reports of a peer", async move { listen(hub_of_task, node, link).await });
}

async fn listen(hub: Hub, node: NodeId, link: Weak<Link>) {
    let mut changes = hub.changes();
    while let Some(up) = link.upgrade() {
        let channel = up.is_up().then(|| up.channel());
        drop(up);
        if let (Some(channel), Some(serving)) = (channel, hub.serving()) {
            let mut client =
                PeerServiceClient::new(channel).max_decoding_message_size(link::MESSAGE_BYTES_MAX);
            if let Ok(response) = client.report(hub.introduce(ReportRequest {})).await {
                let mut reports = response.into_inner();
                while let Some(Ok(message)) = reports.next().await {
                    let Some(up) = link.upgrade() else { break };
                    up.set_ready(message.ready);
                    for report in message.reports {
                        if let Some(partition) = serving.routing.partition(GroupId(report.group)) {
                            partition.learn(node, &report);
                        }
                    }
                }
            }
            if let Some(link) = link.upgrade() {
                link.set_ready(false);
            }
            for partition in serving.routing.partitions().values() {
                partition.lost(node);
            }
        }
        let _ = tokio::time::timeout(REOPEN, changes.changed()).await;
        tokio::time::sleep(GATHER).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn partitions_that_are_gone_are_let_go_and_leave_their_slots_to_others() {
        let routing = Routing::default();
        let set = |numbers: &[u32]| {
            let new = numbers.iter().map(|number| PartitionRef::fake(*number));
            routing.replace(HashMap::new(), new.map(|one| (one.group(), one)).collect());
        };
        let mut teller = Teller::new();
        set(&[0, 1]);
        assert_eq!(teller.listen(&routing).len(), 2);
        assert_eq!(teller.listen(&routing).len(), 0, "they are known");
        set(&[]);
        assert_eq!(teller.listen(&routing).len(), 0);
        assert!(teller.by_group.is_empty() && teller.slots.iter().all(Option::is_none));
        set(&[2, 3, 4]);
        assert_eq!(teller.listen(&routing).len(), 3);
        assert_eq!(teller.slots.len(), 3);
        set(&[4]);
        assert_eq!(teller.listen(&routing).len(), 1, "it was deleted and made again");
    }

    #[tokio::test(start_paused = true)]
    async fn a_broker_tells_whether_it_serves_although_it_leads_nothing() {
        let ready = watch::Sender::new(false);
        let (outgoing, mut told) = mpsc::channel(1);
        tokio::spawn(tell(Arc::default(), ready.subscribe(), outgoing));
        for now in [false, true, false] {
            ready.send_replace(now);
            let message = tokio::time::timeout(10 * REPEAT_EVERY, told.recv()).await.expect("it is told");
            let message = message.expect("it goes on").expect("a message");
            assert_eq!(message, PartitionReports { reports: Vec::new(), ready: now });
        }
        let more = tokio::time::timeout(10 * REPEAT_EVERY, told.recv()).await;
        assert!(more.is_err(), "it is told once");
    }
}
