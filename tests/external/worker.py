"""A member of a group that is a program of its own, on the client that is generated from `proto/`.

`worker.py ADDRESS GROUP TOPIC` reads as a member of a consumer group. It prints a line `PARTITION OFFSET VALUE` for each
record, and commits what it has printed.

`worker.py ADDRESS GROUP TOPIC SEED` works in a share group. Of each record chance, which follows from the seed, decides
whether it is accepted, given back or rejected. It prints `asked PARTITION OFFSET` before it accepts a record, and
`accepted PARTITION OFFSET` when the broker has said that it is.

SIGTERM makes it leave its group.
"""

import itertools
import random
import signal
import sys

import wire
from members import Member

LONGEST_SECONDS = 3600
DELIVERIES_MAX = 3
ACCEPT, RELEASE, REJECT = wire.group.ACK_KIND_ACCEPT, wire.group.ACK_KIND_RELEASE, wire.group.ACK_KIND_REJECT


def say(*lines):
    """Prints lines so that they are kept whatever happens to this process then."""
    sys.stdout.buffer.write(b"".join(line + b"\n" for line in lines))
    sys.stdout.buffer.flush()


def leave_on_request(member):
    """Has SIGTERM end the events of a member."""
    signal.signal(signal.SIGTERM, lambda *_: member.say(leave=wire.group.LeaveGroup()))


def consume(client, group, topic):
    """Prints records, and commits them batch by batch."""
    member = Member(client, group, topic, timeout=LONGEST_SECONDS)
    leave_on_request(member)
    starts = {}
    for kind, event in member.events():
        if kind == "assigned":
            starts |= {at.partition: at.start_offset for at in event.partitions}
        elif kind == "records":
            if event.HasField("error"):
                sys.exit(f"{event}")
            for stored in event.batches:
                offsets = itertools.count(stored.base_offset)
                say(
                    *(
                        b"%d %d %s" % (event.partition, offset, record.value)
                        for offset, record in zip(offsets, stored.batch.records)
                        # A batch may begin before the group does.
                        if offset >= starts[event.partition]
                    )
                )
            member.commit(event.partition, event.next_offset)
        elif kind == "committed":
            for result in event.results:
                if result.HasField("error"):
                    sys.exit(f"{result}")
    member.end()


def work(client, group, topic, seed):
    """Does with records of a share group what chance decides."""
    chance = random.Random(seed)
    options = wire.group.ShareOptions(lease={"seconds": 10}, deliveries_max=DELIVERIES_MAX)
    member = Member(client, group, topic, options, timeout=LONGEST_SECONDS, in_flight_records_max=200)
    leave_on_request(member)
    waiting = {}
    for number, (kind, event) in enumerate(member.events()):
        if kind == "records":
            records = [
                (event.partition, offset)
                for lease in event.leases
                for offset in range(lease.first_offset, lease.last_offset + 1)
            ]
            kinds = chance.choices([ACCEPT, RELEASE, REJECT], weights=[90, 8, 2], k=len(records))
            waiting[number] = list(zip(records, kinds))
            say(*(b"asked %d %d" % at for at, kind in waiting[number] if kind == ACCEPT))
            said = [
                wire.group.Acknowledgement(
                    topic=topic, partition=partition, first_offset=offset, last_offset=offset, kind=kind
                )
                for (partition, offset), kind in waiting[number]
            ]
            member.say(acknowledge=wire.group.Acknowledge(correlation_id=number, acknowledgements=said))
        elif kind == "acknowledged":
            asked = waiting.pop(event.correlation_id)
            if any(result.HasField("error") for result in event.results):
                sys.exit(f"{event}")
            say(*(b"accepted %d %d" % at for at, kind in asked if kind == ACCEPT))
    member.end()


if __name__ == "__main__":
    with wire.Client(sys.argv[1]) as connected:
        (work if len(sys.argv) > 4 else consume)(connected, *sys.argv[2:])
