//! Everything that can change a number, validated once.

use crate::{
    AttentionUnit, Curvature, DampingScale, Dtype, Fisher, Pattern, Schedule, Scoring, Shape, ShotData, Structure,
    Target, Update,
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
    /// What is removed.
    pub structure: Structure,
    /// The pattern of [`Structure::NofM`]; `None` for all others.
    pub pattern: Option<Pattern>,
    /// Which unit attention is pruned by.
    pub attention_unit: AttentionUnit,
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
    /// Whose labels.
    pub fisher: Fisher,
    /// Rounds of curvature, costs, cut and update.
    pub shots: u32,
    /// How the size goes down over them.
    pub schedule: Schedule,
    /// Which samples each shot sees.
    pub shot_data: ShotData,
    /// What the factors of earlier shots count for in a shot, against its own: 0 for nothing, below 1.
    pub decay: f64,
    /// Rank of the low-rank correction after each shot; 0 for none.
    pub correct_rank: u32,
    /// Its steps.
    pub correct_steps: u32,
    /// Its largest learning rate.
    pub correct_rate: f64,
    /// Calibration samples of a shot.
    pub samples: u64,
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
    /// Seed of sample choice and sampled labels.
    pub seed: u64,
    /// Number format of forward and backward passes.
    pub dtype: Dtype,
    /// Number format of the boundary states kept between the two passes.
    pub boundary_dtype: Dtype,
    /// Memory for boundary states and micro-batches, in bytes: it sets their number, and so the order of sums.
    pub memory: u64,
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
            structure: Structure::Coupled,
            pattern: None,
            attention_unit: AttentionUnit::KvGroup,
            shape: Shape::Uniform,
            scoring: Scoring::Sequential,
            update: Update::Correlated,
            max_correlate: 2000,
            curvature: Curvature::Kfac,
            fisher: Fisher::Empirical,
            shots: 4,
            schedule: Schedule::Linear,
            shot_data: ShotData::New,
            decay: 0.0,
            correct_rank: 0,
            correct_steps: 32,
            correct_rate: 1e-3,
            samples: 128,
            seq_len: 512,
            eval_samples: 12,
            damping_scale: DampingScale::Diagonal,
            damping_a: DampingScale::Diagonal.usual(Structure::Coupled).0,
            damping_g: DampingScale::Diagonal.usual(Structure::Coupled).1,
            max_damped_layers: u32::MAX,
            multiple_of: 64,
            seed: 0,
            dtype: Dtype::F32,
            boundary_dtype: Dtype::F32,
            memory: 1 << 30,
        }
    }

    /// Returns the spec if every field is in range and the combination makes sense, otherwise all faults.
    pub fn validated(self) -> Result<Self, InvalidRunSpec> {
        let mut violations = Vec::new();
        let mut check = |ok: bool, field: &str, problem: String| {
            if !ok {
                violations.push(Violation { field: field.to_owned(), problem });
            }
        };
        check(!self.model.is_empty(), "model", "name a model folder".into());
        check(!self.data.is_empty(), "data", "name at least one calibration file or folder".into());
        check(!self.output.is_empty(), "output", "name the folder to write".into());
        check(!self.text_column.is_empty(), "text_column", "must not be empty".into());
        match self.target {
            Target::Size(f) => check(
                f > 0.0 && f <= 1.0,
                "target",
                format!("target size {f} is outside (0, 1]; 0.8 keeps 80 % of the prunable weights"),
            ),
            Target::Parameters(n) => check(n > 0, "target", "target parameters must be above 0".into()),
            Target::Bytes(n) => check(n > 0, "target", "target bytes must be above 0".into()),
        }
        check(
            !self.structure.keeps_shapes() || matches!(self.target, Target::Size(_)),
            "target",
            format!(
                "{} writes dense tensors with zeros, so parameters and bytes stay the same; give a target size",
                self.structure
            ),
        );
        check((1..=1000).contains(&self.shots), "shots", format!("{} is outside 1 to 1000", self.shots));
        check(
            (1..=10_000_000).contains(&self.samples),
            "samples",
            format!("{} is outside 1 to 10,000,000", self.samples),
        );
        check(
            (2..=1_048_576).contains(&self.seq_len),
            "seq_len",
            format!("{} is outside 2 to 1,048,576", self.seq_len),
        );
        for (field, lambda) in [("damping_a", self.damping_a), ("damping_g", self.damping_g)] {
            check((0.0..=10.0).contains(&lambda), field, format!("{lambda} is outside 0 to 10"));
        }
        check(self.correct_rank <= 4096, "correct_rank", format!("{} is above 4096", self.correct_rank));
        check(
            (1..=1_000_000).contains(&self.correct_steps),
            "correct_steps",
            format!("{} is outside 1 to 1,000,000", self.correct_steps),
        );
        check(
            self.correct_rate > 0.0 && self.correct_rate <= 1.0 || self.correct_rank == 0 && self.correct_rate >= 0.0,
            "correct_rate",
            format!("{} is outside (0, 1]", self.correct_rate),
        );
        check((0.0..=1.0).contains(&self.decay), "decay", format!("{} is outside 0 to 1", self.decay));
        check(
            (1..=65_536).contains(&self.multiple_of),
            "multiple_of",
            format!("{} is outside 1 to 65,536", self.multiple_of),
        );
        check(self.memory >= 1 << 20, "memory", format!("{} bytes is less than 1 MiB", self.memory));
        check(
            !self.structure.keeps_shapes() || self.shape == Shape::PerLayer,
            "shape",
            format!("{} has no uniform shape; it keeps the tensors' shapes and sets weights to zero", self.structure),
        );
        check(
            self.pattern.is_some() == (self.structure == Structure::NofM),
            "pattern",
            "structure n:m takes a pattern such as 2:4, the others none".into(),
        );
        if let (Some(pattern), Target::Size(size)) = (self.pattern, self.target) {
            let least = f64::from(pattern.n) / f64::from(pattern.m);
            check(
                size >= least,
                "target",
                format!("{pattern} leaves at least {least} of the weights; ask for that or more"),
            );
        }
        check(
            self.structure.is_masked() || !matches!(self.update, Update::Grouped | Update::TwoSided),
            "update",
            format!("{} is for single weights (element and n:m); take correlated, independent or none", self.update),
        );
        check(
            (1..=65_536).contains(&self.max_correlate),
            "max_correlate",
            format!("{} is outside 1 to 65,536", self.max_correlate),
        );
        if violations.is_empty() { Ok(self) } else { Err(InvalidRunSpec { violations }) }
    }
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
    }

    #[test]
    fn a_spec_survives_json_unchanged() {
        let text = serde_json::to_string(&good()).unwrap();
        assert_eq!(serde_json::from_str::<RunSpec>(&text).unwrap(), good());
    }
}
