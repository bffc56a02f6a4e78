//! What a failed call says, and where a failure is.

use std::collections::HashMap;
use std::fmt::Debug;

use tonic::{Code, Response, Status};
use tonic_types::StatusExt as _;

/// A failed call.
#[derive(Debug)]
pub struct Refusal {
    /// Its status.
    pub code: Code,
    /// For people.
    pub message: String,
    /// The reason of its `google.rpc.ErrorInfo`.
    pub reason: String,
    /// The facts of its `google.rpc.ErrorInfo`.
    pub facts: HashMap<String, String>,
    /// Whether it has a `google.rpc.RetryInfo` that says how long to wait.
    pub advises_retry: bool,
}

impl Refusal {
    /// The failure of a call that must fail.
    #[track_caller]
    pub fn of<T: Debug>(result: Result<Response<T>, Status>) -> Self {
        Self::from(result.expect_err("the call must be refused"))
    }

    /// Checks status and reason.
    #[track_caller]
    pub fn is(self, code: Code, reason: &str) -> Self {
        assert_eq!((self.code, self.reason.as_str()), (code, reason), "{self:?}");
        self
    }

    /// Checks that it is about this field of the request.
    #[track_caller]
    pub fn names_field(self, field: &str) -> Self {
        let refusal = self.is(Code::InvalidArgument, "INVALID_ARGUMENT");
        assert_eq!(refusal.fact("field"), field, "{refusal:?}");
        refusal
    }

    /// Checks that the message contains `text`.
    #[track_caller]
    pub fn says(self, text: &str) -> Self {
        assert!(self.message.contains(text), "{text:?} is not in {self:?}");
        self
    }

    /// Checks facts.
    #[track_caller]
    pub fn states(self, facts: &[(&str, &str)]) -> Self {
        for (name, value) in facts {
            assert_eq!(self.fact(name), *value, "{name} in {self:?}");
        }
        self
    }

    /// A fact.
    #[track_caller]
    pub fn fact(&self, name: &str) -> &str {
        self.facts.get(name).unwrap_or_else(|| panic!("no fact {name} in {self:?}"))
    }
}

impl From<Status> for Refusal {
    #[track_caller]
    fn from(status: Status) -> Self {
        let info = status.get_details_error_info().unwrap_or_else(|| panic!("no error info in {status:?}"));
        assert_eq!(info.domain, "streambus");
        let retry = status.get_details_retry_info().and_then(|info| info.retry_delay);
        Refusal {
            code: status.code(),
            message: status.message().to_owned(),
            reason: info.reason,
            facts: info.metadata,
            advises_retry: retry.is_some_and(|delay| !delay.is_zero()),
        }
    }
}
