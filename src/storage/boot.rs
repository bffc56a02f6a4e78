//! Whether the machine ended before all that was acknowledged was on its disk.
//!
//! With [`Sync::Interval`] that costs the ends of logs, and nothing on the disk says so. While such a store is open, the run
//! of the operating system is noted in it. Who finds the note of another run, because nobody has closed the store, marks every
//! group: the owner of a group's log must not rely on its end until it has learned where that was ([`Log::is_doubted`]).
//!
//! [`Log::is_doubted`]: super::Log::is_doubted

use bytes::Bytes;

use super::batch::{Batch, Table};
use super::keys;
use super::store::Store;
use super::{Durability, Error, Sync};

/// Which run of the operating system this is. Nobody knows where that cannot be told.
fn this_boot() -> Option<Bytes> {
    let id = std::fs::read("/proc/sys/kernel/random/boot_id").ok()?;
    Some(id.trim_ascii().to_vec().into())
}

/// Looks for the note of another run, and leaves that of this one. Blocking.
pub fn note(store: &Store, sync: Sync) -> Result<(), Error> {
    let (found, boot) = (store.get(Table::Meta, keys::BOOT)?, this_boot());
    if found.is_some() && found != boot {
        let groups = doubt(store)?;
        tracing::warn!(
            name: "logs.doubted",
            groups,
            "the machine ended without a sync, and ends of logs may be lost; replicas wait for leaders before they vote"
        );
    }
    // Where it cannot be told, each end without a sync counts as one of the machine.
    let wanted = (sync == Sync::Interval).then(|| boot.unwrap_or_default());
    let mut batch = Batch::new();
    match wanted {
        Some(boot) => batch.put(Table::Meta, Bytes::from_static(keys::BOOT), boot),
        None if found.is_some() => forget(&mut batch),
        None => return Ok(()),
    }
    store.commit_blocking(batch, Durability::Always)
}

/// Everything is on disk from now on.
pub fn forget(batch: &mut Batch) {
    batch.remove(Table::Meta, Bytes::from_static(keys::BOOT));
}

/// Marks every group, and says how many there are. Blocking.
pub fn doubt(store: &Store) -> Result<usize, Error> {
    let mut batch = Batch::new();
    for group in store.engine().groups_with_state()? {
        batch.put(Table::State, keys::doubted(group), Bytes::new());
    }
    let groups = batch.len();
    store.commit_blocking(batch, Durability::Always)?;
    Ok(groups)
}
