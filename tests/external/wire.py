"""A Python client of the broker, generated from `proto/` as any user would, and the records that the tests send."""

import collections
import importlib
import json
import pathlib
import random
import sys
import tempfile
import time

import grpc
from grpc_tools import protoc
from importlib import resources

from running import ROOT

PROTO = ROOT / "proto"
FILES = sorted(str(path.relative_to(PROTO)) for path in (PROTO / "streambus" / "v1").glob("*.proto"))

_generated = tempfile.TemporaryDirectory(prefix="streambus-stubs-")
_includes = resources.files("grpc_tools") / "_proto"
DESCRIPTORS = pathlib.Path(_generated.name) / "descriptors.bin"
if protoc.main(
    [
        "protoc",
        f"-I{PROTO}",
        f"-I{_includes}",
        f"--python_out={_generated.name}",
        f"--grpc_python_out={_generated.name}",
        f"--descriptor_set_out={DESCRIPTORS}",
        "--include_source_info",
        *FILES,
    ]
):
    sys.exit("the stubs cannot be generated from proto/")
sys.path.insert(0, _generated.name)


def _load(name, suffix="_pb2"):
    return importlib.import_module(f"streambus.v1.{name}{suffix}")


record = _load("record")
produce = _load("produce")
consume = _load("consume")
group = _load("group")
topic = _load("topic")
cluster = _load("cluster")
error = _load("error")

MESSAGE_BYTES_MAX = 64 << 20
# These promise that nothing was written.
UNWRITTEN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED)
PATIENCE_SECONDS = 30


class Client:
    """A channel and a stub of each service."""

    def __init__(self, address, **more):
        options = [("grpc.max_receive_message_length", MESSAGE_BYTES_MAX), *more.items()]
        self.channel = grpc.insecure_channel(address, options)
        self.produce = _load("produce", "_pb2_grpc").ProduceServiceStub(self.channel)
        self.consume = _load("consume", "_pb2_grpc").ConsumeServiceStub(self.channel)
        self.group = _load("group", "_pb2_grpc").GroupServiceStub(self.channel)
        self.topic = _load("topic", "_pb2_grpc").TopicServiceStub(self.channel)
        self.cluster = _load("cluster", "_pb2_grpc").ClusterServiceStub(self.channel)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.channel.close()


def patiently(call, request, timeout=10, again=UNWRITTEN, **more):
    """Calls until the answer is something else than that nothing happened and a retry can help, or what `again` lists."""
    end = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return call(request, timeout=timeout, **more)
        except grpc.RpcError as error:
            if error.code() not in again or time.monotonic() > end:
                raise
            time.sleep(0.05)


def murmur2(data):
    """The 32-bit hash by which keys choose partitions; see `ProduceRequest.partition`."""
    mask, m = 0xFFFFFFFF, 0x5BD1E995
    value = (0x9747B28C ^ len(data)) & mask
    whole = len(data) & ~3
    for at in range(0, whole, 4):
        k = int.from_bytes(data[at : at + 4], "little") * m & mask
        k = (k ^ k >> 24) * m & mask
        value = (value * m & mask) ^ k
    if len(data) > whole:
        value = (value ^ int.from_bytes(data[whole:], "little")) * m & mask
    value = (value ^ value >> 13) * m & mask
    return value ^ value >> 15


def partition_of(key, partitions):
    """The partition of a key."""
    return (murmur2(key) & 0x7FFFFFFF) % partitions


def orders(count, seed=7):
    """`count` lines of JSON like a shop would write, each with its key: the same ones for the same seed."""
    chance = random.Random(seed)
    regions = ["eu-north", "eu-south", "us-east", "us-west", "ap-east", "ap-south", "sa-east", "af-west", "me-central"]
    words = ["läufer", "kettle", "绿茶", "lamp", "notebook", "chair", "rope", "café", "needle"]
    for number in range(count):
        line = {
            "order": number,
            "region": chance.choice(regions),
            "customer": f"c-{chance.randrange(4000):05d}",
            "items": [
                {"article": chance.choice(words), "quantity": chance.randrange(1, 9)}
                for _ in range(chance.randrange(1, 5))
            ],
            "paid": chance.random() < 0.9,
            "total": round(chance.uniform(1, 900), 2),
            "note": None if chance.random() < 0.7 else "x" * chance.randrange(200),
        }
        yield line["region"].encode(), json.dumps(line, ensure_ascii=False).encode()


def by_partition(records, partitions):
    """The records of each partition, in their order."""
    found = collections.defaultdict(list)
    for key, value in records:
        found[partition_of(key, partitions)].append((key, value))
    return found


def batch(records, headers=()):
    """A batch of (key, value) pairs, each with the same headers."""
    made = [
        record.Record(
            key=key, value=value, headers=[record.Header(key=name, value=text) for name, text in headers]
        )
        for key, value in records
    ]
    return record.RecordBatch(records=made)


def in_batches(records, size):
    """`records` in slices of `size`."""
    return [records[at : at + size] for at in range(0, len(records), size)]


def start(name, partition, offset=None):
    """Where to read a partition from: an offset, or the oldest record."""
    position = consume.Position(earliest={}) if offset is None else consume.Position(offset=offset)
    return consume.PartitionPosition(topic=name, partition=partition, position=position)
