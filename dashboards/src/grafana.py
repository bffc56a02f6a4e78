"""The parts that dashboards are made of, as functions that give Grafana's JSON.

In a query, `$S` stands for the matchers that every selector has (job, cluster, instance), and `$R` for Grafana's rate
interval, which adapts to the scrape interval and the time range.
"""

import copy

SCHEMA_VERSION = 39
TAG = "streambus"
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
MATCHERS = 'job=~"$job",cluster=~"$cluster",instance=~"$instance"'
COLUMNS = 24

GREEN, YELLOW, RED, BLUE = "green", "yellow", "red", "blue"

# The values of `streambus_broker_status`.
STATUS = {0: ("stopped", RED), 1: ("starting", YELLOW), 2: ("running", GREEN), 3: ("stopping", YELLOW)}


def expand(query):
    """The query as Grafana gets it, on one line."""
    return " ".join(query.replace("$S", MATCHERS).replace("$R", "$__rate_interval").split())


def steps(*above):
    """Thresholds: green, then each (value, colour) from that value on."""
    return {
        "mode": "absolute",
        "steps": [{"color": GREEN, "value": None}] + [{"color": color, "value": value} for value, color in above],
    }


def falling(*above):
    """Thresholds for what is bad when it is small: red, then each (value, colour) from that value on."""
    made = steps(*above)
    made["steps"][0]["color"] = RED
    return made


def queries(*pairs, exemplars=False, instant=False):
    """The targets of a panel: (query, legend) each."""
    return [
        {
            "datasource": DATASOURCE,
            "editorMode": "code",
            "exemplar": exemplars,
            "expr": expand(query),
            "format": "table" if legend is None else "time_series",
            "instant": instant,
            "legendFormat": legend or "",
            "range": not instant,
            "refId": chr(ord("A") + number),
        }
        for number, (query, legend) in enumerate(pairs)
    ]


def _panel(kind, title, description, unit, targets, width, height, defaults, options, **more):
    return {
        "datasource": DATASOURCE,
        "description": description,
        "fieldConfig": {"defaults": {"unit": unit, **defaults}, "overrides": more.pop("overrides", [])},
        "gridPos": {"h": height, "w": width, "x": 0, "y": 0},
        "links": [],
        "options": options,
        "targets": targets,
        "title": title,
        "type": kind,
        **more,
    }


def lines(
    title, description, unit, targets, width=12, height=8, thresholds=None, stacked=False, links=(), top=None
):
    """Values over time."""
    defaults = {
        "color": {"mode": "palette-classic"},
        "custom": {
            "drawStyle": "line",
            "fillOpacity": 25 if stacked else 8,
            "lineWidth": 1,
            "showPoints": "never",
            "spanNulls": False,
            "stacking": {"mode": "normal" if stacked else "none"},
            "thresholdsStyle": {"mode": "line" if thresholds else "off"},
        },
        "links": list(links),
        "min": 0,
        "thresholds": thresholds or steps(),
    }
    if top is not None:
        defaults["max"] = top
    options = {
        "legend": {"calcs": ["mean", "max"], "displayMode": "table", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    return _panel("timeseries", title, description, unit, targets, width, height, defaults, options)


def gauge(title, description, unit, targets, thresholds, top, width=6, height=8):
    """The present value on a dial."""
    defaults = {"color": {"mode": "thresholds"}, "max": top, "min": 0, "thresholds": thresholds}
    options = {"reduceOptions": {"calcs": ["lastNotNull"]}, "showThresholdMarkers": True}
    return _panel("gauge", title, description, unit, targets, width, height, defaults, options)


def stat(title, description, unit, targets, thresholds=None, mappings=None, width=4, height=4):
    """The present value as a number."""
    defaults = {"color": {"mode": "thresholds"}, "mappings": mappings or [], "thresholds": thresholds or steps()}
    if thresholds is None and mappings is None:
        defaults["thresholds"]["steps"][0]["color"] = BLUE
    options = {
        "colorMode": "background" if thresholds or mappings else "value",
        "graphMode": "none" if mappings else "area",
        "justifyMode": "auto",
        "reduceOptions": {"calcs": ["lastNotNull"]},
        "textMode": "auto",
    }
    return _panel("stat", title, description, unit, targets, width, height, defaults, options)


def heatmap(title, description, unit, query, width=12, height=8):
    """How the values of a histogram are spread over time."""
    targets = queries((query, "{{le}}"), exemplars=True)
    targets[0]["format"] = "heatmap"
    options = {
        "calculate": False,
        "cellGap": 1,
        "color": {"mode": "scheme", "scheme": "Oranges", "steps": 64},
        "exemplars": {"color": "rgba(255,0,255,0.7)"},
        "legend": {"show": True},
        "tooltip": {"mode": "single", "yHistogram": True},
        "yAxis": {"unit": unit},
    }
    return _panel("heatmap", title, description, unit, targets, width, height, {}, options)


def table(title, description, unit, query, columns, width=12, height=8, thresholds=None, links=()):
    """The present value per label set. `columns` are the labels that are shown, in order."""
    targets = queries((query, None), instant=True)
    defaults = {
        "color": {"mode": "thresholds"},
        "custom": {"align": "auto", "filterable": True},
        "links": list(links),
        "thresholds": thresholds or steps(),
    }
    more = {
        "transformations": [
            {
                "id": "organize",
                "options": {
                    "excludeByName": {"Time": True},
                    "indexByName": {name: number for number, name in enumerate([*columns, "Value"])},
                },
            }
        ]
    }
    options = {"showHeader": True, "sortBy": [{"desc": True, "displayName": "Value"}]}
    return _panel("table", title, description, unit, targets, width, height, defaults, options, **more)


def matrix(title, description, unit, query, rows, columns, mappings, width=12, height=8):
    """The present value at each crossing of two labels."""
    made = table(title, description, unit, query, [rows, columns], width, height)
    made["fieldConfig"]["defaults"]["mappings"] = mappings
    made["fieldConfig"]["defaults"]["custom"]["cellOptions"] = {"mode": "basic", "type": "color-background"}
    made["transformations"] = [
        {
            "id": "groupingToMatrix",
            "options": {"columnField": columns, "emptyValue": "empty", "rowField": rows, "valueField": "Value"},
        }
    ]
    made["options"]["sortBy"] = []
    return made


def values(texts):
    """Value mappings: number to (text, colour)."""
    return [
        {
            "type": "value",
            "options": {
                str(number): {"color": color, "index": index, "text": text}
                for index, (number, (text, color)) in enumerate(texts.items())
            },
        }
    ]


def detail(uid, title, **variables):
    """A link to another dashboard that keeps time range, source and selection."""
    kept = "${__url_time_range}&${datasource:queryparam}&${job:queryparam}&${cluster:queryparam}&${instance:queryparam}"
    chosen = "".join(f"&var-{name}={value}" for name, value in variables.items())
    return {"targetBlank": False, "title": title, "url": f"/d/{uid}?{kept}{chosen}"}


def linked(panel, *links):
    """The panel with links in its title."""
    panel["links"] = list(links)
    return panel


def label_variable(name, label, query, description, all_value=".+"):
    """A choice of the values of a label, all of them at first."""
    return {
        "allValue": all_value,
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "datasource": DATASOURCE,
        "definition": expand(query),
        "description": description,
        "hide": 0,
        "includeAll": True,
        "label": label,
        "multi": True,
        "name": name,
        "query": {"query": expand(query), "refId": f"variable-{name}"},
        "refresh": 2,
        "regex": "",
        "skipUrlSync": False,
        "sort": 1,
        "type": "query",
    }


def _variables(extra):
    source = {
        "current": {},
        "description": "The Prometheus that scrapes the brokers.",
        "hide": 0,
        "label": "Data source",
        "name": "datasource",
        "options": [],
        "query": "prometheus",
        "refresh": 1,
        "regex": "",
        "type": "datasource",
    }
    return [
        source,
        # Without a value of its own, "All" stands for the jobs that brokers have. `up` and `process_…` are shown by other jobs
        # too, which do not belong here.
        label_variable("job", "Job", "label_values(streambus_build_info, job)", "Scrape job.", all_value=None),
        # Also matches series without the label: a scrape configuration sets it, or does not.
        label_variable(
            "cluster",
            "Cluster",
            'label_values(streambus_build_info{job=~"$job"}, cluster)',
            "Cluster, if the scrape configuration gives targets such a label.",
            all_value=".*",
        ),
        label_variable(
            "instance",
            "Instance",
            'label_values(streambus_build_info{job=~"$job",cluster=~"$cluster"}, instance)',
            "Broker.",
        ),
        *extra,
    ]


TOPIC_VARIABLE = label_variable(
    "topic", "Topic", "label_values(streambus_messages_produced_total{$S}, topic)", "Topic."
)
GROUP_VARIABLE = label_variable(
    "group",
    "Consumer group",
    "label_values(streambus_consumer_group_lag{$S}, group)",
    "Consumer group or share group.",
)


def _annotation(name, color, expr, title, **more):
    return {
        "datasource": DATASOURCE,
        "enable": True,
        "expr": expand(expr),
        "hide": False,
        "iconColor": color,
        "name": name,
        "step": "15s",
        "textFormat": title,
        "titleFormat": name,
        **more,
    }


ANNOTATIONS = [
    {
        "builtIn": 1,
        "datasource": {"type": "grafana", "uid": "-- Grafana --"},
        "enable": True,
        "hide": True,
        "iconColor": "rgba(0, 211, 255, 1)",
        "name": "Annotations & Alerts",
        "type": "dashboard",
    },
    # The value is the time of the event, in milliseconds.
    _annotation(
        "Restarts", "orange", "process_start_time_seconds{$S} * 1000", "{{instance}} started", useValueForTime=True
    ),
    _annotation("Elections", "purple", "changes(streambus_raft_term{$S}[$R]) > 0", "{{instance}} saw a new term"),
]


class Row:
    """A heading, and the panels below it."""

    def __init__(self, title, *panels):
        self.title = title
        self.panels = panels


def dashboard(uid, title, description, *parts, variables=()):
    """A dashboard of panels and rows, which flow from left to right and top to bottom."""
    placed, x, y, tallest = [], 0, 0, 0

    def place(panel):
        nonlocal x, y, tallest
        size = panel["gridPos"]
        if x + size["w"] > COLUMNS:
            x, y, tallest = 0, y + tallest, 0
        size.update(x=x, y=y)
        x, tallest = x + size["w"], max(tallest, size["h"])
        placed.append({"id": len(placed) + 1, **panel})

    for part in parts:
        if isinstance(part, Row):
            x, y, tallest = 0, y + tallest, 0
            place(
                {
                    "collapsed": False,
                    "gridPos": {"h": 1, "w": COLUMNS, "x": 0, "y": 0},
                    "panels": [],
                    "title": part.title,
                    "type": "row",
                }
            )
            for panel in part.panels:
                place(panel)
        else:
            place(part)
    return {
        "annotations": {"list": copy.deepcopy(ANNOTATIONS)},
        "description": description,
        "editable": False,
        "fiscalYearStartMonth": 0,
        "graphTooltip": 1,
        "links": [
            {
                "asDropdown": True,
                "icon": "external link",
                "includeVars": True,
                "keepTime": True,
                "tags": [TAG],
                "targetBlank": False,
                "title": "StreamBus dashboards",
                "type": "dashboards",
                "url": "",
            }
        ],
        "panels": placed,
        "refresh": "30s",
        "schemaVersion": SCHEMA_VERSION,
        "tags": [TAG],
        "templating": {"list": copy.deepcopy(_variables(variables))},
        "time": {"from": "now-6h", "to": "now"},
        "timepicker": {},
        "timezone": "browser",
        "title": title,
        "uid": uid,
        "version": 1,
    }
