//! Numbers as people read them.

/// A number of things: 950, 12.3k, 4.5M.
pub(super) fn count(number: f64) -> String {
    scaled(number, 1_000.0, ["", "k", "M", "G", "T"])
}

/// Bytes: 950 B, 12.3 KiB.
pub(super) fn bytes(number: f64) -> String {
    scaled(number, 1_024.0, [" B", " KiB", " MiB", " GiB", " TiB"])
}

/// A duration in seconds: 120 µs, 4.5 ms, 12 s; a dash if there is none.
pub(super) fn seconds(seconds: Option<f64>) -> String {
    match seconds {
        None => "-".to_owned(),
        Some(0.0) => "0 s".to_owned(),
        Some(seconds) if seconds < 0.001 => format!("{:.0} µs", seconds * 1e6),
        Some(seconds) if seconds < 1.0 => format!("{:.1} ms", seconds * 1e3),
        Some(seconds) if seconds < 120.0 => format!("{seconds:.1} s"),
        Some(seconds) if seconds < 7_200.0 => format!("{:.0} min", seconds / 60.0),
        Some(seconds) => format!("{:.1} h", seconds / 3_600.0),
    }
}

fn scaled(number: f64, step: f64, units: [&str; 5]) -> String {
    let mut value = number;
    let mut unit = 0;
    while value >= step && unit + 1 < units.len() {
        value /= step;
        unit += 1;
    }
    match value {
        value if unit == 0 && (value >= 10.0 || value.fract() == 0.0) => format!("{value:.0}{}", units[0]),
        value => format!("{value:.1}{}", units[unit]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        assert_eq!(
            [0.0, 0.5, 42.4, 999.0, 12_345.0, 4.5e6].map(count),
            ["0", "0.5", "42", "999", "12.3k", "4.5M"]
        );
        assert_eq!([0.0, 2_048.0, 5.5e9].map(bytes), ["0 B", "2.0 KiB", "5.1 GiB"]);
        let durations = [0.0, 0.000_12, 0.004_5, 3.25, 300.0, 7_200.0].map(|value| seconds(Some(value)));
        assert_eq!(durations, ["0 s", "120 µs", "4.5 ms", "3.2 s", "5 min", "2.0 h"]);
        assert_eq!(seconds(None), "-");
    }
}
