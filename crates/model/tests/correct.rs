//! The low-rank correction: that it helps, what it must not touch, and when it has to give up. Its gradients are held
//! against one graph over the whole model where they are computed.

#![allow(clippy::unwrap_used)] // a test that cannot go on fails

#[path = "common/peak.rs"]
mod peak;
#[path = "common/random.rs"]
mod random;

use model::correct::{self, CorrectEnd, CorrectOptions, Corrected, Zeros};
use model::{Decoder, LayerOverlay, ModelError, ModelFolder, Overlay, perplexity};
use random::Llama;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::PathBuf;
use tch::{Device, Kind, Tensor};
use types::{LayerId, UnitKind};

const TINY: Llama = Llama { hidden: 24, ffn: 40, heads: 4, kv_heads: 2, blocks: 3, vocab: 96 };

fn golden(name: &str) -> ModelFolder {
    ModelFolder::open(&PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata/golden")).join(name)).unwrap()
}

fn load(name: &str, kind: Kind) -> Decoder {
    // Models this small only lose time to a second thread, and much of it on a busy machine.
    tch::set_num_threads(1);
    Decoder::load(&golden(name), &Overlay::default(), kind, Device::Cpu).unwrap()
}

/// Returns samples with something in them to learn: each token follows from the one before, with exceptions.
fn samples(vocab: i64, count: i64, tokens: i64) -> Vec<Vec<i64>> {
    let token = |s: i64, t: i64| if (s + t) % 5 == 0 { s * 31 + t * 7 } else { s + t * 3 };
    (0..count).map(|s| (0..tokens).map(|t| 3 + token(s, t) % (vocab - 3)).collect()).collect()
}

fn options() -> CorrectOptions {
    CorrectOptions {
        rank: 4,
        alpha: 4.0,
        steps: 12,
        learning_rate: 1e-2,
        batch: 3,
        micro_batch: 2,
        head_chunk: 11,
        check_every: 4,
        ..CorrectOptions::default()
    }
}

fn go_on(_: u64, _: u64) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn run(decoder: &Decoder, held_out: Option<&[Vec<i64>]>, options: &CorrectOptions) -> Result<Corrected, ModelError> {
    let kept = correct::kept(decoder, Zeros::Weights).unwrap();
    correct::run(decoder, &samples(decoder.config.vocab, 8, 16), held_out, &kept, options, &mut go_on)
}

/// Returns every weight of the blocks, by name.
fn weights(decoder: &Decoder) -> BTreeMap<LayerId, Tensor> {
    let layers = decoder.resident().unwrap().iter().flat_map(model::Block::linears);
    layers.map(|layer| (layer.name.clone(), layer.weight.shallow_clone())).collect()
}

/// Returns whether all tensors are the same to the bit.
fn same(one: &BTreeMap<LayerId, Tensor>, other: &BTreeMap<LayerId, Tensor>) -> bool {
    one.keys().eq(other.keys()) && one.iter().all(|(name, tensor)| tensor.equal(&other[name]))
}

fn new_weights(corrected: &Corrected, decoder: &Decoder) -> BTreeMap<LayerId, Tensor> {
    corrected.weights(decoder).map(|new| new.map(|(layer, w_rc)| (layer.name.clone(), w_rc)).unwrap()).collect()
}

fn loss(decoder: &Decoder, segments: &[Vec<i64>]) -> f64 {
    perplexity::evaluate(decoder, segments, options().micro_batch, &mut go_on).unwrap().mean
}

#[test]
fn the_loss_goes_down_and_is_that_of_the_absorbed_weights() {
    for (name, kind) in
        [("llama-gqa", Kind::Float), ("opt", Kind::Float), ("qwen3", Kind::Double), ("mistral", Kind::BFloat16)]
    {
        let mut decoder = load(name, kind);
        // Other sequences by the same rule.
        let held_out = samples(decoder.config.vocab, 14, 16).split_off(8);
        let before = loss(&decoder, &held_out);
        let corrected = run(&decoder, Some(&held_out), &options()).unwrap();
        let report = corrected.report.clone();
        assert!(report.steps_kept > 0 && report.end == CorrectEnd::Done, "{name}: {report:?}");
        assert_eq!((report.steps_done, report.training.len()), (12, 12));
        assert_eq!(report.history.iter().map(|m| m.step).collect::<Vec<_>>(), [0, 4, 8, 12]);
        assert!(report.training[11] < report.training[0] - 0.1, "{name}: {report:?}");
        assert_eq!(report.loss_before, Some(before));
        let after = report.loss_after.unwrap();
        assert!(after < before - 0.1, "{name}: {before} {after}");
        let new = new_weights(&corrected, &decoder);
        let wide = if kind == Kind::Double { Kind::Double } else { Kind::Float };
        assert!(new.values().all(|w_rc| w_rc.kind() == wide && !w_rc.requires_grad()));
        corrected.absorb(&mut decoder).unwrap();
        let rounded = new.into_iter().map(|(name, w_rc)| (name, w_rc.to_kind(kind))).collect();
        assert!(same(&rounded, &weights(&decoder)), "{name}: rounded once");
        assert_eq!(loss(&decoder, &held_out).to_bits(), after.to_bits(), "{name}");
    }
}

#[test]
fn removed_weights_stay_exactly_zero_and_others_learn() {
    for kind in [Kind::Float, Kind::BFloat16] {
        let mut decoder = load("llama-gqa", kind);
        for (number, layer) in decoder.resident_mut().unwrap().iter_mut().flat_map(|b| b.linears_mut()).enumerate() {
            // Rows and columns; scattered weights; nothing.
            match number % 3 {
                0 => {
                    let _ = layer.weight.narrow(0, 2, 3).zero_();
                    let _ = layer.weight.narrow(1, 0, 5).zero_();
                }
                1 => {
                    let removed_rc = Tensor::arange(layer.rows() * layer.columns(), (Kind::Int64, Device::Cpu));
                    let removed_rc = removed_rc.remainder(7).ge(4).view([layer.rows(), layer.columns()]);
                    let _ = layer.weight.masked_fill_(&removed_rc, 0.0);
                }
                _ => {}
            }
        }
        let (old, kept) = (weights(&decoder), correct::kept(&decoder, Zeros::Weights).unwrap());
        assert!(kept.len() * 3 >= old.len() * 2 - 2 && kept.len() < old.len());
        let corrected = run(&decoder, None, &options()).unwrap();
        assert!(corrected.report.steps_kept > 0 && corrected.report.loss_after.is_none());
        let whole = correct::kept(&decoder, Zeros::RowsAndColumns).unwrap();
        assert!(whole.len() < kept.len() && whole.iter().all(|(name, whole_rc)| whole_rc.equal(&kept[name])));
        for (name, w_rc) in new_weights(&corrected, &decoder) {
            let changed_rc = w_rc.ne_tensor(&old[&name].to_kind(w_rc.kind()));
            let kept_rc = kept.get(&name).map_or(changed_rc.ones_like(), Tensor::shallow_clone);
            assert_eq!(w_rc.masked_select(&kept_rc.logical_not()).count_nonzero(None).int64_value(&[]), 0, "{name}");
            let share = changed_rc.sum(Kind::Float) / kept_rc.sum(Kind::Float);
            // Rows whose output only meets removed columns have nothing to learn.
            assert!(share.double_value(&[]) > 0.75, "{name}: {share}");
        }
        corrected.absorb(&mut decoder).unwrap();
        for (name, w_rc) in weights(&decoder) {
            let removed = kept.get(&name).map_or(w_rc.narrow(0, 0, 0), |k| w_rc.masked_select(&k.logical_not()));
            assert_eq!(removed.count_nonzero(None).int64_value(&[]), 0, "{name}");
        }
    }
}

#[test]
fn equal_seeds_give_equal_bits_whatever_the_global_generator_does() {
    let decoder = load("opt", Kind::Float);
    let go = |global, seed| {
        tch::manual_seed(global);
        let corrected = run(&decoder, None, &CorrectOptions { seed, steps: 4, ..options() }).unwrap();
        new_weights(&corrected, &decoder)
    };
    let first = go(1, 7);
    assert!(same(&first, &go(2, 7)));
    assert!(!same(&first, &go(1, 8)));
}

#[test]
fn micro_batch_and_head_chunk_change_nothing_but_rounding() {
    let decoder = load("qwen2", Kind::Double);
    let go = |micro_batch, head_chunk| {
        // The adaptive step divides by tiny numbers at first, so rounding grows; a few steps are enough.
        let options = CorrectOptions { micro_batch, head_chunk, steps: 3, ..options() };
        new_weights(&run(&decoder, None, &options).unwrap(), &decoder)
    };
    let expected = go(3, 1000);
    for (name, w_rc) in go(1, 5) {
        let error = (w_rc - &expected[&name]).abs().max().double_value(&[]);
        assert!(error < 1e-9, "{name}: {error:e}");
    }
}

#[test]
fn what_does_not_help_is_not_kept() {
    for (learning_rate, end, kind) in [
        (1e4, CorrectEnd::NoGain, Kind::Float),
        (1e30, CorrectEnd::Diverged, Kind::Float),
        (1e30, CorrectEnd::Diverged, Kind::BFloat16),
    ] {
        let mut decoder = load("llama-gqa", kind);
        let held_out = samples(decoder.config.vocab, 3, 16);
        // A random model can only gain by knowing nothing; one that knows something can lose it.
        let sane = CorrectOptions { steps: 40, ..options() };
        run(&decoder, Some(&held_out), &sane).unwrap().absorb(&mut decoder).unwrap();
        let old = weights(&decoder);
        let absurd = CorrectOptions { learning_rate, check_every: 2, patience: 2, ..options() };
        let corrected = run(&decoder, Some(&held_out), &absurd).unwrap();
        let report = corrected.report.clone();
        assert_eq!((report.end, report.steps_kept), (end, 0), "{report:?}");
        assert!(report.steps_done < 12 && report.loss_after == report.loss_before, "{report:?}");
        assert_eq!(corrected.weights(&decoder).count(), 0);
        corrected.absorb(&mut decoder).unwrap();
        assert!(same(&old, &weights(&decoder)));
    }
    // Without held-out segments there is nothing to fall back on.
    let decoder = load("llama-gqa", Kind::Float);
    let error = run(&decoder, None, &CorrectOptions { learning_rate: 1e30, ..options() }).unwrap_err();
    assert!(matches!(&error, ModelError::NotFinite { what } if what.contains("of the correction")), "{error}");
}

#[test]
fn the_best_is_kept_where_the_last_is_not_the_best() {
    let decoder = load("llama-gqa", Kind::Float);
    // Held-out text that the samples teach nothing about, after the first step or two.
    let held_out = TINY.samples(4, 16);
    let eager = CorrectOptions { learning_rate: 0.05, steps: 30, check_every: 1, patience: 0, ..options() };
    let corrected = run(&decoder, Some(&held_out), &eager).unwrap();
    let report = corrected.report.clone();
    assert_eq!((report.end, report.steps_done, report.history.len()), (CorrectEnd::Done, 30, 31));
    let best = report.history.iter().min_by(|a, b| a.loss.total_cmp(&b.loss)).unwrap();
    assert!(report.history[30].loss > best.loss, "{report:?}");
    assert_eq!((report.steps_kept, report.loss_after), (best.step, Some(best.loss)));
    let mut decoder = decoder;
    corrected.absorb(&mut decoder).unwrap();
    assert_eq!(loss(&decoder, &held_out).to_bits(), best.loss.to_bits());
    // With patience it ends early, with the same best if that lies before.
    let patient = CorrectOptions { patience: 3, ..eager };
    let early = run(&load("llama-gqa", Kind::Float), Some(&held_out), &patient).unwrap().report;
    assert_eq!((early.end, early.steps_done), (CorrectEnd::NoGain, early.steps_kept + 3), "{early:?}");
}

#[test]
fn progress_counts_to_its_end_and_can_stop() {
    let decoder = load("llama-gqa", Kind::Float);
    let (samples, held_out) = (samples(decoder.config.vocab, 5, 8), samples(decoder.config.vocab, 3, 8));
    let go = |last: u64| {
        let mut seen = Vec::new();
        let mut progress = |done, total| {
            seen.push((done, total));
            if done >= last { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let options = CorrectOptions { steps: 5, check_every: 2, patience: 0, ..options() };
        let result = correct::run(&decoder, &samples, Some(&held_out), &BTreeMap::new(), &options, &mut progress);
        (seen, result)
    };
    let (seen, result) = go(u64::MAX);
    assert!(result.is_ok());
    // Five steps of two micro-batches, four measurements of two: each block, the head, and each block once more.
    let blocks = decoder.block_count() as u64;
    let total = 5 * 2 * (2 * blocks + 1) + 4 * 2 * (blocks + 1);
    assert_eq!(*seen.last().unwrap(), (total, total));
    assert!(seen.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 == total), "{seen:?}");
    for last in [1, 9, 12, 20, total - 1] {
        let (seen, result) = go(last);
        assert!(matches!(result, Err(ModelError::Stopped)));
        assert!(seen[..seen.len() - 1].iter().all(|(done, _)| *done < last));
    }
}

#[test]
fn what_cannot_be_done_is_refused() {
    let decoder = load("llama-gqa", Kind::Float);
    let refused = |samples: &[Vec<i64>], kept: &BTreeMap<LayerId, Tensor>, options: &CorrectOptions| {
        correct::run(&decoder, samples, None, kept, options, &mut go_on).unwrap_err().to_string()
    };
    let (good, all) = (samples(50, 4, 8), BTreeMap::new());
    for (bad, what) in [
        (CorrectOptions { rank: 0, ..options() }, "rank"),
        (CorrectOptions { steps: 0, ..options() }, "number of steps"),
        (CorrectOptions { batch: 0, ..options() }, "batch"),
    ] {
        assert_eq!(refused(&good, &all, &bad), format!("{what} has shape [0], expected at least 1"));
    }
    assert!(refused(&[], &all, &options()).contains("samples"));
    assert!(refused(&[vec![1, 2, 3], vec![1, 2]], &all, &options()).contains("samples"));
    let layer = &decoder.resident().unwrap()[0].attention.q;
    let kept = |name: &str, kept_rc: Tensor| BTreeMap::from([(LayerId::new(name).unwrap(), kept_rc)]);
    let ones = layer.weight.ne(f64::INFINITY);
    for (kept, why) in [
        (kept("nothing", ones.copy()), "no such layer"),
        (kept(layer.name.as_str(), ones.narrow(0, 1, 2)), "expected Bool of"),
        (kept(layer.name.as_str(), layer.weight.ones_like()), "expected Bool of"),
        (kept(layer.name.as_str(), ones.zeros_like()), "not zero"),
    ] {
        assert!(refused(&good, &kept, &options()).contains(why), "{why}");
    }
    let other = TINY.decoder(Kind::Float, Device::Cpu).unwrap();
    let corrected = run(&other, None, &CorrectOptions { steps: 1, ..options() }).unwrap();
    let mut unlike = Llama { ffn: 48, ..TINY }.decoder(Kind::Float, Device::Cpu).unwrap();
    assert!(matches!(corrected.absorb(&mut unlike), Err(ModelError::Overlay { .. })));
}

#[test]
fn new_weights_of_a_smaller_model_load_as_an_overlay() {
    let folder = golden("llama-gqa");
    let channels: Vec<u32> = (0..folder.config().ffn as u32).filter(|channel| channel % 4 != 1).collect();
    let consumers = || {
        let consumer = |layers: &model::BlockLayers| {
            let overlay = LayerOverlay {
                kind: UnitKind::FfnChannel,
                kept: channels.clone(),
                kept_rows: Vec::new(),
                weight: None,
                bias: None,
            };
            (layers.mlp.consumer().clone(), overlay)
        };
        folder.layers().iter().map(consumer).collect::<BTreeMap<_, _>>()
    };
    let mut decoder =
        Decoder::load(&folder, &Overlay { layers: consumers(), later: None }, Kind::Float, Device::Cpu).unwrap();
    assert_eq!(decoder.resident().unwrap()[0].mlp.channels(), channels.len() as i64);
    let corrected = run(&decoder, None, &CorrectOptions { steps: 2, ..options() }).unwrap();
    let mut layers = consumers();
    let left = Tensor::from_slice(&channels.iter().map(|channel| i64::from(*channel)).collect::<Vec<_>>());
    for (name, w_rc) in new_weights(&corrected, &decoder) {
        let weight = match folder.tensor(&format!("{name}.weight"), Kind::Float, Device::Cpu).unwrap() {
            base_rc if layers.contains_key(&name) || base_rc.size() == w_rc.size() => w_rc,
            // A producer's rows belong to its consumer's units: as a layer it is whole, so its file holds all of them.
            base_rc => base_rc.index_copy(0, &left, &w_rc),
        };
        let (kept, kept_rows) = (Vec::new(), Vec::new());
        let whole = LayerOverlay { kind: UnitKind::Whole, kept, kept_rows, weight: None, bias: None };
        layers.entry(name).or_insert(whole).weight = Some(weight);
    }
    let loaded = Decoder::load(&folder, &Overlay { layers, later: None }, Kind::Float, Device::Cpu).unwrap();
    corrected.absorb(&mut decoder).unwrap();
    assert!(same(&weights(&decoder), &weights(&loaded)));
}

#[test]
fn peak_memory_does_not_grow_with_depth() {
    peak::does_not_grow_with_depth("peak_memory_does_not_grow_with_depth", &|llama, decoder, samples, tokens| {
        let options = CorrectOptions { rank: 1, steps: 1, batch: samples, micro_batch: samples, ..options() };
        correct::run(decoder, &llama.samples(samples, tokens), None, &BTreeMap::new(), &options, &mut go_on).unwrap();
    });
}
