//! The control group's state and the commands that change it.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::topic::{PartitionAssignment, RepairStage, Settings, Topic, TopicId, validate_name};
use super::{BrokerId, Error};
use crate::clock::Timestamp;

/// A broker as it registered itself at its last start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broker {
    /// Its number.
    pub id: BrokerId,
    /// Where clients reach its gRPC API, `host:port`.
    pub grpc_address: String,
    /// Where it serves `/metrics` and `/health`, `host:port`.
    pub http_address: String,
    /// The version it runs.
    pub version: String,
    /// When it started, by its own clock.
    pub started: Timestamp,
    /// Where it stands: replicas of a partition are spread over racks. Empty if nobody said.
    pub rack: String,
    /// It is to lose all its replicas. Kept when it registers again.
    pub draining: bool,
    /// The broker that took over its address with an empty disk. This one never comes back.
    pub replaced_by: Option<BrokerId>,
    /// When it forces writes to its disk, as it is configured. Empty if it has never said so.
    pub storage_sync: String,
}

impl Broker {
    /// Whether it may be given replicas.
    pub fn takes_replicas(&self) -> bool {
        !self.draining && self.replaced_by.is_none()
    }
}

#[cfg(test)]
impl Broker {
    /// The first broker, at an address that nobody connects to.
    pub(crate) fn fake<A: ToString>(address: A) -> Self {
        Broker {
            id: BrokerId(1),
            grpc_address: address.to_string(),
            http_address: String::new(),
            version: String::new(),
            started: Timestamp(0),
            rack: String::new(),
            draining: false,
            replaced_by: None,
            storage_sync: String::new(),
        }
    }
}

/// A change of the state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Replaces what is known of a broker, or adds the first one.
    RegisterBroker(Broker),
    /// Adds a broker, whose number the state chooses. One that was at the same address is replaced by it.
    AdmitBroker(Broker),
    /// Says whether a broker is to lose all its replicas.
    DrainBroker {
        /// The broker.
        id: BrokerId,
        /// Or may have replicas again.
        draining: bool,
    },
    /// Removes a broker that has no replicas.
    RemoveBroker {
        /// The broker.
        id: BrokerId,
    },
    /// Gives a partition other replicas. While earlier ones still move, these take the place of their goal.
    ReassignPartition {
        /// The topic.
        name: Arc<str>,
        /// The partition.
        partition: u32,
        /// The brokers that are to hold replicas.
        replicas: Vec<BrokerId>,
    },
    /// The partition's leader has moved its replicas.
    FinishMove {
        /// The topic.
        topic: TopicId,
        /// The partition.
        partition: u32,
        /// The revision whose replicas are there. A later one makes this void.
        revision: u32,
    },
    /// A replica is damaged, and is to get its records anew from the others when its turn comes. Void if it is not one of
    /// several, or while replicas move.
    BeginRepair {
        /// The topic.
        topic: TopicId,
        /// The partition.
        partition: u32,
        /// The revision that the broker knows. A later one makes this void.
        revision: u32,
        /// The broker that has the replica.
        broker: BrokerId,
        /// What was found.
        reason: String,
    },
    /// A stage of a repair is over: the next one begins.
    AdvanceRepair {
        /// The topic.
        topic: TopicId,
        /// The partition.
        partition: u32,
        /// The revision of the repair. A later one makes this void.
        revision: u32,
        /// What is over. If it is the waiting, the repair that is next begins, unless another one has or replicas move.
        from: RepairStage,
    },
    /// A replica whose turn it was could not leave its group: it waits again, behind the others.
    DeferRepair {
        /// The topic.
        topic: TopicId,
        /// The partition.
        partition: u32,
        /// The revision of the repair. A later one makes this void.
        revision: u32,
    },
    /// Creates a topic. Placement is decided by the leader.
    CreateTopic {
        /// Its name.
        name: Arc<str>,
        /// All its settings.
        settings: Settings,
        /// Replicas that each partition should have.
        replication_factor: u32,
        /// The leader's clock.
        created: Timestamp,
        /// Replicas of each partition; the length is the number of partitions.
        partitions: Vec<PartitionAssignment>,
    },
    /// Replaces a topic's settings.
    AlterTopic {
        /// The topic.
        name: Arc<str>,
        /// All its new settings.
        settings: Settings,
    },
    /// Appends partitions to a topic.
    AddPartitions {
        /// The topic.
        name: Arc<str>,
        /// Replicas of each new partition.
        partitions: Vec<PartitionAssignment>,
    },
    /// Deletes a topic.
    DeleteTopic {
        /// The topic.
        name: Arc<str>,
    },
    /// Takes the next producer id.
    AllocateProducerId,
    /// Says how many coordinator shards the cluster has. The first to say so decides for ever.
    FixCoordinatorShards {
        /// The number, from 1.
        shards: u32,
    },
}

/// What an applied command gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing but the change itself.
    Done,
    /// The topic as it is now.
    Topic(Arc<Topic>),
    /// A producer id that nobody else has.
    ProducerId(u64),
    /// How many coordinator shards the cluster has.
    CoordinatorShards(u32),
    /// The number of a new broker.
    Broker(BrokerId),
}

/// The state. Cheap to clone: topics are shared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    pub(super) brokers: BTreeMap<BrokerId, Broker>,
    pub(super) topics: BTreeMap<Arc<str>, Arc<Topic>>,
    /// INVARIANT: larger than the id of every topic that ever existed.
    pub(super) next_topic_id: u32,
    /// INVARIANT: larger than every producer id that was handed out.
    pub(super) next_producer_id: u64,
    /// Which shard a group belongs to depends on it, so it never changes once it is there.
    pub(super) coordinator_shards: Option<u32>,
    /// INVARIANT: larger than the id of every broker that ever existed.
    pub(super) next_broker_id: u64,
}

impl Default for State {
    fn default() -> Self {
        State {
            brokers: BTreeMap::new(),
            topics: BTreeMap::new(),
            next_topic_id: 1,
            next_producer_id: 1,
            coordinator_shards: None,
            next_broker_id: 1,
        }
    }
}

impl State {
    /// Brokers by id.
    pub fn brokers(&self) -> impl Iterator<Item = &Broker> {
        self.brokers.values()
    }

    /// A broker.
    pub fn broker(&self, id: BrokerId) -> Option<&Broker> {
        self.brokers.get(&id)
    }

    /// Topics by name.
    pub fn topics(&self) -> impl Iterator<Item = &Arc<Topic>> {
        self.topics.values()
    }

    /// Topics whose names come after `name`, by name.
    pub fn topics_after(&self, name: &str) -> impl Iterator<Item = &Arc<Topic>> {
        use std::ops::Bound;
        self.topics.range::<str, _>((Bound::Excluded(name), Bound::Unbounded)).map(|(_, topic)| topic)
    }

    /// The topic of a name.
    pub fn topic(&self, name: &str) -> Option<&Arc<Topic>> {
        self.topics.get(name)
    }

    /// How many topics there are.
    pub fn topic_count(&self) -> usize {
        self.topics.len()
    }

    /// How many partitions there are in all topics.
    pub fn partition_count(&self) -> usize {
        self.topics.values().map(|topic| topic.partitions.len()).sum()
    }

    /// How many coordinator shards the cluster has, once that is decided.
    pub fn coordinator_shards(&self) -> Option<u32> {
        self.coordinator_shards
    }

    /// Changes the state as `command` says.
    ///
    /// # Errors
    /// The command does not fit the state, which is then unchanged.
    pub fn apply(&mut self, command: Command) -> Result<Outcome, Error> {
        match command {
            Command::RegisterBroker(broker) => self.register(broker),
            Command::AdmitBroker(broker) => self.admit(broker).map(Outcome::Broker),
            Command::DrainBroker { id, draining } => self.broker_mut(id).and_then(|broker| {
                if !draining && broker.replaced_by.is_some() {
                    let text = format!("broker {id} was replaced and cannot come back");
                    return Err(Error::Refused(text));
                }
                broker.draining = draining;
                Ok(Outcome::Done)
            }),
            Command::RemoveBroker { id } => self.remove(id),
            Command::ReassignPartition { name, partition, replicas } => {
                self.reassign(&name, partition, replicas)
            }
            Command::FinishMove { topic, partition, revision } => {
                self.at_revision(topic, partition, revision, |assignment| assignment.moving_from.clear());
                Ok(Outcome::Done)
            }
            Command::BeginRepair { topic, partition, revision, broker, reason } => {
                self.at_revision(topic, partition, revision, |it| it.begin_repair(broker, reason));
                Ok(Outcome::Done)
            }
            Command::AdvanceRepair { topic, partition, revision, from } => {
                self.at_revision(topic, partition, revision, |it| it.advance_repair(from));
                Ok(Outcome::Done)
            }
            Command::DeferRepair { topic, partition, revision } => {
                self.at_revision(topic, partition, revision, PartitionAssignment::defer_repair);
                Ok(Outcome::Done)
            }
            Command::CreateTopic { name, settings, replication_factor, created, partitions } => {
                self.create(name, settings, replication_factor, created, partitions)
            }
            Command::AlterTopic { name, settings } => self.change(&name, |topic| {
                topic.settings = settings;
                Ok(())
            }),
            Command::AddPartitions { name, partitions } => self.change(&name, |topic| {
                if partitions.is_empty() {
                    let present = topic.partitions.len() as u32;
                    return Err(Error::PartitionsNotMore {
                        name: name.to_string(),
                        present,
                        requested: present,
                    });
                }
                topic.partitions.extend(partitions);
                Ok(())
            }),
            Command::DeleteTopic { name } => match self.topics.remove(&name) {
                Some(_) => Ok(Outcome::Done),
                None => Err(Error::UnknownTopic(name.to_string())),
            },
            Command::AllocateProducerId => {
                let id = self.next_producer_id;
                self.next_producer_id += 1;
                Ok(Outcome::ProducerId(id))
            }
            Command::FixCoordinatorShards { shards: 0 } => {
                Err(Error::Malformed("a cluster has at least one coordinator shard".to_owned()))
            }
            Command::FixCoordinatorShards { shards } => {
                Ok(Outcome::CoordinatorShards(*self.coordinator_shards.get_or_insert(shards)))
            }
        }
    }

    /// Why a broker that was in the cluster is not any more, and what to do with it. Nothing for those that are, and those
    /// that this state does not know yet. It never comes back, so this is true of every later state, too.
    pub fn has_left(&self, id: BrokerId) -> Option<String> {
        let why = match self.brokers.get(&id) {
            Some(Broker { replaced_by: Some(by), .. }) => {
                format!("replaced by broker {by}, which has its address")
            }
            None if id.0 < self.next_broker_id => "removed from the cluster".to_owned(),
            _ => return None,
        };
        Some(format!(
            "broker {id} was {why}: stop it; with an empty data directory and cluster.seeds it joins again, under another number"
        ))
    }

    fn register(&mut self, broker: Broker) -> Result<Outcome, Error> {
        let first = self.brokers.is_empty();
        if let Some(left) = self.has_left(broker.id) {
            return Err(Error::Refused(left));
        }
        match self.brokers.get_mut(&broker.id) {
            Some(known) => {
                let (draining, replaced_by) = (known.draining, known.replaced_by);
                *known = Broker { draining, replaced_by, ..broker };
            }
            // The first broker numbers itself.
            None if first => {
                self.next_broker_id = self.next_broker_id.max(broker.id.0 + 1);
                self.brokers.insert(broker.id, broker);
            }
            None => return Err(Error::UnknownBroker(broker.id)),
        }
        Ok(Outcome::Done)
    }

    fn admit(&mut self, broker: Broker) -> Result<BrokerId, Error> {
        // Its founder numbers itself, and must come first.
        if self.brokers.is_empty() {
            return Err(Error::Refused("the cluster is being founded; try again".to_owned()));
        }
        let id = BrokerId(self.next_broker_id);
        self.next_broker_id += 1;
        for known in self.brokers.values_mut() {
            if known.grpc_address == broker.grpc_address {
                known.replaced_by = Some(id);
            }
        }
        self.brokers.insert(id, Broker { id, draining: false, replaced_by: None, ..broker });
        Ok(id)
    }

    fn broker_mut(&mut self, id: BrokerId) -> Result<&mut Broker, Error> {
        self.brokers.get_mut(&id).ok_or(Error::UnknownBroker(id))
    }

    fn remove(&mut self, id: BrokerId) -> Result<Outcome, Error> {
        self.broker_mut(id)?;
        let holds = self.replicas_of(id);
        if holds > 0 {
            return Err(Error::Refused(format!(
                "broker {id} still has replicas of {holds} partitions; drain it first: `streambus cluster drain {id}`"
            )));
        }
        if self.brokers.len() == 1 {
            return Err(Error::Refused(format!("broker {id} is the only one")));
        }
        self.brokers.remove(&id);
        Ok(Outcome::Done)
    }

    /// Partitions of which a broker holds a replica, or is to hold one.
    pub fn replicas_of(&self, id: BrokerId) -> usize {
        let assignments = self.topics.values().flat_map(|topic| &topic.partitions);
        assignments.filter(|assignment| assignment.involves(id)).count()
    }

    fn reassign(
        &mut self,
        name: &Arc<str>,
        partition: u32,
        replicas: Vec<BrokerId>,
    ) -> Result<Outcome, Error> {
        if replicas.is_empty() {
            return Err(Error::Refused("a partition needs at least one replica".to_owned()));
        }
        for (at, id) in replicas.iter().enumerate() {
            let broker = self.brokers.get(id).ok_or(Error::UnknownBroker(*id))?;
            if replicas[..at].contains(id) {
                return Err(Error::Refused(format!("broker {id} is named twice")));
            }
            if broker.replaced_by.is_some() {
                return Err(Error::Refused(format!("broker {id} was replaced")));
            }
        }
        self.change(name, |topic| {
            let partitions = topic.partitions.len();
            let assignment = topic.partitions.get_mut(partition as usize).ok_or_else(|| {
                Error::Refused(format!("topic {name:?} has no partition {partition}: it has {partitions}"))
            })?;
            if assignment.replicas == replicas {
                return Ok(());
            }
            let before = std::mem::replace(&mut assignment.replicas, replicas);
            // What an interrupted move left behind is still to be tidied up.
            for id in before {
                if !assignment.moving_from.contains(&id) {
                    assignment.moving_from.push(id);
                }
            }
            // A damaged replica that is not wanted any more just goes.
            let replicas = &assignment.replicas;
            assignment.repairs.retain(|repair| replicas.contains(&repair.broker));
            assignment.revision += 1;
            Ok(())
        })
    }

    /// Changes a partition's replicas if they are still of `revision`.
    fn at_revision(
        &mut self,
        topic: TopicId,
        partition: u32,
        revision: u32,
        change: impl FnOnce(&mut PartitionAssignment),
    ) {
        let Some(shared) = self.topics.values_mut().find(|known| known.id == topic) else {
            return; // It was deleted meanwhile.
        };
        let current = shared.partitions.get(partition as usize);
        if current.is_some_and(|assignment| assignment.revision == revision) {
            let mut changed = Topic::clone(shared);
            change(&mut changed.partitions[partition as usize]);
            *shared = Arc::new(changed);
        }
    }

    fn create(
        &mut self,
        name: Arc<str>,
        settings: Settings,
        replication_factor: u32,
        created: Timestamp,
        partitions: Vec<PartitionAssignment>,
    ) -> Result<Outcome, Error> {
        validate_name(&name)?;
        if self.topics.contains_key(&name) {
            return Err(Error::TopicExists(name.to_string()));
        }
        let id = TopicId(self.next_topic_id);
        self.next_topic_id += 1;
        let topic =
            Arc::new(Topic { id, name: name.clone(), settings, replication_factor, created, partitions });
        self.topics.insert(name, topic.clone());
        Ok(Outcome::Topic(topic))
    }

    fn change(
        &mut self,
        name: &str,
        change: impl FnOnce(&mut Topic) -> Result<(), Error>,
    ) -> Result<Outcome, Error> {
        let shared = self.topics.get_mut(name).ok_or_else(|| Error::UnknownTopic(name.to_owned()))?;
        let mut topic = Topic::clone(shared);
        change(&mut topic)?;
        *shared = Arc::new(topic);
        Ok(Outcome::Topic(shared.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::CodecSet;

    fn settings() -> Settings {
        Settings {
            retention: None,
            retention_bytes: None,
            record_bytes_max: 1000,
            batch_bytes_max: 2000,
            codecs: CodecSet::ALL,
        }
    }

    fn create(name: &str) -> Command {
        Command::CreateTopic {
            name: name.into(),
            settings: settings(),
            replication_factor: 1,
            created: Timestamp(7),
            partitions: vec![PartitionAssignment::new(vec![BrokerId(1)])],
        }
    }

    #[test]
    fn topic_ids_are_never_reused() {
        let mut state = State::default();
        state.apply(create("a")).expect("created");
        state.apply(Command::DeleteTopic { name: "a".into() }).expect("deleted");
        state.apply(create("a")).expect("created again");
        assert_eq!(state.topic("a").expect("exists").id, TopicId(2));
    }

    #[test]
    fn a_broker_that_has_left_is_told_from_one_that_is_not_known_yet() {
        let mut state = State::default();
        let left = |state: &State| {
            (1..=4).filter(|id| state.has_left(BrokerId(*id)).is_some()).collect::<Vec<u64>>()
        };
        assert!(left(&state).is_empty());
        state.apply(Command::RegisterBroker(Broker::fake("a"))).expect("the first");
        state.apply(Command::AdmitBroker(Broker::fake("b"))).expect("admitted");
        assert!(left(&state).is_empty());
        state.apply(Command::AdmitBroker(Broker::fake("b"))).expect("admitted");
        assert_eq!(left(&state), [2], "replaced");
        state.apply(Command::RemoveBroker { id: BrokerId(2) }).expect("it has nothing");
        assert_eq!(left(&state), [2]);
        let again = Broker { id: BrokerId(2), ..Broker::fake("c") };
        let refused = state.apply(Command::RegisterBroker(again)).expect_err("it was removed").to_string();
        assert!(refused.contains("removed from the cluster") && refused.contains("empty data"), "{refused}");
    }

    #[test]
    fn a_refused_command_changes_nothing() {
        let mut state = State::default();
        state.apply(create("a")).expect("created");
        let before = state.clone();
        assert_eq!(state.apply(create("a")), Err(Error::TopicExists("a".into())));
        assert_eq!(
            state.apply(Command::AlterTopic { name: "b".into(), settings: settings() }),
            Err(Error::UnknownTopic("b".into()))
        );
        assert!(matches!(
            state.apply(Command::AddPartitions { name: "a".into(), partitions: vec![] }),
            Err(Error::PartitionsNotMore { present: 1, .. })
        ));
        assert_eq!(state, before);
    }

    #[test]
    fn producer_ids_are_unique() {
        let mut state = State::default();
        assert_eq!(state.apply(Command::AllocateProducerId), Ok(Outcome::ProducerId(1)));
        assert_eq!(state.apply(Command::AllocateProducerId), Ok(Outcome::ProducerId(2)));
    }

    #[test]
    fn the_first_number_of_coordinator_shards_stands() {
        let mut state = State::default();
        let refused = state.apply(Command::FixCoordinatorShards { shards: 0 });
        assert!(matches!(refused, Err(Error::Malformed(_))));
        assert_eq!(state.coordinator_shards(), None);
        for shards in [4, 8] {
            let outcome = state.apply(Command::FixCoordinatorShards { shards });
            assert_eq!(outcome, Ok(Outcome::CoordinatorShards(4)));
        }
        assert_eq!(state.coordinator_shards(), Some(4));
    }

    #[test]
    fn partitions_are_appended() {
        let mut state = State::default();
        state.apply(create("a")).expect("created");
        let more = vec![PartitionAssignment::new(vec![BrokerId(1)]); 3];
        state.apply(Command::AddPartitions { name: "a".into(), partitions: more }).expect("added");
        assert_eq!(state.partition_count(), 4);
    }

    fn three_brokers() -> State {
        let mut state = State::default();
        state.apply(Command::RegisterBroker(Broker::fake("a"))).expect("the first");
        for (address, id) in [("b", 2), ("c", 3)] {
            let admitted = state.apply(Command::AdmitBroker(Broker::fake(address)));
            assert_eq!(admitted, Ok(Outcome::Broker(BrokerId(id))));
        }
        state
    }

    #[test]
    fn nobody_is_admitted_before_the_founder() {
        let mut state = State::default();
        assert!(matches!(state.apply(Command::AdmitBroker(Broker::fake("b"))), Err(Error::Refused(_))));
        assert_eq!(state, State::default());
    }

    #[test]
    fn only_the_first_broker_numbers_itself() {
        let mut state = three_brokers();
        let stranger = Broker { id: BrokerId(9), ..Broker::fake("z") };
        let refused = state.apply(Command::RegisterBroker(stranger));
        assert_eq!(refused, Err(Error::UnknownBroker(BrokerId(9))));
    }

    #[test]
    fn a_broker_with_the_address_of_another_replaces_it() {
        let mut state = three_brokers();
        assert_eq!(state.apply(Command::AdmitBroker(Broker::fake("b"))), Ok(Outcome::Broker(BrokerId(4))));
        assert_eq!(state.broker(BrokerId(2)).expect("kept").replaced_by, Some(BrokerId(4)));
        let back = state.apply(Command::RegisterBroker(Broker { id: BrokerId(2), ..Broker::fake("b") }));
        assert!(matches!(back, Err(Error::Refused(_))));
        assert!(!state.broker(BrokerId(2)).expect("kept").takes_replicas());
    }

    #[test]
    fn a_broker_that_registers_again_goes_on_draining() {
        let mut state = three_brokers();
        state.apply(Command::DrainBroker { id: BrokerId(2), draining: true }).expect("known");
        state
            .apply(Command::RegisterBroker(Broker { id: BrokerId(2), ..Broker::fake("b2") }))
            .expect("known");
        assert!(state.broker(BrokerId(2)).expect("known").draining);
        assert_eq!(state.broker(BrokerId(2)).expect("known").grpc_address, "b2");
    }

    #[test]
    fn replicas_move_until_the_leader_says_so() {
        let mut state = three_brokers();
        state.apply(create("a")).expect("created");
        let id = state.topic("a").expect("there").id;
        let to = |ids: &[u64]| Command::ReassignPartition {
            name: "a".into(),
            partition: 0,
            replicas: ids.iter().copied().map(BrokerId).collect(),
        };
        state.apply(to(&[2])).expect("known brokers");
        state.apply(to(&[3])).expect("a move may be redirected");
        let assignment = state.topic("a").expect("there").partitions[0].clone();
        assert_eq!(assignment.moving_from, [BrokerId(1), BrokerId(2)]);
        assert_eq!(assignment.revision, 2);
        assert!(matches!(state.apply(Command::RemoveBroker { id: BrokerId(2) }), Err(Error::Refused(_))));
        for (revision, moving) in [(1, true), (2, false)] {
            state.apply(Command::FinishMove { topic: id, partition: 0, revision }).expect("never refused");
            assert_eq!(state.topic("a").expect("there").partitions[0].is_moving(), moving);
        }
        state.apply(Command::RemoveBroker { id: BrokerId(2) }).expect("it has no replicas");
        assert_eq!(state.apply(to(&[2])), Err(Error::UnknownBroker(BrokerId(2))));
        for wrong in [&[][..], &[3, 3]] {
            assert!(matches!(state.apply(to(wrong)), Err(Error::Refused(_))));
        }
    }

    fn assignment(state: &State) -> PartitionAssignment {
        state.topic("a").expect("there").partitions[0].clone()
    }

    fn stages(state: &State) -> Vec<(u64, RepairStage)> {
        assignment(state).repairs.iter().map(|repair| (repair.broker.0, repair.stage)).collect()
    }

    fn reassign(ids: &[u64]) -> Command {
        let replicas = ids.iter().copied().map(BrokerId).collect();
        Command::ReassignPartition { name: "a".into(), partition: 0, replicas }
    }

    fn damaged(revision: u32, broker: u64) -> Command {
        let (topic, broker) = (TopicId(1), BrokerId(broker));
        Command::BeginRepair { topic, partition: 0, revision, broker, reason: "row 7".into() }
    }

    fn over(revision: u32, from: RepairStage) -> Command {
        Command::AdvanceRepair { topic: TopicId(1), partition: 0, revision, from }
    }

    /// A partition with three replicas, of revision 1.
    fn three_replicas() -> State {
        let mut state = three_brokers();
        state.apply(create("a")).expect("created");
        state.apply(reassign(&[1, 2, 3])).expect("known brokers");
        let finish = Command::FinishMove { topic: TopicId(1), partition: 0, revision: 1 };
        state.apply(finish).expect("never refused");
        state
    }

    fn apply(state: &mut State, commands: impl IntoIterator<Item = Command>) {
        for command in commands {
            state.apply(command).expect("never refused");
        }
    }

    #[test]
    fn a_repair_goes_from_stage_to_stage_and_bars_the_replica_until_it_is_empty() {
        use RepairStage::{Emptying, Joining, Leaving, Waiting};
        let mut state = three_replicas();
        apply(&mut state, [damaged(0, 1)]);
        assert_eq!(stages(&state), [], "of an earlier revision");
        apply(&mut state, [damaged(1, 2), damaged(1, 2)]);
        assert_eq!(stages(&state), [(2, Waiting)], "once");
        assert_eq!(assignment(&state).members().count(), 3, "it is a member until its turn comes");
        apply(&mut state, [over(1, Leaving), over(1, Waiting), over(2, Emptying)]);
        assert_eq!(stages(&state), [(2, Leaving)], "that comes later");
        assert!(assignment(&state).is_barred(BrokerId(2)));
        assert_eq!(assignment(&state).holders().count(), 3, "it may have what others have lost");
        apply(&mut state, [over(2, Leaving)]);
        assert_eq!(assignment(&state).members().collect::<Vec<_>>(), [BrokerId(1), BrokerId(3)]);
        assert_eq!(assignment(&state).holders().collect::<Vec<_>>(), [BrokerId(1), BrokerId(3)]);
        apply(&mut state, [over(2, Emptying)]);
        assert_eq!(assignment(&state).members().count(), 3);
        apply(&mut state, [damaged(2, 2)]);
        assert_eq!(stages(&state), [(2, Leaving)], "damaged again");
        apply(&mut state, [Leaving, Emptying, Joining].map(|from| over(2, from)));
        assert_eq!(stages(&state), [(2, Leaving)], "of an earlier revision");
        apply(&mut state, [Leaving, Emptying, Joining].map(|from| over(3, from)));
        assert_eq!(stages(&state), []);
    }

    #[test]
    fn a_replica_without_others_or_on_the_move_is_not_repaired() {
        let mut state = three_brokers();
        apply(&mut state, [create("a"), damaged(0, 1)]);
        assert_eq!(stages(&state), [], "there is no other replica");
        apply(&mut state, [reassign(&[1, 2, 3]), damaged(1, 1)]);
        assert_eq!(stages(&state), [], "replicas move");
        let mut state = three_replicas();
        apply(&mut state, [damaged(1, 2), reassign(&[2, 3]), over(2, RepairStage::Waiting)]);
        assert_eq!(stages(&state), [(2, RepairStage::Waiting)], "replicas move");
        apply(&mut state, [reassign(&[1, 3])]);
        assert_eq!(stages(&state), [], "it is not wanted any more");
    }

    #[test]
    fn damaged_replicas_of_a_partition_are_repaired_one_after_the_other() {
        use RepairStage::{Emptying, Joining, Leaving, Waiting};
        let mut state = three_replicas();
        apply(&mut state, [damaged(1, 3), over(1, Waiting), damaged(2, 1)]);
        assert_eq!(stages(&state), [(3, Leaving), (1, Waiting)]);
        apply(&mut state, [over(2, Waiting)]);
        assert_eq!(stages(&state), [(3, Leaving), (1, Waiting)], "the other one is not done");
        let now = assignment(&state);
        assert_eq!([1, 2, 3].map(|id| now.is_damaged(BrokerId(id))), [true, false, true]);
        apply(&mut state, [Leaving, Emptying].map(|from| over(2, from)));
        assert!(!assignment(&state).is_damaged(BrokerId(3)), "what it gets is intact");
        apply(&mut state, [over(2, Waiting), over(2, Joining), over(2, Waiting)]);
        assert_eq!(stages(&state), [(1, Leaving)]);
    }

    #[test]
    fn a_replica_that_cannot_leave_waits_behind_the_others_and_is_a_member_again() {
        use RepairStage::{Emptying, Leaving, Waiting};
        let mut state = three_replicas();
        let defer = |revision| Command::DeferRepair { topic: TopicId(1), partition: 0, revision };
        apply(&mut state, [damaged(1, 3), damaged(1, 1), defer(1), over(1, Waiting), defer(1)]);
        assert_eq!(stages(&state), [(3, Leaving), (1, Waiting)], "of an earlier revision");
        apply(&mut state, [defer(2)]);
        assert_eq!(stages(&state), [(1, Waiting), (3, Waiting)]);
        assert_eq!(assignment(&state).members().count(), 3);
        assert_eq!(assignment(&state).next_repair().map(|next| (next.broker.0, next.deferred)), Some((1, 0)));
        // What the leader said before it knew of this must not empty a member.
        apply(&mut state, [over(3, Waiting), over(2, Leaving)]);
        assert_eq!(stages(&state), [(1, Leaving), (3, Waiting)]);
        apply(&mut state, [over(4, Leaving), defer(4)]);
        assert_eq!(stages(&state), [(1, Emptying), (3, Waiting)], "it is out already");
    }
}
