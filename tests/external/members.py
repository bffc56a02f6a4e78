"""A member of a group on the generated client."""

import queue

import wire


class Member:
    """An open member stream that answers keepalives and releases what is revoked."""

    def __init__(self, client, group, topic, share=None, timeout=120, **join):
        self._topic = topic
        self._waiting = queue.SimpleQueue()
        self.assigned = set()
        self.revoked = []
        self.epoch = 0
        join = dict(group=group, topics=[topic], credit_bytes=1 << 30, **join)
        if share is not None:
            join["share"] = share
        self.say(join=wire.group.JoinGroup(**join))
        self._stream = client.consume.Subscribe(iter(self._waiting.get, None), timeout=timeout)

    def say(self, **action):
        self._waiting.put(wire.consume.SubscribeRequest(**action))

    def events(self):
        for response in self._stream:
            kind = response.WhichOneof("event")
            event = getattr(response, kind)
            if kind == "keepalive":
                self.say(heartbeat=wire.group.Heartbeat())
            elif kind == "joined":
                self.epoch = event.epoch
            elif kind == "assigned":
                self.epoch = event.epoch
                self.assigned |= {at.partition for at in event.partitions}
            elif kind == "revoked":
                self.epoch = event.epoch
                self.assigned -= {at.partition for at in event.partitions}
                self.revoked.append([at.partition for at in event.partitions])
                self.say(release=wire.group.ReleasePartitions(partitions=event.partitions))
            yield kind, event

    def commit(self, partition, offset):
        commit = wire.group.OffsetCommit(topic=self._topic, partition=partition, offset=offset)
        self.say(commit=wire.group.Commit(correlation_id=1, epoch=self.epoch, offsets=[commit]))

    def leave(self):
        self.say(leave=wire.group.LeaveGroup())
        for _ in self.events():
            pass
        self.end()

    def vanish(self):
        self._stream.cancel()
        self.end()

    def end(self):
        """Nothing more will be said."""
        self._waiting.put(None)
