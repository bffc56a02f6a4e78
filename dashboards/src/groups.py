"""Consumer groups and share groups: how far behind, how fast, how stable."""

from grafana import (
    GROUP_VARIABLE,
    RED,
    TOPIC_VARIABLE,
    YELLOW,
    Row,
    dashboard,
    detail,
    lines,
    queries,
    stat,
    steps,
    table,
)
from performance import p99, quantiles

LAG = '{$S,group=~"$group",topic=~"$topic"}'
OF_GROUP = '{$S,group=~"$group"}'
TOPIC = detail("streambus-topic", "Topic ${__field.labels.topic}", topic="${__field.labels.topic}")

DASHBOARD = dashboard(
    "streambus-groups",
    "StreamBus Consumer Groups",
    "Lag in messages and in seconds, time to delivery, rebalances, and deliveries of share groups.",
    Row(
        "Now",
        stat(
            "Groups",
            "Consumer groups and share groups. Each counts on the broker that coordinates it.",
            "short",
            queries(("sum(streambus_consumer_groups_total{$S})", "groups")),
        ),
        stat(
            "Members",
            "Members of all groups.",
            "short",
            queries(("sum(streambus_consumer_group_members_total{$S})", "members")),
        ),
        stat(
            "Largest Lag",
            "Messages that the chosen groups have still to finish in their worst partition. Above 10,000 "
            "HighConsumerLag fires.",
            "short",
            queries((f"max(streambus_consumer_group_lag{LAG})", "lag")),
            thresholds=steps((1_000, YELLOW), (10_000, RED)),
        ),
        stat(
            "Oldest Unread Message",
            "Age of the oldest message that one of the chosen groups has still to finish.",
            "s",
            queries((f"max(streambus_consumer_group_lag_seconds{LAG})", "age")),
            thresholds=steps((60, YELLOW), (600, RED)),
        ),
        stat(
            "Missed Messages",
            "Messages that were deleted before a chosen group read them, in the time range.",
            "short",
            queries((f"sum(increase(streambus_consumer_group_missed_messages_total{LAG}[$__range]))", "missed")),
            thresholds=steps((1, RED)),
        ),
        stat(
            "Dead Letters",
            "Messages that a chosen share group gave up on, in the time range.",
            "short",
            queries(
                (f"sum(increase(streambus_consumer_group_dead_letters_total{LAG}[$__range]))", "dead letters")
            ),
            thresholds=steps((1, YELLOW)),
        ),
    ),
    Row(
        "Lag",
        lines(
            "Lag in Messages",
            "Messages that a group has still to finish, over all partitions of a topic.",
            "short",
            queries((f"sum by (group, topic) (streambus_consumer_group_lag{LAG})", "{{group}}: {{topic}}")),
            links=[TOPIC],
        ),
        lines(
            "Lag in Seconds",
            "Age of the oldest message that a group has still to finish. A line that rises by one second per second "
            "is a group that does not move.",
            "s",
            queries(
                (f"max by (group, topic) (streambus_consumer_group_lag_seconds{LAG})", "{{group}}: {{topic}}")
            ),
            links=[TOPIC],
        ),
        table(
            "Partitions Furthest Behind",
            "The twenty partitions with the largest lag in messages.",
            "short",
            f"topk(20, sum by (group, topic, partition) (streambus_consumer_group_lag{LAG}))",
            ["group", "topic", "partition"],
            thresholds=steps((1_000, YELLOW), (10_000, RED)),
        ),
        lines(
            "Missed Messages by Group",
            "Messages per second that retention or a deletion took before the group read them. Any is a loss for the "
            "group.",
            "cps",
            queries(
                (
                    f"sum by (group, topic) (rate(streambus_consumer_group_missed_messages_total{LAG}[$R]))",
                    "{{group}}: {{topic}}",
                )
            ),
        ),
    ),
    Row(
        "Delivery",
        lines(
            "Time to Delivery",
            "Time from a message's append until it was handed to a member. For a group that reads old messages, this is "
            "their age.",
            "s",
            queries(
                *quantiles(
                    "streambus_consumer_group_delivery_seconds", matchers='$S,group=~"$group",stage="delivered"'
                )
            ),
        ),
        lines(
            "Time to Acknowledgement",
            "Time from a message's append until it was committed or accepted: delivery and processing together.",
            "s",
            queries(
                *quantiles(
                    "streambus_consumer_group_delivery_seconds", matchers='$S,group=~"$group",stage="acknowledged"'
                )
            ),
        ),
        lines(
            "Time to Delivery by Group",
            "99th percentile by group.",
            "s",
            queries(
                (
                    p99(
                        "streambus_consumer_group_delivery_seconds",
                        "group",
                        '$S,group=~"$group",stage="delivered"',
                    ),
                    "{{group}}",
                )
            ),
        ),
        lines(
            "Commits",
            "Offsets that members of all groups asked to commit, per second, by outcome. fenced is a member that lost its "
            "partition.",
            "cps",
            queries(("sum by (outcome) (rate(streambus_consumer_group_commits_total{$S}[$R]))", "{{outcome}}")),
        ),
        lines(
            "Commit Latency",
            "Time from the receipt of a commit to its answer.",
            "s",
            queries(*quantiles("streambus_commit_latency_seconds"), exemplars=True),
        ),
    ),
    Row(
        "Rebalances",
        lines(
            "Rebalances by Cause",
            "Changes of who should have which partitions, in the last five minutes, of all groups.",
            "short",
            queries(("sum by (cause) (increase(streambus_consumer_group_rebalances_total{$S}[5m]))", "{{cause}}")),
        ),
        lines(
            "Duration of Rebalances",
            "Time from a change of a group until every member had what it should have. Only partitions that move pause.",
            "s",
            queries(*quantiles("streambus_consumer_group_rebalance_seconds")),
        ),
    ),
    Row(
        "Share groups",
        lines(
            "Leased Messages",
            "Messages that members hold a lease on: delivered and not yet acknowledged.",
            "short",
            queries((f"sum by (group) (streambus_consumer_group_leased_records{OF_GROUP})", "{{group}}")),
        ),
        lines(
            "Acknowledgements",
            "How leases ended, in messages per second. expire means that no answer came in time.",
            "cps",
            queries(
                (
                    f"sum by (kind) (rate(streambus_consumer_group_acknowledgements_total{OF_GROUP}[$R]))",
                    "{{kind}}",
                )
            ),
        ),
        lines(
            "Redeliveries",
            "Messages per second that were delivered again.",
            "cps",
            queries(
                (
                    f"sum by (group, topic) (rate(streambus_consumer_group_redeliveries_total{LAG}[$R]))",
                    "{{group}}: {{topic}}",
                )
            ),
        ),
        lines(
            "Dead Letters by Group",
            "Messages per second that a group gave up on, because they were rejected or delivered as often as allowed.",
            "cps",
            queries(
                (
                    f"sum by (group, topic) (rate(streambus_consumer_group_dead_letters_total{LAG}[$R]))",
                    "{{group}}: {{topic}}",
                )
            ),
        ),
    ),
    variables=(GROUP_VARIABLE, TOPIC_VARIABLE),
)
