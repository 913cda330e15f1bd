//! The comparison as text and as a page.

use super::{Compared, Comparison};
use crate::error::CliError;
use crate::report::plot::{ACCENT, About, Axes, INK, MARK, MUTED, Plot, Unit, chart, dashes, dots, label};
use crate::report::{Column, Grid, html, last_part};
use crate::text::{Align, Table, grouped, nats, percent, short_digest};
use serde::Serialize;
use std::fmt::Write as _;
use types::format_bytes;

const TEMPLATE: &str = include_str!("compare.html");

/// What the template shows.
#[derive(Debug, Serialize)]
struct Page<'a> {
    title: String,
    warnings: &'a [String],
    figures: Grid,
    plot: Option<Plot>,
    notes: Vec<String>,
}

/// A line of the comparison: what it is, and how a folder shows it.
type Line = (&'static str, fn(&Compared) -> String);

const LINES: [Line; 14] = [
    ("model", |c| format!("{} ({})", c.model, c.family)),
    ("model digest", |c| short_digest(&c.model_digest).to_owned()),
    ("method", |c| c.method.clone()),
    ("structure", Compared::form),
    ("shots", |c| c.shots.to_string()),
    ("prunable left", |c| percent(c.after.prunable, c.before.prunable)),
    ("parameters", |c| grouped(c.after.parameters)),
    ("parameters left", |c| percent(c.after.parameters, c.before.parameters)),
    ("tensors", |c| format_bytes(c.after.bytes)),
    ("dense perplexity", |c| number(c.perplexity_before, 3)),
    ("perplexity", |c| number(c.perplexity_after, 3)),
    ("ratio to dense", |c| c.ratio().map_or_else(|| "-".to_owned(), |ratio| format!("× {ratio:.3}"))),
    ("predicted rise", |c| nats(c.predicted)),
    ("run", |c| c.run.clone()),
];

fn number(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
}

/// Returns the comparison as text, a column a folder.
pub(super) fn text(comparison: &Comparison) -> String {
    let columns: Vec<Align> =
        std::iter::once(Align::Left).chain(comparison.folders.iter().map(|_| Align::Right)).collect();
    let mut table = Table::new(&columns);
    table.row(std::iter::once(String::new()).chain(names(comparison)));
    for (name, value) in LINES {
        table.row(std::iter::once(name.to_owned()).chain(comparison.folders.iter().map(value)));
    }
    let mut page = table.render(0);
    page.push('\n');
    for line in protocols(comparison) {
        let _ = writeln!(page, "{line}"); // writing to a String does not fail
    }
    for warning in &comparison.warnings {
        let _ = writeln!(page, "warning: {warning}");
    }
    page
}

/// Returns short names of the folders: their last part where that tells them apart.
fn names(comparison: &Comparison) -> Vec<String> {
    let short: Vec<&str> = comparison.folders.iter().map(|c| last_part(&c.folder)).collect();
    let apart = |name: &str| short.iter().filter(|other| **other == name).count() == 1;
    let folders = comparison.folders.iter().zip(&short);
    folders.map(|(c, name)| if apart(name) { (*name).to_owned() } else { c.folder.clone() }).collect()
}

/// Returns the protocol of every perplexity: once, if it is the same for all.
fn protocols(comparison: &Comparison) -> Vec<String> {
    let known: Vec<(String, &String)> = names(comparison)
        .into_iter()
        .zip(&comparison.folders)
        .filter_map(|(n, c)| c.protocol.as_ref().map(|p| (n, p)))
        .collect();
    match known.first() {
        None => Vec::new(),
        Some((_, first)) if known.iter().all(|(_, p)| p == first) => vec![format!("perplexity on {first}")],
        Some(_) => known.iter().map(|(name, p)| format!("{name}: perplexity on {p}")).collect(),
    }
}

/// Returns the comparison as a page.
pub(super) fn page(comparison: &Comparison) -> Result<String, CliError> {
    let names = names(comparison);
    let columns = std::iter::once(Column { name: String::new(), number: false });
    let figures = Grid {
        caption: "Figures of each folder's report".to_owned(),
        columns: columns.chain(names.iter().map(|name| Column { name: name.clone(), number: true })).collect(),
        rows: LINES
            .iter()
            .map(|(name, value)| {
                std::iter::once((*name).to_owned()).chain(comparison.folders.iter().map(value)).collect()
            })
            .collect(),
    };
    let own = |(name, c): (&String, &Compared)| c.warnings.iter().map(|w| format!("{name}: {w}")).collect::<Vec<_>>();
    let page = Page {
        title: format!("{} pruned models side by side", comparison.folders.len()),
        warnings: &comparison.warnings,
        figures,
        plot: plot(comparison, &names)?,
        notes: protocols(comparison).into_iter().chain(names.iter().zip(&comparison.folders).flat_map(own)).collect(),
    };
    html("compare.html", TEMPLATE, &page)
}

/// Returns perplexity against size: relative to the dense model, where base models or protocols differ.
fn plot(comparison: &Comparison, names: &[String]) -> Result<Option<Plot>, CliError> {
    let relative = !comparison.warnings.is_empty();
    let value = |c: &Compared| if relative { c.ratio() } else { c.perplexity_after };
    let points: Vec<(&String, (f64, f64))> =
        names.iter().zip(&comparison.folders).filter_map(|(name, c)| value(c).map(|v| (name, (c.size(), v)))).collect();
    let dense = if relative { Some(1.0) } else { comparison.folders.iter().find_map(|c| c.perplexity_before) };
    let (Some(dense), false) = (dense, points.is_empty()) else { return Ok(None) };
    let low = points.iter().map(|p| p.1.1).fold(dense, f64::min);
    let high = points.iter().map(|p| p.1.1).fold(dense, f64::max);
    let smallest = points.iter().map(|p| p.1.0).fold(1.0, f64::min);
    let margin = 0.12 * (high - low);
    let axes = Axes {
        x: (1.0 + 0.05 * (1.0 - smallest), smallest - 0.1 * (1.0 - smallest)),
        y: (low - margin, high + margin),
        x_label: "prunable weights left",
        y_label: if relative { "perplexity relative to the dense model" } else { "held-out perplexity" },
        x_unit: Unit::Percent,
    };
    let about = About {
        id: "comparison",
        title: "Perplexity against size".into(),
        description: points.iter().fold(format!("The dense model: {dense:.3}."), |text, (name, (size, value))| {
            format!("{text} {name}: {value:.3} at {:.1} %.", 100.0 * size)
        }),
    };
    let plot = chart(about, &axes, |chart| {
        dashes(chart, [(axes.x.0, dense), (axes.x.1, dense)], MUTED)?;
        dots(chart, &[(1.0, dense)], 4, ACCENT)?;
        label(chart, (1.0, dense), (8, 10), "dense", MUTED)?;
        let middle = 0.5 * (1.0 + smallest);
        for (name, point) in &points {
            dots(chart, &[*point], 4, MARK)?;
            let away = if point.0 > middle { (8, 10) } else { (-8, 10) };
            label(chart, *point, away, name, INK)?;
        }
        Ok(())
    })?;
    Ok(Some(plot))
}
