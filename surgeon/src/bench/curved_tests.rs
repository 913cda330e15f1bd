//! Power iterations over several passes and shards, and diagonals, against the kernels on all tokens at once.

use super::tests::spec;
use super::*;
use types::UnitKind;

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
                let options = curvature::PowerOptions { rank, half_steps, tolerance: -1.0 };
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
