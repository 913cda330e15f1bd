//! What lies on the compute thread: the open model and the factors of one block. All of it is lent to one job at a time.
//!
//! Tensors never leave these files but as bytes. Factors are added in the order in which the caller hands them over: shards
//! rising.

mod curved;
mod elements;
mod merging;
mod site;

pub(crate) use elements::Digit;
pub(crate) use merging::merged;
pub(crate) use site::BlockJob;

use crate::error::Error;
use bytes::Bytes;
use curvature::{BlockFactors, HalfStep, Side};
use curved::Curved;
use model::{LayerOverlay, ModelFolder, Overlay, tensor_file};
use pruning::{LayerProblem, Updated};
use service::{OutputPlace, Places};
use site::Site;
use std::collections::BTreeMap;
use tch::{Device, Kind, Tensor};
use types::{
    AttentionUnit, BlockDescription, CostHistogram, Curvature, ElementCut, LayerCut, LayerDescription, LayerId,
    LayerState, RemovalPath, RunSpec, Structure, Unit, UnitGroup,
};

/// State of the compute thread.
#[derive(Debug)]
pub(crate) struct Bench {
    device: Device,
    places: Places,
    opened: Option<Opened>,
    /// By pass: the plain factors, then what each half-step of a power iteration summed up.
    sums: Vec<BlockFactors>,
}

/// The model of the last job.
#[derive(Debug)]
struct Opened {
    key: (String, Structure, AttentionUnit, bool),
    folder: ModelFolder,
    blocks: Vec<BlockDescription>,
}

/// One layer after the cut, its weights as bytes.
#[derive(Debug)]
pub(crate) struct NewLayer {
    /// Its state; `weights` is the one before unless there are new bytes.
    pub(crate) state: LayerState,
    /// A safetensors file, when the cut changed the layer.
    pub(crate) weights: Option<Bytes>,
    /// Predicted rise of the loss, nats per token.
    pub(crate) predicted: f64,
}

impl Bench {
    /// Returns an empty bench that reads paths of this host.
    pub(crate) fn new(device: Device) -> Self {
        Self { device, places: Places::paths_only(), opened: None, sums: Vec::new() }
    }

    /// Returns the bench with these places for models and outputs.
    pub(crate) fn reaching(self, places: Places) -> Self {
        Self { places, ..self }
    }

    /// Returns where an output is to be written.
    pub(crate) fn output(&self, address: &str) -> Result<OutputPlace, Error> {
        Ok(self.places.output(address)?)
    }

    /// Returns a block of the run's model; opens the model when another one lies here.
    pub(crate) fn describe(&mut self, spec: &RunSpec, block: u32) -> Result<BlockDescription, Error> {
        let blocks = &self.open(spec)?.blocks;
        let found = blocks.iter().find(|b| b.block == block);
        found.cloned().ok_or_else(|| Error::Bug(format!("block {block} is not one of the model's {}", blocks.len())))
    }

    /// Forgets the factors of the block before.
    pub(crate) fn clear(&mut self) {
        self.sums.clear();
    }

    /// Adds one shard's sums of a pass to what is here; passes come in order.
    pub(crate) fn add(&mut self, pass: u32, shard: &[u8]) -> Result<(), Error> {
        let (tensors, metadata) = tensor_file::decode(shard, self.device)?;
        let part = BlockFactors::unpack(tokens(&metadata)?, tensors, self.device)?;
        match self.sums.get_mut(pass as usize) {
            None => self.sums.push(part),
            Some(sum) => sum.merge(&part)?,
        }
        Ok(())
    }

    /// Returns what weighs the block's tokens in the next pass of a power iteration.
    pub(crate) fn weighers(&mut self, job: &BlockJob, cancelled: &dyn Fn() -> bool) -> Result<Bytes, Error> {
        let half_steps = self.each_site(job, cancelled, |bench, site, _| match site {
            Site::Coupled { units, .. } if units.kept.is_empty() => Ok(None), // gone in an earlier shot
            _ => Ok(curved::power_iteration(&job.spec, site.layer(), &bench.sums)?.half_step()?),
        })?;
        let metadata = BTreeMap::from([("tokens".to_owned(), "1".to_owned())]);
        Ok(Bytes::from(tensor_file::encode(&HalfStep::weighers(&half_steps).pack()?, &metadata)?))
    }

    /// Adds an earlier shot's factors, as [`Self::mix`] gave them then, faded by the run's decay and for the units that are
    /// still left; returns the sums.
    pub(crate) fn mix(&mut self, job: &BlockJob, earlier: Option<&[u8]>) -> Result<Bytes, Error> {
        let kept = job.kept();
        let mut factors = self.sums.pop().ok_or_else(nothing_here)?;
        if let Some(earlier) = earlier {
            let (tensors, metadata) = tensor_file::decode(earlier, self.device)?;
            let mut past = BlockFactors::unpack(tokens(&metadata)?, tensors, self.device)?;
            let kept_then: BTreeMap<LayerId, Vec<u32>> = metadata
                .get("kept")
                .and_then(|json| serde_json::from_str(json).ok())
                .ok_or_else(|| Error::Bug("running factors do not say which units they are of".into()))?;
            for group in &job.block.groups {
                let (now, then) = (&kept[&group.layer], kept_then.get(&group.layer));
                let then = then.ok_or_else(|| Error::Bug(format!("running factors lack {}", group.layer)))?;
                if now.is_empty() {
                    past.forget(group.layer.as_str());
                    continue;
                }
                past.keep_inputs(group.layer.as_str(), &still_there(job, group, then, now)?)?;
            }
            past.decay(job.spec.decay)?;
            factors.merge(&past)?;
        }
        let json = serde_json::to_string(&kept).map_err(|e| Error::Bug(e.to_string()))?;
        let metadata = BTreeMap::from([("tokens".to_owned(), factors.tokens.to_string()), ("kept".to_owned(), json)]);
        let bytes = tensor_file::encode(&factors.pack()?, &metadata)?;
        self.sums.push(factors);
        Ok(Bytes::from(bytes))
    }

    /// Returns over how many tokens the factors on the bench are, once every site has those it needs, of the right size.
    pub(crate) fn check(&mut self, job: &BlockJob, cancelled: &dyn Fn() -> bool) -> Result<u64, Error> {
        self.each_site(job, cancelled, |bench, site, changed| {
            bench.problem(&job.spec, site.layer(), changed)?.check()?;
            Ok(Some(()))
        })?;
        Ok(self.sums.first().ok_or_else(nothing_here)?.tokens)
    }

    /// Returns the removal path of each of the block's sites; `cancelled` is asked before each.
    pub(crate) fn score(&mut self, job: &BlockJob, cancelled: &dyn Fn() -> bool) -> Result<Vec<RemovalPath>, Error> {
        self.each_site(job, cancelled, |bench, site, changed| {
            if matches!(site, Site::Coupled { units, .. } if units.kept.is_empty()) {
                return Ok(None); // gone in an earlier shot
            }
            let problem = bench.problem(&job.spec, site.layer(), changed)?;
            Ok(Some(match site {
                Site::Coupled { units, .. } => problem.coupled_path(units, &job.spec)?,
                Site::RowColumn { rows, columns, .. } => problem.row_column_path((rows, columns), &job.spec)?,
                Site::Elements { layer } => {
                    return Err(Error::Bug(format!("single weights of {} have no path", layer.layer)));
                }
            }))
        })
    }

    /// Returns how often each digit occurs among the costs of the block's items, layer by layer.
    pub(crate) fn histograms(
        &mut self,
        job: &BlockJob,
        digit: Digit,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Vec<CostHistogram>, Error> {
        self.each_site(job, cancelled, |bench, site, changed| {
            let problem = bench.problem(&job.spec, site.layer(), changed)?;
            elements::histogram(&problem, &job.spec, digit).map(Some)
        })
    }

    /// Returns every layer of the block that differs from the base model after the cut.
    pub(crate) fn update(
        &mut self,
        job: &BlockJob,
        paths: &[RemovalPath],
        cuts: &[LayerCut],
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Vec<NewLayer>, Error> {
        let mut result = self.each_site(job, cancelled, |bench, site, changed| {
            let layer = &site.layer().layer;
            if let Some(cut) = element_cut(layer, cuts) {
                let problem = bench.problem(&job.spec, site.layer(), changed)?;
                let (updated, zeros) = elements::update(&problem, &job.spec, cut)?;
                let mut new = new_layer(site, updated)?;
                new.state.zeros = zeros;
                return Ok(Some(new));
            }
            let removed = removed(layer, paths, cuts)?;
            if removed.is_empty() {
                return Ok(None);
            }
            let problem = bench.problem(&job.spec, site.layer(), changed)?;
            let updated = match site {
                Site::Coupled { units, .. } => problem.coupled_update(units, &removed, &job.spec)?,
                Site::RowColumn { rows, columns, .. } => {
                    problem.row_column_update((rows, columns), &removed, &job.spec)?
                }
                Site::Elements { .. } => return Err(Error::Bug(format!("{layer} was cut along a path"))),
            };
            new_layer(site, updated).map(Some)
        })?;
        // What no cut touched stays as it was: corrected producers, consumers with all their units.
        for (state, _) in &job.changed {
            if !result.iter().any(|new| new.state.layer == state.layer) {
                result.push(NewLayer { state: state.clone(), weights: None, predicted: 0.0 });
            }
        }
        Ok(result)
    }

    /// Returns what `each` finds of the block's sites, in their order; `cancelled` is asked before each.
    fn each_site<T>(
        &mut self,
        job: &BlockJob,
        cancelled: &dyn Fn() -> bool,
        mut each: impl FnMut(&mut Self, &Site<'_>, Option<&LayerOverlay>) -> Result<Option<T>, Error>,
    ) -> Result<Vec<T>, Error> {
        tch::no_grad(|| {
            let layers = self.overlays(job)?;
            let mut found = Vec::new();
            for site in job.sites()? {
                if cancelled() {
                    return Err(Error::Cancelled);
                }
                let layer = &site.layer().layer;
                let _span = tracing::info_span!("layer", %layer).entered();
                found.extend(each(self, &site, layers.get(layer))?);
            }
            Ok(found)
        })
    }

    /// Returns the open model folder.
    pub(crate) fn folder(&mut self, spec: &RunSpec) -> Result<&ModelFolder, Error> {
        Ok(&self.open(spec)?.folder)
    }

    fn open(&mut self, spec: &RunSpec) -> Result<&Opened, Error> {
        let key = (spec.model.clone(), spec.structure, spec.attention_unit, spec.sub_blocks);
        if self.opened.as_ref().is_none_or(|o| o.key != key) {
            self.opened = None;
            let folder = ModelFolder::open_at(self.places.model(&spec.model)?)?;
            let blocks = model::units::blocks_for(&folder, spec);
            return Ok(self.opened.insert(Opened { key, folder, blocks }));
        }
        self.opened.as_ref().ok_or_else(|| Error::Bug("the model was closed".into()))
    }

    fn overlays(&self, job: &BlockJob) -> Result<BTreeMap<LayerId, LayerOverlay>, Error> {
        Ok(Overlay::decode(job.changed.iter().cloned(), self.device)?.layers)
    }

    /// Returns a layer's weights and curvature.
    fn problem(
        &mut self,
        spec: &RunSpec,
        layer: &LayerDescription,
        changed: Option<&LayerOverlay>,
    ) -> Result<Curved, Error> {
        let factors = self.sums.first().ok_or_else(nothing_here)?;
        let (a_cc, g_rr) = match spec.curvature {
            _ if spec.passes() > 0 => (None, None), // found by power iteration
            Curvature::Kfac => (
                Some(factors.finish(Side::Input, layer.input.as_str())?),
                Some(factors.finish(Side::Gradient, layer.layer.as_str())?),
            ),
            Curvature::Activations => (Some(factors.finish(Side::Input, layer.input.as_str())?), None),
            Curvature::Diagonal | Curvature::Identity => (None, None),
        };
        let diagonal_rc = match spec.curvature {
            Curvature::Diagonal => Some(factors.finish_diagonal(layer.layer.as_str())?),
            Curvature::Kfac | Curvature::Activations | Curvature::Identity => None,
        };
        let tokens = factors.tokens;
        let device = self.device;
        let folder = self.folder(spec)?;
        let base = |what: &str| folder.tensor(&format!("{}.{what}", layer.layer), Kind::Float, device);
        let weight = match changed.and_then(|c| c.weight.as_ref()) {
            Some(weight) => weight.shallow_clone(),
            None => base("weight")?,
        };
        let w_rc = if layer.bias {
            let bias = match changed.and_then(|c| c.bias.as_ref()) {
                Some(bias) => bias.shallow_clone(),
                None => base("bias")?,
            };
            Tensor::f_cat(&[weight, bias.f_unsqueeze(1)?], 1)?
        } else {
            weight
        };
        let plain = LayerProblem {
            layer: layer.layer.clone(),
            w_rc,
            bias: layer.bias,
            a_cc,
            g_rr,
            tokens,
            damping_scale: spec.damping_scale,
            damping_a: spec.damping_a,
            damping_g: spec.damping_g,
        };
        if let Some(diagonal_rc) = diagonal_rc {
            return Curved::with_diagonal(plain, &diagonal_rc);
        }
        if spec.passes() == 0 {
            return Ok(Curved::OneTerm(plain));
        }
        let terms = curved::power_iteration(spec, layer, &self.sums)?.finish().terms;
        Curved::with_terms(plain, terms)
    }
}

fn nothing_here() -> Error {
    Error::Bug("no factors lie on the bench".into())
}

/// Returns where the inputs of the units that are left now were among those that were left then; the bias goes along.
fn still_there(job: &BlockJob, group: &UnitGroup, then: &[u32], now: &[u32]) -> Result<Vec<i64>, Error> {
    let width = i64::from(group.columns_per_unit);
    let mut positions = Vec::with_capacity(now.len() * width as usize + 1);
    for unit in now {
        let at = then.binary_search(unit);
        let at = at.map_err(|_| Error::Bug(format!("unit {unit} of {} was gone before", group.layer)))? as i64;
        positions.extend(at * width..(at + 1) * width);
    }
    if job.block.layers.iter().any(|l| l.layer == group.layer && l.bias) {
        positions.push(then.len() as i64 * width);
    }
    Ok(positions)
}

/// Returns over how many tokens factors are.
fn tokens(metadata: &BTreeMap<String, String>) -> Result<u64, Error> {
    let tokens = metadata.get("tokens").and_then(|t| t.parse().ok());
    tokens.ok_or_else(|| Error::Bug("factors do not say over how many tokens they are".into()))
}

/// Returns which items the cut takes from a layer, if it goes by single weights.
fn element_cut(layer: &LayerId, cuts: &[LayerCut]) -> Option<ElementCut> {
    cuts.iter().find(|c| c.layer == *layer).and_then(|c| c.elements).filter(|elements| elements.items > 0)
}

/// Returns the units that the cut takes from a layer: a prefix of its path.
fn removed(layer: &LayerId, paths: &[RemovalPath], cuts: &[LayerCut]) -> Result<Vec<Unit>, Error> {
    let steps = cuts.iter().find(|c| c.layer == *layer).map_or(0, |c| c.steps as usize);
    if steps == 0 {
        return Ok(Vec::new());
    }
    let path = paths.iter().find(|p| p.layer == *layer);
    let prefix = path.and_then(|p| p.steps.get(..steps));
    let prefix = prefix
        .ok_or_else(|| Error::Bug(format!("the cut takes {steps} steps of layer {layer}, its path is shorter")))?;
    Ok(prefix.iter().map(|step| step.unit).collect())
}

/// Returns a layer's new state and its weights' bytes.
fn new_layer(site: &Site, updated: Updated) -> Result<NewLayer, Error> {
    let layer = site.layer();
    let w_rc = updated.w_rc.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?;
    let mut tensors = Vec::new();
    if layer.bias {
        let columns = w_rc.size2()?.1 - 1;
        tensors.push(("bias".to_owned(), w_rc.f_select(1, columns)?.f_contiguous()?));
        tensors.push(("weight".to_owned(), w_rc.f_narrow(1, 0, columns)?.f_contiguous()?));
    } else {
        tensors.push(("weight".to_owned(), w_rc.f_contiguous()?));
    }
    let bytes = tensor_file::encode(&tensors, &BTreeMap::new())?;
    let state = LayerState {
        layer: layer.layer.clone(),
        kind: site.kind(),
        kept: updated.kept,
        kept_rows: updated.kept_rows,
        zeros: 0,
        weights: None,
    };
    Ok(NewLayer { state, weights: Some(Bytes::from(bytes)), predicted: updated.predicted })
}

#[cfg(test)]
#[path = "bench_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "bench/curved_tests.rs"]
mod curved_tests;
