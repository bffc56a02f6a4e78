"""Groups at work: members come, one is killed, and what was processed is compared with what was sent.

Twenty seconds with records of its own. In the long form, for people, with a file of lines of JSON:

    STREAMBUS_DEMONSTRATION_SECONDS=120 STREAMBUS_DEMONSTRATION_FILE=flights.jsonl STREAMBUS_DEMONSTRATION_KEY=dest \\
        python tests/external/test_demonstration.py

The key is the field that chooses the partition. What was seen is printed.
"""

import collections
import json
import os
import pathlib
import signal
import sys
import tempfile
import threading
import time
import unittest

import wire
from running import Broker, Program, binary, eventually

SECONDS = float(os.environ.get("STREAMBUS_DEMONSTRATION_SECONDS", "20"))
FILE = os.environ.get("STREAMBUS_DEMONSTRATION_FILE")
KEY = os.environ.get("STREAMBUS_DEMONSTRATION_KEY", "customer")
PARTITIONS = 6
RATE = 1_000
# Records are sent in so many portions a second.
PORTIONS = 20
# Lags are compared so often at a moment, until nothing came in between.
TRIES = 50
# The share group gets as many as the file has, or so many.
SHARED = 5_000
WORKER = pathlib.Path(__file__).with_name("worker.py")


def lines():
    """The lines that are sent, again and again if the time is longer."""
    if FILE is None:
        return [value for _, value in wire.orders(SHARED)]
    return pathlib.Path(FILE).read_bytes().splitlines()


class Sent:
    """The records that were acknowledged, by partition and offset."""

    def __init__(self, client, topic):
        self._client = client
        self._topic = topic
        self.values = {partition: [] for partition in range(PARTITIONS)}
        create = wire.topic.CreateTopicRequest(name=topic, partition_count=PARTITIONS)
        client.topic.CreateTopic(create)

    def send(self, values):
        """Sends values in their order, by the partitions of their keys."""
        records = [(str(json.loads(value)[KEY]).encode(), value) for value in values]
        for partition, portion in wire.by_partition(records, PARTITIONS).items():
            request = wire.produce.ProduceRequest(
                topic=self._topic, partition=partition, batch=wire.batch(portion)
            )
            answer = wire.patiently(self._client.produce.Produce, request)
            assert answer.base_offset == len(self.values[partition]), "the offsets of a partition are not dense"
            self.values[partition] += [value for _, value in portion]

    def count(self):
        """How many there are."""
        return sum(map(len, self.values.values()))


class Load:
    """Sends a steady flow of records on a thread of its own, for a time or for as long as it is needed."""

    def __init__(self, sent, seconds):
        self._sent = sent
        self._seconds = seconds
        self._started = time.monotonic()
        self.took = None
        self._failure = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        try:
            values = lines()
            at, size = 0, RATE // PORTIONS
            due = self._started
            while not self._over.is_set():
                self._sent.send([values[(at + step) % len(values)] for step in range(size)])
                at += size
                # What a busy machine did not manage is not made up for.
                due = max(due + 1 / PORTIONS, time.monotonic())
                self._over.wait(due - time.monotonic())
        except Exception as failure:  # pylint: disable=broad-except
            self._failure = failure

    def wait_until(self, share):
        """Waits until so much of the time is over."""
        self._thread.join(max(0, self._started + self._seconds * share - time.monotonic()))
        self._check()

    def finish(self):
        """Ends when the time is over."""
        self.wait_until(1)
        self.stop()
        self.took = time.monotonic() - self._started
        self._check()

    def stop(self):
        """Ends now, whatever happened."""
        self._over.set()
        self._thread.join(60)

    def _check(self):
        if self._failure:
            raise AssertionError("the load broke down") from self._failure


class Process:
    """A member that is a process, and what it has printed."""

    def __init__(self, name, command):
        self.name = name
        self._file = tempfile.NamedTemporaryFile(prefix="streambus-member-")
        environment = {**os.environ, "RUST_LOG": "error"}
        self._program = Program(command, environment, stdout=self._file)
        self.dead = False

    def printed(self):
        """The whole lines so far."""
        return pathlib.Path(self._file.name).read_bytes().split(b"\n")[:-1]

    def processed(self):
        """The records that it printed, in their order: partition, offset, value."""
        found = []
        for line in self.printed():
            partition, offset, value = line.split(b" ", 2)
            found.append((int(partition), int(offset), value))
        return found

    def kill(self):
        """Ends it as `kill -9` does."""
        self._program.kill()
        self.dead = True

    def discard(self):
        """Ends it if it still runs, and forgets what it printed."""
        if not self.dead:
            self.kill()
        self._file.close()

    def close(self, by=signal.SIGTERM):
        """Has it leave its group, which it must do without an error."""
        if not self.dead:
            self.dead = True
            code = self._program.stop(by=by)
            assert code == 0, f"{self.name} ended with {code}:\n" + "\n".join(self._program.lines[-20:])


def generated(name, broker, *arguments):
    """A member on the generated Python client."""
    return Process(name, [sys.executable, str(WORKER), broker.grpc, *arguments])


def command(name, broker, group, topic):
    """A member that is the command line, and so the Rust client."""
    options = ["--broker", broker.grpc, "consume", topic, "--group", group, "--follow", "--format", "%p %o %v"]
    return Process(name, [binary(), *options])


class Demonstration(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.broker = Broker()
        cls.addClassCleanup(cls.broker.close)
        cls.client = wire.Client(cls.broker.grpc)
        cls.addClassCleanup(cls.client.channel.close)

    def test_every_record_is_processed_though_members_come_and_one_is_killed(self):
        topic, group = "demonstration", "readers"
        sent = Sent(self.client, topic)
        load = Load(sent, SECONDS)
        self.addCleanup(load.stop)
        lags = []

        first = self._start(command("command 1", self.broker, group, topic))
        self._await_members(group, 1)
        load.wait_until(0.15)
        lags.append(("one member", *self._lag(group, topic)))

        second = self._start(generated("python", self.broker, group, topic))
        pair = self._await_members(group, 2)
        load.wait_until(0.35)
        lags.append(("two members", *self._lag(group, topic)))

        third = self._start(command("command 2", self.broker, group, topic))
        three = self._await_members(group, 3)
        (owned,) = (partitions for member, partitions in three.items() if member not in pair)
        load.wait_until(0.55)
        lags.append(("three members", *self._lag(group, topic)))

        # It dies with something that it has committed and something that it has not.
        before = self._committed(group)
        eventually(
            "the third member commits",
            lambda: all(self._committed(group)[at] > before[at] for at in owned),
        )
        committed = self._committed(group)
        eventually(
            "it goes on",
            lambda: sum(offset >= committed[at] for at, offset, _ in third.processed() if at in owned) > RATE / 10,
        )
        # What the killed member has committed is at least this.
        committed = self._committed(group)
        third.kill()
        lags.append(("one is killed", *self._lag(group, topic)))
        self._await_members(group, 2)
        load.wait_until(0.85)
        lags.append(("two are left", *self._lag(group, topic)))

        load.finish()
        end = {(partition, len(values)) for partition, values in sent.values.items()}
        eventually("everything is committed", lambda: self._committed(group).items() == end, SECONDS + 60)
        self.assertEqual(sum(self._lags_on_metrics(group, topic).values()), 0)
        first.close(signal.SIGINT)
        second.close()

        members = [first, second, third]
        processed = {member.name: member.processed() for member in members}
        self._check_order(processed, sent)
        times = collections.Counter((p, o) for records in processed.values() for p, o, _ in records)
        everything = {(p, o) for p, values in sent.values.items() for o in range(len(values))}
        self.assertEqual(set(times), everything, "each record is processed at least once")
        twice = {at for at, count in times.items() if count > 1}
        of_the_dead = {(p, o) for p, o, _ in processed[third.name]}
        window = {(p, o) for p, o in of_the_dead if p in owned and o >= committed[p]}
        self.assertLessEqual(twice, window, "only what the killed member had not committed is processed twice")
        self.assertLessEqual(max(times.values()), 2)

        print(f"\n{load.took:.0f} s, {sent.count():,} records in {PARTITIONS} partitions of {FILE or 'made-up orders'}")
        for name, records in processed.items():
            killed = f", killed with partitions {sorted(owned)}" if name == third.name else ""
            print(f"  {name:<10} processed {len(records):>7,}{killed}")
        print(f"  processed at least once: {len(times):,}; twice: {len(twice):,}, all of them among the {len(window):,}")
        print("  records that the killed member had processed and not committed; out of order: 0")
        print("  lag of each partition on /metrics; by hand (high watermark less committed offset) where that is else:")
        for moment, by_hand, on_metrics in lags:
            between = [f"{least} to {most}" for least, most in by_hand.values() if least < most]
            print(f"    {moment:<14} {list(on_metrics.values())} {', '.join(between)}")

    def test_each_record_of_a_share_group_is_accepted_once_or_a_dead_letter(self):
        topic, group = "shared", "workers"
        sent = Sent(self.client, topic)
        values = lines()
        half = len(values) // 2
        for portion in wire.in_batches(values[:half], 500):
            sent.send(portion)
        workers = [
            self._start(generated(f"worker {seed}", self.broker, group, topic, str(seed))) for seed in range(3)
        ]
        # The last member takes what is known of leases and of copies under way with it, so the others must be there.
        eventually(
            "all workers are there",
            lambda: self._exists(group) and len(self._describe(group).members) == len(workers),
        )
        # Chance decides who is first; one that starts late may get nothing.
        crashing = eventually(
            "a worker has done a part",
            lambda: next((worker for worker in workers if len(self._said(worker, b"accepted")) > half / 10), None),
        )
        crashing.kill()
        for portion in wire.in_batches(values[half:], 500):
            sent.send(portion)
        eventually("nothing is left", lambda: self._is_done(group, topic, sent), SECONDS + 60)
        for worker in workers:
            worker.close()

        accepted = collections.Counter()
        for worker in workers:
            accepted.update(self._said(worker, b"accepted"))
        # Nobody heard whether these were accepted: then it was by the one that crashed, if by nobody else.
        unheard = set(self._said(crashing, b"asked")) - set(self._said(crashing, b"accepted"))
        dead = self._dead_letters(group)
        everything = {(p, o) for p, values in sent.values.items() for o in range(len(values))}
        done = accepted + collections.Counter({at: 1 for at in dead})
        self.assertLessEqual(set(done), everything)
        self.assertEqual([at for at, count in done.items() if count > 1], [], "done more than once")
        self.assertLessEqual(everything - set(done), unheard, "neither accepted nor a dead letter")
        self.assertEqual([at for at, (_, value) in dead.items() if value != sent.values[at[0]][at[1]]], [])

        reasons = collections.Counter(reason for reason, _ in dead.values())
        label = f'{{group="{group}",topic="{topic}"}}'
        redelivered = self.broker.metric("streambus_consumer_group_redeliveries_total" + label)
        print(f"\n{sent.count():,} records in a share group of {len(workers)} workers, of which one was killed")
        print(f"  accepted once, as a worker heard: {len(accepted):,}")
        print(f"  accepted by the killed worker, which did not hear it: {len(everything - set(done)):,}")
        print(f"  dead letters: {len(dead):,} ({', '.join(f'{n:,} {why}' for why, n in sorted(reasons.items()))})")
        print(f"  delivered again: {redelivered:,.0f}; accepted twice: 0; neither accepted nor dead: 0")

    def _start(self, member):
        self.addCleanup(member.discard)
        return member

    def _describe(self, group):
        return self.client.group.DescribeGroup(wire.group.DescribeGroupRequest(group=group))

    def _await_members(self, group, count):
        """Waits until so many members share out all partitions, and gives what each has by its id."""

        def shared_out():
            if not self._exists(group):
                return None
            members = self._describe(group).members
            owned = {member.member_id: {at.partition for at in member.assigned} for member in members}
            at_rest = all(member.assigned and not member.revoking for member in members)
            total = sorted(partition for partitions in owned.values() for partition in partitions)
            return owned if len(owned) == count and at_rest and total == list(range(PARTITIONS)) else None

        return eventually(f"{count} members share out the partitions", shared_out)

    def _exists(self, group):
        listed = self.client.group.ListGroups(wire.group.ListGroupsRequest()).groups
        return any(listing.group == group for listing in listed)

    def _committed(self, group):
        request = wire.group.FetchOffsetsRequest(group=group)
        return {at.partition: at.offset for at in self.client.group.FetchOffsets(request).offsets}

    def _ends(self, topic):
        described = self.client.topic.DescribeTopic(wire.topic.DescribeTopicRequest(name=topic)).partitions
        return {at.partition: at.high_watermark for at in described}

    def _lags_on_metrics(self, group, topic):
        found = {}
        for line in self.broker.metrics().splitlines():
            if line.startswith(f'streambus_consumer_group_lag{{group="{group}",partition="'):
                self.assertIn(f'topic="{topic}"', line)
                found[int(line.split('partition="')[1].split('"')[0])] = int(float(line.rsplit(" ", 1)[1]))
        return dict(sorted(found.items()))

    def _lag(self, group, topic):
        """The lag on /metrics by partition, and by hand the least and the most that it can have been meanwhile: they are
        the same if neither records nor commits came in between. Of several tries that where they are closest."""
        best = None
        for _ in range(TRIES):
            end_before, committed_before = self._ends(topic), self._committed(group)
            on_metrics = self._lags_on_metrics(group, topic)
            committed_after, end_after = self._committed(group), self._ends(topic)
            by_hand = {
                at: (end_before[at] - committed_after[at], end_after[at] - committed_before[at]) for at in end_before
            }
            self.assertEqual(set(on_metrics), set(by_hand))
            for at, (least, most) in by_hand.items():
                self.assertLessEqual(least, on_metrics[at], f"partition {at}")
                self.assertLessEqual(on_metrics[at], most, f"partition {at}")
            apart = sum(most - least for least, most in by_hand.values())
            if best is None or apart < best[0]:
                best = apart, by_hand, on_metrics
            if apart == 0:
                break
        return best[1:]

    def _check_order(self, processed, sent):
        """Each member went through each partition from lower to higher offsets, and read what was sent there."""
        for name, records in processed.items():
            last = collections.defaultdict(lambda: -1)
            for partition, offset, value in records:
                self.assertGreater(offset, last[partition], f"{name}, partition {partition}")
                last[partition] = offset
                self.assertEqual(value, sent.values[partition][offset])

    def _is_done(self, group, topic, sent):
        if not self._exists(group):
            return False
        at = [at for at in self._describe(group).partitions if at.topic == topic]
        return sum(at.committed_offset for at in at) == sent.count() and sum(at.lag for at in at) == 0

    @staticmethod
    def _said(worker, verb):
        found = (line.split() for line in worker.printed())
        return [(int(words[1]), int(words[2])) for words in found if words[0] == verb]

    def _dead_letters(self, group):
        """What is in the dead-letter topic, by where it comes from: the reason and the value."""
        topic = f"{group}.dead-letter"
        described = self.client.topic.DescribeTopic(wire.topic.DescribeTopicRequest(name=topic)).partitions
        end, offset, found = described[0].high_watermark, 0, {}
        while offset < end:
            request = wire.consume.FetchRequest(partitions=[wire.start(topic, 0, offset)])
            read = self.client.consume.Fetch(request).partitions[0]
            for stored in read.batches:
                for record in stored.batch.records:
                    headers = {header.key.rsplit("dead-letter-")[-1]: header.value for header in record.headers}
                    at = int(headers["partition"]), int(headers["offset"])
                    self.assertNotIn(at, found, "a dead letter is there twice")
                    found[at] = headers["reason"].decode(), record.value
            offset = read.next_offset
        return found


if __name__ == "__main__":
    unittest.main()
