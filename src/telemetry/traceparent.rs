//! W3C trace context on the wire: `traceparent` and `tracestate`.
//!
//! Parsing takes bytes from anywhere, is strict, never panics, and allocates only for a `tracestate` that is kept.

use std::fmt;

use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceId, TraceState};

/// The length of a version 00 `traceparent`.
pub const TRACEPARENT_LENGTH: usize = 55;

/// The longest `tracestate` that is passed on, in bytes; a longer one is dropped as a whole.
pub const TRACESTATE_MAX: usize = 4096;

/// The number of `tracestate` members that the standard allows.
const TRACESTATE_MEMBERS_MAX: usize = 32;

/// The names of a trace and of one span in it. All zeros mean that there is none.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct TraceIds {
    /// The trace.
    pub trace: [u8; 16],
    /// The span.
    pub span: [u8; 8],
}

impl TraceIds {
    /// Whether both names are valid, that is not zero.
    pub fn is_valid(&self) -> bool {
        self.trace != [0; 16] && self.span != [0; 8]
    }

    /// The trace's name as 32 lower-case hexadecimal digits.
    pub fn trace_hex(&self) -> String {
        hex(&self.trace)
    }

    /// The span's name as 16 lower-case hexadecimal digits.
    pub fn span_hex(&self) -> String {
        hex(&self.span)
    }

    /// The ids of `context`.
    pub fn of(context: &SpanContext) -> Self {
        TraceIds { trace: context.trace_id().to_bytes(), span: context.span_id().to_bytes() }
    }

    /// A remote span context with these ids.
    pub fn remote(&self, sampled: bool, state: TraceState) -> SpanContext {
        SpanContext::new(
            TraceId::from_bytes(self.trace),
            SpanId::from_bytes(self.span),
            TraceFlags::default().with_sampled(sampled),
            true,
            state,
        )
    }
}

impl fmt::Debug for TraceIds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.trace_hex(), self.span_hex())
    }
}

/// A parsed `traceparent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceParent {
    /// The caller's span; valid.
    pub ids: TraceIds,
    /// Whether the caller records its span.
    pub sampled: bool,
}

impl TraceParent {
    /// Reads a header. None if it is malformed in any way: the request then starts a trace of its own.
    pub fn parse(header: &[u8]) -> Option<Self> {
        let (head, rest) = header.split_at_checked(TRACEPARENT_LENGTH)?;
        let mut version = [0];
        unhex(&head[..2], &mut version)?;
        match version[0] {
            0xff => return None,
            0 if !rest.is_empty() => return None,
            // A later version may append fields, after another dash.
            _ if rest.first().is_some_and(|byte| *byte != b'-') => return None,
            _ => {}
        }
        if [2, 35, 52].iter().any(|at| head[*at] != b'-') {
            return None;
        }
        let mut ids = TraceIds::default();
        let mut flags = [0];
        unhex(&head[3..35], &mut ids.trace)?;
        unhex(&head[36..52], &mut ids.span)?;
        unhex(&head[53..55], &mut flags)?;
        ids.is_valid().then_some(TraceParent { ids, sampled: flags[0] & 1 == 1 })
    }

    /// The header, in version 00.
    pub fn format(&self) -> [u8; TRACEPARENT_LENGTH] {
        let mut header = *b"00-00000000000000000000000000000000-0000000000000000-00";
        hex_into(&self.ids.trace, &mut header[3..35]);
        hex_into(&self.ids.span, &mut header[36..52]);
        header[54] = b'0' + u8::from(self.sampled);
        header
    }
}

/// Reads a `tracestate` header. None if it is malformed or too long: it is then dropped, while `traceparent` counts.
pub fn parse_tracestate(header: &[u8]) -> Option<TraceState> {
    if header.len() > TRACESTATE_MAX {
        return None;
    }
    let text = std::str::from_utf8(header).ok()?;
    let mut members: Vec<(&str, &str)> = Vec::new();
    for member in text.split(',').map(|member| member.trim_matches([' ', '\t'])) {
        if member.is_empty() {
            continue;
        }
        let (key, value) = member.split_once('=')?;
        let new = members.iter().all(|(other, _)| *other != key);
        if !new || !valid_key(key) || !valid_value(value) || members.len() == TRACESTATE_MEMBERS_MAX {
            return None;
        }
        members.push((key, value));
    }
    TraceState::from_key_value(members).ok()
}

/// `key`, or `tenant@system` with at most 241 and 14 characters.
fn valid_key(key: &str) -> bool {
    let part = |part: &str, longest: usize, digit_first: bool| {
        let first = part.bytes().next();
        part.len() <= longest
            && first.is_some_and(|byte| byte.is_ascii_lowercase() || (digit_first && byte.is_ascii_digit()))
            && part
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-*/".contains(&byte))
    };
    match key.split_once('@') {
        Some((tenant, system)) => part(tenant, 241, true) && part(system, 14, false),
        None => part(key, 256, false),
    }
}

fn valid_value(value: &str) -> bool {
    (1..=256).contains(&value.len())
        && !value.ends_with(' ')
        && value.bytes().all(|byte| (0x20..=0x7e).contains(&byte) && byte != b',' && byte != b'=')
}

const DIGITS: &[u8; 16] = b"0123456789abcdef";

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .map(|digit| char::from(DIGITS[digit as usize]))
        .collect()
}

fn hex_into(bytes: &[u8], out: &mut [u8]) {
    for (byte, pair) in bytes.iter().zip(out.chunks_exact_mut(2)) {
        pair.copy_from_slice(&[DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
    }
}

/// Only lower-case digits: the standard forbids others.
fn unhex(digits: &[u8], out: &mut [u8]) -> Option<()> {
    let value = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    for (pair, byte) in digits.chunks_exact(2).zip(out) {
        *byte = value(pair[0])? << 4 | value(pair[1])?;
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const VALID: &[u8] = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn reads_and_writes_the_example_of_the_standard() {
        let parsed = TraceParent::parse(VALID).expect("valid");
        assert!(parsed.sampled);
        assert_eq!(parsed.ids.trace_hex(), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(parsed.ids.span_hex(), "b7ad6b7169203331");
        assert_eq!(parsed.format(), VALID);
    }

    #[test]
    fn accepts_a_later_version_with_more_fields() {
        let header = b"cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-what-the-future-will-be";
        assert!(TraceParent::parse(header).is_some());
    }

    #[test]
    fn rejects_malformed_headers() {
        let valid = std::str::from_utf8(VALID).expect("ascii");
        let malformed = [
            String::new(),
            valid[..54].to_owned(),
            format!("{valid}0"),
            format!("{valid}-00"),
            valid.to_uppercase(),
            valid.replacen("00-", "ff-", 1),
            valid.replacen("00-", "0g-", 1),
            valid.replace('-', "_"),
            valid.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32)),
            valid.replace("b7ad6b7169203331", &"0".repeat(16)),
            valid.replacen("00-", "cc-", 1) + ".more",
        ];
        for header in malformed {
            assert_eq!(TraceParent::parse(header.as_bytes()), None, "{header}");
        }
    }

    #[test]
    fn keeps_a_valid_tracestate_and_its_order() {
        let state = parse_tracestate(b"rojo=00f067aa0ba902b7, congo=t61rcWkgMzE,,1t@sys=x y").expect("valid");
        assert_eq!(state.header(), "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE,1t@sys=x y");
    }

    #[test]
    fn drops_a_malformed_tracestate() {
        let many: String = (0..33).map(|n| format!("k{n}=v,")).collect();
        let long = format!("k={}", "v".repeat(257));
        for header in ["Key=v", "1key=v", "k", "k=", "k=a=b", "k=v,k=w", "k=\u{e9}", "@s=v", &many, &long] {
            assert!(parse_tracestate(header.as_bytes()).is_none(), "{header}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = TraceParent::parse(&bytes);
            let _ = parse_tracestate(&bytes);
        }

        #[test]
        fn round_trips(trace in any::<[u8; 16]>(), span in any::<[u8; 8]>(), sampled: bool) {
            let parent = TraceParent { ids: TraceIds { trace, span }, sampled };
            let expected = parent.ids.is_valid().then_some(parent);
            prop_assert_eq!(TraceParent::parse(&parent.format()), expected);
        }
    }
}
