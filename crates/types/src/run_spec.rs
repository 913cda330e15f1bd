//! Everything that can change a number, validated once.

use crate::{
    AttentionUnit, Curvature, DampingScale, Dtype, Fisher, Format, GgufType, Pattern, RunId, Schedule, Scoring, Shape,
    ShotData, Structure, Target, Update,
};
use serde::{Deserialize, Serialize};

/// One pruning, completely described: two runs with equal specs on the same machine give the same bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunSpec {
    /// Model folder.
    pub model: String,
    /// Calibration files, folders or globs.
    pub data: Vec<String>,
    /// Held-out files, folders or globs; empty for none.
    pub eval_data: Vec<String>,
    /// Name of the column with the text in jsonl, json and parquet.
    pub text_column: String,
    /// Final folder.
    pub output: String,
    /// The size to reach.
    pub target: Target,
    /// Larger sizes at which a model is written as well, falling, in the target's kind of size; fractions only.
    pub waypoints: Vec<f64>,
    /// What is removed.
    pub structure: Structure,
    /// The pattern of [`Structure::NofM`]; `None` for all others.
    pub pattern: Option<Pattern>,
    /// Which unit attention is pruned by.
    pub attention_unit: AttentionUnit,
    /// Whether all units of an attention or an FFN may go: the sub-block then adds nothing to the residual stream.
    pub sub_blocks: bool,
    /// Widths across blocks.
    pub shape: Shape,
    /// How costs account for earlier removals.
    pub scoring: Scoring,
    /// What happens to the remaining weights.
    pub update: Update,
    /// Most weights of a group under [`Update::Grouped`].
    pub max_correlate: u32,
    /// Which factors are used.
    pub curvature: Curvature,
    /// Terms of the Kronecker sum that stands for a layer's curvature: 1 or 2.
    pub kronecker_rank: u32,
    /// Passes over the data for each term by power iteration; 0 for the product of the plain means.
    pub half_steps: u32,
    /// Whose labels.
    pub fisher: Fisher,
    /// Label draws for each calibration token under [`Fisher::Sampled`]; otherwise 1.
    pub fisher_samples: u32,
    /// How often curvature, costs, cut and update follow each other; at most, under [`Schedule::Adaptive`].
    pub shots: u32,
    /// Rounds of a shot in which single weights are chosen: after each the rest is updated and costs are taken again, under
    /// the same curvature. 1 for units, whose costs follow each removal anyway.
    pub rounds: u32,
    /// How the size goes down over them.
    pub schedule: Schedule,
    /// Largest predicted rise of the loss by a shot under [`Schedule::Adaptive`], nats per token.
    pub max_rise: f64,
    /// Which samples each shot sees.
    pub shot_data: ShotData,
    /// What the factors of earlier shots count for in a shot, against its own: 0 for nothing, 1 for as much.
    pub decay: f64,
    /// Rank of the low-rank correction after each shot; 0 for none.
    pub correct_rank: u32,
    /// Its steps.
    pub correct_steps: u32,
    /// Its largest learning rate.
    pub correct_rate: f64,
    /// Shards that a shot's samples are swept in at least: part of what fixes the order of sums.
    #[serde(default = "one")]
    pub shards: u32,
    /// Calibration samples of a shot.
    pub samples: u64,
    /// Share of a shot's samples that may be left out because their loss or a gradient is not finite; below 1.
    #[serde(default)]
    pub max_poison_fraction: f64,
    /// Tokens a sample.
    pub seq_len: u64,
    /// Held-out segments scored after each shot, evenly spaced over the data; 0 for all.
    pub eval_samples: u64,
    /// What λ is a fraction of.
    pub damping_scale: DampingScale,
    /// λ on A.
    pub damping_a: f64,
    /// λ on G.
    pub damping_g: f64,
    /// Layers whose damping may be raised by the ladder before the run fails.
    pub max_damped_layers: u32,
    /// FFN widths of the result are multiples of this.
    pub multiple_of: u32,
    /// For which runtimes the result is written.
    #[serde(default)]
    pub format: Format,
    /// Number format of the matrices in a GGUF file.
    #[serde(default)]
    pub gguf_type: GgufType,
    /// Seed of sample choice and sampled labels.
    pub seed: u64,
    /// Number format of forward and backward passes.
    pub dtype: Dtype,
    /// Number format of the boundary states kept between the two passes.
    pub boundary_dtype: Dtype,
    /// Memory for boundary states and micro-batches, in bytes: it sets their number, and so the order of sums.
    pub memory: u64,
    /// Whether factors and weights of every shot stay in the store, so that another run can cut another size from them.
    pub keep_paths: bool,
    /// The run whose kept shots this one begins with; all else but target, output and waypoints must be equal.
    pub paths_of: Option<RunId>,
}

/// One thing wrong with a spec.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Violation {
    /// Field, by its name in [`RunSpec`].
    pub field: String,
    /// What is wrong and what to do.
    pub problem: String,
}

/// A spec with faults: all of them, not the first.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .violations.iter().map(|v| format!("{}: {}", v.field, v.problem)).collect::<Vec<_>>().join("; "))]
pub struct InvalidRunSpec {
    /// What is wrong.
    pub violations: Vec<Violation>,
}

impl RunSpec {
    /// Returns a spec with every default: of the command line, but for samples of 512 tokens and no held-out data.
    pub fn new(model: &str, data: &str, output: &str, target: Target) -> Self {
        Self {
            model: model.into(),
            data: vec![data.into()],
            eval_data: vec![],
            text_column: "text".into(),
            output: output.into(),
            target,
            waypoints: vec![],
            structure: Structure::Coupled,
            pattern: None,
            attention_unit: AttentionUnit::KvGroup,
            sub_blocks: false,
            shape: Shape::Uniform,
            scoring: Scoring::Sequential,
            update: Update::Correlated,
            max_correlate: 2000,
            curvature: Curvature::Kfac,
            kronecker_rank: 1,
            half_steps: 0,
            fisher: Fisher::Empirical,
            fisher_samples: 1,
            shards: 1,
            shots: 1,
            rounds: 1,
            schedule: Schedule::Linear,
            max_rise: 0.05,
            shot_data: ShotData::New,
            decay: 0.0,
            correct_rank: 0,
            correct_steps: 32,
            correct_rate: 1e-3,
            samples: 128,
            max_poison_fraction: 0.0,
            seq_len: 512,
            eval_samples: 12,
            damping_scale: DampingScale::Diagonal,
            damping_a: DampingScale::Diagonal.usual(Structure::Coupled).0,
            damping_g: DampingScale::Diagonal.usual(Structure::Coupled).1,
            max_damped_layers: u32::MAX,
            multiple_of: 64,
            format: Format::Hf,
            gguf_type: GgufType::Auto,
            seed: 0,
            dtype: Dtype::F32,
            boundary_dtype: Dtype::F32,
            memory: 1 << 30,
            keep_paths: false,
            paths_of: None,
        }
    }

    /// Returns whether `self` can begin with the kept shots of a run of `kept`: it differs only in where it ends.
    pub fn continues(&self, kept: &Self) -> bool {
        let ends = |spec: &Self| Self {
            target: self.target,
            waypoints: vec![],
            output: String::new(),
            format: Format::Hf,
            gguf_type: GgufType::Auto,
            keep_paths: false,
            paths_of: None,
            ..spec.clone()
        };
        kept.keep_paths && ends(self) == ends(kept)
    }

    /// Returns what is removed, as people write it: the pattern itself for n:m.
    pub fn structure_name(&self) -> String {
        self.pattern.map_or_else(|| self.structure.to_string(), |pattern| pattern.to_string())
    }

    /// Returns how often a shot's samples are swept again after the plain means: the half-steps of all terms.
    pub fn passes(&self) -> u32 {
        self.kronecker_rank.saturating_mul(self.half_steps)
    }

    /// Returns the folder for the model of a waypoint: beside the output, named after the size.
    pub fn output_at(&self, waypoint: f64) -> String {
        format!("{}-{waypoint}", self.output)
    }

    /// Returns the spec if every field is in range and the combination makes sense, otherwise all faults.
    pub fn validated(self) -> Result<Self, InvalidRunSpec> {
        let mut faults = Faults::default();
        self.check_sizes(&mut faults);
        self.check_ranges(&mut faults);
        self.check_choices(&mut faults);
        if faults.0.is_empty() { Ok(self) } else { Err(InvalidRunSpec { violations: faults.0 }) }
    }

    fn check_sizes(&self, faults: &mut Faults) {
        faults.unless(!self.model.is_empty(), "model", "name a model folder");
        faults.unless(!self.data.is_empty(), "data", "name at least one calibration file or folder");
        faults.unless(!self.output.is_empty(), "output", "name the folder to write");
        faults.unless(!self.text_column.is_empty(), "text_column", "must not be empty");
        let size = match self.target {
            Target::Size(size) => Some(size),
            Target::Parameters(_) | Target::Bytes(_) => None,
        };
        match self.target {
            Target::Size(f) => {
                let problem = format!("target size {f} is outside (0, 1]; 0.8 keeps 80 % of the prunable weights");
                faults.unless(f > 0.0 && f <= 1.0, "target", problem);
            }
            Target::Parameters(n) => faults.unless(n > 0, "target", "target parameters must be above 0"),
            Target::Bytes(n) => faults.unless(n > 0, "target", "target bytes must be above 0"),
        }
        let problem = "padded models are as large as their widest blocks, which is only known in the end; give a target size, or take uniform or per-layer";
        faults.unless(self.shape != Shape::Padded || size.is_some(), "shape", problem);
        let dense = "writes dense tensors with zeros, so parameters and bytes stay the same; give a target size";
        let shrinks = !self.structure.keeps_shapes();
        faults.unless(shrinks || size.is_some(), "target", format!("{} {dense}", self.structure));
        if let (Some(pattern), Some(size)) = (self.pattern, size) {
            let least = pattern.share();
            let problem = format!("{pattern} leaves at least {least} of the weights; ask for that or more");
            faults.unless(size >= least, "target", problem);
        }
        if !self.waypoints.is_empty() {
            let falling = self.waypoints.iter().chain(&size).is_sorted_by(|x, y| x > y);
            let fractions = size.is_some() && self.waypoints.iter().all(|w| *w < 1.0);
            let problem = "sizes must be fractions below 1 that fall down to the target size";
            faults.unless(falling && fractions, "waypoints", problem);
            let sizes = self.waypoints.len() + 1;
            faults.unless(sizes <= self.shots as usize, "shots", format!("{sizes} sizes need at least as many shots"));
        }
    }

    fn check_ranges(&self, faults: &mut Faults) {
        faults.within("shots", self.shots.into(), 1, 1000);
        faults.within("samples", self.samples, 1, 10_000_000);
        faults.within("seq_len", self.seq_len, 2, 1_048_576);
        for (field, lambda) in [("damping_a", self.damping_a), ("damping_g", self.damping_g)] {
            faults.unless((0.0..=10.0).contains(&lambda), field, format!("{lambda} is outside 0 to 10"));
        }
        faults.unless((0.0..=1.0).contains(&self.decay), "decay", format!("{} is outside 0 to 1", self.decay));
        let rise = self.max_rise;
        faults.unless(rise > 0.0 && rise <= 100.0, "max_rise", format!("{rise} is outside (0, 100]"));
        faults.within("shards", self.shards.into(), 1, 10_000);
        let poison = self.max_poison_fraction;
        let problem = format!("{poison} is outside [0, 1); 0.05 leaves out up to 5 % of a shot's samples");
        faults.unless((0.0..1.0).contains(&poison), "max_poison_fraction", problem);
        faults.within("fisher_samples", self.fisher_samples.into(), 1, 1000);
        faults.within("rounds", self.rounds.into(), 1, 64);
        faults.within("kronecker_rank", self.kronecker_rank.into(), 1, 2);
        faults.within("half_steps", self.half_steps.into(), 0, 16);
        faults.within("correct_rank", self.correct_rank.into(), 0, 4096);
        faults.within("correct_steps", self.correct_steps.into(), 1, 1_000_000);
        let rate = self.correct_rate;
        let usable = rate > 0.0 || self.correct_rank == 0;
        faults.unless(usable && (0.0..=1.0).contains(&rate), "correct_rate", format!("{rate} is outside (0, 1]"));
        faults.within("max_correlate", self.max_correlate.into(), 1, 65_536);
        faults.within("multiple_of", self.multiple_of.into(), 1, 65_536);
        faults.unless(self.memory >= 1 << 20, "memory", format!("{} bytes is less than 1 MiB", self.memory));
    }

    fn check_choices(&self, faults: &mut Faults) {
        let (structure, update) = (self.structure, self.update);
        let problem =
            format!("{structure} has no uniform shape; it keeps the tensors' shapes and sets weights to zero");
        faults.unless(!structure.keeps_shapes() || self.shape == Shape::PerLayer, "shape", problem);
        let problem = "auto compares the shapes at the first shot's size, which an adaptive schedule does not know before; take uniform, per-layer or padded";
        let known = self.shape != Shape::Auto || self.schedule != Schedule::Adaptive;
        faults.unless(known, "shape", problem);
        let fits = self.pattern.is_some() == (structure == Structure::NofM);
        faults.unless(fits, "pattern", "structure n:m takes a pattern such as 2:4, the others none");
        let apart = !self.keep_paths || self.paths_of.is_none();
        faults.unless(apart, "keep_paths", "a run that begins with another's paths keeps none itself; keep them there");
        if self.sub_blocks {
            let coupled = structure == Structure::Coupled && matches!(self.shape, Shape::PerLayer | Shape::Padded);
            let problem = "whole sub-blocks go from coupled models with a shape of per-layer or padded only: the others keep them";
            faults.unless(coupled, "sub_blocks", problem);
            let heads = self.attention_unit != AttentionUnit::QueryHead;
            faults.unless(heads, "sub_blocks", "query heads stay with their key/value heads; take kv-group or keep");
            let problem = "no layer is left to correct where a sub-block is gone; take correct_rank 0";
            faults.unless(self.correct_rank == 0, "sub_blocks", problem);
        }
        let adapts = self.schedule == Schedule::Adaptive;
        let problem = "adaptive steps are checked on held-out data; name some, or take linear or geometric";
        faults.unless(!adapts || !self.eval_data.is_empty(), "schedule", problem);
        let problem =
            format!("adaptive steps go by removal paths, which {structure} has none of; take linear or geometric");
        faults.unless(!adapts || !structure.is_masked(), "schedule", problem);
        let drawn = self.fisher == Fisher::Sampled || self.fisher_samples == 1;
        faults.unless(drawn, "fisher_samples", "only a sampled Fisher draws labels; take 1, or fisher sampled");
        let fits = self.curvature != Curvature::Diagonal || update == Update::None;
        faults.unless(fits, "update", "a diagonal curvature knows no correlations to update by; take none");
        self.check_kronecker_sum(faults);
        let problem = "rounds go on from the joint optimum of the one before: only for single weights (element and n:m), with \
                       update correlated and a curvature; take 1";
        let takes_rounds = structure.takes_rounds(update, self.curvature);
        faults.unless(self.rounds == 1 || takes_rounds, "rounds", problem);
        let known = structure.is_masked() || !matches!(update, Update::Grouped | Update::TwoSided);
        let problem = format!("{update} is for single weights (element and n:m); take correlated, independent or none");
        faults.unless(known, "update", problem);
    }

    fn check_kronecker_sum(&self, faults: &mut Faults) {
        if self.passes() > 0 {
            let problem = "power iteration weighs inputs by gradients and gradients by inputs; it needs curvature kfac";
            faults.unless(self.curvature == Curvature::Kfac, "half_steps", problem);
            let problem = "sums of earlier shots were weighed by other matrices and cannot be mixed in; take decay 0";
            faults.unless(self.decay == 0.0, "half_steps", problem);
        }
        if self.kronecker_rank < 2 {
            return;
        }
        let problem = "a second term is found by power iteration; take at least 2 half-steps a term";
        faults.unless(self.half_steps >= 2, "half_steps", problem);
        let structure = self.structure;
        let has_kernels = matches!(structure, Structure::Coupled | Structure::Element);
        let problem = format!("{structure} goes by one Kronecker product; two terms are for coupled and element");
        faults.unless(has_kernels, "kronecker_rank", problem);
        let alone = self.scoring == Scoring::Independent || structure.is_masked();
        let problem = "two terms have no common inverse to follow along a path; take scoring independent";
        faults.unless(alone, "kronecker_rank", problem);
        let joint = matches!(self.update, Update::Correlated | Update::None);
        faults.unless(joint, "kronecker_rank", "two terms update by the joint optimum or not at all");
    }
}

/// What is wrong with a spec so far.
#[derive(Default)]
struct Faults(Vec<Violation>);

impl Faults {
    fn unless(&mut self, fine: bool, field: &str, problem: impl Into<String>) {
        if !fine {
            self.0.push(Violation { field: field.to_owned(), problem: problem.into() });
        }
    }

    fn within(&mut self, field: &str, value: u64, least: u64, most: u64) {
        self.unless((least..=most).contains(&value), field, format!("{value} is outside {least} to {most}"));
    }
}

/// What journals without the number of shards stand for.
fn one() -> u32 {
    1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> RunSpec {
        RunSpec::new("m", "d", "o", Target::Size(0.8))
    }

    #[test]
    fn all_faults_are_reported_at_once() {
        assert!(good().validated().is_ok());
        let bad = RunSpec { target: Target::Size(1.5), shots: 0, damping_a: f64::NAN, ..good() };
        let fields: Vec<_> =
            bad.validated().map_err(|e| e.violations.into_iter().map(|v| v.field).collect::<Vec<_>>()).unwrap_err();
        assert_eq!(fields, ["target", "shots", "damping_a"]);
        let refused = |spec: RunSpec| spec.validated().map_err(|e| e.violations[0].field.clone()).unwrap_err();
        assert_eq!(refused(RunSpec { structure: Structure::NofM, shape: Shape::PerLayer, ..good() }), "pattern");
        assert_eq!(refused(RunSpec { update: Update::Grouped, ..good() }), "update");
        assert_eq!(refused(RunSpec { waypoints: vec![0.7], ..good() }), "waypoints");
        assert_eq!(refused(RunSpec { waypoints: vec![0.9, 0.85], shots: 2, ..good() }), "shots");
        let half = RunSpec { shape: Shape::PerLayer, structure: Structure::NofM, ..good() };
        assert_eq!(refused(RunSpec { pattern: Pattern::new(7, 8).ok(), ..half }), "target");
    }

    #[test]
    fn a_spec_survives_json_unchanged() {
        let text = serde_json::to_string(&good()).unwrap();
        assert_eq!(serde_json::from_str::<RunSpec>(&text).unwrap(), good());
    }

    #[test]
    fn journals_that_do_not_say_how_much_poison_is_borne_bear_none() {
        let mut json = serde_json::to_value(good()).unwrap();
        json.as_object_mut().unwrap().remove("max_poison_fraction").unwrap();
        assert_eq!(serde_json::from_value::<RunSpec>(json).unwrap(), good());
        for bad in [-0.1, 1.0, f64::NAN] {
            let faults = RunSpec { max_poison_fraction: bad, ..good() }.validated().unwrap_err().violations;
            assert_eq!(faults[0].field, "max_poison_fraction");
        }
    }

    #[test]
    fn two_terms_take_what_they_have_kernels_for() {
        let two = || RunSpec { kronecker_rank: 2, half_steps: 4, scoring: Scoring::Independent, ..good() };
        assert!(two().validated().is_ok());
        assert_eq!(two().passes(), 8);
        let one = RunSpec { half_steps: 4, ..good() };
        assert!(one.clone().validated().is_ok(), "one term by power iteration goes along a path");
        for (spec, field) in [
            (RunSpec { scoring: Scoring::Sequential, ..two() }, "kronecker_rank"),
            (RunSpec { structure: Structure::RowColumn, shape: Shape::PerLayer, ..two() }, "kronecker_rank"),
            (RunSpec { update: Update::Independent, ..two() }, "kronecker_rank"),
            (RunSpec { kronecker_rank: 3, ..two() }, "kronecker_rank"),
            (RunSpec { half_steps: 1, ..two() }, "half_steps"),
            (RunSpec { decay: 0.5, ..one.clone() }, "half_steps"),
            (RunSpec { curvature: Curvature::Activations, ..one }, "half_steps"),
            (RunSpec { curvature: Curvature::Diagonal, ..good() }, "update"),
            (RunSpec { half_steps: u32::MAX, ..two() }, "half_steps"),
            (RunSpec { rounds: 2, ..good() }, "rounds"),
            (RunSpec { rounds: 2, structure: Structure::Element, update: Update::Grouped, ..good() }, "rounds"),
            (RunSpec { rounds: 2, structure: Structure::Element, curvature: Curvature::Identity, ..good() }, "rounds"),
        ] {
            let faults = spec.validated().unwrap_err().violations;
            assert!(faults.iter().any(|v| v.field == field), "{faults:?}");
        }
    }
}
