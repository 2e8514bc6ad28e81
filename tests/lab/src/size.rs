//! Sizes as people write them: `512M`, `10G`.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Error, Result, bail};
use serde::{Deserialize, Serialize};

/// A number of bytes, written with the binary suffixes `K`, `M`, `G` or `T`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Size(pub u64);

const UNITS: [(char, u32); 4] = [('T', 40), ('G', 30), ('M', 20), ('K', 10)];

impl FromStr for Size {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let unit = UNITS.iter().find(|(suffix, _)| text.ends_with(*suffix));
        let (digits, shift) = unit.map_or((text, 0), |(suffix, shift)| (text.trim_end_matches(*suffix), *shift));
        let number: u64 = digits.parse().with_context(|| format!("`{text}` is not a size like 512M or 10G"))?;
        match number.checked_mul(1 << shift) {
            Some(bytes) if bytes > 0 => Ok(Self(bytes)),
            _ => bail!("`{text}` is not a possible size"),
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = UNITS.iter().find(|(_, shift)| self.0.trailing_zeros() >= *shift && self.0 > 0);
        match unit {
            Some((suffix, shift)) => write!(f, "{}{suffix}", self.0 >> shift),
            None => write!(f, "{}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_written() {
        let cases = [("10G", Some(10 << 30)), ("512M", Some(512 << 20)), ("4096", Some(4096)), ("1T", Some(1 << 40))];
        for (text, bytes) in cases {
            assert_eq!(text.parse::<Size>().ok(), bytes.map(Size), "{text}");
        }
        for text in ["", "G", "0", "-1G", "10GB", "99999999999T", "1.5G"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
        assert_eq!(Size(10 << 30).to_string(), "10G");
        assert_eq!(Size(1536 << 20).to_string(), "1536M");
        assert_eq!(Size(1000).to_string(), "1000");
    }
}
