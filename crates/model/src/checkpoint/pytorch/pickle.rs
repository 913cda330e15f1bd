//! The few pickle instructions that a dict of tensors is written with, and the values they make.
//!
//! Nothing is imported, called or constructed: a name that the pickle asks for is one of a short list or an error. Work
//! and memory are bounded by the length of the pickle, nesting by [`MAX_DEPTH`].

mod machine;
mod value;

pub(super) use value::{Storage, Stored};

use super::{Fault, REMEDY, damaged, refused};
use machine::Machine;
use std::collections::BTreeSet;
use std::rc::Rc;
use value::Value;

/// No real model comes near: one tensor takes about a hundred bytes.
const MAX_LENGTH: usize = 64 << 20;
/// Values on the stack, in the memo, and dicts; a tensor takes about 15 places of the memo.
const MAX_VALUES: usize = 1 << 20;
/// Tuples within tuples; tensors need 2.
const MAX_DEPTH: usize = 8;

/// Returns the tensors of the dict that the pickle `bytes` describes, in its order.
pub(super) fn tensors(bytes: &[u8]) -> Result<Vec<(&str, Rc<Stored<'_>>)>, Fault> {
    if bytes.len() > MAX_LENGTH {
        return damaged(format!("describes its tensors in {} bytes, more than any model needs", bytes.len()));
    }
    let entries = Machine::new(bytes).run()?;
    let mut known = BTreeSet::new();
    let mut tensors = Vec::with_capacity(entries.len());
    for (key, value) in entries {
        let Value::Text(name) = key else {
            return refused(format!(
                "its dict has {} as a key where a tensor's name is expected; {REMEDY}",
                key.says()
            ));
        };
        let Value::Tensor(tensor) = value else {
            return refused(format!(
                "entry '{}' is {}, not a tensor; only the plain dict of a model's weights is read: {REMEDY}",
                printable(name),
                value.says()
            ));
        };
        if !known.insert(name) {
            return damaged(format!("holds tensor '{name}' twice"));
        }
        tensors.push((name, tensor));
    }
    Ok(tensors)
}

/// Returns text from a file, safe to print and not too long.
fn printable(text: &str) -> String {
    text.chars().take(80).flat_map(char::escape_debug).collect()
}
