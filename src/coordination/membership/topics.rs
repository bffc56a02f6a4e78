//! What topics there are, and which of them a member wants.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use regex::{Regex, RegexBuilder};

use crate::metadata::TopicId;

/// Longest pattern, in bytes.
const PATTERN_BYTES_MAX: usize = 1_024;
/// What a compiled pattern may take, in bytes. Unicode classes such as `\w` take some tens of KiB each.
const PATTERN_MEMORY_MAX: usize = 1 << 20;
/// What matching a pattern may keep beside it, in bytes. With less it is slower.
const PATTERN_CACHE_MAX: usize = 256 << 10;
/// How deep a pattern's groups and repetitions may be nested.
const PATTERN_NESTING_MAX: u32 = 50;

/// Why a pattern is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// It is too long.
    #[error("has {bytes} bytes, at most {PATTERN_BYTES_MAX} are allowed")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// It needs too much memory.
    #[error(
        "needs more than {PATTERN_MEMORY_MAX} bytes when compiled; repeat less, or use [a-z] rather than \\w"
    )]
    TooBig,
    /// It is not a regular expression.
    #[error("is not a regular expression: {0}")]
    Syntax(String),
}

/// Which topics a member wants to read: some by name, others by a pattern that their whole names match.
#[derive(Clone, Debug)]
pub struct TopicFilter {
    names: BTreeSet<Arc<str>>,
    pattern: Option<Regex>,
}

impl TopicFilter {
    /// Topics of these names, and topics whose whole names match `pattern`. They need not exist.
    ///
    /// # Errors
    /// The pattern is not a regular expression, or too long, or would need too much memory.
    pub fn new(
        names: impl IntoIterator<Item = Arc<str>>,
        pattern: Option<&str>,
    ) -> Result<Self, PatternError> {
        Ok(TopicFilter { names: names.into_iter().collect(), pattern: pattern.map(whole).transpose()? })
    }

    /// Whether a topic of this name is wanted.
    #[must_use]
    pub fn matches(&self, topic: &str) -> bool {
        self.names.contains(topic) || self.pattern.as_ref().is_some_and(|pattern| pattern.is_match(topic))
    }
}

/// Compiles a pattern so that it matches whole names only.
fn whole(pattern: &str) -> Result<Regex, PatternError> {
    if pattern.len() > PATTERN_BYTES_MAX {
        return Err(PatternError::TooLong { bytes: pattern.len() });
    }
    // First as it is: errors shall speak of what the client wrote, and `a)(b` shall not become right by the anchors.
    compile(pattern)?;
    compile(&format!(r"\A(?:{pattern})\z"))
        // In the mode that allows comments the pattern may end in one, which swallows the rest of the line.
        .or_else(|_| compile(&format!("\\A(?:{pattern}\n)\\z")))
}

fn compile(pattern: &str) -> Result<Regex, PatternError> {
    let built = RegexBuilder::new(pattern)
        .size_limit(PATTERN_MEMORY_MAX)
        .dfa_size_limit(PATTERN_CACHE_MAX)
        .nest_limit(PATTERN_NESTING_MAX)
        .build();
    built.map_err(|error| match error {
        regex::Error::CompiledTooBig(_) => PatternError::TooBig,
        other => PatternError::Syntax(other.to_string()),
    })
}

/// The topics that there are, at one moment. Cheap to clone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TopicView(Arc<BTreeMap<TopicId, Topic>>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Topic {
    name: Arc<str>,
    partitions: Vec<Vec<Arc<str>>>,
}

impl TopicView {
    /// Topics with name, id, and for each of their partitions the racks of its replicas, as far as they are known.
    pub fn new(topics: impl IntoIterator<Item = (Arc<str>, TopicId, Vec<Vec<Arc<str>>>)>) -> Self {
        let topic = |(name, id, partitions)| (id, Topic { name, partitions });
        TopicView(Arc::new(topics.into_iter().map(topic).collect()))
    }

    /// The topics that `filter` wants.
    pub(super) fn matching(&self, filter: &TopicFilter) -> BTreeSet<TopicId> {
        self.0.iter().filter(|(_, topic)| filter.matches(&topic.name)).map(|(id, _)| *id).collect()
    }

    /// Ids of all topics, ascending, with the racks of their partitions by number.
    pub(super) fn iter(&self) -> impl Iterator<Item = (TopicId, &[Vec<Arc<str>>])> {
        self.0.iter().map(|(id, topic)| (*id, topic.partitions.as_slice()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(names: &[&str], pattern: Option<&str>) -> Result<TopicFilter, PatternError> {
        TopicFilter::new(names.iter().map(|name| Arc::from(*name)), pattern)
    }

    #[test]
    fn a_topic_is_wanted_by_name_or_by_pattern() {
        let filter = filter(&["orders", "a.b"], Some("audit-[0-9]+")).unwrap();
        for name in ["orders", "a.b", "audit-7", "audit-42"] {
            assert!(filter.matches(name), "{name}");
        }
        for name in ["order", "orders2", "axb", "audit-", "audit-7x", "xaudit-7"] {
            assert!(!filter.matches(name), "{name}");
        }
    }

    #[test]
    fn a_pattern_matches_whole_names_only() {
        for pattern in ["a|ab", "ab|a", "(?x) a | ab # or longer", "a|ab|^x", "(?:a|ab)$"] {
            let filter = filter(&[], Some(pattern)).unwrap();
            assert!(filter.matches("a") && filter.matches("ab"), "{pattern}");
            assert!(!filter.matches("abc") && !filter.matches("xab") && !filter.matches("a\n"), "{pattern}");
        }
    }

    #[test]
    fn a_bad_pattern_is_refused_with_what_is_wrong_in_it() {
        let syntax = |pattern| match filter(&[], Some(pattern)) {
            Err(PatternError::Syntax(problem)) => problem,
            other => panic!("{pattern}: {other:?}"),
        };
        assert!(syntax("a[b").contains("unclosed character class"), "{}", syntax("a[b"));
        assert!(syntax("a)(b").contains("unopened group"), "{}", syntax("a)(b"));
        let nested = format!("{}a{}", "(".repeat(60), ")".repeat(60));
        assert!(syntax(&nested).contains("nest"), "{}", syntax(&nested));
        assert_eq!(filter(&[], Some(r"\w{500}")).unwrap_err(), PatternError::TooBig);
        assert_eq!(
            filter(&[], Some(&"a".repeat(1_025))).unwrap_err(),
            PatternError::TooLong { bytes: 1_025 }
        );
        assert!(filter(&[], Some(&"a".repeat(1_024))).is_ok());
    }

    #[test]
    fn a_view_gives_the_ids_of_what_is_wanted() {
        let view = TopicView::new(
            [("orders", 1, 2), ("audit-1", 2, 1), ("audit-2", 5, 1)]
                .map(|(name, id, count)| (Arc::from(name), TopicId(id), vec![Vec::new(); count])),
        );
        assert_eq!(view.matching(&filter(&["orders"], None).unwrap()), BTreeSet::from([TopicId(1)]));
        let audits = filter(&["absent"], Some("audit-.*")).unwrap();
        assert_eq!(view.matching(&audits), BTreeSet::from([TopicId(2), TopicId(5)]));
    }
}
