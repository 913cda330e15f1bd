//! Corrects a model folder in memory and prints held-out losses and seconds per step.
//!
//! ```text
//! cargo run --release -p model --example correct -- \
//!     model=SMALLER data=TEXT held_out=HELD_OUT steps=5 batch=2 tokens=256 \
//!     samples=32 segments=8 rank=8 rate=1e-3 every=0 remove=0 zeros=no dtype=f32 device=cpu seed=0
//! ```
//!
//! `model` is best one that has lost something; for one that has not, `remove=20` takes away the 20 % of each MLP's
//! channels whose columns of the consumer are smallest, with nothing to make up for them. `zeros=weights` lets
//! weights that are zero stay zero, `zeros=rows-columns` whole rows and columns of them, `zeros=no` lets all learn. The
//! loss is measured on as many other segments as well: what a choice by held-out loss gains on the segments it was made
//! on is worth less elsewhere.

// What a person runs may print.
#![allow(clippy::print_stdout)]

use model::correct::{self, CorrectOptions, Zeros};
use model::device::DeviceChoice;
use model::tokens::{DataOptions, Draw, Tokenizer, pack_samples, read_documents, segments};
use model::{Decoder, Linear, Mlp, ModelFolder, Overlay, perplexity};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;
use tch::{Kind, Tensor};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// What to do, by `key=value`.
struct Settings(BTreeMap<String, String>);

impl Settings {
    fn read() -> Result<Self> {
        let pair = |arg: String| Some(arg.split_once('=')?).map(|(key, value)| (key.to_owned(), value.to_owned()));
        let pairs = std::env::args().skip(1).map(|arg| pair(arg.clone()).ok_or(format!("'{arg}' is not key=value")));
        Ok(Self(pairs.collect::<std::result::Result<_, _>>()?))
    }

    fn text<'a>(&'a self, key: &str, default: &'a str) -> &'a str {
        self.0.get(key).map_or(default, String::as_str)
    }

    fn number(&self, key: &str, default: u32) -> Result<u32> {
        Ok(self.text(key, &default.to_string()).parse()?)
    }

    fn real(&self, key: &str, default: f64) -> Result<f64> {
        Ok(self.text(key, &default.to_string()).parse()?)
    }
}

/// Takes away the smallest `percent` of each MLP's channels.
fn remove_channels(decoder: &mut Decoder, percent: u32) -> Result<()> {
    for block in decoder.resident_mut()? {
        let channels = block.mlp.channels();
        let left = channels - channels * i64::from(percent) / 100;
        let norms = block.mlp.consumer().weight.f_to_kind(Kind::Float)?.f_square()?.f_sum_dim_intlist(
            [0i64].as_slice(),
            false,
            Kind::Float,
        )?;
        let kept = norms.f_topk(left, 0, true, true)?.1.f_sort(0, false)?.0;
        let rows = |layer: &mut Linear| -> Result<()> {
            layer.weight = layer.weight.f_index_select(0, &kept)?;
            layer.bias = layer.bias.as_ref().map(|bias| bias.f_index_select(0, &kept)).transpose()?;
            Ok(())
        };
        let consumer = match &mut block.mlp {
            Mlp::Gated { gate, up, down, .. } => {
                rows(gate)?;
                rows(up)?;
                down
            }
            Mlp::Plain { fc1, fc2, .. } => {
                rows(fc1)?;
                fc2
            }
        };
        consumer.weight = consumer.weight.f_index_select(1, &kept)?;
    }
    Ok(())
}

/// Calibration samples, and held-out segments in two sets: to choose by and to report on.
struct Data {
    samples: Vec<Vec<i64>>,
    held_out: Vec<Vec<i64>>,
    others: Vec<Vec<i64>>,
}

impl Data {
    fn read(settings: &Settings, folder: &Path) -> Result<Self> {
        let tokenizer = Tokenizer::open(folder)?;
        let documents = |paths: &str| {
            let options = DataOptions { paths: vec![paths.to_owned()], text_column: "text".to_owned() };
            read_documents(&options, &tokenizer)
        };
        let seq_len = settings.number("tokens", 256)?.into();
        let draw = Draw { seq_len, samples: settings.number("samples", 32)?.into(), sets: 1, seed: 0 };
        let samples = pack_samples(&documents(settings.text("data", ""))?, &tokenizer, draw)?.ids;
        let segments_each = settings.number("segments", 8)? as usize;
        let held_out = documents(settings.text("held_out", ""))?;
        let all = segments(&held_out, &tokenizer, seq_len, 2 * segments_each as u64)?.ids;
        let (mut held_out, mut others) = (Vec::new(), Vec::new());
        for (number, segment) in all.into_iter().enumerate() {
            if number % 2 == 0 { held_out.push(segment) } else { others.push(segment) }
        }
        Ok(Self { samples, held_out, others })
    }
}

fn main() -> Result<()> {
    let settings = Settings::read()?;
    let device = settings.text("device", "cpu").parse::<DeviceChoice>()?.open()?;
    let kind = match settings.text("dtype", "f32") {
        "f32" => Kind::Float,
        "bf16" => Kind::BFloat16,
        other => return Err(format!("unknown dtype '{other}', expected f32 or bf16").into()),
    };
    let path = Path::new(settings.text("model", ""));
    let mut decoder = Decoder::load(&ModelFolder::open(path)?, &Overlay::default(), kind, device)?;
    tch::no_grad(|| remove_channels(&mut decoder, settings.number("remove", 0)?))?;
    let data = Data::read(&settings, path)?;
    let defaults = CorrectOptions::default();
    let rank = settings.number("rank", defaults.rank)?;
    let options = CorrectOptions {
        rank,
        alpha: settings.real("alpha", f64::from(rank))?,
        steps: settings.number("steps", 5)?,
        learning_rate: settings.real("rate", defaults.learning_rate)?,
        weight_decay: settings.real("decay", defaults.weight_decay)?,
        batch: settings.number("batch", 2)? as usize,
        micro_batch: settings.number("micro", 1)? as usize,
        seed: settings.number("seed", 0)?.into(),
        check_every: settings.number("every", 0)?,
        patience: settings.number("patience", defaults.patience)?,
        ..defaults
    };
    let kept = match settings.text("zeros", "no") {
        "rows-columns" => correct::kept(&decoder, Zeros::RowsAndColumns)?,
        "weights" => correct::kept(&decoder, Zeros::Weights)?,
        "no" => BTreeMap::<_, Tensor>::new(),
        other => return Err(format!("unknown zeros '{other}', expected rows-columns, weights or no").into()),
    };
    let mut go_on = |_, _| ControlFlow::Continue(());
    let others =
        |decoder: &Decoder| perplexity::evaluate(decoder, &data.others, 1, &mut |_, _| ControlFlow::Continue(()));
    let before = others(&decoder)?.mean;
    let start = Instant::now();
    let corrected = correct::run(&decoder, &data.samples, Some(&data.held_out), &kept, &options, &mut go_on)?;
    let took = start.elapsed();
    let report = corrected.report.clone();
    corrected.absorb(&mut decoder)?;
    let after = others(&decoder)?.mean;
    println!("{options:?}");
    println!("held-out loss by step: {:?}", report.history.iter().map(|m| (m.step, m.loss)).collect::<Vec<_>>());
    let tenth = report.training.len().div_ceil(10);
    let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
    let (first, last) = (&report.training[..tenth], &report.training[report.training.len() - tenth..]);
    println!("training loss, mean of the first and the last {tenth} steps: {:.4} {:.4}", mean(first), mean(last));
    println!(
        "{:?} after {} steps, those of step {} kept; {:.2} s per step, measurements included; {} threads",
        report.end,
        report.steps_done,
        report.steps_kept,
        took.as_secs_f64() / f64::from(report.steps_done.max(1)),
        tch::get_num_threads()
    );
    println!(
        "chosen by: {:?} -> {:?}; other segments: {before:.4} -> {after:.4} (perplexity × {:.4})",
        report.loss_before,
        report.loss_after,
        (after - before).exp()
    );
    Ok(())
}
