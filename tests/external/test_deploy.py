"""What users deploy is consistent: files that are mounted exist, names that refer to something find it, settings are known.

No container engine and no cluster runs here, so shapes are checked instead: against published schemas where there are
some, and against small ones of what is used where there are none.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import unittest

import compose_spec
import kubernetes_validate
import yaml

from monitoring import RULES
from running import ROOT, Broker, binary, get, tool

DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
COLLECTOR = ROOT / "otel-collector"
KUBERNETES_VERSION = "1.33"


class Strict(yaml.SafeLoader):
    """YAML in which a key that is there twice is an error."""

    def construct_mapping(self, node, deep=False):
        names = [
            self.construct_object(key, deep=True) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"
        ]
        for name in names:
            if names.count(name) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{name} is there twice", node.start_mark)
        return super().construct_mapping(node, deep)


class WithoutAnchors(yaml.SafeDumper):
    """YAML that repeats what is there twice."""

    def ignore_aliases(self, data):
        return True


def documents(path):
    return list(yaml.load_all(path.read_text(), Strict))


def document(path):
    (one,) = documents(path)
    return one


def run(*command):
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    return ran.returncode, ran.stdout + ran.stderr


def settings():
    """The broker's settings as environment variables."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("STREAMBUS_")}
    shown = subprocess.run(
        [binary(), "config", "show", "-o", "json"],
        env=clean,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return {"STREAMBUS_" + entry["key"].upper().replace(".", "__") for entry in json.loads(shown.stdout)}


class Files(unittest.TestCase):
    def test_every_yaml_file_parses(self):
        found = [
            path
            for folder in (DEPLOY, COLLECTOR, ROOT / "alerts", ROOT / "dashboards")
            for pattern in ("*.yml", "*.yaml")
            for path in folder.rglob(pattern)
        ]
        self.assertGreater(len(found), 15)
        for path in found:
            with self.subTest(str(path.relative_to(ROOT))):
                self.assertTrue(documents(path))


class Prometheus(unittest.TestCase):
    def check(self, text):
        with tempfile.NamedTemporaryFile("w", suffix=".yml") as file:
            file.write(text)
            file.flush()
            code, said = run(tool("promtool"), "check", "config", "--syntax-only", file.name)
        self.assertEqual(code, 0, said)

    def test_promtool_accepts_each_configuration(self):
        for path in (DEPLOY / "prometheus").glob("*.yml"):
            with self.subTest(path.name):
                configuration = document(path)
                # Not every build of promtool has Kubernetes in it. What is around it is checked all the same.
                for holder in configuration["scrape_configs"] + configuration["alerting"]["alertmanagers"]:
                    for discovery in holder.pop("kubernetes_sd_configs", []):
                        self.assertIn(discovery["role"], ("pod", "endpoints"))
                        self.assertLessEqual(set(discovery), {"role", "namespaces"})
                        holder["static_configs"] = [{"targets": ["stand-in:1"]}]
                self.check(yaml.safe_dump(configuration))

    def test_each_configuration_loads_the_rules_and_names_its_cluster(self):
        for path in (DEPLOY / "prometheus").glob("*.yml"):
            configuration = document(path)
            (pattern,) = configuration["rule_files"]
            self.assertTrue(
                all(re.fullmatch(pattern.split("/")[-1].replace("*", ".*"), rule.name) for rule in RULES)
            )
            brokers = configuration["scrape_configs"][0]
            self.assertIn("cluster", yaml.safe_dump(brokers))
            self.assertEqual(brokers["metrics_path"], "/metrics")

    def test_discovery_finds_the_pods_that_we_deploy(self):
        rules = document(DEPLOY / "prometheus" / "kubernetes.yml")["scrape_configs"][0]["relabel_configs"]
        template = stateful_set()["spec"]["template"]
        ports = [port["name"] for port in template["spec"]["containers"][0]["ports"]]
        kept = {rule["source_labels"][0]: rule["regex"] for rule in rules if rule.get("action") == "keep"}
        self.assertRegex(template["metadata"]["labels"]["app"], f"^(?:{kept['__meta_kubernetes_pod_label_app']})$")
        self.assertIn(kept["__meta_kubernetes_pod_container_port_name"], ports)


class Alertmanager(unittest.TestCase):
    FILE = DEPLOY / "alertmanager" / "alertmanager.yml"

    def test_amtool_accepts_it(self):
        code, said = run(tool("amtool"), "check-config", str(self.FILE))
        self.assertEqual(code, 0, said)

    def test_severities_go_where_they_should(self):
        for severity, receiver in (("warning", "streambus-team"), ("critical", "streambus-pager")):
            ran = subprocess.run(
                [tool("amtool"), "config", "routes", "test", "--config.file", self.FILE, f"severity={severity}"],
                capture_output=True,
                text=True,
                check=True,
                timeout=60,
            )
            self.assertEqual(ran.stdout.split(), [receiver])

    def test_inhibitions_name_alerts_that_exist(self):
        rules = [rule for path in RULES for group in document(path)["groups"] for rule in group["rules"]]
        alerts = {rule["alert"] for rule in rules if "alert" in rule}
        for inhibit in document(self.FILE)["inhibit_rules"]:
            for matcher in inhibit["source_matchers"] + inhibit["target_matchers"]:
                label, names = re.fullmatch(r'(\w+) (?:=|!=|=~) "?([\w|]+)"?', matcher).groups()
                if label == "alertname":
                    self.assertLessEqual(set(names.split("|")), alerts)


def brokers_of(compose):
    """The services that are brokers, by name."""
    return {name: one for name, one in compose["services"].items() if name.startswith("broker-")}


class Compose(unittest.TestCase):
    """deploy/compose/compose.yaml."""

    FILE = DEPLOY / "compose" / "compose.yaml"
    KEYS = {
        "build", "command", "depends_on", "environment", "healthcheck", "image", "mem_limit", "ports", "restart",
        "stop_grace_period", "volumes",
    }  # fmt: skip

    @classmethod
    def setUpClass(cls):
        cls.compose = document(cls.FILE)
        cls.services = cls.compose["services"]
        cls.brokers = brokers_of(cls.compose)

    def test_it_is_a_compose_file(self):
        # Merge keys are resolved, which Compose does and the schema does not know.
        parsed = compose_spec.PyCompose.from_yaml(yaml.dump(self.compose, Dumper=WithoutAnchors))
        parsed.validate()
        self.assertEqual(set(parsed.service_names()), set(self.services))

    def test_it_uses_what_we_know(self):
        self.assertEqual(set(self.compose), {"name", "services", "volumes", "x-broker", "x-settings"})
        for name, service in self.services.items():
            self.assertLessEqual(set(service), self.KEYS, name)
            self.assertRegex(service["image"], r"^[\w./-]+:[\w.]+$")
            self.assertNotIn("latest", service["image"])
            for port in service.get("ports", []):
                self.assertRegex(port, r"^\d+:\d+$")
            for other in service.get("depends_on", []):
                self.assertIn(other, self.services)
            for value in service.get("environment", {}).values():
                self.assertIsInstance(value, str, f"{name}: quote {value}")

    def test_what_is_mounted_exists(self):
        named = set()
        for name, service in self.services.items():
            for volume in service.get("volumes", []):
                source, _, target = volume.removesuffix(":ro").partition(":")
                self.assertTrue(target.startswith("/"), volume)
                if source.startswith("."):
                    self.assertTrue((self.FILE.parent / source).exists(), f"{name} mounts {source}")
                    self.assertTrue(volume.endswith(":ro"), "what is in the repository stays as it is")
                else:
                    named.add(source)
        self.assertEqual(named, set(self.compose["volumes"]))

    def test_the_brokers_settings_exist(self):
        known = settings()
        # The address that the command line asks is no setting of the broker.
        for broker in self.brokers.values():
            self.assertLessEqual(set(broker["environment"]) - {"STREAMBUS_BROKER"}, known)

    def test_three_brokers_know_each_other(self):
        self.assertEqual(len(self.brokers), 3)
        seeds, volumes, ports = set(), [], {}
        for name, broker in self.brokers.items():
            settings_here = broker["environment"]
            port = settings_here["STREAMBUS_API__GRPC_LISTEN"].removeprefix("0.0.0.0:")
            self.assertEqual(settings_here["STREAMBUS_SERVER__GRPC_ADVERTISE"], f"{name}:{port}")
            self.assertEqual(settings_here["STREAMBUS_BROKER"], f"localhost:{port}")
            # Inside and outside it has one address, so that a client on the host can use what it is told.
            self.assertIn(f"{port}:{port}", broker["ports"])
            ports[name] = port
            seeds.add(settings_here["STREAMBUS_CLUSTER__SEEDS"])
            volumes += broker["volumes"]
        self.assertEqual(seeds, {",".join(f"{name}:{port}" for name, port in ports.items())})
        self.assertEqual(len(set(volumes)), 3, "each has a volume of its own")
        published = [port.split(":")[0] for one in self.services.values() for port in one.get("ports", [])]
        self.assertEqual(len(published), len(set(published)))

    def test_prometheus_scrapes_every_broker(self):
        mounted = [one for one in self.services["prometheus"]["volumes"] if "prometheus.yml" in one]
        self.assertEqual(
            mounted, ["../prometheus/prometheus-cluster.yml:/etc/prometheus/prometheus.yml:ro"]
        )
        scrape = document(DEPLOY / "prometheus" / "prometheus-cluster.yml")["scrape_configs"][0]
        (static,) = scrape["static_configs"]
        self.assertEqual(static["targets"], [f"{name}:8080" for name in self.brokers])

    def test_addresses_lead_to_services(self):
        texts = {self.FILE.name: yaml.safe_dump(self.services)}
        for path in (
            DEPLOY / "prometheus" / "prometheus-cluster.yml",
            DEPLOY / "grafana" / "datasources.yml",
            COLLECTOR / "beside-prometheus.yaml",
        ):
            texts[path.name] = yaml.safe_dump(document(path))
        listens = {
            "broker-1": {"8080", "9092"},
            "broker-2": {"8080", "9192"},
            "broker-3": {"8080", "9292"},
            "prometheus": {"9090"},
            "alertmanager": {"9093"},
            "jaeger": {"4317", "16686"},
            "loki": {"3100"},
            "collector": set(re.findall(r"0\.0\.0\.0:(\d+)", texts["beside-prometheus.yaml"])),
        }
        found = 0
        for name, text in texts.items():
            for host, port in re.findall(r"\b([a-z][a-z0-9-]*):(\d{4,5})\b", text):
                if host in ("localhost", "latest"):
                    continue
                self.assertIn(host, listens, name)
                self.assertIn(port, listens[host], f"{name}: {host} does not listen on {port}")
                found += 1
        self.assertGreater(found, 8)

    def test_the_health_check_is_a_command(self):
        for broker in self.brokers.values():
            ran = subprocess.run(
                [binary(), *broker["healthcheck"]["test"][2:]],
                env={"STREAMBUS_BROKER": "127.0.0.1:1"},
                capture_output=True,
                check=False,
                timeout=60,
            )
            self.assertEqual(ran.returncode, 1, "nobody is there, but the command makes sense")

    def test_grafana_finds_sources_and_dashboards(self):
        sources = {
            source["uid"]: source for source in document(DEPLOY / "grafana" / "datasources.yml")["datasources"]
        }
        metrics = sources["prometheus"]["jsonData"]
        for destination in metrics["exemplarTraceIdDestinations"]:
            self.assertIn(sources[destination["datasourceUid"]]["type"], ("jaeger", "tempo"))
        scrape = document(DEPLOY / "prometheus" / "prometheus-cluster.yml")["global"]["scrape_interval"]
        self.assertEqual(metrics["timeInterval"], scrape)
        self.assertIn(sources["traces"]["jsonData"]["tracesToLogsV2"]["datasourceUid"], sources)
        for field in sources["logs"]["jsonData"]["derivedFields"]:
            self.assertIn(field["datasourceUid"], sources)
        path = document(ROOT / "dashboards" / "provider.yml")["providers"][0]["options"]["path"]
        self.assertIn(f"../../dashboards:{path}:ro", self.services["grafana"]["volumes"])
        home = self.services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
        self.assertTrue((ROOT / "dashboards" / home.removeprefix(path + "/")).exists())


class Image(unittest.TestCase):
    """deploy/Dockerfile."""

    TEXT = (DEPLOY / "Dockerfile").read_text()

    def test_what_is_copied_exists_and_is_not_ignored(self):
        ignored = (ROOT / ".dockerignore").read_text().splitlines()
        self.assertEqual(ignored[0], "*")
        sent = {line.removeprefix("!") for line in ignored[1:]}
        copied = set()
        for line in re.findall(r"^COPY (?!--from)(.+)$", self.TEXT, re.M):
            copied |= set(line.split()[:-1])
        self.assertEqual(copied, sent)
        for name in copied:
            self.assertTrue((ROOT / name).exists(), name)

    def test_the_toolchain_is_the_one_that_is_asked_for(self):
        wanted = re.search(r'^rust-version = "([\d.]+)"', (ROOT / "Cargo.toml").read_text(), re.M)[1]
        self.assertIn(f"FROM rust:{wanted}-", self.TEXT)

    def test_settings_and_ports_are_the_brokers(self):
        self.assertLessEqual(set(re.findall(r"^ENV (\w+)=", self.TEXT, re.M)), settings())
        self.assertIn("EXPOSE 9092 8080", self.TEXT)


def kubernetes():
    """Every object that the kustomization names."""
    for name in document(KUBERNETES / "kustomization.yaml")["resources"]:
        yield from documents(KUBERNETES / name)


def objects(kind):
    return [one for one in kubernetes() if one["kind"] == kind]


def stateful_set():
    (one,) = objects("StatefulSet")
    return one


class Kubernetes(unittest.TestCase):
    """deploy/kubernetes."""

    # Of each kind: its version, and what its spec must and may have.
    SHAPES = {
        "Service": ("v1", {"selector", "ports"}, {"clusterIP", "publishNotReadyAddresses"}),
        "StatefulSet": (
            "apps/v1",
            {"serviceName", "replicas", "selector", "template", "volumeClaimTemplates"},
            {"podManagementPolicy"},
        ),
        "PodDisruptionBudget": ("policy/v1", {"selector", "maxUnavailable"}, set()),
        "ServiceMonitor": ("monitoring.coreos.com/v1", {"selector", "endpoints"}, {"jobLabel"}),
        "PrometheusRule": ("monitoring.coreos.com/v1", {"groups"}, set()),
    }
    CONTAINER = {
        "name", "image", "args", "env", "ports", "livenessProbe", "readinessProbe", "startupProbe", "resources",
        "securityContext", "volumeMounts",
    }  # fmt: skip

    @classmethod
    def setUpClass(cls):
        cls.template = stateful_set()["spec"]["template"]
        cls.container = cls.template["spec"]["containers"][0]

    def test_objects_have_the_shape_of_their_kind(self):
        names = set()
        for one in kubernetes():
            version, must, may = self.SHAPES[one["kind"]]
            self.assertEqual(one["apiVersion"], version)
            self.assertEqual(set(one), {"apiVersion", "kind", "metadata", "spec"})
            self.assertLessEqual(must, set(one["spec"]))
            self.assertLessEqual(set(one["spec"]), must | may)
            self.assertRegex(one["metadata"]["name"], r"^[a-z][a-z0-9-]*$")
            key = (one["kind"], one["metadata"]["name"])
            self.assertNotIn(key, names)
            names.add(key)
        self.assertEqual({kind for kind, _ in names}, set(self.SHAPES))
        self.assertEqual(set(self.container), self.CONTAINER)

    def test_objects_of_kubernetes_itself_match_its_schemas(self):
        checked = set()
        for one in kubernetes():
            if not one["apiVersion"].startswith("monitoring."):
                kubernetes_validate.validate(one, KUBERNETES_VERSION, strict=True)
                checked.add(one["kind"])
        self.assertEqual(checked, {"Service", "StatefulSet", "PodDisruptionBudget"})

    def test_every_file_is_in_the_kustomization(self):
        named = set(document(KUBERNETES / "kustomization.yaml")["resources"])
        self.assertEqual(named, {path.name for path in KUBERNETES.glob("*.yaml")} - {"kustomization.yaml"})

    def test_selectors_find_the_pods(self):
        labels = self.template["metadata"]["labels"]
        self.assertEqual(stateful_set()["spec"]["selector"]["matchLabels"], labels)
        for service in objects("Service"):
            self.assertLessEqual(service["spec"]["selector"].items(), labels.items())
        for budget in objects("PodDisruptionBudget"):
            self.assertLessEqual(budget["spec"]["selector"]["matchLabels"].items(), labels.items())

    def test_ports_are_found_by_their_names(self):
        ports = {port["name"]: port["containerPort"] for port in self.container["ports"]}
        self.assertEqual(ports, {"grpc": 9092, "metrics": 8080})
        for service in objects("Service"):
            for port in service["spec"]["ports"]:
                self.assertEqual(ports[port["targetPort"]], port["port"])

    def test_the_headless_service_is_there(self):
        services = {service["metadata"]["name"]: service for service in objects("Service")}
        self.assertEqual(services[stateful_set()["spec"]["serviceName"]]["spec"]["clusterIP"], "None")

    def test_pods_reach_each_other_by_stable_names_before_they_are_ready(self):
        services = {service["metadata"]["name"]: service for service in objects("Service")}
        headless = services[stateful_set()["spec"]["serviceName"]]
        self.assertTrue(headless["spec"]["publishNotReadyAddresses"], "a broker is ready only with others")
        environment = {one["name"]: one.get("value", "") for one in self.container["env"]}
        name, replicas = stateful_set()["metadata"]["name"], stateful_set()["spec"]["replicas"]
        announced = environment["STREAMBUS_SERVER__GRPC_ADVERTISE"]
        self.assertIn(f"$(POD_NAME).{headless['metadata']['name']}.$(POD_NAMESPACE).", announced)
        pods = [announced.replace("$(POD_NAME)", f"{name}-{number}") for number in range(replicas)]
        # The founder is the first of the list, and knows itself by the address that it announces.
        self.assertEqual(re.split(r",\s*", environment["STREAMBUS_CLUSTER__SEEDS"]), pods)

    def test_a_majority_is_left_when_a_node_is_lost_or_maintained(self):
        spec = stateful_set()["spec"]
        self.assertEqual((spec["replicas"], spec["podManagementPolicy"]), (3, "Parallel"))
        (budget,) = objects("PodDisruptionBudget")
        self.assertGreater(2 * (spec["replicas"] - budget["spec"]["maxUnavailable"]), spec["replicas"])
        affinity = self.template["spec"]["affinity"]["podAntiAffinity"]
        (apart,) = affinity["requiredDuringSchedulingIgnoredDuringExecution"]
        self.assertEqual(apart["topologyKey"], "kubernetes.io/hostname")
        self.assertEqual(apart["labelSelector"]["matchLabels"], self.template["metadata"]["labels"])

    def test_probes_wait_for_a_majority_before_they_restart_anything(self):
        # Until the start is over the other probes are not made, and a start waits for other brokers.
        startup = self.container["startupProbe"]
        self.assertEqual(startup["httpGet"]["path"], "/health/startup")
        self.assertGreaterEqual(startup["failureThreshold"] * startup["periodSeconds"], 600)
        self.assertEqual(self.container["livenessProbe"]["httpGet"]["path"], "/health/live")
        self.assertEqual(self.container["readinessProbe"]["httpGet"]["path"], "/health/ready")

    def test_there_is_time_to_hand_over_and_drain(self):
        shown = subprocess.run(
            [binary(), "config", "show", "-o", "json"],
            env={},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        known = {entry["key"]: entry["value"] for entry in json.loads(shown.stdout)}
        needed = sum(
            int(known[name].removesuffix("s")) for name in ("cluster.handover_timeout", "server.drain_timeout")
        )
        self.assertGreaterEqual(self.template["spec"]["terminationGracePeriodSeconds"], 2 * needed)
        for broker in brokers_of(document(Compose.FILE)).values():
            self.assertGreaterEqual(int(broker["stop_grace_period"].removesuffix("s")), 2 * needed)

    def test_the_monitor_finds_one_service_and_gives_the_job_its_name(self):
        (monitor,) = objects("ServiceMonitor")
        wanted = monitor["spec"]["selector"]["matchLabels"].items()
        (service,) = [one for one in objects("Service") if wanted <= one["metadata"]["labels"].items()]
        self.assertEqual(service["metadata"]["labels"][monitor["spec"]["jobLabel"]], "streambus")
        for endpoint in monitor["spec"]["endpoints"]:
            self.assertIn(endpoint["port"], [port["name"] for port in service["spec"]["ports"]])

    def test_volumes_are_claimed(self):
        claimed = {claim["metadata"]["name"] for claim in stateful_set()["spec"]["volumeClaimTemplates"]}
        self.assertEqual({mount["name"] for mount in self.container["volumeMounts"]}, claimed)
        data = next(one["value"] for one in self.container["env"] if one["name"] == "STREAMBUS_STORAGE__DATA_DIR")
        self.assertEqual([mount["mountPath"] for mount in self.container["volumeMounts"]], [data])

    def test_the_brokers_settings_exist_and_variables_are_defined_before_use(self):
        known, before = settings(), set()
        for one in self.container["env"]:
            if one["name"].startswith("STREAMBUS_"):
                self.assertIn(one["name"], known)
            self.assertLessEqual(set(re.findall(r"\$\((\w+)\)", one.get("value", ""))), before)
            before.add(one["name"])

    def test_a_broker_answers_its_probes(self):
        broker = Broker()
        try:
            for kind in ("livenessProbe", "readinessProbe", "startupProbe"):
                probe = self.container[kind]["httpGet"]
                self.assertEqual(probe["port"], "metrics")
                self.assertTrue(get(broker.http + probe["path"]))
        finally:
            broker.close()

    def test_the_rules_are_those_of_the_rule_files(self):
        (rules,) = objects("PrometheusRule")
        groups = [
            group
            for name in ("alerts", "recording", "slo")
            for group in document(ROOT / "alerts" / f"streambus-{name}.yml")["groups"]
        ]
        self.assertEqual(rules["spec"]["groups"], groups)


class Collector(unittest.TestCase):
    """otel-collector."""

    # Component types that are used, and the keys that they know.
    KNOWN = {
        "receivers": {"otlp": {"protocols"}, "prometheus": {"config"}},
        "processors": {
            "memory_limiter": {
                "check_interval",
                "limit_percentage",
                "spike_limit_percentage",
                "limit_mib",
                "spike_limit_mib",
            },
            "batch": {"timeout", "send_batch_size", "send_batch_max_size"},
            "tail_sampling": {"decision_wait", "num_traces", "expected_new_traces_per_sec", "policies"},
            "transform": {"error_mode", "metric_statements", "trace_statements", "log_statements"},
        },
        "connectors": {
            "span_metrics": {"histogram", "exemplars", "metrics_flush_interval", "dimensions", "namespace"},
        },
        "exporters": {
            "otlp_grpc": {"endpoint", "tls", "sending_queue", "retry_on_failure"},
            "otlp_http": {"endpoint", "tls", "sending_queue", "retry_on_failure"},
            "prometheus": {"endpoint", "enable_open_metrics", "metric_expiration", "namespace"},
            "prometheus_remote_write": {"endpoint", "add_metric_suffixes", "external_labels"},
            "nop": set(),
        },
        "extensions": {"health_check": {"endpoint", "path"}},
    }
    FILES = sorted(COLLECTOR.glob("*.yaml"))

    def each(self):
        self.assertEqual([path.stem for path in self.FILES], ["beside-prometheus", "push", "scrape"])
        for path in self.FILES:
            yield path.name, document(path)

    @staticmethod
    def type_of(name):
        return name.split("/")[0]

    def test_components_are_of_known_types_with_known_keys(self):
        for file, config in self.each():
            self.assertEqual(set(config), {*self.KNOWN, "service"}, file)
            for section, known in self.KNOWN.items():
                for name, body in config[section].items():
                    self.assertIn(self.type_of(name), known, file)
                    self.assertLessEqual(set(body or {}), known[self.type_of(name)], f"{file}: {name}")

    def test_what_is_defined_is_used_and_what_is_used_is_defined(self):
        for file, config in self.each():
            pipelines = config["service"]["pipelines"].values()
            used = {
                role: {name for one in pipelines for name in one[role]}
                for role in ("receivers", "processors", "exporters")
            }
            connectors = set(config["connectors"])
            self.assertEqual(used["receivers"] - connectors, set(config["receivers"]), file)
            self.assertEqual(used["processors"], set(config["processors"]), file)
            self.assertEqual(used["exporters"] - connectors, set(config["exporters"]), file)
            # A connector ends one pipeline and begins another.
            self.assertLessEqual(connectors, used["receivers"] & used["exporters"], file)
            self.assertEqual(set(config["service"]["extensions"]), set(config["extensions"]), file)

    def test_pipelines_are_of_a_signal_and_in_order(self):
        for file, config in self.each():
            for name, pipeline in config["service"]["pipelines"].items():
                self.assertIn(self.type_of(name), ("traces", "metrics", "logs"))
                processors = pipeline["processors"]
                self.assertEqual(processors[0], "memory_limiter", f"{file}: {name}")
                leaves = any(self.type_of(one) not in ("nop", "span_metrics") for one in pipeline["exporters"])
                self.assertEqual(leaves, processors[-1] == "batch", f"{file}: {name}")

    def test_spans_are_counted_before_they_are_sampled(self):
        for file, config in self.each():
            for name, pipeline in config["service"]["pipelines"].items():
                if "span_metrics" in pipeline["exporters"]:
                    self.assertEqual(pipeline["receivers"], ["otlp"])
                    self.assertNotIn("tail_sampling", pipeline["processors"], f"{file}: {name}")
            policies = {policy["type"]: policy for policy in config["processors"]["tail_sampling"]["policies"]}
            self.assertEqual(policies["status_code"]["status_code"]["status_codes"], ["ERROR"])
            self.assertEqual(policies["latency"]["latency"]["threshold_ms"], 100)
            for policy in policies.values():
                self.assertEqual(set(policy), {"name", "type", policy["type"]})

    def test_every_signal_that_a_broker_pushes_is_taken(self):
        for file, config in self.each():
            signals = {
                self.type_of(name)
                for name, one in config["service"]["pipelines"].items()
                if "otlp" in one["receivers"]
            }
            self.assertEqual(signals, {"traces", "metrics", "logs"}, file)
            self.assertEqual(config["receivers"]["otlp"]["protocols"]["grpc"]["endpoint"], "0.0.0.0:4317")

    def test_metrics_of_brokers_have_one_way_into_a_store(self):
        ways = {}
        for file, config in self.each():
            ways[file] = []
            for name, pipeline in config["service"]["pipelines"].items():
                if self.type_of(name) == "metrics" and pipeline["exporters"] != ["nop"]:
                    ways[file] += [one for one in pipeline["receivers"] if one != "span_metrics"]
        self.assertEqual(
            ways, {"beside-prometheus.yaml": [], "push.yaml": ["otlp"], "scrape.yaml": ["prometheus"]}
        )

    def test_pushed_metrics_get_the_names_of_the_catalogue(self):
        ran = subprocess.run(
            [sys.executable, COLLECTOR / "generate.py", "--check"],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        self.assertEqual(ran.returncode, 0, ran.stderr)
        renamed = document(COLLECTOR / "push.yaml")["processors"]["transform/names"]["metric_statements"]
        rows = re.findall(r"^\| `([a-z_]+)` \| `([a-z_.]+)` \|", (ROOT / "docs" / "METRICS.md").read_text(), re.M)
        self.assertEqual(
            [tuple(re.findall(r'"([^"]+)"', statement)) for statement in renamed],
            [(name, otel) for name, otel in rows],
        )

    def test_the_scraped_job_is_the_one_of_prometheus(self):
        ours = document(COLLECTOR / "scrape.yaml")["receivers"]["prometheus"]["config"]["scrape_configs"][0]
        theirs = document(DEPLOY / "prometheus" / "prometheus.yml")["scrape_configs"][0]
        self.assertEqual(ours["job_name"], theirs["job_name"])
        self.assertEqual(ours["static_configs"], theirs["static_configs"])

    def test_environment_has_defaults(self):
        for path in self.FILES:
            for variable in re.findall(r"\$\{env:([^}]+)\}", path.read_text()):
                self.assertRegex(variable, r"^[A-Z_]+:-.+$")


if __name__ == "__main__":
    unittest.main()
