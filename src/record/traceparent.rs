//! Recognising sampled trace contexts in record headers.

/// Name of the header that carries a record's W3C trace context.
pub(super) const HEADER: &[u8] = b"traceparent";

/// `version "-" trace-id "-" parent-id "-" trace-flags`.
const LEN: usize = 55;
const SAMPLED: u8 = 1;

/// Whether `value` is a valid W3C `traceparent` whose sampled flag is set.
#[inline]
pub(super) fn is_sampled(value: &[u8]) -> bool {
    // Most contexts are not sampled, so the flag decides first.
    value.len() >= LEN
        && hex_digit(value[LEN - 1]).is_some_and(|flags| flags & SAMPLED != 0)
        && is_valid(value)
}

fn is_valid(value: &[u8]) -> bool {
    let (known, more) = value.split_at(LEN);
    let (version, trace_id, parent_id, flags) = (&known[..2], &known[3..35], &known[36..52], &known[53..]);
    let all_hex =
        [version, trace_id, parent_id, flags].into_iter().flatten().all(|c| hex_digit(*c).is_some());
    let is_zero = |id: &[u8]| id.iter().all(|c| *c == b'0');
    // Later versions may append fields after another dash; version 00 ends here and ff does not exist.
    let end = more.is_empty() || (version != b"00" && more[0] == b'-');
    let dashes = known[2] == b'-' && known[35] == b'-' && known[52] == b'-';
    all_hex && dashes && end && version != b"ff" && !is_zero(trace_id) && !is_zero(parent_id)
}

/// The value of a lower-case hexadecimal digit.
fn hex_digit(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_sampled_contexts() {
        for sampled in [
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-03",
            "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what-comes-later",
        ] {
            assert!(is_sampled(sampled.as_bytes()), "{sampled}");
        }
    }

    #[test]
    fn refuses_unsampled_and_invalid_contexts() {
        for refused in [
            "",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-02",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01more",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00_4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473-600f067aa0ba902b7-01",
        ] {
            assert!(!is_sampled(refused.as_bytes()), "{refused}");
        }
    }
}
