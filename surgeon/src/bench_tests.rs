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

/// What a calibrator's tokens are in one shard: inputs and gradients of a layer.
fn tokens_of(layer: &LayerDescription, shard: u32) -> (Tensor, Tensor) {
    let seed = layer.layer.as_str().bytes().map(i64::from).sum::<i64>() + 1000 * i64::from(shard);
    tch::manual_seed(seed);
    let options = (Kind::Float, Device::Cpu);
    // Heavy tails, and gradients that go with the inputs: a Fisher that no single product fits.
    let size = Tensor::randn([60, 1], options).exp();
    let x_nc = Tensor::randn([60, layer.columns as i64], options) * &size;
    let x_nc = if layer.bias { Tensor::cat(&[x_nc, Tensor::ones([60, 1], options)], 1) } else { x_nc };
    (x_nc, Tensor::randn([60, layer.rows as i64], options) * size)
}

/// Packs what a calibrator sums up in a pass over a shard; `weighers`: what the pass before asked for.
fn swept(block: &BlockDescription, shard: u32, pass: u32, weighers: Option<&[u8]>) -> Vec<u8> {
    let layers = || block.layers.iter().filter(|l| l.curvature);
    let mut sums = BlockFactors::new();
    match weighers {
        None => {
            for layer in layers() {
                let (x_nc, g_nr) = tokens_of(layer, shard);
                sums.accumulate(Side::Input, layer.input.as_str(), &x_nc).unwrap();
                sums.accumulate(Side::Gradient, layer.layer.as_str(), &g_nr).unwrap();
            }
        }
        Some(bytes) => {
            let (tensors, _) = tensor_file::decode(bytes, Device::Cpu).unwrap();
            let weighers = BlockFactors::unpack(1, tensors, Device::Cpu).unwrap();
            let mut half_steps = Vec::new();
            for side in [Side::Input, Side::Gradient] {
                for name in weighers.layers(side) {
                    let (x_nc, g_nr) = tokens_of(layers().find(|l| l.layer.as_str() == name).unwrap(), shard);
                    let weigher = weighers.finish(side, name).unwrap();
                    let mut half_step = HalfStep::weighed_by(side, name, pass, weigher);
                    half_step.accumulate(&x_nc, &g_nr).unwrap();
                    half_steps.push(half_step);
                }
            }
            sums = HalfStep::sums(half_steps);
        }
    }
    let metadata = BTreeMap::from([("tokens".to_owned(), "60".to_owned())]);
    tensor_file::encode(&sums.pack().unwrap(), &metadata).unwrap()
}

/// Lays out all passes of two shards, as the calibrators and the store would have them.
fn lay_out_passes(bench: &mut Bench, job: &BlockJob) {
    let mut weighers: Option<Bytes> = None;
    for pass in 0..=job.spec.passes() {
        for shard in [0, 1] {
            bench.add(pass, &swept(&job.block, shard, pass, weighers.as_deref())).unwrap();
        }
        weighers = Some(bench.weighers(job, &|| false).unwrap());
    }
}

#[test]
fn passes_of_two_shards_add_up_to_the_power_iteration_over_all_tokens() {
    for (rank, half_steps) in [(1, 3), (2, 3)] {
        for name in ["llama-gqa", "llama-bias"] {
            let scoring = types::Scoring::Independent;
            let coupled = spec(name, Structure::Coupled, AttentionUnit::KvGroup);
            let spec = RunSpec { kronecker_rank: rank, half_steps, scoring, ..coupled };
            let mut bench = Bench::new(Device::Cpu);
            let block = bench.describe(&spec, 1).unwrap();
            let job = BlockJob { spec: spec.clone(), block: block.clone(), changed: vec![] };
            lay_out_passes(&mut bench, &job);
            let last = bench.weighers(&job, &|| false).unwrap();
            assert!(tensor_file::decode(&last, Device::Cpu).unwrap().0.is_empty(), "all terms are found");
            let paths = bench.score(&job, &|| false).unwrap();
            let cut = |p: &RemovalPath| LayerCut { layer: p.layer.clone(), steps: 1, elements: None };
            let cuts: Vec<LayerCut> = paths.iter().map(cut).collect();
            let layers = bench.update(&job, &paths, &cuts, &|| false).unwrap();
            for (path, new) in paths.iter().zip(&layers) {
                let layer = block.layers.iter().find(|l| l.layer == path.layer).unwrap();
                let tokens = [0, 1].map(|shard| tokens_of(layer, shard));
                let x_nc = Tensor::cat(&[&tokens[0].0, &tokens[1].0], 0);
                let g_nr = Tensor::cat(&[&tokens[0].1, &tokens[1].1], 0);
                let options = curvature::PowerOptions { rank, half_steps, tolerance: 0.0 };
                let mut plain = BlockFactors::new();
                plain.accumulate(Side::Input, "l", &x_nc).unwrap();
                plain.add_tokens(120);
                let a_cc = plain.finish(Side::Input, "l").unwrap();
                let mut power = curvature::PowerIteration::new("l", &a_cc, options).unwrap();
                while let Some(mut half_step) = power.half_step().unwrap() {
                    half_step.accumulate(&x_nc, &g_nr).unwrap();
                    power.advance(&half_step).unwrap();
                }
                let terms = power.finish().terms;
                assert_eq!(terms.len(), rank as usize);
                let group = block.groups.iter().find(|g| g.layer == path.layer).unwrap();
                let Site::Coupled { units, .. } = job.coupled_site(group).unwrap() else { panic!("coupled") };
                let w_rc = bench.folder(&spec).unwrap();
                let tensor =
                    |what: &str| w_rc.tensor(&format!("{}.{what}", layer.layer), Kind::Float, Device::Cpu).unwrap();
                let w_rc = if layer.bias {
                    Tensor::cat(&[tensor("weight"), tensor("bias").unsqueeze(1)], 1)
                } else {
                    tensor("weight")
                };
                let problem = LayerProblem {
                    layer: layer.layer.clone(),
                    w_rc,
                    bias: layer.bias,
                    a_cc: None,
                    g_rr: None,
                    tokens: 120,
                    damping_scale: spec.damping_scale,
                    damping_a: spec.damping_a,
                    damping_g: spec.damping_g,
                };
                let curved = Curved::with_terms(problem, terms).unwrap();
                assert_eq!(matches!(curved, Curved::TwoTerms(_)), rank == 2);
                let expected = curved.coupled_path(&units, &spec).unwrap();
                for (found, expected) in path.steps.iter().zip(&expected.steps) {
                    let off = (found.cost / expected.cost - 1.0).abs();
                    assert!(off < 1e-3, "{name} rank {rank} {}: {} against {}", path.layer, found.cost, expected.cost);
                }
                let expected = curved.coupled_update(&units, &[path.steps[0].unit], &spec).unwrap();
                assert!((new.predicted / expected.predicted - 1.0).abs() < 1e-3, "{name} rank {rank}");
            }
        }
    }
}

#[test]
fn a_diagonal_costs_each_weight_by_its_own_curvature_and_moves_none() {
    for structure in [Structure::Coupled, Structure::RowColumn, Structure::Element] {
        let spec = RunSpec {
            curvature: Curvature::Diagonal,
            update: types::Update::None,
            ..spec("llama-bias", structure, AttentionUnit::KvGroup)
        };
        let mut bench = Bench::new(Device::Cpu);
        let block = bench.describe(&spec, 1).unwrap();
        let mut factors = BlockFactors::new();
        for layer in block.layers.iter().filter(|l| l.curvature) {
            let (x_nc, g_nr) = tokens_of(layer, 0);
            factors.accumulate_diagonal(layer.layer.as_str(), &x_nc, &g_nr).unwrap();
        }
        let metadata = BTreeMap::from([("tokens".to_owned(), "60".to_owned())]);
        bench.add(0, &tensor_file::encode(&factors.pack().unwrap(), &metadata).unwrap()).unwrap();
        let job = BlockJob { spec: spec.clone(), block: block.clone(), changed: vec![] };
        let layer = block.layers.iter().find(|l| l.layer.as_str().ends_with("down_proj")).unwrap();
        let w_rc = bench.folder(&spec).unwrap().tensor(&format!("{}.weight", layer.layer), Kind::Float, Device::Cpu);
        let w_rc = w_rc.unwrap();
        let (x_nc, g_nr) = tokens_of(layer, 0);
        let x_nc = x_nc.narrow(1, 0, layer.columns as i64);
        let costs_rc = g_nr.square().tr().matmul(&x_nc.square()) / 60.0 * w_rc.square() / 2.0;
        if structure == Structure::Element {
            let problem = bench.problem(&spec, layer, None).unwrap();
            let found = problem.element_costs(spec.update).unwrap().costs_rc;
            let off = (found / &costs_rc - 1.0).abs().max().double_value(&[]);
            assert!(off < 1e-3, "{off}");
            continue;
        }
        let paths = bench.score(&job, &|| false).unwrap();
        let path = paths.iter().find(|p| p.layer == layer.layer).unwrap();
        let first = path.steps[0];
        let cost = match first.unit.kind {
            UnitKind::Row => costs_rc.select(0, first.unit.index.into()),
            _ => costs_rc.select(1, first.unit.index.into()),
        };
        let cost = cost.sum(Kind::Double).double_value(&[]);
        assert!((first.cost / cost - 1.0).abs() < 1e-3, "{structure}: {} against {cost}", first.cost);
        let cut = |p: &RemovalPath| LayerCut { layer: p.layer.clone(), steps: 1, elements: None };
        let cuts: Vec<LayerCut> = paths.iter().map(cut).collect();
        let layers = bench.update(&job, &paths, &cuts, &|| false).unwrap();
        let new = layers.iter().find(|new| new.state.layer == layer.layer).unwrap();
        assert!((new.predicted / first.cost - 1.0).abs() < 1e-3, "{structure}: {}", new.predicted);
        let overlay = LayerOverlay::decode(&new.state, new.weights.as_deref(), Device::Cpu).unwrap();
        let left = overlay.weight.unwrap();
        let moved = match structure {
            Structure::Coupled => {
                let kept: Vec<i64> = new.state.kept.iter().map(|unit| i64::from(*unit)).collect();
                left - w_rc.index_select(1, &Tensor::from_slice(&kept))
            }
            _ => (&left - &w_rc) * left.ne(0.0),
        };
        assert_eq!(moved.count_nonzero(None).int64_value(&[]), 0, "{structure}");
    }
}
