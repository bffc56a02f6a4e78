"""Clients that never stop, at brokers to which things are done, and a history of what they were told."""

import collections
import contextlib
import json
import os
import pathlib
import queue
import re
import signal
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request

import grpc

import wire
from cluster import Cluster, Site
from history import OK, REFUSED, UNKNOWN, Commit, Committed, Delivery, Denied, End, Fetch, History, Send
from members import Member
from network import Network
from running import binary, eventually

BROKERS = (1, 2, 3)
PARTITIONS = 4
GROUP = "readers"
DISK_BYTES = 256 << 20
RESERVE_BYTES = 64 << 20
SETTINGS = {
    # Those that brokers have by default, so that the times are those of users.
    "raft.heartbeat": "500ms",
    "raft.election_min": "600ms",
    "raft.election_max": "1s",
    "groups.session_timeout": "3s",
    "groups.rebalance_timeout": "3s",
    "storage.reserve_bytes": RESERVE_BYTES,
    "storage.journal_bytes": "64MiB",
    "storage.write_buffer_bytes": "32MiB",
}
# How long a call may take. Shorter than most faults, so that clients go to another broker.
CALL_SECONDS = 2
# How long a producer tries at the end to find out what became of a batch.
SETTLE_SECONDS = 30
# Between two batches of a producer, and two looks of everybody else.
PACE_SECONDS = 0.04
# How long a broker may take to answer that it lives.
LIVE_SECONDS = 5
CHANNEL = {
    "grpc.initial_reconnect_backoff_ms": 100,
    "grpc.min_reconnect_backoff_ms": 1000,
    "grpc.max_reconnect_backoff_ms": 500,
}
# What a broker says of a write that did not happen and may be tried again.
NOTHING_WRITTEN = ("NOT_LEADER", "NOT_READY", "BUSY", "DISK_FULL")
# What it must not say to clients that do nothing wrong.
NEVER = (
    "INVALID_ARGUMENT",
    "MALFORMED_BATCH",
    "UNKNOWN_TOPIC",
    "UNKNOWN_PARTITION",
    "OFFSET_OUT_OF_RANGE",
    "SEQUENCE_OUT_OF_ORDER",
    "PRODUCER_FENCED",
    "UNKNOWN_PRODUCER",
    "CORRUPT",
    "INTERNAL",
)


class Apart(Site):
    """Each broker in a namespace of its own, with a small disk of its own."""

    def __init__(self, count):
        self.directory = tempfile.mkdtemp(prefix="streambus-faults-")
        try:
            self.network = Network(count, self.directory, DISK_BYTES)
        except BaseException:
            os.rmdir(self.directory)
            raise
        numbers = range(1, count + 1)
        self.grpc = {number: f"{self.network.address(number)}:9092" for number in numbers}
        self.http = {number: f"{self.network.address(number)}:8080" for number in numbers}

    def data(self, number):
        return self.network.disk(number) / "data"

    def prefix(self, number):
        return self.network.enter(number)

    def close(self):
        self.network.close()
        super().close()


class Brokers(Cluster):
    """A cluster that knows what was done to it."""

    def __init__(self, site):
        # How often each was started.
        self.lives = collections.Counter()
        self.paused = set()
        self.clients = {number: wire.Client(address, **CHANNEL) for number, address in site.grpc.items()}
        super().__init__(len(site.grpc), site, **SETTINGS)

    def start(self, number, environment=None):
        self.lives[number] += 1
        super().start(number, environment)

    def pause(self, number):
        """Stops a broker's process where it is."""
        self.paused.add(number)
        os.kill(self.running[number].program.process_id(), signal.SIGSTOP)

    def resume(self, number):
        """Lets it go on."""
        os.kill(self.running[number].program.process_id(), signal.SIGCONT)
        self.paused.discard(number)

    def life(self, number):
        """The broker in one of its lives, for a history."""
        return (number, self.lives[number])

    def controller(self):
        """Who leads the control group."""
        return eventually("somebody leads the control group", lambda: self.status(1).controller_id)

    def well(self):
        """Whether everybody says that all is well, in time."""
        try:
            if len(self.running) < len(self.grpc) or not self.settled(len(self.grpc)):
                return False
        except grpc.RpcError:
            return False
        lagging = self.metric('streambus_cluster_partitions{state="under_replicated"}')
        return not any(lagging.values()) and all(self.health(number) == 200 for number in self.running)

    def health(self, number, path="/health", timeout=LIVE_SECONDS):
        """The HTTP status of a probe."""
        try:
            with urllib.request.urlopen(f"http://{self.http[number]}{path}", timeout=timeout) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code

    def ends(self, number, topic):
        """Where partitions end as a broker knows it, and how much its own replicas hold, by partition."""
        families = [f"streambus_partition_{what}" for what in ("high_watermark_offset", "size_bytes")]
        url = f"http://{self.http[number]}/metrics/detailed?topic={topic}&family={','.join(families)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            text = answer.read().decode()
        ends, sizes = (
            {int(partition): int(value) for partition, value in re.findall(rf'^{family}{{partition="(\d+)".* (\d+)$', text, re.M)}
            for family in families
        )
        return {partition: (end, sizes[partition]) for partition, end in ends.items()}

    def copy(self, number, topic):
        """What the replicas on a broker hold, by partition; each must hold all that is committed."""
        held = {}
        for partition, (end, _) in self.ends(number, topic).items():
            held[partition], offset = [], 0
            while offset < end:
                request = wire.consume.FetchRequest(partitions=[wire.start(topic, partition, offset)])
                read = wire.patiently(self.clients[number].consume.Fetch, request).partitions[0]
                if read.HasField("error"):
                    raise AssertionError(f"broker {number} cannot read {topic}/{partition} at {offset}: {read.error}")
                held[partition].extend(_records(read))
                offset = read.next_offset
        return held

    def close(self):
        for number in list(self.paused):
            self.resume(number)
        for client in self.clients.values():
            client.channel.close()
        super().close()


def _records(read):
    return [
        (offset, record.value)
        for stored in read.batches
        for offset, record in enumerate(stored.batch.records, stored.base_offset)
    ]


def reason(error):
    """Why a broker refused a call; none if it was not the broker that ended it, which says nothing about the write."""
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            found = re.search(rb"google\.rpc\.ErrorInfo\x12.\n.([A-Z_]+)\x12\tstreambus", value, re.S)
            return found and found[1].decode()
    return None


class Clients:
    """Everybody who uses a topic while something goes wrong. Each is a thread; what breaks one of them is raised here."""

    def __init__(self, brokers, topic):
        self._brokers, self._topic = brokers, topic
        self.history = History()
        self.errors = collections.Counter()
        # Times of acknowledgements, by partition.
        self.acknowledged = {partition: [] for partition in range(PARTITIONS)}
        # When the newest batch was sent that is acknowledged, by partition.
        self._newest = collections.Counter()
        # How far the group and the readers at each broker are.
        self.progress = collections.Counter()
        # Probes that a running broker did not answer.
        self.unanswered = []
        # When what was done to brokers began to be undone.
        self.fault_over = None
        self._over = threading.Event()
        self._producing_is_over = threading.Event()
        self._failures = []
        producers = [(self._numbered, partition) for partition in range(PARTITIONS)]
        producers += [(self._plain, partition) for partition in range(PARTITIONS)]
        producers += [(self._library, partition) for partition in range(2)]
        others = [(job, number) for number in BROKERS for job in (self._fetch, self._ask, self._probe)]
        others += [(self._consume, number) for number in (1, 2)]
        self._producers = [self._thread(*job) for job in producers]
        self._others = [self._thread(*job) for job in others]

    def _thread(self, job, argument):
        def guard():
            try:
                job(argument)
            except Exception as failure:  # pylint: disable=broad-except
                self._failures.append(failure)

        thread = threading.Thread(target=guard, daemon=True, name=f"{job.__name__}-{argument}")
        thread.start()
        return thread

    def check(self):
        """Raises what broke a client so far."""
        if self._failures:
            raise RuntimeError("a client broke down") from self._failures[0]

    def hold(self, seconds):
        """Lets clients go on for a time."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.check()
            self._over.wait(min(left, 0.1))

    def flow(self, deadline):
        """Waits until another batch of each partition is acknowledged that was sent from now on; gives how long it took."""
        begun = time.monotonic()

        def more():
            self.check()
            return all(self._newest[partition] > begun for partition in self.acknowledged)

        eventually("batches are acknowledged in all partitions", more, deadline)
        return time.monotonic() - begun

    def read_on(self, deadline):
        """Waits until the readers at every broker and the group have got something new."""
        before = dict(self.progress)
        readers = [("fetch", number) for number in BROKERS] + ["group"]

        def more():
            self.check()
            return all(self.progress[one] > before.get(one, 0) for one in readers)

        eventually("readers at all brokers and the group go on", more, deadline)

    def stop(self):
        """Ends the producers, lets the group get what is left, and ends everybody."""
        self._producing_is_over.set()
        for thread in self._producers:
            thread.join(2 * SETTLE_SECONDS)
        ends = eventually("all brokers have the same, so everything", self._same_ends, 30)

        def delivered():
            self.check()
            return all(self.progress["delivered", partition] >= end for partition, (end, _) in ends.items())

        eventually("the group has got everything", delivered, 30)
        self.end()
        self.check()

    def _same_ends(self):
        """Where partitions end if all brokers, the leaders among them, agree on it."""
        ends, *others = (self._brokers.ends(number, self._topic) for number in BROKERS)
        return ends if all(other == ends for other in others) else None

    def end(self):
        """Ends everybody as soon as may be."""
        self._producing_is_over.set()
        self._over.set()
        for thread in (*self._producers, *self._others):
            thread.join(2 * SETTLE_SECONDS)

    def longest_gap(self, since, until):
        """The longest time between two acknowledgements in one partition."""
        longest = 0.0
        for times in self.acknowledged.values():
            before = [at for at in times if at < since][-1:] or [since]
            known = [*before, *(at for at in times if since <= at <= until)]
            longest = max(longest, *(b - a for a, b in zip(known, known[1:])), 0.0)
        return longest

    def _acknowledge(self, partition, invoked):
        now = time.monotonic()
        self.acknowledged[partition].append(now)
        self._newest[partition] = max(self._newest[partition], invoked)
        return now

    def _object(self, partition, error, doing):
        """Notes an error. Gives whether the broker promises that nothing was written."""
        why = reason(error)
        self.errors[why or f"{error.code().name.lower()} of the connection"] += 1
        if why in NEVER:
            self.history.add(Denied(partition, f"{doing}: {why}: {error.details()}"))
        return why in NOTHING_WRITTEN

    def _first_broker(self, partition):
        return BROKERS[partition % len(BROKERS)]

    def _numbered(self, partition):
        """A producer that numbers its batches and tries until each is acknowledged, at one broker after another."""
        home = self._first_broker(partition)
        producer = None
        while producer is None:
            try:
                request = wire.produce.InitProducerRequest()
                producer = self._brokers.clients[home].produce.InitProducer(request, timeout=CALL_SECONDS)
            except grpc.RpcError as error:
                self._object(partition, error, "InitProducer")
                home = home % len(BROKERS) + 1
        number = 0
        while not self._producing_is_over.wait(PACE_SECONDS):
            values = tuple(f"numbered{partition}-{number + one}".encode() for one in range(1 + number % 3))
            request = wire.produce.ProduceRequest(
                topic=self._topic,
                partition=partition,
                batch=wire.batch((b"", value) for value in values),
                producer=wire.produce.ProducerSequence(
                    producer_id=producer.producer_id, epoch=producer.epoch, base_sequence=number
                ),
            )
            number += len(values)
            invoked, outcome, offset, give_up = time.monotonic(), UNKNOWN, None, None
            while outcome is UNKNOWN and not self._over.is_set() and (give_up is None or time.monotonic() < give_up):
                try:
                    answer = self._brokers.clients[home].produce.Produce(request, timeout=CALL_SECONDS)
                    outcome, offset = OK, answer.base_offset
                except grpc.RpcError as error:
                    self._object(partition, error, f"produce {values[0]}")
                    home = home % len(BROKERS) + 1
                    if self._producing_is_over.wait(PACE_SECONDS) and give_up is None:
                        give_up = time.monotonic() + SETTLE_SECONDS
            completed = self._acknowledge(partition, invoked) if outcome is OK else time.monotonic()
            name = f"numbered{partition}"
            self.history.add(Send(name, partition, values, invoked, completed, outcome, offset))

    def _plain(self, partition):
        """A producer without numbers, which tries nothing twice and believes what it is told."""
        name, home = f"plain{partition}", self._first_broker(partition)
        number = 0
        while not self._producing_is_over.wait(PACE_SECONDS):
            value = f"{name}-{number}".encode()
            number += 1
            batch = wire.batch([(b"", value)])
            request = wire.produce.ProduceRequest(topic=self._topic, partition=partition, batch=batch)
            invoked, outcome, offset = time.monotonic(), UNKNOWN, None
            try:
                answer = self._brokers.clients[home].produce.Produce(request, timeout=CALL_SECONDS)
                outcome, offset = OK, answer.base_offset
            except grpc.RpcError as error:
                if self._object(partition, error, f"produce {value}"):
                    outcome = REFUSED
                home = home % len(BROKERS) + 1
            completed = self._acknowledge(partition, invoked) if outcome is OK else time.monotonic()
            self.history.add(
                Send(name, partition, (value,), invoked, completed, outcome, offset, numbered=False)
            )

    def _library(self, partition):
        """The Rust client, which must deliver everything whatever happens, once and in order."""
        name, sent = f"library{partition}", []
        command = [binary(), "produce", self._topic, "--partition", str(partition), "--timeout", "120s"]
        process = subprocess.Popen(
            [*command, "--broker", self._brokers.grpc[self._first_broker(partition)], "--output", "json"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            while not self._producing_is_over.wait(PACE_SECONDS):
                value = f"{name}-{len(sent)}"
                sent.append((value.encode(), time.monotonic()))
                process.stdin.write(value + "\n")
                process.stdin.flush()
            process.stdin.close()
        except BrokenPipeError:
            # Why it ended is in what it has printed.
            pass
        else:
            while process.poll() is None and not self._over.wait(PACE_SECONDS):
                pass
        finally:
            process.kill()
            process.wait()
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
        with process.stdout, process.stderr:
            output, complaints = process.stdout.read(), process.stderr.read()
        outcome = OK if process.returncode == 0 and json.loads(output)["records"] == len(sent) else UNKNOWN
        if outcome is not OK:
            self.history.add(Denied(partition, f"the client library gave up: {complaints.strip()}"))
        now = time.monotonic()
        for value, invoked in sent:
            self.history.add(Send(name, partition, (value,), invoked, now, outcome))

    def _fetch(self, number):
        """Reads all partitions through one broker."""
        positions = dict.fromkeys(range(PARTITIONS), 0)
        while not self._over.wait(PACE_SECONDS):
            life, invoked = self._brokers.life(number), time.monotonic()
            request = wire.consume.FetchRequest(
                partitions=[wire.start(self._topic, *at) for at in positions.items()], max_wait={"nanos": 100_000_000}
            )
            try:
                answer = self._brokers.clients[number].consume.Fetch(request, timeout=CALL_SECONDS)
            except grpc.RpcError as error:
                self._object(0, error, "fetch")
                continue
            completed = time.monotonic()
            for read in answer.partitions:
                at = positions[read.partition]
                if read.HasField("error"):
                    why = wire.error.ErrorCode.Name(read.error.code).removeprefix("ERROR_CODE_")
                    if why in NEVER:
                        self.history.add(Denied(read.partition, f"fetch at {at}: {why}: {read.error.message}"))
                    continue
                records = tuple(one for one in _records(read) if one[0] >= at)
                # The broker was started again meanwhile: it is not known which of the two answered.
                if life == self._brokers.life(number):
                    self.history.add(
                        Fetch(life, read.partition, invoked, completed, at, read.high_watermark, records)
                    )
                if records:
                    positions[read.partition] = records[-1][0] + 1
                    self.progress["fetch", number] += len(records)

    def _ask(self, number):
        """Asks one broker where partitions end, in both ways that there are, and what the group has committed."""
        client = self._brokers.clients[number]
        latest = [
            wire.consume.PartitionPosition(
                topic=self._topic, partition=partition, position=wire.consume.Position(latest={})
            )
            for partition in range(PARTITIONS)
        ]

        def list_offsets():
            answer = client.topic.ListOffsets(wire.topic.ListOffsetsRequest(positions=latest), timeout=CALL_SECONDS)
            return [(one.partition, one.offset) for one in answer.offsets if not one.HasField("error")]

        def fetch():
            request = wire.consume.FetchRequest(partitions=latest, max_wait={"nanos": 1_000_000})
            answer = client.consume.Fetch(request, timeout=CALL_SECONDS)
            began = lambda one: one.batches[0].base_offset if one.batches else one.next_offset
            return [(one.partition, began(one)) for one in answer.partitions if not one.HasField("error")]

        def offsets():
            request = wire.group.FetchOffsetsRequest(group=f"{GROUP}-{self._topic}")
            answer = client.group.FetchOffsets(request, timeout=CALL_SECONDS)
            return [(one.partition, one.offset) for one in answer.offsets if one.HasField("offset")]

        while not self._over.wait(PACE_SECONDS):
            for ask, kind in ((list_offsets, End), (fetch, End), (offsets, Committed)):
                invoked = time.monotonic()
                try:
                    answers = ask()
                except grpc.RpcError as error:
                    if reason(error) != "UNKNOWN_GROUP":
                        self._object(0, error, ask.__name__)
                    continue
                completed = time.monotonic()
                for partition, offset in answers:
                    self.history.add(kind(self._brokers.life(number), partition, invoked, completed, offset))

    def _probe(self, number):
        """Asks a broker whether it lives. It must say so whenever it runs."""
        while not self._over.wait(0.2):
            before = self._lives(number)
            try:
                answer = self._brokers.health(number, "/health/live")
            except OSError as error:
                answer = repr(error)
            if answer != 200 and before and before == self._lives(number):
                self.unanswered.append(f"broker {number}: {answer}")

    def _lives(self, number):
        if number in self._brokers.running and number not in self._brokers.paused:
            return self._brokers.life(number)
        return None

    def _consume(self, home):
        """A member of the group, which commits what it has got and comes back through another broker if it is lost."""
        while not self._over.is_set():
            try:
                self._be_member(home)
            except grpc.RpcError as error:
                if not self._over.is_set():
                    self._object(0, error, "member")
            home = home % len(BROKERS) + 1
            self._over.wait(PACE_SECONDS)

    def _be_member(self, home):
        joined, waiting = time.monotonic(), collections.deque()
        life = self._brokers.life(home)
        member = Member(self._brokers.clients[home], f"{GROUP}-{self._topic}", self._topic, timeout=1 << 20)
        # Whoever reads a stream cannot be told otherwise that all is over.
        watcher = threading.Thread(target=lambda: (self._over.wait(), member.vanish()), daemon=True)
        watcher.start()
        last = collections.defaultdict(float)
        try:
            for kind, event in member.events():
                now = time.monotonic()
                if kind == "assigned":
                    for at in event.partitions:
                        self.history.add(Committed(life, at.partition, joined, now, at.start_offset))
                elif kind == "records" and event.HasField("error"):
                    return
                elif kind == "records":
                    self._deliver(event)
                    if now - last[event.partition] > 2 * PACE_SECONDS:
                        last[event.partition] = now
                        waiting.append((event.partition, event.next_offset, now))
                        member.commit(event.partition, event.next_offset)
                elif kind == "committed":
                    partition, offset, invoked = waiting.popleft()
                    (result,) = event.results
                    outcome = OK
                    if result.HasField("error"):
                        outcome = UNKNOWN if result.error.may_have_been_written else REFUSED
                    self.history.add(Commit(partition, invoked, now, outcome, offset))
                    self.progress["group"] += outcome is OK
        finally:
            member.vanish()
            for partition, offset, invoked in waiting:
                self.history.add(Commit(partition, invoked, time.monotonic(), UNKNOWN, offset))

    def _deliver(self, read):
        records = _records(read)
        self.history.add(Delivery(read.partition, records[0][0], read.next_offset))
        at = ("delivered", read.partition)
        self.progress[at] = max(self.progress[at], read.next_offset)
