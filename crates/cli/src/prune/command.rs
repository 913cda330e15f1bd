//! From a run specification back to the command line that asks for it: the inverse of [`super::request`].

use super::request;
use crate::args::{Cli, Command, PruneArgs};
use crate::text::shell_word;
use clap::Parser as _;
use types::{RunSpec, Target};

/// A flag of `prune` and what it says under a specification; `None` where it is left out. A flag without a value says "".
type Flag = (&'static str, fn(&RunSpec) -> Option<String>);

fn said(value: impl ToString) -> Option<String> {
    Some(value.to_string())
}

fn switch(on: bool) -> Option<String> {
    on.then(String::new)
}

/// Flags whose default is the same whatever else is asked for.
const FLAGS: [Flag; 26] = [
    ("--text-column", |s| said(&s.text_column)),
    ("--samples", |s| said(s.samples)),
    ("--eval-samples", |s| said(s.eval_samples)),
    ("--structure", |s| s.pattern.map_or_else(|| said(s.structure), said)),
    ("--heads", |s| said(s.attention_unit)),
    ("--sub-blocks", |s| switch(s.sub_blocks)),
    ("--multiple-of", |s| said(s.multiple_of)),
    ("--scoring", |s| said(s.scoring)),
    ("--update", |s| said(s.update)),
    ("--max-correlate", |s| said(s.max_correlate)),
    ("--curvature", |s| said(s.curvature)),
    ("--kronecker-rank", |s| said(s.kronecker_rank)),
    ("--fisher", |s| said(s.fisher)),
    ("--fisher-samples", |s| said(s.fisher_samples)),
    ("--damping-scale", |s| said(s.damping_scale)),
    ("--schedule", |s| said(s.schedule)),
    ("--max-rise", |s| said(s.max_rise)),
    ("--shot-data", |s| said(s.shot_data)),
    ("--decay", |s| said(s.decay)),
    ("--correct-rank", |s| said(s.correct_rank)),
    ("--correct-steps", |s| said(s.correct_steps)),
    ("--correct-rate", |s| said(s.correct_rate)),
    ("--seed", |s| said(s.seed)),
    ("--dtype", |s| said(s.dtype)),
    ("--memory", |s| said(s.memory)),
    ("--keep-paths", |s| switch(s.keep_paths)),
];

/// Flags whose default follows from others.
const FOLLOWING: [Flag; 7] = [
    ("--shape", |s| said(s.shape)),
    ("--shots", |s| said(s.shots)),
    ("--rounds", |s| said(s.rounds)),
    ("--half-steps", |s| said(s.half_steps)),
    ("--damping", |s| said(format_args!("{},{}", s.damping_a, s.damping_g))),
    ("--max-damped-layers", |s| (s.max_damped_layers < u32::MAX).then(|| s.max_damped_layers.to_string())),
    ("--boundary-dtype", |s| said(s.boundary_dtype)),
];

/// Returns the command line that asks for this run, for a POSIX shell: what differs from the defaults and nothing else.
/// `state`: the state folder of the run.
pub(crate) fn command(spec: &RunSpec, state: &str) -> String {
    let words = match &spec.paths_of {
        Some(run) => {
            let mut words = vec!["llm-surgeon".to_owned(), "materialise".to_owned(), state.to_owned()];
            words.extend(target(spec));
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
    for flags in [&FLAGS[..], &FOLLOWING] {
        let usual = parsed(&words).and_then(|args| request::unchecked(&args, spec.seq_len).ok());
        for (flag, value) in flags {
            // Where the words cannot be read back, every flag is told.
            let asked = value(spec).filter(|asked| usual.as_ref().and_then(value).as_ref() != Some(asked));
            words.extend(asked.map(|value| word_or_pair(flag, value)).unwrap_or_default());
        }
    }
    words
}

fn word_or_pair(flag: &str, value: String) -> Vec<String> {
    match value.as_str() {
        "" => vec![flag.to_owned()],
        negative if negative.starts_with('-') => vec![format!("{flag}={negative}")],
        _ => vec![flag.to_owned(), value],
    }
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
    use types::{Curvature, DampingScale, Dtype, Fisher, Pattern, RunId, Schedule, Scoring, Shape, Structure, Update};

    fn plain() -> RunSpec {
        RunSpec::new("/m", "/d", "/out/small", Target::Size(0.8))
    }

    fn specs() -> Vec<RunSpec> {
        let masked = RunSpec { shape: Shape::PerLayer, damping_g: 0.1, rounds: 4, ..plain() };
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
                target: Target::Parameters(1_000_000),
                ..plain()
            },
            RunSpec { curvature: Curvature::Identity, update: Update::None, keep_paths: true, seed: 5, ..plain() },
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
                assert_eq!(request::unchecked(&args, 1).unwrap(), spec, "{line}");
                assert_eq!(args.state().to_str(), Some(state));
            }
        }
    }

    #[test]
    fn what_is_usual_is_not_told() {
        let line = "llm-surgeon prune /m --data /d --seq-len 512 --target-size 0.8 --out /out/small";
        assert_eq!(command(&plain(), "/out/small.state"), line);
        let cut = RunSpec { paths_of: RunId::new("r-1").ok(), ..plain() };
        let line = "llm-surgeon materialise /s --target-size 0.8 --run r-1 --out /out/small";
        assert_eq!(command(&cut, "/s"), line);
    }

    #[test]
    fn every_flag_that_can_change_a_number_is_told() {
        let cli = Cli::command();
        let prune = cli.find_subcommand("prune").unwrap();
        let known: Vec<&str> = FLAGS.iter().chain(&FOLLOWING).map(|(flag, _)| *flag).collect();
        let others = ["data", "eval-data", "seq-len", "target-size", "targets", "target-params", "target-bytes", "out"];
        let no_number = ["state", "device", "threads", "quiet", "json", "help", "version"];
        for flag in prune.get_arguments().filter_map(clap::Arg::get_long) {
            let told = known.contains(&format!("--{flag}").as_str()) || others.contains(&flag);
            assert!(told != no_number.contains(&flag), "--{flag}");
        }
    }
}
