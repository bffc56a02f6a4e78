//! Positions of records in a partition.

use std::fmt;

/// Position of a record in its partition: 0 for the first record ever appended, then one more for each.
///
/// As a bound ("log end", "high watermark", "trim before") it is the position after the last record it covers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Offset(pub u64);

impl Offset {
    /// The first offset of every partition.
    pub const ZERO: Offset = Offset(0);

    /// The offset `records` further on, or `None` past the largest number.
    #[must_use]
    pub fn checked_add(self, records: u64) -> Option<Offset> {
        self.0.checked_add(records).map(Offset)
    }

    /// The offset `records` further back, or `None` below zero.
    #[must_use]
    pub fn checked_sub(self, records: u64) -> Option<Offset> {
        self.0.checked_sub(records).map(Offset)
    }

    /// The offset `records` further on, or the largest one.
    #[must_use]
    pub fn saturating_add(self, records: u64) -> Offset {
        Offset(self.0.saturating_add(records))
    }

    /// Number of records from `earlier` to here, or `None` if `earlier` lies behind.
    #[must_use]
    pub fn checked_since(self, earlier: Offset) -> Option<u64> {
        self.0.checked_sub(earlier.0)
    }

    /// Number of records from `earlier` to here, zero if `earlier` lies behind.
    #[must_use]
    pub fn saturating_since(self, earlier: Offset) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl From<u64> for Offset {
    fn from(number: u64) -> Self {
        Offset(number)
    }
}

impl From<Offset> for u64 {
    fn from(offset: Offset) -> Self {
        offset.0
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_stops_at_both_ends() {
        assert_eq!(Offset(40).checked_add(2), Some(Offset(42)));
        assert_eq!(Offset(u64::MAX).checked_add(1), None);
        assert_eq!(Offset(u64::MAX).saturating_add(1), Offset(u64::MAX));
        assert_eq!(Offset(1).checked_sub(2), None);
        assert_eq!(Offset(9).checked_since(Offset(4)), Some(5));
        assert_eq!(Offset(4).checked_since(Offset(9)), None);
        assert_eq!(Offset(4).saturating_since(Offset(9)), 0);
    }

    #[test]
    fn displays_as_its_number() {
        assert_eq!(format!("{:>4}", Offset(7)), "   7");
    }
}
