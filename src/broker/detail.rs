//! What is known of each partition that has a replica here, for `/metrics/detailed`.

use super::{Broker, Error};
use crate::cluster::partition_ref::PartitionRef;
use crate::cluster::routing::Route;
use crate::telemetry::PartitionLevels;

/// Which partitions, and how many of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DetailQuery {
    /// Only of these topics; of all if there are none.
    pub topics: Vec<String>,
    /// Only those that this broker leads.
    pub leading_only: bool,
    /// Only those that come after this one, by topic and number.
    pub after: Option<(String, u32)>,
}

/// A page of partitions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DetailPage {
    /// The partitions, by topic and number.
    pub partitions: Vec<PartitionLevels>,
    /// Whether there are more behind them.
    pub more: bool,
}

impl Broker {
    /// The first `most` partitions that `query` chooses.
    ///
    /// # Errors
    /// The broker is not ready, or a topic is not there.
    pub fn detail(&self, query: &DetailQuery, most: usize) -> Result<DetailPage, Error> {
        let routes = if query.topics.is_empty() {
            let all = self.running()?.cluster.routing().all();
            let mut routes: Vec<_> = all.values().cloned().collect();
            routes.sort_unstable_by(|a, b| a.topic.name.cmp(&b.topic.name));
            routes
        } else {
            let mut names: Vec<&str> = query.topics.iter().map(String::as_str).collect();
            names.sort_unstable();
            names.dedup();
            names.into_iter().map(|name| self.route(name)).collect::<Result<_, _>>()?
        };
        let mut page = DetailPage { partitions: Vec::new(), more: false };
        for route in &routes {
            for (number, partition) in route.partitions.iter().enumerate() {
                let number = number as u32;
                if query
                    .after
                    .as_ref()
                    .is_some_and(|after| (&*route.topic.name, number) <= (&*after.0, after.1))
                {
                    continue;
                }
                let Some(levels) = levels_of(route, number, partition, query.leading_only) else { continue };
                if page.partitions.len() == most {
                    page.more = true;
                    return Ok(page);
                }
                page.partitions.push(levels);
            }
        }
        Ok(page)
    }
}

/// None if the partition has no replica here, or another broker leads it and only leaders are wanted.
fn levels_of(
    route: &Route,
    number: u32,
    partition: &PartitionRef,
    leading_only: bool,
) -> Option<PartitionLevels> {
    let replica = partition.replica()?;
    let leads = partition.leads_here();
    if leading_only && !leads {
        return None;
    }
    let bounds = partition.bounds();
    let committed = replica.status().now().committed.map_or(0, |at| at + 1);
    let followers = match leads {
        true => replica.members().followers(),
        false => Vec::new(),
    };
    let lag = |matched: Option<u64>| committed.saturating_sub(matched.map_or(0, |at| at + 1));
    Some(PartitionLevels {
        topic: route.topic.name.clone(),
        partition: number,
        log_start: bounds.log_start.0,
        high_watermark: bounds.high_watermark.0,
        size_bytes: replica.view().size_bytes(),
        leads,
        term: partition.term(),
        followers: followers.iter().map(|follower| (follower.node, lag(follower.matched))).collect(),
    })
}
