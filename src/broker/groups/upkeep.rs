//! What happens to groups without anybody asking: time-outs, topics that come and go, groups that expire.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::registry::Coordinated as _;
use super::{Groups, lock};
use crate::broker::{Broker, Error};
use crate::clock::Timestamp;
use crate::coordination::membership::{FenceReason, TopicView};
use crate::coordination::{Command, Kind};
use crate::metadata::TopicId;

/// How often the append times of the records that groups read next are looked up, where they are not in memory.
const AGES_EVERY: Duration = Duration::from_secs(1);
/// Groups are not looked through more often than this, however many time-outs there are.
const PAUSE: Duration = Duration::from_millis(5);
/// After how long a group is looked at again although nothing is due.
const IDLE: Duration = Duration::from_secs(1);

impl Broker {
    /// Keeps groups until it is dropped. Only once, after [`Broker::open`].
    pub async fn keep_groups(self) {
        tokio::join!(
            self.keep_time(),
            self.keep_topics(),
            self.keep_ages(),
            self.keep_retention(),
            self.keep_burials()
        );
    }

    /// Session and rebalance time-outs, leases that run out, keepalives.
    async fn keep_time(&self) {
        while let Ok(groups) = self.groups() {
            let changed = groups.changed.notified();
            let now = Instant::now();
            groups.dissolve_foreign();
            let mut next = now + IDLE;
            for live in groups.live.all() {
                next = live.tick(now).map_or(next, |due| next.min(due));
            }
            for queue in groups.queues.all() {
                next = self.tick_queue(&queue, now).await.map_or(next, |due| next.min(due));
            }
            self.bury_empty().await;
            tokio::time::sleep(PAUSE).await;
            let _ = tokio::time::timeout_at(next.into(), changed).await;
        }
    }

    /// Forgets consumer and share groups whose last member is gone, and notes when that was.
    async fn bury_empty(&self) {
        let Ok(groups) = self.groups() else { return };
        let mut over: Vec<Arc<str>> = Vec::new();
        groups.live.forget_over(|name, live| {
            lock(&groups.epochs).insert(name.clone(), live.epoch());
            over.push(name);
        });
        groups.queues.forget_over(|name, _| over.push(name));
        for group in over {
            let coordinator = groups.coordinators.of(&group);
            let touch = Command::Touch { group: group.clone(), at: self.0.clock.now() };
            if let Err(failure) = coordinator.change(touch).await {
                // Without it the group's retention counts from its last commit.
                warn!(group = &*group, error = %failure, "the leaving of a group's last member was not noted");
            }
        }
    }

    /// Tells groups of topics that were created, deleted or given more partitions, and removes the offsets of those that
    /// are gone.
    async fn keep_topics(&self) {
        let Ok(open) = self.running() else { return };
        let mut reconciled = open.cluster.reconciled();
        loop {
            reconciled.borrow_and_update();
            let (Ok(groups), Ok(view)) = (self.groups(), self.topic_view()) else { return };
            for live in groups.live.all() {
                live.topics_changed(Instant::now(), &view);
            }
            for queue in groups.queues.all() {
                queue.topics_changed();
            }
            groups.changed.notify_one();
            if let Err(failure) = self.forget_topics().await {
                warn!(error = %failure, "offsets of a deleted topic could not be removed yet");
            }
            if reconciled.changed().await.is_err() {
                return;
            }
        }
    }

    async fn forget_topics(&self) -> Result<(), Error> {
        let groups = self.groups()?;
        let cluster = &self.running()?.cluster;
        let known = || cluster.state().topics().map(|topic| topic.id).collect();
        for coordinator in groups.coordinators.all().iter().filter(|shard| shard.leading().is_some()) {
            let kept = coordinator.read(|state| state.topics());
            for topic in gone(kept, known, cluster.catch_up()).await {
                coordinator.change(Command::ForgetTopic { topic }).await?;
            }
        }
        Ok(())
    }

    async fn keep_ages(&self) {
        let mut tick = tokio::time::interval(AGES_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            if self.refresh_ages().await.is_err() {
                return;
            }
        }
    }

    /// Deletes groups that nobody has used for so long as the configuration says, and once more the offsets of topics
    /// that are gone: a commit that was under way when its topic went may have come later.
    async fn keep_retention(&self) {
        let Ok(groups) = self.groups() else { return };
        let config = &groups.config;
        let mut tick = tokio::time::interval(config.retention_interval);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            if let Err(failure) = self.forget_topics().await {
                warn!(error = %failure, "offsets of a deleted topic could not be removed yet");
            }
            if config.retention.is_zero() {
                continue;
            }
            let keep_ms = i64::try_from(config.retention.as_millis()).unwrap_or(i64::MAX);
            let oldest = Timestamp(self.0.clock.now().0.saturating_sub(keep_ms));
            for group in groups.unused_since(oldest) {
                match self.delete_group(&group).await {
                    Ok(()) => {
                        info!(name: "group.expired", group = &*group, "group deleted: nobody has used it for groups.retention");
                    }
                    Err(failure) => {
                        warn!(group = &*group, error = %failure, "an expired group was not deleted")
                    }
                }
            }
        }
    }

    /// The topics that groups can read.
    pub(super) fn topic_view(&self) -> Result<TopicView, Error> {
        let routes = self.running()?.cluster.routing().all();
        // A route's partitions are those that are open here; the topic's own number is what there will be.
        Ok(TopicView::new(routes.values().map(|route| {
            let racks = vec![Vec::new(); route.topic.partitions.len()];
            (route.topic.name.clone(), route.topic.id, racks)
        })))
    }
}

/// Which of the topics whose offsets are kept are gone. What `known` gives may be old, and offsets may be of a topic that
/// is new, so none is gone before `caught_up` says that it is new enough.
async fn gone(
    mut kept: BTreeSet<TopicId>,
    known: impl Fn() -> BTreeSet<TopicId>,
    caught_up: impl Future<Output = bool>,
) -> BTreeSet<TopicId> {
    let are_gone = |kept: &mut BTreeSet<TopicId>| {
        let known = known();
        kept.retain(|topic| !known.contains(topic));
    };
    are_gone(&mut kept);
    if kept.is_empty() || !caught_up.await {
        return BTreeSet::new();
    }
    are_gone(&mut kept);
    kept
}

impl Groups {
    /// Ends the sessions of groups that another broker, or this one in another term, coordinates now.
    fn dissolve_foreign(&self) {
        let foreign = |name: &str, term: u32| !self.term(name).is_ok_and(|now| now == term);
        for live in self.live.all().iter().filter(|live| foreign(&live.name, live.term())) {
            live.dissolve(FenceReason::CoordinatorChanged);
        }
        for queue in self.queues.all().iter().filter(|queue| foreign(&queue.name, queue.term())) {
            queue.dissolve(FenceReason::CoordinatorChanged);
        }
    }

    /// Groups without members that were last used before `oldest`.
    fn unused_since(&self, oldest: Timestamp) -> Vec<Arc<str>> {
        let mut unused = Vec::new();
        for coordinator in self.coordinators.all().iter().filter(|shard| shard.leading().is_some()) {
            coordinator.read(|state| {
                let old = state.groups().filter(|group| group.last_active < oldest);
                unused.extend(old.map(|group| (group.kind, group.name.clone())));
            });
        }
        unused.retain(|(kind, name)| match kind {
            Kind::Consumer => self.live(name).is_none(),
            Kind::Share => self.queue(name).is_none(),
        });
        unused.into_iter().map(|(_, name)| name).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    fn topics(ids: &[u32]) -> BTreeSet<TopicId> {
        ids.iter().copied().map(TopicId).collect()
    }

    #[tokio::test]
    async fn a_topic_that_this_broker_does_not_know_yet_is_not_gone() {
        let newest = RefCell::new(topics(&[1]));
        let known = || newest.borrow().clone();
        let learns = async |answers: bool| {
            newest.borrow_mut().insert(TopicId(2));
            answers
        };
        assert_eq!(gone(topics(&[1, 2, 3]), known, learns(true)).await, topics(&[3]));
        assert_eq!(gone(topics(&[1, 2, 3]), known, learns(false)).await, topics(&[]), "it may be new, too");
        assert_eq!(
            gone(topics(&[1, 2]), known, std::future::pending()).await,
            topics(&[]),
            "nobody is asked"
        );
    }
}
