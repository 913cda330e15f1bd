//! The small files beside a tokenizer. A file that is missing says nothing and is no fault.

use crate::ModelError;
use serde_json::Value;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

/// Returns the text of a file, or `None` if there is none.
pub(crate) fn text_file(path: &Path) -> Result<Option<String>, ModelError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(ModelError::io("read", path)(e)),
    }
}

/// Returns the content of a file, or null if there is none.
pub(crate) fn json_file(path: &Path) -> Result<Value, ModelError> {
    let Some(text) = text_file(path)? else { return Ok(Value::Null) };
    serde_json::from_str(&text)
        .map_err(|e| ModelError::Tokenizer { path: path.to_owned(), reason: format!("not valid JSON: {e}") })
}

/// Returns a special token, written as a text or as an object with its `content`.
pub(crate) fn token(value: &Value) -> Option<String> {
    value.as_str().or_else(|| value["content"].as_str()).map(str::to_owned)
}
