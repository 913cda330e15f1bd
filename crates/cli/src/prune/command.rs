//! From a run specification back to the command line that asks for it: the inverse of [`super::request`].

use super::request;
use crate::args::{Cli, Command, PruneArgs};
use crate::text::shell_word;
use clap::Parser as _;
use types::{RunSpec, Target};

/// A flag of `prune` and its value under a specification; "" where it is left out.
type Flag = (&'static str, fn(&RunSpec) -> String);

/// A flag without a value, and whether it is there.
type Switch = (&'static str, fn(&RunSpec) -> bool);

const SWITCHES: [Switch; 2] = [("--sub-blocks", |s| s.sub_blocks), ("--keep-paths", |s| s.keep_paths)];

/// Flags whose default is the same whatever else is asked for.
const FLAGS: [Flag; 28] = [
    ("--text-column", |s| s.text_column.clone()),
    ("--samples", |s| s.samples.to_string()),
    ("--shards", |s| s.shards.to_string()),
    ("--max-poison-fraction", |s| s.max_poison_fraction.to_string()),
    ("--eval-samples", |s| s.eval_samples.to_string()),
    ("--structure", RunSpec::structure_name),
    ("--heads", |s| s.attention_unit.to_string()),
    ("--multiple-of", |s| s.multiple_of.to_string()),
    ("--scoring", |s| s.scoring.to_string()),
    ("--update", |s| s.update.to_string()),
    ("--max-correlate", |s| s.max_correlate.to_string()),
    ("--curvature", |s| s.curvature.to_string()),
    ("--kronecker-rank", |s| s.kronecker_rank.to_string()),
    ("--fisher", |s| s.fisher.to_string()),
    ("--fisher-samples", |s| s.fisher_samples.to_string()),
    ("--damping-scale", |s| s.damping_scale.to_string()),
    ("--schedule", |s| s.schedule.to_string()),
    ("--max-rise", |s| s.max_rise.to_string()),
    ("--shot-data", |s| s.shot_data.to_string()),
    ("--decay", |s| s.decay.to_string()),
    ("--correct-rank", |s| s.correct_rank.to_string()),
    ("--correct-steps", |s| s.correct_steps.to_string()),
    ("--correct-rate", |s| s.correct_rate.to_string()),
    ("--seed", |s| s.seed.to_string()),
    ("--dtype", |s| s.dtype.to_string()),
    ("--format", |s| s.format.to_string()),
    ("--gguf-type", |s| s.gguf_type.to_string()),
    ("--memory", |s| s.memory.to_string()),
];

/// Flags whose default follows from others.
const FOLLOWING: [Flag; 7] = [
    ("--shape", |s| s.shape.to_string()),
    ("--shots", |s| s.shots.to_string()),
    ("--rounds", |s| s.rounds.to_string()),
    ("--half-steps", |s| s.half_steps.to_string()),
    ("--damping", |s| format!("{},{}", s.damping_a, s.damping_g)),
    ("--max-damped-layers", |s| match s.max_damped_layers {
        u32::MAX => String::new(),
        layers => layers.to_string(),
    }),
    ("--boundary-dtype", |s| s.boundary_dtype.to_string()),
];

/// Returns the command line that asks for this run, for a POSIX shell: what differs from the defaults and nothing else.
/// `state`: the state folder of the run.
pub(crate) fn command(spec: &RunSpec, state: &str) -> String {
    let words = match &spec.paths_of {
        Some(run) => {
            let mut words = vec!["llm-surgeon".to_owned(), "materialise".to_owned(), state.to_owned()];
            words.extend(target(spec));
            // What the kept run was written as is not known here.
            words.extend(["--format".to_owned(), spec.format.to_string()]);
            words.extend(["--gguf-type".to_owned(), spec.gguf_type.to_string()]);
            words.extend(["--run".to_owned(), run.to_string(), "--out".to_owned(), spec.output.clone()]);
            words
        }
        None => prune_words(spec, state),
    };
    words.iter().map(|word| shell_word(word)).collect::<Vec<_>>().join(" ")
}

fn prune_words(spec: &RunSpec, state: &str) -> Vec<String> {
    let mut words = vec!["llm-surgeon".to_owned(), "prune".to_owned(), spec.model.clone()];
    words.extend(spec.data.iter().flat_map(|path| ["--data".to_owned(), path.clone()]));
    words.extend(spec.eval_data.iter().flat_map(|path| ["--eval-data".to_owned(), path.clone()]));
    // The default depends on the model, which need not be there any more.
    words.extend(["--seq-len".to_owned(), spec.seq_len.to_string()]);
    words.extend(target(spec));
    words.extend(["--out".to_owned(), spec.output.clone()]);
    if state != format!("{}.state", spec.output) {
        words.extend(["--state".to_owned(), state.to_owned()]);
    }
    words.extend(SWITCHES.iter().filter(|(_, on)| on(spec)).map(|(flag, _)| (*flag).to_owned()));
    for flags in [&FLAGS[..], &FOLLOWING] {
        let usual = parsed(&words).and_then(|args| request::unchecked(&args.run, spec.seq_len).ok());
        for (flag, value) in flags {
            let asked = value(spec);
            // Where the words cannot be read back, every flag is told.
            if !asked.is_empty() && usual.as_ref().map(value).as_ref() != Some(&asked) {
                words.extend(word_or_pair(flag, asked));
            }
        }
    }
    words
}

fn word_or_pair(flag: &str, value: String) -> Vec<String> {
    if value.starts_with('-') { vec![format!("{flag}={value}")] } else { vec![flag.to_owned(), value] }
}

fn target(spec: &RunSpec) -> [String; 2] {
    let (flag, value) = match spec.target {
        Target::Size(size) if spec.waypoints.is_empty() => ("--target-size", size.to_string()),
        Target::Size(size) => {
            let sizes = spec.waypoints.iter().chain([&size]).map(f64::to_string);
            ("--targets", sizes.collect::<Vec<_>>().join(","))
        }
        Target::Parameters(count) => ("--target-params", count.to_string()),
        Target::Bytes(bytes) => ("--target-bytes", bytes.to_string()),
    };
    [flag.to_owned(), value]
}

fn parsed(words: &[String]) -> Option<PruneArgs> {
    match Cli::try_parse_from(words).ok()?.command {
        Command::Prune(args) => Some(args),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;
    use types::{
        Curvature, DampingScale, Dtype, Fisher, Format, GgufType, Pattern, RunId, Schedule, Scoring, Shape, Structure,
        Update,
    };

    fn plain() -> RunSpec {
        RunSpec::new("/m", "/d", "/out/small", Target::Size(0.8))
    }

    fn specs() -> Vec<RunSpec> {
        let masked = RunSpec { shape: Shape::PerLayer, damping_g: 10.0, rounds: 4, ..plain() };
        vec![
            plain(),
            RunSpec {
                data: vec!["/a b/*.txt".into(), "/it's".into()],
                eval_data: vec!["/e".into()],
                target: Target::Bytes(123_456_789),
                schedule: Schedule::Adaptive,
                shots: 7,
                max_rise: 0.015,
                dtype: Dtype::Bf16,
                boundary_dtype: Dtype::F32,
                max_damped_layers: 3,
                text_column: "-x".into(),
                ..plain()
            },
            RunSpec { waypoints: vec![0.95, 0.9], shots: 3, shape: Shape::PerLayer, sub_blocks: true, ..plain() },
            RunSpec { structure: Structure::NofM, pattern: Pattern::new(2, 4).ok(), ..masked.clone() },
            RunSpec { structure: Structure::Element, update: Update::Grouped, max_correlate: 9, rounds: 1, ..masked },
            RunSpec {
                structure: Structure::RowColumn,
                shape: Shape::PerLayer,
                shots: 1,
                damping_scale: DampingScale::Mean,
                damping_a: 0.5,
                damping_g: 0.25,
                decay: 1.0,
                correct_rank: 8,
                correct_steps: 5,
                correct_rate: 0.000_25,
                ..plain()
            },
            RunSpec {
                kronecker_rank: 2,
                half_steps: 3,
                scoring: Scoring::Independent,
                fisher: Fisher::Sampled,
                fisher_samples: 2,
                shards: 4,
                max_poison_fraction: 0.25,
                target: Target::Parameters(1_000_000),
                ..plain()
            },
            RunSpec { curvature: Curvature::Identity, update: Update::None, keep_paths: true, seed: 5, ..plain() },
            RunSpec { shape: Shape::Auto, format: Format::Both, gguf_type: GgufType::Q8, ..plain() },
        ]
    }

    /// Returns the words that a shell makes of a line.
    fn split(line: &str) -> Vec<String> {
        let (mut words, mut quoted, mut escaped) = (vec![String::new()], false, false);
        for c in line.chars() {
            match c {
                _ if escaped => {
                    words.last_mut().unwrap().push(c);
                    escaped = false;
                }
                '\'' => quoted = !quoted,
                '\\' if !quoted => escaped = true,
                ' ' if !quoted => words.push(String::new()),
                _ => words.last_mut().unwrap().push(c),
            }
        }
        words
    }

    #[test]
    fn the_command_asks_for_the_same_run() {
        for spec in specs() {
            let spec = spec.validated().unwrap();
            for state in ["/out/small.state", "/elsewhere"] {
                let line = command(&spec, state);
                let args = parsed(&split(&line)).unwrap_or_else(|| panic!("{line}"));
                assert_eq!(request::unchecked(&args.run, 1).unwrap(), spec, "{line}");
                assert_eq!(args.state().to_str(), Some(state));
            }
        }
    }

    #[test]
    fn what_is_usual_is_not_told() {
        let line = "llm-surgeon prune /m --data /d --seq-len 512 --target-size 0.8 --out /out/small";
        assert_eq!(command(&plain(), "/out/small.state"), line);
        let cut = RunSpec { paths_of: RunId::new("r-1").ok(), ..plain() };
        let line =
            "llm-surgeon materialise /s --target-size 0.8 --format hf --gguf-type auto --run r-1 --out /out/small";
        assert_eq!(command(&cut, "/s"), line);
    }

    #[test]
    fn every_flag_that_can_change_a_number_is_told() {
        let cli = Cli::command();
        let prune = cli.find_subcommand("prune").unwrap();
        let valued = FLAGS.iter().chain(&FOLLOWING).map(|(flag, _)| *flag);
        let known: Vec<&str> = valued.chain(SWITCHES.map(|(flag, _)| flag)).collect();
        let others = ["data", "eval-data", "seq-len", "target-size", "targets", "target-params", "target-bytes", "out"];
        let no_number = ["state", "device", "threads", "weights", "quiet", "json", "help", "version"];
        for flag in prune.get_arguments().filter_map(clap::Arg::get_long) {
            let told = known.contains(&format!("--{flag}").as_str()) || others.contains(&flag);
            assert!(told != no_number.contains(&flag), "--{flag}");
        }
    }
}
