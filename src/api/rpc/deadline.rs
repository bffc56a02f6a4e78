//! How long a client waits for its answer.

use std::time::{Duration, Instant};

use hyper::http::HeaderMap;

const GRPC_TIMEOUT: &str = "grpc-timeout";
/// The most that an answer is sent before its deadline, so that it is there in time.
const MARGIN_MAX: Duration = Duration::from_millis(100);

/// When the client gives a call up.
#[derive(Clone, Copy, Debug)]
pub(in crate::api) struct Deadline {
    at: Instant,
}

impl Deadline {
    /// The deadline in a call's headers. One that cannot be understood, or is centuries away, is none.
    pub(super) fn of(headers: &HeaderMap, started: Instant) -> Option<Self> {
        let timeout = parse(headers.get(GRPC_TIMEOUT)?.as_bytes())?;
        Some(Deadline { at: started.checked_add(timeout)? })
    }

    pub(super) fn at(self) -> Instant {
        self.at
    }

    /// How long a handler may wait for something to answer with and still answer in time.
    pub(in crate::api) fn wait_max(self) -> Duration {
        let left = self.at.saturating_duration_since(Instant::now());
        left - MARGIN_MAX.min(left / 10)
    }
}

/// At most eight digits and a unit.
fn parse(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = std::str::from_utf8(digits).ok()?.parse::<u64>().ok()?;
    Some(match unit {
        b'H' => Duration::from_secs(number * 3_600),
        b'M' => Duration::from_secs(number * 60),
        b'S' => Duration::from_secs(number),
        b'm' => Duration::from_millis(number),
        b'u' => Duration::from_micros(number),
        b'n' => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_in_all_units() {
        let cases: [(&[u8], Option<Duration>); 13] = [
            (b"2H", Some(Duration::from_secs(7_200))),
            (b"3M", Some(Duration::from_secs(180))),
            (b"10S", Some(Duration::from_secs(10))),
            (b"250m", Some(Duration::from_millis(250))),
            (b"99999999u", Some(Duration::from_micros(99_999_999))),
            (b"0n", Some(Duration::ZERO)),
            (b"", None),
            (b"S", None),
            (b"10", None),
            (b"10s", None),
            (b"-1S", None),
            (b"+1S", None),
            (b"123456789m", None),
        ];
        for (value, timeout) in cases {
            assert_eq!(parse(value), timeout, "{}", String::from_utf8_lossy(value));
        }
    }

    #[test]
    fn a_handler_waits_for_less_than_the_client_does() {
        let now = Instant::now();
        let wait = |left| Deadline { at: now + left }.wait_max();
        assert!(wait(Duration::from_secs(3_600)) <= Duration::from_millis(3_599_900));
        assert!(wait(Duration::from_millis(100)) <= Duration::from_millis(90));
        assert_eq!(wait(Duration::ZERO), Duration::ZERO);
    }
}
