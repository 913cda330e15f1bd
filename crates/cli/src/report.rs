//! `report`: the page for people, `report.html`, of a run, from its journal alone.
//!
//! `prune` and `materialise` write it into the folders that they have made; this command makes it again, also for a run that
//! has not ended. It holds times and memory and so is no part of what equal runs have in common.

mod figures;
mod file;
mod page;
pub(crate) mod plot;
mod tables;
#[cfg(test)]
mod tests;
mod units;

pub(crate) use file::put;
pub(crate) use page::{last_part, method};
pub(crate) use tables::{Column, Table as Grid};

use crate::args::ReportArgs;
use crate::error::CliError;
use crate::output::print_line;
use crate::prune::{Journal, absolute, journal_of};
use crate::remote;
use crate::summary::Timeline;
use coordinator::event::{History, Prepared};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use model::export::PAGE;
use serde::Serialize;
use std::path::{Path, PathBuf};
use types::RunSpec;

/// What all pages look like.
const STYLE: &str = include_str!("report/page.css");
/// How all pages show pictures and tables.
const PARTS: &str = include_str!("report/parts.html");

/// What a page is made of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Source<'a> {
    pub(crate) run: &'a str,
    pub(crate) history: &'a History,
    pub(crate) spec: &'a RunSpec,
    pub(crate) prepared: &'a Prepared,
    pub(crate) timeline: &'a Timeline,
    pub(crate) warnings: &'a [String],
    /// The state folder.
    pub(crate) state: &'a str,
    /// Name and version of the program that wrote the run's report.
    pub(crate) program: &'a str,
}

impl Source<'_> {
    /// Returns the folder that the page tells of.
    fn output(&self) -> &str {
        let written = self.history.materialised.get(&self.history.shots_done());
        written.map_or(&self.spec.output, |written| &written.output)
    }
}

/// Makes the page of a run again.
pub(crate) fn run(args: &ReportArgs) -> Result<(), CliError> {
    let (journal, state) = match (&args.state, &args.run) {
        (Some(state), run) => {
            let state = absolute("STATE", state)?;
            (journal_of(Path::new(&state), run.as_deref())?, state)
        }
        (None, Some(run)) => {
            let journal = remote::journal(&args.remote, run)?;
            // Where a run on this machine would keep its state.
            let state = journal.history.spec.as_ref().map(|spec| format!("{}.state", spec.output));
            (journal, state.unwrap_or_default())
        }
        (None, None) => unreachable!("one of the two is required"),
    };
    let html = render(&journal, &journal.history, &state)?;
    let path = match &args.out {
        Some(path) => path.clone(),
        None => usual_place(&journal)?,
    };
    put(&path, &html).map_err(|source| CliError::PageUnwritten { path: path.clone(), source })?;
    print_line(&path.display().to_string())
}

/// Writes the page into every folder that the run has made.
pub(crate) fn put_all(journal: &Journal, state: &str) -> Result<(), CliError> {
    for (shot, written) in &journal.history.materialised {
        let html = render(journal, &up_to(&journal.history, *shot), state)?;
        let folder = Path::new(&written.output);
        // A folder that somebody has moved away is nobody's loss.
        if folder.is_dir() {
            let path = folder.join(PAGE);
            put(&path, &html).map_err(|source| CliError::PageUnwritten { path, source })?;
        }
    }
    Ok(())
}

fn render(journal: &Journal, history: &History, state: &str) -> Result<String, CliError> {
    let nothing = || {
        CliError::Usage(format!(
            "run {} was stopped before its model and data were read: there is nothing to tell yet",
            journal.run
        ))
    };
    let (Some(spec), Some(prepared)) = (&history.spec, &history.prepared) else { return Err(nothing()) };
    let source = Source {
        run: &journal.run,
        history,
        spec,
        prepared,
        timeline: &journal.timeline,
        warnings: &journal.warnings,
        state,
        program: &journal.program,
    };
    page::page(&source)
}

/// Returns what was known after `shot`, and how the run ended.
fn up_to(history: &History, shot: u32) -> History {
    let mut known = history.clone();
    known.shots.retain(|number, _| *number <= shot);
    known.evaluations.retain(|number, _| *number <= shot);
    known.materialised.retain(|number, _| *number <= shot);
    known
}

fn usual_place(journal: &Journal) -> Result<PathBuf, CliError> {
    let written = journal.history.written().map(|written| PathBuf::from(&written.output));
    written.filter(|folder| folder.is_dir()).map(|folder| folder.join(PAGE)).ok_or_else(|| {
        CliError::Usage(format!(
            "run {} has no output folder to write {PAGE} into; name a file with --out",
            journal.run
        ))
    })
}

/// Returns a template filled with values; what is text in it is escaped.
pub(crate) fn html(name: &'static str, template: &'static str, values: &impl Serialize) -> Result<String, CliError> {
    let mut environment = minijinja::Environment::new();
    let fill = |environment: &mut minijinja::Environment<'static>| {
        // A line with nothing but a tag leaves nothing behind.
        environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
        environment.add_template("parts.html", PARTS)?;
        environment.add_template(name, template)?;
        environment.add_global("style", minijinja::Value::from_safe_string(STYLE.to_owned()));
        environment.get_template(name)?.render(minijinja::Value::from(Serde(values)))
    };
    fill(&mut environment).map_err(|e| CliError::Page(format!("{e:#}")))
}
