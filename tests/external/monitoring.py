"""A Prometheus that runs the configuration and the rules of this repository, at a test's pace."""

import json
import pathlib
import re
import tempfile
import urllib.error
import urllib.parse
import urllib.request

import yaml

from running import ROOT, Program, eventually, free_port, tool

CONFIGURATION = ROOT / "deploy" / "prometheus" / "prometheus.yml"
RULES = sorted((ROOT / "alerts").glob("streambus-*.yml"))
# Also the longest that a scrape may take, which on a busy machine is more than one second.
INTERVAL = "2s"


def metric_names(query):
    """The names in a query that are metrics: what has a `streambus_`, `process_`, `rpc_` or rule-like name."""
    names = set(re.findall(r"\b(?:[a-z_]+:)?(?:streambus|process|rpc_server)_[a-z_]+(?::[a-z0-9_]+)?\b", query))
    return names | set(re.findall(r"\b(?:up|scrape_[a-z_]+)\b(?=\s*(?:\{|\)|=|$))", query))


def family(name):
    """The metric that a series of a histogram belongs to."""
    return re.sub(r"_(bucket|sum|count)$", "", name)


def catalogue():
    """Every metric's row in docs/METRICS.md: name to (type, labels)."""
    rows = re.findall(
        r"^\| `([a-z_]+)` \| `[a-z_.]+` \| (\w+) \| `[^`]+` \| (.*?) \| \d+ \|",
        (ROOT / "docs" / "METRICS.md").read_text(),
        re.M,
    )
    return {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}


def quick(rules):
    """The rule files as they are, but evaluated all the time and with `for` and `keep_firing_for` of that interval."""
    for group in rules["groups"]:
        group["interval"] = INTERVAL
        for rule in group["rules"]:
            for wait in ("for", "keep_firing_for"):
                if wait in rule:
                    rule[wait] = INTERVAL
    return rules


class Prometheus:
    """Scrapes `targets`, which are host:port, as deploy/prometheus/prometheus.yml says, but more often."""

    def __init__(self, targets, with_rules=False):
        self._directory = tempfile.TemporaryDirectory(prefix="streambus-prometheus-")
        here = pathlib.Path(self._directory.name)
        configuration = yaml.safe_load(CONFIGURATION.read_text())
        for key in ("scrape_interval", "scrape_timeout", "evaluation_interval"):
            configuration["global"][key] = INTERVAL
        address = f"127.0.0.1:{free_port()}"
        # Prometheus itself stays: what it shows must not be taken for a broker's.
        jobs = {"streambus": list(targets), "prometheus": [address]}
        scrapes = [scrape for scrape in configuration["scrape_configs"] if scrape["job_name"] in jobs]
        for scrape in scrapes:
            scrape["static_configs"][0]["targets"] = jobs[scrape["job_name"]]
        configuration["scrape_configs"] = scrapes
        del configuration["alerting"]
        configuration["rule_files"] = []
        if with_rules:
            for path in RULES:
                (here / path.name).write_text(yaml.safe_dump(quick(yaml.safe_load(path.read_text()))))
                configuration["rule_files"].append(str(here / path.name))
        (here / "prometheus.yml").write_text(yaml.safe_dump(configuration))
        self._program = Program(
            [
                tool("prometheus"),
                f"--config.file={here}/prometheus.yml",
                f"--storage.tsdb.path={here}/data",
                f"--web.listen-address={address}",
                "--enable-feature=exemplar-storage",
            ],
        )
        self.api = f"http://{address}/api/v1/"
        eventually("Prometheus is ready", lambda: self.ask("status/buildinfo"))

    def ask(self, what, **parameters):
        """The data of an answer; a ValueError with Prometheus's words if the question was wrong."""
        try:
            with urllib.request.urlopen(
                self.api + what + "?" + urllib.parse.urlencode(parameters), timeout=30
            ) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            if error.code == 503:
                # It is not ready yet, which whoever waits for it may try again.
                raise
            raise ValueError(f"{parameters}: {error.read().decode()}") from None

    def query(self, query):
        """The samples of an instant query: (labels, value) each."""
        result = self.ask("query", query=query)
        if result["resultType"] == "scalar":
            return [({}, float(result["result"][1]))]
        return [(sample["metric"], float(sample["value"][1])) for sample in result["result"]]

    def firing(self):
        """The alerts that fire, as Prometheus would tell Alertmanager."""
        return [alert for alert in self.ask("alerts")["alerts"] if alert["state"] == "firing"]

    def close(self):
        self._program.stop()
        self._directory.cleanup()
