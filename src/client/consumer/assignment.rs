//! Assigning partitions to the sessions of their leaders.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::FutureExt as _;

use super::session::Session;
use super::{Consumer, Ready, State};
use crate::client::routing::Router;
use crate::client::{Error, Position, TopicPartition};

/// Leaders of partitions, as far as they could be found.
pub(super) type Assignment = Vec<(TopicPartition, Result<u64, Error>)>;

impl Consumer {
    /// Says whether something changed.
    pub(super) fn poll_assignment(&mut self, cx: &mut Context<'_>) -> bool {
        if let Some(pause) = &mut self.pause {
            if pause.poll_unpin(cx).is_pending() {
                return false;
            }
            self.pause = None;
        }
        if self.assigning.is_none() {
            let unassigned: Vec<TopicPartition> = self
                .partitions
                .iter()
                .filter(|(_, tracked)| tracked.state == State::Unassigned)
                .map(|(at, _)| at.clone())
                .collect();
            if unassigned.is_empty() {
                return false;
            }
            let (router, again) = (Arc::clone(&self.router), self.failures > 0);
            self.assigning = Some(async move { find_leaders(&router, unassigned, again).await }.boxed());
        }
        let Some(assigning) = &mut self.assigning else { return false };
        let Poll::Ready(assignment) = assigning.poll_unpin(cx) else { return false };
        self.assigning = None;
        self.assign(assignment);
        true
    }

    fn assign(&mut self, assignment: Assignment) {
        let mut by_broker: BTreeMap<u64, Vec<(TopicPartition, Position)>> = BTreeMap::new();
        for (at, leader) in assignment {
            // It may have been removed or repositioned meanwhile; only what it is now counts.
            let Some(tracked) = self.partitions.get_mut(&at) else { continue };
            if tracked.state != State::Unassigned {
                continue;
            }
            match leader {
                Ok(broker) => {
                    tracked.state = State::Assigned(broker);
                    by_broker.entry(broker).or_default().push((at, tracked.fetch));
                }
                Err(error) if error.is_retriable() => self.pause(&error),
                Err(error) => {
                    tracked.state = State::Failed;
                    self.ready.push_back(Ready::Failure(error.at(&at.topic, at.partition)));
                }
            }
        }
        for (broker, partitions) in by_broker {
            if let Some(session) = self.sessions.get_mut(&broker) {
                session.add(&partitions);
            } else {
                self.generations += 1;
                let session =
                    Session::open(&self.router, broker, self.generations, &partitions, &self.config);
                self.sessions.insert(broker, session);
            }
        }
    }
}

/// The leader of each partition; asks again, rather than trust what is known, if something failed.
async fn find_leaders(router: &Router, partitions: Vec<TopicPartition>, again: bool) -> Assignment {
    let topics: HashSet<Arc<str>> = partitions.iter().map(|at| Arc::clone(&at.topic)).collect();
    let mut routes = HashMap::new();
    for topic in topics {
        let route = if again { router.refresh(&topic).await } else { router.route(&topic).await };
        routes.insert(topic, route);
    }
    let leader = |at: &TopicPartition| {
        let route = routes[&at.topic].as_ref().map_err(Error::clone)?;
        route.check(at.partition)?;
        route.leader(at.partition).ok_or_else(|| Error::no_leader(&at.topic, at.partition))
    };
    partitions.into_iter().map(|at| (at.clone(), leader(&at))).collect()
}
