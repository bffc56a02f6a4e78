"""A cluster of three, used by a client that is generated from `proto/` and knows the address of one broker only."""

import threading
import time
import unittest

import grpc

import wire
from cluster import Cluster
from members import Member
from running import eventually

TOPIC = "orders"
PARTITIONS = 6
PATIENCE_SECONDS = 30


class Producers:
    """One thread for each partition, which sends one record after another through one broker.

    A record is sent again only after an answer that promises that it was not written. What became of a record whose
    outcome is unknown is not known, so it may be read, once.
    """

    def __init__(self, client):
        self._client = client
        self._over = threading.Event()
        self._failures = []
        self.acknowledged = {partition: {} for partition in range(PARTITIONS)}
        self.unknown = {partition: set() for partition in range(PARTITIONS)}
        self.retries = 0
        self._threads = [threading.Thread(target=self._guard, args=(one,)) for one in range(PARTITIONS)]
        for thread in self._threads:
            thread.start()

    def _guard(self, partition):
        try:
            self._produce(partition)
        except Exception as failure:  # pylint: disable=broad-except
            self._failures.append(failure)
            self._over.set()

    def _produce(self, partition):
        number = 0
        while not self._over.is_set():
            value = f"{partition}-{number}".encode()
            batch = wire.batch([(b"", value)])
            request = wire.produce.ProduceRequest(topic=TOPIC, partition=partition, batch=batch)
            try:
                answer = self._client.produce.Produce(request, timeout=20)
                self.acknowledged[partition][answer.base_offset] = value
            except grpc.RpcError as error:
                if error.code() in wire.UNWRITTEN:
                    self.retries += 1
                    time.sleep(0.05)
                    continue
                if error.code() is not grpc.StatusCode.UNKNOWN:
                    raise
                self.unknown[partition].add(value)
            number += 1

    def flow(self):
        """Waits until another record of each partition is acknowledged."""
        before = {partition: len(found) for partition, found in self.acknowledged.items()}

        def more():
            if self._failures:
                raise self._failures[0]
            return all(len(self.acknowledged[one]) > count + 5 for one, count in before.items())

        eventually("records are acknowledged in all partitions", more, PATIENCE_SECONDS)

    def stop(self):
        self._over.set()
        for thread in self._threads:
            thread.join(PATIENCE_SECONDS)
        if self._failures:
            raise self._failures[0]


class PlainClient(unittest.TestCase):
    """What a client does at one broker, while others lead, die and come back."""

    @classmethod
    def setUpClass(cls):
        cls.cluster = Cluster()
        cls.addClassCleanup(cls.cluster.close)
        cls.client = wire.Client(cls.cluster.grpc[1])
        cls.addClassCleanup(cls.client.channel.close)
        request = wire.topic.CreateTopicRequest(name=TOPIC, partition_count=PARTITIONS, replication_factor=3)
        cls.client.topic.CreateTopic(request, timeout=30)
        eventually("all replicas are there", lambda: cls.cluster.settled(3))

    def leaders(self):
        """Who leads each partition, as the broker says that the client knows."""
        described = wire.patiently(self.client.topic.DescribeTopic, wire.topic.DescribeTopicRequest(name=TOPIC))
        return [partition.leader_id for partition in described.partitions]

    def states(self):
        """Partitions by state, as a scrape of all running brokers tells it."""
        found = {}
        for state in ("leaderless", "offline", "under_replicated"):
            series = f'streambus_cluster_partitions{{state="{state}"}}'
            values = self.cluster.metric(series).values()
            found[state] = sum(values) if state == "under_replicated" else max(values)
        return found

    def read(self, partition):
        """Every value by its offset, and where the partition ends."""
        found, offset = {}, 0
        while True:
            request = wire.consume.FetchRequest(partitions=[wire.start(TOPIC, partition, offset)])
            read = wire.patiently(self.client.consume.Fetch, request).partitions[0]
            self.assertFalse(read.HasField("error"), read.error)
            for stored in read.batches:
                for at, record in enumerate(stored.batch.records, stored.base_offset):
                    self.assertNotIn(at, found)
                    found[at] = record.value
            if read.next_offset >= read.high_watermark:
                return found, read.high_watermark
            offset = read.next_offset

    def test_one_address_is_enough_also_when_a_leader_dies(self):
        spread = self.leaders()
        self.assertEqual(sorted(set(spread)), [1, 2, 3], "the broker that is asked leads only some partitions")

        with self.subTest("a topic is written and read through one broker, whoever leads"):
            producers = Producers(self.client)
            self.addCleanup(producers.stop)
            producers.flow()
            elsewhere = next(partition for partition, leader in enumerate(spread) if leader != 1)
            found, _ = self.read(elsewhere)
            self.assertTrue(found)

        with self.subTest("a member of a group gets all partitions and commits"):
            member = Member(self.client, "readers", TOPIC)
            committed, answered = {}, 0
            for kind, event in member.events():
                if kind == "records":
                    self.assertFalse(event.HasField("error"), event.error)
                    last = event.batches[-1]
                    if event.partition not in committed:
                        committed[event.partition] = last.base_offset + len(last.batch.records)
                        member.commit(event.partition, committed[event.partition])
                elif kind == "committed":
                    self.assertFalse(event.results[0].HasField("error"), event.results[0].error)
                    answered += 1
                    if answered == PARTITIONS:
                        break
            member.leave()

        before = self.cluster.metric("streambus_raft_elections_total")
        self.assertEqual(self.states(), {"leaderless": 0, "offline": 0, "under_replicated": 0})

        victim = spread[elsewhere]
        lost = spread.count(victim)
        self.cluster.kill(victim)

        with self.subTest("others lead, and the same client goes on"):
            eventually("nobody waits for the dead broker", lambda: victim not in self.leaders(), PATIENCE_SECONDS)
            producers.flow()
            after = self.cluster.metric("streambus_raft_elections_total")
            won = sum(after[number] - before[number] for number in self.cluster.running)
            self.assertGreaterEqual(won, lost, "the survivors won the elections of what it led")
            expected = {"leaderless": 0, "offline": 0, "under_replicated": PARTITIONS}
            eventually("each partition lacks a replica", lambda: self.states() == expected, PATIENCE_SECONDS)
            connected = self.cluster.metric(f'streambus_peer_connected{{peer="{victim}"}}')
            self.assertEqual(set(connected.values()), {0})

        self.cluster.start(victim)

        with self.subTest("the dead one comes back, and nothing is wrong"):
            well = {"leaderless": 0, "offline": 0, "under_replicated": 0}
            eventually("all replicas are up to date", lambda: self.states() == well, PATIENCE_SECONDS)
            producers.flow()
            producers.stop()

        with self.subTest("what was committed is still committed"):
            request = wire.group.FetchOffsetsRequest(group="readers")
            offsets = wire.patiently(self.client.group.FetchOffsets, request).offsets
            self.assertEqual({at.partition: at.offset for at in offsets}, committed)

        total = 0
        for partition in range(PARTITIONS):
            with self.subTest(f"partition {partition} has every acknowledged record once", partition=partition):
                found, end = self.read(partition)
                self.assertEqual(sorted(found), list(range(end)), "offsets are dense")
                values = list(found.values())
                self.assertEqual(len(values), len(set(values)), "a record is there twice")
                acknowledged = producers.acknowledged[partition]
                self.assertEqual({at: found.get(at) for at in acknowledged}, acknowledged)
                self.assertLessEqual(set(values) - set(acknowledged.values()), producers.unknown[partition])
                numbers = [int(value.split(b"-")[1]) for value in values]
                self.assertEqual(numbers, sorted(numbers), "records are out of order")
                total += end

        with self.subTest("the counters know it"):
            # The broker that the client knows took every record, whoever led, and has a replica of everything.
            label = f'{{topic="{TOPIC}"}}'
            accepted = self.cluster.metric("streambus_messages_produced_total" + label)
            acknowledged = sum(map(len, producers.acknowledged.values()))
            self.assertEqual(accepted, {1: acknowledged, 2: 0, 3: 0})
            self.assertEqual(self.cluster.running[1].metric("streambus_messages_stored_total" + label), total)
            refused = 'streambus_produce_rejections_total{code="not_leader"}'
            self.assertEqual(self.cluster.running[1].metric(refused), producers.retries)
            self.assertGreater(producers.retries, 0)


if __name__ == "__main__":
    unittest.main()
