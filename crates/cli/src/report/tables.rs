//! The tables of one run's page: figures as people read them. Computes none of them anew.

use super::Source;
use super::figures::{ModelCosts, ShotPoint};
use super::units::Left;
use crate::summary::{is_raised, speed};
use crate::text::{duration, grouped, nats, percent};
use serde::Serialize;
use serde_json::Value;
use types::{DampingStep, DataDescription, RunSpec, format_bytes};

/// Points of the whole model's curve that its table shows.
const CURVE_ROWS: usize = 16;

/// A table: the first column names its rows.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Table {
    pub(crate) caption: String,
    pub(crate) columns: Vec<Column>,
    pub(crate) rows: Vec<Vec<String>>,
}

/// A column of a table.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Column {
    pub(crate) name: String,
    /// Whether it holds numbers.
    pub(crate) number: bool,
}

/// A figure with a bar beside it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Bar {
    pub(crate) name: String,
    pub(crate) figure: String,
    pub(crate) note: String,
    /// Length, in percent of the longest.
    pub(crate) length: f64,
    /// Whether it is a part of the one above.
    pub(crate) part: bool,
}

impl Table {
    /// Returns an empty table; the names of columns with words begin with `<`.
    pub(crate) fn new(caption: &str, columns: &[&str]) -> Self {
        let column = |name: &&str| match name.strip_prefix('<') {
            Some(words) => Column { name: words.to_owned(), number: false },
            None => Column { name: (*name).to_owned(), number: true },
        };
        Self { caption: caption.to_owned(), columns: columns.iter().map(column).collect(), rows: Vec::new() }
    }

    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = impl Into<String>>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }
}

pub(crate) fn sizes(source: &Source<'_>) -> Table {
    let mut table = Table::new("Before and after", &["<", "before", "after", "after / before"]);
    let history = source.history;
    let last = history.shots_done();
    if let (Some(before), Some(after)) = (history.sizes(0), history.sizes(last)) {
        let count = |name: &str, b: u64, a: u64| [name.to_owned(), grouped(b), grouped(a), percent(a, b)];
        table.row(count("prunable weights", before.prunable, after.prunable));
        table.row(count("all parameters", before.parameters, after.parameters));
        let bytes = [format_bytes(before.bytes), format_bytes(after.bytes), percent(after.bytes, before.bytes)];
        table.row(std::iter::once("tensors".to_owned()).chain(bytes));
    }
    let (dense, pruned) = (history.evaluations.get(&0), history.evaluations.get(&last));
    if let (Some(b), Some(a)) = (dense, pruned) {
        let (before, after) = (&b.evaluation, &a.evaluation);
        let ratio = |b: f64, a: f64| format!("× {:.3}", a / b);
        let row = |name: &str, b: f64, a: f64, digits: usize| {
            [name.to_owned(), format!("{b:.digits$}"), format!("{a:.digits$}"), ratio(b, a)]
        };
        table.row(row("held-out perplexity", before.perplexity, after.perplexity, 3));
        let rise = format!("+ {}", nats(after.loss - before.loss)).replace("+ -", "− ");
        table.row(["held-out loss, nats".into(), nats(before.loss), nats(after.loss), rise]);
        if let (Some(b), Some(a)) = (speed(b), speed(a)) {
            let count = |tokens: f64| grouped(tokens.round() as u64);
            table.row(["tokens per second".into(), count(b), count(a), ratio(b, a)]);
        }
    }
    let last = history.evaluations.get(&history.shots_done()).filter(|_| history.shots_done() > 0);
    if let (Some(b), Some(a)) = (dense, last) {
        table.row(["peak memory, evaluating".into(), format_bytes(b.peak_memory), format_bytes(a.peak_memory)]);
    }
    table
}

pub(crate) fn removed(left: &[Left]) -> Table {
    let columns = ["<layer", "block", "<what", "before", "left", "removed", "predicted rise"];
    let mut table = Table::new("What is left of each layer", &columns);
    for one in left {
        table.row([
            one.layer.to_string(),
            one.block.to_string(),
            one.kind.clone(),
            grouped(one.before),
            grouped(one.after),
            percent(one.before - one.after.min(one.before), one.before),
            nats(one.predicted),
        ]);
    }
    table
}

/// Returns every some-th point of the last shot's curve.
pub(crate) fn curve(costs: &[ModelCosts]) -> Option<Table> {
    let last = costs.last()?;
    let mut table = Table::new(
        &format!("Sizes that shot {} could have ended at", last.shot),
        &["size left", "predicted rise, nats per token"],
    );
    let every = last.points.len().div_ceil(CURVE_ROWS).max(1);
    for (left, rise) in last.points.iter().step_by(every) {
        table.row([format!("{:.1} %", 100.0 * left), nats(*rise)]);
    }
    Some(table)
}

pub(crate) fn shots(source: &Source<'_>, points: &[ShotPoint]) -> Table {
    let corrected = source.history.shots.values().any(|s| s.corrected.is_some());
    let taken_back = source.history.shots.values().any(|s| s.taken_back > 0);
    let mut columns = vec!["shot", "weights left", "calibration loss", "predicted rise", "measured rise", "perplexity"];
    columns.extend(["threshold", "largest damping"]);
    columns.extend(corrected.then_some("correction"));
    columns.extend(taken_back.then_some("taken back"));
    let mut table = Table::new("Shots", &columns);
    let dash = || "–".to_owned();
    for point in points {
        let Some(known) = source.history.shots.get(&point.shot) else { continue };
        let cut = known.cut.as_ref();
        let mut row = vec![
            point.shot.to_string(),
            format!("{:.1} %", 100.0 * point.size),
            known.calibration_loss().map_or_else(dash, |loss| format!("{loss:.4}")),
            nats(point.predicted),
            point.measured.map_or_else(dash, nats),
            point.loss.map_or_else(dash, |loss| format!("{:.3}", loss.exp())),
            cut.and_then(|c| c.threshold).map_or_else(dash, |t| format!("{t:.2e}")),
            cut.map_or_else(dash, |c| c.largest_damping.to_string()),
        ];
        let helped = |c: &types::CorrectionReport| format!("{:.4} → {:.4}", c.loss_before, c.loss_after);
        row.extend(corrected.then(|| known.corrected.as_ref().map_or_else(dash, |c| helped(&c.report))));
        row.extend(taken_back.then(|| known.taken_back.to_string()));
        table.row(row);
    }
    table
}

/// Returns the layers whose damping had to be raised.
pub(crate) fn raised(source: &Source<'_>) -> Option<Table> {
    let mut table =
        Table::new("Layers whose damping was raised", &["<layer", "shot", "<inputs (A)", "<output gradients (G)"]);
    let used = |step: &Option<DampingStep>, asked: f64| match step {
        Some(step) if step.raised > 0 => format!("{asked} → {} in {:?}", step.lambda, step.precision).to_lowercase(),
        Some(step) => step.lambda.to_string(),
        None => "–".to_owned(),
    };
    let spec = source.spec;
    for (shot, cut) in source.history.shots.iter().filter_map(|(shot, s)| s.cut.as_ref().map(|c| (shot, c))) {
        for layer in cut.layers.iter().filter(|l| is_raised(&l.damping)) {
            let (a, g) = (used(&layer.damping.a, spec.damping_a), used(&layer.damping.g, spec.damping_g));
            table.row([layer.layer.to_string(), shot.to_string(), a, g]);
        }
    }
    (!table.rows.is_empty()).then_some(table)
}

/// Returns where the time went.
pub(crate) fn times(source: &Source<'_>) -> Vec<Bar> {
    let (t, sweep) = (source.timeline, source.timeline.calibrate);
    let factors: u64 = source.history.shots.values().flat_map(|s| s.shards.values()).map(|s| s.factor_bytes).sum();
    let stages: [(&str, f64, String, bool); 13] = [
        ("prepare", t.prepare, "model and data checked".into(), false),
        ("calibrate", sweep.total, format!("{} of factors", format_bytes(factors)), false),
        ("forward", sweep.forward, String::new(), true),
        ("head", sweep.head, "norm, output, loss".into(), true),
        ("backward", sweep.backward, String::new(), true),
        ("gram", sweep.gram, "sums of factors".into(), true),
        ("wait", sweep.wait, "for the surgeon".into(), true),
        ("score", t.score, "computing; mostly while earlier blocks were swept".into(), false),
        ("allocate", t.allocate, "the cut".into(), false),
        ("update", t.update, "computing new weights".into(), false),
        ("correct", t.correct, "low-rank corrections".into(), false),
        ("evaluate", t.evaluate, "held-out loss".into(), false),
        ("materialise", t.materialise, "written, read back, compared".into(), false),
    ];
    let longest = stages.iter().map(|s| s.1).fold(f64::MIN_POSITIVE, f64::max);
    let bars = stages.into_iter().filter(|(name, seconds, ..)| *name != "correct" || *seconds > 0.0);
    bars.map(|(name, seconds, note, part)| Bar {
        name: name.to_owned(),
        figure: duration(seconds),
        note,
        length: 100.0 * seconds / longest,
        part,
    })
    .collect()
}

/// Returns the largest memory during each stage.
pub(crate) fn memory(source: &Source<'_>) -> Vec<Bar> {
    let history = source.history;
    let mut steps: Vec<(String, u64)> = Vec::new();
    let evaluated = |shot: u32| history.evaluations.get(&shot).map(|e| e.peak_memory);
    steps.extend(evaluated(0).map(|bytes| ("dense model evaluated".to_owned(), bytes)));
    for (shot, known) in &history.shots {
        let stages = [
            ("calibrate", known.shards.values().map(|s| s.peak_memory).max()),
            ("score", known.scored.values().map(|b| b.peak_memory).max()),
            ("update", known.updated.values().map(|b| b.peak_memory).max()),
            ("correct", known.corrected.as_ref().map(|c| c.peak_memory)),
            ("evaluate", evaluated(*shot)),
            ("materialise", history.materialised.get(shot).map(|m| m.peak_memory)),
        ];
        let told = stages.into_iter().filter_map(|(name, bytes)| Some((format!("shot {shot}: {name}"), bytes?)));
        steps.extend(told.filter(|(_, bytes)| *bytes > 0)); // earlier programs did not measure all of them
    }
    let most = steps.iter().map(|s| s.1).max().unwrap_or(1).max(1) as f64;
    let bar = |(name, bytes): (String, u64)| Bar {
        name,
        figure: format_bytes(bytes),
        note: String::new(),
        length: 100.0 * bytes as f64 / most,
        part: false,
    };
    steps.into_iter().map(bar).collect()
}

pub(crate) fn data(calibration: &DataDescription, held_out: Option<&DataDescription>) -> Table {
    let mut table = Table::new("Data", &["<", "calibration", "held-out"]);
    let mut row = |name: &str, of: &dyn Fn(&DataDescription) -> String| {
        table.row([name.to_owned(), of(calibration), held_out.map_or_else(|| "–".to_owned(), of)]);
    };
    row("documents", &|d| grouped(d.documents));
    row("documents skipped, empty", &|d| grouped(d.skipped));
    row("tokens in them", &|d| grouped(d.tokens));
    row("samples (segments)", &|d| grouped(d.samples));
    row("tokens a sample", &|d| grouped(d.seq_len));
    row("BOS token", &|d| if d.bos { "yes" } else { "no" }.to_owned());
    row("documents shared with calibration", &|d| grouped(d.overlap));
    table
}

/// Returns every field of the specification, as the record has it.
pub(crate) fn specification(spec: &RunSpec) -> Table {
    let mut table = Table::new("Specification", &["<field", "<value"]);
    let plain = |value: Value| match value {
        Value::String(text) => text,
        Value::Null => "none".to_owned(),
        Value::Array(list) if list.is_empty() => "none".to_owned(),
        other => other.to_string(),
    };
    if let Ok(Value::Object(fields)) = serde_json::to_value(spec) {
        for (name, value) in fields {
            table.row([name, plain(value)]);
        }
    }
    table
}
