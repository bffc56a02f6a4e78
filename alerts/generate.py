#!/usr/bin/env python3
"""Writes the objectives' rules, and all rules as a Kubernetes object; with `--check`, says which are out of date.

An objective is a share of good events that is promised over 30 days. Its error budget is the rest. An alert fires when
the budget is used up too fast, in a long window, so that it matters, and in a short one, so that it is still so.
"""

import argparse
import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent
SLO = HERE / "streambus-slo.yml"
OBJECT = HERE.parent / "deploy" / "kubernetes" / "prometheusrule.yaml"
RULES = ["streambus-alerts.yml", "streambus-recording.yml", SLO.name]
RUNBOOKS = "https://github.com/shawntherrien/streambus/blob/main/docs/runbooks"

# Long window, short window, how many times too fast, for, severity, what that uses up.
WINDOWS = [
    ("1h", "5m", 14.4, "2m", "critical", "2 % of the month's budget in an hour"),
    ("6h", "30m", 6, "15m", "critical", "5 % of the month's budget in six hours"),
    ("1d", "2h", 3, "1h", "warning", "10 % of the month's budget in a day"),
    ("3d", "6h", 1, "3h", "warning", "10 % of the month's budget in three days"),
]
SHORT = ["5m", "30m", "1h", "2h", "6h"]
LONG = ["1d", "3d"]

# The codes with which the broker, not the client, is at fault.
FAULTS = "busy|disk_full|not_leader|not_ready|outcome_unknown|corrupt|storage|internal"

OBJECTIVES = [
    {
        "record": "cluster:streambus_produce_errors:ratio_rate",
        "comment": "Produce availability: 99.9 % of batches are not refused or lost through the broker's fault.",
        "target": 99.9,
        # Without any error there is no series of errors; the zero must come from elsewhere.
        "ratio": """
            (
              sum by (job, cluster) (rate(streambus_produce_rejections_total{code=~"FAULTS"}[WINDOW]))
              or 0 * sum by (job, cluster) (rate(streambus_produce_latency_seconds_count[WINDOW]))
            )
            /
            (
              (
                sum by (job, cluster) (rate(streambus_produce_rejections_total{code=~"FAULTS"}[WINDOW]))
                or 0 * sum by (job, cluster) (rate(streambus_produce_latency_seconds_count[WINDOW]))
              )
              + sum by (job, cluster) (rate(streambus_produce_latency_seconds_count[WINDOW]))
            )
        """,
        "alert": "ProduceErrorBudgetBurn",
        "summary": "Too many batches fail",
        "description": "{{ $value | humanizePercentage }} of the batches sent to job {{ $labels.job }} failed over LONG "
        "through the broker's fault; the objective is that 99.9 % succeed. That uses up USE.",
    },
    {
        "record": "cluster:streambus_produce_slow:ratio_rate",
        "comment": "Produce latency: 99 % of batches are acknowledged within 100 ms.",
        "target": 99,
        "ratio": """
            1 - (
              sum by (job, cluster) (rate(streambus_produce_latency_seconds_bucket{le="0.1"}[WINDOW]))
              / sum by (job, cluster) (rate(streambus_produce_latency_seconds_count[WINDOW]))
            )
        """,
        "alert": "ProduceLatencyBudgetBurn",
        "summary": "Too many batches are acknowledged slowly",
        "description": "{{ $value | humanizePercentage }} of the batches sent to job {{ $labels.job }} took more than "
        "100 ms over LONG; the objective is that 99 % take less. That uses up USE.",
    },
    {
        "record": "cluster_group:streambus_delivery_slow:ratio_rate",
        "comment": "Delivery latency: 99 % of a group's deliveries happen within 1 s of the append.",
        "target": 99,
        # One second is written as 1 or as 1.0, depending on the format of the scrape.
        "ratio": """
            1 - (
              sum by (job, cluster, group)
              (rate(streambus_consumer_group_delivery_seconds_bucket{stage="delivered",le=~"1|1.0"}[WINDOW]))
              / sum by (job, cluster, group)
              (rate(streambus_consumer_group_delivery_seconds_count{stage="delivered"}[WINDOW]))
            )
        """,
        "alert": "DeliveryLatencyBudgetBurn",
        "summary": "Messages reach a group late",
        "description": "{{ $value | humanizePercentage }} of the deliveries to group {{ $labels.group }} came more than "
        "1 s after the append over LONG; the objective is that 99 % come sooner. That uses up USE.",
    },
]


def records(objective, windows):
    """The recording rules of an objective."""
    for window in windows:
        ratio = objective["ratio"].replace("FAULTS", FAULTS).replace("WINDOW", window)
        yield f"      - record: {objective['record']}{window}"
        yield "        expr: >-"
        for line in ratio.strip().splitlines():
            yield f"          {line.strip()}"


def alerts(objective):
    """The alerts of an objective."""
    budget = (100 - objective["target"]) / 100
    for long, short, speed, wait, severity, use in WINDOWS:
        most = f"{speed} * {budget:.3g}"
        yield f"      - alert: {objective['alert']}"
        yield "        expr: >-"
        yield f"          {objective['record']}{long} > {most}"
        yield f"          and {objective['record']}{short} > {most}"
        yield f"        for: {wait}"
        yield f"        keep_firing_for: {short if short != '2h' and short != '6h' else '30m'}"
        yield "        labels:"
        yield f"          severity: {severity}"
        yield f"          window: {long}"
        yield "        annotations:"
        yield f"          summary: {objective['summary']}"
        yield "          description: >-"
        yield "            " + objective["description"].replace("LONG", long).replace("USE", use)
        yield f"          runbook_url: {RUNBOOKS}/{objective['alert']}.md"


def objectives():
    """The file of the objectives."""
    lines = [
        "# Made by alerts/generate.py; change it there.",
        "#",
        "# Objectives over 30 days, and alerts that fire when an error budget is used up too fast in two windows at once:",
    ]
    lines += [f"#  - {objective['comment']}" for objective in OBJECTIVES]
    lines += ["groups:"]
    for name, interval, windows in (("short", "30s", SHORT), ("long", "2m", LONG)):
        lines += [f"  - name: streambus-slo-{name}", f"    interval: {interval}", "    rules:"]
        for objective in OBJECTIVES:
            lines += records(objective, windows)
    lines += ["  - name: streambus-slo", "    interval: 30s", "    rules:"]
    for objective in OBJECTIVES:
        lines += alerts(objective)
    return "\n".join(lines) + "\n"


def rule_object(texts):
    """The groups of all files as what the Prometheus operator reads."""
    lines = [
        "# Made by alerts/generate.py from alerts/*.yml; change it there.",
        "apiVersion: monitoring.coreos.com/v1",
        "kind: PrometheusRule",
        "metadata:",
        "  name: streambus",
        "  labels:",
        "    app: streambus",
        "spec:",
        "  groups:",
    ]
    for text in texts:
        body = text.split("\ngroups:\n", 1)[1]
        lines += ["  " + line if line else "" for line in body.splitlines()]
    return "\n".join(line for line in lines if not line.strip().startswith("# ") or line.startswith("# ")) + "\n"


def files():
    """Each file's path and what belongs into it."""
    slo = objectives()
    texts = [slo if name == SLO.name else (HERE / name).read_text() for name in RULES]
    return {SLO: slo, OBJECT: rule_object(texts)}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a file is out of date")
    check = parser.parse_args().check
    stale = {path: text for path, text in files().items() if not path.exists() or path.read_text() != text}
    for path, text in stale.items():
        if check:
            print(f"{path.name} is not what alerts/generate.py makes", file=sys.stderr)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
