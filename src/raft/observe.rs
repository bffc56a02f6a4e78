//! Follows openraft's own account of a replica: publishes it as [`super::Status`] and lets idle groups rest.

use std::sync::Arc;

use openraft::ServerState;
use openraft::async_runtime::WatchReceiver;
use tokio::time::{Instant, sleep_until};

use super::group::Core;
use super::hand_over::Late;
use super::pace::{Pace, Part};
use super::proposal::other;
use super::{Error, NodeId, Role};

/// Runs until the replica stops.
pub(super) async fn run(core: Arc<Core>, mut pace: Pace) {
    // Changes with role, term, leader and members only, so a busy group does not wake this task.
    let mut observed = core.agreement.server_metrics();
    loop {
        let part = publish(&core, &observed.borrow_watched());
        let due = pace.due(Instant::now(), part, core.shared.heard());
        // One that has lost something does not stand before it has what it promised to have.
        core.agreement.runtime_config().tick(due.ticks && core.shared.promise.owed().is_none());
        // A leadership that was to end is silent.
        if due.beat && !core.shared.is_silent() && core.agreement.trigger().heartbeat().await.is_err() {
            break;
        }
        tokio::select! {
            biased;
            changed = observed.changed() => {
                if changed.is_err() {
                    break;
                }
            }
            late = core.hand_over.late() => match late {
                Late::AskAgain(successor) => {
                    tracing::info!(group = %core.shared.group, successor, "the leadership was not taken over yet; asking again");
                    // Fails only if the replica has stopped, which is seen next.
                    let _ = core.agreement.trigger().transfer_leader(successor).await;
                }
                Late::LetGo => {
                    tracing::warn!(group = %core.shared.group, "the leadership was not taken over, and is let go");
                    core.shared.keep_silent(true);
                }
            },
            () = sleep_until(due.again.unwrap_or_else(Instant::now)), if due.again.is_some() => {}
            // An idle leader would not notice, and lead on without being able to.
            error = core.shared.store.failed() => {
                let _ = core.shared.fail(error);
                // Fails only for a task that was cancelled, which is as good as stopped.
                let _ = core.agreement.shutdown().await;
                break;
            }
        }
    }
    let stopped_itself = match &core.agreement.metrics().borrow_watched().running_state {
        Ok(()) => true,
        Err(fatal) => !matches!(fatal, openraft::errors::Fatal::Stopped),
    };
    let failed = core.shared.failure().or(stopped_itself.then_some(Error::Stopped));
    if let Some(error) = &failed {
        tracing::error!(group = %core.shared.group, error = %error, "a replica failed and is stopped");
    }
    core.shared.update_status(|status| {
        status.role = Role::Stopped;
        status.leader = None;
        status.failed = failed;
    });
}

fn publish(core: &Core, observed: &openraft::metrics::RaftServerMetrics<super::types::Types>) -> Part {
    let voters: Vec<NodeId> = observed.membership_config.voter_ids().collect();
    let sets = observed.membership_config.membership().get_joint_config();
    let lasting = voters.iter().copied().filter(|node| sets.iter().all(|set| set.contains(node)));
    let lasting: Vec<NodeId> = lasting.collect();
    let agreed = observed.committed_membership_config.log_id() == observed.membership_config.log_id();
    let role = match observed.state {
        ServerState::Learner => Role::Learner,
        ServerState::Follower => Role::Follower,
        ServerState::Candidate => Role::Candidate,
        ServerState::Leader => Role::Leader,
        ServerState::Shutdown => Role::Stopped,
    };
    let leader =
        if role == Role::Leader { Some(core.node) } else { other(core.node, observed.current_leader) };
    // The only voter hears from nobody and has nobody to talk to, so time need not pass for it.
    let members: Vec<NodeId> = observed.membership_config.nodes().map(|(node, _)| *node).collect();
    let alone = role == Role::Leader && members.len() == 1 && voters == [core.node];
    let part = match role {
        _ if alone || members.is_empty() => Part::Rests,
        Role::Leader => Part::Leads,
        _ => Part::Follows,
    };
    let became_leader = role == Role::Leader && core.shared.status().role != Role::Leader;
    if became_leader {
        core.shared.transport.elected(core.shared.group);
    }
    if core.hand_over.ends_with(role == Role::Leader, observed.vote.leader_id.term) {
        core.shared.keep_silent(false);
    }
    core.shared.update_status_if(|status| {
        let term = observed.vote.leader_id.term;
        let same = status.role == role
            && status.leader == leader
            && status.term == term
            && *status.voters == *voters
            && *status.lasting_voters == *lasting
            && *status.members == *members
            && status.members_agreed == agreed;
        if same {
            return false;
        }
        status.role = role;
        status.leader = leader;
        status.term = term;
        status.voters = voters.into();
        status.lasting_voters = lasting.into();
        status.members = members.into();
        status.members_agreed = agreed;
        // Only a leader has followers.
        status.unreadable.take_if(|_| role != Role::Leader);
        true
    });
    part
}
