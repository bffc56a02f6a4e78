"""Every query of every dashboard finds something when something happens, and dashboards keep the rules of the trade."""

import json
import os
import re
import subprocess
import sys
import unittest

import load
from cluster import Cluster
from monitoring import Prometheus, catalogue, family, metric_names
from running import ROOT, eventually

FOLDER = ROOT / "dashboards"
DASHBOARDS = {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}

# The specified dashboard and its panels, in this order.
OVERVIEW = "streambus-overview"
SPECIFIED = [
    ("Message Throughput", "timeseries"),
    ("Byte Throughput", "timeseries"),
    ("P99 Produce Latency", "gauge"),
    ("P99 Consume Latency", "gauge"),
    ("Broker Status", "stat"),
    ("Broker Activity", "timeseries"),
    ("Storage", "timeseries"),
]

# What brokers that do all they can still have none of, or not at every look: these queries must answer, with 0.
QUIET = [
    "streambus_cluster_partitions",
    "streambus_replication_lag_entries",
    "1 - streambus_peer_connected",
    'role="leaderless"',
    "streambus_control_overrides",
    "streambus_telemetry_overflowing_metrics",
    "streambus_telemetry_observer_panics_total",
    "streambus_log_lines_dropped_total",
    "streambus_storage_errors_total",
    "streambus_replica_repairs_total",
    'level="error"',
]

# Metrics that no panel shows, and why that is right.
NOT_SHOWN = {
    "process_virtual_memory_bytes": "address space says nothing about memory in use",
}

TARGET_LABELS = {"job", "cluster", "instance"}
# Labels that Prometheus or PromQL bring.
OWN_LABELS = {"le", "__name__"}
UNITS = {"none", "short", "s", "bytes", "Bps", "cps", "reqps", "percentunit"}


def panels(dashboard):
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def targets():
    """Every query of a panel: where it is, and the target."""
    for uid, dashboard in DASHBOARDS.items():
        for panel in panels(dashboard):
            for target in panel["targets"]:
                yield f"{uid}: {panel['title']} {target['refId']}", panel, target


def selectors(query):
    """The metric and the matchers of each selector."""
    return re.findall(r"\b([a-z_:]+)\{([^}]*)\}", query)


class Rules(unittest.TestCase):
    """What Grafana's linter for dashboards asks for, and what is specified."""

    where = ""

    def _formatMessage(self, msg, standardMsg):
        """Says which dashboard, panel or query a failure is about."""
        return super()._formatMessage(f"{self.where}: {msg or ''}", standardMsg)

    def each(self):
        for self.where, dashboard in DASHBOARDS.items():
            yield dashboard

    def each_panel(self):
        for uid, dashboard in DASHBOARDS.items():
            for panel in panels(dashboard):
                self.where = f"{uid}: {panel['title']}"
                yield panel

    def each_target(self):
        for self.where, panel, target in targets():
            yield panel, target

    def test_the_files_are_what_the_generator_makes(self):
        ran = subprocess.run(
            [sys.executable, FOLDER / "generate.py", "--check"],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
            timeout=60,
        )
        self.assertEqual(ran.returncode, 0, ran.stderr)

    def test_the_overview_begins_with_the_specified_panels(self):
        first = [(panel["title"], panel["type"]) for panel in DASHBOARDS[OVERVIEW]["panels"][: len(SPECIFIED)]]
        self.assertEqual(first, SPECIFIED)

    def test_identities_are_unique_and_stable(self):
        titles = [dashboard["title"] for dashboard in DASHBOARDS.values()]
        self.assertEqual(len(titles), len(set(titles)))
        for name, dashboard in DASHBOARDS.items():
            self.assertEqual(dashboard["uid"], name)
            ids = [panel["id"] for panel in dashboard["panels"]]
            self.assertEqual(len(ids), len(set(ids)), name)
            named = [panel["title"] for panel in panels(dashboard)]
            self.assertEqual(len(named), len(set(named)), name)

    def test_panels_lie_in_the_grid_and_do_not_overlap(self):
        for dashboard in self.each():
            taken = set()
            for panel in dashboard["panels"]:
                at = panel["gridPos"]
                self.assertLessEqual(at["x"] + at["w"], 24)
                cells = {
                    (x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])
                }
                self.assertFalse(taken & cells, panel["title"])
                taken |= cells

    def test_the_default_range_is_six_hours_and_dashboards_are_not_edited_in_place(self):
        for dashboard in self.each():
            self.assertEqual(dashboard["time"], {"from": "now-6h", "to": "now"})
            self.assertFalse(dashboard["editable"])

    def test_each_dashboard_has_the_usual_variables(self):
        for dashboard in self.each():
            variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
            source = variables["datasource"]
            self.assertEqual(
                (source["type"], source["query"], source["label"]), ("datasource", "prometheus", "Data source")
            )
            for name, label in (("job", "Job"), ("cluster", "Cluster"), ("instance", "Instance")):
                variable = variables[name]
                self.assertEqual((variable["type"], variable["label"]), ("query", label))
                self.assertTrue(variable["multi"] and variable["includeAll"])
                # "All" of the jobs is those that brokers have: `up` and `process_…` belong to others too. Here the linter
                # would have ".+". A series without a cluster is shown; one without instance there is none.
                self.assertEqual(variable["allValue"], {"job": None, "cluster": ".*", "instance": ".+"}[name])
            for variable in variables.values():
                if variable["type"] == "query":
                    self.assertEqual(variable["datasource"]["uid"], "${datasource}")
                    self.assertEqual(variable["refresh"], 2, "new values are found when the time range changes")

    def test_each_panel_has_a_title_a_description_a_source_and_queries(self):
        for panel in self.each_panel():
            self.assertTrue(panel["title"])
            self.assertRegex(panel["description"], r"^[A-Z0-9/].{20,}\.$")
            self.assertEqual(panel["datasource"], {"type": "prometheus", "uid": "${datasource}"})
            self.assertTrue(panel["targets"])

    def test_each_panel_has_a_known_unit_and_thresholds_begin_at_the_bottom(self):
        for panel in self.each_panel():
            defaults = panel["fieldConfig"]["defaults"]
            self.assertIn(defaults["unit"], UNITS)
            if panel["type"] != "heatmap":
                steps = defaults["thresholds"]["steps"]
                self.assertIsNone(steps[0]["value"])
                above = [step["value"] for step in steps[1:]]
                self.assertEqual(above, sorted(above))

    def test_each_selector_follows_job_cluster_and_instance(self):
        for _, target in self.each_target():
            found = selectors(target["expr"])
            self.assertTrue(found)
            self.assertEqual(
                {name for name, _ in found}, metric_names(target["expr"]), "a selector without matchers"
            )
            for _, matchers in found:
                for label in ("job", "cluster", "instance"):
                    self.assertIn(f'{label}=~"${label}"', matchers)

    def test_rates_follow_the_scrape_interval(self):
        fixed = {"1h", "1d", "6h", "5m", "10m", "$__range"}
        for _, target in self.each_target():
            for function, window in re.findall(r"\b(\w+)\([a-z_]+\{[^}]*\}\[([^\]]+)\]", target["expr"]):
                if window in fixed:
                    # A count over a stated time, a trend or a mean over hours: the panel says so.
                    self.assertIn(function, ("increase", "changes", "deriv", "predict_linear", "rate"))
                    self.assertFalse(function == "rate" and window.endswith("m"), target["expr"])
                else:
                    self.assertEqual(window, "$__rate_interval")

    def test_counters_are_read_as_rates_and_nothing_else_is(self):
        known = catalogue()
        # A counter whose value is the point: any is a defect, however long ago.
        as_is = {"streambus_telemetry_observer_panics_total"}
        for _, target in self.each_target():
            for name, _ in selectors(target["expr"]):
                kind = known.get(family(name), ("gauge",))[0]
                counts = kind == "counter" or kind == "histogram"
                rated = re.search(rf"\b(?:rate|increase)\({name}\{{", target["expr"]) is not None
                if name not in as_is:
                    self.assertEqual(counts, rated, f"{name} is a {kind}")

    def test_labels_in_queries_and_legends_exist(self):
        known = catalogue()
        for _, target in self.each_target():
            names = [family(name) for name, _ in selectors(target["expr"])]
            allowed = TARGET_LABELS | OWN_LABELS
            for name in names:
                allowed |= known[name][1] if name in known else set()
            for _, matchers in selectors(target["expr"]):
                self.assertLessEqual(set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers)), allowed)
            for group in re.findall(r"\bby \(([^)]*)\)", target["expr"]):
                self.assertLessEqual(set(re.split(r",\s*", group)), allowed)
            self.assertLessEqual(set(re.findall(r"{{(\w+)}}", target["legendFormat"])), allowed)

    def test_links_lead_to_dashboards_and_variables_that_exist(self):
        uids = set(DASHBOARDS)
        for uid, dashboard in DASHBOARDS.items():
            names = {variable["name"] for variable in dashboard["templating"]["list"]}
            for panel in panels(dashboard):
                for link in panel["links"] + panel["fieldConfig"]["defaults"].get("links", []):
                    to = re.match(r"/d/([\w-]+)\?", link["url"])[1]
                    self.assertIn(to, uids, link["url"])
                    self.assertNotEqual(to, uid, "a link to where one is")
                    self.assertLessEqual(set(re.findall(r"\$\{(\w+):queryparam\}", link["url"])), names)
                    there = {variable["name"] for variable in DASHBOARDS[to]["templating"]["list"]}
                    self.assertLessEqual(set(re.findall(r"var-(\w+)=", link["url"])), there)
        linked = "".join(json.dumps(panel) for panel in panels(DASHBOARDS[OVERVIEW]))
        for uid in uids - {OVERVIEW}:
            self.assertIn(f"/d/{uid}?", linked, "the overview leads everywhere")

    def test_dashboards_and_catalogue_name_the_same_metrics(self):
        shown = set()
        for _, _, target in targets():
            shown |= {family(name) for name in metric_names(target["expr"])}
        for dashboard in DASHBOARDS.values():
            for annotation in dashboard["annotations"]["list"]:
                shown |= {family(name) for name in metric_names(annotation.get("expr", ""))}
        prometheus = {name for name in shown if name == "up" or name.startswith("scrape_")}
        self.assertEqual(shown - prometheus - set(catalogue()), set(), "not in the catalogue")
        self.assertEqual(set(catalogue()) - shown, set(NOT_SHOWN), "in the catalogue, and on no dashboard")

    def test_latencies_over_time_ask_for_exemplars(self):
        for panel, target in self.each_target():
            latency = "streambus_produce_latency_seconds_bucket" in target["expr"]
            if latency and panel["type"] in ("timeseries", "heatmap"):
                self.assertTrue(target["exemplar"])


class Live(unittest.TestCase):
    """Three brokers under load, scraped by Prometheus. One restarts before, so there is something to annotate."""

    @classmethod
    def setUpClass(cls):
        cls.collector = load.Moody()
        cls.addClassCleanup(cls.collector.stop)
        cls.cluster = Cluster(**load.SETTINGS, **{"telemetry.otlp.endpoint": cls.collector.address})
        cls.addClassCleanup(cls.cluster.close)
        addresses = list(cls.cluster.http.values())
        cls.prometheus = Prometheus(addresses)
        cls.addClassCleanup(cls.prometheus.close)
        scraped = "count(streambus_raft_term) == 3"
        eventually("the first scrapes", lambda: cls.prometheus.query(scraped))
        cls.cluster.stop(1)
        cls.cluster.start(1)
        eventually("all brokers reach each other again", lambda: cls.cluster.settled(3))
        cls.load = load.Load(cls.cluster.running[1])
        cls.addClassCleanup(cls.load.stop)
        instances = "|".join(sorted(addresses))
        cls.chosen = {"job": "streambus", "cluster": "local", "instance": instances, "topic": ".+", "group": ".+"}

    def resolved(self, query):
        """The query as Grafana sends it."""
        for name, value in {"__rate_interval": "15s", "__range": "5m", **self.chosen}.items():
            query = re.sub(rf"\${name}\b", value, query)
        self.assertNotIn("$", query)
        return query

    def finds(self, query, zero_is_right):
        """Whether the query has an answer now, and was something else than zero within the last minutes."""
        self.load.check()
        answer = self.prometheus.query(query)
        if zero_is_right or not answer:
            return bool(answer)
        peaks = self.prometheus.query(f"max_over_time(({query})[3m:1s])")
        return any(value > 0 for _, value in peaks)

    def test_every_query_of_every_panel_finds_what_happened(self):
        waiting = {where: target["expr"] for where, _, target in targets()}
        self.assertGreater(len(waiting), 100)

        def all_found():
            for where, expr in list(waiting.items()):
                if self.finds(self.resolved(expr), any(quiet in expr for quiet in QUIET)):
                    del waiting[where]
            return not waiting

        try:
            eventually("every query has found something", all_found, deadline=180)
        except AssertionError:
            self.fail("no data for:\n" + "\n".join(f"  {where}\n    {expr}" for where, expr in waiting.items()))

    def test_every_variable_has_values(self):
        for uid, dashboard in DASHBOARDS.items():
            for variable in dashboard["templating"]["list"]:
                if variable["type"] != "query":
                    continue
                series, label = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"]).groups()
                expected = self.chosen[variable["name"]]

                def values():
                    parameters = {"match[]": self.resolved(series)}
                    return self.prometheus.ask(f"label/{label}/values", **parameters)

                with self.subTest(f"{uid}: {variable['name']}"):
                    found = eventually(f"values of {variable['name']}", values, deadline=30)
                    if expected != ".+":
                        self.assertEqual(sorted(found), expected.split("|"))
                    if variable["name"] == "topic":
                        self.assertLessEqual({load.ORDERS, load.EVENTS}, set(found))

    def test_every_annotation_marks_what_happened(self):
        for uid, dashboard in DASHBOARDS.items():
            for annotation in dashboard["annotations"]["list"]:
                if "expr" not in annotation:
                    continue
                with self.subTest(f"{uid}: {annotation['name']}"):
                    query = self.resolved(annotation["expr"])
                    eventually(
                        annotation["name"],
                        lambda: any(
                            value > 0 for _, value in self.prometheus.query(f"max_over_time(({query})[5m:1s])")
                        ),
                    )

    def test_an_exemplar_on_a_panel_leads_to_the_trace(self):
        panel = next(
            panel for panel in panels(DASHBOARDS["streambus-performance"]) if panel["title"] == "Produce Latency"
        )
        query = self.resolved(panel["targets"][0]["expr"])

        def traces():
            series = self.prometheus.ask("query_exemplars", query=query, start=0, end=32_503_680_000)
            return {exemplar["labels"]["trace_id"] for one in series for exemplar in one["exemplars"]}

        # Buckets keep the newest exemplar only, and others produce too.
        eventually("an exemplar of the trace", lambda: load.TRACE in traces())


if __name__ == "__main__":
    unittest.main()
