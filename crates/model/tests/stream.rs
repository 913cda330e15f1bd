//! A model whose blocks are read one at a time computes the same bits as one in memory, and takes no more memory for more
//! blocks.

#![allow(clippy::unwrap_used)] // a test that cannot go on fails

use model::sweep::{self, Observer, ObserverError, SweepOptions};
use model::{Decoder, ModelError, ModelFolder, Overlay, perplexity, tensor_file};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use tch::{Device, Kind, Tensor};
use types::{Fisher, LayerId};

const HIDDEN: i64 = 128;
const FFN: i64 = 1024;
const VOCAB: i64 = 64;
const SAMPLES: usize = 4;
const TOKENS: usize = 64;
/// Bytes of one block's weights, in f32.
const BLOCK: u64 = (4 * HIDDEN * HIDDEN + 3 * HIDDEN * FFN) as u64 * 4;

fn golden(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata/golden")).join(name)
}

fn resident(folder: &Path) -> Decoder {
    Decoder::load(&ModelFolder::open(folder).unwrap(), &Overlay::default(), Kind::Float, Device::Cpu).unwrap()
}

fn streamed(folder: &Path) -> Decoder {
    Decoder::stream(ModelFolder::open(folder).unwrap(), Overlay::default(), Kind::Float, Device::Cpu).unwrap()
}

fn samples(vocab: i64, count: usize, tokens: usize) -> Vec<Vec<i64>> {
    (0..count).map(|s| (0..tokens).map(|t| (s * 31 + t * t * 7) as i64 % vocab).collect()).collect()
}

fn go_on(_: u64, _: u64) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// The sums of what was seen, by name.
#[derive(Default)]
struct Seen(BTreeMap<String, Tensor>);

impl Seen {
    fn add(&mut self, name: String, x_nc: &Tensor) {
        let product = x_nc.tr().matmul(x_nc);
        let sum = self.0.remove(&name).map_or(product.shallow_clone(), |sum| sum + &product);
        self.0.insert(name, sum);
    }
}

impl Observer for Seen {
    fn block(&mut self, _: u32) -> Result<(), ObserverError> {
        Ok(())
    }
    fn input(&mut self, layer: &LayerId, x_nc: &Tensor) -> Result<(), ObserverError> {
        self.add(format!("A:{layer}"), x_nc);
        Ok(())
    }
    fn gradient(&mut self, layer: &LayerId, _: &LayerId, dy_nr: &Tensor) -> Result<(), ObserverError> {
        self.add(format!("G:{layer}"), dy_nr);
        Ok(())
    }
    fn finished(&mut self, _: u32) -> Result<(), ObserverError> {
        Ok(())
    }
}

fn options(decoder: &Decoder) -> SweepOptions {
    let consumers = |block: usize| decoder.consumers(block).into_iter().map(move |layer| (block as u32, layer));
    SweepOptions {
        micro_batch: 1,
        boundary_kind: Kind::BFloat16,
        fisher: Fisher::Empirical,
        seed: 0,
        first_sample: 0,
        curvature: (0..decoder.block_count()).flat_map(consumers).collect(),
        head_chunk: 16,
    }
}

fn sweep(decoder: &Decoder, samples: &[Vec<i64>]) -> (f64, BTreeMap<String, Tensor>) {
    let mut seen = Seen::default();
    let result = sweep::run(decoder, samples, &options(decoder), &mut seen, &mut go_on).unwrap();
    (result.loss_sum, seen.0)
}

#[test]
fn every_family_gives_the_same_bits_streamed() {
    for name in ["llama-gqa", "llama-bias", "llama-tied-llama3", "mistral", "qwen2", "qwen3", "opt"] {
        let (here, there) = (resident(&golden(name)), streamed(&golden(name)));
        let samples = samples(here.config.vocab, 3, 12);
        let ((loss, sums), (loss_streamed, sums_streamed)) = (sweep(&here, &samples), sweep(&there, &samples));
        assert_eq!(loss.to_bits(), loss_streamed.to_bits(), "{name}");
        assert_eq!(sums.keys().collect::<Vec<_>>(), sums_streamed.keys().collect::<Vec<_>>());
        for (key, sum) in &sums {
            assert!(sum.equal(&sums_streamed[key]), "{name} {key}");
        }
        let loss = |decoder| perplexity::evaluate(decoder, &samples, 2, &mut go_on).unwrap().mean;
        assert_eq!(loss(&here).to_bits(), loss(&there).to_bits(), "{name}");
        for block in 0..here.block_count() {
            assert_eq!(here.linears(block), there.linears(block));
            assert_eq!(here.consumers(block), there.consumers(block));
        }
    }
}

#[test]
fn what_needs_all_weights_at_once_says_so() {
    let decoder = streamed(&golden("llama-gqa"));
    let error = decoder.resident().unwrap_err();
    assert!(matches!(&error, ModelError::Unsupported { .. }) && error.to_string().contains("--weights"), "{error}");
}

/// Writes a Llama of so many blocks.
fn write(folder: &Path, blocks: u32) {
    let config = serde_json::json!({
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": HIDDEN, "intermediate_size": FFN,
        "num_hidden_layers": blocks, "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": VOCAB,
        "max_position_embeddings": 1024, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "tie_word_embeddings": true, "hidden_act": "silu", "torch_dtype": "float32",
    });
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let mut tensors = Vec::new();
    let mut add = |name: &str, shape: &[i64]| {
        tensors.push((format!("{name}.weight"), Tensor::randn(shape, (Kind::Float, Device::Cpu)) * 0.05));
    };
    add("model.embed_tokens", &[VOCAB, HIDDEN]);
    add("model.norm", &[HIDDEN]);
    for block in 0..blocks {
        for part in ["input_layernorm", "post_attention_layernorm"] {
            add(&format!("model.layers.{block}.{part}"), &[HIDDEN]);
        }
        for part in ["q_proj", "k_proj", "v_proj", "o_proj"] {
            add(&format!("model.layers.{block}.self_attn.{part}"), &[HIDDEN, HIDDEN]);
        }
        for part in ["gate_proj", "up_proj"] {
            add(&format!("model.layers.{block}.mlp.{part}"), &[FFN, HIDDEN]);
        }
        add(&format!("model.layers.{block}.mlp.down_proj"), &[HIDDEN, FFN]);
    }
    std::fs::write(folder.join("model.safetensors"), tensor_file::encode(&tensors, &BTreeMap::new()).unwrap()).unwrap();
}

/// A figure of this process's memory, in bytes.
fn memory(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

/// Returns the peak of opening, sweeping and evaluating the model at `folder`, less the boundary states, above what was
/// there before. Sums are not kept.
fn peak(folder: &Path, open: fn(&Path) -> Decoder) -> u64 {
    struct Nothing;
    impl Observer for Nothing {
        fn block(&mut self, _: u32) -> Result<(), ObserverError> {
            Ok(())
        }
        fn input(&mut self, _: &LayerId, _: &Tensor) -> Result<(), ObserverError> {
            Ok(())
        }
        fn gradient(&mut self, _: &LayerId, _: &LayerId, _: &Tensor) -> Result<(), ObserverError> {
            Ok(())
        }
        fn finished(&mut self, _: u32) -> Result<(), ObserverError> {
            Ok(())
        }
    }
    tch::set_num_threads(1);
    let work = |samples: &[Vec<i64>]| {
        let decoder = open(folder);
        sweep::run(&decoder, samples, &options(&decoder), &mut Nothing, &mut go_on).unwrap();
        perplexity::evaluate(&decoder, samples, 1, &mut go_on).unwrap();
        decoder.block_count()
    };
    work(&samples(VOCAB, 1, 8));
    // Forgets the peak so far.
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = memory("VmRSS");
    let blocks = work(&samples(VOCAB, SAMPLES, TOKENS));
    // Kept in 16 bits.
    let boundaries = blocks as u64 * (SAMPLES * TOKENS) as u64 * HIDDEN as u64 * 2;
    memory("VmHWM").saturating_sub(before + boundaries)
}

/// Returns [`peak`] of a process of its own, in which every large tensor is mapped and unmapped by itself.
fn peak_in_new_process(folder: &Path, how: &str) -> u64 {
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_streamed_model_takes_the_memory_of_one_block", "--nocapture"])
        .env("PEAK_OF_FOLDER", folder)
        .env("PEAK_OF_WEIGHTS", how)
        .env("MALLOC_MMAP_THRESHOLD_", "65536")
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let line = text.lines().find_map(|line| line.split("peak=").nth(1));
    line.unwrap_or_else(|| panic!("{text} {}", String::from_utf8_lossy(&output.stderr))).trim().parse().unwrap()
}

#[test]
fn a_streamed_model_takes_the_memory_of_one_block() {
    if let Some(folder) = std::env::var_os("PEAK_OF_FOLDER") {
        let open = if std::env::var("PEAK_OF_WEIGHTS").unwrap() == "stream" { streamed } else { resident };
        println!("\npeak={}", peak(Path::new(&folder), open));
        return;
    }
    let (shallow, deep) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write(shallow.path(), 4);
    write(deep.path(), 24);
    let of = |folder: &tempfile::TempDir, how| peak_in_new_process(folder.path(), how);
    let (few, many, all) = (of(&shallow, "stream"), of(&deep, "stream"), of(&deep, "resident"));
    println!("4 blocks {few}, 24 blocks {many}, 24 blocks in memory {all}, one block {BLOCK}");
    assert!(all > 20 * BLOCK, "{all}: the measurement misses the weights, 24 x {BLOCK}");
    assert!(many < few + 2 * BLOCK, "20 more blocks of {BLOCK} took {few} to {many}");
    assert!(many < 8 * BLOCK, "{many} for a block of {BLOCK} at a time");
}
