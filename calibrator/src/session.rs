//! What lies on the compute thread: one decoder and the data of one run, kept so that nothing is loaded twice.
//!
//! Before another decoder is loaded the old one is dropped, so that there is never memory for two.

use crate::error::Error;
use model::tokens::{
    DataOptions, Documents, Draw, Samples, Segments, Tokenizer, overlap, pack_samples, read_documents, segments,
};
use model::{Decoder, ModelError, ModelFolder, Overlay, Weights, device};
use service::Places;
use service::checkpoint::LayerBytes;
use std::path::PathBuf;
use std::sync::Arc;
use tch::Device;
use types::{DataDescription, LayerState, ModelDescription, RemoteObjects, RunId, RunSpec, ShotData};

/// Samples on which a correction must lower the loss.
const CHECK_SAMPLES: usize = 16;

/// Which weights: a run's checkpoint, or its base model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DecoderKey {
    /// The run.
    pub(crate) run: RunId,
    /// Key of the checkpoint's manifest; `None` for the base model.
    pub(crate) checkpoint: Option<String>,
}

/// What differs from the base model in a checkpoint, on its way to the session.
#[derive(Debug)]
pub(crate) enum Changed {
    /// All of it; nothing for the base model, or for a session that holds the decoder already.
    Here(Vec<LayerBytes>),
    /// Its weights stay where they are until a block is read.
    InStore(Vec<LayerState>, Arc<dyn RemoteObjects>),
}

/// State of the compute thread.
#[derive(Debug)]
pub(crate) struct Session {
    device: Device,
    weights: Weights,
    places: Places,
    decoder: Option<(DecoderKey, Decoder)>,
    data: Option<(RunId, Data)>,
}

/// Calibration and held-out data of a run.
#[derive(Debug)]
pub(crate) struct Data {
    /// What the sweep runs over.
    pub(crate) samples: Samples,
    /// Samples that no sweep sees: where a correction proves that it helps. Empty without correction.
    pub(crate) check: Vec<Vec<i64>>,
    /// What the loss is measured on, if anything.
    pub(crate) held_out: Option<Segments>,
}

/// Whether the run may have written its output already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Output {
    /// The run begins: nothing may be there.
    New,
    /// The run goes on: its own result may be there, which is for its writer to tell.
    MayExist,
}

/// Model and data as the coordinator needs to know them.
#[derive(Debug)]
pub(crate) struct Prepared {
    /// The model.
    pub(crate) model: ModelDescription,
    /// Calibration data.
    pub(crate) data: DataDescription,
    /// Held-out data.
    pub(crate) held_out: Option<DataDescription>,
}

impl Session {
    /// Returns an empty session that reads paths of this host.
    pub(crate) fn new(device: Device, weights: Weights) -> Self {
        Self { device, weights, places: Places::paths_only(), decoder: None, data: None }
    }

    /// Returns the session with these places for models, text and outputs.
    pub(crate) fn reaching(self, places: Places) -> Self {
        Self { places, ..self }
    }

    /// Opens a run's model.
    pub(crate) fn folder(&self, spec: &RunSpec) -> Result<ModelFolder, Error> {
        Ok(ModelFolder::open_at(self.places.model(&spec.model)?)?)
    }

    /// Returns a session that has its data already.
    #[cfg(test)]
    pub(crate) fn with_data(device: Device, run: &RunId, data: Data) -> Self {
        Self { data: Some((run.clone(), data)), ..Self::new(device, Weights::Resident) }
    }

    /// Checks everything that can be known before the work begins; returns what model and data are.
    pub(crate) fn prepare(&mut self, run: &RunId, spec: &RunSpec, output: Output) -> Result<Prepared, Error> {
        for address in spec.waypoints.iter().map(|w| spec.output_at(*w)).chain([spec.output.clone()]) {
            if self.places.is_occupied(&address)? && output == Output::New {
                return Err(ModelError::OutputExists { path: PathBuf::from(address) }.into());
            }
        }
        let folder = self.folder(spec)?;
        folder.config().check_length(spec.seq_len as i64)?;
        model::export::check_writable(&folder, spec)?;
        let data = self.data(run, spec)?;
        let (samples, held_out) =
            (data.samples.description.clone(), data.held_out.as_ref().map(|s| s.description.clone()));
        let model = model::units::describe_for(&folder, spec)?;
        Ok(Prepared { model, data: samples, held_out })
    }

    /// Returns whether the weights are here, so that nobody has to fetch them.
    pub(crate) fn holds(&self, key: &DecoderKey) -> bool {
        self.decoder.as_ref().is_some_and(|(held, _)| held == key)
    }

    /// Returns whether blocks are read one at a time, and what is laid over them as well.
    pub(crate) fn is_streaming(&self) -> bool {
        self.weights == Weights::Stream
    }

    /// Returns the decoder of these weights, and the data; `changed` is only looked at when the decoder is not here.
    pub(crate) fn load(
        &mut self,
        key: &DecoderKey,
        spec: &RunSpec,
        changed: Changed,
    ) -> Result<(&Decoder, &Data), Error> {
        if !self.holds(key) {
            self.decoder = None;
            let folder = self.folder(spec)?;
            let overlay = match changed {
                Changed::Here(layers) => Overlay::decode(layers, self.device)?,
                Changed::InStore(states, source) => Overlay::later(states, source),
            };
            let decoder = Decoder::open(folder, overlay, self.weights, (device::kind(spec.dtype), self.device))?;
            self.decoder = Some((key.clone(), decoder));
        }
        self.data(&key.run, spec)?;
        match (&self.decoder, &self.data) {
            (Some((_, decoder)), Some((_, data))) => Ok((decoder, data)),
            _ => unreachable!("both were just put there"),
        }
    }

    fn data(&mut self, run: &RunId, spec: &RunSpec) -> Result<&Data, Error> {
        if self.data.as_ref().is_none_or(|(held, _)| held != run) {
            self.data = None;
            let data = Data::read(spec, &self.places)?;
            return Ok(&self.data.insert((run.clone(), data)).1);
        }
        match &self.data {
            Some((_, data)) => Ok(data),
            None => unreachable!("it was just seen there"),
        }
    }
}

impl Data {
    fn read(spec: &RunSpec, places: &Places) -> Result<Self, Error> {
        let tokenizer = Tokenizer::open(&places.model(&spec.model)?.folder)?;
        let documents = documents(places.text(&spec.data)?, spec, &tokenizer)?;
        let sets = match spec.shot_data {
            ShotData::New => spec.shots,
            ShotData::Same => 1,
        };
        let corrects = spec.correct_rank > 0;
        let draw = Draw {
            seq_len: spec.seq_len,
            samples: spec.samples,
            sets: sets.saturating_add(u32::from(corrects)),
            seed: spec.seed,
        };
        let mut samples = pack_samples(&documents, &tokenizer, draw)?;
        let check = if corrects { take_check(&mut samples)? } else { Vec::new() };
        let held_out = if spec.eval_data.is_empty() {
            None
        } else {
            let held_out = self::documents(places.text(&spec.eval_data)?, spec, &tokenizer)?;
            let mut segments = segments(&held_out, &tokenizer, spec.seq_len, spec.eval_samples)?;
            segments.description.overlap = overlap(&documents, &held_out);
            Some(segments)
        };
        Ok(Self { samples, check, held_out })
    }
}

/// Takes the last set from the samples and returns some of it.
fn take_check(samples: &mut Samples) -> Result<Vec<Vec<i64>>, ModelError> {
    let d = &mut samples.description;
    if d.sets < 2 {
        let needed = 2 * d.samples * d.seq_len;
        let remedy =
            "a correction needs as many samples again to prove that it helps: add text, ask for fewer samples \
                      (--samples), or go without --correct-rank"
                .to_owned();
        return Err(ModelError::TooLittleText { found: d.tokens, needed, remedy });
    }
    d.sets -= 1;
    let mut check = samples.ids.split_off((u64::from(d.sets) * d.samples) as usize);
    check.truncate(CHECK_SAMPLES);
    Ok(check)
}

fn documents(paths: Vec<String>, spec: &RunSpec, tokenizer: &Tokenizer) -> Result<Documents, ModelError> {
    let options = DataOptions { paths, text_column: spec.text_column.clone() };
    read_documents(&options, tokenizer)
}
