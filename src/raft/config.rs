//! Settings of replicated groups.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Settings that all groups of a broker share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// How often a leader tells its followers that it lives, in milliseconds. A group with one voter sends
    /// none.
    pub heartbeat_ms: u64,
    /// The shortest time without a leader's word after which a follower starts an election, in milliseconds.
    /// Must be above `heartbeat_ms`; several heartbeats, so that one lost message does not start an election.
    pub election_min_ms: u64,
    /// The longest such time, in milliseconds. Each follower draws its own between the two, so that elections
    /// rarely tie.
    pub election_max_ms: u64,
    /// How many bytes of commands are applied between two checkpoints. A restart re-applies at most about
    /// this much; each checkpoint writes the whole state, so groups with a big state write them more rarely.
    pub checkpoint_bytes: u64,
    /// How many bytes of entries one message to a follower carries. An entry above it travels alone.
    pub append_bytes_max: u64,
    /// How long one snapshot transfer may take, in milliseconds.
    pub snapshot_timeout_ms: u64,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            heartbeat_ms: 250,
            election_min_ms: 1_500,
            election_max_ms: 3_000,
            checkpoint_bytes: 4 << 20,
            append_bytes_max: 4 << 20,
            snapshot_timeout_ms: 10_000,
        }
    }
}

impl Config {
    /// Says what is wrong with the settings, one sentence per mistake; empty when nothing is.
    pub fn mistakes(&self) -> Vec<String> {
        let mut mistakes = Vec::new();
        if self.heartbeat_ms == 0 {
            mistakes.push("raft.heartbeat_ms must be at least 1".to_owned());
        }
        if self.election_min_ms <= self.heartbeat_ms {
            mistakes.push(format!(
                "raft.election_min_ms ({}) must be above raft.heartbeat_ms ({})",
                self.election_min_ms, self.heartbeat_ms
            ));
        }
        if self.election_max_ms <= self.election_min_ms {
            mistakes.push(format!(
                "raft.election_max_ms ({}) must be above raft.election_min_ms ({})",
                self.election_max_ms, self.election_min_ms
            ));
        }
        if self.checkpoint_bytes == 0 {
            mistakes.push("raft.checkpoint_bytes must be at least 1".to_owned());
        }
        if self.append_bytes_max == 0 {
            mistakes.push("raft.append_bytes_max must be at least 1".to_owned());
        }
        if self.snapshot_timeout_ms == 0 {
            mistakes.push("raft.snapshot_timeout_ms must be at least 1".to_owned());
        }
        mistakes
    }

    /// How long one snapshot transfer may take.
    pub fn snapshot_timeout(&self) -> Duration {
        Duration::from_millis(self.snapshot_timeout_ms)
    }

    /// The same settings as openraft wants them.
    ///
    /// Snapshots and purging happen only when [`super::Group::purge_to`] asks. Leadership is never taken up
    /// again after a restart without an election: a log that lost its unsynced end would write other entries
    /// under the old term.
    pub(super) fn to_openraft(&self) -> openraft::Config {
        openraft::Config {
            cluster_name: "streambus".to_owned(),
            heartbeat_interval: self.heartbeat_ms,
            election_timeout_min: self.election_min_ms,
            election_timeout_max: self.election_max_ms,
            install_snapshot_timeout: self.snapshot_timeout_ms,
            snapshot_policy: openraft::SnapshotPolicy::Never,
            // The log ends where the snapshot does, so building a snapshot purges up to it.
            max_in_snapshot_log_to_keep: 0,
            purge_batch_size: 1,
            // A follower that lacks entries which still exist gets the entries, however far behind it is.
            replication_lag_threshold: u64::MAX,
            // The group turns ticks on when it has someone to talk to.
            enable_tick: false,
            enable_pre_vote: Some(true),
            enable_leader_restore: Some(false),
            // Room for openraft's own stage times, which nothing reads: a proposal carries its own.
            log_stage_capacity: Some(16),
            ..openraft::Config::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_settings_are_accepted() {
        assert_eq!(Config::default().mistakes(), Vec::<String>::new());
        Config::default().to_openraft().validate().expect("openraft accepts the defaults");
    }

    #[test]
    fn every_mistake_is_named() {
        let config =
            Config { heartbeat_ms: 100, election_min_ms: 100, election_max_ms: 50, ..Config::default() };
        let mistakes = config.mistakes();
        assert_eq!(mistakes.len(), 2, "{mistakes:?}");
        assert!(mistakes[0].contains("raft.election_min_ms") && mistakes[1].contains("raft.election_max_ms"));
    }
}
