//! What happens to groups without anybody asking: time-outs, topics that come and go, groups that expire.

use std::collections::{BTreeMap, BTreeSet};
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
use crate::task::Criticality;

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
                next = self.tick_queue(&queue, now).map_or(next, |due| next.min(due));
            }
            self.bury_empty();
            tokio::time::sleep(PAUSE).await;
            let _ = tokio::time::timeout_at(next.into(), changed).await;
        }
    }

    /// Forgets consumer and share groups whose last member is gone, and notes when that was.
    fn bury_empty(&self) {
        let Ok(groups) = self.groups() else { return };
        let mut over: Vec<Arc<str>> = Vec::new();
        groups.live.forget_over(|name, live| {
            lock(&groups.epochs).insert(name.clone(), live.epoch());
            over.push(name);
        });
        groups.queues.forget_over(|name, _| over.push(name));
        if over.is_empty() {
            return;
        }
        // Nothing may wait for that: members of all groups are looked after here.
        let broker = self.clone();
        groups.tasks.spawn_until_stopped("groups without members", Criticality::BestEffort, async move {
            broker.touch(&over).await;
        });
    }

    /// Notes that these groups are used until now.
    async fn touch(&self, used: &[Arc<str>]) {
        let Ok(groups) = self.groups() else { return };
        for group in used {
            let touch = Command::Touch { group: group.clone(), at: self.0.clock.now() };
            if let Err(failure) = groups.coordinators.of(group).change(touch).await {
                // Without it the group's retention counts from when that was noted last.
                warn!(group = &**group, error = %failure, "it was not noted until when a group was used");
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
        let mut led = Led::default();
        let ago = |time: Duration| {
            let ms = i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
            Timestamp(self.0.clock.now().0.saturating_sub(ms))
        };
        loop {
            tick.tick().await;
            if let Err(failure) = self.forget_topics().await {
                warn!(error = %failure, "offsets of a deleted topic could not be removed yet");
            }
            groups.forget_foreign();
            if config.retention.is_zero() {
                continue;
            }
            self.touch(&groups.used_but_noted_before(ago(config.retention / 4))).await;
            // Members are in memory only: when this broker begins to coordinate a group, they have yet to come back.
            let settled = led.for_at_least(config.retention.min(config.session_timeout_max), groups);
            for group in groups.unused_since(ago(config.retention), &settled) {
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

/// Since when this broker leads which shard, and in which term.
#[derive(Default)]
struct Led(BTreeMap<u32, (u64, Instant)>);

impl Led {
    /// The shards that it has led for so long without interruption.
    fn for_at_least(&mut self, least: Duration, groups: &Groups) -> BTreeSet<u32> {
        let now = Instant::now();
        let shards = groups.coordinators.all().iter();
        let led = shards.filter_map(|shard| Some((shard.shard(), shard.leading()?)));
        self.look(least, now, led.collect())
    }

    fn look(&mut self, least: Duration, now: Instant, led: BTreeMap<u32, u64>) -> BTreeSet<u32> {
        self.0.retain(|shard, (term, _)| led.get(shard) == Some(term));
        for (shard, term) in led {
            self.0.entry(shard).or_insert((term, now));
        }
        let settled = self.0.iter().filter(|(_, (_, since))| now.duration_since(*since) >= least);
        settled.map(|(shard, _)| *shard).collect()
    }
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

    /// Groups with members that were noted as used before `oldest` for the last time.
    fn used_but_noted_before(&self, oldest: Timestamp) -> Vec<Arc<str>> {
        let consumers = self.live.all().into_iter().map(|live| live.name.clone());
        let names = consumers.chain(self.queues.all().into_iter().map(|queue| queue.name.clone()));
        let is_old = |name: &Arc<str>| self.with_group(name, |group| group.last_active < oldest);
        names.filter(|name| is_old(name).unwrap_or(false)).collect()
    }

    /// Forgets what was noted and counted of groups that this broker coordinates no more, or that are gone.
    fn forget_foreign(&self) {
        let epochs: Vec<Arc<str>> = lock(&self.epochs).keys().cloned().collect();
        for name in self.metrics.groups_named().into_iter().chain(epochs) {
            let here = self.coordinators.of(&name).leading().is_some();
            if !here || self.with_group(&name, |_| ()).is_err() {
                self.forget(&name);
            }
        }
    }

    /// Groups without members that were last used before `oldest`, in the shards that are named.
    fn unused_since(&self, oldest: Timestamp, shards: &BTreeSet<u32>) -> Vec<Arc<str>> {
        let mut unused = Vec::new();
        for coordinator in self.coordinators.all().iter().filter(|one| shards.contains(&one.shard())) {
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

    #[test]
    fn a_shard_counts_from_when_it_is_led_in_a_term() {
        let (mut led, start, least) = (Led::default(), Instant::now(), Duration::from_secs(10));
        let mut look = |after: u64, shards: &[(u32, u64)]| {
            let now = start + Duration::from_secs(after);
            led.look(least, now, shards.iter().copied().collect()).into_iter().collect::<Vec<_>>()
        };
        assert_eq!(look(0, &[(1, 5)]), [0; 0]);
        assert_eq!(look(9, &[(1, 5), (2, 7)]), [0; 0]);
        assert_eq!(look(10, &[(1, 5), (2, 7)]), [1]);
        assert_eq!(look(19, &[(1, 6), (2, 7)]), [2], "another one led in between");
        assert_eq!(look(20, &[(1, 6)]), [0; 0]);
        assert_eq!(look(29, &[(1, 6), (2, 7)]), [1]);
    }

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
