//! Measures the calibration sweep of a random Llama against its floor: the same multiplications as plain matrix
//! products of the same shapes, in the same run.
//!
//! ```text
//! cargo run --release -p model --example sweep_floor -- \
//!     hidden=576 ffn=1536 heads=9 kv=3 blocks=4 vocab=49152 samples=8 tokens=512 \
//!     micro=1 chunk=256 dtype=f32 device=cpu layers=consumers repeat=3
//! ```
//!
//! Floor, per token: forward, recomputation and input gradients of every block (3 × its weights), head forward and
//! backward (2 × its weights), and C² and R² for each observed layer, shared inputs once. Attention's own products are
//! not counted. `micro` is the micro-batch in samples, `chunk` that of the head in tokens, `layers` is `consumers`
//! (what `coupled` needs), `all` (what `row-column` needs) or `none`.

// What a person runs may print.
#![allow(clippy::print_stdout)]

#[path = "../tests/common/random.rs"]
mod random;

use model::Decoder;
use model::device::DeviceChoice;
use model::sweep::{self, Observer, ObserverError, SweepOptions};
use random::Llama;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::time::{Duration, Instant};
use tch::{Cuda, Device, Kind, Tensor};
use types::{Fisher, LayerId};

type Result<T> = std::result::Result<T, ObserverError>;

/// What to measure, by `key=value`.
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

    fn number(&self, key: &str, default: usize) -> Result<usize> {
        Ok(self.text(key, &default.to_string()).parse()?)
    }
}

/// Sums of x xᵀ in f32, one product per call.
#[derive(Default)]
struct Gram(BTreeMap<String, Tensor>);

impl Gram {
    fn add(&mut self, key: String, x_nc: &Tensor) -> Result<()> {
        let columns = x_nc.size()[1];
        let sum = self.0.entry(key).or_insert_with(|| Tensor::zeros([columns, columns], (x_nc.kind(), x_nc.device())));
        let _ = sum.f_addmm_(&x_nc.tr(), x_nc)?;
        Ok(())
    }
}

impl Observer for Gram {
    fn block(&mut self, _: u32) -> Result<()> {
        self.0.clear();
        Ok(())
    }
    fn input(&mut self, layer: &LayerId, x_nc: &Tensor) -> Result<()> {
        self.add(format!("A:{layer}"), x_nc)
    }
    fn gradient(&mut self, layer: &LayerId, _input: &LayerId, dy_nr: &Tensor) -> Result<()> {
        self.add(format!("G:{layer}"), dy_nr)
    }
    fn finished(&mut self, _: u32) -> Result<()> {
        Ok(())
    }
}

/// Products [n, k] × [k, m], `count` times on the same shapes, output kept in one place.
fn products(left: &Tensor, right: &Tensor, count: u32) -> Result<()> {
    let out = Tensor::f_empty([left.size()[0], right.size()[1]], (left.kind(), left.device()))?;
    for _ in 0..count {
        let _ = left.f_mm_out(&out, right)?;
    }
    Ok(())
}

/// Runs the floor of one pass over all samples.
fn floor(decoder: &Decoder, options: &SweepOptions, samples: usize, tokens: usize) -> Result<Duration> {
    let place = (decoder.kind(), decoder.device());
    let n = (options.micro_batch.min(samples) * tokens) as i64;
    let batches = samples.div_ceil(options.micro_batch);
    let random = |columns: i64, kind| Tensor::f_randn([n, columns], (kind, place.1));
    let mut inputs: BTreeMap<i64, Tensor> = BTreeMap::new();
    let mut wide: BTreeMap<i64, Tensor> = BTreeMap::new();
    for layer in decoder.resident()?.iter().flat_map(model::Block::linears) {
        for size in [layer.rows(), layer.columns()] {
            inputs.insert(size, random(size, place.0)?);
            wide.insert(size, random(size, Kind::Float)?);
        }
    }
    synchronize(place.1);
    let start = Instant::now();
    let backward = !options.curvature.is_empty();
    for _ in 0..batches {
        for block in decoder.resident()? {
            let mut seen = BTreeSet::new();
            for layer in block.linears() {
                products(&inputs[&layer.columns()], &layer.weight.tr(), if backward { 2 } else { 1 })?;
                if backward {
                    products(&inputs[&layer.rows()], &layer.weight, 1)?;
                }
                if options.curvature.contains(&(block.index, layer.name.clone())) {
                    products(&wide[&layer.rows()].tr(), &wide[&layer.rows()], 1)?;
                    let name = layer.name.as_str();
                    let shared = ["k_proj", "v_proj", "up_proj"].iter().any(|end| name.ends_with(end));
                    if !shared && seen.insert(name) {
                        products(&wide[&layer.columns()].tr(), &wide[&layer.columns()], 1)?;
                    }
                }
            }
        }
    }
    let chunk = options.head_chunk as i64;
    let x_nd = inputs[&decoder.config.hidden].narrow(0, 0, chunk.min(n));
    let p_nv = Tensor::f_randn([chunk.min(n), decoder.config.vocab], place)?;
    for _ in 0..(samples * tokens).div_ceil(chunk.min(n) as usize) {
        products(&x_nd, &decoder.head.tr(), 1)?;
        if backward {
            products(&p_nv, &decoder.head, 1)?;
        }
    }
    synchronize(place.1);
    Ok(start.elapsed())
}

fn synchronize(device: Device) {
    if let Device::Cuda(number) = device {
        Cuda::synchronize(number as i64);
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
    let llama = Llama {
        hidden: settings.number("hidden", 576)? as i64,
        ffn: settings.number("ffn", 1536)? as i64,
        heads: settings.number("heads", 9)? as i64,
        kv_heads: settings.number("kv", 3)? as i64,
        blocks: settings.number("blocks", 4)? as u32,
        vocab: settings.number("vocab", 49152)? as i64,
    };
    let (samples, tokens) = (settings.number("samples", 8)?, settings.number("tokens", 512)?);
    let decoder = llama.decoder(kind, device)?;
    let wanted = |name: &LayerId| match settings.text("layers", "consumers") {
        "all" => true,
        "none" => false,
        _ => ["o_proj", "down_proj"].iter().any(|end| name.as_str().ends_with(end)),
    };
    let layers = decoder.resident()?.iter().flat_map(|b| b.linears().into_iter().map(|l| (b.index, l.name.clone())));
    let options = SweepOptions {
        micro_batch: settings.number("micro", 1)?,
        boundary_kind: kind,
        fisher: Fisher::Empirical,
        seed: 0,
        first_sample: 0,
        curvature: layers.filter(|(_, name)| wanted(name)).collect(),
        head_chunk: settings.number("chunk", 256)?,
    };
    println!("{llama:?}, {samples} × {tokens} tokens, {kind:?} on {device:?}, {} threads", tch::get_num_threads());
    let ids = llama.samples(samples, tokens);
    // The least of each: on a busy machine the ratio of one pair says little.
    let (mut least_sweep, mut least_floor) = (Duration::MAX, Duration::MAX);
    for _ in 0..settings.number("repeat", 3)? {
        let floor = floor(&decoder, &options, samples, tokens)?;
        let start = Instant::now();
        let result = sweep::run(&decoder, &ids, &options, &mut Gram::default(), &mut |_, _| ControlFlow::Continue(()))?;
        synchronize(device);
        let took = start.elapsed();
        let ratio = took.as_secs_f64() / floor.as_secs_f64();
        (least_sweep, least_floor) = (least_sweep.min(took), least_floor.min(floor));
        let rate = (samples * tokens) as f64 / took.as_secs_f64();
        println!("sweep {took:.2?} ({rate:.0} tokens/s), floor {floor:.2?}, ratio {ratio:.2}; {:.2?}", result.times);
    }
    let ratio = least_sweep.as_secs_f64() / least_floor.as_secs_f64();
    println!("least sweep {least_sweep:.2?} over least floor {least_floor:.2?}: {ratio:.2}");
    Ok(())
}
