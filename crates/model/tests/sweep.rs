//! The sweep against independent factors, and what must not change its numbers.

#![allow(clippy::unwrap_used)] // a test that cannot go on fails

use model::sweep::{self, Observer, ObserverError, SweepOptions, SweepResult};
use model::{Decoder, ModelError, ModelFolder, Overlay, tensor_file};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::path::PathBuf;
use tch::{Device, Kind, Tensor};
use types::{Fisher, LayerId};

fn golden(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata/golden")).join(name)
}

fn load(name: &str, kind: Kind) -> Decoder {
    Decoder::load(&ModelFolder::open(&golden(name)).unwrap(), &Overlay::default(), kind, Device::Cpu).unwrap()
}

/// Seen of x xᵀ and g gᵀ, and what was called in which order.
#[derive(Default)]
struct Seen {
    sums: BTreeMap<String, Tensor>,
    kinds: BTreeSet<String>,
    calls: Vec<String>,
    fail_at: Option<&'static str>,
}

impl Seen {
    fn add(&mut self, name: String, x_nc: &Tensor) -> Result<(), ObserverError> {
        assert!(!x_nc.requires_grad());
        self.kinds.insert(format!("{:?}", x_nc.kind()));
        let product = x_nc.tr().matmul(x_nc);
        let sum = self.sums.remove(&name).map_or(product.shallow_clone(), |sum| sum + &product);
        if self.fail_at.is_some_and(|at| name.contains(at)) {
            return Err("as asked".into());
        }
        self.sums.insert(name, sum);
        Ok(())
    }
}

impl Observer for Seen {
    fn block(&mut self, block: u32) -> Result<(), ObserverError> {
        self.calls.push(format!("block {block}"));
        Ok(())
    }
    fn input(&mut self, layer: &LayerId, x_nc: &Tensor) -> Result<(), ObserverError> {
        self.add(format!("A:{layer}"), x_nc)
    }
    fn gradient(&mut self, layer: &LayerId, _input: &LayerId, dy_nr: &Tensor) -> Result<(), ObserverError> {
        self.add(format!("G:{layer}"), dy_nr)
    }
    fn finished(&mut self, block: u32) -> Result<(), ObserverError> {
        self.calls.push(format!("finished {block}"));
        Ok(())
    }
}

fn every_layer(decoder: &Decoder) -> BTreeSet<(u32, LayerId)> {
    decoder
        .resident()
        .unwrap()
        .iter()
        .flat_map(|b| b.linears().into_iter().map(|l| (b.index, l.name.clone())))
        .collect()
}

fn options(decoder: &Decoder) -> SweepOptions {
    SweepOptions {
        micro_batch: 2,
        boundary_kind: decoder.kind(),
        fisher: Fisher::Empirical,
        seed: 3,
        first_sample: 0,
        curvature: every_layer(decoder),
        head_chunk: 7,
    }
}

fn sweep(decoder: &Decoder, samples: &[Vec<i64>], options: &SweepOptions) -> Result<(SweepResult, Seen), ModelError> {
    let mut sums = Seen::default();
    let result = sweep::run(decoder, samples, options, &mut sums, &mut |_, _| ControlFlow::Continue(()))?;
    Ok((result, sums))
}

fn samples(vocab: i64, count: i64, tokens: i64) -> Vec<Vec<i64>> {
    (0..count).map(|s| (0..tokens).map(|t| 3 + (s * 31 + t * t * 7 + t) % (vocab - 3)).collect()).collect()
}

fn assert_close(found: &Tensor, expected: &Tensor, tolerance: f64, what: &str) {
    assert_eq!(found.size(), expected.size(), "{what}");
    let scale = expected.abs().max().double_value(&[]);
    let error = (found - expected).abs().max().double_value(&[]);
    assert!(error <= tolerance * scale, "{what}: {error:e} of {scale:e}");
}

fn assert_same(found: &Seen, expected: &Seen, tolerance: f64) {
    assert_eq!(found.sums.keys().collect::<Vec<_>>(), expected.sums.keys().collect::<Vec<_>>());
    for (name, sum) in &expected.sums {
        assert_close(&found.sums[name], sum, tolerance, name);
    }
}

#[test]
fn factors_equal_those_of_an_independent_implementation() {
    for name in ["llama-gqa", "opt"] {
        let decoder = load(name, Kind::Double);
        let bytes = std::fs::read(golden(name).join("factors.safetensors")).unwrap();
        let expected: BTreeMap<_, _> = tensor_file::decode(&bytes, Device::Cpu).unwrap().0.into_iter().collect();
        let ids: Vec<Vec<i64>> = Vec::<Vec<i64>>::try_from(&expected["ids"]).unwrap();
        let (result, sums) = sweep(&decoder, &ids, &options(&decoder)).unwrap();
        let tokens = (ids.len() * ids[0].len()) as u64;
        assert_eq!((result.tokens, result.targets), (tokens, tokens - ids.len() as u64));
        let loss = expected["loss"].double_value(&[]);
        // Their attention takes its softmax in f32, whatever the rest is in.
        assert!((result.loss_sum / result.targets as f64 - loss).abs() < 1e-7 * loss, "{name}: {result:?} {loss}");
        let mut compared = 0;
        for (key, factor) in expected.iter().filter(|(key, _)| key.contains(':')) {
            // Layers that share their input are seen once, under the name of the first.
            let shared = key.starts_with("A:") && ["k_proj", "v_proj", "up_proj"].iter().any(|end| key.ends_with(end));
            assert_eq!(sums.sums.contains_key(key), !shared, "{key}");
            if !shared {
                assert_close(&(&sums.sums[key] / tokens as f64), factor, 1e-6, key);
                compared += 1;
            }
        }
        assert!(compared >= 12, "{name}: only {compared} factors compared");
    }
}

#[test]
fn numbers_do_not_depend_on_micro_batch_or_head_chunk() {
    for name in ["qwen2", "qwen3", "opt"] {
        let decoder = load(name, Kind::Double);
        let samples = samples(decoder.config.vocab, 5, 12);
        let (result, sums) = sweep(&decoder, &samples, &options(&decoder)).unwrap();
        for (micro_batch, head_chunk) in [(1, 1000), (3, 5), (5, 11)] {
            let other = SweepOptions { micro_batch, head_chunk, ..options(&decoder) };
            let (again, other) = sweep(&decoder, &samples, &other).unwrap();
            assert_same(&other, &sums, 1e-12);
            assert!((again.loss_sum - result.loss_sum).abs() < 1e-12 * result.loss_sum);
        }
    }
}

#[test]
fn the_loss_is_that_of_the_logits() {
    let decoder = load("mistral", Kind::Float);
    let samples = samples(decoder.config.vocab, 3, 10);
    let none = SweepOptions { curvature: BTreeSet::new(), ..options(&decoder) };
    let (result, sums) = sweep(&decoder, &samples, &none).unwrap();
    assert!(sums.calls.is_empty() && sums.sums.is_empty());
    let ids = Tensor::from_slice(&samples.concat()).view([3, 10]);
    let logits = decoder.forward_logits(&ids).unwrap().narrow(1, 0, 9).reshape([27, -1]);
    let expected = logits.cross_entropy_for_logits(&ids.narrow(1, 1, 9).reshape([27])).double_value(&[]) * 27.0;
    assert!((result.loss_sum - expected).abs() < 1e-4 * expected, "{} {expected}", result.loss_sum);
}

#[test]
fn sampled_labels_depend_on_seed_and_sample_number_alone() {
    let decoder = load("llama-gqa", Kind::Double);
    let samples = samples(decoder.config.vocab, 4, 12);
    let sampled = SweepOptions { fisher: Fisher::Sampled, ..options(&decoder) };
    let (result, whole) = sweep(&decoder, &samples, &sampled).unwrap();
    // Cut into shards and other micro-batches, the same labels are drawn.
    let (_, mut first) = sweep(&decoder, &samples[..1], &SweepOptions { micro_batch: 1, ..sampled.clone() }).unwrap();
    let rest = SweepOptions { first_sample: 1, head_chunk: 50, ..sampled.clone() };
    for (name, sum) in sweep(&decoder, &samples[1..], &rest).unwrap().1.sums {
        let total = &first.sums[&name] + sum;
        first.sums.insert(name, total);
    }
    assert_same(&first, &whole, 1e-12);
    let differs = |other: &Seen| {
        let key = "G:model.layers.1.mlp.down_proj";
        (&other.sums[key] - &whole.sums[key]).abs().max().double_value(&[]) > 1e-3
    };
    assert!(differs(&sweep(&decoder, &samples, &SweepOptions { seed: 4, ..sampled }).unwrap().1));
    let (of_data, empirical) = sweep(&decoder, &samples, &options(&decoder)).unwrap();
    assert!(differs(&empirical));
    assert_eq!(of_data.loss_sum.to_bits(), result.loss_sum.to_bits(), "the loss is always that of the data");
}

#[test]
fn only_wanted_layers_are_seen_and_blocks_come_from_the_last_to_the_first() {
    let decoder = load("qwen3", Kind::Double);
    let samples = samples(decoder.config.vocab, 3, 8);
    let (_, all) = sweep(&decoder, &samples, &options(&decoder)).unwrap();
    assert_eq!(all.calls, ["block 2", "finished 2", "block 1", "finished 1", "block 0", "finished 0"]);
    let consumers = |(block, layer): &(u32, LayerId)| {
        *block == 1 && (layer.as_str().ends_with("o_proj") || layer.as_str().ends_with("down_proj"))
    };
    let some =
        SweepOptions { curvature: every_layer(&decoder).into_iter().filter(consumers).collect(), ..options(&decoder) };
    let mut steps = Vec::new();
    let mut seen = Seen::default();
    let mut count = |done, total| {
        steps.push((done, total));
        ControlFlow::Continue(())
    };
    sweep::run(&decoder, &samples, &some, &mut seen, &mut count).unwrap();
    assert_eq!(seen.calls, ["block 1", "finished 1"]);
    assert_eq!(seen.sums.len(), 4);
    for (name, sum) in &seen.sums {
        assert_close(sum, &all.sums[name], 1e-12, name);
    }
    // Two micro-batches through three blocks and the head, then back through the two blocks that are needed.
    assert_eq!(steps, (1..=12).map(|done| (done, 12)).collect::<Vec<_>>());
}

#[test]
fn sixteen_bit_passes_reach_the_observer_in_f32() {
    let precise = load("mistral", Kind::Float);
    let samples = samples(precise.config.vocab, 2, 16);
    let (_, exact) = sweep(&precise, &samples, &options(&precise)).unwrap();
    let coarse = SweepOptions { boundary_kind: Kind::BFloat16, ..options(&precise) };
    assert_same(&sweep(&precise, &samples, &coarse).unwrap().1, &exact, 0.05);
    let half = load("mistral", Kind::BFloat16);
    let (_, sums) = sweep(&half, &samples, &options(&half)).unwrap();
    assert_eq!(sums.kinds, BTreeSet::from(["Float".to_owned()]));
    assert_same(&sums, &exact, 0.2);
}

#[test]
fn a_sweep_stops_when_asked() {
    let decoder = load("llama-gqa", Kind::Float);
    let samples = samples(decoder.config.vocab, 4, 8);
    for last in [1, 5, 9] {
        let mut seen = 0;
        let mut stop = |done, _| {
            seen = done;
            if done == last { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let stopped = sweep::run(&decoder, &samples, &options(&decoder), &mut Seen::default(), &mut stop);
        assert!(matches!(stopped, Err(ModelError::Stopped)));
        assert_eq!(seen, last);
    }
}

#[test]
fn a_number_that_is_not_finite_names_block_and_samples() {
    let decoder = load("llama-gqa", Kind::Float);
    let mut samples = samples(decoder.config.vocab, 4, 8);
    samples[2][3] = 0;
    let _ = decoder.embedding.get(0).fill_(f64::INFINITY);
    let late = SweepOptions { first_sample: 10, ..options(&decoder) };
    let error = sweep(&decoder, &samples, &late).err().unwrap().to_string();
    assert_eq!(error, "the input of block 0 (samples [12]) is not finite");

    // A gradient can overflow where every activation is finite.
    let mut decoder = load("llama-gqa", Kind::Float);
    decoder.resident_mut().unwrap()[1].mlp_norm =
        model::Norm::Rms { weight: Tensor::full([24], 1e-30, (Kind::Float, Device::Cpu)), eps: 1e-5 };
    let model::Mlp::Gated { down, .. } = &mut decoder.resident_mut().unwrap()[1].mlp else { panic!() };
    down.weight = &down.weight * 1e30;
    let ok = sweep(&decoder, &samples[..2], &options(&decoder));
    assert!(ok.is_ok(), "large weights alone are no error");
    decoder.head = &decoder.head * 1e38;
    let error = sweep(&decoder, &samples[..2], &options(&decoder)).err().unwrap().to_string();
    assert!(error.contains("loss") && error.contains("samples"), "{error}");
}

#[test]
fn errors_of_the_observer_and_unknown_layers_are_passed_on() {
    let decoder = load("llama-gqa", Kind::Float);
    let samples = samples(decoder.config.vocab, 2, 8);
    for at in ["A:model.layers.1.mlp.down_proj", "G:model.layers.0.self_attn.o_proj"] {
        let mut failing = Seen { fail_at: Some(at), ..Seen::default() };
        let error =
            sweep::run(&decoder, &samples, &options(&decoder), &mut failing, &mut |_, _| ControlFlow::Continue(()));
        let Err(ModelError::Observer { block, source }) = error else { panic!("{error:?}") };
        assert_eq!((format!(".{block}."), source.to_string().as_str()), (at[14..17].to_owned(), "as asked"));
    }
    let unknown = LayerId::new("model.layers.0.mlp.fc9").unwrap();
    let wrong = SweepOptions { curvature: BTreeSet::from([(0, unknown)]), ..options(&decoder) };
    assert!(matches!(sweep(&decoder, &samples, &wrong), Err(ModelError::UnknownLayer { block: 0, .. })));
    let beyond = SweepOptions { curvature: BTreeSet::from([(9, LayerId::new("x").unwrap())]), ..options(&decoder) };
    assert!(sweep(&decoder, &samples, &beyond).is_err());
    let ragged = [samples[0].clone(), samples[1][..4].to_vec()];
    assert!(matches!(sweep(&decoder, &ragged, &options(&decoder)), Err(ModelError::Shape { .. })));
}
