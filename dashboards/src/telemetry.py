"""Whether what the other dashboards show can be believed."""

from grafana import RED, YELLOW, Row, dashboard, lines, queries, stat, steps
from performance import quantiles

DASHBOARD = dashboard(
    "streambus-telemetry",
    "StreamBus Telemetry Health",
    "Whether metrics, traces and logs arrive, what is lost on the way, and what they cost.",
    Row(
        "Now",
        stat(
            "Dropped",
            "Spans, log records, log lines and collections of metrics that were lost in the time range.",
            "short",
            queries(
                (
                    "sum(increase(streambus_telemetry_dropped_total{$S}[$__range])) "
                    "+ sum(increase(streambus_log_lines_dropped_total{$S}[$__range]))",
                    "dropped",
                )
            ),
            thresholds=steps((1, YELLOW), (1_000, RED)),
            width=6,
        ),
        stat(
            "Metrics over Budget",
            "Metrics that have more label sets than allowed: what exceeds the budget is summed in one series.",
            "short",
            queries(("max(streambus_telemetry_overflowing_metrics{$S})", "metrics")),
            thresholds=steps((1, YELLOW)),
            width=6,
        ),
        stat(
            "Observer Panics",
            "Panics that were caught while a level was read. Any is a defect of the broker.",
            "short",
            queries(("sum(streambus_telemetry_observer_panics_total{$S})", "panics")),
            thresholds=steps((1, RED)),
            width=6,
        ),
        stat(
            "Errors Logged",
            "Log events of level error in the time range. Each says that a person must act.",
            "short",
            queries(('sum(increase(streambus_log_events_total{$S,level="error"}[$__range]))', "errors")),
            thresholds=steps((1, RED)),
            width=6,
        ),
    ),
    Row(
        "Push (OTLP)",
        lines(
            "Exported",
            "Spans, log records and collections of metrics that the collector took, per second.",
            "cps",
            queries(("sum by (signal) (rate(streambus_telemetry_exported_total{$S}[$R]))", "{{signal}}")),
        ),
        lines(
            "Dropped by Reason",
            "Items lost per second. queue_full: they came faster than the collector takes them; export_failed: the "
            "collector refused them or could not be reached.",
            "cps",
            queries(
                (
                    "sum by (signal, reason) (rate(streambus_telemetry_dropped_total{$S}[$R]))",
                    "{{signal}}: {{reason}}",
                )
            ),
            thresholds=steps((1, RED)),
        ),
        lines(
            "Failed Exports",
            "Exports per second that failed.",
            "cps",
            queries(("sum by (signal) (rate(streambus_telemetry_export_failures_total{$S}[$R]))", "{{signal}}")),
        ),
        lines(
            "Age of the Last Export",
            "Time since the collector last took something. Traces and logs may have nothing to send; metrics always have.",
            "s",
            queries(
                (
                    "max by (instance, signal) (streambus_telemetry_last_export_age_seconds{$S})",
                    "{{instance}}: {{signal}}",
                )
            ),
            thresholds=steps((300, RED)),
        ),
        lines(
            "Export Queues",
            "Spans and log records that wait for export. At telemetry.otlp.span_queue and log_queue (8192 by default) "
            "more are dropped.",
            "short",
            queries(
                ("sum by (instance, signal) (streambus_telemetry_queue_items{$S})", "{{instance}}: {{signal}}")
            ),
        ),
        lines(
            "Warnings and Errors",
            "Log events per second.",
            "cps",
            queries(("sum by (level) (rate(streambus_log_events_total{$S}[$R]))", "{{level}}")),
        ),
        lines(
            "Lost Log Lines",
            "Lines per second that standard error did not take in time: whoever reads it is stopped or too slow.",
            "cps",
            queries(("sum by (instance) (rate(streambus_log_lines_dropped_total{$S}[$R]))", "{{instance}}")),
        ),
        lines(
            "Requests over the Trace Limit",
            "Requests per second that their share chose to be traced and telemetry.trace.max_per_second (100 by default) "
            "left out.",
            "cps",
            queries(("sum by (instance) (rate(streambus_telemetry_traces_limited_total{$S}[$R]))", "{{instance}}")),
        ),
        lines(
            "Run-time Overrides",
            "Log filters and shares of traces that `streambus control` has changed for a while. Each expires by itself.",
            "short",
            queries(("sum by (kind) (streambus_control_overrides{$S})", "{{kind}}")),
        ),
    ),
    Row(
        "Pull (/metrics)",
        lines(
            "Scrape Time in the Broker",
            "Time to collect and encode the metrics of a scrape.",
            "s",
            queries(*quantiles("streambus_telemetry_scrape_seconds")),
        ),
        lines(
            "Scrape Time in Prometheus",
            "Time of a scrape as Prometheus sees it, transfer included.",
            "s",
            queries(("scrape_duration_seconds{$S}", "{{instance}}")),
        ),
        lines(
            "Series",
            "Samples in a scrape, as the broker counts them and as Prometheus keeps them.",
            "short",
            queries(
                ("streambus_telemetry_series{$S}", "{{instance}}"),
                ("scrape_samples_post_metric_relabeling{$S}", "{{instance}} kept"),
            ),
        ),
        lines(
            "HTTP Requests",
            "Requests to the HTTP port per second, scrapes and probes, by outcome.",
            "reqps",
            queries(
                (
                    'sum by (outcome) (rate(streambus_network_requests_total{$S,protocol="http"}[$R]))',
                    "{{outcome}}",
                )
            ),
        ),
    ),
)
