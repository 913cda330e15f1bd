//! Messages to domain values and back: the error, and the checks that all conversions share.
//!
//! Every text and list has a limit, so that a hostile message is refused before anything is built from it.

mod artifact;
mod path;
mod run;
mod worker;

use std::fmt;
use types::{InvalidId, LayerId, RunId, Violation, WorkerId};

pub use artifact::{ArtifactAddress, artifact_name, artifact_of_name};
pub use path::{MAX_STEPS, path_messages};
pub use run::{
    run_name, run_of_name, shot_name, shot_of_name, spec_without_data, spec_without_end, worker_name, worker_of_name,
};

/// Longest path, glob or resource name, in bytes.
pub const MAX_TEXT: usize = 4096;
/// Longest list of data files.
pub const MAX_PATHS: usize = 10_000;
/// Most blocks of a model.
pub const MAX_BLOCKS: usize = 4096;
/// Most layers or unit groups of one block.
pub const MAX_LAYERS: usize = 64;
/// Most units, rows or columns of one layer.
pub const MAX_UNITS: usize = 1 << 20;
/// Largest size, in weights or bytes: sums over a model stay far from the end of `u64`.
pub const MAX_SIZE: u64 = 1 << 50;

/// Longest request id, in bytes.
const MAX_REQUEST_ID: usize = 128;

/// A message that cannot be taken: what is wrong with which of its fields.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct InvalidMessage {
    /// Name of the message.
    pub message: &'static str,
    /// Every fault that was found; fields of nested messages as `blocks[3].layers[0].rows`.
    pub violations: Vec<Violation>,
}

impl fmt::Display for InvalidMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "invalid {}", self.message)?;
        for (n, Violation { field, problem }) in self.violations.iter().enumerate() {
            write!(f, "{} {field}: {problem}", if n == 0 { ":" } else { ";" })?;
        }
        Ok(())
    }
}

impl InvalidMessage {
    /// Returns an error with one fault.
    pub fn new(message: &'static str, field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { message, violations: vec![Violation { field: field.into(), problem: problem.into() }] }
    }

    /// Returns the faults of a nested message, as faults of the field that holds it.
    fn inside(self, message: &'static str, field: &str) -> Self {
        let outer = |v: Violation| Violation { field: format!("{field}.{}", v.field), problem: v.problem };
        Self { message, violations: self.violations.into_iter().map(outer).collect() }
    }
}

/// The request that a handler has before it; whoever sent it knows its name.
const REQUEST: Fields = Fields("request");

/// Returns a field of a request that must be present.
pub fn required<T>(field: &str, value: Option<T>) -> Result<T, InvalidMessage> {
    REQUEST.required(field, value)
}

/// Returns an enum in a request; the unspecified value and unknown ones are refused.
pub fn known<W: TryFrom<i32>>(field: &str, value: i32) -> Result<W, InvalidMessage> {
    REQUEST.known(field, value)
}

/// Returns the id that its caller gave a request, empty for none.
pub fn request_id(value: String) -> Result<String, InvalidMessage> {
    REQUEST.short("request_id", value, MAX_REQUEST_ID)
}

/// Returns the worker that a request names.
pub fn worker_id(field: &str, value: &str) -> Result<WorkerId, InvalidMessage> {
    REQUEST.worker(field, value)
}

/// Reads the fields of one message; its name goes into every error.
#[derive(Debug, Clone, Copy)]
pub struct Fields(pub &'static str);

impl Fields {
    /// Returns an error about one field.
    pub fn bad(self, field: &str, problem: impl Into<String>) -> InvalidMessage {
        InvalidMessage::new(self.0, field, problem)
    }

    /// Returns a field that must be present.
    pub fn required<T>(self, field: &str, value: Option<T>) -> Result<T, InvalidMessage> {
        value.ok_or_else(|| self.bad(field, "is missing"))
    }

    /// Returns a text that is neither empty nor longer than `max` bytes.
    pub fn text(self, field: &str, value: String, max: usize) -> Result<String, InvalidMessage> {
        if value.is_empty() {
            return Err(self.bad(field, "is empty"));
        }
        self.short(field, value, max)
    }

    /// Returns a text, possibly empty, that is not longer than `max` bytes.
    pub fn short(self, field: &str, value: String, max: usize) -> Result<String, InvalidMessage> {
        self.at_most(field, value.len(), max, "bytes").map(|()| value)
    }

    /// Refuses more than `max` of something.
    pub fn at_most(self, field: &str, count: usize, max: usize, what: &str) -> Result<(), InvalidMessage> {
        if count > max {
            return Err(self.bad(field, format!("{count} {what} are more than {max}")));
        }
        Ok(())
    }

    /// Returns a number that is not above `max`.
    pub fn number(self, field: &str, value: u64, max: u64) -> Result<u64, InvalidMessage> {
        if value > max {
            return Err(self.bad(field, format!("{value} is more than {max}")));
        }
        Ok(value)
    }

    /// Returns a number that is one: neither infinite nor NaN.
    pub fn finite(self, field: &str, value: f64) -> Result<f64, InvalidMessage> {
        if value.is_finite() { Ok(value) } else { Err(self.bad(field, format!("{value} is not finite"))) }
    }

    /// Returns a BLAKE3 digest as 64 hex digits.
    pub fn blake3(self, field: &str, value: String) -> Result<String, InvalidMessage> {
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if value.len() != 64 || !value.bytes().all(hex) {
            return Err(self.bad(field, "is not 64 lower-case hex digits"));
        }
        Ok(value)
    }

    /// Returns indices that strictly rise.
    pub fn rising(self, field: &str, value: Vec<u32>) -> Result<Vec<u32>, InvalidMessage> {
        self.at_most(field, value.len(), MAX_UNITS, "indices")?;
        if !value.is_sorted_by(|a, b| a < b) {
            return Err(self.bad(field, "does not rise"));
        }
        Ok(value)
    }

    /// Returns the run that a field names by its id.
    pub fn run(self, field: &str, value: &str) -> Result<RunId, InvalidMessage> {
        RunId::new(value).map_err(|e| self.bad_id(field, &e))
    }

    /// Returns the worker that a field names.
    pub fn worker(self, field: &str, value: &str) -> Result<WorkerId, InvalidMessage> {
        WorkerId::new(value).map_err(|e| self.bad_id(field, &e))
    }

    /// Returns the layer that a field names.
    pub fn layer(self, field: &str, value: &str) -> Result<LayerId, InvalidMessage> {
        LayerId::new(value).map_err(|e| self.bad_id(field, &e))
    }

    /// Returns an enum of the contract; the unspecified value and unknown ones are refused.
    pub fn known<W: TryFrom<i32>>(self, field: &str, value: i32) -> Result<W, InvalidMessage> {
        if value == 0 {
            return Err(self.bad(field, "is unspecified"));
        }
        W::try_from(value).map_err(|_| self.bad(field, format!("has the unknown value {value}")))
    }

    /// Returns the domain value whose wire value is `value`; unspecified and unknown ones are refused.
    pub fn choice<W, D>(self, field: &str, value: i32, all: &[D]) -> Result<D, InvalidMessage>
    where
        D: Copy,
        W: From<D> + PartialEq + TryFrom<i32>,
    {
        let wire: W = self.known(field, value)?;
        all.iter()
            .copied()
            .find(|d| W::from(*d) == wire)
            .ok_or_else(|| self.bad(field, format!("has the unknown value {value}")))
    }

    /// Returns the items of a list, each through `TryFrom`; a fault is named by its place.
    pub fn list<W, D>(self, field: &str, items: Vec<W>, max: usize) -> Result<Vec<D>, InvalidMessage>
    where
        D: TryFrom<W, Error = InvalidMessage>,
    {
        self.at_most(field, items.len(), max, "items")?;
        let place =
            |(n, item)| D::try_from(item).map_err(|e: InvalidMessage| e.inside(self.0, &format!("{field}[{n}]")));
        items.into_iter().enumerate().map(place).collect()
    }

    /// Returns a nested message that must be present, through `TryFrom`.
    pub fn nested<W, D>(self, field: &str, value: Option<W>) -> Result<D, InvalidMessage>
    where
        D: TryFrom<W, Error = InvalidMessage>,
    {
        D::try_from(self.required(field, value)?).map_err(|e| e.inside(self.0, field))
    }

    fn bad_id(self, field: &str, error: &InvalidId) -> InvalidMessage {
        self.bad(field, error.to_string())
    }
}
