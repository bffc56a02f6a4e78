//! Whether this broker is in touch with its cluster: that there is a majority, and that it still belongs to it.
//!
//! A leader of the control group knows by itself whether a majority follows. Every other broker has the leader say so time and
//! again: reaching it does not mean that anybody else does. What this broker does not hear any more, that it was removed or
//! replaced, the others know: they refuse it, and tell it why.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::error;

use super::control::Control;
use super::partition_ref::DESERTED;
use super::peers::{Hub, Unconfirmed};
use crate::metadata::BrokerId;
use crate::raft::NodeId;

/// How often the leader is asked.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// What is known of the cluster.
#[derive(Clone, Debug, Default)]
pub(super) struct Contact {
    /// When a leader said last that a majority follows it.
    confirmed: Option<Instant>,
    /// The leader that was asked last, if it did not say so.
    doubted: Option<NodeId>,
    /// Why this broker does not belong to the cluster any more, and what to do.
    left: Option<String>,
}

impl Contact {
    /// That of a broker that has just heard that there is a majority.
    pub(super) fn fresh() -> Self {
        Contact { confirmed: Some(Instant::now()), ..Contact::default() }
    }

    /// Whether there was a majority a moment ago.
    pub(super) fn is_confirmed(&self) -> bool {
        self.confirmed.is_some_and(|at| at.elapsed() <= DESERTED)
    }

    /// Whether `leader` was asked and did not say that a majority follows.
    pub(super) fn doubts(&self, leader: NodeId) -> bool {
        self.doubted == Some(leader)
    }

    /// Why this broker does not belong to the cluster any more, and what to do.
    pub(super) fn left(&self) -> Option<&str> {
        self.left.as_deref()
    }
}

/// Keeps `contact` up to date until this broker has left the cluster.
pub(super) async fn keep(node: BrokerId, control: Control, hub: Hub, contact: watch::Sender<Contact>) {
    let mut tick = tokio::time::interval(ASK_EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let left = match control.state().has_left(node) {
            Some(left) => Some(left),
            None => ask(node, &control, &hub, &contact).await,
        };
        if let Some(left) = left {
            error!(name: "broker.left", broker_id = node.0, "this broker serves nobody any more: {left}");
            contact.send_modify(|contact| contact.left = Some(left));
            return;
        }
    }
}

/// Has the leader say that a majority follows it. Gives why this broker has left the cluster, if it has.
async fn ask(
    node: BrokerId,
    control: &Control,
    hub: &Hub,
    contact: &watch::Sender<Contact>,
) -> Option<String> {
    let leader = control.status().now().leader;
    if leader == Some(node.0) {
        return None;
    }
    if let Some(leader) = leader {
        match hub.confirm_majority(leader).await {
            Ok(()) => {
                contact.send_replace(Contact::fresh());
                return None;
            }
            Err(Unconfirmed::Left(left)) => return Some(left),
            Err(Unconfirmed::NotSaid) => contact.send_modify(|contact| contact.doubted = Some(leader)),
        }
    }
    // Who has left hears of no new leader, but whoever is reached may know.
    let others = hub.peers().into_iter().filter(|(peer, up)| *up && Some(*peer) != leader);
    let answers = join_all(others.map(|(peer, _)| async move { hub.confirm_majority(peer).await })).await;
    answers.into_iter().find_map(|answer| match answer {
        Err(Unconfirmed::Left(left)) => Some(left),
        _ => None,
    })
}
