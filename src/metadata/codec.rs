//! Stored forms of commands and state: the messages of `proto/streambus/internal/v1/metadata.proto`.
//!
//! Maps are written in key order, so equal states have equal bytes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use prost::Message as _;

use super::state::{Broker, Command, State};
use super::topic::{PartitionAssignment, Repair, RepairStage, Settings, Topic, TopicId};
use super::{BrokerId, Error};
use crate::clock::Timestamp;
use crate::proto::internal as stored;
use crate::proto::internal::control_command::Command as StoredCommand;
use crate::record::CodecSet;

impl Command {
    /// The stored form.
    pub fn encode(&self) -> Vec<u8> {
        let command = match self {
            Command::RegisterBroker(broker) => {
                StoredCommand::RegisterBroker(stored::RegisterBroker { broker: Some(store_broker(broker)) })
            }
            Command::CreateTopic { name, settings, replication_factor, created, partitions } => {
                StoredCommand::CreateTopic(stored::CreateTopic {
                    name: name.to_string(),
                    settings: Some(store_settings(settings)),
                    replication_factor: *replication_factor,
                    created_ms: created.0,
                    partitions: store_partitions(partitions),
                })
            }
            Command::AlterTopic { name, settings } => StoredCommand::AlterTopic(stored::AlterTopic {
                name: name.to_string(),
                settings: Some(store_settings(settings)),
            }),
            Command::AddPartitions { name, partitions } => {
                StoredCommand::AddTopicPartitions(stored::AddTopicPartitions {
                    name: name.to_string(),
                    partitions: store_partitions(partitions),
                })
            }
            Command::DeleteTopic { name } => {
                StoredCommand::DeleteTopic(stored::DeleteTopic { name: name.to_string() })
            }
            Command::AllocateProducerId => StoredCommand::AllocateProducerId(stored::AllocateProducerId {}),
            Command::FixCoordinatorShards { shards } => {
                StoredCommand::FixCoordinatorShards(stored::FixCoordinatorShards { shards: *shards })
            }
            Command::AdmitBroker(broker) => {
                StoredCommand::AdmitBroker(stored::AdmitBroker { broker: Some(store_broker(broker)) })
            }
            Command::DrainBroker { id, draining } => {
                StoredCommand::DrainBroker(stored::DrainBroker { broker_id: id.0, draining: *draining })
            }
            Command::RemoveBroker { id } => {
                StoredCommand::RemoveBroker(stored::RemoveBroker { broker_id: id.0 })
            }
            Command::ReassignPartition { name, partition, replicas } => {
                StoredCommand::ReassignPartition(stored::ReassignPartition {
                    topic: name.to_string(),
                    partition: *partition,
                    replicas: store_ids(replicas),
                })
            }
            Command::FinishMove { topic, partition, revision } => {
                StoredCommand::FinishMove(stored::FinishMove {
                    topic_id: topic.0,
                    partition: *partition,
                    revision: *revision,
                })
            }
            Command::BeginRepair { topic, partition, revision, broker, reason } => {
                StoredCommand::BeginRepair(stored::BeginRepair {
                    topic_id: topic.0,
                    partition: *partition,
                    revision: *revision,
                    broker_id: broker.0,
                    reason: reason.clone(),
                })
            }
            Command::AdvanceRepair { topic, partition, revision, from } => {
                StoredCommand::AdvanceRepair(stored::AdvanceRepair {
                    topic_id: topic.0,
                    partition: *partition,
                    revision: *revision,
                    from: store_stage(*from).into(),
                })
            }
            Command::DeferRepair { topic, partition, revision } => {
                StoredCommand::DeferRepair(stored::DeferRepair {
                    topic_id: topic.0,
                    partition: *partition,
                    revision: *revision,
                })
            }
        };
        stored::ControlCommand { command: Some(command) }.encode_to_vec()
    }

    /// Reads the stored form.
    ///
    /// # Errors
    /// [`Error::Malformed`]: the bytes are no command that this version knows.
    pub fn decode(bytes: &[u8]) -> Result<Self, Error> {
        let command = stored::ControlCommand::decode(bytes).map_err(|e| Error::Malformed(e.to_string()))?;
        Ok(match command.command.ok_or_else(|| missing("command"))? {
            StoredCommand::RegisterBroker(c) => {
                Command::RegisterBroker(load_broker(c.broker.ok_or_else(|| missing("broker"))?))
            }
            StoredCommand::CreateTopic(c) => Command::CreateTopic {
                name: c.name.into(),
                settings: load_settings(c.settings)?,
                replication_factor: c.replication_factor,
                created: Timestamp(c.created_ms),
                partitions: load_partitions(c.partitions)?,
            },
            StoredCommand::AlterTopic(c) => {
                Command::AlterTopic { name: c.name.into(), settings: load_settings(c.settings)? }
            }
            StoredCommand::AddTopicPartitions(c) => {
                Command::AddPartitions { name: c.name.into(), partitions: load_partitions(c.partitions)? }
            }
            StoredCommand::DeleteTopic(c) => Command::DeleteTopic { name: c.name.into() },
            StoredCommand::AllocateProducerId(_) => Command::AllocateProducerId,
            StoredCommand::FixCoordinatorShards(c) => Command::FixCoordinatorShards { shards: c.shards },
            StoredCommand::AdmitBroker(c) => {
                Command::AdmitBroker(load_broker(c.broker.ok_or_else(|| missing("broker"))?))
            }
            StoredCommand::DrainBroker(c) => {
                Command::DrainBroker { id: BrokerId(c.broker_id), draining: c.draining }
            }
            StoredCommand::RemoveBroker(c) => Command::RemoveBroker { id: BrokerId(c.broker_id) },
            StoredCommand::ReassignPartition(c) => Command::ReassignPartition {
                name: c.topic.into(),
                partition: c.partition,
                replicas: load_ids(c.replicas),
            },
            StoredCommand::FinishMove(c) => Command::FinishMove {
                topic: TopicId(c.topic_id),
                partition: c.partition,
                revision: c.revision,
            },
            StoredCommand::BeginRepair(c) => Command::BeginRepair {
                topic: TopicId(c.topic_id),
                partition: c.partition,
                revision: c.revision,
                broker: BrokerId(c.broker_id),
                reason: c.reason,
            },
            StoredCommand::AdvanceRepair(c) => Command::AdvanceRepair {
                topic: TopicId(c.topic_id),
                partition: c.partition,
                revision: c.revision,
                from: load_stage(c.from())?,
            },
            StoredCommand::DeferRepair(c) => Command::DeferRepair {
                topic: TopicId(c.topic_id),
                partition: c.partition,
                revision: c.revision,
            },
        })
    }
}

impl State {
    /// The stored form.
    pub fn encode(&self) -> Vec<u8> {
        stored::ControlState {
            brokers: self.brokers.values().map(store_broker).collect(),
            topics: self.topics.values().map(|topic| store_topic(topic)).collect(),
            next_topic_id: self.next_topic_id,
            next_producer_id: self.next_producer_id,
            coordinator_shards: self.coordinator_shards,
            next_broker_id: Some(self.next_broker_id),
        }
        .encode_to_vec()
    }

    /// Reads the stored form.
    ///
    /// # Errors
    /// [`Error::Malformed`]: the bytes are no state of this format.
    pub fn decode(bytes: &[u8]) -> Result<Self, Error> {
        let state = stored::ControlState::decode(bytes).map_err(|e| Error::Malformed(e.to_string()))?;
        let brokers: BTreeMap<BrokerId, Broker> =
            state.brokers.into_iter().map(load_broker).map(|broker| (broker.id, broker)).collect();
        let after_last = brokers.keys().next_back().map_or(1, |last| last.0.saturating_add(1));
        let topics = state
            .topics
            .into_iter()
            .map(|topic| load_topic(topic).map(|topic| (topic.name.clone(), Arc::new(topic))))
            .collect::<Result<_, _>>()?;
        Ok(State {
            brokers,
            topics,
            next_topic_id: state.next_topic_id,
            next_producer_id: state.next_producer_id,
            coordinator_shards: state.coordinator_shards,
            next_broker_id: state.next_broker_id.unwrap_or(after_last),
        })
    }
}

fn missing(field: &str) -> Error {
    Error::Malformed(format!("field `{field}` is missing"))
}

/// As brokers tell each other.
pub(crate) fn store_broker(broker: &Broker) -> stored::BrokerRecord {
    stored::BrokerRecord {
        broker_id: broker.id.0,
        grpc_address: broker.grpc_address.clone(),
        http_address: broker.http_address.clone(),
        version: broker.version.clone(),
        started_ms: broker.started.0,
        rack: broker.rack.clone(),
        draining: broker.draining,
        replaced_by: broker.replaced_by.map_or(0, |id| id.0),
        storage_sync: broker.storage_sync.clone(),
    }
}

/// See [`store_broker`].
pub(crate) fn load_broker(broker: stored::BrokerRecord) -> Broker {
    Broker {
        id: BrokerId(broker.broker_id),
        grpc_address: broker.grpc_address,
        http_address: broker.http_address,
        version: broker.version,
        started: Timestamp(broker.started_ms),
        rack: broker.rack,
        draining: broker.draining,
        replaced_by: (broker.replaced_by != 0).then_some(BrokerId(broker.replaced_by)),
        storage_sync: broker.storage_sync,
    }
}

fn store_settings(settings: &Settings) -> stored::TopicSettings {
    stored::TopicSettings {
        retention_ms: settings.retention.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX)),
        retention_bytes: settings.retention_bytes.unwrap_or(0),
        record_bytes_max: settings.record_bytes_max,
        batch_bytes_max: settings.batch_bytes_max,
        codecs: settings.codecs.bits(),
    }
}

fn load_settings(settings: Option<stored::TopicSettings>) -> Result<Settings, Error> {
    let settings = settings.ok_or_else(|| missing("settings"))?;
    Ok(Settings {
        retention: (settings.retention_ms > 0).then(|| Duration::from_millis(settings.retention_ms)),
        retention_bytes: (settings.retention_bytes > 0).then_some(settings.retention_bytes),
        record_bytes_max: settings.record_bytes_max,
        batch_bytes_max: settings.batch_bytes_max,
        codecs: CodecSet::from_bits(settings.codecs)
            .ok_or_else(|| Error::Malformed(format!("unknown codecs {:#b}", settings.codecs)))?,
    })
}

fn store_partitions(partitions: &[PartitionAssignment]) -> Vec<stored::PartitionRecord> {
    partitions
        .iter()
        .map(|p| stored::PartitionRecord {
            replicas: store_ids(&p.replicas),
            moving_from: store_ids(&p.moving_from),
            revision: p.revision,
            repairs: p.repairs.iter().map(store_repair).collect(),
        })
        .collect()
}

fn store_repair(repair: &Repair) -> stored::Repair {
    stored::Repair {
        broker_id: repair.broker.0,
        stage: store_stage(repair.stage).into(),
        reason: repair.reason.clone(),
        deferred: repair.deferred,
    }
}

fn store_stage(stage: RepairStage) -> stored::RepairStage {
    match stage {
        RepairStage::Waiting => stored::RepairStage::Waiting,
        RepairStage::Leaving => stored::RepairStage::Leaving,
        RepairStage::Emptying => stored::RepairStage::Emptying,
        RepairStage::Joining => stored::RepairStage::Joining,
    }
}

fn load_stage(stage: stored::RepairStage) -> Result<RepairStage, Error> {
    match stage {
        stored::RepairStage::Waiting => Ok(RepairStage::Waiting),
        stored::RepairStage::Leaving => Ok(RepairStage::Leaving),
        stored::RepairStage::Emptying => Ok(RepairStage::Emptying),
        stored::RepairStage::Joining => Ok(RepairStage::Joining),
        stored::RepairStage::Unspecified => Err(missing("stage")),
    }
}

fn load_repair(repair: stored::Repair) -> Result<Repair, Error> {
    let stage = load_stage(repair.stage())?;
    let stored::Repair { broker_id, reason, deferred, .. } = repair;
    Ok(Repair { broker: BrokerId(broker_id), stage, reason, deferred })
}

fn store_ids(ids: &[BrokerId]) -> Vec<u64> {
    ids.iter().map(|id| id.0).collect()
}

fn load_ids(ids: Vec<u64>) -> Vec<BrokerId> {
    ids.into_iter().map(BrokerId).collect()
}

fn load_partitions(partitions: Vec<stored::PartitionRecord>) -> Result<Vec<PartitionAssignment>, Error> {
    let load = |p: stored::PartitionRecord| {
        Ok(PartitionAssignment {
            replicas: load_ids(p.replicas),
            moving_from: load_ids(p.moving_from),
            revision: p.revision,
            repairs: p.repairs.into_iter().map(load_repair).collect::<Result<_, _>>()?,
        })
    };
    partitions.into_iter().map(load).collect()
}

/// As brokers tell each other.
pub(crate) fn store_topic(topic: &Topic) -> stored::TopicRecord {
    stored::TopicRecord {
        topic_id: topic.id.0,
        name: topic.name.to_string(),
        settings: Some(store_settings(&topic.settings)),
        replication_factor: topic.replication_factor,
        created_ms: topic.created.0,
        partitions: store_partitions(&topic.partitions),
    }
}

/// See [`store_topic`].
///
/// # Errors
/// [`Error::Malformed`].
pub(crate) fn load_topic(topic: stored::TopicRecord) -> Result<Topic, Error> {
    Ok(Topic {
        id: TopicId(topic.topic_id),
        name: topic.name.into(),
        settings: load_settings(topic.settings)?,
        replication_factor: topic.replication_factor,
        created: Timestamp(topic.created_ms),
        partitions: load_partitions(topic.partitions)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings {
            retention: Some(Duration::from_secs(60)),
            retention_bytes: Some(1 << 30),
            record_bytes_max: 1000,
            batch_bytes_max: 2000,
            codecs: CodecSet::ALL,
        }
    }

    fn commands() -> Vec<Command> {
        let partitions = vec![PartitionAssignment::new(vec![BrokerId(1), BrokerId(2)]); 2];
        let broker = Broker {
            id: BrokerId(1),
            grpc_address: "a:9092".into(),
            http_address: "a:8080".into(),
            version: "1.0".into(),
            started: Timestamp(5),
            rack: "r1".into(),
            draining: false,
            replaced_by: None,
            storage_sync: "always".into(),
        };
        vec![
            Command::RegisterBroker(broker.clone()),
            Command::AdmitBroker(Broker { id: BrokerId(0), grpc_address: "b:9092".into(), ..broker.clone() }),
            Command::AdmitBroker(Broker { id: BrokerId(0), ..broker }),
            Command::DrainBroker { id: BrokerId(2), draining: true },
            Command::CreateTopic {
                name: "orders".into(),
                settings: settings(),
                replication_factor: 2,
                created: Timestamp(9),
                partitions: partitions.clone(),
            },
            Command::AlterTopic {
                name: "orders".into(),
                settings: Settings { retention: None, ..settings() },
            },
            Command::AddPartitions { name: "orders".into(), partitions },
            Command::ReassignPartition { name: "orders".into(), partition: 1, replicas: vec![BrokerId(2)] },
            Command::FinishMove { topic: TopicId(1), partition: 1, revision: 1 },
            Command::ReassignPartition { name: "orders".into(), partition: 1, replicas: vec![BrokerId(3)] },
            Command::BeginRepair {
                topic: TopicId(1),
                partition: 0,
                revision: 0,
                broker: BrokerId(2),
                reason: "row 7".into(),
            },
            Command::AdvanceRepair {
                topic: TopicId(1),
                partition: 0,
                revision: 0,
                from: RepairStage::Waiting,
            },
            Command::DeferRepair { topic: TopicId(1), partition: 0, revision: 1 },
            Command::AllocateProducerId,
            Command::FixCoordinatorShards { shards: 4 },
            Command::DeleteTopic { name: "orders".into() },
            Command::RemoveBroker { id: BrokerId(2) },
        ]
    }

    #[test]
    fn commands_survive_storage() {
        for command in commands() {
            assert_eq!(Command::decode(&command.encode()), Ok(command));
        }
    }

    #[test]
    fn the_same_commands_give_the_same_bytes_of_state_however_often_it_is_stored() {
        let (mut direct, mut stored) = (State::default(), State::default());
        for command in commands() {
            direct.apply(command.clone()).expect("fits");
            stored = State::decode(&stored.encode()).expect("readable");
            stored.apply(command).expect("fits");
            assert_eq!(direct.encode(), stored.encode());
            assert_eq!(direct, stored);
        }
    }

    #[test]
    fn unreadable_bytes_are_refused() {
        assert!(matches!(Command::decode(&[0xff, 0x01]), Err(Error::Malformed(_))));
        assert!(matches!(Command::decode(&[]), Err(Error::Malformed(_))));
        assert!(matches!(State::decode(&[0xff]), Err(Error::Malformed(_))));
    }
}
