"""Runs the outside programs of these tests: a broker of its own for each test class, and whatever scrapes it."""

import contextlib
import json
import os
import pathlib
import queue
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
DEADLINE_SECONDS = 60


def binary():
    """The broker's executable; STREAMBUS_BIN names another than the debug build."""
    return os.environ.get("STREAMBUS_BIN", str(ROOT / "target" / "debug" / "streambus"))


def eventually(what, probe, deadline=DEADLINE_SECONDS):
    """Calls `probe` until it gives something true, and gives that; fails with `what` after `deadline` seconds."""
    end = time.monotonic() + deadline
    seen = None
    while time.monotonic() < end:
        try:
            seen = probe()
            if seen:
                return seen
        except (OSError, ConnectionError) as error:
            seen = error
        time.sleep(0.05)
    raise AssertionError(f"{what}: not within {deadline} s; last seen: {seen!r}")


def free_port():
    """A TCP port of 127.0.0.1 that nothing listens on."""
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def get(url, headers=None):
    """The text that `url` answers with."""
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers or {}), timeout=30) as answer:
        return answer.read().decode()


class Program:
    """A process whose log lines are kept, and which is stopped with SIGTERM at the end."""

    def __init__(self, command, environment=None, stdout=subprocess.DEVNULL):
        self.lines = []
        self._fresh = queue.Queue()
        self._process = subprocess.Popen(
            command, env=environment, stdout=stdout, stderr=subprocess.PIPE, text=True
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self._process.stderr:
            self.lines.append(line.rstrip("\n"))
            self._fresh.put(line)
        self._fresh.put(None)

    def process_id(self):
        """The id of the process, for signals."""
        return self._process.pid

    def wait_for_line(self, wanted, deadline=DEADLINE_SECONDS):
        """The first log line from now on for which `wanted` gives something true, as what it gave."""
        end = time.monotonic() + deadline
        while (left := end - time.monotonic()) > 0:
            try:
                line = self._fresh.get(timeout=left)
            except queue.Empty:
                break
            if line is None:
                break
            if found := wanted(line):
                return found
        raise AssertionError("the awaited log line did not come; the last lines:\n" + "\n".join(self.lines[-20:]))

    def stop(self, deadline=DEADLINE_SECONDS, by=signal.SIGTERM):
        """Sends a signal that asks the process to end, and gives the exit code."""
        if self._process.poll() is None:
            self._process.send_signal(by)
        try:
            code = self._process.wait(deadline)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise AssertionError(f"the process did not end within {deadline} s of {by.name}") from None
        self._reader.join(deadline)
        self._process.stderr.close()
        return code

    def ended(self, deadline=DEADLINE_SECONDS):
        """Waits for the process to end by itself, and gives the exit code."""
        try:
            code = self._process.wait(deadline)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the process did not end within {deadline} s") from None
        self._reader.join(deadline)
        return code

    def kill(self):
        """Ends the process with SIGKILL."""
        self._process.kill()
        self._process.wait()
        self._reader.join(DEADLINE_SECONDS)
        self._process.stderr.close()


class Broker:
    """A broker with an empty data directory on ports that the system chose.

    `prefix` is what to write before the command, `environment` is added to that of the process.
    """

    def __init__(self, prefix=(), environment=None, **settings):
        self.directory = tempfile.mkdtemp(prefix="streambus-external-")
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("STREAMBUS_", "OTEL_", "RUST_LOG"))
        }
        chosen = {
            "api.grpc_listen": "127.0.0.1:0",
            "api.http_listen": "127.0.0.1:0",
            "storage.data_dir": os.path.join(self.directory, "data"),
            "storage.reserve_bytes": "1",
            **settings,
        }
        for key, value in chosen.items():
            inherited["STREAMBUS_" + key.upper().replace(".", "__")] = str(value)
        inherited.update(environment or {})
        self.program = Program([*prefix, binary(), "serve"], inherited)
        try:
            ready = self.program.wait_for_line(self._ready)
        except BaseException:
            self.kill()
            raise
        self.grpc = ready["grpc"]
        self.http = "http://" + ready["http"]

    @staticmethod
    def _ready(line):
        try:
            event = json.loads(line)
        except json.JSONDecodeError:
            return None
        return event if event.get("event") == "broker.ready" else None

    def log(self):
        """The log lines so far, as objects."""
        parsed = []
        for line in self.program.lines:
            with contextlib.suppress(json.JSONDecodeError):
                parsed.append(json.loads(line))
        return parsed

    def metrics(self, accept="text/plain; version=0.0.4"):
        """The text of a scrape."""
        return get(self.http + "/metrics", {"Accept": accept})

    def metric(self, series):
        """The value of the one series that is written exactly like `series` on /metrics."""
        for line in self.metrics().splitlines():
            if line.startswith(series + " "):
                return float(line.rsplit(" ", 1)[1])
        raise AssertionError(f"/metrics has no series {series}")

    def kill(self):
        """Ends the broker as a power switch would. Only its own directory is removed, not one that was chosen for it."""
        self.program.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def close(self):
        """Stops the broker, which must end cleanly, and removes its data."""
        try:
            code = self.program.stop()
            if code != 0:
                raise AssertionError(f"the broker ended with {code}:\n" + "\n".join(self.program.lines[-20:]))
        finally:
            shutil.rmtree(self.directory, ignore_errors=True)


def tool(name):
    """The path of an outside program. It must be there: a test that is skipped in silence proves nothing."""
    found = shutil.which(name)
    if found is None:
        sys.exit(f"{name} is not installed; .ci/run installs it")
    return found
