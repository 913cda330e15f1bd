//! The bench on the golden models, with factors of random inputs and gradients.

use super::*;
use model::Decoder;
use service::checkpoint::LayerBytes;
use std::path::Path;
use types::{Shape, Target, UnitKind};

pub(super) fn spec(model: &str, structure: Structure, unit: AttentionUnit) -> RunSpec {
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
        bench.add(0, &shard(&block, &widths, seed)).unwrap();
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

        let overlay = Overlay::decode(changed(second), Device::Cpu).unwrap();
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
    assert!(bench.add(0, b"no safetensors").is_err());
}

/// Tokens of each of [`shot`]'s shards.
const TOKENS: u64 = 40;

#[test]
fn earlier_factors_count_for_the_units_that_are_left_and_fade() {
    for (name, unit) in [("llama-bias", AttentionUnit::KvGroup), ("opt", AttentionUnit::Keep)] {
        let spec = RunSpec { decay: 0.5, ..spec(name, Structure::Coupled, unit) };
        let mut bench = Bench::new(Device::Cpu);
        let block = bench.describe(&spec, 1).unwrap();
        let job = |changed| BlockJob { spec: spec.clone(), block: block.clone(), changed };
        bench.add(0, &shard(&block, &BTreeMap::new(), 1)).unwrap();
        let first = bench.mix(&job(vec![]), None).unwrap();
        let (_, layers) = shot(&mut bench, &spec, vec![]);
        let changed = changed(layers);
        let cut = changed.iter().find(|(state, _)| state.kind == UnitKind::FfnChannel).unwrap().0.clone();
        let widths: BTreeMap<_, _> = changed
            .iter()
            .map(|(state, bytes)| {
                let weight = LayerOverlay::decode(state, bytes.as_deref(), Device::Cpu).unwrap().weight.unwrap();
                (state.layer.clone(), weight.size()[1])
            })
            .collect();
        let means = |bytes: &[u8], layer: &str| {
            let mut alone = Bench::new(Device::Cpu);
            alone.add(0, bytes).unwrap();
            let factors = alone.sums.pop().unwrap();
            (factors.finish(Side::Input, layer).unwrap(), factors.tokens)
        };
        let new = shard(&block, &widths, 2);
        bench.clear();
        bench.add(0, &new).unwrap();
        let mixed = bench.mix(&job(changed), Some(&first)).unwrap();
        let layer = cut.layer.as_str();
        let bias = block.layers.iter().any(|l| l.layer == cut.layer && l.bias);
        let mut kept: Vec<i64> = cut.kept.iter().map(|&unit| i64::from(unit)).collect();
        let all = i64::from(block.groups.iter().find(|g| g.layer == cut.layer).unwrap().units);
        kept.extend(bias.then_some(all));
        let index = Tensor::from_slice(&kept);
        let (then, tokens) = means(&first, layer);
        let (now, _) = means(&new, layer);
        assert_eq!(tokens, TOKENS);
        // Half of 40 tokens against 40.
        let expected = (then.index_select(0, &index).index_select(1, &index) + now * 2) / 3;
        let (found, tokens) = means(&mixed, layer);
        assert_eq!(tokens, TOKENS + TOKENS / 2, "{name}");
        assert!((found - expected).abs().max().double_value(&[]) < 1e-5, "{name}");
    }
}

#[test]
fn single_weights_are_counted_twice_and_cut_once() {
    for (structure, pattern) in [(Structure::Element, None), (Structure::NofM, types::Pattern::new(2, 4).ok())] {
        let spec = RunSpec { pattern, ..spec("llama-gqa", structure, AttentionUnit::KvGroup) };
        let mut bench = Bench::new(Device::Cpu);
        let block = bench.describe(&spec, 1).unwrap();
        bench.add(0, &shard(&block, &BTreeMap::new(), 1)).unwrap();
        let job = BlockJob { spec, block: block.clone(), changed: vec![] };
        let first = bench.histograms(&job, Digit::First, &|| false).unwrap();
        assert_eq!(first.len(), block.layers.len());
        let digit = first[0].bins[first[0].bins.len() / 2].0;
        let second = bench.histograms(&job, Digit::Second(digit), &|| false).unwrap();
        let cuts: Vec<LayerCut> = first
            .iter()
            .zip(&second)
            .map(|(upper, lower)| {
                let of_digit: u64 = upper.bins.iter().filter(|(d, _)| *d == digit).map(|(_, n)| n).sum();
                assert_eq!(lower.bins.iter().map(|(_, n)| n).sum::<u64>(), of_digit, "{structure} {}", upper.layer);
                let items = upper.bins.iter().filter(|(d, _)| *d < digit).map(|(_, n)| n).sum();
                let elements = Some(ElementCut { bits: u32::from(digit) << 16, ties: 0, items });
                LayerCut { layer: upper.layer.clone(), steps: 0, elements }
            })
            .collect();
        let layers = changed(bench.update(&job, &[], &cuts, &|| false).unwrap());
        let each = pattern.map_or(1, |p| u64::from(p.m - p.n));
        for ((state, bytes), cut) in layers.iter().zip(&cuts) {
            let weight = LayerOverlay::decode(state, bytes.as_deref(), Device::Cpu).unwrap().weight.unwrap();
            let zeros = weight.numel() as i64 - weight.count_nonzero(None).int64_value(&[]);
            assert_eq!(zeros as u64, cut.elements.unwrap().items * each, "{structure} {}", state.layer);
            assert_eq!(state.zeros, zeros as u64);
        }
        let mut wrong = cuts;
        wrong[0].elements = wrong[0].elements.map(|e| ElementCut { items: e.items + 1, ..e });
        assert!(matches!(bench.update(&job, &[], &wrong, &|| false), Err(Error::Bug(_))));
    }
}
