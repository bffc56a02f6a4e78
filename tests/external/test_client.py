"""A client that is generated from `proto/` writes and reads real amounts of data without loss or change."""

import queue
import unittest

import grpc

import wire
from running import Broker

TOPIC = "orders"
PARTITIONS = 4
RECORDS = 27_004
BATCH = 250


class GeneratedClient(unittest.TestCase):
    """One broker; 27,004 lines of JSON, keyed by region, over a produce stream."""

    @classmethod
    def setUpClass(cls):
        cls.broker = Broker()
        cls.addClassCleanup(cls.broker.close)
        cls.client = wire.Client(cls.broker.grpc)
        cls.addClassCleanup(cls.client.channel.close)
        cls.client.topic.CreateTopic(wire.topic.CreateTopicRequest(name=TOPIC, partition_count=PARTITIONS))
        cls.sent = wire.by_partition(wire.orders(RECORDS), PARTITIONS)
        cls.batches = [
            (partition, wire.batch(slice_))
            for partition, records in sorted(cls.sent.items())
            for slice_ in wire.in_batches(records, BATCH)
        ]
        cls.results = list(cls._produce_all())

    @classmethod
    def _produce_all(cls):
        requests = (
            wire.produce.ProduceStreamRequest(
                correlation_id=number, topic=TOPIC, partition=partition, batch=batch
            )
            for number, (partition, batch) in enumerate(cls.batches)
        )
        for response in cls.client.produce.ProduceStream(requests):
            yield from response.results

    def test_every_batch_is_committed_once_and_offsets_are_dense(self):
        self.assertEqual(sorted(result.correlation_id for result in self.results), list(range(len(self.batches))))
        expected = dict.fromkeys(range(PARTITIONS), 0)
        for result in sorted(self.results, key=lambda result: result.correlation_id):
            self.assertEqual(result.WhichOneof("outcome"), "committed", result)
            partition, batch = self.batches[result.correlation_id]
            self.assertEqual(result.committed.base_offset, expected[partition])
            expected[partition] += len(batch.records)

    def test_fetch_returns_the_same_bytes_in_the_same_order(self):
        for partition, sent in self.sent.items():
            self.assertEqual(self._fetch(partition, len(sent)), sent, f"partition {partition}")

    def test_a_subscription_delivers_the_same_records(self):
        self.assertEqual(self._subscribe(), dict(self.sent))

    def test_keys_keep_the_order_in_which_they_were_sent(self):
        sent = {}
        for key, value in wire.orders(RECORDS):
            sent.setdefault(key, []).append(value)
        read = {}
        for partition, records in self.sent.items():
            for key, value in self._fetch(partition, len(records)):
                read.setdefault(key, []).append(value)
        self.assertEqual(read, sent)

    def test_the_partition_rule_is_the_documented_one(self):
        self.assertEqual(wire.murmur2(b"foobar"), -790_332_482 & 0xFFFFFFFF)
        self.assertEqual(wire.murmur2(b"21"), -973_932_308 & 0xFFFFFFFF)

    def test_metrics_count_every_record_and_byte_exactly(self):
        label = f'{{topic="{TOPIC}"}}'
        size = sum(batch.ByteSize() for _, batch in self.batches)
        metric = self.broker.metric
        self.assertEqual(metric("streambus_messages_produced_total" + label), RECORDS)
        self.assertEqual(metric("streambus_messages_stored_total" + label), RECORDS)
        self.assertEqual(metric("streambus_bytes_produced_total" + label), size)
        self.assertEqual(metric("streambus_bytes_stored_total" + label), size)
        self.assertEqual(metric("streambus_produce_latency_seconds_count"), len(self.batches))
        self.assertEqual(metric("streambus_topics_total"), 1)
        self.assertEqual(metric("streambus_partitions_total"), PARTITIONS)
        self.assertEqual(metric("streambus_replicas_total"), PARTITIONS)

        consumed = "streambus_messages_consumed_total" + label
        before = metric(consumed)
        self._subscribe()
        self.assertEqual(metric(consumed) - before, RECORDS)

    def test_an_error_says_which_topic_and_carries_its_reason(self):
        with self.assertRaises(grpc.RpcError) as raised:
            self.client.produce.Produce(
                wire.produce.ProduceRequest(topic="nowhere", partition=0, batch=wire.batch([(b"k", b"v")]))
            )
        self.assertEqual(raised.exception.code(), grpc.StatusCode.NOT_FOUND)
        self.assertIn("nowhere", raised.exception.details())
        details = dict(raised.exception.trailing_metadata())["grpc-status-details-bin"]
        self.assertIn(b"UNKNOWN_TOPIC", details)

    def _fetch(self, partition, count):
        found, offset = [], 0
        while len(found) < count:
            request = wire.consume.FetchRequest(
                partitions=[wire.start(TOPIC, partition, offset)], max_wait={"seconds": 30}
            )
            read = self.client.consume.Fetch(request, timeout=60).partitions[0]
            self.assertFalse(read.HasField("error"), read.error)
            self.assertTrue(read.batches, f"nothing at offset {offset}")
            for stored in read.batches:
                skipped = offset - stored.base_offset
                found += [(record.key, record.value) for record in stored.batch.records[max(skipped, 0) :]]
            offset = read.next_offset
        return found

    def _subscribe(self):
        """All records by partition, read with little credit at a time."""
        credit = 256 << 10
        actions = Actions(
            wire.consume.StartSubscription(
                partitions=[wire.start(TOPIC, partition) for partition in range(PARTITIONS)], credit_bytes=credit
            )
        )
        found, missing = {}, RECORDS
        stream = self.client.consume.Subscribe(actions, timeout=120)
        try:
            for response in stream:
                records = response.records
                self.assertFalse(records.HasField("error"), records.error)
                for stored in records.batches:
                    pairs = [(record.key, record.value) for record in stored.batch.records]
                    self.assertEqual(stored.base_offset, len(found.setdefault(records.partition, [])))
                    found[records.partition] += pairs
                    missing -= len(pairs)
                if missing <= 0:
                    break
                actions.grant(sum(stored.batch.ByteSize() for stored in records.batches))
        finally:
            actions.end()
            stream.cancel()
        return found


class Actions:
    """The client's side of a subscription: the start, then credit as it is actions."""

    def __init__(self, start):
        self._waiting = queue.SimpleQueue()
        self._waiting.put(wire.consume.SubscribeRequest(start=start))

    def grant(self, count):
        self._waiting.put(wire.consume.SubscribeRequest(credit=wire.consume.GrantCredit(bytes=count)))

    def end(self):
        self._waiting.put(None)

    def __iter__(self):
        return self

    def __next__(self):
        action = self._waiting.get()
        if action is None:
            raise StopIteration
        return action


if __name__ == "__main__":
    unittest.main()
