//! Settings of consumer groups.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What groups and their members may do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The shortest session timeout that a member may ask for.
    #[serde(with = "crate::units::duration")]
    pub session_timeout_min: Duration,
    /// The longest session timeout that a member may ask for.
    #[serde(with = "crate::units::duration")]
    pub session_timeout_max: Duration,
    /// The session timeout of a member that does not say.
    #[serde(with = "crate::units::duration")]
    pub session_timeout: Duration,
    /// How long a member that does not say may take to release a partition that is revoked.
    #[serde(with = "crate::units::duration")]
    pub rebalance_timeout: Duration,
    /// A group without members is deleted with its offsets when nothing was committed to it, and no member was in it,
    /// for so long. `0s` keeps groups for ever.
    #[serde(with = "crate::units::duration")]
    pub retention: Duration,
    /// How often groups are looked through for what has expired.
    #[serde(with = "crate::units::duration")]
    pub retention_interval: Duration,
    /// Most groups. Joins and commits that would make another are refused.
    pub groups_max: u32,
    /// Most members of a group. Further joins are refused.
    pub members_max: u32,
    /// Records of a partition of a share group between the first that is not done and the last that was leased.
    pub share_window: u32,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            session_timeout_min: Duration::from_secs(1),
            session_timeout_max: Duration::from_secs(30 * 60),
            session_timeout: Duration::from_secs(30),
            rebalance_timeout: Duration::from_secs(30),
            retention: Duration::from_secs(7 * 24 * 3600),
            retention_interval: Duration::from_secs(60),
            groups_max: 10_000,
            members_max: 1_000,
            share_window: 2_000,
        }
    }
}

impl Config {
    /// Every setting that is out of range, by name, with what is wrong.
    #[must_use]
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let mut found = Vec::new();
        if self.session_timeout_min < Duration::from_millis(100) {
            found.push(("session_timeout_min", "must be at least 100ms".to_owned()));
        }
        if self.session_timeout_max < self.session_timeout_min {
            found.push(("session_timeout_max", "must not be below groups.session_timeout_min".to_owned()));
        }
        if self.session_timeout < self.session_timeout_min || self.session_timeout > self.session_timeout_max
        {
            let bounds = "must lie between groups.session_timeout_min and groups.session_timeout_max";
            found.push(("session_timeout", bounds.to_owned()));
        }
        if self.rebalance_timeout.is_zero() || self.rebalance_timeout > Duration::from_secs(3600) {
            found.push(("rebalance_timeout", "must be above 0s and at most 1h".to_owned()));
        }
        if self.retention_interval < Duration::from_millis(10) {
            found.push(("retention_interval", "must be at least 10ms".to_owned()));
        }
        let mut within = |name, value: u32, most: u32| {
            if value == 0 || value > most {
                found.push((name, format!("{value} is not between 1 and {most}")));
            }
        };
        within("groups_max", self.groups_max, 1_000_000);
        within("members_max", self.members_max, 100_000);
        within("share_window", self.share_window, 1_000_000);
        found
    }
}
