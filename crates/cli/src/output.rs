//! Standard output, for results: nothing else is written there.

use crate::error::CliError;
use serde::Serialize;
use std::io::{self, Write as _};

/// Writes text to standard output.
pub(crate) fn print(text: &str) -> Result<(), CliError> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(CliError::Stdout)
}

/// Writes a line to standard output.
pub(crate) fn print_line(line: &str) -> Result<(), CliError> {
    print(&format!("{line}\n"))
}

/// Writes a value to standard output, as JSON on one line.
pub(crate) fn print_json<T: Serialize>(value: &T) -> Result<(), CliError> {
    let json = serde_json::to_string(value).map_err(|e| CliError::Stdout(e.into()))?;
    print_line(&json)
}

/// Writes text for people to standard error. If nobody listens there, nobody misses it.
pub(crate) fn tell(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}
