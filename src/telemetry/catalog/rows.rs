//! The table itself.

use super::Family::{
    Broker, Cluster, Group, Message, Network, Performance, Process, Raft, Runtime, Storage, Telemetry, Topic,
};
use super::{
    DETAILED_PARTITIONS_MAX, DETAILED_REPLICAS_MAX, Family, GROUP_TOPICS_MAX, GROUPS_MAX, Kind, LAGS_MAX,
    PEERS_MAX, Row, TOPICS_MAX,
};

/// The specified bounds of the latency histograms: 1 ms to 5 s.
pub const LATENCY_BOUNDS: &[f64] = &[0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0];

/// The bounds of the phase histograms: 10 µs to 5 s, so that what the first latency bucket hides can be seen.
pub const PHASE_BOUNDS: &[f64] = &[
    0.000_01, 0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1,
    0.25, 0.5, 1.0, 2.5, 5.0,
];

/// The bounds that the semantic conventions advise for call durations.
pub const CALL_BOUNDS: &[f64] =
    &[0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];

/// Bounds for how many things were done at once.
pub const GROUP_BOUNDS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0];

/// Bounds for what consumers and their applications take part in: 1 ms to 5 min.
pub const CONSUMER_BOUNDS: &[f64] =
    &[0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0];

/// The label of the topic-labelled rows.
pub const TOPIC: &[&str] = &["topic"];

/// The labels of the rows with one series per partition.
pub const PARTITION: &[&str] = &["partition", "topic"];

const fn row(kind: Kind, otel: &'static str, prometheus: &'static str, unit: &'static str) -> Row {
    Row {
        otel,
        prometheus,
        kind,
        unit,
        attributes: &[],
        bounds: &[],
        help: "",
        recorded_in: "",
        moves: "",
        series: 1,
        family: Family::Broker,
    }
}

const fn counter(otel: &'static str, prometheus: &'static str, unit: &'static str) -> Row {
    row(Kind::Counter, otel, prometheus, unit)
}

const fn gauge(otel: &'static str, prometheus: &'static str, unit: &'static str) -> Row {
    row(Kind::Gauge, otel, prometheus, unit)
}

const fn up_down(otel: &'static str, prometheus: &'static str, unit: &'static str) -> Row {
    row(Kind::UpDown, otel, prometheus, unit)
}

const fn histogram(
    otel: &'static str,
    prometheus: &'static str,
    unit: &'static str,
    bounds: &'static [f64],
) -> Row {
    Row { bounds, ..row(Kind::Histogram, otel, prometheus, unit) }
}

impl Row {
    const fn labels(self, attributes: &'static [&'static str], series: usize) -> Row {
        Row { attributes, series, ..self }
    }

    const fn help(self, help: &'static str) -> Row {
        Row { help, ..self }
    }

    const fn moves(self, family: Family, recorded_in: &'static str, moves: &'static str) -> Row {
        Row { family, recorded_in, moves, ..self }
    }
}

macro_rules! rows {
    ($(#[$doc:meta])* $all:ident, $identifiers:ident; $($name:ident = $row:expr;)*) => {
        $(
            #[doc = concat!("The row `", stringify!($name), "`.")]
            pub const $name: Row = $row;
        )*

        $(#[$doc])*
        pub const $all: &[Row] = &[$($name),*];

        #[doc = concat!("The constant's identifier of each row, in the order of [`", stringify!($all), "`].")]
        pub const $identifiers: &[&str] = &[$(stringify!($name)),*];
    };
}

rows! {
    /// Every instrument.
    ROWS, IDENTIFIERS;

    BROKER_UPTIME = gauge("streambus.broker.uptime", "streambus_broker_uptime_seconds", "s")
        .help("Broker uptime in seconds.")
        .moves(Broker, "telemetry/broker.rs", "Grows with time since the metrics were created.");
    BROKER_STATUS = gauge("streambus.broker.status", "streambus_broker_status", "{status}")
        .help("Broker status (0=stopped, 1=starting, 2=running, 3=stopping).")
        .moves(Broker, "telemetry/broker.rs", "Changes when the broker finishes starting and when it begins to stop.");
    BROKER_CONNECTIONS = up_down("streambus.broker.connection.count", "streambus_broker_connections", "{connection}")
        .help("Number of active client connections.")
        .moves(Broker, "telemetry/broker.rs", "Grows when a client connects and shrinks when it disconnects.");
    BROKER_ACTIVE_REQUESTS = up_down("streambus.broker.request.active", "streambus_broker_active_requests", "{request}")
        .help("Number of active requests being processed.")
        .moves(Broker, "telemetry/broker.rs", "Grows when a call arrives and shrinks when its answer is complete.");
    HEALTH_CHECK = gauge("streambus.health.check", "streambus_health_check", "{check}")
        .labels(&["check"], 16)
        .help("Result of a health check (1=ok, 0=failing).")
        .moves(Broker, "telemetry/broker.rs", "Becomes 0 when the named check fails and 1 when it passes again.");
    BUILD_INFO = gauge("streambus.build.info", "streambus_build_info", "{build}")
        .labels(&["version"], 1)
        .help("Always 1; the labels say which build is running.")
        .moves(Broker, "telemetry/broker.rs", "Is 1 from the start; the label changes with an upgrade.");

    MESSAGES_PRODUCED = counter("streambus.messages.produced", "streambus_messages_produced_total", "{message}")
        .labels(TOPIC, TOPICS_MAX)
        .help("Total messages produced.")
        .moves(Message, "telemetry/topics.rs", "Grows by the records of each batch that this broker accepted from a client.");
    BYTES_PRODUCED = counter("streambus.produce.io", "streambus_bytes_produced_total", "By")
        .labels(TOPIC, TOPICS_MAX)
        .help("Total bytes produced.")
        .moves(Message, "telemetry/topics.rs", "Grows by the encoded size of each batch that this broker accepted from a client.");
    MESSAGES_CONSUMED = counter("streambus.messages.consumed", "streambus_messages_consumed_total", "{message}")
        .labels(TOPIC, TOPICS_MAX)
        .help("Total messages consumed.")
        .moves(Message, "telemetry/topics.rs", "Grows by the records of each batch that this broker handed to a consumer.");
    BYTES_CONSUMED = counter("streambus.consume.io", "streambus_bytes_consumed_total", "By")
        .labels(TOPIC, TOPICS_MAX)
        .help("Total bytes consumed.")
        .moves(Message, "telemetry/topics.rs", "Grows by the encoded size of each batch that this broker handed to a consumer.");
    MESSAGES_STORED = counter("streambus.messages.stored", "streambus_messages_stored_total", "{message}")
        .labels(TOPIC, TOPICS_MAX)
        .help("Total messages stored.")
        .moves(Message, "telemetry/topics.rs", "Grows by the records of each batch that was appended and committed on this broker.");
    BYTES_STORED = counter("streambus.store.io", "streambus_bytes_stored_total", "By")
        .labels(TOPIC, TOPICS_MAX)
        .help("Total bytes stored.")
        .moves(Message, "telemetry/topics.rs", "Grows by the encoded size of each batch that was appended and committed on this broker.");
    PRODUCE_REJECTIONS = counter("streambus.produce.rejections", "streambus_produce_rejections_total", "{batch}")
        .labels(&["code"], 32)
        .help("Total batches that were refused, by error code.")
        .moves(Message, "telemetry/produce.rs", "Grows by one when a batch is answered with an error.");
    CONSUME_REJECTIONS = counter("streambus.consume.rejections", "streambus_consume_rejections_total", "{fetch}")
        .labels(&["code"], 32)
        .help("Total fetches that were refused, by error code.")
        .moves(Message, "telemetry/consume.rs", "Grows by one when a fetch or subscription is answered with an error.");
    SUBSCRIPTIONS = up_down("streambus.subscription.active", "streambus_subscriptions_active", "{subscription}")
        .help("Number of open subscription streams.")
        .moves(Message, "telemetry/consume.rs", "Grows when a subscription stream opens and shrinks when it ends.");
    FETCHES_WAITING = up_down("streambus.fetch.waiting", "streambus_fetches_waiting", "{fetch}")
        .help("Number of fetches that wait for records.")
        .moves(Message, "telemetry/consume.rs", "Grows when a consumer reaches the end of a partition and waits.");
    PRODUCE_BUFFER = up_down("streambus.produce.buffer.usage", "streambus_produce_buffer_bytes", "By")
        .help("Bytes of batches that wait to be written.")
        .moves(Message, "telemetry/produce.rs", "Grows when a batch is admitted and shrinks when it was answered.");
    PRODUCE_BUFFER_LIMIT = up_down("streambus.produce.buffer.limit", "streambus_produce_buffer_limit_bytes", "By")
        .help("Bytes of waiting batches above which more are refused.")
        .moves(Message, "telemetry/produce.rs", "Is set by the configuration.");

    TOPICS = up_down("streambus.topic.count", "streambus_topics_total", "{topic}")
        .help("Total number of topics.")
        .moves(Topic, "telemetry/cluster.rs", "Changes when a topic is created or deleted.");
    PARTITIONS = up_down("streambus.partition.count", "streambus_partitions_total", "{partition}")
        .help("Total number of partitions.")
        .moves(Topic, "telemetry/cluster.rs", "Changes when a topic is created, deleted or given more partitions.");
    REPLICAS = up_down("streambus.replica.count", "streambus_replicas_total", "{replica}")
        .help("Total number of replicas.")
        .moves(Topic, "telemetry/cluster.rs", "Changes when a replica is placed on this broker or taken from it.");

    PRODUCE_LATENCY = histogram("streambus.produce.duration", "streambus_produce_latency_seconds", "s", LATENCY_BOUNDS)
        .help("Produce request latency distribution.")
        .moves(Performance, "telemetry/produce.rs", "Records one value when a batch is acknowledged.");
    PRODUCE_PHASE = histogram("streambus.produce.phase.duration", "streambus_produce_phase_seconds", "s", PHASE_BOUNDS)
        .labels(&["phase"], 5)
        .help("Where produce latency was spent; the sums of the phases add up to it.")
        .moves(Performance, "telemetry/produce.rs", "Records one value per phase when a batch is acknowledged.");
    CONSUME_LATENCY = histogram("streambus.consume.duration", "streambus_consume_latency_seconds", "s", LATENCY_BOUNDS)
        .help("Consume request latency distribution, without the time spent waiting for records to arrive.")
        .moves(Performance, "telemetry/consume.rs", "Records one value when records are handed to a consumer.");
    CONSUME_PHASE = histogram("streambus.consume.phase.duration", "streambus_consume_phase_seconds", "s", PHASE_BOUNDS)
        .labels(&["phase"], 3)
        .help("Where a delivery's time was spent; read and respond add up to consume latency.")
        .moves(Performance, "telemetry/consume.rs", "Records one value per phase when records are handed to a consumer.");
    APPEND_GROUP = histogram("streambus.append.group.size", "streambus_append_group_size", "{batch}", GROUP_BOUNDS)
        .help("Batches that shared one log entry.")
        .moves(Performance, "telemetry/produce.rs", "Records one value when an appender proposes an entry.");

    STORAGE_USED = up_down("streambus.storage.usage", "streambus_storage_used_bytes", "By")
        .help("Storage space used in bytes.")
        .moves(Storage, "telemetry/storage.rs", "Grows with written data and shrinks with retention and deletion.");
    STORAGE_AVAILABLE = gauge("streambus.storage.available", "streambus_storage_available_bytes", "By")
        .help("Storage space available in bytes, without the reserve.")
        .moves(Storage, "telemetry/storage.rs", "Follows the free space of the file system of the data directory.");
    STORAGE_RESERVE = gauge("streambus.storage.reserve", "streambus_storage_reserve_bytes", "By")
        .help("Free space below which writes are refused.")
        .moves(Storage, "telemetry/storage.rs", "Is set by the configuration.");
    STORAGE_WRITABLE = gauge("streambus.storage.writable", "streambus_storage_writable", "{state}")
        .help("Whether the store takes writes (1) or refuses them (0) because free space is below the reserve.")
        .moves(Storage, "telemetry/storage.rs", "Becomes 0 when free space falls below the reserve and 1 when it recovers.");
    SEGMENTS = up_down("streambus.segment.count", "streambus_segments_total", "{segment}")
        .help("Total number of log segments.")
        .moves(Storage, "telemetry/storage.rs", "Grows when buffered writes are flushed to a table and shrinks with compaction and retention.");
    COMPACTIONS = counter("streambus.storage.compactions", "streambus_compactions_total", "{compaction}")
        .help("Total number of compactions performed.")
        .moves(Storage, "telemetry/storage.rs", "Grows by one when a compaction of tables ends.");
    STORAGE_WRITTEN = counter("streambus.storage.written", "streambus_storage_written_bytes_total", "By")
        .help("Total bytes that the committer wrote to the journal.")
        .moves(Storage, "telemetry/storage.rs", "Grows with every group commit.");
    STORAGE_FSYNC = histogram("streambus.storage.fsync.duration", "streambus_storage_fsync_seconds", "s", PHASE_BOUNDS)
        .help("Time that a forced write to the disk took.")
        .moves(Storage, "telemetry/storage.rs", "Records one value per fsync.");
    STORAGE_COMMIT_GROUP = histogram("streambus.storage.commit.size", "streambus_storage_commit_group_size", "{write}", GROUP_BOUNDS)
        .help("Writes that shared one commit.")
        .moves(Storage, "telemetry/storage.rs", "Records one value per group commit.");
    STORAGE_QUEUE = up_down("streambus.storage.queue.usage", "streambus_storage_queue_bytes", "By")
        .help("Bytes that wait for the committer.")
        .moves(Storage, "telemetry/storage.rs", "Grows when a write is handed over and shrinks when it is committed.");
    STORAGE_ERRORS = counter("streambus.storage.errors", "streambus_storage_errors_total", "{error}")
        .labels(&["kind"], 4)
        .help("Total storage failures, by kind.")
        .moves(Storage, "telemetry/storage.rs", "Grows by one when a read, write or fsync fails or a checksum does not match.");
    RETENTION_MESSAGES = counter("streambus.retention.messages", "streambus_retention_deleted_messages_total", "{message}")
        .labels(TOPIC, TOPICS_MAX)
        .help("Total messages deleted by retention.")
        .moves(Storage, "telemetry/topics.rs", "Grows when the log start moves.");
    RETENTION_BYTES = counter("streambus.retention.io", "streambus_retention_deleted_bytes_total", "By")
        .labels(TOPIC, TOPICS_MAX)
        .help("Total bytes of messages deleted by retention.")
        .moves(Storage, "telemetry/topics.rs", "Grows when the log start moves.");

    NETWORK_IN = counter("streambus.network.io.receive", "streambus_network_bytes_in_total", "By")
        .help("Total bytes received from network.")
        .moves(Network, "telemetry/network.rs", "Grows with every read from a client socket.");
    NETWORK_OUT = counter("streambus.network.io.transmit", "streambus_network_bytes_out_total", "By")
        .help("Total bytes sent to network.")
        .moves(Network, "telemetry/network.rs", "Grows with every write to a client socket.");
    NETWORK_REQUESTS = counter("streambus.network.requests", "streambus_network_requests_total", "{request}")
        .labels(&["outcome", "protocol"], 6)
        .help("Total network requests, by protocol and by who is to blame for a failure.")
        .moves(Network, "telemetry/network.rs", "Grows by one when a call or an HTTP request ends.");
    NETWORK_ERRORS = counter("streambus.network.errors", "streambus_network_errors_total", "{error}")
        .labels(&["kind"], 9)
        .help("Total network errors, by kind.")
        .moves(Network, "telemetry/network.rs", "Grows by one when a connection is refused, broken or not understood.");
    NETWORK_CONNECTIONS = counter("streambus.network.connections", "streambus_network_connections_total", "{connection}")
        .help("Total client connections accepted.")
        .moves(Network, "telemetry/network.rs", "Grows by one when a client connects.");
    RPC_DURATION = histogram("rpc.server.call.duration", "rpc_server_call_duration_seconds", "s", CALL_BOUNDS)
        .labels(&["error.type", "rpc.method", "rpc.status_code", "rpc.system.name"], 512)
        .help("Duration of unary calls, by method and status.")
        .moves(Network, "telemetry/network.rs", "Records one value when a unary call ends.");

    CLUSTER_SIZE = gauge("streambus.cluster.size", "streambus_cluster_size", "{broker}")
        .help("Number of brokers in cluster.")
        .moves(Cluster, "telemetry/cluster.rs", "Changes when a broker joins or is removed.");
    CLUSTER_LEADER = gauge("streambus.cluster.leader", "streambus_cluster_leader", "{leader}")
        .help("1 if this broker is leader, 0 otherwise.")
        .moves(Cluster, "telemetry/cluster.rs", "Changes when this broker gains or loses the lead of the control group.");

    CLUSTER_PARTITIONS = up_down("streambus.cluster.partition.count", "streambus_cluster_partitions", "{partition}")
        .labels(&["state"], 5)
        .help("Number of partitions in states that call for attention, as this broker sees them: leaderless, offline and moving of the whole cluster, under_replicated and misplaced of those that it leads. Those count as moving, too, whose replicas are to leave a broker that is drained or was replaced and wait.")
        .moves(Cluster, "telemetry/cluster.rs", "Changes when brokers are lost or come back, when leaders change, and while replicas move.");
    PEER_CONNECTED = gauge("streambus.peer.connected", "streambus_peer_connected", "{peer}")
        .labels(&["peer"], PEERS_MAX)
        .help("Whether this broker reaches another broker (1) or not (0).")
        .moves(Cluster, "telemetry/cluster.rs", "Becomes 0 when the connection to a broker breaks and 1 when it is there again.");
    REPLICATION_LATENCY = histogram("streambus.replication.duration", "streambus_replication_latency_seconds", "s", LATENCY_BOUNDS)
        .help("Replication latency distribution.")
        .moves(Cluster, "telemetry/cluster.rs", "Records one value per message with entries that a follower has on its disk: the time since its last entry was appended on the leader.");
    REPLICATION_LAG = up_down("streambus.replication.lag", "streambus_replication_lag_entries", "{entry}")
        .labels(&["peer"], PEERS_MAX)
        .help("Most log entries that a broker lacks in any group that this broker leads.")
        .moves(Cluster, "telemetry/cluster.rs", "Grows while a follower does not keep up and falls to 0 when it has everything.");
    PARTITION_MOVES = counter("streambus.partition.moves", "streambus_partition_moves_total", "{move}")
        .help("Total partitions whose replicas were moved.")
        .moves(Cluster, "telemetry/cluster.rs", "Grows by one on the leader when the new replicas of a partition are there and the old ones are gone.");
    REPLICA_REPAIRS = counter("streambus.replica.repairs", "streambus_replica_repairs_total", "{repair}")
        .help("Total damaged replicas that got their records anew from the others.")
        .moves(Cluster, "telemetry/cluster.rs", "Grows by one on the leader when a replica that was damaged has everything again.");

    RAFT_TERM = gauge("streambus.raft.term", "streambus_raft_term", "{term}")
        .help("Current Raft term.")
        .moves(Raft, "telemetry/cluster.rs", "Grows with every election of the control group.");
    RAFT_COMMIT_INDEX = gauge("streambus.raft.commit_index", "streambus_raft_commit_index", "{index}")
        .help("Current Raft commit index.")
        .moves(Raft, "telemetry/cluster.rs", "Grows with every committed entry of the control group.");
    RAFT_ELECTIONS = counter("streambus.raft.elections", "streambus_raft_elections_total", "{election}")
        .help("Total times that this broker became the leader of a group.")
        .moves(Raft, "telemetry/cluster.rs", "Grows by one when an election makes this broker the leader of a group.");
    RAFT_SNAPSHOTS = counter("streambus.raft.snapshots.installed", "streambus_raft_snapshots_installed_total", "{snapshot}")
        .help("Total snapshots that this broker took over from leaders.")
        .moves(Raft, "telemetry/cluster.rs", "Grows by one when a replica lags behind the start of its leader's log.");
    RAFT_GROUPS = up_down("streambus.raft.group.count", "streambus_raft_groups", "{group}")
        .labels(&["role"], 3)
        .help("Number of Raft groups on this broker, by its role in them.")
        .moves(Raft, "telemetry/cluster.rs", "Changes when a partition is placed here or changes its leader.");

    GROUPS = up_down("streambus.group.count", "streambus_consumer_groups_total", "{group}")
        .help("Total number of consumer groups.")
        .moves(Group, "telemetry/groups/levels.rs", "Grows when a group is first used and shrinks when it is deleted or expires; each group counts on the broker that coordinates it.");
    GROUP_MEMBERS = up_down("streambus.group.member.count", "streambus_consumer_group_members_total", "{member}")
        .help("Total number of consumer group members.")
        .moves(Group, "telemetry/groups/levels.rs", "Grows when a consumer joins a group and shrinks when it leaves or is removed from it.");
    GROUP_LAG = up_down("streambus.group.lag.size", "streambus_consumer_group_lag", "{message}")
        .labels(&["group", "partition", "topic"], LAGS_MAX)
        .help("Consumer group lag in messages: how many the group has still to finish. Beyond the budget the largest lags are kept apart and the others are summed.")
        .moves(Group, "telemetry/groups/levels.rs", "Grows when records are produced and shrinks when the group commits or acknowledges them.");
    GROUP_LAG_TIME = gauge("streambus.group.lag.time", "streambus_consumer_group_lag_seconds", "s")
        .labels(&["group", "partition", "topic"], LAGS_MAX)
        .help("Consumer group lag in time: the age of the oldest message that the group has still to finish, 0 if there is none. Beyond the budget the overflow series is the greatest of the others.")
        .moves(Group, "telemetry/groups/levels.rs", "Grows with time while a message waits and falls when the group commits or acknowledges it.");
    GROUP_LEASED = up_down("streambus.group.leased.count", "streambus_consumer_group_leased_records", "{message}")
        .labels(&["group"], GROUPS_MAX)
        .help("Number of messages that members of a share group hold a lease on.")
        .moves(Group, "telemetry/groups/levels.rs", "Grows when messages are delivered and shrinks when they are acknowledged or their lease expires.");
    GROUP_COMMITS = counter("streambus.group.commits", "streambus_consumer_group_commits_total", "{offset}")
        .labels(&["outcome"], 4)
        .help("Total offsets that members asked to commit, by outcome.")
        .moves(Group, "telemetry/groups/mod.rs", "Grows by one for each offset of a commit when it is answered.");
    COMMIT_LATENCY = histogram("streambus.commit.duration", "streambus_commit_latency_seconds", "s", LATENCY_BOUNDS)
        .help("Commit latency distribution.")
        .moves(Group, "telemetry/groups/mod.rs", "Records one value, from receipt to answer, when a commit request is answered.");
    GROUP_REBALANCES = counter("streambus.group.rebalances", "streambus_consumer_group_rebalances_total", "{rebalance}")
        .labels(&["cause"], 7)
        .help("Total changes of who should have which partitions, by cause.")
        .moves(Group, "telemetry/groups/mod.rs", "Grows by one when a group's assignment is computed anew.");
    GROUP_REBALANCE_TIME = histogram("streambus.group.rebalance.duration", "streambus_consumer_group_rebalance_seconds", "s", CONSUMER_BOUNDS)
        .help("Time from a change of a group until every member had what it should have.")
        .moves(Group, "telemetry/groups/mod.rs", "Records one value when the last member has what it should have.");
    GROUP_MISSED = counter("streambus.group.messages.missed", "streambus_consumer_group_missed_messages_total", "{message}")
        .labels(&["group", "topic"], GROUP_TOPICS_MAX)
        .help("Total messages that were deleted before the group read them.")
        .moves(Group, "telemetry/groups/series.rs", "Grows when a group's position is below the log start and is moved up to it.");
    GROUP_REDELIVERIES = counter("streambus.group.messages.redelivered", "streambus_consumer_group_redeliveries_total", "{message}")
        .labels(&["group", "topic"], GROUP_TOPICS_MAX)
        .help("Total messages that a share group delivered again.")
        .moves(Group, "telemetry/groups/series.rs", "Grows when a message is delivered that was delivered before.");
    GROUP_DEAD_LETTERS = counter("streambus.group.messages.dead_lettered", "streambus_consumer_group_dead_letters_total", "{message}")
        .labels(&["group", "topic"], GROUP_TOPICS_MAX)
        .help("Total messages that a share group gave up on.")
        .moves(Group, "telemetry/groups/series.rs", "Grows when a message is rejected or was delivered as often as allowed.");
    GROUP_ACKNOWLEDGEMENTS = counter("streambus.group.acknowledgements", "streambus_consumer_group_acknowledgements_total", "{message}")
        .labels(&["group", "kind"], 5 * GROUPS_MAX)
        .help("Total messages of share groups whose lease was ended or extended, by how.")
        .moves(Group, "telemetry/groups/series.rs", "Grows by the messages that an acknowledgement names, or whose lease expires.");
    GROUP_DELIVERY = histogram("streambus.group.delivery.duration", "streambus_consumer_group_delivery_seconds", "s", CONSUMER_BOUNDS)
        .labels(&["group", "stage"], 2 * GROUPS_MAX)
        .help("Time from a message's append until it was delivered to the group, and until it was committed or acknowledged.")
        .moves(Group, "telemetry/groups/series.rs", "Records one value per delivered batch (stage delivered), and one per committed offset or accepted range (stage acknowledged), whatever the number of messages.");

    PROCESS_MEMORY = up_down("process.memory.usage", "process_resident_memory_bytes", "By")
        .help("Resident memory size in bytes.")
        .moves(Process, "telemetry/process.rs", "Follows what the operating system reports.");
    PROCESS_VIRTUAL = up_down("process.memory.virtual", "process_virtual_memory_bytes", "By")
        .help("Virtual memory size in bytes.")
        .moves(Process, "telemetry/process.rs", "Follows what the operating system reports.");
    PROCESS_CPU = counter("process.cpu.time", "process_cpu_seconds_total", "s")
        .help("Total user and system CPU time spent in seconds.")
        .moves(Process, "telemetry/process.rs", "Grows while the process computes.");
    PROCESS_FDS = up_down("process.unix.file_descriptor.count", "process_open_fds", "{file_descriptor}")
        .help("Number of open file descriptors.")
        .moves(Process, "telemetry/process.rs", "Grows with connections and open files.");
    PROCESS_FDS_MAX = gauge("streambus.process.file_descriptor.limit", "process_max_fds", "{file_descriptor}")
        .help("Maximum number of open file descriptors.")
        .moves(Process, "telemetry/process.rs", "Is set by the environment of the process.");
    PROCESS_THREADS = up_down("process.thread.count", "process_threads", "{thread}")
        .help("Number of operating system threads.")
        .moves(Process, "telemetry/process.rs", "Changes when a thread starts or ends.");
    PROCESS_START = gauge("streambus.process.start_time", "process_start_time_seconds", "s")
        .help("Start time of the process since unix epoch in seconds.")
        .moves(Process, "telemetry/process.rs", "Changes with a restart.");

    RUNTIME_WORKERS = gauge("streambus.runtime.worker.count", "streambus_runtime_workers", "{thread}")
        .help("Number of worker threads of the runtime.")
        .moves(Runtime, "telemetry/runtime.rs", "Is set by the configuration.");
    RUNTIME_TASKS = up_down("streambus.runtime.task.count", "streambus_runtime_tasks", "{task}")
        .help("Number of tasks alive in the runtime.")
        .moves(Runtime, "telemetry/runtime.rs", "Grows with connections, calls and background work.");
    RUNTIME_QUEUE = up_down("streambus.runtime.queue.depth", "streambus_runtime_global_queue_depth", "{task}")
        .help("Number of tasks in the runtime's global queue.")
        .moves(Runtime, "telemetry/runtime.rs", "Grows when workers cannot keep up.");
    RUNTIME_BUSY = counter("streambus.runtime.busy", "streambus_runtime_busy_seconds_total", "s")
        .help("Total time that the worker threads were busy.")
        .moves(Runtime, "telemetry/runtime.rs", "Grows while workers poll tasks; divide its rate by the number of workers.");

    TELEMETRY_EXPORTED = counter("streambus.telemetry.exported", "streambus_telemetry_exported_total", "{item}")
        .labels(&["signal"], 3)
        .help("Total spans, log records and metric collections that the collector took.")
        .moves(Telemetry, "telemetry/exporting.rs", "Grows when an export succeeds.");
    TELEMETRY_DROPPED = counter("streambus.telemetry.dropped", "streambus_telemetry_dropped_total", "{item}")
        .labels(&["reason", "signal"], 6)
        .help("Total spans, log records and metric collections that were lost, by reason.")
        .moves(Telemetry, "telemetry/exporting.rs", "Grows when a queue is full or an export fails for good.");
    TELEMETRY_FAILURES = counter("streambus.telemetry.export.failures", "streambus_telemetry_export_failures_total", "{export}")
        .labels(&["signal"], 3)
        .help("Total exports that failed.")
        .moves(Telemetry, "telemetry/exporting.rs", "Grows by one when the collector cannot be reached or refuses.");
    TELEMETRY_AGE = gauge("streambus.telemetry.export.age", "streambus_telemetry_last_export_age_seconds", "s")
        .labels(&["signal"], 3)
        .help("Time since the last successful export, or since the start if there was none; absent while export is off.")
        .moves(Telemetry, "telemetry/exporting.rs", "Grows with time and falls to 0 with every successful export.");
    TELEMETRY_QUEUE = up_down("streambus.telemetry.queue.usage", "streambus_telemetry_queue_items", "{item}")
        .labels(&["signal"], 2)
        .help("Number of spans and log records that wait for export.")
        .moves(Telemetry, "telemetry/exporting.rs", "Grows with sampled spans and logs and shrinks with every export.");
    TELEMETRY_SCRAPE = histogram("streambus.telemetry.scrape.duration", "streambus_telemetry_scrape_seconds", "s", PHASE_BOUNDS)
        .help("Time that collecting and encoding metrics for a scrape took.")
        .moves(Telemetry, "telemetry/exporting.rs", "Records one value per scrape, visible at the next.");
    TELEMETRY_SERIES = gauge("streambus.telemetry.series", "streambus_telemetry_series", "{series}")
        .help("Number of samples in the last scrape.")
        .moves(Telemetry, "telemetry/exporting.rs", "Changes with the number of topics and methods in use.");
    TELEMETRY_OVERFLOW = gauge("streambus.telemetry.overflow", "streambus_telemetry_overflowing_metrics", "{metric}")
        .help("Number of metrics in the last scrape that exceeded their series budget.")
        .moves(Telemetry, "telemetry/exporting.rs", "Leaves 0 when there are more topics than the budget allows.");
    TELEMETRY_PANICS = counter("streambus.telemetry.observer.panics", "streambus_telemetry_observer_panics_total", "{panic}")
        .help("Total panics caught while reading a level.")
        .moves(Telemetry, "telemetry/exporting.rs", "Grows by one when a registered observer panics; always a defect.");
    LOG_EVENTS = counter("streambus.log.events", "streambus_log_events_total", "{event}")
        .labels(&["level"], 2)
        .help("Total log events, by level.")
        .moves(Telemetry, "telemetry/exporting.rs", "Grows by one when a warning or an error is logged.");
    LOG_LINES_DROPPED = counter("streambus.log.lines.dropped", "streambus_log_lines_dropped_total", "{line}")
        .help("Total log lines that were lost because standard error was not read in time.")
        .moves(Telemetry, "telemetry/exporting.rs", "Grows by one per line while whoever reads standard error, a terminal or a log collector, is stopped and 1 MiB of lines wait already.");
    TRACES_LIMITED = counter("streambus.telemetry.trace.limited", "streambus_telemetry_traces_limited_total", "{request}")
        .help("Total requests that their share chose to be traced and the limit per second left out.")
        .moves(Telemetry, "telemetry/exporting.rs", "Grows when a share below 1 chooses more requests than telemetry.trace.max_per_second in a second.");
    CONTROL_OVERRIDES = up_down("streambus.control.override.count", "streambus_control_overrides", "{override}")
        .labels(&["kind"], 2)
        .help("Number of settings of telemetry that are changed at run time for a while, by kind.")
        .moves(Telemetry, "telemetry/control.rs", "Grows when a log filter or a share of traces is changed at run time and shrinks when the change is cleared or expires.");
}

rows! {
    /// What `/metrics/detailed` shows of each partition when it is asked. These are read for the asker and are no
    /// instruments: neither `/metrics` nor OTLP has them.
    DETAILED, DETAILED_IDENTIFIERS;

    PARTITION_LOG_START = gauge("streambus.partition.log_start", "streambus_partition_log_start_offset", "{offset}")
        .labels(PARTITION, DETAILED_PARTITIONS_MAX)
        .help("Offset of the partition's oldest retained record, as this broker knows it.")
        .moves(Topic, "telemetry/detailed.rs", "Grows when records are deleted, by retention or on demand.");
    PARTITION_HIGH_WATERMARK = gauge("streambus.partition.high_watermark", "streambus_partition_high_watermark_offset", "{offset}")
        .labels(PARTITION, DETAILED_PARTITIONS_MAX)
        .help("Offset after the partition's last committed record, as this broker knows it.")
        .moves(Topic, "telemetry/detailed.rs", "Grows with every committed record.");
    PARTITION_SIZE = up_down("streambus.partition.size", "streambus_partition_size_bytes", "By")
        .labels(PARTITION, DETAILED_PARTITIONS_MAX)
        .help("Bytes of the partition's retained batches in the replica on this broker.")
        .moves(Topic, "telemetry/detailed.rs", "Grows by the encoded size of each batch and shrinks when records are deleted.");
    PARTITION_LEADER = gauge("streambus.partition.leader", "streambus_partition_leader", "{leader}")
        .labels(PARTITION, DETAILED_PARTITIONS_MAX)
        .help("1 if this broker leads the partition, 0 if its replica follows or waits for a leader.")
        .moves(Topic, "telemetry/detailed.rs", "Changes with elections and when a leadership is handed over.");
    PARTITION_TERM = gauge("streambus.partition.term", "streambus_partition_raft_term", "{term}")
        .labels(PARTITION, DETAILED_PARTITIONS_MAX)
        .help("Newest Raft term of the partition that this broker knows of.")
        .moves(Topic, "telemetry/detailed.rs", "Grows with every election in the partition.");
    REPLICA_LAG = gauge("streambus.replica.lag", "streambus_replica_lag_entries", "{entry}")
        .labels(&["partition", "replica", "topic"], DETAILED_PARTITIONS_MAX * DETAILED_REPLICAS_MAX)
        .help("Committed log entries of the partition that a follower, named by its broker's number, is not known to have. Only the leader shows it.")
        .moves(Topic, "telemetry/detailed.rs", "Grows while a follower is away or slow and falls to 0 when it has caught up.");
}
