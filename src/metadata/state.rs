//! The control group's state and the commands that change it.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::topic::{PartitionAssignment, Settings, Topic, TopicId, validate_name};
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
}

/// A change of the state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Adds a broker, or replaces what is known of it.
    RegisterBroker(Broker),
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
}

impl Default for State {
    fn default() -> Self {
        State {
            brokers: BTreeMap::new(),
            topics: BTreeMap::new(),
            next_topic_id: 1,
            next_producer_id: 1,
            coordinator_shards: None,
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
            Command::RegisterBroker(broker) => {
                self.brokers.insert(broker.id, broker);
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
            partitions: vec![PartitionAssignment { replicas: vec![BrokerId(1)] }],
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
        let more = vec![PartitionAssignment { replicas: vec![BrokerId(1)] }; 3];
        state.apply(Command::AddPartitions { name: "a".into(), partitions: more }).expect("added");
        assert_eq!(state.partition_count(), 4);
    }
}
