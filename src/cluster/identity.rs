//! Who this broker is. Given at its first start, kept in its data directory.

use std::path::Path;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::metadata::BrokerId;
use crate::storage::{self, Store, read_note, read_or_write_note};

/// The file in the data directory.
const FILE: &str = "identity.toml";
/// The file that says that the store has been made. It holds the cluster's id.
const ESTABLISHED: &str = "established";
/// The same inside of the store.
const META: &str = "cluster_id";
/// The number of the broker that founds a cluster.
const FOUNDER: BrokerId = BrokerId(1);

/// The broker's and its cluster's identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Kept for the life of the cluster.
    pub cluster: Uuid,
    /// This broker.
    pub broker: BrokerId,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    cluster_id: String,
    broker_id: u64,
}

/// Why the identity cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file system failed.
    #[error(transparent)]
    Storage(#[from] storage::Error),
    /// The file does not hold an identity.
    #[error("{FILE} in the data directory is damaged: {0}")]
    Damaged(String),
    /// The store is gone, and with it what this broker has promised to others.
    #[error(
        "{FILE} says that this is broker {broker} of cluster {cluster}, but its data is gone: restore it, or empty the data directory so that the broker joins anew under another number"
    )]
    StoreLost {
        /// The broker.
        broker: BrokerId,
        /// Its cluster.
        cluster: Uuid,
    },
}

impl Identity {
    /// Reads the identity, if there is one. Blocking.
    ///
    /// # Errors
    /// The file system failed, or the file is damaged.
    pub fn load(data_dir: &Path) -> Result<Option<Self>, Error> {
        read_note(data_dir, FILE)?.map(|text| Self::parse(&text)).transpose()
    }

    /// Founds a cluster: keeps an identity of a new one, or reads what is there. Blocking.
    ///
    /// # Errors
    /// As [`Identity::load`].
    pub fn found(data_dir: &Path) -> Result<Self, Error> {
        Self::keep(data_dir, Identity { cluster: Uuid::new_v4(), broker: FOUNDER })
    }

    /// Keeps what the cluster has given this broker. Blocking.
    ///
    /// # Errors
    /// As [`Identity::load`].
    pub fn keep(data_dir: &Path, given: Identity) -> Result<Self, Error> {
        let make = || format!("cluster_id = \"{}\"\nbroker_id = {}\n", given.cluster, given.broker);
        Self::parse(&read_or_write_note(data_dir, FILE, make)?)
    }

    /// Whether this broker founded its cluster, or founds it now.
    pub fn founds(&self) -> bool {
        self.broker == FOUNDER
    }

    /// Checks that the store is the one that was made under this identity, and notes it in a new one. Blocking.
    ///
    /// # Errors
    /// [`Error::StoreLost`], or the store failed.
    pub fn establish(&self, data_dir: &Path, store: &Store) -> Result<(), Error> {
        let established = read_note(data_dir, ESTABLISHED)?.is_some();
        if store.meta_get(META)?.is_none() {
            if established {
                return Err(Error::StoreLost { broker: self.broker, cluster: self.cluster });
            }
            store.meta_put(META, self.cluster.to_string())?;
        }
        read_or_write_note(data_dir, ESTABLISHED, || format!("{}\n", self.cluster))?;
        Ok(())
    }

    fn parse(text: &str) -> Result<Self, Error> {
        let stored: Stored = toml::from_str(text).map_err(|e| Error::Damaged(e.message().to_owned()))?;
        let cluster = Uuid::parse_str(&stored.cluster_id).map_err(|e| Error::Damaged(e.to_string()))?;
        if stored.broker_id == 0 {
            return Err(Error::Damaged("broker_id is 0".to_owned()));
        }
        Ok(Identity { cluster, broker: BrokerId(stored.broker_id) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_kept() {
        let dir = tempfile::tempdir().expect("a directory");
        assert_eq!(Identity::load(dir.path()).expect("read"), None);
        let made = Identity::found(dir.path()).expect("made");
        assert_eq!(Identity::load(dir.path()).expect("read"), Some(made.clone()));
        assert!(made.founds());
        let other = Identity { cluster: Uuid::new_v4(), broker: BrokerId(7) };
        assert_eq!(Identity::keep(dir.path(), other).expect("read"), made);
    }

    #[test]
    fn a_damaged_identity_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        for damaged in ["", "cluster_id = \"x\"\nbroker_id = 1", "garbage"] {
            std::fs::write(dir.path().join(FILE), damaged).expect("written");
            assert!(matches!(Identity::load(dir.path()), Err(Error::Damaged(_))), "{damaged:?}");
        }
    }

    #[test]
    fn a_broker_whose_store_was_lost_does_not_start_with_an_empty_one() {
        let dir = tempfile::tempdir().expect("a directory");
        let identity = Identity::found(dir.path()).expect("made");
        let open = |name: &str| {
            let config = storage::Config::in_dir(dir.path().join(name));
            Store::open(&config, None).expect("opened")
        };
        let store = open("one");
        for _ in 0..2 {
            identity.establish(dir.path(), &store).expect("the store is its own");
        }
        store.close().expect("closed");
        let lost = identity.establish(dir.path(), &open("another"));
        assert!(matches!(lost, Err(Error::StoreLost { .. })));
    }
}
