//! The protobuf wire format, read from borrowed bytes and written to a buffer.

use std::ops::Range;

use bytes::BufMut;

use super::Error;

/// Largest field number that protobuf allows.
const FIELD_MAX: u64 = (1 << 29) - 1;

/// A tag of a field with a variable-length integer.
pub(super) const fn varint_tag(field: u8) -> u8 {
    field << 3
}

/// A tag of a field with a length and that many bytes.
pub(super) const fn bytes_tag(field: u8) -> u8 {
    field << 3 | 2
}

/// The rest of a message, and where in the batch it starts.
#[derive(Clone, Copy)]
pub(super) struct Cursor<'a> {
    rest: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Cursor { rest: bytes, at: 0 }
    }

    /// A cursor over `bytes` from `at` on. A position past the end is the end.
    pub(super) fn starting_at(bytes: &'a [u8], at: usize) -> Self {
        let at = at.min(bytes.len());
        Cursor { rest: &bytes[at..], at }
    }

    #[inline]
    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// Number of bytes that are left.
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.rest.len()
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// The bytes that are left.
    #[inline]
    pub(super) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Where in the batch the bytes that are left lie.
    #[inline]
    pub(super) fn range(&self) -> Range<usize> {
        self.at..self.at + self.rest.len()
    }

    #[inline(always)]
    pub(super) fn varint(&mut self) -> Result<u64, Error> {
        match *self.rest {
            [a, ref rest @ ..] if a < 0x80 => {
                self.rest = rest;
                self.at += 1;
                Ok(u64::from(a))
            }
            [a, b, ref rest @ ..] if b < 0x80 => {
                self.rest = rest;
                self.at += 2;
                Ok(u64::from(a & 0x7f) | u64::from(b) << 7)
            }
            _ => match long_varint(self.rest) {
                (value, len @ 1..) => {
                    self.rest = &self.rest[len..];
                    self.at += len;
                    Ok(value)
                }
                _ => Err(self.bad_varint()),
            },
        }
    }

    /// The two fields that are left, if they are just `first` and `second`, each of fewer than 128 bytes. Nearly
    /// every header is like that, and taking both at once saves half of its cost.
    #[inline(always)]
    pub(super) fn short_pair(&self, first: u8, second: u8) -> Option<(Cursor<'a>, Cursor<'a>)> {
        let [tag, len @ ..0x80, ref rest @ ..] = *self.rest else { return None };
        let (one, [next_tag, next_len @ ..0x80, two @ ..]) = rest.split_at_checked(len.into())? else {
            return None;
        };
        let fits =
            tag == bytes_tag(first) && *next_tag == bytes_tag(second) && two.len() == usize::from(*next_len);
        let one = Cursor { rest: one, at: self.at + 2 };
        let two = Cursor { rest: two, at: one.at + one.rest.len() + 2 };
        fits.then_some((one, two))
    }

    #[cold]
    #[inline(never)]
    fn bad_varint(&self) -> Error {
        let what = if self.len() < 10 { "number cut short" } else { "number too long" };
        Error::malformed(self.at, what)
    }

    /// Takes a length and a cursor over that many bytes.
    #[inline(always)]
    pub(super) fn delimited(&mut self) -> Result<Cursor<'a>, Error> {
        let start = self.at;
        let len = self.varint()?;
        if len > self.rest.len() as u64 {
            return Err(Error::malformed(start, "length exceeds what is left"));
        }
        #[allow(clippy::cast_possible_truncation, reason = "compared with a usize above")]
        let (inner, rest) = self.rest.split_at(len as usize);
        let inner = Cursor { rest: inner, at: self.at };
        self.at += inner.rest.len();
        self.rest = rest;
        Ok(inner)
    }

    /// Skips the value of a field that the caller does not know. `known` is the largest field number of the
    /// message: reaching here with such a number means that the field has the wrong wire type.
    #[cold]
    #[inline(never)]
    pub(super) fn skip(&mut self, tag: u64, tag_at: usize, known: u64) -> Result<(), Error> {
        let field = tag >> 3;
        if field == 0 || field > FIELD_MAX {
            return Err(Error::malformed(tag_at, "field number out of range"));
        }
        if field <= known {
            return Err(Error::malformed(tag_at, "wrong wire type for the field"));
        }
        match tag & 7 {
            0 => self.varint().map(|_| ()),
            1 => self.skip_bytes(8),
            2 => self.delimited().map(|_| ()),
            3 | 4 => Err(Error::malformed(tag_at, "groups are not allowed")),
            5 => self.skip_bytes(4),
            _ => Err(Error::malformed(tag_at, "unknown wire type")),
        }
    }

    fn skip_bytes(&mut self, count: usize) -> Result<(), Error> {
        let Some(rest) = self.rest.get(count..) else {
            return Err(Error::malformed(self.at, "field cut short"));
        };
        self.rest = rest;
        self.at += count;
        Ok(())
    }
}

/// A number and how many bytes it takes, zero if it is not valid. Both fit into registers, unlike an error.
#[inline(never)]
fn long_varint(bytes: &[u8]) -> (u64, usize) {
    let mut value = 0;
    if let Some((six, _)) = bytes.split_first_chunk::<6>()
        && six[5] < 0x80
        && six[..5].iter().all(|byte| *byte >= 0x80)
    {
        // A present-day timestamp in milliseconds.
        return (six.iter().rev().fold(0, |value, byte| value << 7 | u64::from(byte & 0x7f)), 6);
    }
    for (i, &byte) in bytes.iter().enumerate().take(10) {
        if i == 9 && byte > 1 {
            break;
        }
        value |= u64::from(byte & 0x7f) << (7 * i);
        if byte < 0x80 {
            return (value, i + 1);
        }
    }
    (0, 0)
}

/// Number of bytes of `value` as a varint.
#[inline]
pub(super) fn varint_len(value: u64) -> usize {
    // One byte for each seven significant bits, and one for zero.
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

/// Number of bytes of a field with a one-byte tag and `len` bytes.
#[inline]
pub(super) fn delimited_len(len: usize) -> usize {
    1 + varint_len(len as u64) + len
}

#[inline]
pub(super) fn put_varint(buf: &mut impl BufMut, mut value: u64) {
    while value >= 0x80 {
        buf.put_u8(value as u8 | 0x80);
        value >>= 7;
    }
    buf.put_u8(value as u8);
}

/// Writes the tag and the length of a field whose bytes follow.
#[inline]
pub(super) fn put_delimiter(buf: &mut impl BufMut, field: u8, len: usize) {
    buf.put_u8(bytes_tag(field));
    put_varint(buf, len as u64);
}

#[inline]
pub(super) fn put_delimited(buf: &mut impl BufMut, field: u8, bytes: &[u8]) {
    put_delimiter(buf, field, bytes.len());
    buf.put_slice(bytes);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(bytes: &[u8]) -> Result<u64, Error> {
        Cursor::new(bytes).varint()
    }

    #[test]
    fn reads_the_largest_number_and_no_larger() {
        assert_eq!(read(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]), Ok(u64::MAX));
        let too_long = Err(Error::Malformed { at: 0, what: "number too long" });
        assert_eq!(read(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2]), too_long);
        assert_eq!(read(&[0xff; 11]), too_long);
    }

    #[test]
    fn names_a_number_that_is_cut_short() {
        let cut = Err(Error::Malformed { at: 0, what: "number cut short" });
        assert_eq!(read(&[]), cut);
        assert_eq!(read(&[0x80]), cut);
        assert_eq!(read(&[0xff; 9]), cut);
    }

    #[test]
    fn an_embedded_message_ends_where_its_length_says() {
        let mut outer = Cursor::new(&[2, 7, 8, 9]);
        let inner = outer.delimited().unwrap();
        assert_eq!((inner.rest(), inner.range()), (&[7u8, 8][..], 1..3));
        assert_eq!(outer.rest(), &[9]);
        assert_eq!(
            Cursor::new(&[3, 7, 8]).delimited().err(),
            Some(Error::Malformed { at: 0, what: "length exceeds what is left" })
        );
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(value: u64) {
            let mut buf = Vec::new();
            put_varint(&mut buf, value);
            prop_assert_eq!(buf.len(), varint_len(value));
            prop_assert_eq!(read(&buf), Ok(value));
        }
    }
}
