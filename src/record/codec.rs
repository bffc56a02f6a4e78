//! How a batch's records are compressed.

use std::fmt;

use super::Error;

/// Compression of a batch. The numbers are those of the protocol's `streambus.v1.Codec` and of stored frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Codec {
    /// Not compressed.
    #[default]
    None = 0,
    /// LZ4 frame format.
    Lz4 = 1,
    /// Zstandard frame (RFC 8878).
    Zstd = 2,
}

impl Codec {
    /// Every codec, in the order of their numbers.
    pub const ALL: [Codec; 3] = [Codec::None, Codec::Lz4, Codec::Zstd];

    /// The protocol's number.
    #[must_use]
    pub const fn number(self) -> i32 {
        self as i32
    }

    /// The name that configuration, command line and telemetry use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Codec::None => "none",
            Codec::Lz4 => "lz4",
            Codec::Zstd => "zstd",
        }
    }
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl From<Codec> for i32 {
    fn from(codec: Codec) -> Self {
        codec.number()
    }
}

impl TryFrom<i32> for Codec {
    type Error = Error;

    /// Fails with [`Error::UnknownCodec`].
    fn try_from(number: i32) -> Result<Self, Error> {
        match number {
            0 => Ok(Codec::None),
            1 => Ok(Codec::Lz4),
            2 => Ok(Codec::Zstd),
            _ => Err(Error::UnknownCodec { number }),
        }
    }
}

/// A set of codecs: bit *n* stands for the codec with number *n*, so bit 0 for uncompressed batches.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct CodecSet(u8);

impl CodecSet {
    /// No codec, not even uncompressed.
    pub const EMPTY: CodecSet = CodecSet(0);
    /// Every codec, uncompressed included.
    pub const ALL: CodecSet = CodecSet(0b111);

    /// The set with these bits, or `None` if a bit stands for no known codec.
    #[must_use]
    pub const fn from_bits(bits: u32) -> Option<CodecSet> {
        let [low, ..] = bits.to_le_bytes();
        if bits <= CodecSet::ALL.bits() { Some(CodecSet(low)) } else { None }
    }

    /// The bits, for storing.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.0 as u32
    }

    /// Whether the set has `codec`.
    #[must_use]
    pub const fn contains(self, codec: Codec) -> bool {
        self.0 & (1 << codec as u8) != 0
    }

    /// Whether the set has no codec.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// This set and `codec`.
    #[must_use]
    pub const fn with(self, codec: Codec) -> CodecSet {
        CodecSet(self.0 | 1 << codec as u8)
    }

    /// The codecs of the set, in the order of their numbers.
    pub fn iter(self) -> impl Iterator<Item = Codec> {
        Codec::ALL.into_iter().filter(move |codec| self.contains(*codec))
    }
}

/// Every codec.
impl Default for CodecSet {
    fn default() -> Self {
        CodecSet::ALL
    }
}

impl FromIterator<Codec> for CodecSet {
    fn from_iter<I: IntoIterator<Item = Codec>>(codecs: I) -> Self {
        codecs.into_iter().fold(CodecSet::EMPTY, CodecSet::with)
    }
}

/// The names, with commas between.
impl fmt::Display for CodecSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, codec) in self.iter().enumerate() {
            f.write_str(if at == 0 { "" } else { ", " })?;
            f.write_str(codec.name())?;
        }
        Ok(())
    }
}

impl fmt::Debug for CodecSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::v1;

    #[test]
    fn numbers_are_those_of_the_protocol() {
        assert_eq!(Codec::None.number(), v1::Codec::Unspecified as i32);
        assert_eq!(Codec::Lz4.number(), v1::Codec::Lz4 as i32);
        assert_eq!(Codec::Zstd.number(), v1::Codec::Zstd as i32);
        for codec in Codec::ALL {
            assert_eq!(Codec::try_from(codec.number()), Ok(codec));
        }
    }

    #[test]
    fn refuses_unknown_numbers() {
        assert_eq!(Codec::try_from(3), Err(Error::UnknownCodec { number: 3 }));
        assert_eq!(Codec::try_from(-1), Err(Error::UnknownCodec { number: -1 }));
    }

    #[test]
    fn a_set_holds_what_was_put_in() {
        let set: CodecSet = [Codec::None, Codec::Zstd].into_iter().collect();
        assert_eq!(set.bits(), 0b101);
        assert!(set.contains(Codec::None) && !set.contains(Codec::Lz4) && set.contains(Codec::Zstd));
        assert_eq!(CodecSet::from_bits(0b101), Some(set));
        assert_eq!(CodecSet::from_bits(0b1000), None);
        assert_eq!(Codec::ALL.into_iter().collect::<CodecSet>(), CodecSet::ALL);
        assert_eq!(format!("{set:?}"), "{None, Zstd}");
        assert_eq!(set.to_string(), "none, zstd");
    }
}
