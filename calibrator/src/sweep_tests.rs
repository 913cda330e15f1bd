//! Sweeps of a golden model, its blocks taken from the shelf by another thread.

use super::*;
use crate::session::Data;
use model::tokens::Samples;
use std::path::Path;
use std::sync::Arc;
use tch::Device;
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
    Calibrate { shard: 0, first_sample: 1, samples: 3, checkpoint: None, blocks: blocks.to_vec(), micro_batch: 2 }
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

/// What was taken from the shelf: block, tokens, names of factors.
type Taken = Vec<(u32, String, Vec<String>)>;

/// Sweeps while another thread takes the blocks.
fn swept(spec: &RunSpec, task: &Calibrate) -> (Result<Swept, Error>, Taken) {
    let shelf = Arc::new(Shelf::new());
    let blocks: BTreeSet<u32> = task.blocks.iter().copied().collect();
    let taker = Arc::clone(&shelf);
    let taking = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(take(&taker, &blocks))
    });
    let control = &mut Control { progress: &mut |_, _| {}, cancelled: &|| false };
    let result = sweep(&mut session(), &shelf, &key(), (spec, task, vec![]), control);
    (result, taking.join().unwrap())
}

async fn take(shelf: &Shelf, blocks: &BTreeSet<u32>) -> Taken {
    let (mut sent, mut taken) = (BTreeSet::new(), Vec::new());
    while let Ok(crate::shelf::Next::Ready(factors)) = shelf.next(&key(), blocks, &sent, Duration::from_secs(1)).await {
        let (tensors, metadata) = tensor_file::decode(&factors.bytes, Device::Cpu).unwrap();
        taken.push((factors.block, metadata["tokens"].clone(), tensors.into_iter().map(|(name, _)| name).collect()));
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
    let stopped = sweep(&mut session(), &shelf, &key(), (&spec, &task(&[0]), vec![]), control);
    assert!(matches!(stopped, Err(Error::Cancelled)), "{stopped:?}");
    assert!(shelf.status().sweep.is_none());
}
