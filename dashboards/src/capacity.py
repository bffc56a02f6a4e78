"""What grows, and when it meets a limit."""

from grafana import RED, YELLOW, Row, dashboard, falling, lines, queries, stat, steps, values

YEAR = 365 * 86_400

DASHBOARD = dashboard(
    "streambus-capacity",
    "StreamBus Capacity Planning",
    "Growth of storage, traffic and resources, and how far their limits are. Choose a long time range.",
    Row(
        "Storage",
        stat(
            "Time until Full",
            "When the space is used up if it shrinks as it did over the last six hours; one year or more if it does "
            "not shrink.",
            "s",
            queries(
                (
                    "min(clamp_max(streambus_storage_available_bytes{$S}"
                    f" / clamp_min(-deriv(streambus_storage_available_bytes{{$S}}[6h]), 1), {YEAR}))",
                    "first broker",
                )
            ),
            thresholds=falling((4 * 3_600, YELLOW), (7 * 86_400, "green")),
            width=4,
            height=8,
        ),
        stat(
            "Storage Used",
            "Share of the space that data may use, by broker. Above 80 % HighStorageUsage fires.",
            "percentunit",
            queries(
                (
                    "streambus_storage_used_bytes{$S}"
                    " / (streambus_storage_used_bytes{$S} + streambus_storage_available_bytes{$S})",
                    "{{instance}}",
                )
            ),
            thresholds=steps((0.7, YELLOW), (0.8, RED)),
            width=4,
            height=8,
        ),
        stat(
            "Takes Writes",
            "Whether each broker takes records. It refuses them while free space is below the reserve.",
            "none",
            queries(("streambus_storage_writable{$S}", "{{instance}}")),
            mappings=values({0: ("refuses", RED), 1: ("takes", "green")}),
            width=4,
            height=8,
        ),
        lines(
            "Storage Growth",
            "Space used by each broker, and what the trend of the last six hours makes of it in a day.",
            "bytes",
            queries(
                ("streambus_storage_used_bytes{$S}", "{{instance}}"),
                (
                    "clamp_min(predict_linear(streambus_storage_used_bytes{$S}[6h], 86400), 0)",
                    "{{instance}} in a day",
                ),
            ),
        ),
        lines(
            "Written and Deleted",
            "Bytes of batches stored, bytes that went to the journal for them, and bytes that retention deleted, per "
            "second. What is stored and not deleted stays.",
            "Bps",
            queries(
                ("sum(rate(streambus_bytes_stored_total{$S}[$R]))", "stored"),
                ("sum(rate(streambus_storage_written_bytes_total{$S}[$R]))", "journal"),
                ("sum(rate(streambus_retention_deleted_bytes_total{$S}[$R]))", "deleted by retention"),
            ),
        ),
        lines(
            "Available and Reserve",
            "Space left for data, and the free space below which writes are refused, by broker.",
            "bytes",
            queries(
                ("streambus_storage_available_bytes{$S}", "{{instance}} available"),
                ("streambus_storage_reserve_bytes{$S}", "{{instance}} reserve"),
            ),
        ),
        lines(
            "Segments and Compactions",
            "Tables on the disk, and compactions of them in the last hour.",
            "short",
            queries(
                ("sum(streambus_segments_total{$S})", "segments"),
                ("sum(increase(streambus_compactions_total{$S}[1h]))", "compactions per hour"),
            ),
        ),
    ),
    Row(
        "Traffic",
        lines(
            "Message Rate Trend",
            "Messages produced per second, as the mean of an hour and of a day.",
            "cps",
            queries(
                ("sum(rate(streambus_messages_produced_total{$S}[1h]))", "hour"),
                ("sum(rate(streambus_messages_produced_total{$S}[1d]))", "day"),
            ),
        ),
        lines(
            "Byte Rate Trend",
            "Bytes per second in and out, smoothed over an hour.",
            "Bps",
            queries(
                ("sum(rate(streambus_bytes_produced_total{$S}[1h]))", "produced"),
                ("sum(rate(streambus_bytes_consumed_total{$S}[1h]))", "consumed"),
            ),
        ),
        lines(
            "Topics and Partitions",
            "How many there are. broker.topics_max and broker.partitions_max limit them, to 10,000 by default.",
            "short",
            queries(
                ("max(streambus_topics_total{$S})", "topics"),
                ("max(streambus_partitions_total{$S})", "partitions"),
            ),
            thresholds=steps((8_000, YELLOW), (10_000, RED)),
        ),
        lines(
            "Groups and Members",
            "Consumer groups and their members. groups.groups_max and groups.members_max limit them.",
            "short",
            queries(
                ("sum(streambus_consumer_groups_total{$S})", "groups"),
                ("sum(streambus_consumer_group_members_total{$S})", "members"),
            ),
        ),
    ),
    Row(
        "Resources",
        lines(
            "Memory",
            "Resident memory of each broker.",
            "bytes",
            queries(("process_resident_memory_bytes{$S}", "{{instance}}")),
        ),
        lines(
            "Processor",
            "Processor time of each broker in cores, smoothed over an hour.",
            "short",
            queries(("rate(process_cpu_seconds_total{$S}[1h])", "{{instance}}")),
        ),
        lines(
            "File Descriptors",
            "Share of the file descriptors that the process may have. Above 80 % FileDescriptorsRunningOut fires.",
            "percentunit",
            queries(("process_open_fds{$S} / process_max_fds{$S}", "{{instance}}")),
            thresholds=steps((0.8, RED)),
        ),
        lines(
            "Connections",
            "Open client connections, and new ones per second. api.connections_max limits them, to 10,000 by default.",
            "short",
            queries(
                ("sum(streambus_broker_connections{$S})", "open"),
                ("sum(rate(streambus_network_connections_total{$S}[$R]))", "new per second"),
            ),
        ),
        lines(
            "Threads",
            "Operating system threads of each broker, and how many of them serve requests.",
            "short",
            queries(
                ("process_threads{$S}", "{{instance}}"),
                ("streambus_runtime_workers{$S}", "{{instance}} workers"),
            ),
        ),
        lines(
            "Series per Scrape",
            "Samples that each broker shows. They cost memory in Prometheus.",
            "short",
            queries(("streambus_telemetry_series{$S}", "{{instance}}")),
        ),
    ),
)
