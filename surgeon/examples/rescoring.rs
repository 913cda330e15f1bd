//! Prints what it brings to choose single weights in several rounds: remove some, update the rest under the same curvature,
//! take the costs again, remove more. The updates between the rounds only choose; at the end the whole mask is solved for
//! by conjugate gradients, from the original weights.
//!
//! ```text
//! cargo run --release -p surgeon --example rescoring -- \
//!     ~/.cache/llm-surgeon/models/glassllm-en testdata/text/calibration testdata/text/heldout [SAMPLES [TOKENS]]
//! ```
//!
//! SAMPLES of TOKENS each (64, 128). Models without biases only; all factors are in memory at once.

// What a person runs may print.
#![allow(clippy::print_stdout, reason = "an example")]

use curvature::{BlockFactors, Side};
use model::sweep::{self, Observer, ObserverError, SweepOptions};
use model::tokens::{DataOptions, Draw, Tokenizer, pack_samples, read_documents, segments};
use model::{Decoder, ModelFolder, Overlay, perplexity};
use pruning::{LayerProblem, MaskedUpdate, element_costs, masked_update};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Instant;
use tch::{Device, Kind, Tensor};
use types::{DampingScale, Fisher, LayerId, Structure, Update};

type Result<T> = std::result::Result<T, ObserverError>;

/// Shares of the weights that are left.
const SIZES: [f64; 3] = [0.7, 0.5, 0.3];
const ROUNDS: [u32; 3] = [2, 4, 8];
/// Held-out segments.
const SEGMENTS: u64 = 200;
/// Most weights of a group.
const MAX_CORRELATE: u32 = 2000;

/// Adds up the plain factors of every block.
#[derive(Default)]
struct Factors {
    blocks: BTreeMap<u32, BlockFactors>,
    now: u32,
    /// The name that each layer's input is shown under.
    inputs: BTreeMap<LayerId, LayerId>,
}

impl Factors {
    fn add(&mut self, side: Side, layer: &LayerId, x: &Tensor) -> Result<()> {
        Ok(self.blocks.entry(self.now).or_default().accumulate(side, layer.as_str(), x)?)
    }
}

impl Observer for Factors {
    fn block(&mut self, block: u32) -> Result<()> {
        self.now = block;
        Ok(())
    }

    fn input(&mut self, layer: &LayerId, x_nc: &Tensor) -> Result<()> {
        self.add(Side::Input, layer, x_nc)
    }

    fn gradient(&mut self, layer: &LayerId, input: &LayerId, dy_nr: &Tensor) -> Result<()> {
        self.inputs.insert(layer.clone(), input.clone());
        self.add(Side::Gradient, layer, dy_nr)
    }

    fn finished(&mut self, _block: u32) -> Result<()> {
        Ok(())
    }
}

/// Returns the layers' problems from one sweep.
fn problems(decoder: &Decoder, samples: &[Vec<i64>]) -> Result<Vec<LayerProblem>> {
    let layers = || {
        (0..)
            .zip(decoder.resident().unwrap_or_default())
            .flat_map(|(b, block)| block.linears().into_iter().map(move |l| (b, l)))
    };
    let options = SweepOptions {
        micro_batch: 8,
        boundary_kind: Kind::Float,
        fisher: Fisher::Empirical,
        seed: 0,
        first_sample: 0,
        curvature: layers().map(|(b, layer)| (b, layer.name.clone())).collect(),
        head_chunk: 512,
    };
    let mut factors = Factors::default();
    let swept = sweep::run(decoder, samples, &options, &mut factors, &mut |_, _| ControlFlow::Continue(()))?;
    factors.blocks.values_mut().for_each(|block| block.add_tokens(swept.tokens));
    let (damping_a, damping_g) = DampingScale::Diagonal.usual(Structure::Element);
    let mut problems = Vec::new();
    for (b, layer) in layers() {
        let block = &factors.blocks[&b];
        problems.push(LayerProblem {
            layer: layer.name.clone(),
            w_rc: layer.weight.shallow_clone(),
            bias: layer.bias.is_some(),
            a_cc: Some(block.finish(Side::Input, factors.inputs[&layer.name].as_str())?),
            g_rr: Some(block.finish(Side::Gradient, layer.name.as_str())?),
            tokens: swept.tokens,
            damping_scale: DampingScale::Diagonal,
            damping_a,
            damping_g,
        });
    }
    Ok(problems)
}

/// Adds the cheapest of what is left to the masks, until so many are removed in all; costs are of `weights`.
fn select(problems: &[LayerProblem], weights: &[Tensor], masks: &mut [Tensor], removed: i64) -> Result<()> {
    let mut costs = Vec::new();
    for ((problem, w_rc), mask_rc) in problems.iter().zip(weights).zip(masks.iter()) {
        let now = LayerProblem {
            layer: problem.layer.clone(),
            w_rc: w_rc.shallow_clone(),
            a_cc: problem.a_cc.as_ref().map(Tensor::shallow_clone),
            g_rr: problem.g_rr.as_ref().map(Tensor::shallow_clone),
            ..*problem
        };
        costs.push(element_costs(&now, Update::Correlated)?.costs_rc.masked_fill(mask_rc, -1.0));
    }
    let all: Vec<Tensor> = costs.iter().map(|costs_rc| costs_rc.flatten(0, -1)).collect();
    let threshold = Tensor::cat(&all, 0).kthvalue(removed, 0, false).0.double_value(&[]);
    for (costs_rc, mask_rc) in costs.iter().zip(masks) {
        *mask_rc = costs_rc.le(threshold);
    }
    Ok(())
}

/// Returns the layers without the masked weights, and ½ δᵀ F δ of all.
fn update(problems: &[LayerProblem], masks: &[Tensor], how: MaskedUpdate) -> Result<(Vec<Tensor>, f64)> {
    let (mut weights, mut predicted) = (Vec::new(), 0.0);
    for (problem, mask_rc) in problems.iter().zip(masks) {
        let updated = masked_update(problem, mask_rc, how)?;
        predicted += updated.predicted;
        weights.push(updated.w_rc);
    }
    Ok((weights, predicted))
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut path = |what: &str| arguments.next().map(PathBuf::from).ok_or(format!("{what} is missing"));
    let (model, text, held_out) = (path("MODEL")?, path("CALIBRATION")?, path("HELDOUT")?);
    let mut number = |usual: u64| arguments.next().map_or(Ok(usual), |n| n.parse());
    let (samples, seq_len) = (number(64)?, number(128)?);
    let _no_grad = tch::no_grad_guard();
    let mut decoder = Decoder::load(&ModelFolder::open(&model)?, &Overlay::default(), Kind::Float, Device::Cpu)?;
    if decoder.resident()?.iter().flat_map(model::Block::linears).any(|layer| layer.bias.is_some()) {
        return Err("the model has biases".into());
    }
    let tokenizer = Tokenizer::open(&model)?;
    let documents = |path: &PathBuf| {
        let options = DataOptions { paths: vec![path.display().to_string()], text_column: "text".to_owned() };
        read_documents(&options, &tokenizer)
    };
    let draw = Draw { seq_len, samples, sets: 1, seed: 0 };
    let calibration = pack_samples(&documents(&text)?, &tokenizer, draw)?.ids;
    let held_out = segments(&documents(&held_out)?, &tokenizer, seq_len, SEGMENTS)?.ids;
    let loss = |decoder: &Decoder| {
        perplexity::evaluate(decoder, &held_out, 8, &mut |_, _| ControlFlow::Continue(())).map(|loss| loss.mean)
    };
    let dense = loss(&decoder)?;
    let problems = problems(&decoder, &calibration)?;
    let all: i64 = problems.iter().map(|p| p.w_rc.numel() as i64).sum();
    println!("{samples} samples of {seq_len} tokens; dense perplexity {:.4}\n", dense.exp());
    println!("| between the rounds | rounds |{}", SIZES.map(|size| format!(" {:.0}% left |", 100.0 * size)).concat());
    println!("|---|---|{}", "---|".repeat(SIZES.len()));
    let best = MaskedUpdate::new(Update::Correlated, MAX_CORRELATE);
    let between = [
        ("conjugate gradients", best),
        ("groups", MaskedUpdate::new(Update::Grouped, MAX_CORRELATE)),
        ("two-sided", MaskedUpdate::TwoSided),
        ("none", MaskedUpdate::None),
    ];
    let several = between.into_iter().flat_map(|(name, how)| ROUNDS.map(|rounds| (name, how, rounds)));
    for (name, how, rounds) in [("one threshold", best, 1)].into_iter().chain(several) {
        let mut cells = vec![name.to_owned(), rounds.to_string()];
        for size in SIZES {
            let began = Instant::now();
            let mut weights: Vec<Tensor> = problems.iter().map(|p| p.w_rc.shallow_clone()).collect();
            let mut masks: Vec<Tensor> = weights.iter().map(|w_rc| w_rc.eq(0.0)).collect();
            for round in 1..=rounds {
                let share = (1.0 - size) * f64::from(round) / f64::from(rounds);
                select(&problems, &weights, &mut masks, (share * all as f64).round() as i64)?;
                if round < rounds {
                    weights = update(&problems, &masks, how)?.0;
                }
            }
            let (weights, predicted) = update(&problems, &masks, best)?;
            let took = began.elapsed().as_secs_f64();
            for (problem, w_rc) in problems.iter().zip(&weights) {
                let linears = decoder.resident_mut()?.iter_mut().flat_map(model::Block::linears_mut);
                linears.filter(|l| l.name == problem.layer).for_each(|l| l.weight = w_rc.shallow_clone());
            }
            let ratio = (loss(&decoder)? - dense).exp();
            cells.push(format!("× {ratio:.4} (predicted {predicted:.4}, {took:.1} s)"));
        }
        println!("| {} |", cells.join(" | "));
    }
    Ok(())
}
