//! Which partitions this broker can reach, by topic name.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::metadata::Topic;
use crate::partition::Partition;
use crate::record::Limits;
use crate::telemetry::TopicMetrics;

/// Most headers of a record.
const HEADERS_MAX: u32 = 128;
/// Longest header key, in bytes.
const HEADER_KEY_BYTES_MAX: u32 = 255;

/// A topic and the replicas of its partitions on this broker.
pub struct Route {
    /// The topic, as the reconciler last saw it.
    pub topic: Arc<Topic>,
    /// What batches must keep to.
    pub limits: Limits,
    /// The topic's counters.
    pub metrics: Arc<TopicMetrics>,
    /// By partition number; none where this broker has no open replica.
    pub partitions: Vec<Option<Partition>>,
}

impl Route {
    pub(super) fn new(
        topic: Arc<Topic>,
        metrics: Arc<TopicMetrics>,
        partitions: Vec<Option<Partition>>,
    ) -> Self {
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

    pub(super) fn replace(&self, routes: Routes) {
        self.routes.store(Arc::new(routes));
    }
}
