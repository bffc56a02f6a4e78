//! Settings of replicated groups.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Settings that all groups of a broker share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// How often a leader tells its followers that it lives. A group with one voter sends none.
    #[serde(with = "crate::units::duration")]
    pub heartbeat: Duration,
    /// The shortest time for which a follower still waits, after the leader's word has been missing for `election_max`,
    /// before it starts an election. Must be above `heartbeat`.
    #[serde(with = "crate::units::duration")]
    pub election_min: Duration,
    /// The longest such time; each follower draws its own between the two, so that elections rarely tie. Also how long the
    /// word of a leader lasts: nobody votes for another before, and a leader that no majority has answered for so long
    /// takes no commands. At least two heartbeats, so that one lost message does no harm.
    #[serde(with = "crate::units::duration")]
    pub election_max: Duration,
    /// How many bytes of commands are applied between two checkpoints. A restart re-applies at most about
    /// this much; each checkpoint writes the whole state, so groups with a big state write them more rarely.
    #[serde(with = "crate::units::size")]
    pub checkpoint_bytes: u64,
    /// How many bytes of entries one message to a follower carries. An entry above it travels alone.
    #[serde(with = "crate::units::size")]
    pub append_bytes_max: u64,
    /// How long a follower may take to store the entries of one message. Long enough for a slow disk: a message that is
    /// given up is sent again from its beginning.
    #[serde(with = "crate::units::duration")]
    pub append_timeout: Duration,
    /// How long one snapshot transfer may take.
    #[serde(with = "crate::units::duration")]
    pub snapshot_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            // A leader that dies is missed after `election_max` and a time between the two, 1.6 to 2 s.
            heartbeat: Duration::from_millis(500),
            election_min: Duration::from_millis(600),
            election_max: Duration::from_secs(1),
            checkpoint_bytes: 4 << 20,
            append_bytes_max: 4 << 20,
            append_timeout: Duration::from_secs(10),
            snapshot_timeout: Duration::from_secs(10),
        }
    }
}

impl Config {
    /// Every setting that is out of range, by name, with what is wrong.
    #[must_use]
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let mut found = Vec::new();
        if self.heartbeat < Duration::from_millis(1) {
            found.push(("heartbeat", "must be at least 1ms".to_owned()));
        }
        if self.election_min <= self.heartbeat {
            found.push(("election_min", "must be above raft.heartbeat".to_owned()));
        }
        if self.election_max <= self.election_min {
            found.push(("election_max", "must be above raft.election_min".to_owned()));
        }
        if self.checkpoint_bytes == 0 {
            found.push(("checkpoint_bytes", "must be at least 1".to_owned()));
        }
        if self.append_bytes_max == 0 {
            found.push(("append_bytes_max", "must be at least 1".to_owned()));
        }
        if self.append_timeout < self.heartbeat {
            found.push(("append_timeout", "must not be below raft.heartbeat".to_owned()));
        }
        if self.snapshot_timeout < Duration::from_millis(1) {
            found.push(("snapshot_timeout", "must be at least 1ms".to_owned()));
        }
        found
    }

    /// The same settings as openraft wants them.
    ///
    /// Snapshots and purging happen only when [`super::Group::purge_to`] asks. Leadership is never taken up
    /// again after a restart without an election: a log that lost its unsynced end would write other entries
    /// under the old term.
    pub(super) fn to_openraft(&self) -> openraft::Config {
        openraft::Config {
            cluster_name: "streambus".to_owned(),
            heartbeat_interval: millis(self.heartbeat),
            election_timeout_min: millis(self.election_min),
            election_timeout_max: millis(self.election_max),
            install_snapshot_timeout: millis(self.snapshot_timeout),
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
            // A follower may come back with less than it had: it lost what was not synced, or was emptied.
            allow_log_reversion: Some(true),
            // Room for openraft's own stage times, which nothing reads: a proposal carries its own.
            log_stage_capacity: Some(16),
            ..openraft::Config::default()
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_settings_are_accepted() {
        assert_eq!(Config::default().problems(), []);
        Config::default().to_openraft().validate().expect("openraft accepts the defaults");
    }

    #[test]
    fn every_setting_out_of_range_is_named() {
        let millis = Duration::from_millis;
        let config = Config {
            heartbeat: millis(100),
            election_min: millis(100),
            election_max: millis(50),
            ..Config::default()
        };
        let names: Vec<_> = config.problems().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["election_min", "election_max"]);
    }
}
