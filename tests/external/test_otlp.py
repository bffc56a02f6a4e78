"""A collector in another language gets traces, metrics and logs over OTLP, and one record's trace is in one piece."""

import concurrent.futures
import json
import os
import subprocess
import threading
import unittest

import grpc
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2, logs_service_pb2_grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

import wire
from running import Broker, binary, eventually

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER = "00f067aa0ba902b7"
RECORD_TRACE = "0af7651916cd43dd8448eb211c80319c"
RECORD_SPAN = "b7ad6b7169203331"
RECORD_HEADER = f"00-{RECORD_TRACE}-{RECORD_SPAN}-01".encode()


class Collector:
    """Keeps everything that is exported to it."""

    def __init__(self):
        self._lock = threading.Lock()
        self._spans, self._metrics, self._logs, self._resources = [], {}, [], []
        self._server = grpc.server(concurrent.futures.ThreadPoolExecutor(4))
        add = (
            (trace_service_pb2_grpc.add_TraceServiceServicer_to_server, self._export_traces),
            (metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server, self._export_metrics),
            (logs_service_pb2_grpc.add_LogsServiceServicer_to_server, self._export_logs),
        )
        # All three services call their method `Export`, so each is an object of its own.
        for register, export in add:
            register(type("Service", (), {"Export": staticmethod(export)})(), self._server)
        self.address = f"http://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def stop(self):
        self._server.stop(grace=None).wait()

    def _export_traces(self, request, _context):
        with self._lock:
            for of_resource in request.resource_spans:
                self._resources.append(of_resource.resource)
                for scope in of_resource.scope_spans:
                    self._spans.extend(scope.spans)
        return trace_service_pb2.ExportTraceServiceResponse()

    def _export_metrics(self, request, _context):
        with self._lock:
            for of_resource in request.resource_metrics:
                for scope in of_resource.scope_metrics:
                    self._metrics.update((metric.name, metric) for metric in scope.metrics)
        return metrics_service_pb2.ExportMetricsServiceResponse()

    def _export_logs(self, request, _context):
        with self._lock:
            for of_resource in request.resource_logs:
                for scope in of_resource.scope_logs:
                    self._logs.extend(scope.log_records)
        return logs_service_pb2.ExportLogsServiceResponse()

    def spans(self, trace):
        """The spans of a trace, by name."""
        with self._lock:
            return {span.name: span for span in self._spans if span.trace_id.hex() == trace}

    def span_named(self, name):
        """The first span of that name."""
        with self._lock:
            return next((span for span in self._spans if span.name == name), None)

    def metric(self, name):
        with self._lock:
            return self._metrics.get(name)

    def logs(self, trace):
        with self._lock:
            return [line for line in self._logs if line.trace_id.hex() == trace]

    def resource(self):
        with self._lock:
            return {pair.key: pair.value.string_value for pair in self._resources[0].attributes}


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
            return subprocess.run(
                [binary(), *arguments],
                env=environment,
                input=lines,
                capture_output=True,
                text=True,
                check=True,
                timeout=60,
            )

        run("topic", "create", "story")
        trace = json.loads(run("produce", "story", "--trace", "-o", "json", lines="once\n").stdout)["trace_id"]
        read = json.loads(run("consume", "story", "-o", "json").stdout)
        self.assertEqual(read["value"], "once")

        def sent():
            found = self.collector.spans(trace)
            return found if {"send story", "append", "replicate", "commit"} <= found.keys() else None

        spans = eventually("the producer's and the broker's spans", sent)
        server = next(span for name, span in spans.items() if name.startswith("streambus.v1.ProduceService/"))
        self.assertEqual(server.parent_span_id, spans["send story"].span_id)
        self.assertEqual(spans["append"].parent_span_id, server.span_id)
        delivery = eventually("the delivery span", lambda: self.collector.span_named("deliver story"))
        self.assertIn(server.span_id, {link.span_id for link in delivery.links})
        process = eventually("the consumer's span", lambda: self.collector.span_named("process story"))
        related = {process.trace_id, *(link.trace_id for link in process.links)}
        self.assertIn(bytes.fromhex(trace), related)
        self.assertTrue(self.collector.logs(trace))


if __name__ == "__main__":
    unittest.main()
