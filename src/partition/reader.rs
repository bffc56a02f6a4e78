//! Reading committed batches: the newest from memory, older ones from the store.

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;

use super::Error;
use super::index::Entry;
use super::view::View;
use crate::clock::Timestamp;
use crate::record::{Codec, Frame, Offset, ProducerSequence, SpanLink};
use crate::storage::{Durability, Log};

/// Index rows that one read looks at. Bounds the work of a read over many small entries.
const ENTRIES_PER_READ: usize = 1_024;

/// A batch as it is stored, with what the broker assigned.
#[derive(Clone, Debug)]
pub struct StoredBatch {
    /// Offset of the first record.
    pub base: Offset,
    /// Number of records.
    pub records: u32,
    /// When it was appended.
    pub append_time: Timestamp,
    /// How it is compressed.
    pub codec: Codec,
    /// The span in which the broker got it, if that was sampled.
    pub span: Option<SpanLink>,
    /// The batch as the producer sent it.
    pub batch: Bytes,
}

impl StoredBatch {
    /// Offset after the last record.
    pub fn end(&self) -> Offset {
        Offset(self.base.0 + u64::from(self.records))
    }
}

/// Where a record came from, as its log entry says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Offset of the first record of its batch.
    pub base: Offset,
    /// Records of its batch.
    pub records: u32,
    /// Encoded bytes of its batch.
    pub size_bytes: u64,
    /// When the batch was appended.
    pub append_time: Timestamp,
    /// Who sent the batch and as which of its batches.
    pub producer: Option<ProducerSequence>,
    /// The span in which a broker got the batch, if that was sampled.
    pub span: Option<SpanLink>,
    /// The log entry.
    pub raft_index: u64,
    /// The term in which it was proposed.
    pub term: u64,
    /// Who led in that term.
    pub leader: u64,
}

/// Reads a partition. Clones share everything.
#[derive(Clone)]
pub(super) struct Reader {
    pub(super) view: Arc<View>,
    pub(super) log: Log,
}

impl Reader {
    /// Batches from the one that holds `from` on, until `max_bytes` is reached; at least one if there is one. Empty at
    /// the high watermark.
    pub(super) async fn read(&self, from: Offset, max_bytes: usize) -> Result<Vec<StoredBatch>, Error> {
        let bounds = self.view.bounds();
        if from < bounds.log_start || from > bounds.high_watermark {
            return Err(Error::OffsetOutOfRange {
                offset: from,
                log_start: bounds.log_start,
                high_watermark: bounds.high_watermark,
            });
        }
        if from == bounds.high_watermark {
            return Ok(Vec::new());
        }
        if let Some(entries) = self.view.tail(from, max_bytes) {
            return collect(&entries, from, max_bytes);
        }
        let found = self.read_stored(from, max_bytes).await?;
        if !found.is_empty() {
            return Ok(found);
        }
        // The entry has left memory, but its index row is still on its way into the store.
        self.rows_arrived().await?;
        self.read_stored(from, max_bytes).await
    }

    async fn read_stored(&self, from: Offset, max_bytes: usize) -> Result<Vec<StoredBatch>, Error> {
        let reader = self.clone();
        super::blocking(self.log.store(), move || reader.read_blocking(from, max_bytes)).await
    }

    fn read_blocking(&self, from: Offset, max_bytes: usize) -> Result<Vec<StoredBatch>, Error> {
        let Some(first) = self.log.index_at(from.0)? else { return Ok(Vec::new()) };
        let mut chosen: Vec<Arc<Entry>> = Vec::new();
        for row in self.log.index_from(first.offset, ENTRIES_PER_READ)? {
            let damaged = || Error::Damaged(format!("the index row of offset {} cannot be read", row.offset));
            let entry = Entry::from_row(&row).ok_or_else(damaged)?;
            let start = chosen.first().map_or(entry.bytes_before, |first| first.bytes_before);
            if !chosen.is_empty() && entry.bytes_before - start >= max_bytes as u64 {
                break;
            }
            chosen.push(Arc::new(entry));
        }
        chosen.retain(|entry| entry.end > from);
        let (Some(first), Some(last)) = (chosen.first(), chosen.last()) else { return Ok(Vec::new()) };
        let rows = match self.log.read(first.raft_index, last.raft_index + 1, u64::MAX) {
            Ok(rows) => rows,
            // What lies before the damage is served; the next read begins at it and reports it.
            Err(error) => match self.rows_before_damage(&chosen, &error)? {
                Some(rows) => rows,
                None => return Err(self.name_damage(first, error)),
            },
        };
        let mut rows = rows.into_iter();
        let mut entries = Vec::with_capacity(chosen.len());
        for entry in chosen {
            match rows.find(|row| row.index >= entry.raft_index) {
                Some(row) if row.index == entry.raft_index => entries.push((entry, row.payload)),
                _ => break,
            }
        }
        collect(&entries, from, max_bytes)
    }

    fn rows_before_damage(
        &self,
        chosen: &[Arc<Entry>],
        error: &crate::storage::Error,
    ) -> Result<Option<Vec<crate::storage::Row>>, Error> {
        let crate::storage::Error::Corrupt { index, .. } = *error else { return Ok(None) };
        let Some(first) = chosen.first().filter(|first| first.raft_index < index) else { return Ok(None) };
        Ok(Some(self.log.read(first.raft_index, index, u64::MAX)?))
    }

    fn name_damage(&self, first: &Entry, error: crate::storage::Error) -> Error {
        match error {
            crate::storage::Error::Corrupt { what, .. } => {
                Error::Corrupt { offset: first.base, end: first.end, what: what.to_owned() }
            }
            other => Error::Storage(other),
        }
    }

    /// Offset of the first record that was appended at or after `time`; the high watermark if there is none.
    pub(super) async fn offset_at(&self, time: Timestamp) -> Result<Offset, Error> {
        let bounds = self.view.bounds();
        if bounds.log_start == bounds.high_watermark || self.view.last_append() < time {
            return Ok(bounds.high_watermark);
        }
        // There is such a record. If no row says so, its row is on its way; taking its absence for an answer would make
        // retention delete records that are new.
        let mut found = self.index_at_time(time).await?;
        if found.is_none() {
            self.rows_arrived().await?;
            found = self.index_at_time(time).await?;
        }
        match found {
            Some(offset) => Ok(offset.max(bounds.log_start)),
            // Everything was trimmed meanwhile.
            None if self.view.bounds().log_start >= bounds.high_watermark => Ok(bounds.high_watermark),
            None => Err(Error::Damaged("the newest index row is older than the newest record".to_owned())),
        }
    }

    async fn index_at_time(&self, time: Timestamp) -> Result<Option<Offset>, Error> {
        let log = self.log.clone();
        let found = move || Ok(log.index_at_time(time.0)?.map(|row| Offset(row.offset)));
        super::blocking(self.log.store(), found).await
    }

    /// Waits until the index rows of everything that readers see now can be read from the store.
    ///
    /// Rows are handed to the store before readers see their records, and the store writes in order: once an empty
    /// batch that is handed over now is done, they are there.
    pub(super) async fn rows_arrived(&self) -> Result<(), Error> {
        Ok(self.log.store().commit_and_wait(self.log.store().batch(), Durability::Lazy).await?)
    }

    /// The entry that holds `offset`; none beyond the high watermark.
    pub(super) async fn entry_holding(&self, offset: Offset) -> Result<Option<Entry>, Error> {
        let find = |reader: Reader| super::blocking(self.log.store(), move || reader.entry_at(offset));
        match find(self.clone()).await? {
            None if offset < self.view.bounds().high_watermark => {
                self.rows_arrived().await?;
                find(self.clone()).await
            }
            found => Ok(found),
        }
    }

    /// Where the record at `offset` came from.
    pub(super) async fn origin(&self, offset: Offset) -> Result<Origin, Error> {
        let out_of_range = |bounds: super::view::Bounds| Error::OffsetOutOfRange {
            offset,
            log_start: bounds.log_start,
            high_watermark: bounds.high_watermark,
        };
        let bounds = self.view.bounds();
        if offset < bounds.log_start || offset >= bounds.high_watermark {
            return Err(out_of_range(bounds));
        }
        // Retention may be faster.
        let entry = self.entry_holding(offset).await?.ok_or_else(|| out_of_range(self.view.bounds()))?;
        let (log, index) = (self.log.clone(), entry.raft_index);
        let read = super::blocking(self.log.store(), move || Ok(log.get(index)?)).await;
        let row = read.map_err(|error| match error {
            Error::Storage(error) => self.name_damage(&entry, error),
            other => other,
        })?;
        let row = row.ok_or_else(|| out_of_range(self.view.bounds()))?;
        let mut origin = None;
        let visit = |base: Offset, frame: Frame| {
            let header = frame.header;
            if base.0 + u64::from(header.records) <= offset.0 {
                return ControlFlow::Continue(());
            }
            origin = Some(Origin {
                base,
                records: header.records,
                size_bytes: frame.batch.len() as u64,
                append_time: entry.append_time,
                producer: header.producer,
                span: header.span,
                raft_index: row.index,
                term: row.term,
                leader: row.leader,
            });
            ControlFlow::Break(())
        };
        let damaged = |what: String| Error::Corrupt { offset: entry.base, end: entry.end, what };
        entry.visit(&row.payload, visit).map_err(|damage| damaged(damage.to_string()))?;
        origin.ok_or_else(|| damaged("the log entry does not hold the record".to_owned()))
    }

    /// The entry that holds `offset`, if its row can be read already. Blocking.
    pub(super) fn entry_at(&self, offset: Offset) -> Result<Option<Entry>, Error> {
        let entry = self.log.index_at(offset.0)?.as_ref().and_then(Entry::from_row);
        Ok(entry.filter(|entry| entry.end > offset))
    }
}

/// The batches of `entries` from the one that holds `from` on, until `max_bytes` is reached.
fn collect(
    entries: &[(Arc<Entry>, Bytes)],
    from: Offset,
    max_bytes: usize,
) -> Result<Vec<StoredBatch>, Error> {
    let mut bytes = 0;
    let mut batches = Vec::new();
    for (entry, command) in entries {
        let visit = |base: Offset, frame: Frame| {
            let stored = StoredBatch {
                base,
                records: frame.header.records,
                append_time: entry.append_time,
                codec: frame.header.codec,
                span: frame.header.span,
                batch: frame.batch,
            };
            if stored.end() <= from {
                return ControlFlow::Continue(());
            }
            if bytes > 0 && bytes + stored.batch.len() > max_bytes {
                bytes = usize::MAX;
                return ControlFlow::Break(());
            }
            bytes += stored.batch.len();
            batches.push(stored);
            ControlFlow::Continue(())
        };
        entry.visit(command, visit).map_err(|damage| Error::Corrupt {
            offset: entry.base,
            end: entry.end,
            what: damage.to_string(),
        })?;
        if bytes >= max_bytes {
            break;
        }
    }
    Ok(batches)
}
