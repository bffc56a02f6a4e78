"""A network in which packets can be lost and delayed, between namespaces of their own: each broker is in one.

Every namespace has a device (TUN) whose packets end up in one process, which passes them on. So what happens to a packet
from one to another is decided here, by the same rules on every kernel, and needs no traffic control or filter of it.
Devices, namespaces and file systems live as long as that process, and it ends when its standard input does.

`Network` starts and commands the process; run as a program this file is the process.
"""

import contextlib
import ctypes
import fcntl
import heapq
import json
import os
import pathlib
import random
import select
import signal
import struct
import subprocess
import sys
import time

# Of this test alone: a network for benchmarks (RFC 2544), so nobody else should route it.
SUBNETS = [f"198.18.{third}" for third in range(200, 256)]
# The clients, in the namespace of the tests.
CLIENTS = 254
MTU = 9000

CLONE_NEWNS = 0x00020000
CLONE_NEWNET = 0x40000000
TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000


class Network:
    """Namespaces 1 to `count`. In each a folder of `directory` is a file system of `disk` bytes in memory."""

    def __init__(self, count, directory, disk):
        self._directory = pathlib.Path(directory)
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(count), str(directory), str(disk)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        answer = self._process.stdout.readline()
        if not answer:
            reason = self._process.stderr.read().strip().splitlines()
            self.close()
            raise Unavailable(reason[-1] if reason else "the process ended")
        made = json.loads(answer)
        self._subnet, self._namespaces = made["subnet"], made["namespaces"]
        self._rules = {}

    def address(self, number):
        """The IP address of a namespace."""
        return f"{self._subnet}.{number}"

    def enter(self, number):
        """What to write before a command so that it runs in a namespace."""
        process = f"/proc/{self._process.pid}"
        return ["nsenter", f"--mount={process}/ns/mnt", f"--net={process}/fd/{self._namespaces[number - 1]}", "--"]

    def disk(self, number):
        """The file system of a namespace, as those in it see it."""
        return self._directory / str(number)

    def disk_from_outside(self, number):
        """The same, as the tests see it."""
        return pathlib.Path(f"/proc/{self._process.pid}/root{self.disk(number)}")

    def disturb(self, source, target, loss=0.0, delay=0.0, jitter=0.0):
        """Loses this share of the packets on this way, and delays the others by seconds."""
        self._rules[f"{source}>{target}"] = (loss, delay, jitter)
        self._tell()

    def cut(self, one, other):
        """Loses everything between two, in both directions."""
        self.disturb(one, other, loss=1.0)
        self.disturb(other, one, loss=1.0)

    def heal(self):
        """Ends all disturbances."""
        self._rules = {}
        self._tell()

    def _tell(self):
        self._process.stdin.write(json.dumps(self._rules) + "\n")
        self._process.stdin.flush()
        if not self._process.stdout.readline():
            raise RuntimeError("the network is gone:\n" + self._process.stderr.read())

    def close(self):
        """Ends the process, and with it everything that it made."""
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._process.stderr.close()


class Unavailable(Exception):
    """Namespaces cannot be made here."""


# What follows runs in the process that carries the packets.


def _system(name, *arguments):
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments) != 0:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")


def _run(*command):
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")


def _device(subnet, number):
    """A device in the namespace of this process."""
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    asked = struct.pack("16sH22x", b"faults%d", IFF_TUN | IFF_NO_PI)
    name = fcntl.ioctl(device, TUNSETIFF, asked)[:16].rstrip(b"\0").decode()
    _run("ip", "address", "add", f"{subnet}.{number}/24", "dev", name)
    _run("ip", "link", "set", name, "mtu", str(MTU), "up")
    return device


def _make(count, directory, disk):
    """The subnet, the devices by number, and the namespaces."""
    routes = subprocess.run(["ip", "route", "show"], capture_output=True, text=True, check=True).stdout
    free = [subnet for subnet in SUBNETS if subnet + "." not in routes]
    # Of several that run at the same time each takes another one.
    subnet = free[os.getpid() % len(free)]
    home = os.open("/proc/self/ns/net", os.O_RDONLY)
    devices, namespaces = {CLIENTS: _device(subnet, CLIENTS)}, []
    _system("unshare", CLONE_NEWNS)
    _run("mount", "--make-rprivate", "/")
    for number in range(1, count + 1):
        os.mkdir(f"{directory}/{number}")
        _run("mount", "-t", "tmpfs", "-o", f"size={disk}", "tmpfs", f"{directory}/{number}")
        _system("unshare", CLONE_NEWNET)
        _run("ip", "link", "set", "lo", "up")
        devices[number] = _device(subnet, number)
        namespaces.append(os.open("/proc/self/ns/net", os.O_RDONLY))
        _system("setns", home, CLONE_NEWNET)
    return subnet, devices, namespaces


class _Carrier:
    """Passes packets on, by rules: from and to whom, then share that is lost, delay and how much longer at most."""

    def __init__(self, devices):
        self._devices = devices
        self._rules = {}
        self._waiting = []
        self._last = {}
        self._count = 0
        self._chance = random.Random(1)

    def run(self):
        poll = select.poll()
        numbers = {device: number for number, device in self._devices.items()}
        for device in (*numbers, sys.stdin.fileno()):
            poll.register(device, select.POLLIN)
        while True:
            left = self._waiting[0][0] - time.monotonic() if self._waiting else None
            for ready, _ in poll.poll(None if left is None else max(0.0, left * 1000)):
                if ready in numbers:
                    self._take(numbers[ready], ready)
                elif not self._obey():
                    return
            self._release()

    def _obey(self):
        line = sys.stdin.buffer.raw.readline()
        if not line:
            return False
        told = json.loads(line)
        self._rules = {tuple(map(int, way.split(">"))): rule for way, rule in told.items()}
        print(flush=True)
        return True

    def _take(self, source, device):
        # Some at a time, so that no device starves the others.
        for _ in range(32):
            try:
                packet = os.read(device, MTU + 64)
            except BlockingIOError:
                return
            if packet[0] >> 4 != 4:
                continue
            target = packet[19]
            rule = self._rules.get((source, target))
            if rule is None:
                self._give(target, packet)
                continue
            loss, delay, jitter = rule
            if self._chance.random() < loss:
                continue
            # Packets of one way stay in order.
            at = time.monotonic() + delay + self._chance.random() * jitter
            at = max(at, self._last.get((source, target), 0.0))
            self._last[source, target] = at
            self._count += 1
            heapq.heappush(self._waiting, (at, self._count, target, packet))

    def _release(self):
        now = time.monotonic()
        while self._waiting and self._waiting[0][0] <= now:
            _, _, target, packet = heapq.heappop(self._waiting)
            self._give(target, packet)

    def _give(self, target, packet):
        device = self._devices.get(target)
        if device is not None:
            # A full queue loses packets, as anywhere.
            with contextlib.suppress(OSError):
                os.write(device, packet)


def _end_those_in(namespaces):
    """Kills what still runs in the namespaces: whoever should have done that is gone."""
    known = {os.fstat(namespace).st_ino for namespace in namespaces}
    for process in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if os.stat(f"/proc/{process}/ns/net").st_ino in known:
                os.kill(int(process), signal.SIGKILL)


def _main():
    subnet, devices, namespaces = _make(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
    print(json.dumps({"subnet": subnet, "namespaces": namespaces}), flush=True)
    try:
        _Carrier(devices).run()
    finally:
        _end_those_in(namespaces)


if __name__ == "__main__":
    try:
        _main()
    except (OSError, KeyboardInterrupt) as error:
        sys.exit(str(error))
