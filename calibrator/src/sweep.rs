//! One shard swept: what the sweep shows becomes factors, and those go on the shelf.

use crate::error::Error;
use crate::job::Calibrate;
use crate::session::{Changed, DecoderKey, Session};
use crate::shelf::Shelf;
use crate::sums::{Pass, Sums, Weighed};
use bytes::Bytes;
use curvature::BlockFactors;
use model::sweep::{Observer, ObserverError, SweepOptions, SweepResult};
use model::{Decoder, tensor_file};
use service::SweepKey;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::time::Duration;
use tch::Tensor;
use tokio::sync::mpsc::Receiver;
use types::{Curvature, LayerId, RunSpec, Structure};

/// Bytes of logits that one pass of the head may make.
const HEAD_BYTES: i64 = 64 << 20;

/// What a sweep needs from the store.
#[derive(Debug)]
pub(crate) struct Stored {
    /// The layers that differ from the base model.
    pub(crate) changed: Changed,
    /// What weighs tokens, by block, from the last to the first; for later passes only.
    pub(crate) weighers: Receiver<(u32, Bytes)>,
}

/// What a sweep found.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Swept {
    /// Loss, counts and times.
    pub(crate) result: SweepResult,
    /// Time spent waiting for a surgeon.
    pub(crate) wait: Duration,
    /// Bytes of factors put on the shelf.
    pub(crate) factor_bytes: u64,
}

/// How a long job tells how far it is, and hears that it should stop.
pub(crate) struct Control<'a> {
    /// Takes steps done and steps in all.
    pub(crate) progress: &'a mut dyn FnMut(u64, u64),
    /// Says whether to stop.
    pub(crate) cancelled: &'a dyn Fn() -> bool,
}

impl Control<'_> {
    /// Reports progress; breaks when the job should stop.
    pub(crate) fn step(&mut self, done: u64, total: u64) -> ControlFlow<()> {
        (self.progress)(done, total);
        if (self.cancelled)() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

/// Sweeps one shard and returns when every wanted block was taken.
pub(crate) fn sweep(
    session: &mut Session,
    shelf: &Shelf,
    key: &SweepKey,
    (spec, task, stored): (&RunSpec, &Calibrate, Stored),
    control: &mut Control,
) -> Result<Swept, Error> {
    // Open while the model loads, so that streams that come early find it.
    let _open = shelf.open(key.clone(), &task.blocks);
    let weights = DecoderKey { run: key.run.clone(), checkpoint: task.checkpoint.clone() };
    let (decoder, data) = session.load(&weights, spec, stored.changed)?;
    let blocks = decoder.block_count();
    if let Some(&block) = task.blocks.iter().find(|b| **b as usize >= blocks) {
        return Err(Error::NoSuchBlock { block, blocks });
    }
    let range = task.first_sample..task.first_sample.saturating_add(task.samples);
    let samples = data.samples.ids.get(range);
    let samples = samples.ok_or(Error::NoSuchSamples {
        first: task.first_sample,
        samples: task.samples,
        found: data.samples.ids.len(),
    })?;
    let options = options(spec, task, decoder);
    // Every draw of labels is a sample of its own: with its own number, so with its own labels.
    let draws = spec.fisher_samples as usize;
    let repeated: Vec<Vec<i64>>;
    let samples = if draws == 1 {
        samples
    } else {
        repeated = samples.iter().flat_map(|sample| std::iter::repeat_n(sample.clone(), draws)).collect();
        &repeated
    };
    let tokens = samples.iter().map(|s| s.len() as u64).sum();
    let cancelled = control.cancelled;
    let mut collector = Collector {
        shelf,
        key,
        pass: match task.pass {
            0 => Pass::Plain(spec.curvature),
            number => Pass::HalfStep(Weighed { number, weighers: stored.weighers, device: decoder.device() }),
        },
        sums: Sums::default(),
        tokens,
        wait: Duration::ZERO,
        factor_bytes: 0,
        put: BTreeSet::new(),
        cancelled,
    };
    let result =
        model::sweep::run(decoder, samples, &options, &mut collector, &mut |done, total| control.step(done, total))?;
    // Blocks whose factors nobody uses: the surgeon still learns that they were swept, and over how many tokens.
    for block in
        task.blocks.iter().filter(|b| !collector.put.contains(b)).copied().collect::<BTreeSet<_>>().into_iter().rev()
    {
        if !collector.put.contains(&block) {
            collector.hand_over(block, &BlockFactors::new())?;
        }
    }
    collector.wait += shelf.wait_until_released(key, cancelled)?;
    Ok(Swept { result, wait: collector.wait, factor_bytes: collector.factor_bytes })
}

fn options(spec: &RunSpec, task: &Calibrate, decoder: &Decoder) -> SweepOptions {
    let wanted = task.blocks.iter().copied().collect::<BTreeSet<u32>>();
    let sites = wanted.into_iter().filter(|_| spec.curvature != Curvature::Identity);
    // A consumer without inputs is one whose sub-block is gone; it is among neither.
    let curvature = sites.flat_map(|block| {
        let layers = match spec.structure {
            Structure::Coupled => decoder.consumers(block as usize),
            Structure::RowColumn | Structure::Element | Structure::NofM => decoder.linears(block as usize),
        };
        layers.into_iter().map(move |layer| (block, layer))
    });
    SweepOptions {
        micro_batch: task.micro_batch,
        boundary_kind: model::device::kind(spec.boundary_dtype),
        fisher: spec.fisher,
        seed: spec.seed,
        first_sample: task.first_sample as u64 * u64::from(spec.fisher_samples),
        curvature: curvature.collect(),
        head_chunk: (HEAD_BYTES / 4 / decoder.config.vocab.max(1)).clamp(16, 4096) as usize,
    }
}

/// Adds up one block's factors at a time and puts them on the shelf.
struct Collector<'a> {
    shelf: &'a Shelf,
    key: &'a SweepKey,
    pass: Pass,
    sums: Sums,
    /// Tokens of the shard.
    tokens: u64,
    wait: Duration,
    factor_bytes: u64,
    put: BTreeSet<u32>,
    cancelled: &'a dyn Fn() -> bool,
}

impl Collector<'_> {
    /// Puts a block on the shelf; waits while there is no room.
    fn hand_over(&mut self, block: u32, factors: &BlockFactors) -> Result<(), Error> {
        self.put.insert(block);
        if self.shelf.is_settled(self.key, block)? {
            return Ok(());
        }
        self.wait += self.shelf.wait_for_room(self.key, self.cancelled)?;
        let metadata = BTreeMap::from([("tokens".to_owned(), self.tokens.to_string())]);
        let bytes = tensor_file::encode(&factors.pack()?, &metadata)?;
        self.factor_bytes += bytes.len() as u64;
        self.wait += self.shelf.offer(self.key, block, Bytes::from(bytes), self.cancelled)?;
        tracing::debug!(block, "factors ready");
        Ok(())
    }
}

impl Observer for Collector<'_> {
    fn block(&mut self, block: u32) -> Result<(), ObserverError> {
        self.sums = self.pass.open(block)?;
        Ok(())
    }

    fn input(&mut self, layer: &LayerId, x_nc: &Tensor) -> Result<(), ObserverError> {
        Ok(self.pass.input(&mut self.sums, layer, x_nc)?)
    }

    fn gradient(&mut self, layer: &LayerId, input: &LayerId, dy_nr: &Tensor) -> Result<(), ObserverError> {
        Ok(self.pass.gradient(&mut self.sums, (layer, input), dy_nr)?)
    }

    fn finished(&mut self, block: u32) -> Result<(), ObserverError> {
        let factors = std::mem::take(&mut self.sums).finish();
        Ok(self.hand_over(block, &factors)?)
    }
}

#[cfg(test)]
#[path = "sweep_tests.rs"]
mod tests;
