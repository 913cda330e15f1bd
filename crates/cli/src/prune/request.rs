//! From flags to a run specification. Paths become absolute, so that the same command means the same run from anywhere.

use crate::args::RunArgs;
use crate::error::CliError;
use model::ModelConfig;
use proto::convert::ArtifactAddress;
use std::path::Path;
use types::{RunSpec, Target};

/// Tokens of a sample where the model allows them.
const USUAL_SEQ_LEN: u64 = 2048;

/// Returns the specification that the flags ask for, or all that is wrong with it.
pub(crate) fn spec(args: &RunArgs, config: &ModelConfig) -> Result<RunSpec, CliError> {
    unchecked(args, usual_seq_len(config))?.validated().map_err(CliError::Spec)
}

/// Returns the same without a look at what makes sense together; `usual_seq_len`: tokens of a sample if none are asked for.
pub(crate) fn unchecked(args: &RunArgs, usual_seq_len: u64) -> Result<RunSpec, CliError> {
    let target = target(args)?;
    let place = |flag, path: &String| {
        if is_artifact(path) { Ok(path.clone()) } else { absolute(flag, Path::new(path)) }
    };
    let absolute_all = |flag, paths: &[String]| paths.iter().map(|path| place(flag, path)).collect::<Result<_, _>>();
    Ok(RunSpec {
        model: absolute("MODEL", &args.model)?,
        data: absolute_all("--data", &args.data)?,
        eval_data: absolute_all("--eval-data", &args.eval_data)?,
        text_column: args.text_column.clone(),
        output: absolute("--out", &args.out)?,
        target,
        waypoints: args.target.waypoints(),
        structure: args.structure.structure,
        pattern: args.structure.pattern,
        attention_unit: args.heads,
        sub_blocks: args.sub_blocks,
        shape: args.shape(),
        scoring: args.scoring,
        update: args.update,
        max_correlate: args.max_correlate,
        curvature: args.curvature,
        kronecker_rank: args.kronecker_rank,
        half_steps: args.half_steps(),
        fisher: args.fisher,
        fisher_samples: args.fisher_samples,
        shards: args.shards,
        max_poison_fraction: args.max_poison_fraction,
        shots: args.shots(),
        rounds: args.rounds(),
        schedule: args.schedule,
        max_rise: args.max_rise,
        shot_data: args.shot_data,
        decay: args.decay,
        correct_rank: args.correct_rank,
        correct_steps: args.correct_steps,
        correct_rate: args.correct_rate,
        samples: args.samples,
        seq_len: args.seq_len.unwrap_or(usual_seq_len),
        eval_samples: args.eval_samples,
        damping_scale: args.damping_scale,
        damping_a: args.damping().a,
        damping_g: args.damping().g,
        max_damped_layers: args.max_damped_layers.unwrap_or(u32::MAX),
        multiple_of: args.multiple_of,
        format: args.format,
        gguf_type: args.gguf_type,
        seed: args.seed,
        dtype: args.dtype,
        boundary_dtype: args.boundary_dtype.unwrap_or(args.dtype),
        memory: args.memory,
        keep_paths: args.keep_paths,
        paths_of: None,
    })
}

/// Returns the size to reach.
pub(super) fn target(args: &RunArgs) -> Result<Target, CliError> {
    let advice = "give one of --target-size 0.8, --target-params 110M and --target-bytes 250MiB";
    args.target().ok_or_else(|| CliError::Usage(format!("no target: {advice}")))
}

/// Returns 2048, or what the model takes if that is less.
pub(crate) fn usual_seq_len(config: &ModelConfig) -> u64 {
    let positions = u64::try_from(config.max_positions).unwrap_or(USUAL_SEQ_LEN);
    let window = config.sliding_window.and_then(|w| u64::try_from(w).ok()).unwrap_or(USUAL_SEQ_LEN);
    USUAL_SEQ_LEN.min(positions).min(window)
}

/// Says whether data is an artifact of the coordinator's store, and no path.
pub(crate) fn is_artifact(path: &str) -> bool {
    !matches!(ArtifactAddress::parse("data", path), Ok(None))
}

/// Returns a path as the run's record has it.
pub(crate) fn absolute(flag: &'static str, path: &Path) -> Result<String, CliError> {
    let given = path.display();
    let absolute = std::path::absolute(path).map_err(|e| CliError::Usage(format!("{flag} '{given}': {e}")))?;
    let clean = absolute.components().collect::<std::path::PathBuf>(); // without a trailing slash
    clean.into_os_string().into_string().map_err(|_| {
        CliError::Usage(format!(
            "{flag} '{given}': the path is not valid UTF-8, which the run's record needs; rename it"
        ))
    })
}
