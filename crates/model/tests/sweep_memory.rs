//! Peak memory of the sweep must not grow with depth. Alone in its file: it measures the whole process.

#![allow(clippy::unwrap_used)] // a test that cannot go on fails

#[path = "common/random.rs"]
mod random;

use model::sweep::{self, Observer, ObserverError, SweepOptions};
use random::Llama;
use std::ops::ControlFlow;
use tch::{Device, Kind, Tensor};
use types::{Fisher, LayerId};

/// Looks at everything and keeps nothing.
struct Nothing;

impl Observer for Nothing {
    fn block(&mut self, _: u32) {}
    fn input(&mut self, _: &LayerId, x_nc: &Tensor) -> Result<(), ObserverError> {
        let _ = x_nc.f_sum(Kind::Float)?;
        Ok(())
    }
    fn gradient(&mut self, _: &LayerId, dy_nr: &Tensor) -> Result<(), ObserverError> {
        let _ = dy_nr.f_sum(Kind::Float)?;
        Ok(())
    }
    fn finished(&mut self, _: u32) -> Result<(), ObserverError> {
        Ok(())
    }
}

/// A figure of this process's memory, in bytes.
fn memory(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

const SAMPLES: usize = 4;
const TOKENS: usize = 256;
const FFN: i64 = 2048;
const HIDDEN: i64 = 64;
/// One tensor over all tokens and channels; a block's graph holds several.
const WIDE: u64 = (SAMPLES * TOKENS) as u64 * FFN as u64 * 4;

/// Returns how far the sweep's peak lies above what was there before, less the boundary states that it has to keep.
fn peak(blocks: u32) -> u64 {
    let llama = Llama { hidden: HIDDEN, ffn: FFN, heads: 4, kv_heads: 2, blocks, vocab: 256 };
    let decoder = llama.decoder(Kind::Float, Device::Cpu).unwrap();
    let options = SweepOptions {
        micro_batch: SAMPLES,
        boundary_kind: Kind::Float,
        fisher: Fisher::Empirical,
        seed: 0,
        first_sample: 0,
        curvature: decoder
            .blocks
            .iter()
            .flat_map(|b| b.linears().into_iter().map(|l| (b.index, l.name.clone())))
            .collect(),
        head_chunk: 256,
    };
    let sweep = |samples: usize, tokens: usize| {
        let samples = llama.samples(samples, tokens);
        sweep::run(&decoder, &samples, &options, &mut Nothing, &mut |_, _| ControlFlow::Continue(())).unwrap();
    };
    sweep(1, 8);
    // Forgets the peak so far.
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = memory("VmRSS");
    sweep(SAMPLES, TOKENS);
    let boundaries = u64::from(blocks + 1) * (SAMPLES * TOKENS) as u64 * HIDDEN as u64 * 4;
    memory("VmHWM") - before - boundaries
}

/// Returns [`peak`] of a process of its own, in which every large tensor is mapped and unmapped by itself: what is
/// resident is what is alive, not what the heap keeps in reserve.
fn peak_in_new_process(blocks: u32) -> u64 {
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "peak_memory_does_not_grow_with_depth", "--nocapture"])
        .env("PEAK_OF_BLOCKS", blocks.to_string())
        .env("MALLOC_MMAP_THRESHOLD_", "65536")
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let line = text.lines().find_map(|line| line.split("peak=").nth(1));
    line.unwrap_or_else(|| panic!("{text} {}", String::from_utf8_lossy(&output.stderr))).trim().parse().unwrap()
}

#[test]
fn peak_memory_does_not_grow_with_depth() {
    if let Ok(blocks) = std::env::var("PEAK_OF_BLOCKS") {
        println!("\npeak={}", peak(blocks.parse().unwrap()));
        return;
    }
    let (shallow, deep) = (peak_in_new_process(4), peak_in_new_process(16));
    println!("4 blocks {shallow}, 16 blocks {deep}, one wide tensor {WIDE}");
    assert!(shallow > 2 * WIDE, "{shallow}: the measurement misses the graph, which holds several of {WIDE}");
    // If one wide tensor per block lived on, there would be twelve more.
    assert!(deep < shallow + WIDE, "4 blocks {shallow}, 16 blocks {deep}, one wide tensor {WIDE}");
}
