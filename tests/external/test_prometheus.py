"""A real Prometheus scrapes the broker, and its query API answers with what was produced."""

import json
import os
import pathlib
import tempfile
import unittest
import urllib.parse

import wire
from running import Broker, Program, eventually, free_port, get, tool

TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
RECORDS = 1_234

CONFIGURATION = """
global:
  scrape_interval: 1s
  scrape_timeout: 1s
scrape_configs:
  - job_name: streambus
    static_configs:
      - targets: ['{target}']
"""


class Prometheus(unittest.TestCase):
    """One broker and one Prometheus, which stores exemplars."""

    @classmethod
    def setUpClass(cls):
        cls.broker = Broker()
        cls.addClassCleanup(cls.broker.close)
        directory = tempfile.TemporaryDirectory(prefix="streambus-prometheus-")
        cls.addClassCleanup(directory.cleanup)
        configuration = pathlib.Path(directory.name) / "prometheus.yml"
        configuration.write_text(CONFIGURATION.format(target=cls.broker.http.removeprefix("http://")))
        address = f"127.0.0.1:{free_port()}"
        prometheus = Program(
            [
                tool("prometheus"),
                f"--config.file={configuration}",
                f"--storage.tsdb.path={directory.name}/data",
                f"--web.listen-address={address}",
                "--enable-feature=exemplar-storage",
            ],
            dict(os.environ),
        )
        cls.addClassCleanup(prometheus.stop)
        cls.api = f"http://{address}/api/v1/"
        with wire.Client(cls.broker.grpc) as client:
            client.topic.CreateTopic(wire.topic.CreateTopicRequest(name="orders"))
            client.produce.Produce(
                wire.produce.ProduceRequest(topic="orders", batch=wire.batch(wire.orders(RECORDS))),
                metadata=[("traceparent", TRACEPARENT)],
            )

    def ask(self, what, **parameters):
        answer = json.loads(get(self.api + what + "?" + urllib.parse.urlencode(parameters)))
        self.assertEqual(answer["status"], "success")
        return answer["data"]

    def value(self, query):
        found = self.ask("query", query=query)["result"]
        return float(found[0]["value"][1]) if found else None

    def test_the_target_is_up_and_nothing_of_a_scrape_is_rejected(self):
        eventually("the first scrape", lambda: self.value('up{job="streambus"}') == 1)
        target = self.ask("targets")["activeTargets"][0]
        self.assertEqual((target["health"], target["lastError"]), ("up", ""))

    def test_the_total_of_a_topic_is_what_was_produced(self):
        query = 'streambus_messages_produced_total{topic="orders"}'
        eventually("the produced total", lambda: self.value(query) == RECORDS)

    def test_the_documented_quantile_query_has_a_value(self):
        query = "histogram_quantile(0.99, streambus_produce_latency_seconds_bucket)"
        self.assertGreater(eventually("a quantile", lambda: self.value(query)), 0)

    def test_an_exemplar_leads_to_the_trace(self):
        def traces():
            series = self.ask(
                "query_exemplars", query="streambus_produce_latency_seconds_bucket", start=0, end=32_503_680_000
            )
            return {exemplar["labels"]["trace_id"] for one in series for exemplar in one["exemplars"]}

        self.assertEqual(eventually("an exemplar", traces), {TRACEPARENT.split("-")[1]})


if __name__ == "__main__":
    unittest.main()
