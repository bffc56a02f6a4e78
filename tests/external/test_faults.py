"""What goes wrong with machines, disks, networks and clocks, done to three brokers while clients go on.

A checker (`history.py`) compares what each client was told with what all replicas hold in the end. `STREAMBUS_FAULT_SECONDS` is
how long each fault lasts at least, `STREAMBUS_FAULT_ROUNDS` how many there are in the combined run, and `STREAMBUS_FAULT_SEED`
chooses those.
"""

import contextlib
import json
import os
import pathlib
import random
import sys
import tempfile
import time
import unittest
import urllib.error
import urllib.request

import wire
from cluster import Site
from faults import BROKERS, PARTITIONS, RESERVE_BYTES, Apart, Brokers, Clients
from history import violations
from network import Unavailable
from running import eventually

FAULT_SECONDS = float(os.environ.get("STREAMBUS_FAULT_SECONDS", "4"))
FAULT_ROUNDS = int(os.environ.get("STREAMBUS_FAULT_ROUNDS", "4"))
FAULT_SEED = int(os.environ.get("STREAMBUS_FAULT_SEED", "1"))
# How long it may take until batches of all partitions are acknowledged, once a majority is there: far more than it does, for
# a machine that has other work.
RESUME_SECONDS = 30
# How long it may take after a fault until everything is well.
WELL_SECONDS = 60
# What is shown of each broker's log if a test fails.
LOG_LINES = 30
VIOLATIONS_SHOWN = 100
HOURS = 3600


class Faults(unittest.TestCase):
    """One fault after another at the same brokers, each with a topic, clients and a history of its own."""

    rows = []
    brokers = None
    network = None
    why_not = ""

    @classmethod
    def start_brokers(cls):
        try:
            site = Apart(len(BROKERS))
            cls.network = site.network
        except (Unavailable, FileNotFoundError) as error:
            site, cls.why_not = Site(len(BROKERS)), f"namespaces cannot be made here: {error}"
        cls.brokers = Brokers(site)

    @classmethod
    def end_brokers(cls):
        brokers, cls.brokers, cls.network = cls.brokers, None, None
        if brokers is not None:
            brokers.close()

    @classmethod
    def tearDownClass(cls):
        cls.end_brokers()
        lines = [
            "| fault | longest time without an acknowledgement in a partition | all well again | errors to clients |",
            "|---|---|---|---|",
            *("| " + " | ".join(row) + " |" for row in cls.rows),
        ]
        print("", *lines, sep="\n", file=sys.stderr)

    def setUp(self):
        # Those of the test before, if it left them well.
        if self.brokers is None:
            self.start_brokers()

    @contextlib.contextmanager
    def under_load(self, fault):
        """Clients at work while `fault` begins and ends in the body. After it all must become well, and nobody may have been
        told what is not true."""
        topic = self.id().rsplit(".", 1)[1].removeprefix("test_").replace("_", "-")
        topics = self.brokers.clients[1].topic
        request = wire.topic.CreateTopicRequest(name=topic, partition_count=PARTITIONS, replication_factor=3)
        wire.patiently(topics.CreateTopic, request)
        eventually("all is well before", self.brokers.well, WELL_SECONDS)
        clients = Clients(self.brokers, topic)
        try:
            clients.flow(RESUME_SECONDS)
            clients.read_on(RESUME_SECONDS)
            begun = time.monotonic()
            yield clients
            clients.flow(RESUME_SECONDS)
            eventually("all is well again", self.brokers.well, WELL_SECONDS)
            well = time.monotonic()
            clients.read_on(RESUME_SECONDS)
            clients.stop()
            copies = {number: self.brokers.copy(number, topic) for number in BROKERS}
            found = violations(clients.history.events(), copies)
            seen = ", ".join(f"{count} {code.lower()}" for code, count in sorted(clients.errors.items()))
            gap, again = clients.longest_gap(begun, well), well - clients.fault_over
            self.rows.append((fault, f"{gap:.1f} s", f"after {again:.1f} s", seen or "none"))
            self.assertEqual(len(found), 0, "\n".join(found[:VIOLATIONS_SHOWN]))
            self.assertEqual(clients.unanswered, [], "running brokers say that they live")
            wire.patiently(topics.DeleteTopic, wire.topic.DeleteTopicRequest(name=topic))
        except BaseException:
            for number, broker in sorted(self.brokers.running.items()):
                print(f"\nbroker {number}:", *broker.program.lines[-LOG_LINES:], sep="\n", file=sys.stderr)
            clients.end()
            self.end_brokers()
            raise

    @staticmethod
    def last(clients, goes_on=True):
        """Lets the fault last. If it leaves a majority, writing must go on."""
        begun = time.monotonic()
        if goes_on:
            clients.flow(RESUME_SECONDS)
        clients.hold(FAULT_SECONDS - (time.monotonic() - begun))
        clients.fault_over = time.monotonic()

    def needs_network(self):
        if self.network is None:
            self.skipTest(self.why_not)

    def isolate(self, number, inwards=1.0, outwards=1.0):
        """Loses these shares of what a broker gets from the others, and of what it sends them."""
        for other in BROKERS:
            if other != number:
                self.network.disturb(other, number, loss=inwards)
                self.network.disturb(number, other, loss=outwards)

    def test_broker_cut_off(self):
        self.needs_network()
        victim = self.brokers.controller()
        with self.under_load("a broker is cut off from the others") as clients:
            self.isolate(victim)
            self.last(clients)
            self.network.heal()

    def test_two_brokers_cut_from_each_other(self):
        self.needs_network()
        victim = self.brokers.controller()
        with self.under_load("two brokers are cut off from each other, not from the third") as clients:
            self.network.cut(victim, victim % 3 + 1)
            self.last(clients)
            self.network.heal()

    def test_all_cut_off(self):
        self.needs_network()
        with self.under_load("every broker is cut off from the others") as clients:
            for number in BROKERS:
                self.isolate(number)
            self.last(clients, goes_on=False)
            self.network.heal()

    def test_heard_by_nobody(self):
        self.needs_network()
        victim = self.brokers.controller()
        with self.under_load("a broker hears the others and is not heard by them") as clients:
            self.isolate(victim, inwards=0.0)
            self.last(clients)
            self.network.heal()

    def test_hears_nobody(self):
        self.needs_network()
        victim = self.brokers.controller()
        with self.under_load("a broker is heard by the others and does not hear them") as clients:
            self.isolate(victim, outwards=0.0)
            self.last(clients)
            self.network.heal()

    def test_delay_and_loss(self):
        self.needs_network()
        with self.under_load("packets between brokers take 50 to 150 ms, 2 % are lost") as clients:
            for one in BROKERS:
                for other in BROKERS:
                    if one != other:
                        self.network.disturb(one, other, loss=0.02, delay=0.05, jitter=0.1)
            self.last(clients)
            self.network.heal()

    def test_killed(self):
        victim = self.brokers.controller()
        with self.under_load("a broker is killed (SIGKILL) and started again") as clients:
            self.brokers.kill(victim)
            self.last(clients)
            self.brokers.start(victim)

    def test_paused(self):
        victim = self.brokers.controller()
        with self.under_load("a broker is stopped where it is (SIGSTOP) and goes on") as clients:
            self.brokers.pause(victim)
            self.last(clients)
            self.brokers.resume(victim)

    def test_disk_nearly_full(self):
        self.needs_network()
        victim = self.brokers.controller()
        ballast = self.ballast(victim)
        with self.under_load("the disk of a broker is filled up to its reserve") as clients:
            self.fill(ballast, RESERVE_BYTES // 2)

            def refuses():
                status, health = self.health(victim)
                return status == 503 and "disk" in str(health)

            eventually("the broker says that its disk is full", refuses, RESUME_SECONDS)
            # What it leads is read and not written; what others lead is both.
            self.last(clients, goes_on=False)
            clients.read_on(RESUME_SECONDS)
            self.assertGreater(clients.errors["DISK_FULL"], 0)
            ballast.unlink()

    def test_disk_full(self):
        self.needs_network()
        victim = self.brokers.controller()
        ballast = self.ballast(victim)
        with self.under_load("the disk of a broker is filled to the last byte; it ends, and is started again") as clients:
            # From now on it may be gone.
            broker = self.brokers.running.pop(victim)
            self.addCleanup(broker.kill)
            self.fill(ballast, 0)
            self.last(clients)
            self.assertEqual(broker.program.ended(), 1)
            self.assertIn("No space left on device", broker.program.lines[-1])
            broker.kill()
            ballast.unlink()
            self.brokers.start(victim)

    def ballast(self, number):
        """A file that takes room on a broker's disk."""
        ballast = self.brokers.site.network.disk_from_outside(number) / "ballast"
        self.addCleanup(ballast.unlink, missing_ok=True)
        return ballast

    @staticmethod
    def fill(ballast, leave):
        """Takes all room but so many bytes, in pieces: who is refused a piece gets nothing of it, and brokers take room, too."""

        def room():
            found = os.statvfs(ballast.parent)
            return found.f_bavail * found.f_frsize

        with ballast.open("wb") as file:
            for piece in (1 << 24, 1 << 20, 1 << 12):
                with contextlib.suppress(OSError):
                    while room() - leave >= piece or leave == 0:
                        os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, piece)

    def health(self, number):
        """What a broker says of its health."""
        try:
            with urllib.request.urlopen(f"http://{self.brokers.http[number]}/health", timeout=10) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def test_clock_jumps(self):
        library = next(iter(sorted(pathlib.Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))), None)
        if library is None:
            self.skipTest("libfaketime is not installed; .ci/run installs it")
        victim = self.brokers.controller()
        clock = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory())) / "clock"
        clock.write_text("+0\n")
        self.brokers.stop(victim)
        self.brokers.start(
            victim,
            {
                "LD_PRELOAD": str(library),
                "FAKETIME_TIMESTAMP_FILE": str(clock),
                # How often the file is read; and what measures durations goes on, as it does when a clock is set.
                "FAKETIME_CACHE_DURATION": "1",
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            },
        )
        eventually("the broker is back", self.brokers.well, WELL_SECONDS)
        with self.under_load("the clock of a broker jumps 2 h ahead, then 4 h back, then to the right time") as clients:
            for jump in (2 * HOURS, -2 * HOURS):
                clock.write_text(f"{jump:+}\n")
                eventually("its clock has jumped", lambda at=jump: abs(self.clock(victim) - at) < HOURS)
                self.last(clients)
            clock.write_text("+0\n")
            eventually("its clock is right", lambda: abs(self.clock(victim)) < HOURS)
        self.brokers.stop(victim)
        self.brokers.start(victim)

    def clock(self, number):
        """By how many seconds the clock of a broker is ahead."""
        from datetime import datetime, timezone

        _, health = self.health(number)
        shown = datetime.fromisoformat(health["timestamp"])
        return (shown - datetime.now(timezone.utc)).total_seconds()

    def test_several_at_once(self):
        chance = random.Random(FAULT_SEED)
        faults = [self.kill, self.pause]
        if self.network is not None:
            faults += [self.cut_off, self.slow_down]
        with self.under_load(f"{FAULT_ROUNDS} times two faults at once, chosen with seed {FAULT_SEED}") as clients:
            for _ in range(FAULT_ROUNDS):
                for _ in range(2):
                    chance.choice(faults)(chance.choice(BROKERS), chance)
                self.last(clients, goes_on=False)
                if self.network is not None:
                    self.network.heal()
                for number in list(self.brokers.paused):
                    self.brokers.resume(number)
                self.brokers.start_together(*(set(BROKERS) - set(self.brokers.running)))
                clients.flow(RESUME_SECONDS)

    def kill(self, number, _):
        if number in self.brokers.running and number not in self.brokers.paused:
            self.brokers.kill(number)

    def pause(self, number, _):
        if number in self.brokers.running:
            self.brokers.pause(number)

    def cut_off(self, number, chance):
        self.isolate(number, *chance.choice([(1.0, 1.0), (0.0, 1.0), (1.0, 0.0), (0.3, 0.3)]))

    def slow_down(self, number, _):
        for other in BROKERS:
            self.network.disturb(number, other, delay=0.1, jitter=0.4)


if __name__ == "__main__":
    unittest.main()
