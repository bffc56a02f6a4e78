"""Latencies, throughput, and the resources that they are made of."""

from grafana import RED, YELLOW, Row, dashboard, heatmap, lines, queries, steps

QUANTILES = (0.5, 0.9, 0.99, 0.999)


def quantiles(metric, by="le", matchers="$S", legend=""):
    """Queries for the usual quantiles of a histogram."""
    return [
        (
            f"histogram_quantile({quantile}, sum by ({by}) (rate({metric}_bucket{{{matchers}}}[$R])))",
            f"p{quantile * 100:g}{legend}",
        )
        for quantile in QUANTILES
    ]


def p99(metric, label=None, matchers="$S"):
    """The query for the 99th percentile, per value of `label`."""
    by = f"{label}, le" if label else "le"
    return f"histogram_quantile(0.99, sum by ({by}) (rate({metric}_bucket{{{matchers}}}[$R])))"


def mean(metric, label=None):
    """The query for the mean of a histogram, per value of `label`."""
    by = f" by ({label})" if label else ""
    return f"sum{by} (rate({metric}_sum{{$S}}[$R])) / sum{by} (rate({metric}_count{{$S}}[$R]))"


DASHBOARD = dashboard(
    "streambus-performance",
    "StreamBus Performance",
    "Latency and its parts, throughput, and how busy processor, disk and queues are. Exemplars lead to traces.",
    Row(
        "Latency",
        lines(
            "Produce Latency",
            "Time from a batch's receipt to its acknowledgement. Dots are exemplars: click one for its trace. The "
            "smallest bucket is 1 ms; the phases below show what happens within it.",
            "s",
            queries(*quantiles("streambus_produce_latency_seconds"), exemplars=True),
            thresholds=steps((0.1, RED)),
        ),
        heatmap(
            "Produce Latency Distribution",
            "How many batches fell into each bucket of produce latency.",
            "s",
            "sum by (le) (increase(streambus_produce_latency_seconds_bucket{$S}[$R]))",
        ),
        lines(
            "Consume Latency",
            "Time to read records and hand them over, without the wait for records to arrive. Dots are exemplars.",
            "s",
            queries(*quantiles("streambus_consume_latency_seconds"), exemplars=True),
            thresholds=steps((0.1, RED)),
        ),
        lines(
            "Call Duration by Method",
            "99th percentile of unary calls. Streams are not calls of this kind; their batches are in the latencies above.",
            "s",
            queries((p99("rpc_server_call_duration_seconds", "rpc_method"), "{{rpc_method}}"), exemplars=True),
        ),
    ),
    Row(
        "Where the time goes",
        lines(
            "Produce Phases, Mean",
            "Mean time of a batch in each phase; together they are the mean produce latency. admit waits for room, "
            "append for the log entry, replicate for the disk and for other replicas, apply makes it readable.",
            "s",
            queries((mean("streambus_produce_phase_seconds", "phase"), "{{phase}}")),
            stacked=True,
        ),
        lines(
            "Produce Phases, 99th Percentile",
            "99th percentile of each phase. These do not add up to that of the whole.",
            "s",
            queries((p99("streambus_produce_phase_seconds", "phase"), "{{phase}}"), exemplars=True),
        ),
        lines(
            "Consume Phases, Mean",
            "Mean time of a delivery in each phase: wait is for records to arrive, read and respond are the broker's.",
            "s",
            queries((mean("streambus_consume_phase_seconds", "phase"), "{{phase}}")),
        ),
        lines(
            "Disk Sync Time",
            "Time that forced writes to the disk take. With storage.sync = always each acknowledgement waits for one.",
            "s",
            queries(*quantiles("streambus_storage_fsync_seconds")),
        ),
    ),
    Row(
        "Throughput",
        lines(
            "Requests",
            "Calls and HTTP requests per second, by protocol and by who is to blame for a failure.",
            "reqps",
            queries(
                (
                    "sum by (protocol, outcome) (rate(streambus_network_requests_total{$S}[$R]))",
                    "{{protocol}}: {{outcome}}",
                )
            ),
        ),
        lines(
            "Network",
            "Bytes per second through client sockets.",
            "Bps",
            queries(
                ("sum(rate(streambus_network_bytes_in_total{$S}[$R]))", "received"),
                ("sum(rate(streambus_network_bytes_out_total{$S}[$R]))", "sent"),
            ),
        ),
        lines(
            "Batches per Log Entry, Writes per Commit",
            "How much shares one log entry and one commit to the disk, on average. Both grow with load; that is what "
            "keeps throughput from falling to one record per sync.",
            "short",
            queries(
                (mean("streambus_append_group_size"), "batches per entry"),
                (mean("streambus_storage_commit_group_size"), "writes per commit"),
            ),
        ),
        lines(
            "Refusals",
            "Batches and fetches answered with an error, per second, by error code.",
            "cps",
            queries(
                ("sum by (code) (rate(streambus_produce_rejections_total{$S}[$R]))", "produce: {{code}}"),
                ("sum by (code) (rate(streambus_consume_rejections_total{$S}[$R]))", "consume: {{code}}"),
            ),
        ),
    ),
    Row(
        "Saturation",
        lines(
            "Processor",
            "Processor time that each broker uses, in cores.",
            "short",
            queries(("rate(process_cpu_seconds_total{$S}[$R])", "{{instance}}")),
        ),
        lines(
            "Busy Workers",
            "Share of the worker threads' time that is spent on tasks. Near 100 %, everything waits.",
            "percentunit",
            queries(
                (
                    "rate(streambus_runtime_busy_seconds_total{$S}[$R]) / streambus_runtime_workers{$S}",
                    "{{instance}}",
                )
            ),
            thresholds=steps((0.8, YELLOW), (0.95, RED)),
        ),
        lines(
            "Produce Buffer",
            "How full the buffer of batches that wait to be written is. When it is full producers wait, then get busy.",
            "percentunit",
            queries(
                ("streambus_produce_buffer_bytes{$S} / streambus_produce_buffer_limit_bytes{$S}", "{{instance}}")
            ),
            thresholds=steps((0.7, YELLOW), (0.9, RED)),
        ),
        lines(
            "Queues",
            "Bytes that wait for the disk, by broker.",
            "bytes",
            queries(("streambus_storage_queue_bytes{$S}", "{{instance}}")),
        ),
        lines(
            "Tasks",
            "Tasks alive in the runtime, and those in its global queue, which is long when workers cannot keep up.",
            "short",
            queries(
                ("sum(streambus_runtime_tasks{$S})", "alive"),
                ("sum(streambus_runtime_global_queue_depth{$S})", "queued"),
            ),
        ),
        lines(
            "Consumers",
            "Open subscriptions, and fetches that wait for records: the latter are idle, not slow.",
            "short",
            queries(
                ("sum(streambus_subscriptions_active{$S})", "subscriptions"),
                ("sum(streambus_fetches_waiting{$S})", "waiting fetches"),
            ),
        ),
    ),
)
