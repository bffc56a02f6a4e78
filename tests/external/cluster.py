"""Brokers that form a cluster, and die and come back with the same data at the same addresses."""

import pathlib
import shutil
import tempfile

import wire
from running import Broker, eventually, free_port

# Fast enough for tests, slow enough for a busy machine.
SETTINGS = {
    "raft.heartbeat": "100ms",
    "raft.election_min": "700ms",
    "raft.election_max": "1400ms",
    "cluster.balance_interval": "1s",
}


class Site:
    """Where brokers run: here all of them at addresses of this machine."""

    def __init__(self, count):
        self.directory = tempfile.mkdtemp(prefix="streambus-cluster-")
        self.grpc = {number: f"127.0.0.1:{free_port()}" for number in range(1, count + 1)}
        self.http = {number: f"127.0.0.1:{free_port()}" for number in range(1, count + 1)}

    def data(self, number):
        """The data directory of a broker."""
        return pathlib.Path(self.directory) / str(number)

    def prefix(self, number):  # pylint: disable=unused-argument
        """What to write before a broker's command."""
        return []

    def close(self):
        """Removes what brokers wrote."""
        shutil.rmtree(self.directory, ignore_errors=True)


class Cluster:
    """`count` brokers by their numbers, from 1. They join one after another, so the numbers are those they get."""

    def __init__(self, count=3, site=None, **settings):
        self.site = site or Site(count)
        self._settings = {**SETTINGS, **settings}
        self.grpc, self.http = self.site.grpc, self.site.http
        self.running = {}
        try:
            for number in self.grpc:
                self.start(number)
            eventually("all brokers are one cluster", lambda: self.settled(count))
        except BaseException:
            self.close()
            raise

    def start(self, number, environment=None):
        """Starts a broker that does not run."""
        # Without a list the first founds a cluster at once; the others ask it.
        seeds = {"cluster.seeds": self.grpc[1]} if number != 1 else {}
        self.running[number] = Broker(
            self.site.prefix(number),
            environment,
            **{
                **self._settings,
                **seeds,
                "api.grpc_listen": self.grpc[number],
                "api.http_listen": self.http[number],
                "storage.data_dir": str(self.site.data(number)),
            },
        )

    def start_together(self, *numbers):
        """Starts brokers that need each other to become ready."""
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor() as pool:
            list(pool.map(self.start, numbers))

    def kill(self, number):
        """Ends a broker with SIGKILL."""
        self.running.pop(number).kill()

    def stop(self, number):
        """Stops a broker, which must end cleanly."""
        self.running.pop(number).close()

    def status(self, number):
        """The cluster as a broker sees it."""
        with wire.Client(self.grpc[number]) as client:
            return client.cluster.GetClusterStatus(wire.cluster.GetClusterStatusRequest(), timeout=10)

    def settled(self, votes):
        """Whether all running brokers reach each other, `votes` of them vote, and nothing is wrong with a partition."""
        for number in self.running:
            status = self.status(number)
            reached = sum(broker.reached for broker in status.brokers)
            if reached < len(self.running) or len(status.controller_voter_ids) != votes or status.problems:
                return False
        return True

    def metric(self, series):
        """The value of a series at each running broker."""
        return {number: broker.metric(series) for number, broker in self.running.items()}

    def close(self):
        """Ends all brokers and removes what they wrote."""
        try:
            # The last ones have nobody to hand over to, and a minority cannot drain in order.
            for number in list(self.running):
                self.kill(number)
        finally:
            self.site.close()
