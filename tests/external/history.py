"""What clients did and were told, and whether brokers that keep their promises could have told them that.

All times are of one monotonic clock: `invoked` before a request is sent, `completed` when its outcome is known. What
completed before something else was invoked has happened before it; nothing else is assumed of their order.
"""

import bisect
import collections
import dataclasses
import itertools
import threading

# It is acknowledged.
OK = "ok"
# The broker has promised that nothing was written.
REFUSED = "refused"
# It may or may not have happened.
UNKNOWN = "unknown"


@dataclasses.dataclass(frozen=True)
class Send:
    """A batch that a producer wanted in a partition, with all attempts at it. No value is in two batches."""

    producer: str
    partition: int
    values: tuple
    invoked: float
    completed: float
    outcome: str
    # Of the first value; none if the producer was not told.
    offset: int | None = None
    # Whether the broker can tell its place among the producer's batches, and whether it came before.
    numbered: bool = True


@dataclasses.dataclass(frozen=True)
class Fetch:
    """Records that a broker gave, and the end that it reported with them."""

    # The broker's number and how often it was started: what it knows may begin anew with that.
    broker: tuple
    partition: int
    invoked: float
    completed: float
    position: int
    high_watermark: int
    # (offset, value) of each.
    records: tuple


@dataclasses.dataclass(frozen=True)
class End:
    """Where a broker said that a partition ends, when it was asked for just that."""

    broker: tuple
    partition: int
    invoked: float
    completed: float
    offset: int


@dataclasses.dataclass(frozen=True)
class Commit:
    """An offset that a member of the group committed."""

    partition: int
    invoked: float
    completed: float
    outcome: str
    offset: int


@dataclasses.dataclass(frozen=True)
class Committed:
    """The committed offset of the group, as a broker said it, or as it gave it to a member to begin at."""

    broker: tuple
    partition: int
    invoked: float
    completed: float
    offset: int


@dataclasses.dataclass(frozen=True)
class Delivery:
    """A stretch of a partition that the group got: from `start` to before `end`."""

    partition: int
    start: int
    end: int


@dataclasses.dataclass(frozen=True)
class Denied:
    """A broker said what cannot be, such as that a batch is missing which it has acknowledged."""

    partition: int
    what: str


class History:
    """A list to which all threads add."""

    def __init__(self):
        self._lock = threading.Lock()
        self._events = []

    def add(self, event):
        """Adds what is known of one operation."""
        with self._lock:
            self._events.append(event)

    def events(self):
        """What was added so far."""
        with self._lock:
            return list(self._events)


def violations(events, copies):
    """Every promise that was broken, in words; none if all were kept.

    `copies` is what each replica holds after all is healed: by broker and partition a list of (offset, value).
    """
    by_kind = collections.defaultdict(list)
    for event in events:
        by_kind[type(event), event.partition].append(event)
    found = []
    for partition in sorted({event.partition for event in events} | {at for copy in copies.values() for at in copy}):
        held = {broker: copy.get(partition, []) for broker, copy in copies.items()}
        log = next(iter(held.values()), [])
        of_kind = {kind: by_kind[kind, partition] for kind in (Send, Fetch, End, Commit, Committed, Delivery)}
        broken = itertools.chain(
            (denied.what for denied in by_kind[Denied, partition]),
            _copies(held),
            _records(of_kind[Send], log),
            _order(of_kind[Send], log),
            _fetches(of_kind[Fetch], dict(log)),
            _ends(of_kind[Send], of_kind[End]),
            _commits(of_kind[Commit], of_kind[Committed]),
            _deliveries(of_kind[Delivery], len(log)),
        )
        found.extend(f"partition {partition}: {what}" for what in broken)
    return found


def _copies(held):
    """Replicas hold the same records, at offsets without gaps."""
    first, log = next(iter(held.items()), (None, []))
    for at, (offset, _) in enumerate(log):
        if offset != at:
            yield f"offset {offset} is where {at} should be"
            break
    for broker, other in held.items():
        if other != log:
            at = next((at for at, (a, b) in enumerate(zip(log, other)) if a != b), min(len(log), len(other)))
            yield f"brokers {first} ({len(log)} records) and {broker} ({len(other)}) differ from record {at} on"


def _records(sends, log):
    """What is acknowledged is there once and where it was said to be; nothing is there twice, or against a promise."""
    places = collections.defaultdict(list)
    for offset, value in log:
        places[value].append(offset)
    known = set()
    for send in sends:
        known.update(send.values)
        at = [places.get(value, []) for value in send.values]
        for value, offsets in zip(send.values, at):
            if len(offsets) > 1:
                yield f"{value} is there {len(offsets)} times, at {offsets}"
        if send.outcome == REFUSED and any(at):
            yield f"{send.values[0]} was refused, and is at {at[0]}"
        if send.outcome == OK and not all(at):
            yield f"{send.values[0]} was acknowledged at {send.offset} and is lost"
        elif send.outcome == OK and send.offset is not None:
            expected = list(range(send.offset, send.offset + len(send.values)))
            actual = [offsets[0] for offsets in at]
            if actual != expected:
                yield f"{send.values[0]} was acknowledged at {send.offset}, and its batch is at {actual}"
        elif send.outcome == UNKNOWN and any(at) and not all(at):
            yield f"the batch of {send.values[0]} is there in part"
    for value in places.keys() - known:
        yield f"{value} at {places[value]} was never sent"


def _order(sends, log):
    """Batches of a producer are in the order in which it sent them, and what is acknowledged is before what is sent later."""
    places = {value: offset for offset, value in reversed(log)}
    last = {}
    for send in sorted(sends, key=lambda send: send.invoked):
        first = places.get(send.values[0])
        # Without a number it may arrive long after its producer has given it up.
        if first is None or send.outcome == UNKNOWN and not send.numbered:
            continue
        before = last.get(send.producer)
        if before is not None and first < before[0]:
            yield f"{send.values[0]} at {first} is before {before[1]} at {before[0]} of the same producer"
        last[send.producer] = (first, send.values[0])
    acknowledged = [send for send in sends if send.outcome == OK and send.values[0] in places]
    floor = _floor((send.completed, places[send.values[0]]) for send in acknowledged)
    for send in acknowledged:
        if places[send.values[0]] < floor(send.invoked):
            yield (
                f"{send.values[0]} at {places[send.values[0]]} was sent after the record at {floor(send.invoked)}"
                " had been acknowledged"
            )


def _fetches(fetches, log):
    """What was read once stays as it was read, nothing is left out, and what a broker shows never shrinks."""
    for fetch in fetches:
        for offset, value in fetch.records:
            if log.get(offset) != value:
                yield f"{value} was read at {offset} from broker {fetch.broker[0]}, where {log.get(offset)} is"
        expected = list(range(fetch.position, fetch.position + len(fetch.records)))
        actual = [offset for offset, _ in fetch.records]
        if actual != expected:
            yield f"a read from {fetch.position} of broker {fetch.broker[0]} gave {actual}"
    for broker in {fetch.broker for fetch in fetches}:
        shown = [fetch for fetch in fetches if fetch.broker == broker]
        floor = _floor((fetch.completed, fetch.high_watermark) for fetch in shown)
        for fetch in shown:
            if fetch.high_watermark < floor(fetch.invoked):
                yield f"broker {broker[0]} showed {floor(fetch.invoked)} records, then {fetch.high_watermark}"


def _ends(sends, ends):
    """Who asks where a partition ends learns of everything that was acknowledged, or shown to anybody, before."""
    acknowledged = [(one.completed, one.offset + len(one.values)) for one in sends if one.offset is not None]
    floor = _floor([*acknowledged, *((one.completed, one.offset) for one in ends)])
    for end in ends:
        if end.offset < floor(end.invoked):
            yield (
                f"broker {end.broker[0]} said at {end.completed:.3f} that the end is {end.offset}, and it was"
                f" {floor(end.invoked)} before it was asked at {end.invoked:.3f}"
            )


def _commits(commits, reads):
    """A committed offset counts from its acknowledgement on, does not move back, and is one that somebody committed."""
    done = [(commit.completed, commit.offset) for commit in commits if commit.outcome == OK]
    floor = _floor([*done, *((read.completed, read.offset) for read in reads)])
    for read in reads:
        if read.offset < floor(read.invoked):
            yield (
                f"broker {read.broker[0]} said that {read.offset} is committed, and it was {floor(read.invoked)} before"
                " it was asked"
            )
        # The first position of a group is committed by the broker.
        tried = (commit for commit in commits if commit.invoked < read.completed and commit.outcome != REFUSED)
        if read.offset and all(commit.offset != read.offset for commit in tried):
            yield f"broker {read.broker[0]} said that {read.offset} is committed, which nobody did"


def _deliveries(deliveries, end):
    """The group got every record."""
    reached = 0
    for start, until in sorted((one.start, one.end) for one in deliveries):
        if start > reached:
            yield f"the group never got the records from {reached} to before {start}"
        reached = max(reached, until)
    if reached < end:
        yield f"the group never got the records from {reached} to before {end}"


def _floor(facts):
    """What is known to hold at a time at least: the highest value of those `(completed, value)` that were before."""
    facts = sorted(facts)
    times = [time for time, _ in facts]
    highest = list(itertools.accumulate((value for _, value in facts), max))

    def at(time):
        count = bisect.bisect_left(times, time)
        return highest[count - 1] if count else 0

    return at
