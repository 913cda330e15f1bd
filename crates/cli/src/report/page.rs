//! The page of one run: from the journal's history to HTML. Pure.

use super::figures::{self, ShotPoint};
use super::plot::Plot;
use super::tables::{self, Bar, Table};
use super::units::{self, Left};
use super::{Source, html};
use crate::error::CliError;
use crate::prune::command;
use crate::summary::{lm_eval, peak_memory, protocol, speed};
use crate::text::{duration, grouped, nats, percent, plural, short_count};
use coordinator::event::Ending;
use serde::Serialize;
use types::{Curvature, RunSpec, Structure, Target, Update, format_bytes};

const TEMPLATE: &str = include_str!("report.html");

/// What the template shows.
#[derive(Debug, Serialize)]
struct Page {
    title: String,
    subtitle: String,
    /// What became of a run that did not end well (yet).
    unfinished: Option<String>,
    tiles: Vec<Tile>,
    warnings: Vec<String>,
    sizes: Table,
    protocol: Option<String>,
    keeps_shapes: bool,
    heat_map: Option<Plot>,
    removed_note: String,
    removed: Table,
    curve_notes: Vec<String>,
    curves: Vec<Plot>,
    curve: Option<Table>,
    shot_plots: Vec<Plot>,
    shots: Table,
    threshold_unit: &'static str,
    total_time: String,
    times: Vec<Bar>,
    memory: Vec<Bar>,
    damping_notes: Vec<String>,
    raised: Option<Table>,
    data: Table,
    digests: Vec<(String, String)>,
    command: String,
    lm_eval: String,
    specification: Table,
    program: String,
}

/// A figure of the headline.
#[derive(Debug, Serialize)]
struct Tile {
    label: &'static str,
    before: Option<String>,
    after: String,
    note: String,
}

/// Returns the page.
pub(crate) fn page(source: &Source<'_>) -> Result<String, CliError> {
    html("report.html", TEMPLATE, &filled(source)?)
}

fn filled(source: &Source<'_>) -> Result<Page, CliError> {
    let (history, spec, prepared) = (source.history, source.spec, &source.prepared);
    let left = units::left(history, prepared);
    let kinds = units::kinds(&left);
    let points = shot_points(source);
    let model_costs = figures::model_costs(history);
    let mut curves: Vec<Plot> = Vec::new();
    curves.extend(figures::model_plot(&model_costs, measure(&spec.target))?);
    curves.extend(figures::layer_plots(&figures::layer_costs(history, &left), &kinds)?);
    let mut shot_plots: Vec<Plot> = Vec::new();
    shot_plots.extend(figures::loss_plot(history.evaluations.get(&0).map(|e| e.evaluation.loss), &points)?);
    shot_plots.extend(figures::agreement_plot(&points)?);
    let last = history.evaluations.get(&history.shots_done()).or_else(|| history.evaluations.get(&0));
    Ok(Page {
        title: title(source),
        subtitle: subtitle(source),
        unfinished: unfinished(source),
        tiles: tiles(source),
        warnings: source.warnings.to_vec(),
        sizes: tables::sizes(source),
        protocol: last.map(|e| protocol(&e.evaluation)),
        keeps_shapes: spec.structure.keeps_shapes(),
        heat_map: figures::heat_map(&left)?,
        removed_note: removed_note(&left, &kinds),
        removed: tables::removed(&left),
        curve_notes: curve_notes(source, curves.is_empty()),
        curves,
        curve: tables::curve(&model_costs),
        shot_plots,
        shots: tables::shots(source, &points),
        threshold_unit: threshold_unit(spec),
        total_time: duration(source.timeline.total),
        times: tables::times(source),
        memory: tables::memory(source),
        damping_notes: damping_notes(source),
        raised: tables::raised(source),
        data: tables::data(&prepared.data, prepared.eval_data.as_ref()),
        digests: digests(source),
        command: command(spec, source.state),
        lm_eval: lm_eval(source.output(), spec, history.shape()),
        specification: tables::specification(spec),
        program: source.program.to_owned(),
    })
}

fn shot_points(source: &Source<'_>) -> Vec<ShotPoint> {
    let history = source.history;
    let dense = source.prepared.model.dense.prunable.max(1) as f64;
    let loss = |shot: u32| history.evaluations.get(&shot).map(|e| e.evaluation.loss);
    let point = |(shot, known): (&u32, &coordinator::event::ShotHistory)| {
        let committed = known.committed.as_ref()?;
        Some(ShotPoint {
            shot: *shot,
            size: committed.sizes.prunable as f64 / dense,
            loss: loss(*shot),
            predicted: committed.predicted,
            measured: loss(*shot).zip(loss(shot - 1)).map(|(after, before)| after - before),
        })
    };
    history.shots.iter().filter_map(point).collect()
}

fn title(source: &Source<'_>) -> String {
    let model = last_part(&source.spec.model);
    let (history, dense) = (source.history, source.prepared.model.dense);
    match history.sizes(history.shots_done()) {
        Some(now) if history.shots_done() > 0 => {
            format!("{model} at {} of its prunable weights", percent(now.prunable, dense.prunable))
        }
        _ => model.to_owned(),
    }
}

fn subtitle(source: &Source<'_>) -> String {
    let spec = source.spec;
    let structure = spec.structure_name();
    let shape = if spec.structure == Structure::Coupled {
        format!(", {} widths", source.history.shape())
    } else {
        String::new()
    };
    let shots = plural(source.history.shots_done().into(), "shot");
    format!("{}; {structure}{shape}; {shots}; run {}", method(spec), source.run)
}

/// Returns the name of the method, where it has one.
pub(crate) fn method(spec: &RunSpec) -> String {
    let name = match (spec.curvature, spec.update) {
        (Curvature::Kfac, Update::Correlated) => "LLM Surgeon",
        (Curvature::Kfac, Update::Independent) => "LLM Surgeon, independent updates",
        (Curvature::Kfac, Update::None) => "K-OBD",
        (Curvature::Activations, Update::None) => "L-OBD",
        (Curvature::Diagonal, Update::None) => "exact diagonal of the Fisher",
        (Curvature::Identity, Update::None) => "magnitude pruning",
        (curvature, update) => return format!("curvature {curvature}, update {update}"),
    };
    name.to_owned()
}

fn unfinished(source: &Source<'_>) -> Option<String> {
    match &source.history.ending {
        Some(Ending::Succeeded) => None,
        Some(Ending::Failed { code, reason }) => Some(format!("The run failed [{code}]: {reason}")),
        Some(Ending::Cancelled) => Some("The run was cancelled.".to_owned()),
        None => Some("The run has not ended: this is what is committed so far.".to_owned()),
    }
}

fn tiles(source: &Source<'_>) -> Vec<Tile> {
    let (history, dense) = (source.history, source.prepared.model.dense);
    let last = history.shots_done();
    let now = history.sizes(last).unwrap_or(dense);
    let left = percent(now.prunable, dense.prunable);
    // Where tensors keep their shapes, the count of parameters tells nothing.
    let (label, [b, a], note) = if source.spec.structure.keeps_shapes() {
        ("Prunable weights", [dense.prunable, now.prunable], format!("{left} are not zero"))
    } else {
        ("Parameters", [dense.parameters, now.parameters], format!("{left} of the prunable weights"))
    };
    let mut tiles = vec![Tile { label, before: Some(parameters(b)), after: parameters(a), note }];
    let (before, after) = (history.evaluations.get(&0), history.evaluations.get(&last));
    if let (Some(b), Some(a)) = (before, after) {
        let (dense, pruned) = (b.evaluation.perplexity, a.evaluation.perplexity);
        tiles.push(Tile {
            label: "Held-out perplexity",
            before: Some(format!("{dense:.2}")),
            after: format!("{pruned:.2}"),
            note: format!("× {:.3}", pruned / dense),
        });
        if let (Some(b), Some(a)) = (speed(b), speed(a)) {
            tiles.push(Tile {
                label: "Tokens per second",
                before: Some(grouped(b.round() as u64)),
                after: grouped(a.round() as u64),
                note: "in the run's own evaluations".to_owned(),
            });
        }
    }
    let peak = peak_memory(history);
    if peak > 0 {
        let note = format!("of the run, in {}", duration(source.timeline.total));
        tiles.push(Tile { label: "Peak memory", before: None, after: format_bytes(peak), note });
    }
    tiles
}

fn parameters(count: u64) -> String {
    if count < 10_000_000 { grouped(count) } else { short_count(count) }
}

fn removed_note(left: &[Left], kinds: &[String]) -> String {
    let of_kind = |kind: &String| {
        let all = left.iter().filter(|l| l.kind == *kind);
        let (before, after) = all.fold((0, 0), |(b, a), l| (b + l.before, a + l.after));
        format!("{} of {} {kind}", percent(before.saturating_sub(after), before), grouped(before))
    };
    if kinds.len() > 3 {
        return format!("Shares of the weights of {} layers.", left.len());
    }
    format!("Gone are {}.", kinds.iter().map(of_kind).collect::<Vec<_>>().join(" and "))
}

fn curve_notes(source: &Source<'_>, without_curves: bool) -> Vec<String> {
    let history = source.history;
    let mut notes = Vec::new();
    if without_curves {
        notes.push("The journal of this run holds no curves: it was written by an earlier version.".to_owned());
    } else if source.spec.structure.is_masked() {
        let alone = "The curves add up what each weight (n:m: each window) would cost alone, in the last round; it was chosen by \
                     that. What they cost together, after the update, is the prediction above.";
        notes.push(alone.to_owned());
    }
    let cut = history.shots.get(&history.shots_done()).and_then(|s| s.cut.as_ref());
    if let Some(threshold) = cut.and_then(|c| c.threshold) {
        let what = threshold_unit(source.spec);
        notes.push(format!("The threshold of the last shot: what went cost at most {threshold:.2e} {what}."));
    }
    notes.extend(history.shape_choice().map(|choice| format!("Shape {}: {}.", choice.shape, choice.reason)));
    let cuts = || history.shots.values().filter(|s| s.committed.is_some()).filter_map(|s| s.cut.as_ref());
    let others: Option<Vec<f64>> = cuts().map(|c| c.predicted_other_shape).collect();
    if let Some(all) = others.filter(|all| !all.is_empty()) {
        let shape = history.shape();
        let other = shape.other();
        let own: f64 = history.shots.values().filter_map(|s| s.committed.as_ref()).map(|c| c.predicted).sum();
        notes.push(format!(
            "Predicted rise in all: {} with {} widths, {} if each shot had taken {other} ones.",
            nats(own),
            shape,
            nats(all.iter().sum())
        ));
    }
    notes
}

/// Returns what the threshold is counted in.
fn threshold_unit(spec: &RunSpec) -> &'static str {
    let paper = spec.structure == Structure::RowColumn && spec.scoring == types::Scoring::Independent;
    if paper { "nats per token" } else { "nats per token and freed weight" }
}

fn damping_notes(source: &Source<'_>) -> Vec<String> {
    let spec = source.spec;
    let largest = source.history.shots.values().filter_map(|s| s.cut.as_ref()).map(|c| c.largest_damping);
    let largest = largest.fold(0.0, f64::max);
    let asked = format!("Asked for: {} on A (inputs), {} on G (output gradients)", spec.damping_a, spec.damping_g);
    let mut notes = vec![format!(
        "{asked}, as a fraction of the {}. Largest used: {largest}.",
        match spec.damping_scale {
            types::DampingScale::Diagonal => "diagonal's own entries",
            types::DampingScale::Mean => "diagonal's mean",
        }
    )];
    if tables::raised(source).is_none() {
        notes.push("No layer needed more than was asked for.".to_owned());
    }
    notes
}

fn digests(source: &Source<'_>) -> Vec<(String, String)> {
    let prepared = &source.prepared;
    let mut digests = vec![
        ("model", prepared.model.digest.clone()),
        ("tokenizer", prepared.data.tokenizer_digest.clone()),
        ("calibration data", prepared.data.digest.clone()),
    ];
    digests.extend(prepared.eval_data.as_ref().map(|data| ("held-out data", data.digest.clone())));
    let written = source.history.materialised.get(&source.history.shots_done());
    digests.extend(written.map(|w| ("output folder, without this page", w.blake3.clone())));
    digests.into_iter().map(|(name, digest)| (name.to_owned(), digest)).collect()
}

fn measure(target: &Target) -> &'static str {
    match target {
        Target::Size(_) => "prunable weights left",
        Target::Parameters(_) => "parameters left",
        Target::Bytes(_) => "bytes left",
    }
}

/// Returns the last part of a path, for a title.
pub(crate) fn last_part(path: &str) -> &str {
    path.trim_end_matches('/').rsplit('/').next().unwrap_or(path)
}
