//! Sizes and durations as people write them, `64MiB` and `1h30m`, for settings and for the command line; moments as RFC
//! 3339 has them.
//!
//! A setting keeps its plain type and names the form that it has in files:
//!
//! ```
//! use std::time::Duration;
//!
//! #[derive(serde::Serialize, serde::Deserialize)]
//! struct Config {
//!     #[serde(with = "streambus::units::duration")]
//!     linger: Duration,
//!     #[serde(with = "streambus::units::size")]
//!     batch_bytes: u64,
//! }
//!
//! let config: Config = toml::from_str("linger = \"5ms\"\nbatch_bytes = \"1MiB\"").unwrap();
//! assert_eq!((config.linger, config.batch_bytes), (Duration::from_millis(5), 1_048_576));
//! ```

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Why a size or duration cannot be read. The text says what is accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Error(String);

const SIZE_UNITS: &[(&str, u128)] = &[
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("B", 1),
];

const DURATION_UNITS: &[(&str, u128)] = &[
    ("d", 86_400_000_000_000),
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("ns", 1),
];

/// A number of bytes: `512`, `64KiB` (1,024 bytes each), `1.5GB` (10^9 bytes each).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(pub u64);

impl FromStr for ByteSize {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        const FORM: &str = "a size such as 4096, 64KiB or 1GB";
        let text = text.trim();
        let (number, unit) = split_number(text);
        let scale = match unit {
            "" => Some(1),
            unit => {
                SIZE_UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)).map(|(_, scale)| *scale)
            }
        };
        let bytes = scale.and_then(|scale| scaled(number, scale)).and_then(|bytes| u64::try_from(bytes).ok());
        bytes.map(ByteSize).ok_or_else(|| Error(format!("\"{text}\" is not {FORM}")))
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = u128::from(self.0);
        let exact = SIZE_UNITS.iter().find(|(_, scale)| bytes >= *scale && bytes.is_multiple_of(*scale));
        match exact {
            Some((unit, scale)) if *scale > 1 => write!(f, "{}{unit}", bytes / scale),
            _ => write!(f, "{bytes}"),
        }
    }
}

/// A length of time: `250ms`, `1.5s`, `1h30m`, `7d`. Units are `ns`, `us`, `ms`, `s`, `m`, `h` and `d`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HumanDuration(pub Duration);

impl FromStr for HumanDuration {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let invalid = || Error(format!("\"{text}\" is not a duration such as 250ms, 5s, 1h30m or 7d"));
        let mut rest = text.trim();
        if rest == "0" {
            return Ok(HumanDuration(Duration::ZERO));
        }
        if rest.is_empty() {
            return Err(invalid());
        }
        let mut total: u128 = 0;
        while !rest.is_empty() {
            let (number, tail) = split_number(rest);
            let end = tail.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(tail.len());
            let (unit, tail) = tail.split_at(end);
            let scale = DURATION_UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(invalid)?.1;
            let part = scaled(number, scale).ok_or_else(invalid)?;
            total = total.checked_add(part).ok_or_else(invalid)?;
            rest = tail.trim_start();
        }
        let seconds = u64::try_from(total / 1_000_000_000).map_err(|_| invalid())?;
        // A remainder of a division by 10^9 fits in 32 bits.
        let nanos = (total % 1_000_000_000) as u32;
        Ok(HumanDuration(Duration::new(seconds, nanos)))
    }
}

impl fmt::Display for HumanDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.0.as_nanos();
        match DURATION_UNITS.iter().find(|(_, scale)| nanos >= *scale && nanos.is_multiple_of(*scale)) {
            Some((unit, scale)) => write!(f, "{}{unit}", nanos / scale),
            None => f.write_str("0s"),
        }
    }
}

/// Splits `12.5MiB` into `12.5` and `MiB`.
fn split_number(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.' && c != '_').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    (number, unit.trim_start())
}

/// `number` (digits, perhaps with a fraction) times `scale`, exactly; `None` if malformed, fractional or too large.
fn scaled(number: &str, scale: u128) -> Option<u128> {
    let number = number.replace('_', "");
    let (whole, fraction) = number.split_once('.').unwrap_or((&number, ""));
    if whole.is_empty() || fraction.len() > 18 || (fraction.is_empty() && number.contains('.')) {
        return None;
    }
    let whole = whole.parse::<u128>().ok()?.checked_mul(scale)?;
    if fraction.is_empty() {
        return Some(whole);
    }
    let divisor = 10_u128.pow(fraction.len() as u32);
    let part = fraction.parse::<u128>().ok()?.checked_mul(scale)?;
    part.is_multiple_of(divisor).then_some(())?;
    whole.checked_add(part / divisor)
}

struct SizeVisitor;

impl Visitor<'_> for SizeVisitor {
    type Value = ByteSize;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a size in bytes or with a unit, such as 4096 or \"64KiB\"")
    }

    fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<ByteSize, E> {
        Ok(ByteSize(bytes))
    }

    fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<ByteSize, E> {
        u64::try_from(bytes).map(ByteSize).map_err(|_| E::invalid_value(de::Unexpected::Signed(bytes), &self))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<ByteSize, E> {
        text.parse().map_err(E::custom)
    }
}

struct DurationVisitor;

impl Visitor<'_> for DurationVisitor {
    type Value = HumanDuration;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a duration with its unit, such as \"250ms\", \"5s\" or \"1h30m\"")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<HumanDuration, E> {
        text.parse().map_err(E::custom)
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SizeVisitor)
    }
}

impl Serialize for HumanDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for HumanDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(DurationVisitor)
    }
}

/// `#[serde(with = "crate::units::size")]` for a number of bytes of any unsigned integer type up to 64 bits.
/// Accepts `4096` and `"64KiB"`.
pub mod size {
    use super::{ByteSize, Deserialize, Deserializer, Serialize, Serializer, de};

    /// Writes the shortest exact form.
    pub fn serialize<T, S>(bytes: &T, serializer: S) -> Result<S::Ok, S::Error>
    where
        T: Copy + TryInto<u64>,
        S: Serializer,
    {
        let bytes = (*bytes).try_into().map_err(|_| serde::ser::Error::custom("size beyond 64 bits"))?;
        ByteSize(bytes).serialize(serializer)
    }

    /// Reads a number of bytes, or a text with a unit. Fails if it does not fit the setting's type.
    pub fn deserialize<'de, T, D>(deserializer: D) -> Result<T, D::Error>
    where
        T: TryFrom<u64>,
        D: Deserializer<'de>,
    {
        let size = ByteSize::deserialize(deserializer)?;
        T::try_from(size.0)
            .map_err(|_| de::Error::custom(format_args!("{size} is too large for this setting")))
    }
}

/// `#[serde(with = "crate::units::size_or_auto")]` for an optional number of bytes. `"auto"` stands for `None`.
pub mod size_or_auto {
    use super::{ByteSize, Deserializer, Serialize, Serializer, SizeVisitor, Visitor, de, fmt};

    /// Writes the shortest exact form, or `auto`.
    pub fn serialize<S: Serializer>(bytes: &Option<u64>, serializer: S) -> Result<S::Ok, S::Error> {
        match bytes {
            Some(bytes) => ByteSize(*bytes).serialize(serializer),
            None => serializer.serialize_str("auto"),
        }
    }

    /// Reads a number of bytes, a text with a unit, or `auto`.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
        deserializer.deserialize_any(SizeOrAuto)
    }

    struct SizeOrAuto;

    impl Visitor<'_> for SizeOrAuto {
        type Value = Option<u64>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            SizeVisitor.expecting(f)?;
            f.write_str(", or \"auto\"")
        }

        fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<Option<u64>, E> {
            Ok(Some(bytes))
        }

        fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<Option<u64>, E> {
            SizeVisitor.visit_i64(bytes).map(|size| Some(size.0))
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Option<u64>, E> {
            if text == "auto" {
                return Ok(None);
            }
            text.parse::<ByteSize>().map(|size| Some(size.0)).map_err(E::custom)
        }
    }
}

/// `#[serde(with = "crate::units::duration")]` for a [`Duration`]. Accepts `"250ms"`, not a bare number, whose unit
/// nobody could know.
pub mod duration {
    use super::{Deserialize, Deserializer, Duration, HumanDuration, Serialize, Serializer};

    /// Writes the largest unit that is exact.
    pub fn serialize<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        HumanDuration(*value).serialize(serializer)
    }

    /// Reads a text with units.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        HumanDuration::deserialize(deserializer).map(|value| value.0)
    }
}

/// `#[serde(with = "crate::units::optional_duration")]` for an `Option<Duration>`. `"none"` stands for `None`.
pub mod optional_duration {
    use super::{Deserialize, Deserializer, Duration, HumanDuration, Serialize, Serializer, de};

    /// Writes the largest unit that is exact, or `none`.
    pub fn serialize<S: Serializer>(value: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => HumanDuration(*value).serialize(serializer),
            None => serializer.serialize_str("none"),
        }
    }

    /// Reads a text with units, or `none`.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
        match String::deserialize(deserializer)?.as_str() {
            "none" => Ok(None),
            text => text.parse::<HumanDuration>().map(|value| Some(value.0)).map_err(de::Error::custom),
        }
    }
}

/// A moment in UTC, as RFC 3339 has it, with whole seconds. Times before 1970 become 1970.
pub fn rfc3339_seconds(at: SystemTime) -> String {
    let mut text = rfc3339_micros(at);
    text.replace_range("1970-01-01T00:00:00".len().., "Z");
    text
}

/// As [`rfc3339_seconds`], with microseconds.
pub fn rfc3339_micros(at: SystemTime) -> String {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = since.as_secs();
    let (year, month, day) = civil(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:06}Z", since.subsec_micros())
}

/// The Gregorian date that is `days` after 1970-01-01. Years are counted from March, so that the leap day is last.
fn civil(days: u64) -> (u64, u64, u64) {
    // Days since 0000-03-01, which begins an era of 400 years with 146,097 days.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_and_without_units() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("64KiB", 65_536),
            ("64 kib", 65_536),
            ("1.5GiB", 1_610_612_736),
            ("1MB", 1_000_000),
            ("2_000B", 2_000),
        ] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
    }

    #[test]
    fn sizes_that_mean_nothing_are_refused() {
        for text in ["", "KiB", "12M", "1.5", "-1", "1..5KiB", "1.KiB", "99999999999TiB", "5 parsecs"] {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_that_may_be_left_to_the_program_are_read_and_printed() {
        #[derive(Debug, PartialEq, Serialize, Deserialize)]
        struct Settings {
            #[serde(with = "size_or_auto")]
            size: Option<u64>,
        }
        for (text, size, printed) in [
            ("'auto'", None, "auto"),
            ("4096", Some(4096), "4KiB"),
            ("'64KiB'", Some(65_536), "64KiB"),
            ("0", Some(0), "0"),
        ] {
            let settings = toml::from_str::<Settings>(&format!("size = {text}")).expect(text);
            assert_eq!(settings, Settings { size });
            assert_eq!(toml::to_string(&settings).expect(text), format!("size = \"{printed}\"\n"));
        }
        for text in ["-1", "'Auto'", "true", "'12 parsecs'"] {
            let error = toml::from_str::<Settings>(&format!("size = {text}")).expect_err(text).to_string();
            assert!(error.contains("size"), "{error}");
        }
    }

    #[test]
    fn durations_are_read_in_one_or_several_units() {
        for (text, nanos) in [
            ("0", 0),
            ("250ms", 250_000_000),
            ("1.5s", 1_500_000_000),
            ("1h30m", 5_400_000_000_000),
            ("1m 30s", 90_000_000_000),
            ("7d", 604_800_000_000_000),
            ("10us", 10_000),
        ] {
            assert_eq!(text.parse(), Ok(HumanDuration(Duration::from_nanos(nanos))), "{text}");
        }
    }

    #[test]
    fn durations_without_a_unit_are_refused() {
        for text in ["", "5", "s", "5 minutes", "-5s", "1h30", "0.0000000001s"] {
            assert!(text.parse::<HumanDuration>().is_err(), "{text}");
        }
    }

    #[test]
    fn printed_values_read_back_the_same() {
        for bytes in [0, 1, 1000, 1024, 1_500_000, 512 << 20, u64::MAX] {
            assert_eq!(ByteSize(bytes).to_string().parse(), Ok(ByteSize(bytes)));
        }
        for nanos in [0, 1, 1_500_000_000, 86_400_000_000_000, 90_000_000_000] {
            let duration = HumanDuration(Duration::from_nanos(nanos));
            assert_eq!(duration.to_string().parse(), Ok(duration));
        }
        assert_eq!(ByteSize(64 << 20).to_string(), "64MiB");
        assert_eq!(HumanDuration(Duration::from_millis(1500)).to_string(), "1500ms");
    }

    #[test]
    fn moments_are_rfc_3339() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00"),
            (951_782_399, "2000-02-28T23:59:59"),
            (951_782_400, "2000-02-29T00:00:00"),
            (1_731_232_800, "2024-11-10T10:00:00"),
            (1_735_689_599, "2024-12-31T23:59:59"),
            (4_107_542_399, "2100-02-28T23:59:59"),
            (4_107_542_400, "2100-03-01T00:00:00"),
        ] {
            let at = UNIX_EPOCH + Duration::from_secs(seconds) + Duration::from_micros(7);
            assert_eq!(rfc3339_seconds(at), format!("{text}Z"));
            assert_eq!(rfc3339_micros(at), format!("{text}.000007Z"));
        }
        assert_eq!(rfc3339_seconds(UNIX_EPOCH - Duration::from_secs(1)), "1970-01-01T00:00:00Z");
    }
}
