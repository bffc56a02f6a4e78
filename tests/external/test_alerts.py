"""Alerts fire when, and only when, what they are about happens; each has a runbook whose queries and commands work."""

import collections
import os
import pathlib
import random
import re
import resource
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest

import grpc
import yaml

import wire
from cluster import Cluster
from members import Member
from monitoring import RULES, Prometheus, catalogue, family, metric_names
from running import ROOT, Broker, binary, eventually, free_port, tool

RUNBOOKS = ROOT / "docs" / "runbooks"
CASES = sorted((ROOT / "alerts" / "tests").glob("*.yml"))
SEVERITIES = {"warning", "critical"}

# The specified alerts: what they compare, with what, and for how long.
SPECIFIED = {
    "HighProduceLatency": ("streambus_produce_latency_seconds", "> 0.1", "5m", "warning"),
    "BrokerDown": ("up", "== 0", "1m", "critical"),
    "HighStorageUsage": ("streambus_storage_used_bytes", "> 80", "10m", "warning"),
    "HighConsumerLag": ("streambus_consumer_group_lag", "> 10000", "5m", "warning"),
    "HighNetworkErrors": ("streambus_network_errors_total", "> 10", "5m", "warning"),
}


def rules():
    """Every rule of every file."""
    for path in RULES:
        for group in yaml.safe_load(path.read_text())["groups"]:
            yield from group["rules"]


ALERTS = [rule for rule in rules() if "alert" in rule]
RECORDED = {rule["record"]: rule["expr"] for rule in rules() if "record" in rule}


def metrics(query):
    """The metrics of the catalogue that a query reads, through the recording rules too."""
    found = set()
    for name in metric_names(query):
        found |= metrics(RECORDED[name]) if name in RECORDED else {family(name)}
    return found


def run(*command):
    """What a program says, standard error included."""
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    return ran.returncode, ran.stdout + ran.stderr


class Rules(unittest.TestCase):
    """The rule files."""

    def test_promtool_has_no_objection(self):
        code, said = run(tool("promtool"), "check", "rules", "--lint=all", "--lint-fatal", *map(str, RULES))
        self.assertEqual(code, 0, said)

    def test_promtool_finds_that_alerts_fire_and_are_silent(self):
        code, said = run(tool("promtool"), "test", "rules", *map(str, CASES))
        self.assertEqual(code, 0, said)

    def test_the_made_files_are_what_the_generator_makes(self):
        code, said = run(sys.executable, str(ROOT / "alerts" / "generate.py"), "--check")
        self.assertEqual(code, 0, said)

    def test_the_specified_alerts_are_there(self):
        named = {rule["alert"]: rule for rule in ALERTS}
        for name, (metric, threshold, wait, severity) in SPECIFIED.items():
            rule = named[name]
            self.assertIn(metric, metrics(rule["expr"]), name)
            self.assertTrue(rule["expr"].endswith(threshold), name)
            self.assertEqual((rule["for"], rule["labels"]["severity"]), (wait, severity), name)

    def test_each_alert_says_what_it_should(self):
        for rule in ALERTS:
            with self.subTest(rule["alert"]):
                self.assertRegex(rule["alert"], r"^([A-Z][a-z]+)+$")
                self.assertIn(rule["labels"]["severity"], SEVERITIES)
                self.assertIn("for", rule)
                said = rule["annotations"]
                self.assertEqual(set(said), {"summary", "description", "runbook_url"})
                self.assertFalse(said["summary"].endswith("."))
                self.assertRegex(said["description"], r"(?s)^[A-Z{].*\.$")

    def test_rules_read_what_the_catalogue_has(self):
        for rule in rules():
            name = rule.get("alert") or rule["record"]
            self.assertLessEqual(metrics(rule["expr"]) - {"up"}, set(catalogue()), name)

    def test_labels_in_rules_exist(self):
        known = catalogue()
        for rule in rules():
            allowed = {"job", "cluster", "instance", "le"}
            for name in metrics(rule["expr"]) & set(known):
                allowed |= known[name][1]
            for matchers in re.findall(r"[a-z]\{([^}]*)\}", rule["expr"]):
                self.assertLessEqual(set(re.findall(r"(\w+)(?:=~|!~|!=|=)\"", matchers)), allowed, rule)
            for labels in re.findall(r"\bby \(([^)]*)\)", rule["expr"]):
                self.assertLessEqual(set(re.split(r",\s*", labels)), allowed, rule)

    def test_what_is_recorded_is_used(self):
        used = " ".join(rule["expr"] for rule in rules()) + " ".join(
            path.read_text() for path in RUNBOOKS.glob("*.md")
        )
        self.assertEqual([name for name in RECORDED if name not in used], [])

    def test_the_jobs_are_those_of_our_scrape_configurations(self):
        jobs = set()
        for path in [*(ROOT / "deploy" / "prometheus").glob("*.yml"), ROOT / "otel-collector" / "scrape.yaml"]:
            jobs |= set(re.findall(r"job_name: '?(streambus[\w-]*)'?$", path.read_text(), re.M))
        self.assertEqual(jobs, {"streambus", "streambus-cluster", "streambus-k8s"})
        for name in ("BrokerDown", "NoBrokers"):
            expr = next(rule["expr"] for rule in ALERTS if rule["alert"] == name)
            pattern = re.search(r'job=~"([^"]+)"', expr)[1]
            for job in jobs:
                self.assertTrue(re.fullmatch(pattern, job), f"{name} does not see the job {job}")


class Cases(unittest.TestCase):
    """The cases of promtool: for each rule one in which it fires, and one in which it does not."""

    @classmethod
    def setUpClass(cls):
        cls.fires, cls.silent, cls.labels = set(), set(), collections.defaultdict(list)
        for path in CASES:
            for test in yaml.safe_load(path.read_text())["tests"]:
                for case in test["promql_expr_test"]:
                    asked = dict(re.findall(r'(\w+)="([^"]*)"', case["expr"])) if "ALERTS{" in case["expr"] else {}
                    if not asked:
                        continue
                    if not case["exp_samples"]:
                        cls.silent.add((asked["alertname"], asked.get("severity"), asked.get("window")))
                    for sample in case["exp_samples"]:
                        labels = dict(re.findall(r'(\w+)="([^"]*)"', sample["labels"]))
                        key = (labels["alertname"], labels["severity"], labels.get("window"))
                        cls.fires.add(key)
                        cls.labels[key].append(set(labels))

    @staticmethod
    def key(rule):
        return rule["alert"], rule["labels"]["severity"], rule["labels"].get("window")

    def test_each_rule_has_a_case_in_which_it_fires(self):
        self.assertEqual({self.key(rule) for rule in ALERTS} ^ self.fires, set())

    def test_each_rule_has_a_case_in_which_it_is_silent(self):
        for rule in ALERTS:
            name, severity, window = self.key(rule)
            # A case that names no severity is silent for all.
            self.assertTrue({(name, severity, window), (name, None, None)} & self.silent, (name, severity, window))

    def test_annotations_use_labels_that_the_alert_has(self):
        for rule in ALERTS:
            used = set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"])))
            for labels in self.labels[self.key(rule)]:
                self.assertLessEqual(used, labels, rule["alert"])


class Runbooks(unittest.TestCase):
    """docs/runbooks."""

    @classmethod
    def setUpClass(cls):
        cls.pages = {path.stem: path.read_text() for path in RUNBOOKS.glob("*.md") if path.stem != "README"}

    def test_each_alert_has_a_runbook_and_each_runbook_an_alert(self):
        self.assertEqual(set(self.pages), {rule["alert"] for rule in ALERTS})
        for rule in ALERTS:
            self.assertTrue(rule["annotations"]["runbook_url"].endswith(f"/docs/runbooks/{rule['alert']}.md"))
        listed = re.findall(r"^- \[(\w+)\]\((\w+)\.md\)$", (RUNBOOKS / "README.md").read_text(), re.M)
        self.assertEqual(listed, [(name, name) for name in sorted(self.pages)])

    def test_each_page_has_the_same_parts(self):
        for name, page in self.pages.items():
            self.assertEqual(page.splitlines()[0], f"# {name}")
            self.assertEqual(
                re.findall(r"^## (.+)$", page, re.M), ["Meaning", "Impact", "Diagnosis", "Mitigation"], name
            )

    def test_links_lead_to_pages(self):
        for name, page in self.pages.items():
            for target in re.findall(r"\]\((\w+)\.md\)", page):
                self.assertIn(target, self.pages, name)

    @staticmethod
    def queries(page):
        return re.findall(r"^```promql\n(.+?)\n```$", page, re.M | re.S)

    def test_queries_read_what_the_catalogue_has_and_what_the_alert_is_about(self):
        for name, page in self.pages.items():
            asked = set()
            for query in self.queries(page):
                asked |= metrics(query)
            self.assertLessEqual(asked - {"up"}, set(catalogue()), name)
            for rule in ALERTS:
                if rule["alert"] == name:
                    self.assertTrue(asked & metrics(rule["expr"]), f"{name} does not show what fired")

    def test_commands_parse(self):
        commands = set()
        for page in self.pages.values():
            for block in re.findall(r"^```sh\n(.+?)\n```$", page, re.M | re.S):
                commands |= {line for line in block.splitlines() if line.startswith("streambus ")}
            commands |= {" ".join(code.split()) for code in re.findall(r"`(streambus [^`]+)`", page)}
        self.assertGreater(len(commands), 20)
        with tempfile.TemporaryDirectory() as nowhere:
            for command in sorted(commands):
                # Nobody is there, so nothing happens; but a command that makes no sense ends with 2 before it notices.
                ran = subprocess.run(
                    [binary(), *shlex.split(command)[1:]],
                    env={
                        "STREAMBUS_BROKER": "127.0.0.1:1",
                        "STREAMBUS_TIMEOUT": "200ms",
                        "PATH": os.environ["PATH"],
                    },
                    cwd=nowhere,
                    capture_output=True,
                    text=True,
                    check=False,
                    timeout=60,
                )
                self.assertIn(ran.returncode, (0, 1), f"{command}\n{ran.stderr}")

    def test_settings_that_are_named_exist(self):
        known = set(re.findall(r"^\| `([a-z_.]+)` \|", (ROOT / "docs" / "configuration.md").read_text(), re.M))
        sections = {setting.split(".")[0] for setting in known}
        for name, page in self.pages.items():
            for setting in re.findall(r"`([a-z_]+(?:\.[a-z_]+)+)(?: = [^`]*)?`", page):
                if setting.split(".")[0] in sections:
                    self.assertIn(setting, known, name)


class Firing(unittest.TestCase):
    """A Prometheus with our rules. Only `for` is shorter than it is."""

    prometheus = None

    def fires(self, name, cause=lambda: None, deadline=90, **labels):
        """Waits until an alert with these labels fires, repeating the cause; what it says must be complete."""

        def fired():
            cause()
            for alert in self.prometheus.firing():
                has = alert["labels"]
                if has["alertname"] == name and all(has.get(key) == value for key, value in labels.items()):
                    return alert
            return None

        alert = eventually(f"{name} fires", fired, deadline)
        for text in alert["annotations"].values():
            self.assertNotRegex(text, r"<no value>|<error|%!|\{\{|  ", name)
        return alert

    def firing(self):
        """The names of the alerts that fire."""
        return {alert["labels"]["alertname"] for alert in self.prometheus.firing()}


class Live(Firing):
    """Brokers that know nothing of each other, and to which things happen."""

    @classmethod
    def setUpClass(cls):
        cls.data = {}
        cls.http = {
            name: f"127.0.0.1:{free_port()}" for name in ("works", "full", "unsteady", "damaged", "healthy")
        }
        for name in cls.http:
            directory = tempfile.TemporaryDirectory(prefix=f"streambus-{name}-")
            cls.addClassCleanup(directory.cleanup)
            cls.data[name] = directory.name
        cls.brokers = {}
        cls.addClassCleanup(cls.close_all)
        for name in cls.http:
            settings = {}
            if name == "works":
                # Nobody listens there.
                settings = {
                    "telemetry.otlp.endpoint": f"http://127.0.0.1:{free_port()}",
                    "telemetry.otlp.timeout": "500ms",
                    "telemetry.otlp.metrics_interval": "500ms",
                }
            if name == "damaged":
                settings = {"storage.table_bytes": "1MiB", "storage.write_buffer_bytes": "4MiB"}
            cls.start(name, **settings)
        cls.prometheus = Prometheus(list(cls.http.values()), with_rules=True)
        cls.addClassCleanup(cls.prometheus.close)
        cls.client = wire.Client(cls.brokers["works"].grpc)
        cls.addClassCleanup(cls.client.channel.close)
        running = "max_over_time(streambus_broker_status[1m]) == 2"
        eventually("all brokers are scraped", lambda: len(cls.prometheus.query(running)) == len(cls.http))

    @classmethod
    def start(cls, name, **settings):
        settings = {"storage.data_dir": cls.data[name], "api.http_listen": cls.http[name], **settings}
        cls.brokers[name] = Broker(**settings)

    @classmethod
    def stop(cls, name):
        cls.brokers.pop(name).close()

    @classmethod
    def close_all(cls):
        for name in list(cls.brokers):
            cls.stop(name)

    def topic(self, name, client=None, **more):
        (client or self.client).topic.CreateTopic(wire.topic.CreateTopicRequest(name=name, **more))

    def send(self, topic, count, client=None):
        for slice_ in wire.in_batches([(b"", b"message")] * count, 2_000):
            request = wire.produce.ProduceRequest(topic=topic, batch=wire.batch(slice_))
            (client or self.client).produce.Produce(request)

    def commit(self, group, topic, offset):
        commit = wire.group.OffsetCommit(topic=topic, partition=0, offset=offset)
        answer = self.client.group.CommitOffsets(wire.group.CommitOffsetsRequest(group=group, offsets=[commit]))
        self.assertFalse(answer.results[0].HasField("error"), answer)

    def fires(self, name, cause=lambda: None, deadline=90, **labels):
        alert = super().fires(name, cause, deadline, **labels)
        self.assertEqual(
            [
                one["labels"]
                for one in self.prometheus.firing()
                if one["labels"].get("instance") == self.http["healthy"]
            ],
            [],
            "the broker to which nothing happens is well",
        )
        return alert

    def test_a_group_that_is_far_behind(self):
        self.topic("far")
        self.commit("slow", "far", 0)
        self.send("far", 10_001)
        alert = self.fires("HighConsumerLag", group="slow", topic="far", partition="0")
        self.assertIn("10k messages", alert["annotations"]["description"])

    def test_messages_that_are_deleted_before_they_are_read(self):
        self.topic("short")
        self.commit("loser", "short", 0)
        self.send("short", 10)
        request = wire.topic.DeleteRecordsRequest(topic="short", partition=0, before_offset=5)
        self.client.topic.DeleteRecords(request)
        member = Member(self.client, "loser", "short")
        next(event for kind, event in member.events() if kind == "records")
        self.fires("ConsumerGroupMissedMessages", group="loser", topic="short")
        member.leave()

    def test_messages_that_reach_a_group_late(self):
        self.topic("old")
        self.send("old", 1)
        self.commit("late", "old", 0)
        age = 'streambus_consumer_group_lag_seconds{group="late",partition="0",topic="old"}'
        eventually("the message is old", lambda: self.brokers["works"].metric(age) > 1.5)

        def read():
            # Nothing is committed, so the next member gets it again, even later.
            member = Member(self.client, "late", "old")
            next(event for kind, event in member.events() if kind == "records")
            member.leave()

        self.fires("DeliveryLatencyBudgetBurn", read, severity="critical", window="1h", group="late")

    def test_a_table_with_a_byte_that_was_not_written(self):
        noise = random.Random(5)
        marker = noise.randbytes(64)

        def put(client, value):
            batch = wire.batch([(b"", value)])
            client.produce.Produce(wire.produce.ProduceRequest(topic="cold", batch=batch))

        def table():
            """The table that has the record, and where in it."""
            for path in pathlib.Path(self.data["damaged"]).rglob("*"):
                if path.is_file() and path.suffix != ".jnl" and (at := path.read_bytes().find(marker)) >= 0:
                    return path, at
            return None

        with wire.Client(self.brokers["damaged"].grpc) as client:
            self.topic("cold", client)
            put(client, marker)

            def flushed():
                put(client, noise.randbytes(256 << 10))
                return table()

            eventually("the record is in a table", flushed)
        self.stop("damaged")
        path, at = table()
        with path.open("r+b") as file:
            file.seek(at)
            file.write(bytes([marker[0] ^ 0x55]))
        # The first record is read when its partition is opened, so this one cannot be.
        self.start("damaged")
        self.fires("ErrorsLogged", instance=self.http["damaged"])
        self.fires("HealthCheckFailing", instance=self.http["damaged"], check="cluster")

    def test_a_message_that_is_rejected(self):
        self.topic("work")
        self.send("work", 3)
        member = Member(self.client, "workers", "work", wire.group.ShareOptions())
        for kind, _ in member.events():
            if kind == "records":
                refused = wire.group.Acknowledgement(
                    topic="work", partition=0, first_offset=0, last_offset=0, kind=wire.group.ACK_KIND_REJECT
                )
                member.say(acknowledge=wire.group.Acknowledge(correlation_id=1, acknowledgements=[refused]))
            elif kind == "acknowledged":
                break
        self.fires("DeadLetters", group="workers", topic="work")
        member.leave()

    def test_members_that_come_and_go(self):
        self.topic("restless")

        def come_and_go():
            for _ in range(5):
                member = Member(self.client, "nervous", "restless")
                next(event for kind, event in member.events() if kind == "assigned")
                member.leave()

        self.fires("FrequentRebalances", come_and_go, instance=self.http["works"])

    def test_peers_that_speak_something_else(self):
        host, port = self.brokers["works"].grpc.rsplit(":", 1)

        def speak():
            for _ in range(500):
                with socket.create_connection((host, int(port)), 10) as peer:
                    peer.sendall(b"\x00" * 32)

        self.fires("HighNetworkErrors", speak, instance=self.http["works"], kind="protocol")

    def test_a_collector_that_is_gone(self):
        self.fires("TelemetryDropped", instance=self.http["works"], reason="export_failed")

    def test_a_process_that_does_not_run_while_it_has_work(self):
        self.topic("paused")
        process = self.brokers["works"].program.process_id()
        over = threading.Event()

        def produce():
            with wire.Client(self.brokers["works"].grpc) as client:
                while not over.is_set():
                    self.send("paused", 1, client)

        producers = [threading.Thread(target=produce) for _ in range(8)]
        for producer in producers:
            producer.start()

        def pause():
            # The pause is the cause: what the broker has begun then takes at least as long. In between it runs only for
            # so long that little is begun and ended without one.
            for _ in range(10):
                os.kill(process, signal.SIGSTOP)
                try:
                    time.sleep(0.15)
                finally:
                    os.kill(process, signal.SIGCONT)
                time.sleep(0.003)

        try:
            self.fires("HighProduceLatency", pause, instance=self.http["works"])
            self.fires("ProduceLatencyBudgetBurn", pause, severity="critical", window="1h", job="streambus")
        finally:
            over.set()
            for producer in producers:
                producer.join(60)

    def test_a_disk_with_less_space_than_the_reserve(self):
        with wire.Client(self.brokers["full"].grpc) as client:
            self.topic("before", client)
            self.send("before", 1, client)
        self.stop("full")
        # More than any disk has.
        self.start("full", **{"storage.reserve_bytes": "1024TiB"})
        full = self.http["full"]
        with wire.Client(self.brokers["full"].grpc) as client:

            def refused():
                # Other tests produce too, and what they get acknowledged counts against these.
                for _ in range(50):
                    with self.assertRaises(grpc.RpcError) as raised:
                        self.send("before", 1, client)
                    self.assertEqual(raised.exception.code(), grpc.StatusCode.RESOURCE_EXHAUSTED)

            self.fires("StorageNotWritable", instance=full)
            self.fires("HealthCheckFailing", instance=full, check="storage")
            self.fires("HighStorageUsage", instance=full)
            self.fires("ProduceErrorBudgetBurn", refused, severity="critical", window="1h", job="streambus")

    def test_a_process_with_few_file_descriptors_left(self):
        process = self.brokers["works"].program.process_id()
        before = resource.prlimit(process, resource.RLIMIT_NOFILE)

        def few_left():
            # Again and again: what other tests had open is closed by and by.
            open_now = int(self.brokers["works"].metric("process_open_fds"))
            resource.prlimit(process, resource.RLIMIT_NOFILE, (int(open_now * 1.1), before[1]))

        try:
            self.fires("FileDescriptorsRunningOut", few_left, instance=self.http["works"])
        finally:
            resource.prlimit(process, resource.RLIMIT_NOFILE, before)

    def test_a_broker_that_restarts_and_then_does_not(self):
        unsteady = self.http["unsteady"]

        def seen(started):
            query = f'process_start_time_seconds{{instance="{unsteady}"}} > {started}'
            return [value for _, value in self.prometheus.query(query)]

        for _ in range(3):
            started = eventually("a scrape", lambda: seen(0))[0]
            self.stop("unsteady")
            self.start("unsteady")
            eventually("a scrape after the restart", lambda last=started: seen(last))
        self.fires("BrokerRestarting", instance=unsteady)
        self.fires("FrequentElections", instance=unsteady)
        self.stop("unsteady")
        alert = self.fires("BrokerDown", instance=unsteady)
        self.assertEqual(alert["labels"]["severity"], "critical")

    def test_every_query_of_the_runbooks_is_one(self):
        for path in RUNBOOKS.glob("*.md"):
            for query in Runbooks.queries(path.read_text()):
                with self.subTest(path.stem):
                    self.prometheus.query(query)

    def test_every_recording_rule_is_evaluated_without_error(self):
        def evaluated():
            groups = self.prometheus.ask("rules")["groups"]
            found = [rule for group in groups for rule in group["rules"]]
            return found if all(rule["health"] == "ok" for rule in found) else None

        found = eventually("all rules are evaluated", evaluated)
        self.assertEqual(len(found), len(list(rules())))


class LiveCluster(Firing):
    """Three brokers that form a cluster, of which some are killed or stand still."""

    PARTITIONS = 3
    # Not ReplicationSlow, which remembers five minutes.
    OF_A_CLUSTER = {
        "PartitionsLeaderless",
        "PartitionsOffline",
        "PartitionsUnderReplicated",
        "PeerDisconnected",
        "ReplicationLagHigh",
    }

    @classmethod
    def setUpClass(cls):
        # Leaderships stay where elections bring them.
        cls.cluster = Cluster(**{"cluster.balance_interval": "1h"})
        cls.addClassCleanup(cls.cluster.close)
        cls.prometheus = Prometheus(list(cls.cluster.http.values()), with_rules=True)
        cls.addClassCleanup(cls.prometheus.close)
        cls.client = wire.Client(cls.cluster.grpc[1])
        cls.addClassCleanup(cls.client.channel.close)
        cls.client.topic.CreateTopic(
            wire.topic.CreateTopicRequest(name="orders", partition_count=cls.PARTITIONS, replication_factor=3)
        )

    def setUp(self):
        eventually("the cluster is well", lambda: self.cluster.settled(3))
        eventually("no alert of the cluster fires", lambda: not self.firing() & self.OF_A_CLUSTER)
        scraped = "count(streambus_cluster_partitions{state=\"leaderless\"} == 0) == 3"
        eventually("all brokers are scraped", lambda: self.prometheus.query(scraped))

    def produce(self, partition):
        request = wire.produce.ProduceRequest(topic="orders", partition=partition, batch=wire.batch([(b"", b"x")]))
        self.client.produce.Produce(request, timeout=30)

    def test_brokers_are_killed_until_no_majority_is_left(self):
        self.cluster.kill(3)
        alert = self.fires("PeerDisconnected", instance=self.cluster.http[1], peer="3")
        self.assertEqual(alert["labels"]["severity"], "warning")
        alert = self.fires("PartitionsUnderReplicated", job="streambus", cluster="local")
        eventually(
            "each partition lacks a replica",
            lambda: self.prometheus.query('sum(streambus_cluster_partitions{state="under_replicated"})')
            == [({}, self.PARTITIONS)],
        )
        self.fires("BrokerDown", instance=self.cluster.http[3])
        self.assertFalse(self.firing() & {"PartitionsLeaderless", "PartitionsOffline"}, "two of three are enough")

        self.cluster.kill(2)
        for name in ("PartitionsLeaderless", "PartitionsOffline"):
            alert = self.fires(name, job="streambus", cluster="local")
            self.assertEqual(alert["labels"]["severity"], "critical")
        self.fires("HealthCheckFailing", instance=self.cluster.http[1], check="cluster")

        self.cluster.start_together(2, 3)
        eventually("all is well again", lambda: not self.firing() & self.OF_A_CLUSTER, deadline=90)

    def test_a_follower_that_stands_still(self):
        follower = self.cluster.running[3].program.process_id()
        described = self.client.topic.DescribeTopic(wire.topic.DescribeTopicRequest(name="orders"))
        partition = next(one.partition for one in described.partitions if one.leader_id != 3)
        over = threading.Event()

        def produce():
            while not over.wait(0.05):
                self.produce(partition)

        def pause():
            # The pause is the cause: entries that are on their way take at least as long.
            os.kill(follower, signal.SIGSTOP)
            try:
                time.sleep(1.3)
            finally:
                os.kill(follower, signal.SIGCONT)
            time.sleep(0.2)

        producer = threading.Thread(target=produce)
        producer.start()
        try:
            self.fires("ReplicationSlow", pause)
        finally:
            over.set()
            producer.join(60)

        os.kill(follower, signal.SIGSTOP)
        try:

            def fall_behind():
                for _ in range(200):
                    self.produce(partition)

            self.fires("ReplicationLagHigh", fall_behind, peer="3")
        finally:
            os.kill(follower, signal.SIGCONT)
        lag = 'max(streambus_replication_lag_entries{peer="3"}) < 100'
        eventually("it catches up", lambda: self.prometheus.query(lag), deadline=90)


if __name__ == "__main__":
    unittest.main()
