//! Brokers as the subject of a sentence.

use std::fmt::Display;

/// The words for one broker, or for several.
#[derive(Debug)]
pub struct Words {
    /// `broker 2`, or `brokers 2, 3`.
    pub brokers: String,
    /// `is`, or `are`.
    pub are: &'static str,
    /// `it`, or `them`.
    pub them: &'static str,
}

impl Words {
    /// The words for these, which are not none.
    pub fn of(ids: &[impl Display]) -> Self {
        let names = ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        match ids.len() {
            1 => Words { brokers: format!("broker {names}"), are: "is", them: "it" },
            _ => Words { brokers: format!("brokers {names}"), are: "are", them: "them" },
        }
    }
}
