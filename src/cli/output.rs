//! Printing answers.

use std::fmt::Display;
use std::io::{self, ErrorKind, Write as _};
use std::time::SystemTime;

use anyhow::Context as _;
use clap::ValueEnum;

/// How answers are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON document on one line.
    Json,
}

/// Whoever read standard output does not any more, which is no failure.
#[derive(Debug, thiserror::Error)]
#[error("standard output is closed")]
pub(super) struct Closed;

/// Turns a failure to write into [`Closed`] if it is that.
pub(super) fn written(result: io::Result<()>) -> anyhow::Result<()> {
    match result {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(Closed.into()),
        other => other.context("standard output cannot be written"),
    }
}

/// Prints a line.
pub(super) fn line(text: impl Display) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    written(writeln!(out, "{text}").and_then(|()| out.flush()))
}

/// Prints a line to standard error, where it does not matter whether anybody reads.
pub(super) fn note(text: impl Display) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Numbers, one after the other.
pub(super) fn list(ids: &[u64]) -> String {
    ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Rows below headings, in columns that are as wide as they need to be.
pub(super) fn table<const N: usize>(headings: [&str; N], rows: &[[String; N]]) -> anyhow::Result<()> {
    let mut widths = headings.map(|heading| heading.chars().count());
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    append_row(&mut text, &widths, &headings);
    for row in rows {
        append_row(&mut text, &widths, row);
    }
    text.pop();
    line(text)
}

fn append_row(text: &mut String, widths: &[usize], cells: &[impl AsRef<str>]) {
    let mut gap = 0;
    for (width, cell) in widths.iter().zip(cells) {
        let cell = cell.as_ref();
        text.extend(std::iter::repeat_n(' ', gap));
        text.push_str(cell);
        gap = width.saturating_sub(cell.chars().count()) + 2;
    }
    text.push('\n');
}

/// A time as RFC 3339 in UTC.
pub(super) fn time(time: SystemTime) -> String {
    prost_types::Timestamp::from(time).to_string()
}

/// A number with its thousands apart.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_apart() {
        let texts: Vec<_> = [0, 999, 1_000, 27_004, 1_234_567].map(grouped).into();
        assert_eq!(texts, ["0", "999", "1,000", "27,004", "1,234,567"]);
    }

    #[test]
    fn columns_are_aligned_and_lines_have_no_trailing_blanks() {
        let mut text = String::new();
        append_row(&mut text, &[5, 2], &["NAME", "P"]);
        append_row(&mut text, &[5, 2], &["after", "12"]);
        assert_eq!(text, "NAME   P\nafter  12\n");
    }

    #[test]
    fn times_are_rfc_3339() {
        assert_eq!(time(SystemTime::UNIX_EPOCH), "1970-01-01T00:00:00Z");
    }

    #[test]
    fn a_closed_pipe_is_told_from_other_failures() {
        assert!(written(Err(ErrorKind::BrokenPipe.into())).unwrap_err().is::<Closed>());
        assert!(!written(Err(ErrorKind::StorageFull.into())).unwrap_err().is::<Closed>());
    }
}
