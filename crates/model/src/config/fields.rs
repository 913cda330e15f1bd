//! Typed access to the keys of a config.json; null counts as missing, as in transformers.

use super::Activation;
use crate::ModelError;
use serde_json::{Map, Value};
use std::path::Path;

/// The keys of one config.json.
pub(crate) struct Fields<'a> {
    raw: &'a Value,
    map: &'a Map<String, Value>,
    path: &'a Path,
}

impl<'a> Fields<'a> {
    pub(crate) fn new(raw: &'a Value, path: &'a Path) -> Result<Self, ModelError> {
        let map = raw.as_object().ok_or_else(|| ModelError::Config {
            path: path.to_owned(),
            reason: "holds no JSON object, so it is no model config".to_owned(),
        })?;
        Ok(Self { raw, map, path })
    }

    pub(crate) fn raw(&self) -> &Value {
        self.raw
    }

    pub(crate) fn path(&self) -> &Path {
        self.path
    }

    /// Returns whether the key is there, null included.
    pub(crate) fn contains(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    /// Returns all keys.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &'a str> {
        self.map.keys().map(String::as_str)
    }

    pub(crate) fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    /// Returns a key read by `read`, or an error that says what was expected.
    fn typed<T>(
        &self,
        key: &str,
        expected: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ModelError> {
        self.get(key)
            .map(|v| read(v).ok_or_else(|| self.invalid(&format!("'{key}' is {v}, expected {expected}"))))
            .transpose()
    }

    pub(crate) fn integer(&self, key: &str) -> Result<Option<i64>, ModelError> {
        self.typed(key, "a whole number", Value::as_i64)
    }

    pub(crate) fn required(&self, key: &str) -> Result<i64, ModelError> {
        self.integer(key)?.ok_or_else(|| self.invalid(&format!("'{key}' is missing")))
    }

    pub(crate) fn number(&self, key: &str) -> Result<Option<f64>, ModelError> {
        self.typed(key, "a number", Value::as_f64)
    }

    pub(crate) fn flag(&self, key: &str) -> Result<Option<bool>, ModelError> {
        self.typed(key, "true or false", Value::as_bool)
    }

    pub(crate) fn text(&self, key: &str) -> Result<Option<&'a str>, ModelError> {
        self.typed(key, "text", Value::as_str)
    }

    /// Returns a list of integers; a single integer is a list of one.
    pub(crate) fn integers(&self, key: &str) -> Result<Vec<i64>, ModelError> {
        let list = |v: &Value| match v {
            Value::Array(items) => items.iter().map(Value::as_i64).collect(),
            one => one.as_i64().map(|n| vec![n]),
        };
        Ok(self.typed(key, "a whole number or a list of them", list)?.unwrap_or_default())
    }

    pub(crate) fn texts(&self, key: &str) -> Result<Option<Vec<&'a str>>, ModelError> {
        self.typed(key, "a list of texts", |v| v.as_array()?.iter().map(Value::as_str).collect())
    }

    /// Returns the number of blocks.
    pub(crate) fn blocks(&self) -> Result<u32, ModelError> {
        let count = self.required("num_hidden_layers")?;
        u32::try_from(count)
            .ok()
            .filter(|n| *n <= 100_000)
            .ok_or_else(|| self.invalid(&format!("'num_hidden_layers' is {count}, expected 1 to 100000")))
    }

    pub(crate) fn activation(&self, key: &str, default: Activation) -> Result<Activation, ModelError> {
        match self.text(key)? {
            None => Ok(default),
            Some("silu" | "swish") => Ok(Activation::Silu),
            Some("gelu") => Ok(Activation::Gelu),
            Some("gelu_new" | "gelu_pytorch_tanh") => Ok(Activation::GeluTanh),
            Some("relu") => Ok(Activation::Relu),
            Some(other) => Err(self.unsupported(&format!(
                "the activation '{other}' is not supported (supported: silu, gelu, gelu_new, gelu_pytorch_tanh, relu)"
            ))),
        }
    }

    /// Returns the sliding window of Qwen: only with `use_sliding_window`, only if some block uses it.
    pub(crate) fn switched_window(&self) -> Result<Option<i64>, ModelError> {
        if !self.flag("use_sliding_window")?.unwrap_or(false) {
            return Ok(None);
        }
        let window = if self.contains("sliding_window") { self.integer("sliding_window")? } else { Some(4096) };
        let first = self.integer("max_window_layers")?.unwrap_or(28);
        let used = match self.layer_types()? {
            Some(types) => types.contains(&"sliding_attention"),
            None => first < i64::from(self.blocks()?),
        };
        Ok(window.filter(|_| used))
    }

    /// Returns the kinds of attention of the blocks, if listed; all must be known and there must be one for each block.
    pub(crate) fn layer_types(&self) -> Result<Option<Vec<&'a str>>, ModelError> {
        let Some(types) = self.texts("layer_types")? else { return Ok(None) };
        if let Some(other) = types.iter().find(|t| !["full_attention", "sliding_attention"].contains(*t)) {
            return Err(self.unsupported(&format!("'layer_types' names '{other}'; only full attention is supported")));
        }
        if types.len() != self.blocks()? as usize {
            return Err(self.invalid(&format!("'layer_types' lists {} blocks of {}", types.len(), self.blocks()?)));
        }
        Ok(Some(types))
    }

    /// Returns the fields of a nested object.
    pub(crate) fn nested(&self, key: &str) -> Result<Option<Fields<'a>>, ModelError> {
        self.typed(key, "an object", |v| v.as_object().map(|map| (v, map)))
            .map(|found| found.map(|(raw, map)| Fields { raw, map, path: self.path }))
    }

    /// Returns the error of a key that cannot be right.
    pub(crate) fn invalid(&self, reason: &str) -> ModelError {
        ModelError::Config { path: self.path.to_owned(), reason: reason.to_owned() }
    }

    /// Returns the error of a model that is not handled.
    pub(crate) fn unsupported(&self, reason: &str) -> ModelError {
        ModelError::Unsupported { path: self.path.to_owned(), reason: reason.to_owned() }
    }
}
