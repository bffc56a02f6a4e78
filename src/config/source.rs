//! A setting as one source gives it.

use std::fmt;
use std::path::PathBuf;

use serde_json::Value;

use super::Mistake;

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Built in.
    Default,
    /// A line of a file.
    File {
        /// The file.
        path: PathBuf,
        /// From 1; 0 if the file as a whole is meant.
        line: usize,
    },
    /// An environment variable.
    Environment {
        /// Its name.
        variable: String,
    },
    /// A flag.
    Flag {
        /// Its name, with dashes.
        name: String,
    },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File { path, line: 0 } => write!(f, "{}", path.display()),
            Origin::File { path, line } => write!(f, "{}:{line}", path.display()),
            Origin::Environment { variable } => write!(f, "{variable}"),
            Origin::Flag { name } => f.write_str(name),
        }
    }
}

/// What a source gives for a setting.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Given {
    /// A value with a type.
    Typed(Value),
    /// Text whose type follows from the setting.
    Text(String),
}

/// One setting from one source.
#[derive(Clone, Debug, PartialEq)]
pub struct Setting {
    /// Path with dots between the levels.
    pub(super) key: String,
    pub(super) given: Given,
    pub(super) origin: Origin,
}

impl Setting {
    /// The value of the flag `name` (with dashes), which stands for the setting `key`.
    #[must_use]
    pub fn flag(name: &str, key: &str, value: impl Into<String>) -> Setting {
        let origin = Origin::Flag { name: name.to_owned() };
        Setting { key: key.to_owned(), given: Given::Text(value.into()), origin }
    }

    /// The setting of `--set KEY=VALUE`.
    ///
    /// # Errors
    /// If there is no `=`, or nothing before it.
    pub fn assignment(text: &str) -> Result<Setting, Mistake> {
        match text.split_once('=') {
            Some((key, value)) if !key.trim().is_empty() => Ok(Setting::flag("--set", key.trim(), value)),
            _ => Err(Mistake {
                origin: Origin::Flag { name: "--set".to_owned() },
                key: text.to_owned(),
                what: "must have the form section.key=value".to_owned(),
                suggestion: None,
            }),
        }
    }
}
