"""The checker of histories objects to each kind of broken promise, and to nothing else."""

import dataclasses
import unittest

from history import OK, REFUSED, UNKNOWN, Commit, Committed, Delivery, Denied, End, Fetch, Send, violations

LOG = [(0, b"a-0"), (1, b"a-1"), (2, b"b-0"), (3, b"a-2")]
GOOD = {
    "a-0": Send("a", 0, (b"a-0", b"a-1"), 1.0, 2.0, OK, 0),
    "b-0": Send("b", 0, (b"b-0",), 1.5, 4.0, UNKNOWN),
    "a-2": Send("a", 0, (b"a-2",), 3.0, 5.0, OK, 3),
    "b-1": Send("b", 0, (b"b-1",), 5.0, 6.0, REFUSED),
    "b-2": Send("b", 0, (b"b-2",), 6.5, 7.0, UNKNOWN),
    "fetch": Fetch((1, 1), 0, 2.5, 2.6, 0, 2, ((0, b"a-0"), (1, b"a-1"))),
    "fetch later": Fetch((1, 1), 0, 5.5, 5.6, 2, 4, ((2, b"b-0"),)),
    "fetch from another": Fetch((2, 1), 0, 5.7, 5.8, 0, 1, ((0, b"a-0"),)),
    "end": End((1, 1), 0, 2.1, 2.2, 2),
    "end later": End((2, 1), 0, 5.1, 5.2, 4),
    "commit": Commit(0, 6.0, 6.1, OK, 2),
    "commit later": Commit(0, 6.2, 6.3, UNKNOWN, 4),
    "committed": Committed((1, 1), 0, 6.15, 6.16, 2),
    "committed later": Committed((3, 1), 0, 6.4, 6.5, 4),
    "delivery": Delivery(0, 0, 3),
    "delivery again": Delivery(0, 2, 4),
}


class Violations(unittest.TestCase):
    """Each test breaks one promise in a history that is well, and expects one objection."""

    def found(self, copies=None, without=(), **changes):
        events = {name: event for name, event in GOOD.items() if name not in without}
        for name, change in changes.items():
            name = name.replace("__", "-").replace("_", " ")
            events[name] = dataclasses.replace(events[name], **change)
        return violations(list(events.values()), copies or {1: {0: LOG}, 2: {0: LOG}})

    def objects(self, text, **more):
        found = self.found(**more)
        self.assertEqual(len(found), 1, found)
        self.assertIn(text, found[0])

    def both(self, log):
        return {1: {0: log}, 2: {0: log}}

    def test_a_history_that_is_well_has_none(self):
        self.assertEqual(self.found(), [])

    def test_an_acknowledged_record_that_is_lost(self):
        log = LOG[:3]
        # Nobody may have seen it.
        found = self.found(copies=self.both(log), without=("end later", "delivery again"))
        self.assertEqual(found, ["partition 0: b'a-2' was acknowledged at 3 and is lost"])

    def test_an_acknowledged_record_at_another_offset(self):
        log = [LOG[0], LOG[1], (2, b"a-2"), (3, b"b-0")]
        self.objects("acknowledged at 3, and its batch is at [2]", copies=self.both(log), without=("fetch later",))

    def test_a_record_that_is_there_twice(self):
        log = [*LOG, (4, b"b-0")]
        self.objects("b'b-0' is there 2 times", copies=self.both(log), delivery_again={"end": 5})

    def test_a_refused_record_that_was_written(self):
        self.objects("was refused", copies=self.both([*LOG, (4, b"b-1")]), delivery_again={"end": 5})

    def test_a_client_that_is_told_what_cannot_be(self):
        denied = Denied(0, "expected sequence 1, got 2")
        self.assertEqual(violations([denied], {}), ["partition 0: expected sequence 1, got 2"])

    def test_a_record_that_nobody_sent(self):
        self.objects("never sent", copies=self.both([*LOG, (4, b"c-0")]), delivery_again={"end": 5})

    def test_a_batch_of_which_a_part_is_there(self):
        self.objects("in part", b__0={"values": (b"b-0", b"b-00")})

    def test_records_of_a_producer_out_of_order(self):
        log = [*LOG, (4, b"b-2"), (5, b"b-1")]
        changes = {"b__1": {"outcome": UNKNOWN}, "delivery_again": {"end": 6}}
        self.objects("of the same producer", copies=self.both(log), **changes)

    def test_without_numbers_what_is_unknown_may_come_late(self):
        log = [*LOG, (4, b"b-2"), (5, b"b-1")]
        changes = {"b__1": {"outcome": UNKNOWN, "numbered": False}, "b__2": {"numbered": False}}
        self.assertEqual(self.found(copies=self.both(log), delivery_again={"end": 6}, **changes), [])

    def test_an_acknowledged_record_behind_one_that_was_sent_later(self):
        log = [*LOG, (4, b"b-2")]
        # Sent before `a-0` is, acknowledged when that is long done; and the other way round.
        changes = {"b__2": {"outcome": OK, "offset": 4, "invoked": 0.1, "completed": 0.5}, "delivery_again": {"end": 5}}
        found = self.found(copies=self.both(log), without=("end", "end later", "b-0", "fetch later"), **changes)
        self.assertTrue(all("had been acknowledged" in one for one in found if "never sent" not in one), found)
        self.assertGreaterEqual(len(found), 2)

    def test_a_gap_between_offsets(self):
        log = [*LOG[:3], (4, b"a-2")]
        found = self.found(copies=self.both(log), without=("a-2", "end later"))
        self.assertIn("partition 0: offset 4 is where 3 should be", found)

    def test_replicas_that_differ(self):
        self.objects("differ from record 3 on", copies={1: {0: LOG}, 2: {0: LOG[:3]}})

    def test_a_read_of_what_was_not_committed(self):
        self.objects("was read at 2", fetch_later={"records": ((2, b"b-2"),)})

    def test_a_read_that_leaves_something_out(self):
        self.objects("a read from 1", fetch_later={"position": 1})

    def test_a_broker_that_shows_less_than_before(self):
        self.objects("showed 2 records, then 1", fetch_later={"high_watermark": 1})

    def test_a_broker_that_shows_less_after_it_was_started_again(self):
        self.assertEqual(self.found(fetch_later={"high_watermark": 1, "broker": (1, 2)}), [])

    def test_an_end_before_what_was_acknowledged(self):
        self.objects("said at 5.200 that the end is 3, and it was 4", end_later={"offset": 3})

    def test_an_end_before_one_that_was_shown(self):
        changes = {"a__2": {"outcome": UNKNOWN, "offset": None}, "end": {"offset": 4}, "end_later": {"offset": 3}}
        self.objects("the end is 3, and it was 4", **changes)

    def test_a_committed_offset_that_is_forgotten(self):
        self.objects("0 is committed, and it was 2", committed={"offset": 0})

    def test_a_committed_offset_that_moves_back(self):
        changes = {"committed": {"offset": 4, "completed": 6.3}, "committed_later": {"offset": 2}}
        self.objects("2 is committed, and it was 4", **changes)

    def test_a_committed_offset_that_nobody_committed(self):
        self.objects("which nobody did", committed_later={"offset": 3})

    def test_a_record_that_the_group_did_not_get(self):
        self.objects("from 3 to before 4", delivery_again={"end": 3})


if __name__ == "__main__":
    unittest.main()
