"""How the brokers are, on one screen: the seven specified panels first, then what says that something is wrong."""

from grafana import (
    RED,
    STATUS,
    YELLOW,
    Row,
    dashboard,
    detail,
    falling,
    gauge,
    linked,
    lines,
    queries,
    stat,
    steps,
    table,
    values,
)

PERFORMANCE = detail("streambus-performance", "Performance")
CAPACITY = detail("streambus-capacity", "Capacity")
CLUSTER = detail("streambus-cluster", "Cluster and Raft")
GROUPS = detail("streambus-groups", "Consumer groups")
TELEMETRY = detail("streambus-telemetry", "Telemetry health")
TOPIC = detail("streambus-topic", "Topic ${__field.labels.topic}", topic="${__field.labels.topic}")
ALL_TOPICS = detail("streambus-topic", "Topics")
GROUP = detail("streambus-groups", "Group ${__field.labels.group}", group="${__field.labels.group}")

DASHBOARD = dashboard(
    "streambus-overview",
    "StreamBus Overview",
    "Traffic, latency, state and storage of the brokers, and what is wrong with them.",
    linked(
        lines(
            "Message Throughput",
            "Messages that the brokers accepted from producers and handed to consumers, per second. With several "
            "groups on a topic, more is consumed than produced.",
            "cps",
            queries(
                ("sum(rate(streambus_messages_produced_total{$S}[$R]))", "produced"),
                ("sum(rate(streambus_messages_consumed_total{$S}[$R]))", "consumed"),
            ),
        ),
        ALL_TOPICS,
        PERFORMANCE,
    ),
    linked(
        lines(
            "Byte Throughput",
            "Encoded size of the batches that were accepted from producers and handed to consumers, per second.",
            "Bps",
            queries(
                ("sum(rate(streambus_bytes_produced_total{$S}[$R]))", "produced"),
                ("sum(rate(streambus_bytes_consumed_total{$S}[$R]))", "consumed"),
            ),
        ),
        ALL_TOPICS,
        CAPACITY,
    ),
    linked(
        gauge(
            "P99 Produce Latency",
            "99 of 100 batches were acknowledged within this time. Above 100 ms for 5 minutes, HighProduceLatency fires.",
            "s",
            queries(
                (
                    "histogram_quantile(0.99, sum by (le) (rate(streambus_produce_latency_seconds_bucket{$S}[$R])))",
                    "p99",
                )
            ),
            steps((0.05, YELLOW), (0.1, RED)),
            0.5,
        ),
        PERFORMANCE,
    ),
    linked(
        gauge(
            "P99 Consume Latency",
            "99 of 100 deliveries were read and handed over within this time, without the wait for records to arrive.",
            "s",
            queries(
                (
                    "histogram_quantile(0.99, sum by (le) (rate(streambus_consume_latency_seconds_bucket{$S}[$R])))",
                    "p99",
                )
            ),
            steps((0.05, YELLOW), (0.1, RED)),
            0.5,
        ),
        PERFORMANCE,
    ),
    linked(
        stat(
            "Broker Status",
            "State of each broker as it reports it. A broker that cannot be scraped is missing here: see Reachable "
            "brokers.",
            "none",
            queries(("streambus_broker_status{$S}", "{{instance}}")),
            mappings=values(STATUS),
            width=6,
            height=8,
        ),
        CLUSTER,
    ),
    linked(
        lines(
            "Broker Activity",
            "Open client connections, and calls that are being answered at this moment.",
            "short",
            queries(
                ("sum(streambus_broker_connections{$S})", "connections"),
                ("sum(streambus_broker_active_requests{$S})", "active requests"),
            ),
            width=6,
        ),
        PERFORMANCE,
    ),
    linked(
        lines(
            "Storage",
            "Space that the brokers' data takes, and what is left for it: the free space of the file system less the "
            "reserve. At 80 % used HighStorageUsage fires.",
            "bytes",
            queries(
                ("sum(streambus_storage_used_bytes{$S})", "used"),
                ("sum(streambus_storage_available_bytes{$S})", "available"),
            ),
        ),
        CAPACITY,
    ),
    Row(
        "What is wrong",
        linked(
            stat(
                "Reachable brokers",
                "Share of the scraped brokers that answer. Below 100 %, BrokerDown fires for those that do not.",
                "percentunit",
                queries(("avg(up{$S})", "reachable")),
                thresholds=falling((0.99, YELLOW), (1, "green")),
                width=4,
                height=8,
            ),
            CLUSTER,
        ),
        linked(
            stat(
                "Health Checks",
                "The worst result of each check among the brokers. /health of a broker says why it fails.",
                "none",
                queries(("min by (check) (streambus_health_check{$S})", "{{check}}")),
                mappings=values({0: ("failing", RED), 1: ("ok", "green")}),
                width=4,
                height=8,
            ),
            CLUSTER,
        ),
        linked(
            stat(
                "Partitions in Trouble",
                "Leaderless ones take no writes. Under-replicated ones work, and may stop with the next failure. "
                "PartitionsLeaderless fires after a minute, PartitionsUnderReplicated after five.",
                "short",
                queries(
                    (
                        'sum(max by (job, cluster) (streambus_cluster_partitions{$S,state="leaderless"}))',
                        "leaderless",
                    ),
                    ('sum(streambus_cluster_partitions{$S,state="under_replicated"})', "under-replicated"),
                ),
                thresholds=steps((1, RED)),
                width=4,
                height=8,
            ),
            CLUSTER,
        ),
        linked(
            lines(
                "Refusals",
                "Batches and fetches that were answered with an error, per second, by error code. Codes such as "
                "unknown_topic are the client's mistake; busy, disk_full, not_ready and storage are the broker's.",
                "cps",
                queries(
                    ("sum by (code) (rate(streambus_produce_rejections_total{$S}[$R]))", "produce: {{code}}"),
                    ("sum by (code) (rate(streambus_consume_rejections_total{$S}[$R]))", "consume: {{code}}"),
                ),
            ),
            PERFORMANCE,
        ),
        linked(
            table(
                "Largest Consumer Lags",
                "The ten groups and topics that are furthest behind, in messages. HighConsumerLag fires above 10,000 "
                "in one partition.",
                "short",
                "topk(10, sum by (group, topic) (streambus_consumer_group_lag{$S}))",
                ["group", "topic"],
                thresholds=steps((1_000, YELLOW), (10_000, RED)),
                links=[detail("streambus-groups", "Group", group="${__data.fields.group}")],
            ),
            GROUPS,
        ),
        linked(
            lines(
                "Network Errors",
                "Connections that were refused, broken or not understood, per second. At 10 HighNetworkErrors fires.",
                "cps",
                queries(("sum by (kind) (rate(streambus_network_errors_total{$S}[$R]))", "{{kind}}")),
                thresholds=steps((10, RED)),
            ),
            PERFORMANCE,
        ),
    ),
    Row(
        "Where it comes from",
        lines(
            "Produced by Topic",
            "Messages per second of the ten topics that are written most. A click leads to the topic.",
            "cps",
            queries(
                ("topk(10, sum by (topic) (rate(streambus_messages_produced_total{$S}[$R])))", "{{topic}}"),
            ),
            links=[TOPIC],
        ),
        linked(
            lines(
                "Oldest Unread Message by Group",
                "Age of the oldest message that a group has still to finish; 0 when it has none. A click leads to the "
                "group.",
                "s",
                queries(
                    ("topk(10, max by (group) (streambus_consumer_group_lag_seconds{$S}))", "{{group}}"),
                ),
                links=[GROUP],
            ),
            GROUPS,
            TELEMETRY,
        ),
    ),
)
