//! How long to wait before the next attempt.

use std::time::Duration;

use super::Error;

/// Nominal time that is not exceeded while a leader is waited for: an election takes a second or two, and who
/// oversleeps its end keeps records waiting for nothing.
const LEADER_POLL_MAX: Duration = Duration::from_millis(400);

/// Waiting times that double from attempt to attempt. Each is drawn between half of its nominal value and all of
/// it, so that clients that failed together do not come back together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// Nominal time before the first retry. Default 50 ms.
    pub initial: Duration,
    /// Nominal time that is not exceeded. Default 2 s; while a leader or a broker is waited for no more than 400 ms.
    pub max: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Backoff { initial: Duration::from_millis(50), max: Duration::from_secs(2) }
    }
}

impl Backoff {
    /// The time to wait after `failures` failed attempts in a row, the last of which failed with `error`.
    pub(super) fn delay_after(&self, failures: u32, error: &Error) -> Duration {
        let max = if error.awaits_leader() { self.max.min(LEADER_POLL_MAX) } else { self.max };
        Backoff { max, ..*self }.delay(failures, error.retry_after())
    }

    /// The time to wait after `failures` failed attempts in a row, but at least `asked`, which the broker may have
    /// asked for.
    pub(super) fn delay(&self, failures: u32, asked: Option<Duration>) -> Duration {
        let doublings = failures.saturating_sub(1).min(20);
        let nominal = self.initial.saturating_mul(1 << doublings).min(self.max);
        let jittered = nominal.mul_f64(rand::random_range(0.5..=1.0));
        jittered.max(asked.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_with_jitter_up_to_the_maximum() {
        let backoff = Backoff::default();
        for (failures, nominal) in [(1, 50), (2, 100), (3, 200), (9, 2000), (u32::MAX, 2000)] {
            let delay = backoff.delay(failures, None);
            let nominal = Duration::from_millis(nominal);
            assert!(delay >= nominal / 2 && delay <= nominal, "{failures}: {delay:?}");
        }
    }

    #[test]
    fn an_election_is_not_slept_through() {
        let backoff = Backoff::default();
        let nominal = Duration::from_millis(400);
        for error in [
            Error::no_leader("t", 0),
            Error::no_leader("t", 0).at("t", 0),
            Error::Unreachable { address: "a".to_owned(), reason: "refused".to_owned() },
        ] {
            for failures in [4, 9, u32::MAX] {
                let delay = backoff.delay_after(failures, &error);
                assert!(delay >= nominal / 2 && delay <= nominal, "{failures}: {delay:?}");
            }
        }
        let quick = Backoff { max: Duration::from_millis(5), ..backoff };
        assert!(quick.delay_after(9, &Error::no_leader("t", 0)) <= quick.max);
        let busy = Error::OutcomeUnknown { reason: String::new() };
        assert!(backoff.delay_after(9, &busy) >= Duration::from_secs(1));
    }

    #[test]
    fn waits_at_least_as_long_as_the_broker_asks() {
        let asked = Duration::from_secs(7);
        assert_eq!(Backoff::default().delay(1, Some(asked)), asked);
    }
}
