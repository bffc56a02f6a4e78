"""Three brokers at work: everything that the dashboards show happens, again and again, until the load is stopped."""

import contextlib
import random
import socket
import threading
import urllib.error
import urllib.request

import grpc

import wire
from collector import Collector
from members import Member

ORDERS, EVENTS = "orders", "events"
PARTITIONS = 4
BROKERS = (1, 2, 3)
# Of `events` so little is kept that retention always has something to delete.
EVENTS_KEPT = 256 << 10
# Seconds that a load may take.
LONGEST = 900
# Records may be there twice, so what may have been written is sent again too.
AGAIN = (*wire.UNWRITTEN, grpc.StatusCode.UNKNOWN)
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"

SETTINGS = {
    # So short that what a replica lacks that is new is not in the log any more.
    "raft.checkpoint_bytes": "64KiB",
    "partition.retention_interval": "1s",
    "storage.table_bytes": "1MiB",
    "storage.write_buffer_bytes": "4MiB",
    "telemetry.otlp.metrics_interval": "500ms",
    "telemetry.otlp.batch_delay": "200ms",
    # All but one request of a million, of which the limit leaves out some.
    "telemetry.trace.sample_ratio": "0.999999",
    "telemetry.trace.max_per_second": "10",
    # So short that spans are lost.
    "telemetry.otlp.span_queue": "2",
    "telemetry.otlp.batch": "1",
}


class Moody(Collector):
    """Refuses every other export of logs."""

    def __init__(self):
        self._asked = 0
        super().__init__()

    def _export_logs(self, request, context):
        self._asked += 1
        if self._asked % 2:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "not today")
        return super()._export_logs(request, context)


class Load:
    """Threads that each do one kind of thing at one broker of the three. What goes wrong in one of them is raised by `stop`."""

    def __init__(self, broker):
        self._broker = broker
        self._over = threading.Event()
        self._failures = []
        self._client = wire.Client(broker.grpc)
        config = wire.topic.TopicConfig(retention_bytes=EVENTS_KEPT)
        create = self._client.topic.CreateTopic
        create(wire.topic.CreateTopicRequest(name=ORDERS, partition_count=PARTITIONS, replication_factor=3))
        create(wire.topic.CreateTopicRequest(name=EVENTS, config=config, replication_factor=2))
        self._commit("archive", ORDERS, 0)
        jobs = (
            self._produce,
            self._fill,
            self._read,
            self._consume,
            self._share,
            self._miss,
            self._blunder,
            self._move,
        )
        self._threads = [threading.Thread(target=self._guard, args=(job,), daemon=True) for job in jobs]
        for thread in self._threads:
            thread.start()

    def stop(self):
        self._over.set()
        for thread in self._threads:
            thread.join(60)
        self._client.channel.close()
        if self._failures:
            raise self._failures[0]

    def _guard(self, job):
        try:
            with wire.Client(self._broker.grpc) as client:
                job(client)
        except Exception as failure:  # pylint: disable=broad-except
            # Streams that are open when the load ends are cut.
            if not self._over.is_set():
                self._failures.append(failure)
                self._over.set()

    def check(self):
        """Raises what went wrong so far."""
        if self._failures:
            raise RuntimeError("the load broke down") from self._failures[0]

    def _produce(self, client):
        for number in range(1 << 30):
            if self._over.wait(0.02):
                return
            wire.patiently(
                client.produce.Produce,
                wire.produce.ProduceRequest(
                    topic=ORDERS, partition=number % PARTITIONS, batch=wire.batch(wire.orders(20, seed=number))
                ),
                again=AGAIN,
                metadata=[("traceparent", f"00-{TRACE}-{number + 1:016x}-01")],
            )

    def _fill(self, client):
        """Bytes that do not compress, so that tables are written, merged and deleted."""
        noise = random.Random(3)
        while not self._over.wait(0.05):
            records = [(b"", noise.randbytes(32 << 10)) for _ in range(4)]
            request = wire.produce.ProduceRequest(topic=EVENTS, batch=wire.batch(records))
            wire.patiently(client.produce.Produce, request, again=AGAIN)

    def _read(self, client):
        """Reads without a group, and waits at the end."""
        offset = None
        while not self._over.is_set():
            request = wire.consume.FetchRequest(
                partitions=[wire.start(ORDERS, 0, offset)], max_wait={"seconds": 1}, min_bytes=64 << 10
            )
            batches = wire.patiently(client.consume.Fetch, request).partitions[0].batches
            if batches:
                offset = batches[-1].base_offset + len(batches[-1].batch.records)

    def _consume(self, client):
        """A group that keeps up."""
        member = Member(client, "billing", ORDERS, timeout=LONGEST)
        for kind, event in member.events():
            if self._over.is_set():
                break
            if kind == "records":
                last = event.batches[-1]
                member.commit(event.partition, last.base_offset + len(last.batch.records))
        member.vanish()

    def _share(self, client):
        """A share group that accepts most, and does with the rest whatever can be done with a message."""
        options = wire.group.ShareOptions(lease={"seconds": 1}, deliveries_max=3)
        member = Member(client, "workers", ORDERS, options, timeout=LONGEST, in_flight_records_max=500)
        kinds = {
            1: wire.group.ACK_KIND_RELEASE,
            2: wire.group.ACK_KIND_REJECT,
            3: wire.group.ACK_KIND_EXTEND,
        }
        for kind, event in member.events():
            if self._over.is_set():
                break
            if kind != "records":
                continue
            said = [
                wire.group.Acknowledgement(
                    topic=ORDERS,
                    partition=event.partition,
                    first_offset=offset,
                    last_offset=offset,
                    kind=kinds.get(offset % 20, wire.group.ACK_KIND_ACCEPT),
                )
                for lease in event.leases
                for offset in range(lease.first_offset, lease.last_offset + 1)
                # Of these the lease expires.
                if offset % 20 != 4
            ]
            if said:
                member.say(acknowledge=wire.group.Acknowledge(correlation_id=1, acknowledgements=said))
        member.vanish()

    def _miss(self, client):
        """A group that begins where nothing is left, again and again."""
        while not self._over.wait(0.5):
            described = wire.patiently(client.topic.DescribeTopic, wire.topic.DescribeTopicRequest(name=EVENTS))
            if described.partitions[0].log_start_offset == 0:
                continue
            self._commit("late", EVENTS, 0)
            member = Member(client, "late", EVENTS)
            try:
                for kind, _ in member.events():
                    if kind == "records" or self._over.is_set():
                        break
                member.leave()
            except grpc.RpcError as error:
                # Its partition moves.
                if error.code() not in wire.UNWRITTEN:
                    raise

    def _commit(self, group, topic, offset):
        commit = wire.group.OffsetCommit(topic=topic, partition=0, offset=offset)
        request = wire.group.CommitOffsetsRequest(group=group, offsets=[commit])
        answer = wire.patiently(self._client.group.CommitOffsets, request)
        if answer.results[0].HasField("error"):
            raise AssertionError(answer.results[0].error)

    def _move(self, client):
        """Gives `events` another second replica, again and again. It gets a snapshot, since most of the log is deleted."""
        for number in range(1 << 30):
            if self._over.wait(1):
                return
            problems = client.cluster.GetClusterStatus(wire.cluster.GetClusterStatusRequest()).problems
            request = wire.topic.DescribeTopicRequest(name=EVENTS)
            described = wire.patiently(client.topic.DescribeTopic, request).partitions[0]
            if any(problem.topic == EVENTS for problem in problems) or described.log_start_offset == 0:
                continue
            stays, *others = BROKERS
            replicas = [stays, others[number % len(others)]]
            request = wire.cluster.ReassignPartitionRequest(topic=EVENTS, partition=0, replica_ids=replicas)
            wire.patiently(client.cluster.ReassignPartition, request)

    def _blunder(self, client):
        """What clients do wrong."""
        host, port = self._broker.grpc.rsplit(":", 1)
        while not self._over.wait(0.2):
            with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 10) as peer:
                peer.sendall(b"\x00" * 64)
                peer.recv(64)
            request = wire.produce.ProduceRequest(topic="nowhere", batch=wire.batch([(b"", b"")]))
            with contextlib.suppress(grpc.RpcError):
                client.produce.Produce(request)
            request = wire.consume.FetchRequest(partitions=[wire.start("nowhere", 0)])
            with contextlib.suppress(grpc.RpcError):
                client.consume.Fetch(request)
            with contextlib.suppress(urllib.error.HTTPError):
                urllib.request.urlopen(self._broker.http + "/nowhere", timeout=30).close()
