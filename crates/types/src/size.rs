//! How large a model is, and how large it should become.

use serde::{Deserialize, Serialize};
use std::ops::{Add, AddAssign, Mul, Sub};

/// A size in the three ways it is reported: always together, because a bare percentage is read in different ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Sizes {
    /// Weights of the decoder's linear layers (the paper's axis).
    pub prunable: u64,
    /// All parameters, embeddings, norms and biases included; tied weights once.
    pub parameters: u64,
    /// Bytes of all tensors in the checkpoint's own number formats.
    pub bytes: u64,
}

impl Sizes {
    /// Returns each of the three through `f`.
    fn zip(self, other: Self, f: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            prunable: f(self.prunable, other.prunable),
            parameters: f(self.parameters, other.parameters),
            bytes: f(self.bytes, other.bytes),
        }
    }

    /// Returns the figure that `target` is expressed in.
    pub fn measured_by(&self, target: &Target) -> u64 {
        match target {
            Target::Size(_) => self.prunable,
            Target::Parameters(_) => self.parameters,
            Target::Bytes(_) => self.bytes,
        }
    }
}

impl Add for Sizes {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }
}

impl AddAssign for Sizes {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Sub for Sizes {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        self.zip(other, u64::saturating_sub)
    }
}

impl Mul<u64> for Sizes {
    type Output = Self;
    fn mul(self, n: u64) -> Self {
        Self { prunable: self.prunable * n, parameters: self.parameters * n, bytes: self.bytes * n }
    }
}

/// The size to reach.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// Fraction of the prunable weights that stay, in (0, 1].
    Size(f64),
    /// All parameters that stay, at most.
    Parameters(u64),
    /// Bytes of all tensors that stay, at most.
    Bytes(u64),
}

impl Target {
    /// Returns the largest allowed size, in the figure that [`Sizes::measured_by`] gives for this target.
    pub fn limit(&self, dense: &Sizes) -> u64 {
        match self {
            // The small term keeps 0.8 × 1000 at 800 rather than at 799 for want of a bit.
            Self::Size(fraction) => (fraction * dense.prunable as f64 + 1e-6).floor() as u64,
            Self::Parameters(n) | Self::Bytes(n) => *n,
        }
    }
}

/// Text that is no size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{value}' is not a {what}; write for example {example}")]
pub struct ParseTargetError {
    what: &'static str,
    value: String,
    example: &'static str,
}

/// Returns a count such as `110M`, `1.5B` or `124000000`.
pub fn parse_count(text: &str) -> Result<u64, ParseTargetError> {
    let units = [("K", 1e3), ("M", 1e6), ("B", 1e9), ("G", 1e9), ("T", 1e12)];
    parse_scaled(text, &units).ok_or_else(|| ParseTargetError {
        what: "number of parameters",
        value: text.to_owned(),
        example: "110M or 1.5B",
    })
}

/// Returns a number of bytes such as `250MiB`, `2GB` or `1048576`.
pub fn parse_bytes(text: &str) -> Result<u64, ParseTargetError> {
    let units = [
        ("KIB", 1024.0),
        ("MIB", 1024.0 * 1024.0),
        ("GIB", 1024.0 * 1024.0 * 1024.0),
        ("TIB", 1024.0 * 1024.0 * 1024.0 * 1024.0),
        ("KB", 1e3),
        ("MB", 1e6),
        ("GB", 1e9),
        ("TB", 1e12),
        ("B", 1.0),
    ];
    parse_scaled(text, &units).ok_or_else(|| ParseTargetError {
        what: "number of bytes",
        value: text.to_owned(),
        example: "250MiB or 2GB",
    })
}

fn parse_scaled(text: &str, units: &[(&str, f64)]) -> Option<u64> {
    let upper = text.trim().to_ascii_uppercase();
    let (digits, scale) = units
        .iter()
        .find_map(|(unit, scale)| upper.strip_suffix(unit).map(|digits| (digits, *scale)))
        .unwrap_or((upper.as_str(), 1.0));
    let value: f64 = digits.trim().parse().ok()?;
    (value.is_finite() && value >= 0.0 && value * scale < 1e18).then(|| (value * scale).round() as u64)
}

/// Returns bytes for people: `512 B`, `1.5 KiB`, `250.0 MiB`.
pub fn format_bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_bytes_read_as_people_write_them() {
        assert_eq!(parse_count("110M"), Ok(110_000_000));
        assert_eq!(parse_count("1.5b"), Ok(1_500_000_000));
        assert_eq!(parse_count("42"), Ok(42));
        assert_eq!(parse_bytes("250MiB"), Ok(250 * 1024 * 1024));
        assert_eq!(parse_bytes("2 GB"), Ok(2_000_000_000));
        assert_eq!(parse_bytes("17"), Ok(17));
        for bad in ["", "M", "-1M", "NaN", "1e30", "12 apples"] {
            assert!(parse_count(bad).is_err(), "{bad}");
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_fraction_of_a_round_size_is_not_lost_to_rounding() {
        let dense = Sizes { prunable: 1000, parameters: 1200, bytes: 4800 };
        assert_eq!(Target::Size(0.8).limit(&dense), 800);
        assert_eq!(Target::Size(0.7).limit(&dense), 700);
        assert_eq!(dense.measured_by(&Target::Bytes(1)), 4800);
    }
}
