//! `compare`: the reports of several output folders side by side. Reads `pruning_report.json` and computes nothing.

mod read;
mod render;

use crate::args::CompareArgs;
use crate::error::CliError;
use crate::output::{print, print_json};
use crate::report::{last_part, method, put};
use crate::summary::protocol;
use serde::Serialize;
use types::{RunReport, Shape, Sizes, Structure};

/// One folder's figures.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Compared {
    folder: String,
    run: String,
    /// Last part of the model's path, and the digest of what is in it.
    model: String,
    model_digest: String,
    family: String,
    method: String,
    structure: String,
    shape: Shape,
    before: Sizes,
    after: Sizes,
    /// Held-out perplexity with what it depends on.
    perplexity_before: Option<f64>,
    perplexity_after: Option<f64>,
    protocol: Option<String>,
    /// Predicted rise of the loss over all shots, nats per token.
    predicted: f64,
    shots: usize,
    /// Its own report's warnings.
    warnings: Vec<String>,
}

/// All folders.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Comparison {
    folders: Vec<Compared>,
    /// Why some of the figures cannot be compared.
    warnings: Vec<String>,
}

/// Compares folders.
pub(crate) fn run(args: &CompareArgs) -> Result<(), CliError> {
    let mut folders = Vec::new();
    let mut faults = Vec::new();
    for folder in &args.folders {
        match read::report(folder) {
            Ok(report) => folders.push(Compared::new(folder.display().to_string(), &report)),
            Err(fault) => faults.push(fault),
        }
    }
    CliError::from_all(faults)?;
    let comparison = Comparison { warnings: warnings(&folders), folders };
    if let Some(path) = &args.html {
        let page = render::page(&comparison)?;
        put(path, &page).map_err(|source| CliError::PageUnwritten { path: path.clone(), source })?;
    }
    if args.json { print_json(&comparison) } else { print(&render::text(&comparison)) }
}

impl Compared {
    fn new(folder: String, report: &RunReport) -> Self {
        let spec = &report.spec;
        Self {
            folder,
            run: report.run.clone(),
            model: last_part(&spec.model).to_owned(),
            model_digest: report.model_digest.clone(),
            family: report.family.clone(),
            method: method(spec),
            structure: spec.structure_name(),
            shape: report.shape_choice.as_ref().map_or(spec.shape, |choice| choice.shape),
            before: report.before,
            after: report.after,
            perplexity_before: report.evaluation_before.as_ref().map(|e| e.perplexity),
            perplexity_after: report.evaluation_after.as_ref().map(|e| e.perplexity),
            protocol: report.evaluation_after.as_ref().map(protocol),
            predicted: report.shots.iter().map(|s| s.predicted).sum(),
            shots: report.shots.len(),
            warnings: report.warnings.clone(),
        }
    }

    /// Returns the share of the prunable weights that is left.
    fn size(&self) -> f64 {
        self.after.prunable as f64 / self.before.prunable.max(1) as f64
    }

    /// Returns perplexity relative to the dense model's.
    fn ratio(&self) -> Option<f64> {
        self.perplexity_after.zip(self.perplexity_before).map(|(after, before)| after / before)
    }

    /// Returns structure and, where widths are chosen, shape.
    fn form(&self) -> String {
        let chosen = self.structure == Structure::Coupled.to_string();
        if chosen { format!("{}, {}", self.structure, self.shape) } else { self.structure.clone() }
    }
}

/// Returns what keeps figures from being compared.
fn warnings(folders: &[Compared]) -> Vec<String> {
    let differ = |value: fn(&Compared) -> Option<&String>| {
        let mut values = folders.iter().filter_map(value);
        let first = values.next();
        values.any(|other| Some(other) != first)
    };
    let mut warnings = Vec::new();
    if differ(|c| Some(&c.model_digest)) {
        warnings.push("the base models differ: compare ratios at most, not perplexities".to_owned());
    }
    if differ(|c| c.protocol.as_ref()) {
        warnings.push("the protocols of the perplexities differ, so they cannot be compared".to_owned());
    }
    let without = folders.iter().filter(|c| c.perplexity_after.is_none()).count();
    if without > 0 && without < folders.len() {
        warnings.push(format!("{without} of {} runs had no held-out data", folders.len()));
    }
    warnings
}

#[cfg(test)]
mod tests;
