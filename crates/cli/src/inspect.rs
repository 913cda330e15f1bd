//! `inspect`: what is in a model folder, and what a target would leave of it. Reads no weights into tensors.

mod render;

use crate::args::InspectArgs;
use crate::error::CliError;
use crate::output::{print, print_json};
use crate::sizes::{Widths, check_target, uniform_widths};
use model::{ModelFolder, units};
use serde::Serialize;
use std::collections::BTreeSet;
use types::{ModelDescription, Sizes, Structure, Target};

/// What is in a folder.
#[derive(Debug, Serialize)]
struct Inspection {
    model: String,
    #[serde(flatten)]
    description: ModelDescription,
    heads: i64,
    kv_heads: i64,
    head_dim: i64,
    ffn: i64,
    /// Whether single blocks are narrower than these.
    own_widths: bool,
    /// Number formats of the tensors, as they are stored.
    dtypes: Vec<String>,
    /// Whether the head is the embedding.
    tied: bool,
    structure: Structure,
    multiple_of: u32,
    /// The smallest model that the units can leave; `None` for rows and columns, which leave tensors as large as they are.
    smallest: Option<Sizes>,
    /// What the target leaves.
    left: Option<Left>,
}

/// What a target leaves.
#[derive(Debug, Serialize)]
struct Left {
    target: Target,
    /// The largest allowed size, in the target's measure.
    limit: u64,
    /// Pairs of widths that meet it, the same in all blocks.
    uniform: Vec<Widths>,
}

/// Shows a folder.
pub(crate) fn run(args: &InspectArgs) -> Result<(), CliError> {
    let folder = ModelFolder::open(&args.model)?;
    let inspection = inspect(args, &folder)?;
    if args.json { print_json(&inspection) } else { print(&inspection.render()) }
}

fn inspect(args: &InspectArgs, folder: &ModelFolder) -> Result<Inspection, CliError> {
    let description = units::describe(folder, args.structure.structure, args.heads)?;
    let target = args.target.target(args.structure.pattern);
    target.map_or(Ok(()), |target| check(args, &description, target))?;
    let left = target.map(|target| Left {
        target,
        limit: target.limit(&description.dense),
        uniform: match args.structure.structure {
            Structure::Coupled if folder.config().own_widths.is_empty() => {
                uniform_widths(&description, target, args.multiple_of)
            }
            Structure::Coupled | Structure::RowColumn | Structure::Element | Structure::NofM => Vec::new(),
        },
    });
    let config = folder.config();
    let dtypes: BTreeSet<_> = folder.tensors().iter().map(|t| format!("{:?}", t.kind)).collect();
    Ok(Inspection {
        model: folder.path().display().to_string(),
        heads: config.heads,
        kv_heads: config.kv_heads,
        head_dim: config.head_dim,
        ffn: config.ffn,
        own_widths: !config.own_widths.is_empty(),
        dtypes: dtypes.into_iter().map(|kind| dtype_name(&kind).to_owned()).collect(),
        tied: config.tied,
        structure: args.structure.structure,
        multiple_of: args.multiple_of,
        smallest: (args.structure.structure == Structure::Coupled).then(|| description.smallest(args.multiple_of)),
        left,
        description,
    })
}

/// Refuses targets that `prune` would refuse.
fn check(args: &InspectArgs, description: &ModelDescription, target: Target) -> Result<(), CliError> {
    if let Target::Size(fraction) = target
        && !(fraction > 0.0 && fraction <= 1.0)
    {
        let problem = "is outside (0, 1]; 0.8 keeps 80 % of the prunable weights";
        return Err(CliError::Usage(format!("--target-size {fraction} {problem}")));
    }
    match (args.structure.structure, target) {
        (Structure::Coupled, _) => check_target(description, target, args.multiple_of),
        (_, Target::Size(fraction)) => match args.structure.pattern {
            Some(pattern) if fraction < pattern.share() => Err(CliError::Usage(format!(
                "--target-size {fraction} is below what {pattern} leaves, {}; ask for that or more",
                pattern.share()
            ))),
            _ => Ok(()),
        },
        (structure, _) => Err(CliError::Usage(format!(
            "{structure} keeps tensors as large as they are, so parameters and bytes stay the same; give --target-size"
        ))),
    }
}

fn dtype_name(kind: &str) -> &str {
    match kind {
        "Float" => "f32",
        "BFloat16" => "bf16",
        "Half" => "f16",
        other => other,
    }
}
