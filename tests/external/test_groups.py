"""Members of groups that are generated from `proto/`: a few lines each, whatever the language."""

import unittest

import grpc

import wire
from members import Member
from running import Broker, eventually

TOPIC = "orders"
PARTITIONS = 4
RECORDS = 2_000


class Groups(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.broker = Broker()
        cls.addClassCleanup(cls.broker.close)
        cls.client = wire.Client(cls.broker.grpc)
        cls.addClassCleanup(cls.client.channel.close)
        cls.client.topic.CreateTopic(wire.topic.CreateTopicRequest(name=TOPIC, partition_count=PARTITIONS))
        cls.sent = wire.by_partition(wire.orders(RECORDS), PARTITIONS)
        for partition, records in cls.sent.items():
            for slice_ in wire.in_batches(records, 50):
                cls.client.produce.Produce(
                    wire.produce.ProduceRequest(topic=TOPIC, partition=partition, batch=wire.batch(slice_))
                )

    def test_a_member_reads_everything_commits_and_the_lag_is_zero(self):
        member = Member(self.client, "readers", TOPIC)
        read = {partition: [] for partition in range(PARTITIONS)}
        committed = 0
        for kind, event in member.events():
            if kind == "records":
                self.assertFalse(event.HasField("error"), event.error)
                for stored in event.batches:
                    self.assertEqual(stored.base_offset, len(read[event.partition]))
                    read[event.partition] += [(record.key, record.value) for record in stored.batch.records]
                if sum(map(len, read.values())) == RECORDS:
                    for partition, records in read.items():
                        member.commit(partition, len(records))
            elif kind == "committed":
                self.assertFalse(event.results[0].HasField("error"), event.results[0].error)
                committed += 1
                if committed == PARTITIONS:
                    break
        self.assertEqual(read, dict(self.sent))
        member.leave()
        for partition, records in self.sent.items():
            label = f'{{group="readers",partition="{partition}",topic="{TOPIC}"}}'
            self.assertEqual(self.broker.metric("streambus_consumer_group_lag" + label), 0)
        described = self.client.group.DescribeGroup(wire.group.DescribeGroupRequest(group="readers"))
        self.assertEqual([at.committed_offset for at in described.partitions], [len(self.sent[p]) for p in range(4)])
        self.assertEqual([at.lag for at in described.partitions], [0] * PARTITIONS)

    def test_a_second_member_takes_half_and_gives_it_back(self):
        first = Member(self.client, "pair", TOPIC)
        events = first.events()
        while len(first.assigned) < PARTITIONS:
            next(events)
        second = Member(self.client, "pair", TOPIC)
        others = second.events()
        while not first.revoked:
            next(events)
        while len(second.assigned) < PARTITIONS // 2:
            next(others)
        self.assertEqual(first.assigned | second.assigned, set(range(PARTITIONS)))
        self.assertFalse(first.assigned & second.assigned)
        second.vanish()
        while len(first.assigned) < PARTITIONS:
            next(events)
        first.leave()

    def test_a_share_group_accepts_each_record_once(self):
        member = Member(
            self.client, "workers", TOPIC, wire.group.ShareOptions(deliveries_max=3), in_flight_records_max=100
        )
        accepted, released = set(), set()
        for kind, event in member.events():
            if kind == "records":
                said = []
                for lease in event.leases:
                    for offset in range(lease.first_offset, lease.last_offset + 1):
                        at = (event.partition, offset)
                        self.assertNotIn(at, accepted)
                        again = offset % 7 == 0 and at not in released
                        (released if again else accepted).add(at)
                        said.append(
                            wire.group.Acknowledgement(
                                topic=TOPIC,
                                partition=event.partition,
                                first_offset=offset,
                                last_offset=offset,
                                kind=wire.group.ACK_KIND_RELEASE if again else wire.group.ACK_KIND_ACCEPT,
                            )
                        )
                member.say(acknowledge=wire.group.Acknowledge(correlation_id=2, acknowledgements=said))
            elif kind == "acknowledged":
                self.assertFalse(any(result.HasField("error") for result in event.results), event)
                if len(accepted) == RECORDS:
                    break
        member.leave()
        self.assertGreater(len(released), 200)
        label = f'{{group="workers",topic="{TOPIC}"}}'
        self.assertEqual(
            self.broker.metric("streambus_consumer_group_redeliveries_total" + label), len(released)
        )
        eventually("nothing is left", lambda: self._lag("workers") == 0)

    def test_plain_fetch_with_commits_needs_no_stream(self):
        stub = self.client.group
        commit = wire.group.OffsetCommit(topic=TOPIC, partition=0, offset=3, metadata="by hand")
        answer = stub.CommitOffsets(wire.group.CommitOffsetsRequest(group="plain", offsets=[commit]))
        self.assertFalse(answer.results[0].HasField("error"))
        found = stub.FetchOffsets(wire.group.FetchOffsetsRequest(group="plain")).offsets
        self.assertEqual([(at.partition, at.offset, at.metadata) for at in found], [(0, 3, "by hand")])
        with self.assertRaises(grpc.RpcError) as raised:
            stub.FetchOffsets(wire.group.FetchOffsetsRequest(group="nobody"))
        self.assertEqual(raised.exception.code(), grpc.StatusCode.NOT_FOUND)

    def _lag(self, group):
        described = self.client.group.DescribeGroup(wire.group.DescribeGroupRequest(group=group))
        return sum(at.lag for at in described.partitions)


if __name__ == "__main__":
    unittest.main()
