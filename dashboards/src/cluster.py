"""The brokers as a cluster, and agreement among them."""

from grafana import (
    RED,
    STATUS,
    YELLOW,
    Row,
    dashboard,
    falling,
    lines,
    matrix,
    queries,
    stat,
    steps,
    table,
    values,
)
from performance import p99

# Every broker sees these of the whole cluster, so the largest number is right; the others each leader counts for itself.
SEEN_BY_ALL = 'streambus_cluster_partitions{$S,state=~"leaderless|offline|moving"}'
COUNTED_BY_LEADERS = 'streambus_cluster_partitions{$S,state=~"under_replicated|misplaced"}'


def replicated_within(quantile):
    """A quantile of the time that entries take to be on a follower's disk."""
    return (
        f"histogram_quantile({quantile}, sum by (le) (rate(streambus_replication_latency_seconds_bucket{{$S}}[$R])))"
    )


DASHBOARD = dashboard(
    "streambus-cluster",
    "StreamBus Cluster and Raft",
    "Brokers, their state and version, leadership, elections and replication.",
    Row(
        "Now",
        stat(
            "Cluster Size",
            "Brokers in the cluster, as the brokers see it.",
            "short",
            queries(("max(streambus_cluster_size{$S})", "brokers")),
        ),
        stat(
            "Control Group Leaders",
            "Brokers that lead the control group. Anything but 1 for longer than an election is wrong; choose one cluster.",
            "short",
            queries(("sum(streambus_cluster_leader{$S})", "leaders")),
            thresholds=falling((1, "green"), (2, RED)),
        ),
        stat(
            "Leaderless Raft Groups",
            "Raft groups that have no leader from the point of view of a broker: their partitions take no writes.",
            "short",
            queries(('sum(streambus_raft_groups{$S,role="leaderless"})', "leaderless")),
            thresholds=steps((1, RED)),
        ),
        stat(
            "Leaderless Partitions",
            "Partitions of the cluster that have no leader, so that they take no writes. PartitionsLeaderless fires after a "
            "minute.",
            "short",
            queries(
                (
                    'sum(max by (job, cluster) (streambus_cluster_partitions{$S,state="leaderless"}))',
                    "leaderless",
                )
            ),
            thresholds=steps((1, RED)),
        ),
        stat(
            "Under-replicated Partitions",
            "Partitions with a leader of which a replica lacks records or is not reached: the next failure may stop them. "
            "PartitionsUnderReplicated fires after 5 minutes.",
            "short",
            queries(('sum(streambus_cluster_partitions{$S,state="under_replicated"})', "under-replicated")),
            thresholds=steps((1, YELLOW)),
        ),
        stat(
            "Raft Term",
            "Term of the control group. It grows with every election.",
            "short",
            queries(("max(streambus_raft_term{$S})", "term")),
        ),
        stat(
            "Status",
            "State of each broker, as it reports it.",
            "none",
            queries(("streambus_broker_status{$S}", "{{instance}}")),
            mappings=values(STATUS),
            width=8,
        ),
    ),
    Row(
        "Brokers",
        table(
            "Versions",
            "Which build each broker runs.",
            "none",
            "max by (cluster, instance, version) (streambus_build_info{$S})",
            ["cluster", "instance", "version"],
        ),
        table(
            "Health Checks by Broker",
            "1 is ok, 0 is failing. /health of the broker says why.",
            "none",
            "min by (instance, check) (streambus_health_check{$S})",
            ["instance", "check"],
            thresholds=falling((1, "green")),
        ),
        lines(
            "Uptime",
            "Time since each broker started. A line that falls is a restart.",
            "s",
            queries(("streambus_broker_uptime_seconds{$S}", "{{instance}}")),
        ),
        lines(
            "Reachability",
            "1 while Prometheus can scrape the broker.",
            "short",
            queries(("up{$S}", "{{instance}}")),
            top=1,
        ),
    ),
    Row(
        "Replication",
        lines(
            "Partitions That Need Attention",
            "Leaderless: no writes. Offline: no majority of the replicas is reached either, so none can be elected. "
            "Under-replicated: a replica lacks records. Moving: replicas are on their way. Misplaced: led by another "
            "broker than the first of its replicas, until the next balancing.",
            "short",
            queries(
                (f"max by (state) ({SEEN_BY_ALL})", "{{state}}"),
                (f"sum by (state) ({COUNTED_BY_LEADERS})", "{{state}}"),
            ),
        ),
        matrix(
            "Peer Connections",
            "Whether the broker of the row reaches the broker of the column. A column of failures is a broker that is down; "
            "a single one is a broken way between two.",
            "none",
            "min by (instance, peer) (streambus_peer_connected{$S})",
            "instance",
            "peer",
            values({0: ("not reached", RED), 1: ("ok", "green")}),
        ),
        lines(
            "Peers Not Reached",
            "How many of the other brokers each broker does not reach.",
            "short",
            queries(("sum by (instance) (1 - streambus_peer_connected{$S})", "{{instance}}")),
            thresholds=steps((1, RED)),
        ),
        lines(
            "Replication Latency",
            "Time from the append of an entry on the leader until a follower has it on its disk. A batch waits for as many "
            "followers as make a majority, not for the slowest. ReplicationSlow fires at 1 s.",
            "s",
            queries(
                (replicated_within(0.5), "p50"),
                (replicated_within(0.95), "p95"),
                (replicated_within(0.99), "p99"),
            ),
            thresholds=steps((1, RED)),
        ),
        lines(
            "Replication Lag",
            "The most log entries that each broker lacks in any group, as the leaders of the groups see it. Above 1,000 a "
            "replica counts as lagging, and ReplicationLagHigh fires.",
            "short",
            queries(("max by (peer) (streambus_replication_lag_entries{$S})", "broker {{peer}}")),
            thresholds=steps((1_000, RED)),
        ),
        lines(
            "Leaders by Broker",
            "Raft groups that each broker leads. Leaderships return to the first replicas by themselves: a broker that "
            "stays without any does not keep up.",
            "short",
            queries(('sum by (instance) (streambus_raft_groups{$S,role="leader"})', "{{instance}}")),
            stacked=True,
        ),
        lines(
            "Partition Moves",
            "Partitions whose replicas finished their move to other brokers, in the last 10 minutes, by the broker that led "
            "them: after a drain, a reassignment or the replacement of a broker.",
            "short",
            queries(("sum by (instance) (increase(streambus_partition_moves_total{$S}[10m]))", "{{instance}}")),
        ),
        lines(
            "Replica Repairs",
            "Damaged replicas that got their records anew from the others, in the last hour, by the broker that led them. The "
            "disk of the broker that had them is about to fail: its log names them.",
            "short",
            queries(("sum by (instance) (increase(streambus_replica_repairs_total{$S}[1h]))", "{{instance}}")),
        ),
        lines(
            "Snapshots Installed",
            "Snapshots that each broker took over in the last 10 minutes, because what it lacked was no longer in the "
            "leader's log: new replicas, and those that were away for longer than records are kept.",
            "short",
            queries(
                ("sum by (instance) (increase(streambus_raft_snapshots_installed_total{$S}[10m]))", "{{instance}}")
            ),
        ),
    ),
    Row(
        "Agreement",
        lines(
            "Elections Won",
            "Times that each broker became the leader of a group in the last 10 minutes: after restarts and failures, and "
            "when leaderships are handed over.",
            "short",
            queries(("sum by (instance) (increase(streambus_raft_elections_total{$S}[10m]))", "{{instance}}")),
        ),
        lines(
            "Elections",
            "New terms of the control group in the last 10 minutes, as each broker saw them. Terms that change often "
            "point to a slow network, disk or processor.",
            "short",
            queries(("changes(streambus_raft_term{$S}[10m])", "{{instance}}")),
            thresholds=steps((3, RED)),
        ),
        lines(
            "Committed Entries of the Control Group",
            "Entries per second, by broker: changes to topics, brokers and their places.",
            "cps",
            queries(("deriv(streambus_raft_commit_index{$S}[$R])", "{{instance}}")),
        ),
        lines(
            "Raft Groups by Role",
            "How many groups each broker leads, follows, or sees without leader. There is one for each partition, one "
            "for control, and one for each coordinator shard.",
            "short",
            queries(("sum by (instance, role) (streambus_raft_groups{$S})", "{{instance}}: {{role}}")),
        ),
        lines(
            "Time to Replicate",
            "99th percentile of the phase in which a batch is forced to the disk and waits for other replicas.",
            "s",
            queries(
                (p99("streambus_produce_phase_seconds", matchers='$S,phase="replicate"'), "p99"), exemplars=True
            ),
        ),
        lines(
            "Partitions and Replicas",
            "Partitions of all topics, and replicas as each broker counts them.",
            "short",
            queries(
                ("max(streambus_partitions_total{$S})", "partitions"),
                ("streambus_replicas_total{$S}", "{{instance}} replicas"),
            ),
        ),
        lines(
            "Storage Failures",
            "Failed reads, writes and syncs, and checksums that did not match, in the last 5 minutes. Any needs a person.",
            "short",
            queries(
                (
                    "sum by (instance, kind) (increase(streambus_storage_errors_total{$S}[5m]))",
                    "{{instance}}: {{kind}}",
                )
            ),
            thresholds=steps((1, YELLOW), (10, RED)),
        ),
    ),
)
