//! The bench on the golden models, with factors of random inputs and gradients.

use super::*;
use model::Decoder;
use std::path::Path;
use types::{Shape, Target};

fn spec(model: &str, structure: Structure, unit: AttentionUnit) -> RunSpec {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/golden").join(model).display().to_string();
    RunSpec {
        structure,
        attention_unit: unit,
        shape: Shape::PerLayer,
        shots: 2,
        samples: 1,
        seq_len: 16,
        multiple_of: 1,
        ..RunSpec::new(&model, "d", "o", Target::Size(0.8))
    }
}

/// One shard's factors for the layers of a block, as a calibrator packs them. `widths`: columns that are left.
fn shard(block: &BlockDescription, widths: &BTreeMap<LayerId, i64>, seed: i64) -> Vec<u8> {
    tch::manual_seed(seed);
    let mut factors = BlockFactors::new();
    for layer in block.layers.iter().filter(|l| l.curvature) {
        let columns = widths.get(&layer.layer).copied().unwrap_or(layer.columns as i64);
        let random = |width| Tensor::randn([40, width], (Kind::Float, Device::Cpu));
        if layer.input == layer.layer {
            let x_nc = random(columns);
            let x_nc = if layer.bias {
                Tensor::cat(&[x_nc, Tensor::ones([40, 1], (Kind::Float, Device::Cpu))], 1)
            } else {
                x_nc
            };
            factors.accumulate(Side::Input, layer.layer.as_str(), &x_nc).unwrap();
        }
        factors.accumulate(Side::Gradient, layer.layer.as_str(), &random(layer.rows as i64)).unwrap();
    }
    let metadata = BTreeMap::from([("tokens".to_owned(), "40".to_owned())]);
    tensor_file::encode(&factors.pack().unwrap(), &metadata).unwrap()
}

/// One shot on block 1: two shards, then half of every path.
fn shot(bench: &mut Bench, spec: &RunSpec, changed: Vec<LayerBytes>) -> (Vec<RemovalPath>, Vec<NewLayer>) {
    let block = bench.describe(spec, 1).unwrap();
    let mut widths = BTreeMap::new();
    for (state, bytes) in changed.iter().filter(|_| spec.structure == Structure::Coupled) {
        let weight = LayerOverlay::decode(state, bytes.as_deref(), Device::Cpu).unwrap().weight.unwrap();
        widths.insert(state.layer.clone(), weight.size()[1]);
    }
    bench.clear();
    for seed in [1, 2] {
        bench.add(&shard(&block, &widths, seed)).unwrap();
    }
    let job = BlockJob { spec: spec.clone(), block, changed };
    let paths = bench.score(&job, &|| false).unwrap();
    let round = |path: &RemovalPath| path.steps.len() as u32 / 4 * 2;
    let cuts: Vec<_> =
        paths.iter().map(|p| LayerCut { layer: p.layer.clone(), steps: round(p), elements: None }).collect();
    let layers = bench.update(&job, &paths, &cuts, &|| false).unwrap();
    (paths, layers)
}

fn changed(layers: Vec<NewLayer>) -> Vec<LayerBytes> {
    layers.into_iter().map(|layer| (layer.state, layer.weights)).collect()
}

#[test]
fn two_shots_of_each_family_s_units_leave_a_model_that_runs() {
    for (name, unit) in [
        ("llama-gqa", AttentionUnit::KvGroup),
        ("llama-gqa", AttentionUnit::QueryHead),
        ("llama-bias", AttentionUnit::KvGroup),
        ("qwen2", AttentionUnit::KvGroup),
        ("opt", AttentionUnit::Keep),
    ] {
        let spec = spec(name, Structure::Coupled, unit);
        let mut bench = Bench::new(Device::Cpu);
        let (_, first) = shot(&mut bench, &spec, vec![]);
        let (paths, second) = shot(&mut bench, &spec, changed(first));
        let predicted: f64 = second.iter().map(|layer| layer.predicted).sum();
        let marginal: f64 = paths.iter().flat_map(|p| p.steps.iter().take(p.steps.len() / 4 * 2)).map(|s| s.cost).sum();
        assert!(predicted > 0.0, "{name} {unit}");
        assert!((predicted - marginal).abs() < 1e-3 * predicted, "{name} {unit}: {predicted} against {marginal}");

        let overlay = overlay(changed(second), Device::Cpu).unwrap();
        let folder = bench.folder(&spec).unwrap();
        let decoder = Decoder::load(folder, &overlay, Kind::Float, Device::Cpu).unwrap();
        let logits = tch::no_grad(|| decoder.forward_logits(&Tensor::from_slice(&[1i64, 2, 3]).unsqueeze(0)).unwrap());
        assert_eq!(logits.isfinite().all().int64_value(&[]), 1, "{name} {unit}");
    }
}

#[test]
fn row_column_sets_to_zero_and_keeps_the_shape() {
    let spec = spec("llama-gqa", Structure::RowColumn, AttentionUnit::KvGroup);
    let mut bench = Bench::new(Device::Cpu);
    let (_, first) = shot(&mut bench, &spec, vec![]);
    let (_, second) = shot(&mut bench, &spec, changed(first));
    let block = bench.describe(&spec, 1).unwrap();
    assert_eq!(second.len(), block.layers.len());
    for (state, bytes) in changed(second) {
        let layer = block.layers.iter().find(|l| l.layer == state.layer).unwrap();
        let w_rc = LayerOverlay::decode(&state, bytes.as_deref(), Device::Cpu).unwrap().weight.unwrap();
        assert_eq!(w_rc.size(), [layer.rows as i64, layer.columns as i64]);
        let live = (state.kept.len() * state.kept_rows.len()) as i64;
        assert_eq!(w_rc.count_nonzero(None).int64_value(&[]), live, "{}", state.layer);
        assert!(live < w_rc.numel() as i64);
    }
}

#[test]
fn the_same_shards_give_the_same_bytes() {
    let spec = spec("llama-gqa", Structure::Coupled, AttentionUnit::KvGroup);
    let once = || {
        let (paths, layers) = shot(&mut Bench::new(Device::Cpu), &spec, vec![]);
        (paths, changed(layers))
    };
    assert_eq!(once(), once());
}

#[test]
fn without_a_cut_a_layer_keeps_the_state_it_had() {
    let spec = spec("llama-gqa", Structure::Coupled, AttentionUnit::KvGroup);
    let mut bench = Bench::new(Device::Cpu);
    let (paths, first) = shot(&mut bench, &spec, vec![]);
    let states: Vec<LayerState> = first.iter().map(|layer| layer.state.clone()).collect();
    let job = BlockJob { spec: spec.clone(), block: bench.describe(&spec, 1).unwrap(), changed: changed(first) };
    // Nothing lies on the bench: no factors are needed for this.
    bench.clear();
    let layers = bench.update(&job, &paths, &[], &|| false).unwrap();
    assert_eq!(layers.iter().map(|layer| layer.state.clone()).collect::<Vec<_>>(), states);
    assert!(layers.iter().all(|layer| layer.weights.is_none() && layer.predicted == 0.0));
}

#[test]
fn a_cut_longer_than_its_path_and_a_lost_lease_stop_the_update() {
    let spec = spec("llama-gqa", Structure::Coupled, AttentionUnit::KvGroup);
    let mut bench = Bench::new(Device::Cpu);
    let (paths, _) = shot(&mut bench, &spec, vec![]);
    let job = BlockJob { spec: spec.clone(), block: bench.describe(&spec, 1).unwrap(), changed: vec![] };
    let too_long = [LayerCut { layer: paths[0].layer.clone(), steps: paths[0].steps.len() as u32 + 1, elements: None }];
    assert!(matches!(bench.update(&job, &paths, &too_long, &|| false), Err(Error::Bug(_))));
    assert!(matches!(bench.update(&job, &paths, &[], &|| true), Err(Error::Cancelled)));
    assert!(matches!(bench.score(&job, &|| true), Err(Error::Cancelled)));
    assert!(bench.describe(&spec, 99).is_err());
    assert!(bench.add(b"no safetensors").is_err());
}
