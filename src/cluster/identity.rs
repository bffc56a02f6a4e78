//! Who this broker is. Made at its first start, kept in its data directory.

use std::path::Path;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::metadata::BrokerId;
use crate::storage::{self, read_or_write_note};

/// The file in the data directory.
const FILE: &str = "identity.toml";
/// The number of the broker that founds a cluster.
const FOUNDER: u64 = 1;

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
}

impl Identity {
    /// Reads the identity, or makes one if the data directory is new. Blocking.
    ///
    /// # Errors
    /// The file system failed, or the file is damaged.
    pub fn load_or_create(data_dir: &Path) -> Result<Self, Error> {
        let make = || format!("cluster_id = \"{}\"\nbroker_id = {FOUNDER}\n", Uuid::new_v4());
        let text = read_or_write_note(data_dir, FILE, make)?;
        let stored: Stored = toml::from_str(&text).map_err(|e| Error::Damaged(e.message().to_owned()))?;
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
        let made = Identity::load_or_create(dir.path()).expect("made");
        assert_eq!(Identity::load_or_create(dir.path()).expect("read"), made);
        assert_eq!(made.broker, BrokerId(1));
    }

    #[test]
    fn a_damaged_identity_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        for damaged in ["", "cluster_id = \"x\"\nbroker_id = 1", "garbage"] {
            std::fs::write(dir.path().join(FILE), damaged).expect("written");
            assert!(matches!(Identity::load_or_create(dir.path()), Err(Error::Damaged(_))), "{damaged:?}");
        }
    }
}
