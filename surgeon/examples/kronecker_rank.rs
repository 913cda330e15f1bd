//! Prints how well Kronecker sums of rising rank fit the Fisher of a model's MLP consumers, and what they predict for the
//! removal of a few channels against what the loss then does.
//!
//! ```text
//! cargo run --release -p surgeon --example kronecker_rank -- \
//!     ~/.cache/llm-surgeon/models/glassllm-en testdata/text/calibration testdata/text/heldout [SAMPLES [TOKENS [EVERY]]]
//! ```
//!
//! SAMPLES of TOKENS each (64, 128); EVERY: only every so manieth block (1). All tokens' inputs and gradients are held
//! in memory, so that passes over them are cheap and the Fisher's norm is exact. The model runs in f32, all curvature is
//! in f64.

// What a person runs may print.
#![allow(clippy::print_stdout, reason = "an example")]

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

type Result<T> = std::result::Result<T, ObserverError>;

/// Tokens in one block of the pairs whose sum is the Fisher's norm.
const BLOCK: i64 = 1024;

/// Floors of the second term.
const FLOORS: [f64; 3] = [0.01, 0.1, 0.3];

/// What the layers saw.
#[derive(Default)]
struct Tokens {
    x: BTreeMap<LayerId, Vec<Tensor>>,
    g: BTreeMap<LayerId, Vec<Tensor>>,
}

impl Observer for Tokens {
    fn block(&mut self, _block: u32) -> Result<()> {
        Ok(())
    }

    fn input(&mut self, layer: &LayerId, x_nc: &Tensor) -> Result<()> {
        self.x.entry(layer.clone()).or_default().push(x_nc.f_to_kind(Kind::Double)?);
        Ok(())
    }

    fn gradient(&mut self, layer: &LayerId, _input: &LayerId, dy_nr: &Tensor) -> Result<()> {
        self.g.entry(layer.clone()).or_default().push(dy_nr.f_to_kind(Kind::Double)?);
        Ok(())
    }

    fn finished(&mut self, _block: u32) -> Result<()> {
        Ok(())
    }
}

/// What one layer saw of one text.
struct Seen {
    x_nc: Tensor,
    g_nr: Tensor,
}

/// Which pairs of tokens make up the Fisher's norm.
#[derive(Clone, Copy, PartialEq)]
enum Pairs {
    /// All: the norm of the mean over these tokens.
    All,
    /// Those of different tokens: estimates, without bias, the norm of the mean over all text.
    Distinct,
}

impl Seen {
    fn tokens(&self) -> i64 {
        self.x_nc.size()[0]
    }

    /// Returns ‖F‖² = (1/N²) Σ (gₙ·gₘ)² (xₙ·xₘ)², or the mean over distinct pairs.
    fn norm_squared(&self, pairs: Pairs) -> Result<f64> {
        let (mut sum, n) = (0.0, self.tokens());
        for start in (0..n).step_by(BLOCK as usize) {
            let cut = |z: &Tensor| z.f_narrow(0, start, BLOCK.min(n - start));
            let of_x = cut(&self.x_nc)?.f_matmul(&self.x_nc.f_tr()?)?.f_square_()?;
            let of_both = cut(&self.g_nr)?.f_matmul(&self.g_nr.f_tr()?)?.f_square_()?.f_mul_(&of_x)?;
            if pairs == Pairs::Distinct {
                let _ = of_both.f_diagonal(start, 0, 1)?.f_zero_()?;
            }
            sum += of_both.f_sum(Kind::Double)?.f_double_value(&[])?;
        }
        let n = n as f64;
        Ok(if pairs == Pairs::All { sum / n / n } else { sum / n / (n - 1.0) })
    }

    /// Returns ‖F − Σ terms‖ / ‖F‖.
    fn relative_error(&self, terms: &[&KroneckerTerm], norm_squared: f64) -> Result<f64> {
        let dot =
            |m: &Tensor, n: &Tensor| Ok::<_, ObserverError>(m.f_mul(n)?.f_sum(Kind::Double)?.f_double_value(&[])?);
        let form = |z: &Tensor, m: &Tensor| {
            z.f_matmul(m)?.f_mul_(z)?.f_sum_dim_intlist([1_i64].as_slice(), false, Kind::Double)
        };
        let mut squared = norm_squared;
        for term in terms {
            let with_fisher = dot(&form(&self.x_nc, &term.a_cc)?, &form(&self.g_nr, &term.g_rr)?)?;
            squared -= 2.0 * with_fisher / self.tokens() as f64;
            for other in terms {
                squared += dot(&term.a_cc, &other.a_cc)? * dot(&term.g_rr, &other.g_rr)?;
            }
        }
        Ok((squared.max(0.0) / norm_squared).sqrt())
    }

    /// Returns (1/N) Σ gₙᵀ Δ xₙ and ½ (1/N) Σ (gₙᵀ Δ xₙ)²: the slope, and ½ δᵀ F δ of the Fisher itself.
    fn along(&self, delta_rc: &Tensor) -> Result<(f64, f64)> {
        let products = self.x_nc.f_matmul(&delta_rc.f_tr()?)?.f_mul_(&self.g_nr)?;
        let slope_n = products.f_sum_dim_intlist([1_i64].as_slice(), false, Kind::Double)?;
        let mean = |t: &Tensor| Ok::<_, ObserverError>(t.f_mean(Kind::Double)?.f_double_value(&[])?);
        Ok((mean(&slope_n)?, 0.5 * mean(&slope_n.f_square()?)?))
    }
}

/// One consumer with what it saw and its curvatures.
struct Layer {
    name: LayerId,
    w_rc: Tensor,
    seen: Seen,
    fresh: Seen,
    independent: KroneckerTerm,
    sum: KroneckerSum,
}

impl Layer {
    fn new(name: LayerId, weight: &Tensor, seen: Seen, fresh: Seen, rank: u32) -> Result<Self> {
        let mut factors = BlockFactors::new();
        factors.accumulate(Side::Input, name.as_str(), &seen.x_nc)?;
        factors.accumulate(Side::Gradient, name.as_str(), &seen.g_nr)?;
        factors.add_tokens(seen.tokens() as u64);
        let independent = KroneckerTerm {
            a_cc: factors.finish(Side::Input, name.as_str())?,
            g_rr: factors.finish(Side::Gradient, name.as_str())?,
        };
        let options = PowerOptions { rank, ..PowerOptions::default() };
        let mut power = PowerIteration::new(name.as_str(), &independent.a_cc, options)?;
        while let Some(mut step) = power.half_step()? {
            step.accumulate(&seen.x_nc, &seen.g_nr)?;
            power.advance(&step)?;
        }
        let w_rc = weight.f_to_kind(Kind::Double)?;
        Ok(Self { name, w_rc, seen, fresh, independent, sum: power.finish() })
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
            tokens: self.seen.tokens() as u64,
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
            Self::Independent | Self::Nearest => {
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
            Self::Independent | Self::Nearest => {
                coupled_update(&layer.problem(self.term(layer)), &layer.units(), removed, Update::Correlated)?
            }
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
    /// Only every so manieth block.
    every: usize,
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
    fn read(model: &Path, text: &Path, held_out: &Path, (samples, seq_len, every): (u64, u64, u64)) -> Result<Self> {
        let decoder = Decoder::load(&ModelFolder::open(model)?, &Overlay::default(), Kind::Float, Device::Cpu)?;
        let tokenizer = Tokenizer::open(model)?;
        let documents = |path: &Path| {
            let options = DataOptions { paths: vec![path.display().to_string()], text_column: "text".to_owned() };
            read_documents(&options, &tokenizer)
        };
        let draw = Draw { seq_len, samples, sets: 1, seed: 0 };
        let calibration = pack_samples(&documents(text)?, &tokenizer, draw)?.ids;
        let held_out = segments(&documents(held_out)?, &tokenizer, seq_len, samples)?.ids;
        Ok(Self { decoder, samples: calibration, held_out, every: every.max(1) as usize })
    }

    /// Returns the consumers, with the numbers of their blocks.
    fn consumers(&self) -> impl Iterator<Item = (u32, &model::Linear)> {
        let blocks = self.decoder.resident().unwrap_or_default();
        (0..).zip(blocks).step_by(self.every).map(|(b, block)| (b, block.mlp.consumer()))
    }

    fn sweep(&self, samples: &[Vec<i64>]) -> Result<Vec<Seen>> {
        let options = SweepOptions {
            micro_batch: 8,
            boundary_kind: Kind::Float,
            fisher: Fisher::Empirical,
            seed: 0,
            first_sample: 0,
            curvature: self.consumers().map(|(b, consumer)| (b, consumer.name.clone())).collect(),
            head_chunk: 512,
        };
        let mut tokens = Tokens::default();
        sweep::run(&self.decoder, samples, &options, &mut tokens, &mut |_, _| ControlFlow::Continue(()))?;
        let all = |parts: &BTreeMap<LayerId, Vec<Tensor>>, layer: &LayerId| {
            Ok::<_, ObserverError>(Tensor::f_cat(parts.get(layer).ok_or("a layer was not seen")?, 0)?)
        };
        let of = |layer: &LayerId| Ok(Seen { x_nc: all(&tokens.x, layer)?, g_nr: all(&tokens.g, layer)? });
        self.consumers().map(|(_, consumer)| of(&consumer.name)).collect()
    }

    fn layers(&self, rank: u32) -> Result<Vec<Layer>> {
        let (seen, fresh) = (self.sweep(&self.samples)?, self.sweep(&self.held_out)?);
        let both = seen.into_iter().zip(fresh).zip(self.consumers());
        both.map(|((seen, fresh), (_, c))| Layer::new(c.name.clone(), &c.weight, seen, fresh, rank)).collect()
    }

    /// Returns the losses on both texts, summed over targets and divided by all tokens, as the Fisher counts.
    fn losses(&self) -> Result<(f64, f64)> {
        let of = |segments: &[Vec<i64>]| {
            let loss = perplexity::evaluate(&self.decoder, segments, 8, &mut |_, _| ControlFlow::Continue(()))?.mean;
            let tokens = segments[0].len() as f64;
            Ok::<_, ObserverError>(loss * (tokens - 1.0) / tokens)
        };
        Ok((of(&self.samples)?, of(&self.held_out)?))
    }

    fn set(&mut self, layer: &LayerId, w_rc: &Tensor) {
        let linears = self.decoder.resident_mut().into_iter().flatten().flat_map(model::Block::linears_mut);
        for linear in linears.filter(|linear| linear.name == *layer) {
            linear.weight = w_rc.to_kind(Kind::Float);
        }
    }

    /// Removes channels from some layers at once, and puts everything back.
    fn rise(&mut self, layers: &[(&Layer, &[Unit])], choice: Choice, before: (f64, f64)) -> Result<Rise> {
        let mut rise = Rise::default();
        for (layer, removed) in layers {
            let (w_rc, predicted) = choice.remove(layer, removed)?;
            let (slope, fisher) = layer.seen.along(&w_rc.f_sub(&layer.w_rc)?)?;
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

fn print_errors(layers: &[Layer]) -> Result<()> {
    println!("‖F − sum‖ / ‖F‖ on the calibration text | on held-out text, distinct pairs of tokens\n");
    println!("{:<28} K-FAC  rank 1 rank 2 rank 3 | K-FAC  rank 1 rank 2 rank 3 | half-steps (last rise)", "layer");
    for layer in layers {
        print!("{:<28}", layer.name.as_str());
        let terms: Vec<&KroneckerTerm> = layer.sum.terms.iter().collect();
        for (seen, pairs) in [(&layer.seen, Pairs::All), (&layer.fresh, Pairs::Distinct)] {
            let norm_squared = seen.norm_squared(pairs)?;
            print!(" {:.4}", seen.relative_error(&[&layer.independent], norm_squared)?);
            for rank in 1..=3 {
                print!(" {:.4}", seen.relative_error(&terms[..rank.min(terms.len())], norm_squared)?);
            }
            print!(" |");
        }
        for (half_steps, rise) in layer.sum.half_steps.iter().zip(&layer.sum.last_rise) {
            print!(" {half_steps} ({rise:.4})");
        }
        println!();
    }
    println!("\nshare of directions of rank 2 whose curvature is below {FLOORS:?} of the first term's; the least\n");
    for layer in layers {
        print!("{:<28}", layer.name.as_str());
        let mut least = f64::INFINITY;
        for floor in FLOORS {
            let (_, clamping) = Choice::Sum { floor }.order(layer)?;
            let clamping = clamping.ok_or("a sum says what it was clamped by")?;
            print!(" {:.4}", clamping.clamped as f64 / clamping.directions as f64);
            least = clamping.smallest;
        }
        println!("   {least:.2}");
    }
    Ok(())
}

fn print_removals(bench: &mut Bench, layers: &[Layer]) -> Result<()> {
    let before = bench.losses()?;
    println!("\nloss before: calibration {:.4}, held-out {:.4} nats per token", before.0, before.1);
    println!(
        "channels removed in all these layers; rise in 1e-3 nats per token; 'of F' is ½ δᵀ F δ with the calibration"
    );
    println!("text's Fisher itself, without damping and layer by layer; 'slope' is the first-order term\n");
    println!(
        "{:<20} {:<14} {:>9} {:>9} {:>9} {:>9} {:>9}",
        "removed", "curvature", "predicted", "of F", "slope", "measured", "held-out"
    );
    for (percent, own) in [(5, false), (20, false), (5, true), (20, true), (40, true)] {
        let sums = FLOORS.map(|floor| Choice::Sum { floor });
        for choice in [Choice::Independent, Choice::Nearest].into_iter().chain(sums) {
            let order = |layer| if own { Ok(choice.order(layer)?.0) } else { Ok(scattered(layer)) };
            let orders = layers.iter().map(order).collect::<Result<Vec<_>>>()?;
            let gone =
                |(layer, order): (&Layer, &Vec<Unit>)| order[..layer.units().kept.len() * percent / 100].to_vec();
            let all: Vec<Vec<Unit>> = layers.iter().zip(&orders).map(gone).collect();
            let all: Vec<(&Layer, &[Unit])> = layers.iter().zip(all.iter().map(Vec::as_slice)).collect();
            let which = if own { "own choice" } else { "scattered" };
            print_rise(&format!("{percent} %, {which}"), choice, &bench.rise(&all, choice, before)?);
        }
    }
    Ok(())
}

fn print_rise(what: &str, choice: Choice, rise: &Rise) {
    let Rise { predicted, slope, fisher, calibration, held_out } = rise;
    print!("{what:<20} {:<14}", choice.name());
    for value in [predicted, fisher, slope, calibration, held_out] {
        print!(" {:9.3}", value * 1e3);
    }
    println!();
}

/// Returns a layer's channels in an order that no curvature has to do with.
fn scattered(layer: &Layer) -> Vec<Unit> {
    let channels = layer.units().kept.len() as u32;
    // 89 is prime: all channels of a layer whose width it does not divide.
    (0..channels).map(|i| Unit { kind: UnitKind::FfnChannel, index: (i * 89 + 7) % channels }).collect()
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut path = |what: &str| arguments.next().map(PathBuf::from).ok_or(format!("no {what} is given"));
    let (model, text, held_out) = (path("model folder")?, path("calibration text")?, path("held-out text")?);
    let mut number = |default: u64| arguments.next().map_or(Ok(default), |text| text.parse::<u64>());
    let sizes = (number(64)?, number(128)?, number(1)?);
    let _no_grad = tch::no_grad_guard();
    let mut bench = Bench::read(&model, &text, &held_out, sizes)?;
    let layers = bench.layers(3)?;
    println!("{} tokens, {} threads\n", layers[0].seen.tokens(), tch::get_num_threads());
    print_errors(&layers)?;
    print_removals(&mut bench, &layers)
}
