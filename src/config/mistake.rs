//! What is wrong with a configuration.

use std::fmt;

use super::Origin;

/// A value that a module's own check refuses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The setting's path with dots between the levels.
    pub key: String,
    /// What is wrong, without the key.
    pub what: String,
}

impl Problem {
    /// The problems of a section, given by the names of its settings.
    pub(super) fn of_section(
        section: &str,
        problems: impl IntoIterator<Item = (impl fmt::Display, String)>,
    ) -> Vec<Problem> {
        let problem = |(name, what)| Problem { key: format!("{section}.{name}"), what };
        problems.into_iter().map(problem).collect()
    }
}

/// One mistake in one source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// Where it is.
    pub origin: Origin,
    /// The setting, as written there; empty if no single setting is concerned.
    pub key: String,
    /// What is wrong.
    pub what: String,
    /// What was probably meant.
    pub suggestion: Option<String>,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.origin)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.what)?;
        match &self.suggestion {
            Some(suggestion) => write!(f, "; did you mean {suggestion}?"),
            None => Ok(()),
        }
    }
}

/// Every mistake of a configuration; at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistakes(pub Vec<Mistake>);

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.len() {
            1 => f.write_str("the configuration has a mistake:")?,
            count => write!(f, "the configuration has {count} mistakes:")?,
        }
        self.0.iter().try_for_each(|mistake| write!(f, "\n  {mistake}"))
    }
}

impl std::error::Error for Mistakes {}
