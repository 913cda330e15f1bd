//! The report in an output folder.

use crate::error::CliError;
use serde::Deserialize;
use std::fs;
use std::path::Path;
use types::RunReport;

/// What is looked at first: a later form may lack all else.
#[derive(Deserialize)]
struct Head {
    format: u32,
}

/// Returns a folder's report.
pub(super) fn report(folder: &Path) -> Result<RunReport, CliError> {
    let path = folder.join(RunReport::FILE);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(source) => return Err(CliError::ReportMissing { path, source }),
    };
    let form = |problem: String| CliError::ReportForm { path: path.clone(), problem };
    let head: Head = serde_json::from_str(&text).map_err(|e| form(format!("this is no report of a pruning: {e}")))?;
    let (found, read) = (head.format, RunReport::FORMAT);
    if found != read {
        return Err(form(format!("it has format {found}, this program reads {read}; use the version that wrote it")));
    }
    serde_json::from_str(&text)
        .map_err(|e| form(format!("another version of the program wrote it, or it is damaged: {e}")))
}
