//! Peak memory of work on a model of some depth, measured in a process of its own. A test that uses it is alone in its
//! process: the whole process is measured.

#![expect(clippy::print_stdout, reason = "the figures")]

use super::random::Llama;
use tch::{Device, Kind};

/// Samples and tokens of the work.
pub(crate) const SAMPLES: usize = 4;
pub(crate) const TOKENS: usize = 256;
const FFN: i64 = 2048;
const HIDDEN: i64 = 64;
/// One tensor over all tokens and channels; a block's graph holds several.
const WIDE: u64 = (SAMPLES * TOKENS) as u64 * FFN as u64 * 4;

/// A figure of this process's memory, in bytes.
fn memory(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

/// Returns how far the peak of `work`, called with a model, samples and tokens, lies above what was there before, less the
/// boundary states that have to be kept.
fn peak(blocks: u32, work: &dyn Fn(&Llama, &model::Decoder, usize, usize)) -> u64 {
    tch::set_num_threads(1);
    let llama = Llama { hidden: HIDDEN, ffn: FFN, heads: 4, kv_heads: 2, blocks, vocab: 256 };
    let decoder = llama.decoder(Kind::Float, Device::Cpu).unwrap();
    work(&llama, &decoder, 1, 8);
    // Forgets the peak so far.
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = memory("VmRSS");
    work(&llama, &decoder, SAMPLES, TOKENS);
    let boundaries = u64::from(blocks + 1) * (SAMPLES * TOKENS) as u64 * HIDDEN as u64 * 4;
    memory("VmHWM") - before - boundaries
}

/// Returns [`peak`] of a process of its own that runs only `test`, in which every large tensor is mapped and unmapped by
/// itself: what is resident is what is alive, not what the heap keeps in reserve.
fn peak_in_new_process(test: &str, blocks: u32) -> u64 {
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env("PEAK_OF_BLOCKS", blocks.to_string())
        .env("MALLOC_MMAP_THRESHOLD_", "65536")
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let line = text.lines().find_map(|line| line.split("peak=").nth(1));
    line.unwrap_or_else(|| panic!("{text} {}", String::from_utf8_lossy(&output.stderr))).trim().parse().unwrap()
}

/// Asserts that the peak of `work` is the same for 4 and 16 blocks; called from the test of this name.
pub(crate) fn does_not_grow_with_depth(test: &str, work: &dyn Fn(&Llama, &model::Decoder, usize, usize)) {
    if let Ok(blocks) = std::env::var("PEAK_OF_BLOCKS") {
        println!("\npeak={}", peak(blocks.parse().unwrap(), work));
        return;
    }
    let (shallow, deep) = (peak_in_new_process(test, 4), peak_in_new_process(test, 16));
    println!("4 blocks {shallow}, 16 blocks {deep}, one wide tensor {WIDE}");
    assert!(shallow > 2 * WIDE, "{shallow}: the measurement misses the graph, which holds several of {WIDE}");
    // If one wide tensor per block lived on, there would be twelve more.
    assert!(deep < shallow + WIDE, "4 blocks {shallow}, 16 blocks {deep}, one wide tensor {WIDE}");
}
