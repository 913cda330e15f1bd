//! The unit table says what is there and what each removal saves.

#![allow(clippy::unwrap_used)] // a test that cannot go on fails

mod common;

use common::golden;
use model::export::{self, Breadth, WriteOptions};
use model::{LayerOverlay, ModelFolder, Overlay, units};
use types::{AttentionUnit, ModelDescription, Structure, UnitKind};

fn describe(name: &str, structure: Structure, unit: AttentionUnit) -> ModelDescription {
    units::describe(&ModelFolder::open(&golden(name)).unwrap(), structure, unit).unwrap()
}

#[test]
fn coupled_needs_the_consumers_alone_and_row_column_every_layer() {
    let coupled = describe("llama-gqa", Structure::Coupled, AttentionUnit::KvGroup);
    let block = &coupled.blocks[1];
    let seen: Vec<_> =
        block.layers.iter().map(|l| (l.layer.as_str(), l.rows, l.columns, l.input.as_str(), l.curvature)).collect();
    let [q, k, v, o] = ["q", "k", "v", "o"].map(|part| format!("model.layers.1.self_attn.{part}_proj"));
    let [gate, up, down] = ["gate", "up", "down"].map(|part| format!("model.layers.1.mlp.{part}_proj"));
    let expected = [
        (&*q, 24, 24, &*q, false),
        (&k, 12, 24, &q, false),
        (&v, 12, 24, &q, false),
        (&o, 24, 24, &o, true),
        (&gate, 32, 24, &gate, false),
        (&up, 32, 24, &gate, false),
        (&down, 24, 32, &down, true),
    ];
    assert_eq!(seen, expected);
    let whole = describe("llama-gqa", Structure::RowColumn, AttentionUnit::KvGroup);
    assert!(whole.blocks.iter().all(|b| b.groups.is_empty() && b.layers.iter().all(|l| l.curvature)));
    assert_eq!(whole.dense.prunable, 2 * (2 * 24 * 24 + 2 * 12 * 24 + 3 * 32 * 24));
    assert!(describe("opt", Structure::Coupled, AttentionUnit::Keep).blocks[0].layers.iter().all(|l| l.bias));
}

#[test]
fn each_family_has_the_units_that_its_runtime_can_load() {
    let kinds = |name, unit| -> Vec<_> {
        describe(name, Structure::Coupled, unit).blocks[0]
            .groups
            .iter()
            .map(|g| (g.kind, g.units, g.together, g.columns_per_unit))
            .collect()
    };
    assert_eq!(
        kinds("llama-gqa", AttentionUnit::KvGroup),
        [(UnitKind::KvGroup, 2, 1, 12), (UnitKind::FfnChannel, 32, 1, 1)]
    );
    assert_eq!(
        kinds("qwen3", AttentionUnit::QueryHead),
        [(UnitKind::QueryHead, 2, 2, 12), (UnitKind::FfnChannel, 40, 1, 1)]
    );
    assert_eq!(kinds("qwen2", AttentionUnit::Keep), [(UnitKind::FfnChannel, 40, 1, 1)]);
    assert_eq!(kinds("opt", AttentionUnit::KvGroup), [(UnitKind::FfnChannel, 32, 1, 1)]);
}

/// What the table promises is what a written folder has less.
#[test]
fn freed_sizes_are_those_of_the_written_model() {
    for (name, unit) in [
        ("llama-gqa", AttentionUnit::KvGroup),
        ("llama-gqa", AttentionUnit::QueryHead),
        ("llama-bias", AttentionUnit::KvGroup),
        ("mistral", AttentionUnit::QueryHead),
        ("qwen2", AttentionUnit::KvGroup),
        ("qwen3", AttentionUnit::QueryHead),
        ("opt", AttentionUnit::Keep),
    ] {
        let folder = ModelFolder::open(&golden(name)).unwrap();
        let description = units::describe(&folder, Structure::Coupled, unit).unwrap();
        let mut overlay = Overlay::default();
        let mut expected = description.dense;
        for group in description.groups() {
            // Halve everything: heads one out of each kv group.
            let kept: Vec<u32> =
                (0..group.together).flat_map(|of| (0..group.units / 2).map(move |at| of * group.units + at)).collect();
            expected = expected - group.freed_per_unit * u64::from((group.units - group.units / 2) * group.together);
            let layer = LayerOverlay { kind: group.kind, kept, kept_rows: Vec::new(), weight: None, bias: None };
            overlay.layers.insert(group.layer.clone(), layer);
        }
        let place = tempfile::tempdir().unwrap();
        let output = place.path().join("out");
        let options = WriteOptions::huggingface(Breadth::Common { multiple_of: 1 });
        let written = export::write(&folder, &overlay, options, "{}", &output, &[5, 6, 7, 8]).unwrap();
        assert!(!written.padded);
        assert_eq!(ModelFolder::open(&output).unwrap().sizes(), expected, "{name} {unit}");
    }
}
