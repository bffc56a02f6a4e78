//! Who this broker is. Made once, kept on its disk.

use uuid::Uuid;

use crate::metadata::BrokerId;
use crate::storage::{self, Store};

const CLUSTER_ID: &str = "cluster_id";
const BROKER_ID: &str = "broker_id";
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

/// Why the identity cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store failed.
    #[error(transparent)]
    Storage(#[from] storage::Error),
    /// What is stored is no identity.
    #[error("the stored {0} is damaged")]
    Damaged(&'static str),
}

impl Identity {
    /// Reads the identity, or makes one if the store is new. Blocking.
    ///
    /// # Errors
    /// The store failed, or what it holds is damaged.
    pub fn load_or_create(store: &Store) -> Result<Self, Error> {
        let cluster = match store.meta_get(CLUSTER_ID)? {
            Some(bytes) => Uuid::from_slice(&bytes).map_err(|_| Error::Damaged(CLUSTER_ID))?,
            None => {
                let cluster = Uuid::new_v4();
                store.meta_put(CLUSTER_ID, cluster.as_bytes().to_vec())?;
                cluster
            }
        };
        let broker = match store.meta_get(BROKER_ID)? {
            Some(bytes) => u64::from_be_bytes(bytes[..].try_into().map_err(|_| Error::Damaged(BROKER_ID))?),
            None => {
                store.meta_put(BROKER_ID, FOUNDER.to_be_bytes().to_vec())?;
                FOUNDER
            }
        };
        Ok(Identity { cluster, broker: BrokerId(broker) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_kept() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::open(&storage::Config::in_dir(dir.path()), None).expect("opens");
        let made = Identity::load_or_create(&store).expect("made");
        assert_eq!(Identity::load_or_create(&store).expect("read"), made);
        store.close().expect("closes");
    }
}
