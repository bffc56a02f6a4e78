//! Settings of the cluster.

use std::fmt;
use std::time::Duration;

use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

/// Most seeds.
const SEEDS_MAX: usize = 100;
/// Most brokers that vote on metadata and offsets.
const VOTERS_MAX: u32 = 7;

/// How this broker finds its cluster, and how the cluster spreads its work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// gRPC addresses (`host:port`) of brokers through which a new broker joins their cluster, as a list, or as text with
    /// commas between. Empty: a new broker founds a cluster. All brokers may be given the same list with all of them in
    /// it: where none belongs to a cluster yet, the first of the list founds one, once all of them answer. A broker that
    /// belongs to a cluster only checks that its seeds belong to the same.
    #[serde(deserialize_with = "list_or_text")]
    pub seeds: Vec<String>,
    /// Where this broker stands. The replicas of a partition are spread over racks.
    pub rack: String,
    /// Brokers that vote on metadata and on the offsets of groups, at most; an odd number. Fewer vote while there are
    /// fewer brokers. The others have copies without a vote.
    pub voters: u32,
    /// How often leaderships that others should have are handed over to them: those of partitions to their first replica.
    #[serde(with = "crate::units::duration")]
    pub balance_interval: Duration,
    /// How long the hand-over of leaderships may take when the broker stops.
    #[serde(with = "crate::units::duration")]
    pub handover_timeout: Duration,
    /// Partitions that are changed at the same time: whose damaged replicas are repaired, or whose replicas move away from
    /// draining brokers. Each costs the copy of a replica. Repairs begin before moves. Moves that somebody asks for count,
    /// and begin at once; what waits for a broker that is away, or for a leader, does not count.
    pub moves_at_once: u32,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            seeds: Vec::new(),
            rack: String::new(),
            voters: 3,
            balance_interval: Duration::from_secs(10),
            handover_timeout: Duration::from_secs(5),
            moves_at_once: 8,
        }
    }
}

impl Config {
    /// Every setting that is out of range, by name, with what is wrong.
    #[must_use]
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let mut found = Vec::new();
        if self.seeds.len() > SEEDS_MAX {
            found.push(("seeds", format!("{} are more than {SEEDS_MAX}", self.seeds.len())));
        }
        for seed in &self.seeds {
            let port = seed.rsplit_once(':').and_then(|(host, port)| {
                let port = port.parse::<u16>().ok().filter(|port| *port > 0);
                port.filter(|_| !host.is_empty() && !host.contains('/'))
            });
            if port.is_none() {
                found.push(("seeds", format!("{seed:?} does not have the form host:port")));
            }
        }
        if self.voters.is_multiple_of(2) || self.voters > VOTERS_MAX {
            found.push(("voters", format!("{} is no odd number from 1 to {VOTERS_MAX}", self.voters)));
        }
        if self.balance_interval < Duration::from_millis(100) {
            found.push(("balance_interval", "must be at least 100ms".to_owned()));
        }
        if self.moves_at_once == 0 {
            found.push(("moves_at_once", "must be at least 1".to_owned()));
        }
        found
    }
}

fn list_or_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    struct ListOrText;

    impl<'de> Visitor<'de> for ListOrText {
        type Value = Vec<String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of texts, or one text with commas between")
        }

        fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
            let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
            Ok(parts.map(str::to_owned).collect())
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
            let mut found = Vec::new();
            while let Some(item) = items.next_element()? {
                found.push(item);
            }
            Ok(found)
        }
    }

    deserializer.deserialize_any(ListOrText)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_settings_are_accepted() {
        assert_eq!(Config::default().problems(), []);
    }

    #[test]
    fn every_setting_out_of_range_is_named() {
        let config = Config {
            seeds: vec!["a:9092".into(), "b".into(), "http://c:1".into()],
            voters: 4,
            balance_interval: Duration::ZERO,
            moves_at_once: 0,
            ..Config::default()
        };
        let names: Vec<_> = config.problems().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["seeds", "seeds", "voters", "balance_interval", "moves_at_once"]);
    }

    #[test]
    fn seeds_are_a_list_or_a_text() {
        for text in ["seeds = [\"a:1\", \"b:2\"]", "seeds = \"a:1, b:2\""] {
            let config: Config = toml::from_str(text).expect("valid");
            assert_eq!(config.seeds, ["a:1", "b:2"], "{text}");
        }
    }
}
