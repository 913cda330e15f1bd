//! The low-rank correction of a checkpoint: new weights for every prunable layer, as files for the store.
//!
//! Weights that a cut has made smaller go back to full size for those that were not stored small before: a producer's rows
//! belong to units that its consumer's state names, so its file holds the base model's rows where units are gone.

use crate::error::Error;
use crate::session::Data;
use bytes::Bytes;
use model::correct::{self, CorrectOptions, CorrectReport, Zeros};
use model::{Decoder, ModelError, ModelFolder, tensor_file};
use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};
use tch::{Device, Kind, Tensor};
use types::{BlockDescription, LayerId, LayerState, RunSpec, Structure, UnitKind};

/// Passes through the held-out segments of the correction.
const CHECKS: u32 = 4;
/// Tokens of a micro-batch.
const BATCH_TOKENS: u64 = 2048;

/// A corrected checkpoint.
#[derive(Debug)]
pub(crate) struct Corrected {
    /// What happened.
    pub(crate) report: CorrectReport,
    /// Every layer whose weights are new, with their file.
    pub(crate) layers: Vec<(LayerState, Bytes)>,
}

/// Which of the calibration samples a correction sees.
#[derive(Debug, Clone)]
pub(crate) struct LearnsFrom {
    /// First of the shot's samples.
    pub(crate) first_sample: usize,
    /// Samples that are left out, by their numbers among all.
    pub(crate) left_out: Vec<Range<usize>>,
}

/// Corrects `decoder`, the model of `folder` with the layers in `states` changed.
pub(crate) fn correct(
    (folder, blocks): (&ModelFolder, &[BlockDescription]),
    (decoder, data): (&Decoder, &Data),
    states: &[LayerState],
    (spec, learns_from): (&RunSpec, &LearnsFrom),
    progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<Corrected, Error> {
    let LearnsFrom { first_sample, left_out } = learns_from;
    let first_sample = *first_sample;
    let range = first_sample..first_sample.saturating_add(spec.samples as usize);
    let samples = data.samples.ids.get(range);
    let samples = samples.ok_or(Error::NoSuchSamples {
        first: first_sample,
        samples: spec.samples as usize,
        found: data.samples.ids.len(),
    })?;
    let seen: Vec<Vec<i64>>;
    let samples = if left_out.is_empty() {
        samples
    } else {
        let numbered = (first_sample..).zip(samples);
        seen =
            numbered.filter(|(n, _)| !left_out.iter().any(|gone| gone.contains(n))).map(|(_, s)| s.clone()).collect();
        &seen
    };
    let options = CorrectOptions {
        rank: spec.correct_rank,
        alpha: f64::from(spec.correct_rank),
        steps: spec.correct_steps,
        learning_rate: spec.correct_rate,
        micro_batch: (BATCH_TOKENS / spec.seq_len).max(1) as usize,
        seed: spec.seed,
        check_every: spec.correct_steps.div_ceil(CHECKS),
        ..CorrectOptions::default()
    };
    let kept = match spec.structure {
        Structure::Coupled => BTreeMap::new(),
        Structure::RowColumn => correct::kept(decoder, Zeros::RowsAndColumns)?,
        Structure::Element | Structure::NofM => correct::kept(decoder, Zeros::Weights)?,
    };
    let check = (!data.check.is_empty()).then_some(data.check.as_slice());
    let found = correct::run(decoder, samples, check, &kept, &options, progress)?;
    let mut layers = Vec::new();
    for layer in found.weights(decoder) {
        let (layer, weight) = layer?;
        let before = states.iter().find(|state| state.layer == layer.name);
        let state = before.cloned().unwrap_or_else(|| whole(&layer.name));
        let weight = host(&weight)?;
        let weight = if state.kind == UnitKind::Whole {
            full_size(
                folder,
                (&layer.name, &weight),
                &rows_left((folder, &layer.name), blocks, states, weight.size()[0])?,
            )?
        } else {
            weight
        };
        let mut tensors = vec![("weight".to_owned(), weight)];
        if let Some(bias) = before.and(layer.bias.as_ref()).filter(|_| state.kind != UnitKind::Whole) {
            tensors.insert(0, ("bias".to_owned(), host(bias)?));
        }
        layers.push((state, Bytes::from(tensor_file::encode(&tensors, &BTreeMap::new())?)));
    }
    Ok(Corrected { report: found.report, layers })
}

/// Returns the state of a layer of which no unit went.
fn whole(layer: &LayerId) -> LayerState {
    LayerState {
        layer: layer.clone(),
        kind: UnitKind::Whole,
        kept: Vec::new(),
        kept_rows: Vec::new(),
        zeros: 0,
        weights: None,
    }
}

/// Returns which rows of the base model's layer are left: those of the units that its block's consumers keep.
fn rows_left(
    (folder, layer): (&ModelFolder, &LayerId),
    blocks: &[BlockDescription],
    states: &[LayerState],
    left: i64,
) -> Result<Vec<i64>, Error> {
    let block = blocks.iter().find(|b| b.layers.iter().any(|l| l.layer == *layer));
    let described = block.and_then(|b| b.layers.iter().find(|l| l.layer == *layer));
    let rows = described.map_or(left, |l| l.rows as i64);
    if rows == left {
        return Ok((0..rows).collect());
    }
    let of_attention = folder.layers().iter().any(|l| [&l.q, &l.k, &l.v].contains(&layer));
    // Units go as equal runs of rows: of the producers' own length, whatever a unit's columns in the consumer are.
    for group in block.iter().flat_map(|b| &b.groups) {
        if of_attention == (group.kind == UnitKind::FfnChannel) {
            continue;
        }
        let Some(state) = states.iter().find(|s| s.layer == group.layer && s.kind == group.kind) else { continue };
        let all = i64::from(group.units * group.together);
        if rows % all == 0 && state.kept.len() as i64 * (rows / all) == left {
            let run = rows / all;
            return Ok(state
                .kept
                .iter()
                .flat_map(|&unit| i64::from(unit) * run..(i64::from(unit) + 1) * run)
                .collect());
        }
    }
    let reason = format!("{left} of {rows} rows are left, which no consumer's units explain");
    Err(ModelError::Overlay { layer: layer.to_string(), reason }.into())
}

fn host(tensor: &Tensor) -> Result<Tensor, ModelError> {
    Ok(tensor.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?.f_contiguous()?)
}

/// Returns the base model's weight with new values in the rows that are left.
fn full_size(folder: &ModelFolder, (layer, weight): (&LayerId, &Tensor), rows: &[i64]) -> Result<Tensor, ModelError> {
    let base = folder.tensor(&format!("{layer}.weight"), Kind::Float, Device::Cpu)?;
    Ok(base.f_index_copy(0, &Tensor::f_from_slice(rows)?, weight)?)
}
