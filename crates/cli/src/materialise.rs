//! `materialise`: a run that begins with the kept shots of an earlier one and ends at another size.

use crate::args::MaterialiseArgs;
use crate::error::CliError;
use crate::local::Client;
use crate::prune::{Call, absolute, launch, newest_run, only_paths, output_parent, start_display, state_folder};
use proto::v1;
use std::path::Path;
use types::{RunId, RunSpec, Target};

/// Cuts another size.
pub(crate) fn run(args: &MaterialiseArgs) -> Result<(), CliError> {
    let display = start_display(args.quiet)?;
    let state = absolute("STATE", &args.state)?;
    state_folder(&args.state)?;
    only_paths([("--out", &*args.out.to_string_lossy())])?;
    let output = absolute("--out", &args.out)?;
    let target = target(args)?;
    args.machine.device.open()?;
    output_parent(Path::new(&output))?;
    let call = Call { machine: args.machine, json: args.json, quiet: args.quiet };
    launch(call, Path::new(&state), display, async |client: &Client| {
        let (id, kept) = kept_run(client, args).await?;
        let ends = RunSpec {
            target,
            waypoints: vec![],
            output,
            format: args.format.unwrap_or(kept.format),
            gguf_type: args.gguf_type.unwrap_or(kept.gguf_type),
            keep_paths: false,
            paths_of: Some(id),
            ..kept
        };
        ends.validated().map_err(CliError::Spec)
    })
}

/// Returns the size to reach.
fn target(args: &MaterialiseArgs) -> Result<Target, CliError> {
    let advice = "give one of --target-size 0.75, --target-params 110M and --target-bytes 250MiB";
    if !args.target.waypoints().is_empty() {
        return Err(CliError::Usage(format!("materialise cuts one size at a time: {advice}, and call it again")));
    }
    args.target.target(None).ok_or_else(|| CliError::Usage(format!("no target: {advice}")))
}

/// Returns the name and the spec of the run whose paths are cut.
async fn kept_run(client: &Client, args: &MaterialiseArgs) -> Result<(RunId, RunSpec), CliError> {
    let wanted = |run: &v1::Run| match &args.run {
        Some(name) => run.name.strip_prefix("runs/") == Some(name),
        None => run.spec.as_ref().is_some_and(|spec| spec.keep_paths) && run.shots_done > 0,
    };
    let folder = args.state.display();
    let found = newest_run(client, wanted).await?.ok_or_else(|| {
        CliError::Usage(match &args.run {
            Some(name) => format!("'{folder}' has no run {name}"),
            None => format!("no run in '{folder}' kept its paths; prune with --keep-paths, then cut other sizes"),
        })
    })?;
    let unreadable = |e: proto::InvalidMessage| CliError::Unreadable(e.to_string());
    let id = proto::convert::run_of_name("name", &found.name).map_err(unreadable)?;
    let spec = proto::convert::required("spec", found.spec).map_err(unreadable)?.try_into().map_err(unreadable)?;
    Ok((id, spec))
}
