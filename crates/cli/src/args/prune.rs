//! Flags of `prune`.

use super::choice::{self, StructureArg, parser};
use super::{MachineArgs, TargetArgs};
use clap::Args;
use std::path::PathBuf;
use std::str::FromStr;
use types::{
    AttentionUnit, Curvature, DampingScale, Dtype, Fisher, Format, GgufType, Schedule, Scoring, Shape, ShotData,
    Structure, Target, Update, parse_bytes,
};

pub(super) const ABOUT: &str = "\
Prunes a model to a target size and writes it as a new folder.

The run goes in shots. Each shot sweeps the calibration data once for the curvature of the loss, works out what each \
structure costs, cuts where that is least over the whole model, corrects the weights that remain, and measures the \
held-out loss. At the end the smaller model is written, read back, compared, and only then gets its final name.

Everything committed is kept in the state folder: after Ctrl-C, a crash or a full disk the same command goes on, and the \
result is the same to the bit as if nothing had happened.

Examples:
  Keep 80 % of the decoder's weights:
    llm-surgeon prune SmolLM2-135M --data calibration.jsonl --eval-data held-out.txt \\
      --target-size 0.8 --out smaller

  A quick first try, with less text:
    llm-surgeon prune SmolLM2-135M --data text/ --target-size 0.9 \\
      --samples 32 --seq-len 512 --out try

  As good as it gets: several shots, each with a low-rank correction on the calibration text:
    llm-surgeon prune SmolLM2-135M --data text/ --eval-data held-out.txt --target-size 0.7 \\
      --shots 4 --decay 1 --correct-rank 8 --out best

  A model that fits 250 MiB, from several sources:
    llm-surgeon prune MODEL --data 'chat/*.jsonl.zst' --data wiki.parquet \\
      --target-bytes 250MiB --out small

  Magnitude pruning at the same size, as a baseline:
    llm-surgeon prune MODEL --data text/ --target-size 0.8 \\
      --curvature identity --update none --out baseline";

/// Shots of rows and columns.
const USUAL_ROW_COLUMN_SHOTS: u32 = 8;
/// Most shots of an adaptive schedule.
const USUAL_ADAPTIVE_SHOTS: u32 = 40;
/// Rounds in which single weights are chosen.
const USUAL_ROUNDS: u32 = 4;
/// Half-steps of each term of a sum of two.
const USUAL_HALF_STEPS: u32 = 4;

/// Damping of both Kronecker factors.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct DampingPair {
    /// λ on A.
    pub(crate) a: f64,
    /// λ on G.
    pub(crate) g: f64,
}

impl FromStr for DampingPair {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (a, g) = text.split_once(',').unwrap_or((text, text));
        let number = |part: &str| {
            let lambda = part.trim().parse().ok().filter(|l: &f64| l.is_finite());
            lambda.ok_or_else(|| {
                format!("'{}' is no number; write for example 0.01, or 0.01,0.1 for A and G", part.trim())
            })
        };
        Ok(Self { a: number(a)?, g: number(g)? })
    }
}

/// Flags that say what a run is: all that can change a number, and where the result goes.
#[derive(Debug, Clone, Args)]
pub(crate) struct RunArgs {
    /// Model folder: config.json, *.safetensors or *.bin, and tokenizer.json, as on the Hugging Face hub
    pub(crate) model: PathBuf,

    /// Calibration text: a file, a folder or a glob; give it again for more
    ///
    /// jsonl, json and parquet (a document a row), txt (a document a file); each also as .gz or .zst. Rows with `messages`
    /// instead of text go through the model's chat template.
    #[arg(long, required = true, value_name = "PATH", help_heading = "Data")]
    pub(crate) data: Vec<String>,
    /// Column with the text in jsonl, json and parquet
    #[arg(long, value_name = "NAME", default_value = "text", help_heading = "Data")]
    pub(crate) text_column: String,
    /// Held-out text to measure the loss on after each shot; give it again for more
    ///
    /// Without it the run works the same, but tells nothing about quality. Documents that are calibration data as well
    /// are counted and reported.
    #[arg(long, value_name = "PATH", help_heading = "Data")]
    pub(crate) eval_data: Vec<String>,
    /// Calibration samples of a shot
    #[arg(long, value_name = "N", default_value_t = 128, help_heading = "Data")]
    pub(crate) samples: u64,
    /// Parts that a shot's samples are swept in at least, one after the other or on as many calibrators
    ///
    /// It fixes the order of sums: another number can change the last digits of the result. More come where --memory asks
    /// for them.
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Data")]
    pub(crate) shards: u32,
    /// Share of a shot's samples that may be left out because their loss or a gradient is not a finite number
    ///
    /// By default one such sample fails the run, and the error names it: as a rule the text or the number format is at fault.
    /// With 0.05 a run goes on without up to 5 % of a shot's samples. What falls out is the whole part (--shards) in which
    /// such a sample lies, so small parts lose little; each is tried once more first, on another calibrator if there is one.
    /// Costs are then computed after the sweep instead of during it. The summary names what was left out.
    #[arg(long, value_name = "F", default_value_t = 0.0, help_heading = "Data")]
    pub(crate) max_poison_fraction: f64,
    /// Tokens a sample, also of a held-out segment [default: 2048, or the model's maximum if that is smaller]
    #[arg(long, value_name = "TOKENS", help_heading = "Data")]
    pub(crate) seq_len: Option<u64>,
    /// Held-out segments scored after each shot, evenly spaced; 0 for all
    #[arg(long, value_name = "N", default_value_t = 12, help_heading = "Data")]
    pub(crate) eval_samples: u64,

    #[command(flatten)]
    pub(crate) target: TargetArgs,

    /// What is removed at once
    #[arg(long, value_parser = choice::structure(), default_value = "coupled", help_heading = "What is removed")]
    pub(crate) structure: StructureArg,
    /// By which unit attention is pruned under --structure coupled
    ///
    /// OPT's attention is always kept: no runtime loads it with fewer heads.
    #[arg(long, value_parser = parser::<AttentionUnit>(choice::HEADS), default_value = "kv-group", help_heading = "What is removed")]
    pub(crate) heads: AttentionUnit,
    /// Lets whole attentions and FFNs go, down to no head or channel at all; needs --shape per-layer
    ///
    /// One threshold then chooses between channels, heads, sub-blocks and whole layers. Such a sub-block adds nothing to the
    /// residual stream; blocks that lost both are left out of the written model.
    #[arg(long, help_heading = "What is removed")]
    pub(crate) sub_blocks: bool,
    /// Widths across blocks [default: uniform for coupled, per-layer for row-column]
    #[arg(long, value_parser = parser::<Shape>(choice::SHAPE), help_heading = "What is removed")]
    pub(crate) shape: Option<Shape>,
    /// FFN widths of the result are multiples of this
    ///
    /// Multiples of 64 shard well and are fast; smaller numbers hit the target more closely.
    #[arg(long, value_name = "N", default_value_t = 64, help_heading = "What is removed")]
    pub(crate) multiple_of: u32,

    /// How costs account for what was removed before
    #[arg(long, value_parser = parser::<Scoring>(choice::SCORING), default_value = "sequential", help_heading = "How it is decided")]
    pub(crate) scoring: Scoring,
    /// What happens to the remaining weights
    #[arg(long, value_parser = parser::<Update>(choice::UPDATE), default_value = "correlated", help_heading = "How it is decided")]
    pub(crate) update: Update,
    /// Most weights of a group under --update grouped
    #[arg(long, value_name = "N", default_value_t = 2000, help_heading = "How it is decided")]
    pub(crate) max_correlate: u32,
    /// Which curvature costs and updates use
    #[arg(long, value_parser = parser::<Curvature>(choice::CURVATURE), default_value = "kfac", help_heading = "How it is decided")]
    pub(crate) curvature: Curvature,
    /// Terms of the Kronecker sum that stands for each layer's curvature: 1 or 2
    ///
    /// 1 without --half-steps is the product of the plain means A and G. 2 takes --scoring independent, and coupled or
    /// element: the nearest sum of two products, for as many sweeps as its half-steps ask for.
    #[arg(long, value_name = "K", default_value_t = 1, help_heading = "How it is decided")]
    pub(crate) kronecker_rank: u32,
    /// Sweeps for each term of the Kronecker sum, by power iteration [default: 0 for one term, 4 for two]
    #[arg(long, value_name = "N", help_heading = "How it is decided")]
    pub(crate) half_steps: Option<u32>,
    /// Whose labels the curvature is taken with
    #[arg(long, value_parser = parser::<Fisher>(choice::FISHER), default_value = "empirical", help_heading = "How it is decided")]
    pub(crate) fisher: Fisher,
    /// Label draws for each calibration token under --fisher sampled: each costs a sweep
    #[arg(long, value_name = "K", default_value_t = 1, help_heading = "How it is decided")]
    pub(crate) fisher_samples: u32,
    /// Added to the diagonals of the Kronecker factors: one number, or A,G [default: 0.1,0.01; 0.01,0.01 with --damping-scale mean; the second 10 for element and n:m (0.1 with mean), 0.3 for row-column]
    ///
    /// Where a factor is still not positive definite, it is raised tenfold, step by step; the summary says where.
    #[arg(long, value_name = "LAMBDA[,LAMBDA]", help_heading = "How it is decided")]
    damping: Option<DampingPair>,
    /// What --damping is a fraction of
    #[arg(long, value_parser = parser::<DampingScale>(choice::DAMPING_SCALE), default_value = "diagonal", help_heading = "How it is decided")]
    pub(crate) damping_scale: DampingScale,
    /// Layers whose damping may be raised before the run fails [default: all]
    #[arg(long, value_name = "N", help_heading = "How it is decided")]
    pub(crate) max_damped_layers: Option<u32>,

    /// How often curvature, cut and update follow each other [default: 1; 8 for row-column; 40 at most for --schedule adaptive]
    ///
    /// One shot along exact paths is nearly as good as many, and more calibration samples bring more for the same time. Rows
    /// and columns gain from shots, and so does a correction after each. --targets take at least one shot a size.
    #[arg(long, value_name = "N", help_heading = "Shots")]
    shots: Option<u32>,
    /// Rounds of a shot in which single weights (element and n:m) are chosen [default: 4 with --update correlated, otherwise 1]
    ///
    /// After each round the remaining weights are updated and all costs are taken again, under the same curvature: most of
    /// what as many shots would bring, without their sweeps.
    #[arg(long, value_name = "N", help_heading = "Shots")]
    pub(crate) rounds: Option<u32>,
    /// How the size goes down over the shots
    #[arg(long, value_parser = parser::<Schedule>(choice::SCHEDULE), default_value = "linear", help_heading = "Shots")]
    pub(crate) schedule: Schedule,
    /// Most that a shot may be predicted to raise the loss under --schedule adaptive, nats per token
    ///
    /// --shots is then the most shots there may be: the last goes to the target whatever it costs. A shot that raises the
    /// held-out loss by more than twice this is taken back and cut half as deep, up to three times, from the same curvature.
    #[arg(long, value_name = "NATS", default_value_t = 0.05, help_heading = "Shots")]
    pub(crate) max_rise: f64,
    /// Which calibration samples each shot sees
    ///
    /// The updates of later shots fit the weights to what they are shown; the same few samples again and again are fitted
    /// too well. When the data has fewer than SHOTS x SAMPLES samples, the sets are taken in turn.
    #[arg(long, value_parser = parser::<ShotData>(choice::SHOT_DATA), default_value = "new", help_heading = "Shots")]
    pub(crate) shot_data: ShotData,
    /// What the curvature of earlier shots counts for in a shot, against its own: 0 for nothing, 1 for as much
    ///
    /// Averages over the samples of several shots; what was seen before an earlier cut is slightly out of date.
    #[arg(long, value_name = "RHO", default_value_t = 0.0, help_heading = "Shots")]
    pub(crate) decay: f64,
    /// Rank of a low-rank correction (adapters, absorbed) after each shot; 0 for none
    ///
    /// It trains on the shot's samples and is kept only if the loss falls on calibration samples set aside for that.
    #[arg(long, value_name = "RANK", default_value_t = 0, help_heading = "Shots")]
    pub(crate) correct_rank: u32,
    /// Steps of each correction, of 4 samples each
    #[arg(long, value_name = "N", default_value_t = 32, help_heading = "Shots")]
    pub(crate) correct_steps: u32,
    /// Largest learning rate of the correction
    #[arg(long, value_name = "RATE", default_value_t = 1e-3, help_heading = "Shots")]
    pub(crate) correct_rate: f64,
    /// Seed of the choice of samples and of sampled labels: the same seed gives the same bytes
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Shots")]
    pub(crate) seed: u64,

    /// Number format of weights and activations in forward and backward passes
    #[arg(long, value_parser = parser::<Dtype>(choice::DTYPE), default_value = "f32", help_heading = "Machine")]
    pub(crate) dtype: Dtype,
    /// Number format of the states kept between the passes [default: that of --dtype]
    #[arg(long, value_name = "DTYPE", value_parser = parser::<Dtype>(choice::DTYPE), help_heading = "Machine")]
    pub(crate) boundary_dtype: Option<Dtype>,
    /// Memory for activations during a sweep, e.g. 2GiB; the weights and one block's factors come on top
    ///
    /// Sets how many samples are swept at once, and so the order of sums: another value can change the last digits of the
    /// result. That is why the default is fixed and does not depend on the machine.
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes, default_value = "1GiB", help_heading = "Machine")]
    pub(crate) memory: u64,

    /// Folder to write; must not exist
    #[arg(long, value_name = "DIR", help_heading = "Output")]
    pub(crate) out: PathBuf,
    /// For which runtimes the result is written
    #[arg(long, value_parser = parser::<Format>(choice::FORMAT), default_value = "hf", help_heading = "Output")]
    pub(crate) format: Format,
    /// Number format of the matrices in model.gguf
    #[arg(long, value_parser = parser::<GgufType>(choice::GGUF_TYPE), default_value = "auto", help_heading = "Output")]
    pub(crate) gguf_type: GgufType,
    /// Keep every shot's factors and weights, so that `llm-surgeon materialise` can cut any other size in a minute
    ///
    /// They stay in the state folder until that is removed: many times the model's size for each shot. The order in which
    /// units leave is written there, one JSON line for units that go together.
    #[arg(long, help_heading = "Output")]
    pub(crate) keep_paths: bool,
}

/// Flags of `prune`.
#[derive(Debug, Clone, Args)]
pub(crate) struct PruneArgs {
    #[command(flatten)]
    pub(crate) run: RunArgs,
    #[command(flatten)]
    pub(crate) machine: MachineArgs,
    /// Folder of the run's journal and of what is kept between shots [default: OUT.state]
    ///
    /// While a shot lasts it also holds that shot's curvature, which can be many times the model's size. After success it
    /// may be removed.
    #[arg(long, value_name = "DIR", help_heading = "Output")]
    pub(crate) state: Option<PathBuf>,
    /// No progress; only the folder's path at the end
    #[arg(long, help_heading = "Output")]
    pub(crate) quiet: bool,
    /// Events and the summary as JSON, one object a line, on standard output; text for people goes to standard error
    #[arg(long, help_heading = "Output")]
    pub(crate) json: bool,
}

impl RunArgs {
    /// Returns the shape: what was asked for, or what fits the structure.
    pub(crate) fn shape(&self) -> Shape {
        self.shape.unwrap_or(if self.structure.structure.keeps_shapes() { Shape::PerLayer } else { Shape::Uniform })
    }

    /// Returns the size to reach.
    pub(crate) fn target(&self) -> Option<Target> {
        self.target.target(self.structure.pattern)
    }

    /// Returns the damping: what was asked for, or what is usual for its scale.
    pub(crate) fn damping(&self) -> DampingPair {
        let (a, g) = self.damping_scale.usual(self.structure.structure);
        self.damping.unwrap_or(DampingPair { a, g })
    }

    /// Returns the half-steps of each term: what was asked for, or the usual number.
    pub(crate) fn half_steps(&self) -> u32 {
        self.half_steps.unwrap_or(if self.kronecker_rank > 1 { USUAL_HALF_STEPS } else { 0 })
    }

    /// Returns the number of shots: what was asked for, or what is usual, but at least one for each size.
    pub(crate) fn shots(&self) -> u32 {
        let usual = match (self.schedule, self.structure.structure) {
            (Schedule::Adaptive, _) => USUAL_ADAPTIVE_SHOTS,
            (_, Structure::RowColumn) => USUAL_ROW_COLUMN_SHOTS,
            (_, Structure::Coupled | Structure::Element | Structure::NofM) => 1,
        };
        self.shots.unwrap_or_else(|| usual.max(self.target.waypoints().len() as u32 + 1))
    }

    /// Returns the rounds of a shot: what was asked for, or the usual number.
    pub(crate) fn rounds(&self) -> u32 {
        let chosen_anew = self.structure.structure.takes_rounds(self.update, self.curvature);
        self.rounds.unwrap_or(if chosen_anew { USUAL_ROUNDS } else { 1 })
    }
}

impl PruneArgs {
    /// Returns the state folder: what was asked for, or one beside the output.
    pub(crate) fn state(&self) -> PathBuf {
        self.state.clone().unwrap_or_else(|| {
            let mut name = self.run.out.components().as_path().as_os_str().to_owned(); // without a trailing slash
            name.push(".state");
            PathBuf::from(name)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn parse(extra: &[&str]) -> PruneArgs {
        let base = ["llm-surgeon", "prune", "m", "--data", "d", "--target-size", "0.8", "--out", "o/smaller/"];
        let cli = crate::args::Cli::try_parse_from(base.iter().chain(extra)).unwrap();
        let crate::args::Command::Prune(args) = cli.command else { unreachable!("prune was parsed") };
        args
    }

    #[test]
    fn defaults_depend_on_the_structure_and_the_output() {
        assert_eq!(parse(&[]).run.shape(), Shape::Uniform);
        assert_eq!(parse(&["--structure", "row-column"]).run.shape(), Shape::PerLayer);
        assert_eq!(parse(&[]).state(), PathBuf::from("o/smaller.state"));
        assert_eq!(parse(&["--state", "s"]).state(), PathBuf::from("s"));
        assert_eq!(parse(&[]).run.memory, 1 << 30);
    }

    #[test]
    fn shots_are_as_many_as_help() {
        assert_eq!(parse(&[]).run.shots(), 1);
        assert_eq!(parse(&["--structure", "2:4"]).run.shots(), 1);
        assert_eq!(parse(&["--structure", "row-column"]).run.shots(), USUAL_ROW_COLUMN_SHOTS);
        assert_eq!(parse(&["--schedule", "adaptive"]).run.shots(), USUAL_ADAPTIVE_SHOTS);
        assert_eq!(parse(&["--schedule", "adaptive", "--shots", "3"]).run.shots(), 3);
    }

    #[test]
    fn damping_is_one_number_or_a_pair() {
        assert_eq!(parse(&[]).run.damping(), DampingPair { a: 0.1, g: 0.01 });
        assert_eq!(parse(&["--damping-scale", "mean"]).run.damping(), DampingPair { a: 0.01, g: 0.01 });
        assert_eq!(parse(&["--structure", "element"]).run.damping(), DampingPair { a: 0.1, g: 10.0 });
        assert_eq!(parse(&["--structure", "row-column"]).run.damping(), DampingPair { a: 0.1, g: 0.3 });
        let of_the_paper = ["--structure", "row-column", "--damping-scale", "mean"];
        assert_eq!(parse(&of_the_paper).run.damping(), DampingPair { a: 0.01, g: 0.01 });
        assert_eq!(parse(&["--damping", "0.2"]).run.damping(), DampingPair { a: 0.2, g: 0.2 });
        assert_eq!("0.01".parse(), Ok(DampingPair { a: 0.01, g: 0.01 }));
        assert_eq!("0.01, 0.1".parse(), Ok(DampingPair { a: 0.01, g: 0.1 }));
        for bad in ["", "x", "0.1,", "NaN", "1,2,3"] {
            assert!(bad.parse::<DampingPair>().is_err(), "{bad}");
        }
    }
}
