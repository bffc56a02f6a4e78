"""`/metrics` is what other programs expect: `promtool` and a strict OpenMetrics parser read it without complaint."""

import re
import subprocess
import unittest

from prometheus_client.openmetrics.parser import text_string_to_metric_families

import wire
from running import Broker, eventually, tool

# The specification names these gauges, and ends them in `_total`: the only thing that promtool may object to.
# Consumer groups bring two more of the kind.
SPECIFIED_GAUGES = {
    "streambus_consumer_group_members_total",
    "streambus_consumer_groups_total",
    "streambus_topics_total",
    "streambus_partitions_total",
    "streambus_replicas_total",
    "streambus_segments_total",
}
TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
OPENMETRICS = "application/openmetrics-text; version=1.0.0"


class Exposition(unittest.TestCase):
    """One broker that has done a little of everything."""

    @classmethod
    def setUpClass(cls):
        cls.broker = Broker()
        cls.addClassCleanup(cls.broker.close)
        with wire.Client(cls.broker.grpc) as client:
            client.topic.CreateTopic(wire.topic.CreateTopicRequest(name="orders", partition_count=2))
            client.produce.Produce(
                wire.produce.ProduceRequest(topic="orders", batch=wire.batch(wire.orders(10))),
                metadata=[("traceparent", TRACEPARENT)],
            )
            request = wire.consume.FetchRequest(partitions=[wire.start("orders", 0)])
            read = client.consume.Fetch(request).partitions[0]
            assert len(read.batches) == 1, read

    def test_promtool_objects_to_the_specified_gauges_only(self):
        checked = subprocess.run(
            [tool("promtool"), "check", "metrics"],
            input=self.broker.metrics(),
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        objections = [line for line in (checked.stdout + checked.stderr).splitlines() if line.strip()]
        named = set()
        for line in objections:
            match = re.fullmatch(r'(\S+) non-counter metrics should not have "_total" suffix', line)
            self.assertIsNotNone(match, f"promtool says: {line}")
            named.add(match[1])
        self.assertEqual(named, SPECIFIED_GAUGES)

    def test_a_strict_parser_accepts_openmetrics(self):
        text = self.broker.metrics(OPENMETRICS)
        self.assertTrue(text.endswith("# EOF\n"))
        families = {family.name: family for family in text_string_to_metric_families(text)}
        produced = families["streambus_messages_produced"]
        self.assertEqual(produced.type, "counter")
        self.assertEqual([sample.value for sample in produced.samples], [10.0])
        self.assertEqual(families["streambus_produce_latency_seconds"].type, "histogram")

    def test_a_sampled_request_is_the_exemplar_of_its_latency(self):
        def exemplars():
            families = text_string_to_metric_families(self.broker.metrics(OPENMETRICS))
            latency = next(family for family in families if family.name == "streambus_produce_latency_seconds")
            return [sample.exemplar.labels["trace_id"] for sample in latency.samples if sample.exemplar]

        self.assertEqual(eventually("an exemplar", exemplars), [TRACEPARENT.split("-")[1]])

    def test_every_family_has_help_and_type_and_its_help_is_a_sentence(self):
        text = self.broker.metrics()
        helped = dict(re.findall(r"^# HELP (\S+) (.+)$", text, re.M))
        typed = dict(re.findall(r"^# TYPE (\S+) (.+)$", text, re.M))
        self.assertEqual(helped.keys(), typed.keys())
        self.assertEqual([name for name, sentence in helped.items() if not sentence.endswith(".")], [])


if __name__ == "__main__":
    unittest.main()
