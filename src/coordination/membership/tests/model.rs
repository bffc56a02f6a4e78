//! Random histories of a group, held against what its sessions were told.

use proptest::prelude::*;

use super::*;

const TOPICS: u32 = 3;

#[derive(Clone, Debug)]
enum Step {
    Join {
        member: usize,
        instance: Option<usize>,
        wants: usize,
        answers: bool,
    },
    Leave(prop::sample::Index),
    Disconnect(prop::sample::Index),
    /// A stale stream says something.
    Ghost(prop::sample::Index),
    Release(prop::sample::Index, usize),
    Heard(prop::sample::Index),
    Topics(Vec<usize>),
    Wait(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let any_session = any::<prop::sample::Index>;
    let instance = prop_oneof![2 => Just(None), 1 => (0_usize..3).prop_map(Some)];
    let join = (0_usize..6, instance, 0_usize..4, prop::bool::weighted(0.8));
    let step = prop_oneof![
        4 => join.prop_map(|(member, instance, wants, answers)| Step::Join { member, instance, wants, answers }),
        1 => any_session().prop_map(Step::Leave),
        2 => any_session().prop_map(Step::Disconnect),
        1 => any_session().prop_map(Step::Ghost),
        6 => (any_session(), 1_usize..6).prop_map(|(session, count)| Step::Release(session, count)),
        2 => any_session().prop_map(Step::Heard),
        1 => prop::collection::vec(0_usize..7, TOPICS as usize).prop_map(Step::Topics),
        3 => (0_u64..12).prop_map(Step::Wait),
    ];
    prop::collection::vec(step, 1..60)
}

/// What one stream was told.
#[derive(Debug)]
struct Stream {
    member: Arc<str>,
    instance: Option<Arc<str>>,
    /// Whether it does what it is asked for, in the end.
    answers: bool,
    epoch: u64,
    /// What it has, and the epoch with which it got it.
    has: BTreeMap<PartitionKey, u64>,
    /// What of that it is to give up.
    revoked: BTreeSet<PartitionKey>,
    asked: bool,
}

struct World {
    membership: Membership,
    now: Instant,
    counts: Vec<usize>,
    /// How often each topic was deleted and created again.
    lives: Vec<u32>,
    sessions: u64,
    /// Streams that are members, those of static members that are away included.
    streams: BTreeMap<SessionId, Stream>,
    away: BTreeSet<SessionId>,
    /// Streams that were, with the last epoch that they knew.
    ghosts: Vec<(SessionId, Arc<str>, u64)>,
}

fn wishes(wants: usize) -> TopicFilter {
    match wants {
        0 => filter(&["topic-0"], None),
        1 => filter(&["topic-1", "topic-2"], None),
        _ => filter(&[], Some("topic-.*")),
    }
}

impl World {
    fn new() -> Self {
        World {
            membership: Membership::new(3),
            now: Instant::now(),
            counts: vec![4, 0, 2],
            lives: vec![0; TOPICS as usize],
            sessions: 0,
            streams: BTreeMap::new(),
            away: BTreeSet::new(),
            ghosts: Vec::new(),
        }
    }

    fn topics(&self) -> TopicView {
        let topic = |(at, count): (usize, &usize)| {
            let id = TopicId(self.lives[at] * TOPICS + u32::try_from(at).unwrap());
            (Arc::from(format!("topic-{at}")), id, vec![Vec::new(); *count])
        };
        TopicView::new(self.counts.iter().enumerate().filter(|(_, count)| **count > 0).map(topic))
    }

    fn open(&self, index: &prop::sample::Index) -> Option<(SessionId, Arc<str>)> {
        let open: Vec<_> = self.streams.iter().filter(|(session, _)| !self.away.contains(session)).collect();
        let (session, stream) = (!open.is_empty()).then(|| index.get(&open))?;
        Some((**session, stream.member.clone()))
    }

    fn step(&mut self, step: Step) {
        let now = self.now;
        match step {
            Step::Join { member: id, instance, wants, answers } => self.join(id, instance, wants, answers),
            Step::Leave(index) => {
                let Some((session, member)) = self.open(&index) else { return };
                let effects = self.membership.leave(now, &member, session);
                self.forget(session);
                self.obey(effects);
            }
            Step::Disconnect(index) => {
                let Some((session, member)) = self.open(&index) else { return };
                let effects = self.membership.disconnected(now, &member, session);
                let stream = self.streams.get_mut(&session).unwrap();
                if stream.instance.is_some() {
                    for partition in std::mem::take(&mut stream.revoked) {
                        stream.has.remove(&partition);
                    }
                    self.away.insert(session);
                } else {
                    self.forget(session);
                }
                self.obey(effects);
            }
            Step::Ghost(index) => {
                if self.ghosts.is_empty() {
                    return;
                }
                let (session, member, _) = index.get(&self.ghosts).clone();
                let before = self.membership.describe();
                let everything: Vec<_> =
                    self.streams.values().flat_map(|stream| stream.has.keys().copied()).collect();
                assert_eq!(self.membership.release(now, &member, session, &everything), []);
                assert_eq!(self.membership.disconnected(now, &member, session), []);
                assert_eq!(self.membership.leave(now, &member, session), []);
                assert_eq!(self.membership.describe(), before);
            }
            Step::Release(index, count) => {
                let Some((session, _)) = self.open(&index) else { return };
                let partitions = self.streams[&session].revoked.iter().copied().take(count).collect();
                self.release(session, partitions);
            }
            Step::Heard(index) => {
                let Some((session, member)) = self.open(&index) else { return };
                self.membership.heard(now, &member, session);
                self.streams.get_mut(&session).unwrap().asked = false;
            }
            Step::Topics(counts) => {
                for (at, count) in counts.into_iter().enumerate() {
                    // Fewer partitions: another topic of the same name.
                    self.lives[at] += u32::from(count < self.counts[at]);
                    self.counts[at] = count;
                }
                let effects = self.membership.topics_changed(now, &self.topics());
                self.obey(effects);
            }
            Step::Wait(seconds) => {
                self.now += Duration::from_secs(seconds);
                self.tick();
            }
        }
    }

    fn join(&mut self, id: usize, instance: Option<usize>, wants: usize, answers: bool) {
        self.sessions += 1;
        let session = SessionId(self.sessions);
        let spec = MemberSpec {
            instance_id: instance.map(|instance| Arc::from(format!("instance-{instance}"))),
            topics: wishes(wants),
            ..member(&format!("member-{id}"))
        };
        let same = |stream: &Stream| {
            stream.member == spec.member_id
                || (spec.instance_id.is_some() && stream.instance == spec.instance_id)
        };
        let replaced: Vec<_> =
            self.streams.iter().filter(|(_, stream)| same(stream)).map(|(session, _)| *session).collect();
        let open: Vec<_> = replaced.iter().filter(|session| !self.away.contains(session)).copied().collect();
        let stream = Stream {
            member: spec.member_id.clone(),
            instance: spec.instance_id.clone(),
            answers,
            epoch: 0,
            has: BTreeMap::new(),
            revoked: BTreeSet::new(),
            asked: false,
        };
        let effects = self.membership.join(self.now, spec, session, &self.topics());
        let fenced: BTreeSet<_> = effects
            .iter()
            .filter_map(|effect| match effect {
                Effect::Fence { session, reason: FenceReason::Replaced } => Some(*session),
                _ => None,
            })
            .collect();
        assert_eq!(fenced, open.into_iter().collect());
        for session in replaced {
            self.forget(session);
        }
        self.streams.insert(session, stream);
        self.obey(effects);
    }

    fn release(&mut self, session: SessionId, partitions: Vec<PartitionKey>) {
        let stream = self.streams.get_mut(&session).unwrap();
        for partition in &partitions {
            stream.revoked.remove(partition);
            stream.has.remove(partition);
        }
        stream.asked = false;
        let member = stream.member.clone();
        let effects = self.membership.release(self.now, &member, session, &partitions);
        self.obey(effects);
    }

    fn tick(&mut self) {
        let effects = self.membership.tick(self.now);
        // A static member that was away is removed without a word.
        let described = self.membership.describe().members;
        let gone = |session: &SessionId| {
            !described.iter().any(|member| member.member_id == self.streams[session].member)
        };
        let gone: Vec<_> = self.away.iter().copied().filter(gone).collect();
        gone.into_iter().for_each(|session| self.forget(session));
        self.obey(effects);
        let due = self.membership.deadline();
        assert!(due.is_none_or(|due| due > self.now), "something that is due was not done");
        assert_eq!(due.is_none(), self.membership.is_empty());
    }

    fn forget(&mut self, session: SessionId) {
        self.away.remove(&session);
        if let Some(stream) = self.streams.remove(&session) {
            self.ghosts.push((session, stream.member, stream.epoch));
        }
    }

    fn obey(&mut self, effects: Vec<Effect>) {
        for effect in &effects {
            if let Effect::Fence { session, reason } = effect {
                assert!(
                    *reason == FenceReason::Replaced || self.streams.contains_key(session),
                    "fenced twice"
                );
                self.forget(*session);
            }
        }
        for effect in effects {
            match effect {
                Effect::Joined { session, member, epoch } => {
                    let stream = self.streams.get_mut(&session).expect("it wanted to join");
                    assert_eq!(stream.member, member);
                    stream.epoch = epoch;
                }
                Effect::Assign { session, epoch, partitions } => {
                    for partition in &partitions {
                        // One that is away loses what others should have, and is not told.
                        let mut here =
                            self.streams.iter().filter(|(session, _)| !self.away.contains(session));
                        let owner = here.find(|(_, stream)| stream.has.contains_key(partition));
                        assert!(
                            owner.is_none(),
                            "{partition:?} is given to {session:?}, but is owned by {owner:?}"
                        );
                    }
                    let stream = self.streams.get_mut(&session).expect("only members are told");
                    assert!(epoch >= stream.epoch && !self.away.contains(&session));
                    stream.epoch = epoch;
                    stream.has.extend(partitions.into_iter().map(|partition| (partition, epoch)));
                }
                Effect::Revoke { session, epoch, partitions, deadline } => {
                    let stream = self.streams.get_mut(&session).expect("only members are told");
                    assert!(epoch > stream.epoch && !self.away.contains(&session));
                    assert_eq!(deadline, REBALANCE_TIMEOUT);
                    stream.epoch = epoch;
                    for partition in partitions {
                        assert!(stream.has.contains_key(&partition), "{partition:?} is not its own");
                        assert!(stream.revoked.insert(partition), "{partition:?} is revoked twice");
                    }
                }
                Effect::Keepalive { session } => {
                    let stream = self.streams.get_mut(&session).expect("only members are asked");
                    assert!(!std::mem::replace(&mut stream.asked, true), "asked twice");
                }
                Effect::Empty => assert!(self.streams.is_empty()),
                Effect::Settled { .. } => {
                    assert!(self.streams.values().all(|stream| stream.revoked.is_empty()));
                    self.assert_complete_and_even();
                }
                Effect::Fence { .. } | Effect::Rebalanced { .. } => {}
            }
        }
    }

    /// What holds at every moment.
    fn check(&mut self) {
        let described = self.membership.describe();
        assert_eq!(described.epoch, self.membership.epoch());
        assert_eq!(described.members.len(), self.streams.len());
        // A static member that is away gets and loses partitions without being told.
        for session in self.away.clone() {
            let stream = self.streams.get_mut(&session).unwrap();
            let member = described.members.iter().find(|member| member.member_id == stream.member).unwrap();
            assert!(!member.connected && member.revoking.is_empty());
            stream.epoch = member.epoch;
            stream.has.retain(|partition, _| member.assigned.contains(partition));
            for partition in &member.assigned {
                stream.has.entry(*partition).or_insert(member.epoch);
            }
        }
        let mut owned = BTreeSet::new();
        for partition in self.streams.values().flat_map(|stream| stream.has.keys()) {
            assert!(owned.insert(*partition), "{partition:?} has two owners");
        }
        for (session, stream) in &self.streams {
            for partition in &owned {
                let commit =
                    |epoch| self.membership.may_commit(&stream.member, Some(*session), epoch, *partition);
                match stream.has.get(partition) {
                    // Never interrupted: what was right when it was given is right for as long as it has it.
                    Some(since) => {
                        assert_eq!((commit(*since), commit(stream.epoch)), (Ok(()), Ok(())));
                        let stale = Fenced::StaleEpoch { epoch: since - 1, since: *since };
                        assert_eq!(commit(since - 1), Err(stale));
                    }
                    None => assert!(matches!(commit(stream.epoch), Err(Fenced::NotOwner { owner: Some(_) }))),
                }
                let newer = Fenced::UnknownEpoch { epoch: stream.epoch + 1, newest: stream.epoch };
                assert_eq!(commit(stream.epoch + 1), Err(newer));
            }
        }
        for (session, member, epoch) in &self.ghosts {
            for partition in &owned {
                let commit = |session| self.membership.may_commit(member, session, *epoch, *partition);
                let known = self.membership.contains(member);
                let reason = commit(Some(*session)).unwrap_err();
                assert!(if known {
                    reason == Fenced::Replaced
                } else {
                    matches!(reason, Fenced::UnknownMember { .. })
                });
                commit(None).expect_err("what a stream knew is of no use after its end");
            }
        }
    }

    fn assert_complete_and_even(&self) {
        let described = self.membership.describe().members;
        let topics = self.topics();
        let reads = |member: &MemberDescription| {
            self.membership.members[&self.membership.ids[&member.member_id]].reads.clone()
        };
        for (topic, partitions) in topics.iter() {
            for partition in 0..u32::try_from(partitions.len()).unwrap() {
                let partition = PartitionKey { topic, partition };
                let readers: Vec<_> =
                    described.iter().filter(|member| reads(member).contains(&topic)).collect();
                let owner = described.iter().find(|member| member.assigned.contains(&partition));
                assert_eq!(owner.is_some(), !readers.is_empty(), "{partition:?} of {described:?}");
                let Some(owner) = owner else { continue };
                assert!(reads(owner).contains(&topic));
                let most = readers.iter().map(|reader| reader.assigned.len()).min().unwrap() + 1;
                assert!(owner.assigned.len() <= most, "{partition:?} should move: {described:?}");
            }
        }
    }

    /// Lets everybody who answers answer, and time pass, until nothing is left to do.
    fn come_to_rest(&mut self) {
        for _ in 0..1_000 {
            let answering: Vec<_> = self
                .streams
                .iter()
                .filter(|(session, stream)| stream.answers && !self.away.contains(session))
                .map(|(session, stream)| (*session, stream.revoked.iter().copied().collect::<Vec<_>>()))
                .collect();
            for (session, revoked) in answering {
                if !revoked.is_empty() {
                    self.release(session, revoked);
                }
                if let Some(stream) = self.streams.get_mut(&session).filter(|stream| stream.asked) {
                    stream.asked = false;
                    self.membership.heard(self.now, &stream.member, session);
                }
                self.check();
            }
            let waits =
                self.streams.iter().any(|(session, stream)| !stream.answers || self.away.contains(session));
            let busy = self.streams.values().any(|stream| !stream.revoked.is_empty());
            match self.membership.deadline() {
                Some(due) if waits || busy => self.now = due,
                _ => break,
            }
            self.tick();
            self.check();
        }
        assert!(self.streams.values().all(|stream| stream.answers && stream.revoked.is_empty()));
        assert!(self.away.is_empty() && self.membership.revoking.is_empty());
        assert_eq!(self.membership.unsettled, None);
        self.assert_complete_and_even();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn whatever_happens_partitions_have_one_owner_and_find_their_rest(steps in steps()) {
        let mut world = World::new();
        for step in steps {
            world.step(step);
            world.check();
        }
        world.come_to_rest();
    }
}
