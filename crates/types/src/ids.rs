//! Names of things: runs, layers, workers, and the number that refuses stale work.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A name that cannot be used as an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{what} '{value}' must have 1 to {MAX_LEN} characters out of a-z, A-Z, 0-9, '.', '_' and '-', and not begin with a dot"
)]
pub struct InvalidId {
    /// Which kind of id.
    pub what: &'static str,
    /// What was given.
    pub value: String,
}

const MAX_LEN: usize = 200;

/// Returns `value` if it is safe as one part of a file name and a resource name.
fn checked(what: &'static str, value: &str) -> Result<String, InvalidId> {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if value.is_empty() || value.len() > MAX_LEN || value.starts_with('.') || !value.chars().all(legal) {
        return Err(InvalidId { what, value: value.chars().take(MAX_LEN).collect() });
    }
    Ok(value.to_owned())
}

/// One pruning of one model under one [`crate::RunSpec`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RunId(String);

/// A calibrator or surgeon process.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct WorkerId(String);

/// One linear map and its bias, by checkpoint name without `.weight`, e.g. `model.layers.3.mlp.down_proj`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LayerId(String);

/// The number of one attempt at a piece of work; it rises, so that a stale worker can be refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, Default)]
pub struct Generation(pub u64);

impl Generation {
    /// Returns the generation of the next attempt.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Gives the three id types their constructor, accessor and conversions.
macro_rules! id {
    ($name:ident, $what:literal) => {
        impl $name {
            /// Returns the id, or an error that says which characters are legal.
            pub fn new(value: &str) -> Result<Self, InvalidId> {
                checked($what, value).map(Self)
            }

            /// Returns the name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;

            fn try_from(value: String) -> Result<Self, InvalidId> {
                Self::new(&value)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0
            }
        }
    };
}

id!(RunId, "run");
id!(WorkerId, "worker");
id!(LayerId, "layer");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_a_folder_are_refused() {
        for bad in ["", "..", "../x", "a/b", ".hidden", "a b", "ä", &"x".repeat(201)] {
            assert!(RunId::new(bad).is_err(), "{bad}");
            assert!(LayerId::new(bad).is_err(), "{bad}");
        }
        assert_eq!(
            LayerId::new("model.layers.3.mlp.down_proj").map(String::from).as_deref(),
            Ok("model.layers.3.mlp.down_proj")
        );
    }
}
