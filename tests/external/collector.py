"""A collector that keeps what is exported to it, built from the published OTLP protocol."""

import concurrent.futures
import threading

import grpc
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2, logs_service_pb2_grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc


class Collector:
    """Keeps everything that is exported to it. With `credentials` it speaks TLS, as `localhost`."""

    def __init__(self, credentials=None):
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
        if credentials:
            self.address = f"https://localhost:{self._server.add_secure_port('127.0.0.1:0', credentials)}"
        else:
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
