//! Sweeps of a golden model, its blocks taken from the shelf by another thread.

use super::*;
use crate::session::{Data, DecoderKey};
use curvature::{HalfStep, Side};
use model::tokens::Samples;
use std::path::Path;
use std::sync::Arc;
use tch::{Device, Kind};
use types::{DataDescription, Generation, RunId, Shape, Target};

fn spec(curvature: Curvature, structure: Structure) -> RunSpec {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/golden/llama-gqa").display().to_string();
    RunSpec {
        structure,
        curvature,
        shape: Shape::PerLayer,
        shots: 1,
        samples: 4,
        seq_len: 8,
        ..RunSpec::new(&model, "d", "o", Target::Size(0.8))
    }
}

fn key() -> SweepKey {
    SweepKey { run: RunId::new("r").unwrap(), shot: 1, shard: 0, generation: Generation(1) }
}

fn task(blocks: &[u32]) -> Calibrate {
    Calibrate {
        shard: 0,
        first_sample: 1,
        samples: 3,
        checkpoint: None,
        blocks: blocks.to_vec(),
        micro_batch: 2,
        pass: 0,
    }
}

fn session() -> Session {
    let description = DataDescription {
        digest: String::new(),
        tokenizer_digest: String::new(),
        documents: 1,
        skipped: 0,
        tokens: 32,
        samples: 4,
        sets: 1,
        seq_len: 8,
        overlap: 0,
        bos: false,
    };
    let ids = (0..4).map(|s| (0..8).map(|t| (s * 13 + t * 7) % 30).collect()).collect();
    Session::with_data(
        Device::Cpu,
        &key().run,
        Data { samples: Samples { ids, description }, check: vec![], held_out: None },
    )
}

/// What the store would give a sweep of the base model.
fn stored(weighers: Vec<(u32, Bytes)>) -> Stored {
    let (sender, receiver) = tokio::sync::mpsc::channel(8);
    for of_block in weighers {
        sender.try_send(of_block).unwrap();
    }
    Stored { changed: Changed::Here(vec![]), weighers: receiver }
}

/// What was taken from the shelf: block, tokens, names of factors, the file.
type Taken = Vec<(u32, String, Vec<String>, Bytes)>;

/// Sweeps while another thread takes the blocks.
fn swept(spec: &RunSpec, task: &Calibrate) -> (Result<Swept, Error>, Taken) {
    swept_with(spec, task, stored(vec![]))
}

fn swept_with(spec: &RunSpec, task: &Calibrate, stored: Stored) -> (Result<Swept, Error>, Taken) {
    let shelf = Arc::new(Shelf::new());
    let blocks: BTreeSet<u32> = task.blocks.iter().copied().collect();
    let taker = Arc::clone(&shelf);
    let taking = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(take(&taker, &blocks))
    });
    let control = &mut Control { progress: &mut |_, _| {}, cancelled: &|| false };
    let result = sweep(&mut session(), &shelf, &key(), (spec, task, stored), control);
    (result, taking.join().unwrap())
}

async fn take(shelf: &Shelf, blocks: &BTreeSet<u32>) -> Taken {
    let (mut sent, mut taken) = (BTreeSet::new(), Vec::new());
    while let Ok(crate::shelf::Next::Ready(factors)) = shelf.next(&key(), blocks, &sent, Duration::from_secs(1)).await {
        let bytes = Bytes::from(factors.parts().await.unwrap().concat());
        let (tensors, metadata) = tensor_file::decode(&bytes, Device::Cpu).unwrap();
        let names = tensors.into_iter().map(|(name, _)| name).collect();
        taken.push((factors.block, metadata["tokens"].clone(), names, bytes));
        sent.insert(factors.block);
        shelf.release(&key(), factors.block, Duration::ZERO).await.unwrap();
    }
    taken
}

#[test]
fn blocks_come_last_first_with_the_sites_that_the_structure_needs() {
    let (result, taken) = swept(&spec(Curvature::Kfac, Structure::Coupled), &task(&[0, 1]));
    let swept = result.unwrap();
    assert_eq!((swept.result.tokens, swept.result.targets), (24, 21));
    assert_eq!(taken.iter().map(|t| t.0).collect::<Vec<_>>(), [1, 0]);
    assert_eq!(taken[0].1, "24");
    let sites = |side: &str, block: u32| {
        ["mlp.down_proj", "self_attn.o_proj"].map(|name| format!("{side}:model.layers.{block}.{name}"))
    };
    let mut found = taken[1].2.clone();
    found.sort();
    assert_eq!(found, [sites("A", 0), sites("G", 0)].concat());

    let (_, all) = swept_names(Structure::RowColumn);
    assert_eq!(all, 4 + 7, "A of q, o, gate and down; G of all seven");
}

fn swept_names(structure: Structure) -> (u32, usize) {
    let (result, taken) = swept(&spec(Curvature::Kfac, structure), &task(&[1]));
    assert!(result.is_ok() && taken.len() == 1);
    (taken[0].0, taken[0].2.len())
}

#[test]
fn factors_that_nobody_uses_are_left_out_but_every_block_is_offered() {
    let (result, taken) = swept(&spec(Curvature::Activations, Structure::Coupled), &task(&[0, 1]));
    assert!(result.is_ok());
    assert!(taken.iter().all(|t| t.2.len() == 2 && t.2.iter().all(|name| name.starts_with("A:"))), "{taken:?}");
    let (result, taken) = swept(&spec(Curvature::Identity, Structure::Coupled), &task(&[0, 1]));
    assert!(result.unwrap().result.loss_sum > 0.0);
    assert_eq!(taken.iter().map(|t| (t.0, t.1.as_str(), t.2.len())).collect::<Vec<_>>(), [(1, "24", 0), (0, "24", 0)]);
}

#[test]
fn a_sweep_without_wanted_blocks_still_measures_the_loss() {
    let (all, _) = swept(&spec(Curvature::Kfac, Structure::Coupled), &task(&[0, 1]));
    let (none, taken) = swept(&spec(Curvature::Kfac, Structure::Coupled), &task(&[]));
    let none = none.unwrap();
    assert!(taken.is_empty());
    assert_eq!((none.result.loss_sum, none.factor_bytes), (all.unwrap().result.loss_sum, 0));
}

#[test]
fn what_is_not_there_is_refused_and_a_lost_lease_stops_the_sweep() {
    let spec = spec(Curvature::Kfac, Structure::Coupled);
    let no_block = swept(&spec, &task(&[9])).0;
    assert!(matches!(no_block, Err(Error::NoSuchBlock { block: 9, blocks: 2 })), "{no_block:?}");
    let no_samples = swept(&spec, &Calibrate { samples: 4, ..task(&[]) }).0;
    assert!(matches!(no_samples, Err(Error::NoSuchSamples { first: 1, samples: 4, found: 4 })));

    let shelf = Shelf::new();
    let control = &mut Control { progress: &mut |_, _| {}, cancelled: &|| true };
    let stopped = sweep(&mut session(), &shelf, &key(), (&spec, &task(&[0]), stored(vec![])), control);
    assert!(matches!(stopped, Err(Error::Cancelled)), "{stopped:?}");
    assert!(shelf.status().sweep.is_none());
}

/// Inputs and gradients as a sweep shows them, by layer.
#[derive(Default)]
struct Seen(BTreeMap<LayerId, Vec<Tensor>>, BTreeMap<LayerId, Vec<Tensor>>);

impl Observer for Seen {
    fn block(&mut self, _block: u32) -> Result<(), ObserverError> {
        Ok(())
    }

    fn input(&mut self, layer: &LayerId, x_nc: &Tensor) -> Result<(), ObserverError> {
        self.0.entry(layer.clone()).or_default().push(x_nc.to_kind(Kind::Double));
        Ok(())
    }

    fn gradient(&mut self, layer: &LayerId, _input: &LayerId, dy_nr: &Tensor) -> Result<(), ObserverError> {
        self.1.entry(layer.clone()).or_default().push(dy_nr.to_kind(Kind::Double));
        Ok(())
    }

    fn finished(&mut self, _block: u32) -> Result<(), ObserverError> {
        Ok(())
    }
}

#[test]
fn a_later_pass_sums_up_each_token_by_the_weight_of_its_other_side() {
    // k_proj is shown q_proj's input; of the other layers nothing is asked.
    let layer = |name: &str| LayerId::new(&format!("model.layers.1.{name}")).unwrap();
    let (k, down) = (layer("self_attn.k_proj"), layer("mlp.down_proj"));
    let spec = RunSpec { half_steps: 2, ..spec(Curvature::Kfac, Structure::RowColumn) };
    let task = Calibrate { pass: 2, ..task(&[1]) };
    let mut seen = Seen::default();
    let mut session = session();
    let key = DecoderKey { run: key().run, checkpoint: None };
    let (decoder, data) = session.load(&key, &spec, Changed::Here(vec![])).unwrap();
    let options = options(&spec, &task, decoder);
    let samples = &data.samples.ids[1..4];
    model::sweep::run(decoder, samples, &options, &mut seen, &mut |_, _| ControlFlow::Continue(())).unwrap();
    let all = |of: &BTreeMap<LayerId, Vec<Tensor>>, layer: &LayerId| Tensor::cat(&of[layer], 0);
    let (x_k, g_k) = (all(&seen.0, &layer("self_attn.q_proj")), all(&seen.1, &k));
    let (x_down, g_down) = (all(&seen.0, &down), all(&seen.1, &down));

    tch::manual_seed(3);
    let weigher = |like: &Tensor| {
        let n = like.size()[1];
        let m = Tensor::randn([n, n], (Kind::Float, Device::Cpu));
        &m + m.tr()
    };
    let (of_g, of_x) = (weigher(&g_k), weigher(&x_down));
    let half_steps = [
        HalfStep::weighed_by(Side::Gradient, k.as_str(), 2, of_g.shallow_clone()),
        HalfStep::weighed_by(Side::Input, down.as_str(), 2, of_x.shallow_clone()),
    ];
    let file = tensor_file::encode(&HalfStep::weighers(&half_steps).pack().unwrap(), &BTreeMap::new()).unwrap();
    let (result, taken) = swept_with(&spec, &task, stored(vec![(1, Bytes::from(file))]));
    result.unwrap();
    assert_eq!(taken[0].2, [format!("A:{k}"), format!("G:{down}")]);
    let (tensors, _) = tensor_file::decode(&taken[0].3, Device::Cpu).unwrap();
    let sums = BlockFactors::unpack(24, tensors, Device::Cpu).unwrap();
    let weighted = |y_nc: &Tensor, z_nr: &Tensor, m: &Tensor| {
        let weights_n =
            (z_nr.matmul(&m.to_kind(Kind::Double)) * z_nr).sum_dim_intlist([1i64].as_slice(), true, Kind::Double);
        (y_nc * weights_n).tr().matmul(y_nc) / 24.0
    };
    for (found, expected) in [
        (sums.finish(Side::Input, k.as_str()).unwrap(), weighted(&x_k, &g_k, &of_g)),
        (sums.finish(Side::Gradient, down.as_str()).unwrap(), weighted(&g_down, &x_down, &of_x)),
    ] {
        let difference = (found - &expected).abs().max().double_value(&[]) / expected.abs().max().double_value(&[]);
        assert!(difference < 1e-4, "{difference}");
    }
}

#[test]
fn the_diagonal_takes_inputs_and_gradients_of_the_same_tokens() {
    let (spec, task) = (spec(Curvature::Diagonal, Structure::RowColumn), task(&[1]));
    let mut seen = Seen::default();
    let mut session = session();
    let (decoder, data) =
        session.load(&DecoderKey { run: key().run, checkpoint: None }, &spec, Changed::Here(vec![])).unwrap();
    let options = options(&spec, &task, decoder);
    let samples = &data.samples.ids[1..4];
    model::sweep::run(decoder, samples, &options, &mut seen, &mut |_, _| ControlFlow::Continue(())).unwrap();
    let (result, taken) = swept(&spec, &task);
    result.unwrap();
    let (tensors, _) = tensor_file::decode(&taken[0].3, Device::Cpu).unwrap();
    let found = BlockFactors::unpack(24, tensors, Device::Cpu).unwrap();
    for (name, input) in
        [("self_attn.k_proj", "self_attn.q_proj"), ("mlp.up_proj", "mlp.gate_proj"), ("mlp.down_proj", "mlp.down_proj")]
    {
        let layer = |name: &str| LayerId::new(&format!("model.layers.1.{name}")).unwrap();
        let (x_nc, g_nr) = (Tensor::cat(&seen.0[&layer(input)], 0), Tensor::cat(&seen.1[&layer(name)], 0));
        let expected_rc = g_nr.square().tr().matmul(&x_nc.square()) / 24.0;
        let found_rc = found.finish_diagonal(layer(name).as_str()).unwrap();
        let off = (found_rc - &expected_rc).abs().max().double_value(&[]) / expected_rc.max().double_value(&[]);
        assert!(off < 1e-4, "{name}: {off}");
    }
}
