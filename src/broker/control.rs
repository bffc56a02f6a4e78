//! Settings of telemetry that are changed while the broker runs.

use std::time::{Duration, SystemTime};

use super::{Broker, Error};
use crate::telemetry::{Change, Control, LogOverride, Override, OverrideError, SamplingOverride};

/// How long a change may be in force.
const DURATION_MIN: Duration = Duration::from_secs(1);
const DURATION_MAX: Duration = Duration::from_secs(24 * 3600);
/// Longest filter, and longest name and reason of whoever asks, in bytes. Brokers add an address and a user agent to the
/// name.
const FILTER_BYTES_MAX: usize = 4 << 10;
const TEXT_BYTES_MAX: usize = 255;
const NAME_BYTES_MAX: usize = 1 << 10;
/// Wall clocks are set now and then, so the time that is left is not slept through at once.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Who wants something changed, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Order {
    /// Who.
    pub by: String,
    /// Why; may be empty.
    pub reason: String,
}

/// What is in force, and what the configuration says.
#[derive(Clone, Debug, PartialEq)]
pub struct Overrides {
    /// The log filter of the configuration.
    pub configured_log_filter: String,
    /// The one in force instead.
    pub log: Option<LogOverride>,
    /// The share of traces of the configuration.
    pub configured_ratio: f64,
    /// Those in force instead.
    pub sampling: Vec<SamplingOverride>,
    /// Whether traces are exported.
    pub traces_exported: bool,
    /// Whether there are traces at all.
    pub traces_enabled: bool,
}

impl Broker {
    /// What is in force.
    pub fn overrides(&self) -> Overrides {
        let control = &self.0.control;
        let ((filter, log), (configured_ratio, sampling)) = (control.log(), control.sampling());
        Overrides {
            configured_log_filter: filter.to_owned(),
            log,
            configured_ratio,
            sampling,
            traces_exported: control.traces_exported(),
            traces_enabled: control.traces_enabled(),
        }
    }

    /// Logs by another filter for a while.
    ///
    /// # Errors
    /// The filter is malformed, or the duration out of range.
    pub fn set_log_filter(&self, filter: &str, duration: Duration, order: Order) -> Result<(), Error> {
        if filter.len() > FILTER_BYTES_MAX {
            let problem = format!("has {} bytes, at most {FILTER_BYTES_MAX} are allowed", filter.len());
            return Err(invalid("filter", problem));
        }
        let terms = self.terms(duration, order)?;
        let change = self.0.control.set_log(filter, terms.clone()).map_err(refused)?;
        self.changed("set", &change, &terms);
        Ok(())
    }

    /// Logs as configured again.
    ///
    /// # Errors
    /// A text of the order is too long.
    pub fn clear_log_filter(&self, order: &Order) -> Result<(), Error> {
        check(order)?;
        if let Some(change) = self.0.control.clear_log() {
            Control::audit("clear", &change, &order.by, &order.reason, None);
        }
        Ok(())
    }

    /// Traces another share of requests for a while: of those that produce to `topic`, or of all if it is empty.
    ///
    /// # Errors
    /// The share or the duration is out of range, the topic cannot have that name, there are too many, or traces are off.
    pub fn set_sampling(
        &self,
        topic: &str,
        ratio: f64,
        duration: Duration,
        order: Order,
    ) -> Result<(), Error> {
        let topic = scope(topic)?;
        let terms = self.terms(duration, order)?;
        let change = self.0.control.set_sampling(topic, ratio, terms.clone()).map_err(refused)?;
        self.changed("set", &change, &terms);
        Ok(())
    }

    /// Traces as configured again: requests that produce to `topic`, or all of them if it is empty, or with `all` whatever
    /// was changed.
    ///
    /// # Errors
    /// A text of the order is too long, the topic cannot have that name, or both `topic` and `all` are given.
    pub fn clear_sampling(&self, topic: &str, all: bool, order: &Order) -> Result<(), Error> {
        check(order)?;
        let topic = scope(topic)?;
        let changes = match (all, topic) {
            (true, Some(_)) => return Err(invalid("all", "cannot be given together with topic".to_owned())),
            (true, None) => self.0.control.clear_all_sampling(),
            (false, topic) => self.0.control.clear_sampling(topic.as_deref()).into_iter().collect(),
        };
        for change in changes {
            Control::audit("clear", &change, &order.by, &order.reason, None);
        }
        Ok(())
    }

    /// Ends what is over, until it is dropped.
    pub async fn keep_overrides(self) {
        loop {
            let changed = self.0.overrides_changed.notified();
            let now = self.now().to_system_time();
            for (change, terms) in self.0.control.expire(now) {
                Control::audit("expire", &change, &terms.by, &terms.reason, None);
            }
            match self.0.control.next_expiry() {
                Some(next) => {
                    let left = next.duration_since(now).unwrap_or_default();
                    let _ = tokio::time::timeout(left.min(LOOK_EVERY), changed).await;
                }
                None => changed.await,
            }
        }
    }

    fn terms(&self, duration: Duration, order: Order) -> Result<Override, Error> {
        check(&order)?;
        if !(DURATION_MIN..=DURATION_MAX).contains(&duration) {
            let problem = format!("{duration:?} is not from 1 s to 24 h");
            return Err(invalid("terms.duration", problem));
        }
        let set_at: SystemTime = self.now().to_system_time();
        Ok(Override { by: order.by, reason: order.reason, set_at, expires_at: set_at + duration })
    }

    fn changed(&self, action: &'static str, change: &Change, terms: &Override) {
        Control::audit(action, change, &terms.by, &terms.reason, Some(terms.expires_at));
        self.0.overrides_changed.notify_one();
    }
}

fn scope(topic: &str) -> Result<Option<String>, Error> {
    if topic.is_empty() {
        return Ok(None);
    }
    crate::metadata::validate_name(topic).map_err(|error| invalid("topic", error.to_string()))?;
    Ok(Some(topic.to_owned()))
}

fn check(order: &Order) -> Result<(), Error> {
    let texts =
        [("terms.requested_by", &order.by, NAME_BYTES_MAX), ("terms.reason", &order.reason, TEXT_BYTES_MAX)];
    for (field, text, most) in texts {
        if text.len() > most {
            return Err(invalid(field, format!("has {} bytes, at most {most} are allowed", text.len())));
        }
    }
    Ok(())
}

fn refused(error: OverrideError) -> Error {
    let field = match error {
        OverrideError::Filter(_) => "filter",
        OverrideError::TooManyTopics => "topic",
        OverrideError::Ratio(_) | OverrideError::TracesOff => "ratio",
    };
    invalid(field, error.to_string())
}

fn invalid(field: &'static str, problem: String) -> Error {
    Error::InvalidArgument { field, problem }
}
