//! openraft's view of a group's log: appends go to the store's committer and to the tail, reads prefer the
//! tail.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, Range, RangeBounds};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{Stream, stream};
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::{EntryPayload, LogState, RaftLogReader};

use super::membership;
use super::message::{EntriesRequest, Request, Response};
use super::shared::Shared;
use super::types::{Command, Entry, LogId, Types, Vote, log_id, position};
use super::{Role, network, vote};
use crate::storage::{self, Batch, Durability, Kind, Log, Row};

/// How long replication rests before it tries again to read what cannot be read.
const UNREADABLE_PAUSE: Duration = Duration::from_millis(200);
/// How long each of the other members has to give what cannot be read.
const FETCH_PATIENCE: Duration = Duration::from_secs(1);

/// A way to read the rows from one index to another, up to about so many bytes.
type ReadStored = fn(&Log, u64, u64, u64) -> Result<Vec<Row>, storage::Error>;

/// The log of one replica. Clones share it.
#[derive(Clone)]
pub(super) struct LogStore {
    shared: Arc<Shared>,
}

impl LogStore {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        LogStore { shared }
    }

    /// The rows of `range` that exist, up to about `bytes_max` bytes but at least one.
    pub(super) fn read(&self, range: Range<u64>, bytes_max: u64) -> Result<Vec<Row>, storage::Error> {
        self.read_by(Log::read, range, bytes_max)
    }

    /// As [`LogStore::read`], with `stored` to read the rows that are not in the tail.
    fn read_by(
        &self,
        stored: ReadStored,
        range: Range<u64>,
        bytes_max: u64,
    ) -> Result<Vec<Row>, storage::Error> {
        let mut recent = self.shared.tail().read(range.clone());
        let stored_end = recent.first().map_or(range.end, |row| row.index);
        if range.start >= stored_end {
            return Ok(cut(recent, bytes_max));
        }
        // A row leaves the tail only after the store has it, so what is not in the tail is there or does not
        // exist.
        let mut rows = stored(&self.shared.log, range.start, stored_end, bytes_max)?;
        if rows.last().is_some_and(|row| row.index + 1 == stored_end) {
            rows.append(&mut recent);
        }
        Ok(cut(rows, bytes_max))
    }

    /// The rows of `range`, every one.
    fn read_all(&self, range: Range<u64>) -> Result<Vec<Row>, super::Error> {
        let rows = self.read(range.clone(), u64::MAX)?;
        let next = rows.last().map_or(range.start, |row| row.index + 1);
        if next < range.end {
            // Reading stops before a damaged row; starting at it says what is wrong with it.
            self.shared.log.read(next, range.end, 0)?;
            return Err(super::Error::Corrupt {
                group: self.shared.group,
                what: "committed entries are missing",
            });
        }
        Ok(rows)
    }

    fn read_entries(&self, range: Range<u64>, bytes_max: u64) -> Result<Vec<Entry>, io::Error> {
        let rows = self.read(range, bytes_max).map_err(|error| self.shared.fail(error))?;
        rows.into_iter().map(|row| self.entry(row)).collect()
    }

    /// Rows for a follower. What is not in the tail is read where nobody is kept waiting by the disk, and no more of it than
    /// the group's share.
    async fn read_for_follower(
        &self,
        range: Range<u64>,
    ) -> Result<Result<Vec<Row>, storage::Error>, io::Error> {
        let bytes_max = self.shared.append_bytes_max;
        let remembered = !self.shared.tail().read(range.start..range.start.saturating_add(1)).is_empty();
        if remembered {
            return Ok(self.read_by(Log::read_intact, range, bytes_max));
        }
        let bytes_max = self.shared.catch_up.share(self.shared.group, bytes_max, Instant::now());
        let log = self.clone();
        let read = self.shared.store.blocking(move || log.read_by(Log::read_intact, range, bytes_max));
        read.await.map_err(|_| io::Error::other("the runtime ends"))
    }

    /// Rows that cannot be read here, from the first other member that has them. All that another one knows to be committed
    /// under this leadership or an earlier one was in this log too: it is what was lost.
    async fn fetch(&self, range: Range<u64>) -> Vec<Row> {
        let Some(vote) = *self.shared.vote() else { return Vec::new() };
        let ballot = network::ballot(&vote);
        let bytes_max =
            self.shared.catch_up.share(self.shared.group, self.shared.append_bytes_max, Instant::now());
        let wanted = EntriesRequest { ballot, from: range.start, to: range.end, bytes_max };
        let members = self.shared.status().members;
        // One after the other: what several send at once would be in memory at once.
        for node in members.iter().filter(|node| **node != ballot.node) {
            let request = Request::Entries(wanted);
            let call = self.shared.transport.call(*node, self.shared.group, request, FETCH_PATIENCE);
            let Ok(Ok(Response::Entries(rows))) = tokio::time::timeout(FETCH_PATIENCE, call).await else {
                continue;
            };
            let rows = range.clone().zip(rows).map(|(index, row)| Row::decode(self.shared.group, index, row));
            let rows: Vec<Row> =
                rows.map_while(Result::ok).take_while(|row| row.term <= ballot.term).collect();
            if !rows.is_empty() {
                return rows;
            }
        }
        Vec::new()
    }

    /// Rows for another member that leads and has lost them: what is known here to be committed, if that was under the
    /// leadership of `request` or an earlier one.
    ///
    /// # Errors
    /// What the first of them cannot be read for.
    pub(super) async fn give(&self, request: EntriesRequest) -> Result<Vec<Row>, super::Error> {
        let EntriesRequest { ballot, from, to, bytes_max } = request;
        let committed = self.shared.status().committed;
        // Looked at afterwards: what was committed before, was under this leadership or an earlier one.
        let term = self.shared.vote().map_or(0, |vote| vote.leader_id.term);
        let to = to.min(committed.map_or(0, |committed| committed + 1));
        if term > ballot.term || from >= to {
            return Ok(Vec::new());
        }
        let bytes_max = bytes_max.min(self.shared.append_bytes_max);
        let bytes_max = self.shared.catch_up.share(self.shared.group, bytes_max, Instant::now());
        let log = self.clone();
        let read = self.shared.store.blocking(move || log.read_by(Log::read_intact, from..to, bytes_max));
        match read.await.map_err(|_| super::Error::Stopped)? {
            Err(storage::Error::Purged { .. }) => Ok(Vec::new()),
            Err(error) => {
                let error = super::Error::from(error);
                self.note_damage(&error);
                Err(error)
            }
            Ok(rows) => Ok(rows),
        }
    }

    /// Notes, and tells, that an entry cannot be read, if that is what `error` says and it is the first one.
    fn note_damage(&self, error: &super::Error) {
        let Shared { group, transport, .. } = &*self.shared;
        if !error.is_damage() || self.shared.status().damaged.is_some() {
            return;
        }
        tracing::error!(%group, %error, "an entry of a log cannot be read");
        self.shared.update_status(|status| status.damaged = Some(error.clone()));
        transport.damaged(*group);
    }

    fn entry(&self, row: Row) -> Result<Entry, io::Error> {
        entry_from(row).ok_or_else(|| {
            self.shared.fail(super::Error::Corrupt { group: self.shared.group, what: "a membership entry" })
        })
    }
}

/// Drops the rows that do not fit into `bytes_max`, but not the first.
fn cut(mut rows: Vec<Row>, bytes_max: u64) -> Vec<Row> {
    let mut bytes = 0_u64;
    let fitting = rows.iter().take_while(|row| {
        bytes = bytes.saturating_add(row.bytes().len() as u64);
        bytes <= bytes_max
    });
    let fitting = fitting.count().max(1);
    rows.truncate(fitting);
    rows
}

/// The row that an entry is stored and sent as. A command that came as a row is that row.
pub(super) fn row_from(entry: Entry) -> Row {
    let at = position(&entry.log_id);
    match entry.payload {
        EntryPayload::Normal(Command::Row(row)) => row,
        EntryPayload::Normal(Command::Proposed(command)) => Row::encode(at, Kind::Command, command),
        EntryPayload::Blank => Row::encode(at, Kind::Blank, storage::Command::copy_from_slice(&[])),
        EntryPayload::Membership(members) => {
            let members = storage::Command::copy_from_slice(&membership::encode(&members));
            Row::encode(at, Kind::Membership, members)
        }
    }
}

/// The entry that a row stands for; nothing if it holds members that cannot be read.
pub(super) fn entry_from(row: Row) -> Option<Entry> {
    let log_id = log_id(row.position());
    let payload = match row.kind {
        Kind::Blank => EntryPayload::Blank,
        Kind::Command => EntryPayload::Normal(Command::Row(row)),
        Kind::Membership => EntryPayload::Membership(membership::decode(&row.payload)?),
    };
    Some(Entry { log_id, payload })
}

fn half_open(range: impl RangeBounds<u64>) -> Range<u64> {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(start) => start.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(end) => end.saturating_add(1),
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    start..end
}

impl RaftLogReader<Types> for LogStore {
    async fn entries_stream<R>(&mut self, range: R) -> impl Stream<Item = Result<Entry, io::Error>> + Send
    where
        R: RangeBounds<u64> + Clone + Debug + Send,
    {
        // Only applying reads this way, and what it reads is nearly always in the tail: no copy but of
        // handles.
        let store = self.clone();
        let range = half_open(range);
        let (rows, error) = match self.read_all(range) {
            Ok(rows) => (rows, None),
            Err(error) => (Vec::new(), Some(Err(self.shared.fail(error)))),
        };
        stream::iter(rows.into_iter().map(move |row| store.entry(row)).chain(error))
    }

    async fn try_get_log_entries<R>(&mut self, range: R) -> Result<Vec<Entry>, io::Error>
    where
        R: RangeBounds<u64> + Clone + Debug + Send,
    {
        self.read_entries(half_open(range), u64::MAX)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        // Only replication reads this way. A replica that cannot give a follower what it lacks still is a good voter, so
        // it goes on, and gives what others have. If nobody has it, it says so, and sends nothing but heartbeats until
        // another one leads.
        let rows = match self.read_for_follower(start..end).await? {
            Err(error) if error.is_damage() => {
                let error = super::Error::from(error);
                self.note_damage(&error);
                let rows = self.fetch(start..end).await;
                if rows.is_empty() {
                    self.shared.update_status(|status| status.unreadable = Some(error));
                    tokio::time::sleep(UNREADABLE_PAUSE).await;
                } else {
                    let this = error.to_string();
                    let is_this = |before: &mut super::Error| before.to_string() == this;
                    self.shared.update_status_if(|status| status.unreadable.take_if(is_this).is_some());
                }
                rows
            }
            Err(error) => return Err(self.shared.fail(error)),
            Ok(rows) => rows,
        };
        rows.into_iter().map(|row| self.entry(row)).collect()
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(*self.shared.vote())
    }
}

impl RaftLogStorage<Types> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, io::Error> {
        let log = &self.shared.log;
        let fail = |error: storage::Error| self.shared.fail(error);
        let purged = log.purged().map_err(fail)?;
        let last = log.last().map_err(fail)?;
        Ok(LogState { last_purged_log_id: purged.map(log_id), last_log_id: last.map(log_id) })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let mut batch = Batch::new();
        batch.put_vote(self.shared.group, vote::encode(vote));
        // A vote that is forgotten may be given twice, and lets what others agree on later be overwritten. So it is on disk
        // even where records need not be.
        let saved = self.shared.store.commit_and_wait(batch, Durability::Always).await;
        saved.map_err(|error| self.shared.fail(error))?;
        *self.shared.vote() = Some(*vote);
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        // Written with the rows of a later run of entries: it only saves work at the next start.
        if let Some(committed) = committed {
            self.shared
                .update_status(|status| status.committed = status.committed.max(Some(committed.index)));
        }
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        let committed = self.shared.log.committed().map_err(|error| self.shared.fail(error))?;
        Ok(committed.map(log_id))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + Send,
        I::IntoIter: Send,
    {
        let mut batch = Batch::new();
        let mut last = None;
        let (received, mut spans) = (Instant::now(), Vec::new());
        let mut durability = Durability::Sync;
        let follows = self.shared.status().role != Role::Leader;
        {
            let mut tail = self.shared.tail();
            for entry in entries {
                let row = row_from(entry);
                if follows && row.kind == Kind::Command {
                    spans.extend(self.shared.transport.spans_of(self.shared.group, &row.payload));
                }
                if row.kind == Kind::Membership {
                    // Whoever forgets who the members are may elect itself.
                    durability = Durability::Always;
                }
                last = Some(row.position());
                self.shared.log.append(&mut batch, &row);
                tail.push(row);
            }
        }
        let Some(last) = last else {
            callback.io_completed(Ok(()));
            return Ok(());
        };
        self.shared.promise.log_ends(last);
        let last = last.index;
        self.shared.update_status(|status| status.last_index = Some(last));
        self.shared.note_append(last);
        let progress = Arc::clone(&self.shared.progress);
        let (group, transport) = (self.shared.group, Arc::clone(&self.shared.transport));
        let done = move |written: Result<(), storage::Error>| match written {
            Ok(()) => {
                progress.tail().written(last, Instant::now());
                if !spans.is_empty() {
                    transport.stored(group, &spans, received);
                }
                callback.io_completed(Ok(()));
            }
            Err(error) => callback.io_completed(Err(progress.fail(error))),
        };
        self.shared.store.commit(batch, durability, Box::new(done));
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        let last = last.map(|last| last.index);
        let mut batch = Batch::new();
        match last {
            Some(last) => self.shared.log.truncate_after(&mut batch, last),
            None => self.shared.log.clear(&mut batch),
        }
        let done = self.shared.store.commit_and_wait(batch, Durability::Sync).await;
        done.map_err(|error| self.shared.fail(error))?;
        // Only now: until the store has forgotten the rows, a read of the store would have found them again.
        self.shared.tail().truncate_after(last);
        self.shared.update_status(|status| status.last_index = last);
        Ok(())
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), io::Error> {
        self.shared.promise.log_ends(position(&upto));
        self.shared.tail().purge_to(upto.index);
        self.shared.update_status(|status| status.last_index = status.last_index.max(Some(upto.index)));
        // In the background, because removing files takes long and nothing after it waits for it: openraft
        // asks no more for what it purged, and opening the group finishes what a crash left behind.
        let shared = Arc::clone(&self.shared);
        self.shared.purges.spawn(async move {
            let store = shared.store.clone();
            let purge = store.blocking(move || match shared.log.purge_to(position(&upto)) {
                Ok(()) => shared.update_status(|status| {
                    status.purged = status.purged.max(Some(upto.index));
                    status.purge_failed = None;
                }),
                Err(error) => {
                    tracing::error!(group = %shared.group, error = %error, "a log was not purged to the end");
                    shared.update_status(|status| status.purge_failed = Some(error.into()));
                }
            });
            // An error means that the runtime ends, and the process with it.
            let _ = purge.await;
        });
        Ok(())
    }
}
