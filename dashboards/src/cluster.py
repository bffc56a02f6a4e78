"""The brokers as a cluster, and agreement among them."""

from grafana import RED, STATUS, YELLOW, Row, dashboard, falling, lines, queries, stat, steps, table, values
from performance import p99

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
        "Agreement",
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
            "Partitions of all topics, and the replicas that each broker holds.",
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
