//! Messages of the contract from arbitrary bytes: what is accepted as a domain value survives the wire unchanged.
//!
//! The first byte of an input chooses the message; the rest is its protobuf.

#![no_main]

use fuzz::plant;
use libfuzzer_sys::fuzz_target;
use prost::Message;
use proto::{InvalidMessage, v1};
use std::fmt::Debug;
use types::{
    BlockDescription, CostHistogram, DataDescription, ElementCut, FactorDamping, LayerCut, LayerDescription, LayerId,
    LayerState, ModelDescription, ObjectRef, PathStep, Pattern, RemovalPath, RunId, RunSpec, Shape, Sizes, Structure,
    Target, Unit, UnitGroup, UnitKind,
};

fuzz_target!(init: plant(seeds), |input: &[u8]| {
    let Some((choice, bytes)) = input.split_first() else { return };
    match choice % 11 {
        0 => check_spec(bytes),
        1 => check_model(bytes),
        2 => drop(survivor::<DataDescription, v1::DataDescription>(bytes)),
        3 => drop(survivor::<LayerState, v1::LayerState>(bytes)),
        4 => drop(survivor::<LayerCut, v1::LayerCut>(bytes)),
        5 => drop(survivor::<UnitGroup, v1::UnitGroup>(bytes)),
        6 => drop(survivor::<LayerDescription, v1::LayerDescription>(bytes)),
        7 => drop(survivor::<ObjectRef, v1::ObjectRef>(bytes)),
        8 => drop(survivor::<Sizes, v1::Sizes>(bytes)),
        9 => drop(survivor::<RemovalPath, v1::LayerPath>(bytes)),
        _ => drop(survivor::<CostHistogram, v1::CostHistogram>(bytes)),
    }
});

/// Returns the value that the bytes of a message stand for, if they are accepted, after a second passage.
fn survivor<D, W>(bytes: &[u8]) -> Option<D>
where
    D: Clone + Debug + PartialEq + TryFrom<W, Error = InvalidMessage>,
    W: Message + Default + From<D>,
{
    let message = W::decode(bytes).ok()?;
    match D::try_from(message) {
        Ok(value) => {
            let again = W::decode(W::from(value.clone()).encode_to_vec().as_slice()).expect("it was just encoded");
            assert_eq!(D::try_from(again).as_ref(), Ok(&value));
            Some(value)
        }
        Err(refusal) => {
            assert!(!refusal.violations.is_empty(), "a refusal says why");
            drop(refusal.to_string());
            None
        }
    }
}

/// A spec that was accepted is valid, and survives the journal as it does the wire.
fn check_spec(bytes: &[u8]) {
    let Some(spec) = survivor::<RunSpec, v1::RunSpec>(bytes) else { return };
    assert!(spec.clone().validated().is_ok());
    let json = serde_json::to_string(&spec).expect("a spec is plain data");
    assert_eq!(serde_json::from_str::<RunSpec>(&json).expect("it was just written"), spec);
    let dense = Sizes { prunable: 1 << 50, parameters: 1 << 50, bytes: 1 << 50 };
    let _ = (spec.target.limit(&dense), spec.passes(), spec.structure_name(), spec.continues(&spec));
}

/// A description that was accepted can be planned with: no sum and no product of it overflows.
fn check_model(bytes: &[u8]) {
    let Some(model) = survivor::<ModelDescription, v1::ModelDescription>(bytes) else { return };
    for multiple in [1, 64, 65_536] {
        let smallest = model.smallest(multiple);
        assert!(smallest.prunable <= model.dense.prunable && smallest.bytes <= model.dense.bytes);
    }
    for layer in model.blocks.iter().flat_map(|block| &block.layers) {
        assert!(model.units_of(&layer.layer).is_some());
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let layer = LayerId::new("model.layers.0.mlp.down_proj").expect("a good name");
    let object = ObjectRef { key: "w".to_owned(), blake3: "0".repeat(64), bytes: 9 };
    let state = LayerState {
        layer: layer.clone(),
        kind: UnitKind::FfnChannel,
        kept: vec![0, 2],
        kept_rows: vec![1],
        zeros: 3,
        weights: Some(object.clone()),
    };
    let elements = Some(ElementCut { bits: 1, ties: 2, items: 3 });
    let freed_per_unit = Sizes { prunable: 12, parameters: 12, bytes: 48 };
    let group = UnitGroup {
        layer: layer.clone(),
        kind: UnitKind::FfnChannel,
        units: 8,
        together: 1,
        min_keep: 1,
        columns_per_unit: 1,
        freed_per_unit,
    };
    let described = LayerDescription {
        layer: layer.clone(),
        rows: 4,
        columns: 8,
        bias: true,
        input: layer.clone(),
        curvature: true,
    };
    let data = DataDescription {
        digest: "d".to_owned(),
        tokenizer_digest: "t".to_owned(),
        documents: 1,
        skipped: 2,
        tokens: 3,
        samples: 4,
        sets: 5,
        seq_len: 6,
        overlap: 7,
        bos: true,
    };
    let block = BlockDescription { block: 0, layers: vec![described.clone()], groups: vec![group.clone()] };
    let model = ModelDescription {
        family: "llama".to_owned(),
        digest: "d".to_owned(),
        hidden: 4,
        vocabulary: 16,
        max_positions: 32,
        dense: Sizes { prunable: 96, parameters: 200, bytes: 800 },
        blocks: vec![block],
        own_widths_refused: "r".to_owned(),
    };
    let step = PathStep { unit: Unit { kind: UnitKind::FfnChannel, index: 3 }, cost: 0.5, freed: 12 };
    let damping = FactorDamping { floored: Some(0.5), ..FactorDamping::default() };
    let path = RemovalPath { layer: layer.clone(), steps: vec![step], damping };
    let histogram = CostHistogram { layer: layer.clone(), bins: vec![(3, 1), (900, 2)], damping };
    let mut all: Vec<_> = specs().into_iter().map(|spec| message(0, &v1::RunSpec::from(spec))).collect();
    all.extend([
        message(1, &v1::ModelDescription::from(model)),
        message(2, &v1::DataDescription::from(data)),
        message(3, &v1::LayerState::from(state)),
        message(4, &v1::LayerCut::from(LayerCut { layer: layer.clone(), steps: 1, elements })),
        message(5, &v1::UnitGroup::from(group)),
        message(6, &v1::LayerDescription::from(described)),
        message(7, &v1::ObjectRef::from(object)),
        message(8, &v1::Sizes::from(freed_per_unit)),
        message(9, &v1::LayerPath::from(path)),
        message(10, &v1::CostHistogram::from(histogram)),
    ]);
    all
}

fn message(choice: u8, message: &impl Message) -> Vec<u8> {
    [vec![choice], message.encode_to_vec()].concat()
}

fn specs() -> [RunSpec; 4] {
    let spec = || RunSpec::new("/m", "/d", "/o", Target::Size(0.5));
    [
        spec(),
        RunSpec { target: Target::Parameters(9), eval_data: vec!["/e".to_owned()], keep_paths: true, ..spec() },
        RunSpec { waypoints: vec![0.9, 0.75], shots: 4, paths_of: RunId::new("r1").ok(), ..spec() },
        RunSpec { structure: Structure::NofM, pattern: Pattern::new(2, 4).ok(), shape: Shape::PerLayer, ..spec() },
    ]
}
