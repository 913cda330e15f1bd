//! A pruned model in compact form computes what the whole model with zeros computes.

#![allow(clippy::unwrap_used, clippy::expect_used)] // a test that cannot go on fails

mod common;

use common::{golden, tensors};
use model::{Decoder, LayerOverlay, ModelFolder, Overlay};
use tch::{Device, Kind, Tensor};
use types::{LayerId, UnitKind};

/// Layer, kind, kept units, weight, and a word of the error.
type Case<'a> = (&'a str, UnitKind, &'a [u32], Option<Tensor>, &'a str);

const DOUBLE: (Kind, Device) = (Kind::Double, Device::Cpu);

fn overlay(id: &LayerId, kind: UnitKind, kept: &[u32], weight: Option<Tensor>) -> Overlay {
    let layer = LayerOverlay { kind, kept: kept.to_vec(), kept_rows: Vec::new(), weight, bias: None };
    Overlay { layers: [(id.clone(), layer)].into(), later: None }
}

fn logits(folder: &ModelFolder, overlay: &Overlay) -> Tensor {
    let ids = &tensors(&folder.path().join("expected.safetensors"))["ids"];
    Decoder::load(folder, overlay, Kind::Double, Device::Cpu).unwrap().forward_logits(ids).unwrap()
}

/// Returns the base weight of a layer with the columns outside of `kept` set to zero.
fn zeroed(folder: &ModelFolder, id: &LayerId, kept: &[i64]) -> Tensor {
    let weight = folder.tensor(&format!("{id}.weight"), Kind::Double, Device::Cpu).unwrap();
    let mask = Tensor::zeros([weight.size()[1]], DOUBLE).index_fill(0, &Tensor::from_slice(kept), 1.0);
    weight * mask
}

/// Checks that keeping units in compact form equals zeroing the consumer's other columns.
fn compact_equals_zeroed(name: &str, id: &str, kind: UnitKind, kept: &[u32], columns: &[i64]) {
    let folder = ModelFolder::open(&golden(name)).unwrap();
    let id = LayerId::new(id).unwrap();
    let dense = zeroed(&folder, &id, columns);
    let expected = logits(&folder, &overlay(&id, UnitKind::Column, &[], Some(dense.shallow_clone())));
    assert!(
        (&expected - logits(&folder, &Overlay::default())).abs().max().double_value(&[]) > 1e-2,
        "{name}: no effect"
    );
    let compact = dense.index_select(1, &Tensor::from_slice(columns));
    for weight in [None, Some(compact)] {
        let found = logits(&folder, &overlay(&id, kind, kept, weight));
        let difference = (found - &expected).abs().max().double_value(&[]);
        assert!(difference < 1e-12, "{name} {kind}: {difference}");
    }
}

fn columns(units: &[i64], size: i64) -> Vec<i64> {
    units.iter().flat_map(|unit| unit * size..(unit + 1) * size).collect()
}

#[test]
fn channels_that_are_gone_compute_nothing() {
    compact_equals_zeroed("llama-bias", "model.layers.1.mlp.down_proj", UnitKind::FfnChannel, &[0, 3, 39], &[0, 3, 39]);
    compact_equals_zeroed("opt", "model.decoder.layers.0.fc2", UnitKind::FfnChannel, &[1, 2, 30], &[1, 2, 30]);
}

#[test]
fn a_kv_group_takes_its_query_heads_along() {
    // 4 query heads of 12 on 2 kv heads: kv head 1 serves query heads 2 and 3.
    compact_equals_zeroed("qwen3", "model.layers.0.self_attn.o_proj", UnitKind::KvGroup, &[1], &columns(&[2, 3], 12));
    compact_equals_zeroed("qwen2", "model.layers.1.self_attn.o_proj", UnitKind::KvGroup, &[0], &columns(&[0, 1], 8));
}

#[test]
fn query_heads_go_from_every_group() {
    let kept = [1, 2];
    compact_equals_zeroed(
        "qwen3",
        "model.layers.2.self_attn.o_proj",
        UnitKind::QueryHead,
        &kept,
        &columns(&[1, 2], 12),
    );
}

#[test]
fn a_sub_block_without_units_is_one_of_zeros() {
    compact_equals_zeroed("qwen3", "model.layers.1.self_attn.o_proj", UnitKind::KvGroup, &[], &[]);
    compact_equals_zeroed("llama-bias", "model.layers.0.self_attn.o_proj", UnitKind::KvGroup, &[], &[]);
    compact_equals_zeroed("llama-gqa", "model.layers.1.mlp.down_proj", UnitKind::FfnChannel, &[], &[]);
    compact_equals_zeroed("opt", "model.decoder.layers.1.fc2", UnitKind::FfnChannel, &[], &[]);
}

#[test]
fn an_overlay_of_another_model_is_refused() {
    let folder = ModelFolder::open(&golden("qwen3")).unwrap();
    let o = "model.layers.0.self_attn.o_proj";
    let down = "model.layers.0.mlp.down_proj";
    let zeros = |r, c| Some(Tensor::zeros([r, c], DOUBLE));
    let cases: [Case; 10] = [
        (o, UnitKind::QueryHead, &[], None, "same number"),
        (o, UnitKind::KvGroup, &[2], None, "rising list"),
        (o, UnitKind::KvGroup, &[1, 0], None, "rising list"),
        (o, UnitKind::QueryHead, &[0, 1, 2], None, "same number"),
        (o, UnitKind::QueryHead, &[0, 1], None, "same number"),
        (o, UnitKind::FfnChannel, &[0], None, "attention layer"),
        (down, UnitKind::KvGroup, &[0], None, "MLP layer"),
        (down, UnitKind::FfnChannel, &[0, 1], zeros(32, 3), "expected [32, 2]"),
        ("model.layers.0.mlp.up_proj", UnitKind::FfnChannel, &[0], None, "no consumer"),
        ("model.layers.9.mlp.down_proj", UnitKind::FfnChannel, &[0], None, "no such layer"),
    ];
    for (id, kind, kept, weight, expected) in cases {
        let overlay = overlay(&LayerId::new(id).unwrap(), kind, kept, weight);
        let error = Decoder::load(&folder, &overlay, Kind::Double, Device::Cpu).unwrap_err().to_string();
        assert!(error.contains(expected), "{error} should say '{expected}'");
    }
}
