//! What a run will take, before anything runs: work, memory, traffic and room in the store, from the widths of the model.
//!
//! Counts are exact where the run's own are (factors, weights, shards); seconds are counts over rates that the caller
//! measured or was told, and over the share of a rate that each stage was measured to reach. Knows no machine.

use crate::assignment::{MAX_BATCH_TOKENS, Sweep, shards};
use serde::Serialize;

/// Share of the matrix rate that a sweep reaches: `make bench` measured 1.47 times its floor on a CPU.
pub const SWEEP_SHARE: f64 = 0.68;
/// Share of the matrix rate that removal paths reach: many small downdates (measured: 23 times a product of 2 C³ operations).
pub const SCORE_SHARE: f64 = 0.045;
/// How far forecasts of a stage were from measured runs at most, as a factor either way.
pub const TOLERANCE: f64 = 2.0;

/// Bytes of a number in factors.
const FACTOR_BYTES: u64 = 4;
/// Finished blocks that wait in a calibrator at most.
const WAITING_BLOCKS: u64 = 2;
/// Squares of a site's factors that a surgeon holds at once: the factor, its inverse, and what a downdate needs.
const SURGEON_SQUARES: u64 = 4;

/// The widths of a decoder whose blocks are all alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Widths {
    /// Decoder blocks.
    pub blocks: u64,
    /// Residual width.
    pub hidden: u64,
    /// FFN channels.
    pub ffn: u64,
    /// Whether the FFN has a gate.
    pub gated: bool,
    /// Query heads.
    pub heads: u64,
    /// Key and value heads.
    pub kv_heads: u64,
    /// Numbers of a head.
    pub head_dim: u64,
    /// Tokens in the vocabulary.
    pub vocabulary: u64,
    /// Whether the head is the embedding.
    pub tied: bool,
}

/// Which layers' curvature a run needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sites {
    /// Those that take in what a removed unit gives: o and down. Enough for coupled units.
    Consumers,
    /// All linear layers.
    All,
}

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Request {
    /// Which curvature.
    pub sites: Sites,
    /// Calibration samples of a shot.
    pub samples: u64,
    /// Tokens a sample.
    pub seq_len: u64,
    /// Shots.
    pub shots: u64,
    /// Held-out segments after each shot.
    pub eval_samples: u64,
    /// Bytes of a number in forward and backward passes.
    pub dtype_bytes: u64,
    /// Bytes for boundary states and micro-batches.
    pub memory: u64,
}

/// What does it. All rates are of one worker.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Machines {
    /// Workers of either kind.
    pub workers: u64,
    /// Bytes of memory of a device.
    pub memory: u64,
    /// Operations a second in plain matrix products.
    pub flops: f64,
    /// Bytes a second over the network.
    pub network: f64,
}

/// What one shot and the run will take.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Forecast {
    /// Parameters of the model.
    pub parameters: u64,
    /// Prunable ones.
    pub prunable: u64,
    /// Bytes of the weights on a device.
    pub weight_bytes: u64,
    /// Seconds in which a calibrator reads them from a bucket or a shared volume: before its first task, and nothing after.
    pub load_seconds: f64,
    /// Shards of a shot.
    pub shards: u64,
    /// Operations of a shot's sweep.
    pub sweep_flops_a_shot: f64,
    /// Operations of a shot's removal paths.
    pub score_flops_a_shot: f64,
    /// Bytes of one shard's factors, packed: what a calibrator hands over.
    pub factor_bytes_a_shard: u64,
    /// Bytes of factors over the network in a shot.
    pub traffic_bytes_a_shot: u64,
    /// Most bytes of factors in the store while a shot lasts.
    pub store_bytes_a_shot: u64,
    /// Largest memory of a calibrator.
    pub calibrator_bytes: u64,
    /// Largest memory of a surgeon's kernels, for one block.
    pub surgeon_bytes: u64,
    /// Seconds of a shot's sweep, its factors' way, its paths, its held-out loss.
    pub sweep_seconds_a_shot: f64,
    /// Seconds of the factors over the network.
    pub network_seconds_a_shot: f64,
    /// Seconds of the removal paths.
    pub score_seconds_a_shot: f64,
    /// Seconds of the held-out loss.
    pub evaluate_seconds_a_shot: f64,
    /// Seconds of the whole run.
    pub total_seconds: f64,
}

impl Forecast {
    /// Returns by how many bytes a calibrator is too large for its device, if it is.
    pub fn lacking(&self, machines: &Machines) -> Option<u64> {
        self.calibrator_bytes.max(self.surgeon_bytes).checked_sub(machines.memory).filter(|bytes| *bytes > 0)
    }
}

/// Sides of a block's factors: inputs C of the sites whose inputs differ, and outputs R of all sites.
struct Sides {
    inputs: Vec<u64>,
    outputs: Vec<u64>,
}

impl Widths {
    fn query(&self) -> u64 {
        self.heads * self.head_dim
    }

    fn key(&self) -> u64 {
        self.kv_heads * self.head_dim
    }

    /// Returns the weights of a block's linear layers.
    fn block_weights(&self) -> u64 {
        let attention = 2 * self.hidden * (self.query() + self.key());
        let mlp = self.hidden * self.ffn * if self.gated { 3 } else { 2 };
        attention + mlp
    }

    /// Returns the parameters of the model but for norms and biases.
    fn parameters(&self) -> u64 {
        let embeddings = self.vocabulary * self.hidden * if self.tied { 1 } else { 2 };
        self.blocks * self.block_weights() + embeddings
    }

    fn sides(&self, sites: Sites) -> Sides {
        let (h, q, k, f) = (self.hidden, self.query(), self.key(), self.ffn);
        match sites {
            Sites::Consumers => Sides { inputs: vec![q, f], outputs: vec![h, h] },
            // q, k and v share their input, and so do gate and up.
            Sites::All => {
                let up = if self.gated { vec![f, f] } else { vec![f] };
                Sides { inputs: vec![h, q, h, f], outputs: [vec![q, k, k, h], up, vec![h]].concat() }
            }
        }
    }
}

/// Returns what a run will take.
///
/// Work per token and block, in multiplications: forward, recomputation and input gradients once the weights each, attention
/// `2 · seq_len · heads · head_dim` for the forward pass and twice that for the gradients, `Σ C² + Σ R²` for the factors;
/// the head twice `vocabulary · hidden`. A removal path: `2 C³` for the inverse and its downdates.
///
/// The store holds, of each block, the sum of the shards so far and those that came before their turn. Shards are leased in
/// their order, so while no calibrator is a whole shard behind another only the shards that are swept at the same time can
/// come before their turn: at worst all but one of them, which waits for the first. That is a shard's factors for each
/// calibrator; calibrators of one speed need not much more than one in all. While a sum grows, the one before is there, too: a
/// block's factors on top.
pub fn forecast(widths: &Widths, request: &Request, machines: &Machines) -> Forecast {
    let sides = widths.sides(request.sites);
    let all_sides = || sides.inputs.iter().chain(&sides.outputs);
    let squares: u64 = all_sides().map(|n| n * n).sum();
    let packed: u64 = all_sides().map(|n| n * (n + 1) / 2 * FACTOR_BYTES).sum();
    let factor_bytes = widths.blocks * packed;

    let sweep = Sweep {
        samples: request.samples,
        seq_len: request.seq_len,
        blocks: widths.blocks,
        hidden: widths.hidden,
        ffn: widths.ffn,
        attention: widths.query(),
        dtype_bytes: request.dtype_bytes,
        boundary_bytes: request.dtype_bytes,
        memory: request.memory,
        max_batch_tokens: MAX_BATCH_TOKENS,
        min_shards: machines.workers,
    };
    let plan = shards(&sweep);
    let count = plan.len() as u64;

    let tokens = (request.samples * request.seq_len) as f64;
    let attention = 2.0 * request.seq_len as f64 * widths.query() as f64;
    let of_block = 3.0 * widths.block_weights() as f64 + 4.0 * attention + squares as f64;
    let head = 2.0 * (widths.vocabulary * widths.hidden) as f64;
    let sweep_flops = 2.0 * tokens * (widths.blocks as f64 * of_block + head);
    let cubes: f64 = sides.inputs.iter().map(|n| (*n as f64).powi(3)).sum();
    let score_flops = 2.0 * widths.blocks as f64 * cubes;
    let forward = widths.blocks as f64 * (widths.block_weights() as f64 + attention) + head / 2.0;
    let evaluate_flops = 2.0 * (request.eval_samples * request.seq_len) as f64 * forward;

    let weight_bytes = widths.parameters() * request.dtype_bytes;
    let largest = plan.iter().map(|shard| shard.samples).max().unwrap_or(0);
    let micro = plan.iter().map(|shard| shard.micro_batch).max().unwrap_or(0);
    let activations = largest * sweep.boundary_bytes_per_sample() + micro * sweep.graph_bytes_per_sample();
    let block_squares = squares * FACTOR_BYTES;
    let calibrator_bytes = weight_bytes + activations + block_squares + WAITING_BLOCKS * packed;
    let surgeon_bytes = SURGEON_SQUARES * block_squares;

    // A shard is one calibrator's: the last round may leave some without.
    let workers = machines.workers.max(1) as f64;
    let rounds = count.div_ceil(machines.workers.max(1)) as f64;
    let busy = count as f64 / rounds.max(1.0);
    let traffic_bytes = factor_bytes * count;
    let growing = if count > 1 { packed } else { 0 };
    let store_bytes = factor_bytes * count.min(machines.workers.max(1)) + growing;
    let sweep_seconds = sweep_flops / (busy * machines.flops * SWEEP_SHARE);
    let network_seconds = traffic_bytes as f64 / (workers * machines.network);
    let score_seconds = score_flops / (workers * machines.flops * SCORE_SHARE);
    let evaluate_seconds = evaluate_flops / (machines.flops * SWEEP_SHARE);
    // Factors travel and paths are computed while earlier blocks are still swept; calibrators and surgeons share devices.
    let shot = network_seconds.max(sweep_seconds + score_seconds);
    let total_seconds = request.shots as f64 * (shot + evaluate_seconds) + evaluate_seconds;
    Forecast {
        parameters: widths.parameters(),
        prunable: widths.blocks * widths.block_weights(),
        weight_bytes,
        load_seconds: weight_bytes as f64 / machines.network,
        shards: count,
        sweep_flops_a_shot: sweep_flops,
        score_flops_a_shot: score_flops,
        factor_bytes_a_shard: factor_bytes,
        traffic_bytes_a_shot: traffic_bytes,
        store_bytes_a_shot: store_bytes,
        calibrator_bytes,
        surgeon_bytes,
        sweep_seconds_a_shot: sweep_seconds,
        network_seconds_a_shot: network_seconds,
        score_seconds_a_shot: score_seconds,
        evaluate_seconds_a_shot: evaluate_seconds,
        total_seconds,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn llama(blocks: u64, hidden: u64, ffn: u64, heads: u64, kv_heads: u64, vocabulary: u64) -> Widths {
        let head_dim = hidden / heads;
        Widths { blocks, hidden, ffn, gated: true, heads, kv_heads, head_dim, vocabulary, tied: false }
    }

    fn request(sites: Sites) -> Request {
        Request { sites, samples: 128, seq_len: 2048, shots: 1, eval_samples: 12, dtype_bytes: 2, memory: 32 << 30 }
    }

    const ONE: Machines = Machines { workers: 1, memory: 80 << 30, flops: 4e14, network: 12.5e9 };

    #[test]
    fn factors_of_known_models_have_their_known_sizes() {
        let gigabytes =
            |widths: &Widths, sites| forecast(widths, &request(sites), &ONE).factor_bytes_a_shard as f64 / 1e9;
        let llama2 = llama(32, 4096, 11008, 32, 32, 32000);
        let llama3 = llama(32, 4096, 14336, 32, 8, 128_256);
        let large = llama(80, 8192, 28672, 64, 8, 128_256);
        for (widths, known) in [(&llama2, 31.9), (&llama3, 46.0), (&large, 459.0)] {
            let found = gigabytes(widths, Sites::All);
            assert!((found / known - 1.0).abs() < 0.01, "{found} GB, known: {known}");
        }
        let found = gigabytes(&llama2, Sites::Consumers);
        assert!((found / 11.0 - 1.0).abs() < 0.05, "{found} GB");
        assert_eq!(forecast(&llama2, &request(Sites::All), &ONE).prunable / 1_000_000, 6476);
    }

    #[test]
    fn a_measured_sweep_is_forecast_within_the_tolerance() {
        // `make bench`, docs/performance.md: SmolLM2's shape, 8 × 512 tokens, f32, 2 threads: sweep 19.24 s, of which its
        // operations take 13.05 s in plain products.
        let small = Widths { tied: true, ..llama(30, 576, 1536, 9, 3, 49152) };
        let asked = Request {
            samples: 8,
            seq_len: 512,
            eval_samples: 0,
            dtype_bytes: 4,
            memory: 1 << 30,
            ..request(Sites::Consumers)
        };
        let flops = forecast(&small, &asked, &ONE).sweep_flops_a_shot;
        let machine = Machines { flops: flops / 13.05, ..ONE };
        let found = forecast(&small, &asked, &machine).sweep_seconds_a_shot / 19.24;
        assert!(found < TOLERANCE && found > 1.0 / TOLERANCE, "forecast over measured: {found}");
    }

    #[test]
    fn the_store_grows_with_the_workers_and_not_with_the_shards() {
        let large = llama(80, 8192, 28672, 64, 8, 128_256);
        let with = |workers| forecast(&large, &request(Sites::Consumers), &Machines { workers, ..ONE });
        let (one, eight, many) = (with(1), with(8), with(1 << 20));
        assert!(one.shards > 8 && one.traffic_bytes_a_shot == one.shards * one.factor_bytes_a_shard);
        let block = one.factor_bytes_a_shard / 80;
        assert_eq!(one.store_bytes_a_shot, one.factor_bytes_a_shard + block);
        assert_eq!(eight.store_bytes_a_shot, 8 * one.factor_bytes_a_shard + block);
        assert_eq!(many.store_bytes_a_shot, many.traffic_bytes_a_shot + block);
        let small = forecast(&llama(2, 64, 128, 4, 4, 256), &request(Sites::Consumers), &ONE);
        assert_eq!((small.shards, small.store_bytes_a_shot), (1, small.factor_bytes_a_shard));
    }

    #[test]
    fn workers_share_the_sweep_and_a_device_that_is_too_small_is_seen() {
        let llama2 = llama(32, 4096, 11008, 32, 32, 32000);
        let asked = request(Sites::Consumers);
        let eight = Machines { workers: 8, ..ONE };
        let (one, many) = (forecast(&llama2, &asked, &ONE), forecast(&llama2, &asked, &eight));
        assert!((one.sweep_seconds_a_shot / many.sweep_seconds_a_shot / 8.0 - 1.0).abs() < 0.01);
        assert_eq!((one.lacking(&ONE), many.shards), (None, 8));
        let large = llama(80, 8192, 28672, 64, 8, 128_256);
        assert!(forecast(&large, &asked, &ONE).lacking(&ONE).is_some_and(|bytes| bytes > 50 << 30));
    }
}
