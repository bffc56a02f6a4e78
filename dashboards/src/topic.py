"""One topic, or several side by side."""

from grafana import TOPIC_VARIABLE, RED, YELLOW, Row, dashboard, detail, lines, queries, stat, steps, table

T = '{$S,topic=~"$topic"}'
GROUP = detail("streambus-groups", "Group ${__field.labels.group}", group="${__field.labels.group}")

DASHBOARD = dashboard(
    "streambus-topic",
    "StreamBus Topics",
    "Traffic of topics, what is kept of them, and who reads them.",
    Row(
        "Now",
        stat(
            "Produced",
            "Messages per second accepted for the chosen topics.",
            "cps",
            queries((f"sum(rate(streambus_messages_produced_total{T}[$R]))", "produced")),
        ),
        stat(
            "Consumed",
            "Messages per second handed to consumers.",
            "cps",
            queries((f"sum(rate(streambus_messages_consumed_total{T}[$R]))", "consumed")),
        ),
        stat(
            "Readers per Message",
            "How often a message is read, on average over the last hour. Below 1, some of it is not read, or not yet.",
            "short",
            queries(
                (
                    f"sum(increase(streambus_messages_consumed_total{T}[1h]))"
                    f" / sum(increase(streambus_messages_produced_total{T}[1h]))",
                    "times",
                )
            ),
        ),
        stat(
            "Mean Message Size",
            "Encoded bytes per message, over the last hour.",
            "bytes",
            queries(
                (
                    f"sum(increase(streambus_bytes_produced_total{T}[1h]))"
                    f" / sum(increase(streambus_messages_produced_total{T}[1h]))",
                    "size",
                )
            ),
        ),
        stat(
            "Largest Lag",
            "Messages that the slowest group has still to finish in its worst partition.",
            "short",
            queries((f"max(streambus_consumer_group_lag{T})", "lag")),
            thresholds=steps((1_000, YELLOW), (10_000, RED)),
        ),
        stat(
            "Oldest Unread Message",
            "Age of the oldest message that a group has still to finish.",
            "s",
            queries((f"max(streambus_consumer_group_lag_seconds{T})", "age")),
            thresholds=steps((60, YELLOW), (600, RED)),
        ),
    ),
    Row(
        "Traffic",
        lines(
            "Messages Produced",
            "Messages per second accepted from producers.",
            "cps",
            queries((f"sum by (topic) (rate(streambus_messages_produced_total{T}[$R]))", "{{topic}}")),
        ),
        lines(
            "Messages Consumed",
            "Messages per second handed to consumers, all groups and plain readers together.",
            "cps",
            queries((f"sum by (topic) (rate(streambus_messages_consumed_total{T}[$R]))", "{{topic}}")),
        ),
        lines(
            "Bytes Produced",
            "Encoded bytes per second accepted from producers.",
            "Bps",
            queries((f"sum by (topic) (rate(streambus_bytes_produced_total{T}[$R]))", "{{topic}}")),
        ),
        lines(
            "Bytes Consumed",
            "Encoded bytes per second handed to consumers.",
            "Bps",
            queries((f"sum by (topic) (rate(streambus_bytes_consumed_total{T}[$R]))", "{{topic}}")),
        ),
    ),
    Row(
        "What is kept",
        lines(
            "Stored and Deleted",
            "Messages per second appended, and deleted by retention. In balance, the topic does not grow.",
            "cps",
            queries(
                (f"sum by (topic) (rate(streambus_messages_stored_total{T}[$R]))", "{{topic}} stored"),
                (f"sum by (topic) (rate(streambus_retention_deleted_messages_total{T}[$R]))", "{{topic}} deleted"),
            ),
        ),
        lines(
            "Bytes Stored and Deleted",
            "Bytes per second appended, and deleted by retention.",
            "Bps",
            queries(
                (f"sum by (topic) (rate(streambus_bytes_stored_total{T}[$R]))", "{{topic}} stored"),
                (f"sum by (topic) (rate(streambus_retention_deleted_bytes_total{T}[$R]))", "{{topic}} deleted"),
            ),
        ),
    ),
    Row(
        "Who reads it",
        lines(
            "Lag by Group",
            "Messages that each group has still to finish. A click leads to the group.",
            "short",
            queries((f"sum by (group, topic) (streambus_consumer_group_lag{T})", "{{group}}: {{topic}}")),
            links=[GROUP],
        ),
        lines(
            "Lag in Seconds by Group",
            "Age of the oldest message that each group has still to finish.",
            "s",
            queries((f"max by (group, topic) (streambus_consumer_group_lag_seconds{T})", "{{group}}: {{topic}}")),
            links=[GROUP],
        ),
        table(
            "Lag by Partition",
            "The twenty partitions with the largest lag. One that stands out points to a hot key or a stuck member.",
            "short",
            f"topk(20, sum by (topic, partition, group) (streambus_consumer_group_lag{T}))",
            ["topic", "partition", "group"],
            thresholds=steps((1_000, YELLOW), (10_000, RED)),
        ),
        lines(
            "Messages Given up or Missed",
            "Messages per second that share groups dead-lettered or delivered again, and that groups missed because they "
            "were deleted first.",
            "cps",
            queries(
                (
                    f"sum by (group) (rate(streambus_consumer_group_dead_letters_total{T}[$R]))",
                    "{{group}} dead letters",
                ),
                (
                    f"sum by (group) (rate(streambus_consumer_group_redeliveries_total{T}[$R]))",
                    "{{group}} redelivered",
                ),
                (
                    f"sum by (group) (rate(streambus_consumer_group_missed_messages_total{T}[$R]))",
                    "{{group}} missed",
                ),
            ),
        ),
    ),
    variables=(TOPIC_VARIABLE,),
)
