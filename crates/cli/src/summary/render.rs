//! The summary as a page of plain text.

use super::Summary;
use crate::text::{Align, Table, duration, grouped, percent, plural, short_count, short_digest};
use std::fmt::Write as _;
use types::{Evaluation, format_bytes};

/// Layers that are named before the rest is only counted.
const NAMED_LAYERS: usize = 5;

impl Summary {
    /// Returns the page, ended by a line feed.
    pub(crate) fn render(&self) -> String {
        let mut page = String::new();
        let head = format!(
            "Pruned a {} model from {} to {} parameters in {} (run {}).",
            self.family,
            short_count(self.before.parameters),
            short_count(self.after.parameters),
            duration(self.seconds.total),
            self.run
        );
        // Writing to a String does not fail.
        let _ = writeln!(page, "{head}\n");
        page.push_str(&self.figures().render(2));
        if self.structure.keeps_shapes() {
            page.push_str("  (what went is zero, the tensors keep their shapes: same size and speed on disk)\n");
        }
        if let Some(evaluation) = self.evaluation_after.as_ref().or(self.evaluation_before.as_ref()) {
            let _ = writeln!(page, "  perplexity on {}", protocol(evaluation));
        } else {
            page.push_str("  no held-out data: give --eval-data to learn what the pruning cost\n");
        }
        let _ = writeln!(page, "\nTime by stage, all shots\n{}", self.times().render(2));
        let _ = writeln!(page, "Shots\n{}", self.shot_table().render(2));
        for line in self.remarks() {
            let _ = writeln!(page, "{line}");
        }
        for warning in &self.warnings {
            let _ = writeln!(page, "warning: {warning}");
        }
        let _ = writeln!(page, "\n{}", self.places().render(0).trim_end());
        page
    }

    fn figures(&self) -> Table {
        let mut table = Table::new(&[Align::Left, Align::Right, Align::Right, Align::Right]);
        let (before, after) = (self.before, self.after);
        let count = |name: &str, b: u64, a: u64| [name.to_owned(), grouped(b), grouped(a), percent(a, b)];
        table.row(["", "before", "after", ""]);
        table.row(count("prunable weights", before.prunable, after.prunable));
        table.row(count("all parameters", before.parameters, after.parameters));
        let bytes = [format_bytes(before.bytes), format_bytes(after.bytes), percent(after.bytes, before.bytes)];
        table.row(std::iter::once("tensors".to_owned()).chain(bytes));
        if let (Some(b), Some(a)) = (&self.evaluation_before, &self.evaluation_after) {
            table.row(ratio_row("held-out perplexity", b.perplexity, a.perplexity, 3));
        }
        if let (Some(b), Some(a)) = (self.tokens_per_second_before, self.tokens_per_second_after) {
            table.row(ratio_row("tokens per second", b, a, 0));
        }
        if let (Some(b), Some(a)) = (self.peak_memory_before, self.peak_memory_after) {
            table.row(["peak memory, evaluating", &format_bytes(b), &format_bytes(a), &percent(a, b)]);
        }
        table.row(["peak memory of the run", "", &format_bytes(self.peak_memory), ""]);
        table
    }

    fn times(&self) -> Table {
        let mut table = Table::new(&[Align::Left, Align::Right, Align::Left]);
        let (s, sweep) = (&self.seconds, &self.seconds.calibrate);
        table.row(["prepare", &duration(s.prepare), "model and data checked"]);
        table.row(["calibrate", &duration(sweep.total), &format!("{} of factors", format_bytes(self.factor_bytes))]);
        let parts = [
            ("forward", sweep.forward),
            ("head", sweep.head),
            ("backward", sweep.backward),
            ("gram", sweep.gram),
            ("wait", sweep.wait),
        ];
        for (name, seconds) in parts {
            table.row([format!("  {name}"), duration(seconds)]);
        }
        table.row(["score", &duration(s.score), "mostly while earlier blocks were swept"]);
        table.row(["allocate", &duration(s.allocate)]);
        table.row(["update", &duration(s.update)]);
        if s.correct > 0.0 {
            table.row(["correct", &duration(s.correct), "low-rank correction"]);
        }
        table.row(["evaluate", &duration(s.evaluate)]);
        table.row(["materialise", &duration(s.materialise)]);
        table
    }

    fn shot_table(&self) -> Table {
        let mut table = Table::new(&[Align::Right; 6]);
        table.row(["shot", "prunable left", "predicted rise", "measured rise", "perplexity", "largest damping"]);
        for shot in &self.shots {
            table.row([
                shot.shot.to_string(),
                percent(shot.sizes.prunable, self.before.prunable),
                format!("{:.4}", shot.predicted),
                shot.measured.map_or_else(|| "-".to_owned(), |m| format!("{m:.4}")),
                shot.perplexity.map_or_else(|| "-".to_owned(), |p| format!("{p:.3}")),
                format!("{}", shot.largest_damping),
            ]);
        }
        table
    }

    fn remarks(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let mut predicted =
            format!("Predicted rise of the loss: {:.4} nats per token with {} widths", self.predicted, self.shape);
        if let Some(other) = self.predicted_other_shape {
            let _ = write!(predicted, ", {other:.4} if each shot had taken {} ones", self.shape.other());
        }
        lines.push(predicted + ".");
        lines.extend(self.shape_reason.as_ref().map(|reason| format!("Shape {}: {reason}.", self.shape)));
        for shot in self.shots.iter().filter(|shot| shot.taken_back > 0) {
            let times = plural(u64::from(shot.taken_back), "time");
            lines.push(format!("Shot {} was taken back {times}: the held-out loss had risen too far.", shot.shot));
        }
        let [a, g] = self.damping_asked;
        let asked = if (a - g).abs() < f64::EPSILON { format!("{a}") } else { format!("{a} on A, {g} on G") };
        lines.push(match self.raised_layers.len() {
            0 => format!("Largest damping used: {} (asked: {asked}); no layer needed more.", self.largest_damping),
            count => format!(
                "Largest damping used: {} (asked: {asked}); raised for {}: {}{}.",
                self.largest_damping,
                plural(count as u64, "layer"),
                self.raised_layers.iter().take(NAMED_LAYERS).cloned().collect::<Vec<_>>().join(", "),
                if count > NAMED_LAYERS { ", …" } else { "" }
            ),
        });
        if let Some(share) = self.floored {
            let percent = 100.0 * share;
            lines.push(format!(
                "Second terms of the curvature: {percent:.1} % of their directions are held at a floor."
            ));
        }
        lines.push(format!(
            "Largest difference of logits after reading the folder back: {:.1e}.",
            self.logit_difference
        ));
        lines
    }

    fn places(&self) -> Table {
        let mut table = Table::new(&[Align::Left, Align::Left]);
        table.row(["output", &format!("{} (the folder has {})", self.output, format_bytes(self.output_bytes))]);
        for written in &self.on_the_way {
            let left = percent(written.sizes.prunable, self.before.prunable);
            table.row(["also", &format!("{} ({left} of the prunable weights left)", written.output)]);
        }
        let use_of_it = if self.keeps_paths { "other sizes: llm-surgeon materialise" } else { "may be removed" };
        table.row(["state", &format!("{} ({use_of_it})", self.state)]);
        table.row(["check", &self.lm_eval]);
        table
    }
}

fn ratio_row(name: &str, before: f64, after: f64, digits: usize) -> [String; 4] {
    let number = |value: f64| if digits == 0 { grouped(value.round() as u64) } else { format!("{value:.digits$}") };
    [name.to_owned(), number(before), number(after), format!("× {:.3}", after / before)]
}

/// Returns what a perplexity depends on, for people.
pub(crate) fn protocol(evaluation: &Evaluation) -> String {
    let data = &evaluation.data;
    format!(
        "data {}, tokenizer {}, seqlen {}, {} of {} segments, BOS {}, {}",
        short_digest(&data.digest),
        short_digest(&data.tokenizer_digest),
        evaluation.seq_len,
        grouped(evaluation.segments),
        grouped(evaluation.segments_in_data),
        if data.bos { "yes" } else { "no" },
        evaluation.dtype
    )
}
