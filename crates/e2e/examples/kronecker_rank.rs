//! Prints how well Kronecker sums of rising rank fit the Fisher of a model's MLP consumers, and what they predict for the
//! removal of a few channels against what the loss then does.
//!
//! ```text
//! cargo run --release -p e2e --example kronecker_rank [MODEL TEXT HELD_OUT [SAMPLES [TOKENS]]]
//! ```
//!
//! Without arguments: glassllm from the cache and the repository's text. All tokens' inputs and gradients are held in
//! memory, in f64, so that passes over them are cheap and the Fisher's norm is exact: it is for small models.

// What a person runs may print.
#![allow(clippy::print_stdout, reason = "an example")]

use anyhow::{Context, Result};
use curvature::{BlockFactors, KroneckerSum, KroneckerTerm, PowerIteration, PowerOptions, Side};
use model::sweep::{self, Observer, ObserverError, SweepOptions};
use model::tokens::{DataOptions, Draw, Tokenizer, pack_samples, read_documents, segments};
use model::{Decoder, ModelFolder, Overlay, perplexity};
use pruning::{
    Clamping, KroneckerSumProblem, LayerProblem, MaskedUpdate, Units, coupled_path, coupled_update,
    kronecker_sum_coupled_update, kronecker_sum_path,
};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use tch::{Device, Kind, Tensor};
use types::{DampingScale, Fisher, LayerId, Scoring, Structure, Unit, UnitKind, Update};

/// Tokens in one block of the pairs whose sum is the Fisher's norm.
const PAIRS: i64 = 1024;

/// What the layers saw.
#[derive(Default)]
struct Tokens {
    x: BTreeMap<LayerId, Vec<Tensor>>,
    g: BTreeMap<LayerId, Vec<Tensor>>,
}

impl Observer for Tokens {
    fn block(&mut self, _block: u32) {}

    fn input(&mut self, layer: &LayerId, x_nc: &Tensor) -> Result<(), ObserverError> {
        self.x.entry(layer.clone()).or_default().push(x_nc.f_detach_copy()?);
        Ok(())
    }

    fn gradient(&mut self, layer: &LayerId, dy_nr: &Tensor) -> Result<(), ObserverError> {
        self.g.entry(layer.clone()).or_default().push(dy_nr.f_detach_copy()?);
        Ok(())
    }

    fn finished(&mut self, _block: u32) -> Result<(), ObserverError> {
        Ok(())
    }
}

/// One consumer with all its tokens and its curvatures.
struct Layer {
    name: LayerId,
    w_rc: Tensor,
    x_nc: Tensor,
    g_nr: Tensor,
    independent: KroneckerTerm,
    sum: KroneckerSum,
}

impl Layer {
    fn new(name: LayerId, w_rc: Tensor, x_nc: Tensor, g_nr: Tensor, rank: u32) -> Result<Self> {
        let mut factors = BlockFactors::new();
        factors.accumulate(Side::Input, name.as_str(), &x_nc)?;
        factors.accumulate(Side::Gradient, name.as_str(), &g_nr)?;
        factors.add_tokens(x_nc.size()[0] as u64);
        let independent = KroneckerTerm {
            a_cc: factors.finish(Side::Input, name.as_str())?,
            g_rr: factors.finish(Side::Gradient, name.as_str())?,
        };
        let options = PowerOptions { rank, ..PowerOptions::default() };
        let mut power = PowerIteration::new(name.as_str(), &independent.a_cc, options)?;
        while let Some(mut step) = power.half_step()? {
            step.accumulate(&x_nc, &g_nr)?;
            power.advance(&step)?;
        }
        Ok(Self { name, w_rc, x_nc, g_nr, independent, sum: power.finish() })
    }

    fn tokens(&self) -> i64 {
        self.x_nc.size()[0]
    }

    /// Returns ‖F‖² = (1/N²) Σ (gₙ·gₘ)² (xₙ·xₘ)².
    fn fisher_norm_squared(&self) -> Result<f64> {
        let mut sum = 0.0;
        for start in (0..self.tokens()).step_by(PAIRS as usize) {
            let cut = |z: &Tensor| z.f_narrow(0, start, PAIRS.min(self.tokens() - start));
            let of_x = cut(&self.x_nc)?.f_matmul(&self.x_nc.f_tr()?)?.f_square_()?;
            let of_g = cut(&self.g_nr)?.f_matmul(&self.g_nr.f_tr()?)?.f_square_()?;
            sum += of_x.f_mul(&of_g)?.f_sum(Kind::Double)?.f_double_value(&[])?;
        }
        Ok(sum / (self.tokens() as f64).powi(2))
    }

    /// Returns ‖F − Σ terms‖ / ‖F‖.
    fn relative_error(&self, terms: &[&KroneckerTerm], fisher_squared: f64) -> Result<f64> {
        let dot =
            |m: &Tensor, n: &Tensor| Ok::<_, anyhow::Error>(m.f_mul(n)?.f_sum(Kind::Double)?.f_double_value(&[])?);
        let mut squared = fisher_squared;
        for term in terms {
            let form = |z: &Tensor, m: &Tensor| {
                z.f_matmul(m)?.f_mul(z)?.f_sum_dim_intlist([1_i64].as_slice(), false, Kind::Double)
            };
            let with_fisher = dot(&form(&self.x_nc, &term.a_cc)?, &form(&self.g_nr, &term.g_rr)?)?;
            squared -= 2.0 * with_fisher / self.tokens() as f64;
            for other in terms {
                squared += dot(&term.a_cc, &other.a_cc)? * dot(&term.g_rr, &other.g_rr)?;
            }
        }
        Ok((squared.max(0.0) / fisher_squared).sqrt())
    }

    /// Returns (1/N) Σ gₙᵀ Δ xₙ and ½ (1/N) Σ (gₙᵀ Δ xₙ)²: the slope, and ½ δᵀ F δ of the Fisher itself.
    fn along(&self, delta_rc: &Tensor) -> Result<(f64, f64)> {
        let slope_n = self.x_nc.f_matmul(&delta_rc.f_tr()?)?.f_mul(&self.g_nr)?.f_sum_dim_intlist(
            [1_i64].as_slice(),
            false,
            Kind::Double,
        )?;
        let mean = |t: &Tensor| Ok::<_, anyhow::Error>(t.f_mean(Kind::Double)?.f_double_value(&[])?);
        Ok((mean(&slope_n)?, 0.5 * mean(&slope_n.f_square()?)?))
    }

    fn units(&self) -> Units {
        let columns = self.w_rc.size()[1] as u32;
        Units {
            kind: UnitKind::FfnChannel,
            kept: (0..columns).collect(),
            columns_per_unit: 1,
            groups: 1,
            min_keep: 1,
            freed_per_unit: 1,
        }
    }

    /// Returns the problem under one term.
    fn problem(&self, term: &KroneckerTerm) -> LayerProblem {
        let scale = DampingScale::Diagonal;
        let (damping_a, damping_g) = scale.usual(Structure::Coupled);
        LayerProblem {
            layer: self.name.clone(),
            w_rc: self.w_rc.shallow_clone(),
            bias: false,
            a_cc: Some(term.a_cc.shallow_clone()),
            g_rr: Some(term.g_rr.shallow_clone()),
            tokens: self.tokens() as u64,
            damping_scale: scale,
            damping_a,
            damping_g,
        }
    }
}

/// A curvature that channels are removed under.
#[derive(Debug, Clone, Copy)]
enum Choice {
    Independent,
    Nearest,
    Sum { floor: f64 },
}

impl Choice {
    fn name(self) -> String {
        match self {
            Self::Independent => "K-FAC".to_owned(),
            Self::Nearest => "rank 1".to_owned(),
            Self::Sum { floor } => format!("rank 2, {floor}"),
        }
    }

    fn term(self, layer: &Layer) -> &KroneckerTerm {
        match self {
            Self::Independent => &layer.independent,
            Self::Nearest | Self::Sum { .. } => &layer.sum.terms[0],
        }
    }

    fn sum(self, layer: &Layer, floor: f64) -> KroneckerSumProblem {
        let second = &layer.sum.terms[1];
        let second = KroneckerTerm { g_rr: second.g_rr.shallow_clone(), a_cc: second.a_cc.shallow_clone() };
        KroneckerSumProblem { first: layer.problem(self.term(layer)), second, floor }
    }

    /// Returns channels by rising cost, each as if it went alone.
    fn order(self, layer: &Layer) -> Result<(Vec<Unit>, Option<Clamping>)> {
        let (path, clamping) = match self {
            Self::Sum { floor } => {
                let found = kronecker_sum_path(&self.sum(layer, floor), &layer.units(), Update::Correlated)?;
                (found.value, Some(found.clamping))
            }
            _ => {
                let problem = layer.problem(self.term(layer));
                (coupled_path(&problem, &layer.units(), Scoring::Independent, Update::Correlated)?, None)
            }
        };
        Ok((path.steps.iter().map(|step| step.unit).collect(), clamping))
    }

    /// Returns the weights of full size without some channels, and the predicted rise.
    fn remove(self, layer: &Layer, removed: &[Unit]) -> Result<(Tensor, f64)> {
        let updated = match self {
            Self::Sum { floor } => {
                let how = MaskedUpdate::ConjugateGradient { tolerance: MaskedUpdate::TOLERANCE };
                kronecker_sum_coupled_update(&self.sum(layer, floor), &layer.units(), removed, how)?.value
            }
            _ => coupled_update(&layer.problem(self.term(layer)), &layer.units(), removed, Update::Correlated)?,
        };
        let kept: Vec<i64> = updated.kept.iter().map(|&channel| channel.into()).collect();
        let w_rc = layer.w_rc.f_zeros_like()?.f_index_copy(1, &Tensor::from_slice(&kept), &updated.w_rc)?;
        Ok((w_rc, updated.predicted))
    }
}

/// The model with the text that its loss is measured on.
struct Bench {
    decoder: Decoder,
    samples: Vec<Vec<i64>>,
    held_out: Vec<Vec<i64>>,
}

/// What a removal did, nats per token.
#[derive(Default)]
struct Rise {
    predicted: f64,
    slope: f64,
    fisher: f64,
    calibration: f64,
    held_out: f64,
}

impl Bench {
    fn read(model: &Path, text: &Path, held_out: &Path, samples: u64, seq_len: u64) -> Result<Self> {
        let decoder = Decoder::load(&ModelFolder::open(model)?, &Overlay::default(), Kind::Double, Device::Cpu)?;
        let tokenizer = Tokenizer::open(model)?;
        let documents = |path: &Path| {
            let options = DataOptions { paths: vec![path.display().to_string()], text_column: "text".to_owned() };
            read_documents(&options, &tokenizer)
        };
        let draw = Draw { seq_len, samples, sets: 1, seed: 0 };
        let samples = pack_samples(&documents(text)?, &tokenizer, draw)?.ids;
        let held_out = segments(&documents(held_out)?, &tokenizer, seq_len, 64)?.ids;
        Ok(Self { decoder, samples, held_out })
    }

    fn layers(&self, rank: u32) -> Result<Vec<Layer>> {
        let wanted = (0..).zip(&self.decoder.blocks).map(|(b, block)| (b, block.mlp.consumer().name.clone())).collect();
        let options = SweepOptions {
            micro_batch: 8,
            boundary_kind: Kind::Double,
            fisher: Fisher::Empirical,
            seed: 0,
            first_sample: 0,
            curvature: wanted,
            head_chunk: 1024,
        };
        let mut seen = Tokens::default();
        sweep::run(&self.decoder, &self.samples, &options, &mut seen, &mut |_, _| ControlFlow::Continue(()))?;
        let consumers = self.decoder.blocks.iter().map(|block| block.mlp.consumer());
        let layer = |consumer: &model::Linear| {
            let all = |parts: &BTreeMap<LayerId, Vec<Tensor>>| {
                let parts = parts.get(&consumer.name).context("a layer was not seen")?;
                Ok::<_, anyhow::Error>(Tensor::f_cat(parts, 0)?)
            };
            Layer::new(consumer.name.clone(), consumer.weight.f_detach_copy()?, all(&seen.x)?, all(&seen.g)?, rank)
        };
        consumers.map(layer).collect()
    }

    /// Returns the losses on both texts, summed over targets and divided by all tokens, as the Fisher counts.
    fn losses(&self) -> Result<(f64, f64)> {
        let of = |segments: &[Vec<i64>]| {
            let loss = perplexity::evaluate(&self.decoder, segments, 8, &mut |_, _| ControlFlow::Continue(()))?.mean;
            let tokens = segments[0].len() as f64;
            Ok::<_, anyhow::Error>(loss * (tokens - 1.0) / tokens)
        };
        Ok((of(&self.samples)?, of(&self.held_out)?))
    }

    fn set(&mut self, layer: &LayerId, w_rc: &Tensor) {
        let linears = self.decoder.blocks.iter_mut().flat_map(model::Block::linears_mut);
        for linear in linears.filter(|linear| linear.name == *layer) {
            linear.weight = w_rc.shallow_clone();
        }
    }

    /// Removes channels from some layers at once, and puts everything back.
    fn rise(&mut self, layers: &[(&Layer, &[Unit])], choice: Choice, before: (f64, f64)) -> Result<Rise> {
        let mut rise = Rise::default();
        for (layer, removed) in layers {
            let (w_rc, predicted) = choice.remove(layer, removed)?;
            let (slope, fisher) = layer.along(&w_rc.f_sub(&layer.w_rc)?)?;
            rise = Rise {
                predicted: rise.predicted + predicted,
                slope: rise.slope + slope,
                fisher: rise.fisher + fisher,
                ..rise
            };
            self.set(&layer.name, &w_rc);
        }
        let after = self.losses()?;
        for (layer, _) in layers {
            self.set(&layer.name, &layer.w_rc);
        }
        Ok(Rise { calibration: after.0 - before.0, held_out: after.1 - before.1, ..rise })
    }
}

fn print_errors(layers: &[Layer], floors: &[f64]) -> Result<()> {
    println!("‖F − sum‖ / ‖F‖ by layer; share of directions below each floor, and the smallest\n");
    println!(
        "{:<28} {:>7} {:>7} {:>7} {:>7}  half-steps  below {floors:?}, smallest",
        "layer", "K-FAC", "rank 1", "rank 2", "rank 3"
    );
    for layer in layers {
        let fisher_squared = layer.fisher_norm_squared()?;
        let error = |terms: &[&KroneckerTerm]| layer.relative_error(terms, fisher_squared);
        let terms: Vec<&KroneckerTerm> = layer.sum.terms.iter().collect();
        let ranks: Vec<String> =
            (1..=3).map(|k| Ok(format!("{:7.4}", error(&terms[..k.min(terms.len())])?))).collect::<Result<_>>()?;
        let mut below = Vec::new();
        let mut smallest = 0.0;
        for &floor in floors {
            if let (_, Some(clamping)) = (Choice::Sum { floor }).order(layer)? {
                below.push(format!("{:.4}", clamping.clamped as f64 / clamping.directions as f64));
                smallest = clamping.smallest;
            }
        }
        println!(
            "{:<28} {:7.4} {}  {:?}  {} {smallest:.2}",
            layer.name.as_str(),
            error(&[&layer.independent])?,
            ranks.join(" "),
            layer.sum.half_steps,
            below.join(" ")
        );
    }
    Ok(())
}

fn print_removals(bench: &mut Bench, layers: &[Layer], choices: &[Choice]) -> Result<()> {
    let before = bench.losses()?;
    println!("\nloss before: calibration {:.4}, held-out {:.4} nats per token", before.0, before.1);
    println!("rise in 1e-3 nats per token; 'of F' is ½ δᵀ F δ with the Fisher itself, 'slope' its first-order term\n");
    println!(
        "{:<34} {:<14} {:>9} {:>9} {:>9} {:>9} {:>9}",
        "removed", "curvature", "predicted", "of F", "slope", "measured", "held-out"
    );
    let orders = |choice: Choice| layers.iter().map(|layer| Ok(choice.order(layer)?.0)).collect::<Result<Vec<_>>>();
    for (percent, own) in [(5, false), (5, true), (20, true), (40, true)] {
        for &choice in choices {
            let orders = if own { orders(choice)? } else { scattered(layers) };
            let gone = |i: usize| &orders[i][..layers[i].w_rc.size()[1] as usize * percent / 100];
            let mut rises = Vec::new();
            for (i, layer) in layers.iter().enumerate() {
                rises.push(bench.rise(&[(layer, gone(i))], choice, before)?);
            }
            let which = if own { "own choice" } else { "same scattered" };
            let mean = |of: fn(&Rise) -> f64| rises.iter().map(of).sum::<f64>() / rises.len() as f64;
            let alone = Rise {
                predicted: mean(|r| r.predicted),
                slope: mean(|r| r.slope),
                fisher: mean(|r| r.fisher),
                calibration: mean(|r| r.calibration),
                held_out: mean(|r| r.held_out),
            };
            print_rise(&format!("{percent} % of a layer, {which}"), choice, &alone);
            let all: Vec<(&Layer, &[Unit])> = layers.iter().enumerate().map(|(i, layer)| (layer, gone(i))).collect();
            print_rise(&format!("{percent} % of all, {which}"), choice, &bench.rise(&all, choice, before)?);
        }
    }
    Ok(())
}

fn print_rise(what: &str, choice: Choice, rise: &Rise) {
    let Rise { predicted, slope, fisher, calibration, held_out } = rise;
    print!("{what:<34} {:<14}", choice.name());
    for value in [predicted, fisher, slope, calibration, held_out] {
        print!(" {:9.3}", value * 1e3);
    }
    println!();
}

/// Returns the channels of each layer in an order that no curvature has to do with.
fn scattered(layers: &[Layer]) -> Vec<Vec<Unit>> {
    let order = |layer: &Layer| {
        let channels = layer.w_rc.size()[1] as u32;
        // 89 shares no factor with a width below it or with 341 = 11 · 31.
        (0..channels).map(|i| Unit { kind: UnitKind::FfnChannel, index: (i * 89 + 7) % channels }).collect()
    };
    layers.iter().map(order).collect()
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut path = |default: PathBuf| arguments.next().map_or(default, PathBuf::from);
    let root = e2e::root();
    let (model, text) = (path(e2e::glassllm()), path(root.join("testdata/text/calibration")));
    let held_out = path(root.join("testdata/text/heldout"));
    let mut number = |default: u64| arguments.next().map_or(Ok(default), |text| text.parse::<u64>());
    let (samples, seq_len) = (number(64)?, number(128)?);
    let _no_grad = tch::no_grad_guard();
    let mut bench = Bench::read(&model, &text, &held_out, samples, seq_len)?;
    let layers = bench.layers(3)?;
    let floors = [0.01, 0.1, 0.3];
    println!("{} tokens, {} threads", layers[0].tokens(), tch::get_num_threads());
    print_errors(&layers, &floors)?;
    let choices: Vec<Choice> =
        [Choice::Independent, Choice::Nearest].into_iter().chain(floors.map(|floor| Choice::Sum { floor })).collect();
    print_removals(&mut bench, &layers, &choices)
}
