//! Changing what brokers log and trace, for a while.

use std::time::{Duration, SystemTime};

use super::Admin;
use crate::client::Error;
use crate::client::connection::Broker;
use crate::client::routing::Repeat;
use crate::proto::v1;

/// For how long something is changed, by whom, why and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OverrideTerms {
    duration: Duration,
    requested_by: String,
    reason: String,
    only_this_broker: bool,
}

impl OverrideTerms {
    /// A change that is in force for `duration`, from 1 s to 24 h, at every broker that is reached.
    #[must_use]
    pub fn new(duration: Duration) -> Self {
        OverrideTerms {
            duration,
            requested_by: String::new(),
            reason: String::new(),
            only_this_broker: false,
        }
    }

    /// Who asks, for the audit; at most 255 bytes.
    #[must_use]
    pub fn requested_by(mut self, name: impl Into<String>) -> Self {
        self.requested_by = name.into();
        self
    }

    /// Why, for the audit; at most 255 bytes.
    #[must_use]
    pub fn reason(mut self, reason: impl Into<String>) -> Self {
        self.reason = reason.into();
        self
    }

    /// Changes only the broker that gets the call.
    #[must_use]
    pub fn only_this_broker(mut self, only_this_broker: bool) -> Self {
        self.only_this_broker = only_this_broker;
        self
    }
}

impl From<OverrideTerms> for v1::OverrideTerms {
    fn from(terms: OverrideTerms) -> Self {
        v1::OverrideTerms {
            // The broker says what is wrong with one that the protocol cannot hold, or with a longer one.
            duration: terms.duration.try_into().ok(),
            requested_by: terms.requested_by,
            reason: terms.reason,
            only_this_broker: terms.only_this_broker,
        }
    }
}

/// What a share of traces is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SamplingScope {
    /// All requests.
    All,
    /// Requests that produce to this topic.
    Topic(String),
}

impl SamplingScope {
    fn topic(self) -> String {
        match self {
            SamplingScope::All => String::new(),
            SamplingScope::Topic(topic) => topic,
        }
    }
}

/// What became of a change at one broker.
#[derive(Clone, Debug)]
pub struct ControlOutcome {
    /// The broker.
    pub broker_id: u64,
    /// Why nothing was changed there, if nothing was.
    pub error: Option<Error>,
}

/// What is in force at a broker.
#[derive(Clone, Debug, PartialEq)]
pub struct Overrides {
    /// The broker.
    pub broker_id: u64,
    /// The log filter of its configuration.
    pub configured_log_filter: String,
    /// The one that is in force instead.
    pub log_filter: Option<LogFilterOverride>,
    /// The share of traces of its configuration.
    pub configured_ratio: f64,
    /// Those that are in force instead: that of all requests first, then by topic.
    pub sampling: Vec<SamplingOverride>,
    /// Whether traces are exported.
    pub traces_exported: bool,
    /// Whether there are traces at all.
    pub traces_enabled: bool,
}

/// A log filter that is in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogFilterOverride {
    /// The filter.
    pub filter: String,
    /// Since when, until when, by whom.
    pub terms: TermsInForce,
}

/// A share of traces that is in force.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingOverride {
    /// What it is for.
    pub scope: SamplingScope,
    /// The share, from 0 to 1.
    pub ratio: f64,
    /// Since when, until when, by whom.
    pub terms: TermsInForce,
}

/// Since when something is in force, until when, and by whom.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TermsInForce {
    /// Who asked, with address and user agent.
    pub requested_by: String,
    /// Why; may be empty.
    pub reason: String,
    /// Since when.
    pub set: Option<SystemTime>,
    /// Until when.
    pub expires: Option<SystemTime>,
}

fn time(time: Option<prost_types::Timestamp>) -> Option<SystemTime> {
    time.and_then(|time| time.try_into().ok())
}

impl From<v1::ActiveOverride> for TermsInForce {
    fn from(terms: v1::ActiveOverride) -> Self {
        TermsInForce {
            requested_by: terms.requested_by,
            reason: terms.reason,
            set: time(terms.set_time),
            expires: time(terms.expire_time),
        }
    }
}

impl From<v1::GetOverridesResponse> for Overrides {
    fn from(answer: v1::GetOverridesResponse) -> Self {
        let sampling = |one: v1::SamplingOverride| SamplingOverride {
            scope: if one.topic.is_empty() { SamplingScope::All } else { SamplingScope::Topic(one.topic) },
            ratio: one.ratio,
            terms: one.terms.unwrap_or_default().into(),
        };
        Overrides {
            broker_id: answer.broker_id,
            configured_log_filter: answer.configured_log_filter,
            log_filter: answer.log_filter.map(|log| LogFilterOverride {
                filter: log.filter,
                terms: log.terms.unwrap_or_default().into(),
            }),
            configured_ratio: answer.configured_ratio,
            sampling: answer.sampling.into_iter().map(sampling).collect(),
            traces_exported: answer.traces_exported,
            traces_enabled: answer.traces_enabled,
        }
    }
}

fn outcomes(outcomes: Vec<v1::ControlOutcome>) -> Vec<ControlOutcome> {
    let one = |one: v1::ControlOutcome| ControlOutcome {
        broker_id: one.broker_id,
        error: one.error.map(Error::from),
    };
    outcomes.into_iter().map(one).collect()
}

impl Admin {
    /// What is in force at the broker that answers.
    ///
    /// # Errors
    ///
    /// That no broker answered.
    pub async fn overrides(&self) -> Result<Overrides, Error> {
        let call =
            |broker: Broker| async move { broker.control().get_overrides(v1::GetOverridesRequest {}).await };
        Ok(self.router.call(Repeat::Harmless, call).await?.into())
    }

    /// Has brokers log by `filter`, such as `info,streambus::raft=debug`, for a while.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` for a malformed filter or terms out of range; then no broker has changed anything.
    pub async fn set_log_filter(
        &self,
        filter: &str,
        terms: OverrideTerms,
    ) -> Result<Vec<ControlOutcome>, Error> {
        let request = v1::SetLogFilterRequest { filter: filter.to_owned(), terms: Some(terms.into()) };
        let call = |broker: Broker| {
            let request = request.clone();
            async move { broker.control().set_log_filter(request).await }
        };
        Ok(outcomes(self.router.call(Repeat::Harmless, call).await?.outcomes))
    }

    /// Has brokers log as configured again. The duration of `terms` does not matter.
    ///
    /// # Errors
    ///
    /// That no broker answered.
    pub async fn clear_log_filter(&self, terms: OverrideTerms) -> Result<Vec<ControlOutcome>, Error> {
        let request = v1::ClearLogFilterRequest { terms: Some(terms.into()) };
        let call = |broker: Broker| {
            let request = request.clone();
            async move { broker.control().clear_log_filter(request).await }
        };
        Ok(outcomes(self.router.call(Repeat::Harmless, call).await?.outcomes))
    }

    /// Has brokers trace a share, from 0 to 1, of the requests without a caller's decision, for a while.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` for a share or terms out of range, or if the broker makes no traces; then no broker has changed
    /// anything.
    pub async fn set_sampling(
        &self,
        scope: SamplingScope,
        ratio: f64,
        terms: OverrideTerms,
    ) -> Result<Vec<ControlOutcome>, Error> {
        let request = v1::SetSamplingRequest { topic: scope.topic(), ratio, terms: Some(terms.into()) };
        let call = |broker: Broker| {
            let request = request.clone();
            async move { broker.control().set_sampling(request).await }
        };
        Ok(outcomes(self.router.call(Repeat::Harmless, call).await?.outcomes))
    }

    /// Has brokers trace as configured again: for one scope, or for all that was changed if there is none. The duration of
    /// `terms` does not matter.
    ///
    /// # Errors
    ///
    /// That no broker answered.
    pub async fn clear_sampling(
        &self,
        scope: Option<SamplingScope>,
        terms: OverrideTerms,
    ) -> Result<Vec<ControlOutcome>, Error> {
        let all = scope.is_none();
        let topic = scope.map(SamplingScope::topic).unwrap_or_default();
        let request = v1::ClearSamplingRequest { topic, all, terms: Some(terms.into()) };
        let call = |broker: Broker| {
            let request = request.clone();
            async move { broker.control().clear_sampling(request).await }
        };
        Ok(outcomes(self.router.call(Repeat::Harmless, call).await?.outcomes))
    }
}
