"""A collector in another language gets traces, metrics and logs over OTLP, and one record's trace is in one piece."""

import json
import os
import pathlib
import subprocess
import unittest

import grpc
import wire
from collector import Collector
from running import Broker, binary, eventually

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER = "00f067aa0ba902b7"
RECORD_TRACE = "0af7651916cd43dd8448eb211c80319c"
RECORD_SPAN = "b7ad6b7169203331"
RECORD_HEADER = f"00-{RECORD_TRACE}-{RECORD_SPAN}-01".encode()


class Otlp(unittest.TestCase):
    """One record that a traced client produces and fetches."""

    @classmethod
    def setUpClass(cls):
        cls.collector = Collector()
        cls.addClassCleanup(cls.collector.stop)
        cls.broker = Broker(
            **{
                "telemetry.otlp.endpoint": cls.collector.address,
                "telemetry.otlp.metrics_interval": "200ms",
                "telemetry.otlp.batch_delay": "100ms",
                "telemetry.trace.sample_ratio": "0",
            }
        )
        cls.addClassCleanup(cls.broker.close)
        with wire.Client(cls.broker.grpc) as client:
            client.topic.CreateTopic(wire.topic.CreateTopicRequest(name="orders"))
            batch = wire.batch([(b"key", b"value")], headers=[("traceparent", RECORD_HEADER)])
            client.produce.Produce(
                wire.produce.ProduceRequest(topic="orders", batch=batch),
                metadata=[("traceparent", f"00-{TRACE}-{CALLER}-01")],
            )
            request = wire.consume.FetchRequest(partitions=[wire.start("orders", 0)], max_wait={"seconds": 30})
            cls.read = client.consume.Fetch(request).partitions[0]

    def test_the_server_span_continues_the_callers_trace_and_has_the_phases_inside(self):
        parts = {"append", "replicate", "commit"}
        server_name = "streambus.v1.ProduceService/Produce"

        def complete():
            found = self.collector.spans(TRACE)
            return found if parts | {server_name} <= found.keys() else None

        spans = eventually("all spans of the call", complete)
        server = spans[server_name]
        self.assertEqual(server.parent_span_id.hex(), CALLER)
        self.assertEqual(server.kind, server.SPAN_KIND_SERVER)
        for part in parts:
            span = spans[part]
            self.assertEqual(span.parent_span_id, server.span_id, part)
            self.assertLessEqual(server.start_time_unix_nano, span.start_time_unix_nano, part)
            self.assertLessEqual(span.end_time_unix_nano, server.end_time_unix_nano, part)
        order = [spans[part].start_time_unix_nano for part in ("append", "replicate", "commit")]
        self.assertEqual(order, sorted(order))

    def test_the_delivery_links_to_the_write_and_to_the_records_own_span(self):
        delivery = eventually("the delivery span", lambda: self.collector.span_named("deliver orders"))
        linked = {(link.trace_id.hex(), link.span_id.hex()) for link in delivery.links}
        server_name = "streambus.v1.ProduceService/Produce"
        write = eventually("the write's span", lambda: self.collector.spans(TRACE).get(server_name))
        self.assertEqual(linked, {(TRACE, write.span_id.hex()), (RECORD_TRACE, RECORD_SPAN)})

    def test_the_records_header_comes_back_unmodified(self):
        headers = [(header.key, header.value) for header in self.read.batches[0].batch.records[0].headers]
        self.assertEqual(headers, [("traceparent", RECORD_HEADER)])

    def test_a_log_line_carries_the_trace_over_otlp_and_on_standard_error(self):
        exported = eventually("the log record", lambda: self.collector.logs(TRACE))
        self.assertIn("batch committed", {line.body.string_value for line in exported})
        written = [line for line in self.broker.log() if line.get("trace_id") == TRACE]
        self.assertIn("produce.committed", {line.get("event") for line in written})

    def test_metrics_have_dotted_names_and_ucum_units(self):
        def produced():
            metric = self.collector.metric("streambus.messages.produced")
            points = metric.sum.data_points if metric else []
            return metric if [point.as_int or point.as_double for point in points] == [1] else None

        metric = eventually("the produced total", produced)
        self.assertEqual(metric.unit, "{message}")
        self.assertTrue(metric.sum.is_monotonic)
        self.assertEqual(self.collector.metric("streambus.produce.duration").unit, "s")
        self.assertEqual(self.collector.metric("streambus.produce.io").unit, "By")

    def test_the_resource_names_the_service(self):
        eventually("a span", lambda: self.collector.spans(TRACE))
        resource = self.collector.resource()
        self.assertEqual(resource["service.name"], "streambus")
        self.assertTrue(resource["service.version"] and resource["service.instance.id"])

    def test_the_command_line_the_broker_and_the_consumer_tell_one_story(self):
        environment = {
            **os.environ,
            "STREAMBUS_BROKER": self.broker.grpc,
            "OTEL_EXPORTER_OTLP_ENDPOINT": self.collector.address,
        }

        def run(*arguments, lines=""):
            ran = subprocess.run(
                [binary(), *arguments], env=environment, input=lines, capture_output=True, text=True, check=False, timeout=60
            )
            self.assertEqual(ran.returncode, 0, f"{arguments}\n{ran.stderr}")
            return ran

        run("topic", "create", "story")
        trace = json.loads(run("produce", "story", "--trace", "-o", "json", lines="once\n").stdout)["trace_id"]
        read = json.loads(run("consume", "story", "-o", "json").stdout)
        self.assertEqual(read["value"], "once")

        def sent():
            found = self.collector.spans(trace)
            server = next((span for name, span in found.items() if name.startswith("streambus.v1.ProduceService/")), None)
            return (found, server) if server and {"send story", "append", "replicate", "commit"} <= found.keys() else None

        spans, server = eventually("the producer's and the broker's spans", sent)
        self.assertEqual(server.parent_span_id, spans["send story"].span_id)
        self.assertEqual(spans["append"].parent_span_id, server.span_id)
        delivery = eventually("the delivery span", lambda: self.collector.span_named("deliver story"))
        self.assertIn(server.span_id, {link.span_id for link in delivery.links})
        process = eventually("the consumer's span", lambda: self.collector.span_named("process story"))
        related = {process.trace_id, *(link.trace_id for link in process.links)}
        self.assertIn(bytes.fromhex(trace), related)
        self.assertTrue(self.collector.logs(trace))


class Secure(unittest.TestCase):
    """A collector with another implementation of TLS, which wants to know who exports to it."""

    CERTIFICATES = pathlib.Path(__file__).parent.parent / "certificates"

    def credentials(self):
        key, certificate, authority = (
            (self.CERTIFICATES / name).read_bytes() for name in ("collector.key", "collector.pem", "authority.pem")
        )
        return grpc.ssl_server_credentials([(key, certificate)], authority, require_client_auth=True)

    def broker(self, collector, **settings):
        broker = Broker(
            **{
                "telemetry.otlp.endpoint": collector.address,
                "telemetry.otlp.certificate": self.CERTIFICATES / "authority.pem",
                "telemetry.otlp.compression": "gzip",
                "telemetry.otlp.metrics_interval": "200ms",
                "telemetry.otlp.batch_delay": "100ms",
                "telemetry.otlp.timeout": "3s",
                "telemetry.trace.sample_ratio": "1",
                **settings,
            }
        )
        self.addCleanup(broker.close)
        with wire.Client(broker.grpc) as client:
            client.topic.CreateTopic(wire.topic.CreateTopicRequest(name="orders"))
        return broker

    def test_all_signals_arrive_compressed(self):
        collector = Collector(self.credentials())
        self.addCleanup(collector.stop)
        self.broker(
            collector,
            **{
                "telemetry.otlp.client_certificate": self.CERTIFICATES / "broker.pem",
                "telemetry.otlp.client_key": self.CERTIFICATES / "broker.key",
            },
        )
        span = eventually("a span", lambda: collector.span_named("streambus.v1.TopicService/CreateTopic"))
        eventually("metrics", lambda: collector.metric("streambus.broker.uptime"))
        eventually("log records", lambda: collector.logs(span.trace_id.hex()) or collector.logs(""))

    def test_a_broker_without_a_certificate_says_that_it_is_refused(self):
        collector = Collector(self.credentials())
        self.addCleanup(collector.stop)
        broker = self.broker(collector)

        def refused():
            return [line["error"] for line in broker.log() if line.get("event") == "telemetry.export.failing"]

        # This implementation just closes the connection, which is noticed in one way or the other.
        (error,) = eventually("the refusal", refused)
        self.assertRegex(error, "connection (error|closed)")
        eventually("failures", lambda: broker.metric('streambus_telemetry_export_failures_total{signal="metrics"}') > 0)


if __name__ == "__main__":
    unittest.main()
