//! Topics by name and partitions by group, as this broker reaches them.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::watch;

use super::partition_ref::PartitionRef;
use crate::metadata::Topic;
use crate::record::Limits;
use crate::storage::GroupId;
use crate::telemetry::TopicMetrics;

/// Most headers of a record.
const HEADERS_MAX: u32 = 128;
/// Longest header key, in bytes.
const HEADER_KEY_BYTES_MAX: u32 = 255;

/// A topic and its partitions.
pub struct Route {
    /// The topic, as the reconciler last saw it.
    pub topic: Arc<Topic>,
    /// What batches must keep to.
    pub limits: Limits,
    /// The topic's counters.
    pub metrics: Arc<TopicMetrics>,
    /// By partition number.
    pub partitions: Vec<PartitionRef>,
}

impl Route {
    pub(super) fn new(topic: Arc<Topic>, metrics: Arc<TopicMetrics>, partitions: Vec<PartitionRef>) -> Self {
        let limits = Limits {
            record_bytes_max: topic.settings.record_bytes_max,
            batch_bytes_max: topic.settings.batch_bytes_max,
            headers_max: HEADERS_MAX,
            header_key_bytes_max: HEADER_KEY_BYTES_MAX,
            codecs: topic.settings.codecs,
        };
        Route { topic, limits, metrics, partitions }
    }
}

/// Routes by topic name.
pub type Routes = HashMap<Arc<str>, Arc<Route>>;

/// The routes of this broker. Readers never wait; the reconciler replaces the whole table.
#[derive(Default)]
pub struct Routing {
    routes: ArcSwap<Routes>,
    partitions: ArcSwap<HashMap<GroupId, PartitionRef>>,
    replaced: watch::Sender<()>,
}

impl Routing {
    /// The route of a topic.
    pub fn topic(&self, name: &str) -> Option<Arc<Route>> {
        self.routes.load().get(name).cloned()
    }

    /// All routes.
    pub fn all(&self) -> Arc<Routes> {
        self.routes.load_full()
    }

    /// The partition whose group this is.
    pub fn partition(&self, group: GroupId) -> Option<PartitionRef> {
        self.partitions.load().get(&group).cloned()
    }

    /// All partitions.
    pub fn partitions(&self) -> Arc<HashMap<GroupId, PartitionRef>> {
        self.partitions.load_full()
    }

    /// Wakes whenever topics or partitions come or go.
    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.replaced.subscribe()
    }

    pub(super) fn replace(&self, routes: Routes, partitions: HashMap<GroupId, PartitionRef>) {
        self.partitions.store(Arc::new(partitions));
        self.routes.store(Arc::new(routes));
        self.replaced.send_replace(());
    }
}
