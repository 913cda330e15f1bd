//! `run.proto`: the run specification, its choices, sizes and resource names.

use super::{Fields, InvalidMessage, MAX_PATHS, MAX_SIZE, MAX_TEXT, REQUEST};
use crate::v1;
use types::{
    AttentionUnit, Curvature, DampingScale, Dtype, Fisher, Format, GgufType, Pattern, RunId, RunSpec, Schedule,
    Scoring, Shape, ShotData, Sizes, Structure, Target, UnitKind, Update, WorkerId,
};

/// Most sizes of a run besides its target.
const MAX_WAYPOINTS: usize = 1000;

/// Returns the resource name of a run.
pub fn run_name(run: &RunId) -> String {
    format!("runs/{run}")
}

/// Returns the run that a request names by its resource name `runs/{run}`.
pub fn run_of_name(field: &str, name: &str) -> Result<RunId, InvalidMessage> {
    let id = name.strip_prefix("runs/").ok_or_else(|| REQUEST.bad(field, "is not of the form runs/{run}"))?;
    REQUEST.run(field, id)
}

/// Returns the resource name of a shot.
pub fn shot_name(run: &RunId, shot: u32) -> String {
    format!("runs/{run}/shots/{shot}")
}

/// Returns the run and the shot that a request names by its resource name `runs/{run}/shots/{shot}`.
pub fn shot_of_name(field: &str, name: &str) -> Result<(RunId, u32), InvalidMessage> {
    let bad = || REQUEST.bad(field, "is not of the form runs/{run}/shots/{shot}");
    let (run, shot) = name.split_once("/shots/").ok_or_else(bad)?;
    Ok((run_of_name(field, run)?, shot.parse().map_err(|_| bad())?))
}

/// Returns a worker's resource name.
pub fn worker_name(worker: &WorkerId) -> String {
    format!("workers/{worker}")
}

/// Returns the worker that a request names by its resource name `workers/{worker}`.
pub fn worker_of_name(field: &str, name: &str) -> Result<WorkerId, InvalidMessage> {
    let id = name.strip_prefix("workers/").ok_or_else(|| REQUEST.bad(field, "is not of the form workers/{worker}"))?;
    WorkerId::new(id).map_err(|e| REQUEST.bad(field, e.to_string()))
}

impl From<Structure> for v1::Structure {
    fn from(value: Structure) -> Self {
        match value {
            Structure::Coupled => Self::Coupled,
            Structure::RowColumn => Self::RowColumn,
            Structure::Element => Self::Element,
            Structure::NofM => Self::NOfM,
        }
    }
}

impl From<AttentionUnit> for v1::AttentionUnit {
    fn from(value: AttentionUnit) -> Self {
        match value {
            AttentionUnit::KvGroup => Self::KvGroup,
            AttentionUnit::QueryHead => Self::QueryHead,
            AttentionUnit::Keep => Self::Keep,
        }
    }
}

impl From<Shape> for v1::Shape {
    fn from(value: Shape) -> Self {
        match value {
            Shape::Uniform => Self::Uniform,
            Shape::PerLayer => Self::PerLayer,
            Shape::Padded => Self::Padded,
            Shape::Auto => Self::Auto,
        }
    }
}

impl From<Format> for v1::Format {
    fn from(value: Format) -> Self {
        match value {
            Format::Hf => Self::Hf,
            Format::Gguf => Self::Gguf,
            Format::Both => Self::Both,
        }
    }
}

impl From<GgufType> for v1::GgufType {
    fn from(value: GgufType) -> Self {
        match value {
            GgufType::Auto => Self::Auto,
            GgufType::F32 => Self::F32,
            GgufType::F16 => Self::F16,
            GgufType::Bf16 => Self::Bf16,
            GgufType::Q8 => Self::Q80,
        }
    }
}

impl From<Scoring> for v1::Scoring {
    fn from(value: Scoring) -> Self {
        match value {
            Scoring::Sequential => Self::Sequential,
            Scoring::Independent => Self::Independent,
        }
    }
}

impl From<Update> for v1::Update {
    fn from(value: Update) -> Self {
        match value {
            Update::Correlated => Self::Correlated,
            Update::Grouped => Self::Grouped,
            Update::TwoSided => Self::TwoSided,
            Update::Independent => Self::Independent,
            Update::None => Self::None,
        }
    }
}

impl From<Curvature> for v1::Curvature {
    fn from(value: Curvature) -> Self {
        match value {
            Curvature::Kfac => Self::Kfac,
            Curvature::Activations => Self::Activations,
            Curvature::Diagonal => Self::Diagonal,
            Curvature::Identity => Self::Identity,
        }
    }
}

impl From<Fisher> for v1::Fisher {
    fn from(value: Fisher) -> Self {
        match value {
            Fisher::Empirical => Self::Empirical,
            Fisher::Sampled => Self::Sampled,
        }
    }
}

impl From<Schedule> for v1::Schedule {
    fn from(value: Schedule) -> Self {
        match value {
            Schedule::Linear => Self::Linear,
            Schedule::Geometric => Self::Geometric,
            Schedule::Adaptive => Self::Adaptive,
        }
    }
}

impl From<ShotData> for v1::ShotData {
    fn from(value: ShotData) -> Self {
        match value {
            ShotData::New => Self::New,
            ShotData::Same => Self::Same,
        }
    }
}

impl From<DampingScale> for v1::DampingScale {
    fn from(value: DampingScale) -> Self {
        match value {
            DampingScale::Diagonal => Self::Diagonal,
            DampingScale::Mean => Self::Mean,
        }
    }
}

impl From<Dtype> for v1::Dtype {
    fn from(value: Dtype) -> Self {
        match value {
            Dtype::F32 => Self::F32,
            Dtype::Bf16 => Self::Bf16,
            Dtype::F16 => Self::F16,
        }
    }
}

impl From<UnitKind> for v1::UnitKind {
    fn from(value: UnitKind) -> Self {
        match value {
            UnitKind::FfnChannel => Self::FfnChannel,
            UnitKind::KvGroup => Self::KvGroup,
            UnitKind::QueryHead => Self::QueryHead,
            UnitKind::Row => Self::Row,
            UnitKind::Column => Self::Column,
            UnitKind::Element => Self::Element,
            UnitKind::Whole => Self::Whole,
        }
    }
}

impl From<Sizes> for v1::Sizes {
    fn from(value: Sizes) -> Self {
        Self { prunable: value.prunable, parameters: value.parameters, bytes: value.bytes }
    }
}

impl TryFrom<v1::Sizes> for Sizes {
    type Error = InvalidMessage;

    fn try_from(value: v1::Sizes) -> Result<Self, InvalidMessage> {
        let fields = Fields("Sizes");
        Ok(Self {
            prunable: fields.number("prunable", value.prunable, MAX_SIZE)?,
            parameters: fields.number("parameters", value.parameters, MAX_SIZE)?,
            bytes: fields.number("bytes", value.bytes, MAX_SIZE)?,
        })
    }
}

impl From<RunSpec> for v1::RunSpec {
    fn from(value: RunSpec) -> Self {
        let target = match value.target {
            Target::Size(fraction) => v1::run_spec::Target::TargetSize(fraction),
            Target::Parameters(count) => v1::run_spec::Target::TargetParameters(count),
            Target::Bytes(bytes) => v1::run_spec::Target::TargetBytes(bytes),
        };
        Self {
            model: value.model,
            data: value.data,
            eval_data: value.eval_data,
            text_column: value.text_column,
            output: value.output,
            target: Some(target),
            waypoints: value.waypoints,
            structure: v1::Structure::from(value.structure).into(),
            pattern: value.pattern.map(|p| v1::Pattern { n: p.n, m: p.m }),
            attention_unit: v1::AttentionUnit::from(value.attention_unit).into(),
            shape: v1::Shape::from(value.shape).into(),
            scoring: v1::Scoring::from(value.scoring).into(),
            update: v1::Update::from(value.update).into(),
            max_correlate: value.max_correlate,
            curvature: v1::Curvature::from(value.curvature).into(),
            fisher: v1::Fisher::from(value.fisher).into(),
            fisher_samples: value.fisher_samples,
            shards: value.shards,
            max_poison_fraction: value.max_poison_fraction,
            kronecker_rank: value.kronecker_rank,
            half_steps: value.half_steps,
            rounds: value.rounds,
            keep_paths: value.keep_paths,
            paths_of: value.paths_of.as_ref().map(run_name).unwrap_or_default(),
            shots: value.shots,
            schedule: v1::Schedule::from(value.schedule).into(),
            max_rise: value.max_rise,
            sub_blocks: value.sub_blocks,
            shot_data: v1::ShotData::from(value.shot_data).into(),
            decay: value.decay,
            correct_rank: value.correct_rank,
            correct_steps: value.correct_steps,
            correct_rate: value.correct_rate,
            samples: value.samples,
            seq_len: value.seq_len,
            eval_samples: value.eval_samples,
            damping_scale: v1::DampingScale::from(value.damping_scale).into(),
            damping_a: value.damping_a,
            damping_g: value.damping_g,
            max_damped_layers: value.max_damped_layers,
            multiple_of: value.multiple_of,
            format: v1::Format::from(value.format).into(),
            gguf_type: v1::GgufType::from(value.gguf_type).into(),
            seed: value.seed,
            dtype: v1::Dtype::from(value.dtype).into(),
            boundary_dtype: v1::Dtype::from(value.boundary_dtype).into(),
            memory_bytes: value.memory,
        }
    }
}

/// What stands for a path that a caller left out because nobody will look at it.
const NOWHERE: &str = "-";

/// Returns the spec of a caller who asks for curvature or costs only: target and output may be left out.
pub fn spec_without_end(spec: Option<v1::RunSpec>) -> Result<RunSpec, InvalidMessage> {
    let mut spec = REQUEST.required("spec", spec)?;
    spec.target.get_or_insert(v1::run_spec::Target::TargetSize(1.0));
    if spec.output.is_empty() {
        NOWHERE.clone_into(&mut spec.output);
    }
    REQUEST.nested("spec", Some(spec))
}

/// Returns the spec of a caller who brings curvature along: data may be left out as well.
pub fn spec_without_data(spec: Option<v1::RunSpec>) -> Result<RunSpec, InvalidMessage> {
    let mut spec = REQUEST.required("spec", spec)?;
    if spec.data.is_empty() {
        spec.data.push(NOWHERE.to_owned());
    }
    spec_without_end(Some(spec))
}

/// Keeps a fault and goes on, so that a spec's faults are reported together.
fn note<T>(faults: &mut Vec<InvalidMessage>, read: Result<T, InvalidMessage>) -> Option<T> {
    read.map_err(|e| faults.push(e)).ok()
}

/// Returns a list of paths, none of them too long.
fn paths(fields: Fields, field: &str, values: Vec<String>) -> Result<Vec<String>, InvalidMessage> {
    fields.at_most(field, values.len(), MAX_PATHS, "items")?;
    let place = |(n, path)| fields.text(&format!("{field}[{n}]"), path, MAX_TEXT);
    values.into_iter().enumerate().map(place).collect()
}

impl TryFrom<v1::RunSpec> for RunSpec {
    type Error = InvalidMessage;

    fn try_from(value: v1::RunSpec) -> Result<Self, InvalidMessage> {
        let fields = Fields("RunSpec");
        let mut faults = Vec::new();
        match read(fields, value, &mut faults) {
            Some(spec) if faults.is_empty() => {
                spec.validated().map_err(|e| InvalidMessage { message: "RunSpec", violations: e.violations })
            }
            _ => Err(InvalidMessage {
                message: "RunSpec",
                violations: faults.into_iter().flat_map(|e| e.violations).collect(),
            }),
        }
    }
}

/// Returns the spec that a message spells, not yet validated; faults are noted, and `None` says that there is one.
fn read(fields: Fields, value: v1::RunSpec, faults: &mut Vec<InvalidMessage>) -> Option<RunSpec> {
    let model = note(faults, fields.short("model", value.model, MAX_TEXT));
    let data = note(faults, paths(fields, "data", value.data));
    let eval_data = note(faults, paths(fields, "eval_data", value.eval_data));
    let text_column = note(faults, fields.short("text_column", value.text_column, MAX_TEXT));
    let output = note(faults, fields.short("output", value.output, MAX_TEXT));
    let waypoints = fields.at_most("waypoints", value.waypoints.len(), MAX_WAYPOINTS, "sizes");
    let waypoints = note(faults, waypoints.map(|()| value.waypoints));
    let target = note(faults, fields.required("target", value.target));
    let structure = note(faults, fields.choice::<v1::Structure, _>("structure", value.structure, Structure::ALL));
    let pattern = value.pattern.map(|p| Pattern::new(p.n, p.m).map_err(|e| fields.bad("pattern", e.to_string())));
    let pattern = note(faults, pattern.transpose());
    let attention_unit =
        note(faults, fields.choice::<v1::AttentionUnit, _>("attention_unit", value.attention_unit, AttentionUnit::ALL));
    let shape = note(faults, fields.choice::<v1::Shape, _>("shape", value.shape, Shape::ALL));
    let scoring = note(faults, fields.choice::<v1::Scoring, _>("scoring", value.scoring, Scoring::ALL));
    let update = note(faults, fields.choice::<v1::Update, _>("update", value.update, Update::ALL));
    let curvature = note(faults, fields.choice::<v1::Curvature, _>("curvature", value.curvature, Curvature::ALL));
    let fisher = note(faults, fields.choice::<v1::Fisher, _>("fisher", value.fisher, Fisher::ALL));
    let schedule = note(faults, fields.choice::<v1::Schedule, _>("schedule", value.schedule, Schedule::ALL));
    let shot_data = note(faults, fields.choice::<v1::ShotData, _>("shot_data", value.shot_data, ShotData::ALL));
    let damping_scale =
        note(faults, fields.choice::<v1::DampingScale, _>("damping_scale", value.damping_scale, DampingScale::ALL));
    let paths_of = Some(value.paths_of.as_str()).filter(|name| !name.is_empty());
    let paths_of = note(faults, paths_of.map(|name| run_of_name("paths_of", name)).transpose());
    let format = note(faults, fields.choice::<v1::Format, _>("format", value.format, Format::ALL));
    let gguf_type = note(faults, fields.choice::<v1::GgufType, _>("gguf_type", value.gguf_type, GgufType::ALL));
    let dtype = note(faults, fields.choice::<v1::Dtype, _>("dtype", value.dtype, Dtype::ALL));
    let boundary_dtype =
        note(faults, fields.choice::<v1::Dtype, _>("boundary_dtype", value.boundary_dtype, Dtype::ALL));
    Some(RunSpec {
        model: model?,
        data: data?,
        eval_data: eval_data?,
        text_column: text_column?,
        output: output?,
        target: match target? {
            v1::run_spec::Target::TargetSize(fraction) => Target::Size(fraction),
            v1::run_spec::Target::TargetParameters(count) => Target::Parameters(count),
            v1::run_spec::Target::TargetBytes(bytes) => Target::Bytes(bytes),
        },
        waypoints: waypoints?,
        structure: structure?,
        pattern: pattern?,
        attention_unit: attention_unit?,
        shape: shape?,
        scoring: scoring?,
        update: update?,
        max_correlate: value.max_correlate,
        curvature: curvature?,
        fisher: fisher?,
        fisher_samples: value.fisher_samples,
        shards: value.shards.max(1),
        max_poison_fraction: value.max_poison_fraction,
        kronecker_rank: value.kronecker_rank,
        half_steps: value.half_steps,
        rounds: value.rounds,
        keep_paths: value.keep_paths,
        paths_of: paths_of?,
        shots: value.shots,
        schedule: schedule?,
        max_rise: value.max_rise,
        sub_blocks: value.sub_blocks,
        shot_data: shot_data?,
        decay: value.decay,
        correct_rank: value.correct_rank,
        correct_steps: value.correct_steps,
        correct_rate: value.correct_rate,
        samples: value.samples,
        seq_len: value.seq_len,
        eval_samples: value.eval_samples,
        damping_scale: damping_scale?,
        damping_a: value.damping_a,
        damping_g: value.damping_g,
        max_damped_layers: value.max_damped_layers,
        multiple_of: value.multiple_of,
        format: format?,
        gguf_type: gguf_type?,
        seed: value.seed,
        dtype: dtype?,
        boundary_dtype: boundary_dtype?,
        memory: value.memory_bytes,
    })
}
