//! `eval`: perplexity, speed and memory of model folders, the others set against the first. Uses no service.

use crate::args::EvalArgs;
use crate::error::CliError;
use crate::output::{print, print_json};
use crate::progress::{self, Display};
use crate::prune::{missing_data, usual_seq_len};
use crate::summary::protocol;
use crate::text::{Align, Table, grouped, short_count};
use model::perplexity;
use model::tokens::{self, DataOptions, Segments, Tokenizer};
use model::{Decoder, ModelFolder, Overlay, device};
use serde::Serialize;
use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;
use tch::Device;
use types::{Evaluation, Sizes, format_bytes};

/// Tokens in one forward pass.
const BATCH_TOKENS: u64 = 2048;

/// What was measured of one folder.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Measured {
    model: String,
    family: String,
    sizes: Sizes,
    evaluation: Evaluation,
    tokens_per_second: f64,
    seconds: f64,
    /// Largest resident memory while the model was loaded and evaluated, bytes; `None` where the system does not say.
    peak_memory: Option<u64>,
}

/// Measures every folder.
pub(crate) fn run(args: &EvalArgs) -> Result<(), CliError> {
    let display = progress::start(args.quiet, "warn")?;

    // Everything that can be wrong with a folder is found before the first is measured.
    CliError::from_all(missing_data("--data", &args.data))?;
    let folders = args.models.iter().map(|path| ModelFolder::open(path)).collect::<Result<Vec<_>, _>>()?;
    let usual = folders.iter().map(|folder| usual_seq_len(folder.config())).min().unwrap_or(BATCH_TOKENS);
    let seq_len = args.seq_len.unwrap_or(usual);
    for folder in &folders {
        let tokens = i64::try_from(seq_len).unwrap_or(i64::MAX);
        folder.config().check_length(tokens).map_err(|e| CliError::Usage(format!("--seq-len: {e}")))?;
    }
    args.machine.threads.into_iter().for_each(device::set_threads);
    let place = args.machine.device.open()?;
    let mut measured = Vec::with_capacity(folders.len());
    for folder in folders {
        measured.push(measure(args, &folder, seq_len, place, &display)?);
    }
    if args.json { print_json(&measured) } else { print(&render(&measured)) }
}

fn measure(
    args: &EvalArgs,
    folder: &ModelFolder,
    seq_len: u64,
    place: Device,
    display: &Display,
) -> Result<Measured, CliError> {
    let peak_was_reset = reset_peak_memory();
    let segments = segments(args, folder, seq_len)?;
    let held = (device::kind(args.dtype), place);
    let decoder = Decoder::open(ModelFolder::open(folder.path())?, Overlay::default(), args.machine.weights, held)?;
    let bar = display.bar();
    let name = folder.path().display().to_string();
    let mut progress = |done: u64, total: u64| {
        if let Some(bar) = &bar {
            bar.set_prefix(last_part(folder.path()));
            bar.set_length(total);
            bar.set_position(done);
            bar.set_message(format!("{done} of {total} segments"));
        }
        ControlFlow::Continue(())
    };
    let micro_batch = (BATCH_TOKENS / seq_len).max(1) as usize;
    // The first pass pays for first use of memory and kernels; it is not timed.
    let first = &segments.ids[..micro_batch.min(segments.ids.len())];
    perplexity::evaluate(&decoder, first, micro_batch, &mut |_, _| ControlFlow::Continue(()))?;
    let start = Instant::now();
    let loss = perplexity::evaluate(&decoder, &segments.ids, micro_batch, &mut progress)?;
    let seconds = start.elapsed().as_secs_f64();
    if let Some(bar) = &bar {
        bar.finish_and_clear();
    }
    let evaluation = Evaluation {
        loss: loss.mean,
        perplexity: loss.mean.exp(),
        segments: loss.segments,
        segments_in_data: segments.in_data,
        seq_len,
        dtype: args.dtype.to_string(),
        data: segments.description,
    };
    Ok(Measured {
        model: name,
        family: folder.config().family.name().to_owned(),
        sizes: folder.sizes(),
        evaluation,
        tokens_per_second: (loss.segments * seq_len) as f64 / seconds.max(f64::MIN_POSITIVE),
        seconds,
        peak_memory: peak_was_reset.then(peak_memory).flatten(),
    })
}

fn segments(args: &EvalArgs, folder: &ModelFolder, seq_len: u64) -> Result<Segments, CliError> {
    let tokenizer = Tokenizer::open(folder.path())?;
    let options = DataOptions { paths: args.data.clone(), text_column: args.text_column.clone() };
    let documents = tokens::read_documents(&options, &tokenizer)?;
    Ok(tokens::segments(&documents, &tokenizer, seq_len, args.samples)?)
}

fn last_part(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// Makes the system forget the largest memory so far, so that each model gets its own figure. Returns whether it did.
fn reset_peak_memory() -> bool {
    fs::write("/proc/self/clear_refs", "5").is_ok()
}

/// Returns the largest resident memory since then, in bytes.
fn peak_memory() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

fn render(measured: &[Measured]) -> String {
    let Some(first) = measured.first() else { return String::new() };
    let mut table = Table::new(&[Align::Left; 1].into_iter().chain([Align::Right; 8]).collect::<Vec<_>>());
    let several = measured.len() > 1;
    let mut head = vec!["model", "parameters", "tensors", "perplexity"];
    head.extend(several.then_some("ratio"));
    head.push("tokens/s");
    head.extend(several.then_some("ratio"));
    head.push("peak memory");
    table.row(head);
    for one in measured {
        let ratio = |value: f64, of: f64| several.then(|| format!("× {:.3}", value / of));
        let mut row = vec![
            one.model.clone(),
            short_count(one.sizes.parameters),
            format_bytes(one.sizes.bytes),
            format!("{:.4}", one.evaluation.perplexity),
        ];
        row.extend(ratio(one.evaluation.perplexity, first.evaluation.perplexity));
        row.push(grouped(one.tokens_per_second.round() as u64));
        row.extend(ratio(one.tokens_per_second, first.tokens_per_second));
        row.push(one.peak_memory.map_or_else(|| "-".to_owned(), format_bytes));
        table.row(row);
    }
    format!("{}\n{}", table.render(0), protocols(measured))
}

/// Returns the protocol of every figure: once, if it is the same for all.
fn protocols(measured: &[Measured]) -> String {
    let mut lines: Vec<String> = measured.iter().map(|m| protocol(&m.evaluation)).collect();
    let all_equal = lines.windows(2).all(|pair| pair[0] == pair[1]);
    if all_equal {
        lines.truncate(1);
        return format!("perplexity on {}\n", lines.concat());
    }
    let named = measured.iter().zip(&lines).map(|(m, line)| format!("{}: perplexity on {line}\n", m.model));
    format!("{}warning: the protocols differ, so the perplexities cannot be compared\n", named.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use types::DataDescription;

    fn measured(model: &str, perplexity: f64, tokenizer: &str) -> Measured {
        let data = DataDescription {
            digest: "d".repeat(64),
            tokenizer_digest: tokenizer.repeat(64),
            documents: 1,
            skipped: 0,
            tokens: 9,
            samples: 1,
            sets: 1,
            seq_len: 8,
            overlap: 0,
            bos: false,
        };
        let evaluation = Evaluation {
            loss: perplexity.ln(),
            perplexity,
            segments: 1,
            segments_in_data: 1,
            seq_len: 8,
            dtype: "f32".into(),
            data,
        };
        let sizes = Sizes { prunable: 1, parameters: 2, bytes: 3 };
        let (model, family) = (model.to_owned(), "llama".to_owned());
        Measured { model, family, sizes, evaluation, tokens_per_second: 10.0, seconds: 1.0, peak_memory: None }
    }

    #[test]
    fn folders_are_set_against_the_first_and_one_alone_is_not() {
        let page = render(&[measured("a", 20.0, "t"), measured("b", 25.0, "t")]);
        assert!(page.contains("25.0000  × 1.250"), "{page}");
        assert_eq!(page.matches("perplexity on").count(), 1);
        assert!(!render(&[measured("a", 20.0, "t")]).contains('×'));
    }

    #[test]
    fn perplexities_under_different_tokenizers_are_called_incomparable() {
        let page = render(&[measured("a", 20.0, "t"), measured("b", 25.0, "u")]);
        assert!(page.contains("cannot be compared"), "{page}");
    }

    #[test]
    fn the_peak_is_known_and_can_be_forgotten() {
        if reset_peak_memory() {
            assert!(peak_memory().unwrap() > 1 << 20);
        }
    }
}
