//! `plan`: what a run would take on given machines. Reads config.json alone; the formulas are in [`planning::forecast`].

use crate::args::PlanArgs;
use crate::error::CliError;
use crate::output::{print, print_json};
use crate::text::{Align, Table, plural, rough_duration, short_count};
use model::{Family, ModelConfig};
use planning::forecast::{Forecast, Machines, Request, Sites, TOLERANCE, Widths, forecast};
use serde::Serialize;
use types::{Structure, format_bytes};

/// A forecast, as programs read it.
#[derive(Debug, Serialize)]
struct Told {
    model: String,
    #[serde(flatten)]
    forecast: Forecast,
    /// Bytes that a device lacks; 0 if the run fits.
    lacking_bytes: u64,
}

/// Shows what a run would take.
pub(crate) fn run(args: &PlanArgs) -> Result<(), CliError> {
    for (flag, rate) in [("--flops", args.flops), ("--network", args.network)] {
        if !rate.is_finite() || rate <= 0.0 {
            return Err(CliError::Usage(format!("{flag} {rate}: a rate is above 0")));
        }
    }
    let path = if args.model.is_dir() { args.model.join("config.json") } else { args.model.clone() };
    let config = ModelConfig::read(&path)?;
    let request = Request {
        sites: if args.structure.structure == Structure::Coupled { Sites::Consumers } else { Sites::All },
        samples: args.samples,
        seq_len: args.seq_len,
        shots: args.shots,
        eval_samples: args.eval_samples,
        dtype_bytes: args.dtype.bytes(),
        memory: args.memory,
    };
    let machines =
        Machines { workers: args.gpus, memory: args.gpu_memory, flops: args.flops, network: args.network / 8.0 };
    let found = forecast(&widths(&config), &request, &machines);
    if args.json {
        let lacking_bytes = found.lacking(&machines).unwrap_or(0);
        return print_json(&Told { model: args.model.display().to_string(), forecast: found, lacking_bytes });
    }
    print(&render(args, &found, &machines))
}

fn widths(config: &ModelConfig) -> Widths {
    let number = |n: i64| n.unsigned_abs(); // a config's numbers are above 0
    Widths {
        blocks: config.blocks.into(),
        hidden: number(config.hidden),
        ffn: number(config.ffn),
        gated: config.family != Family::Opt,
        heads: number(config.heads),
        kv_heads: number(config.kv_heads),
        head_dim: number(config.head_dim),
        vocabulary: number(config.vocab),
        tied: config.tied,
    }
}

fn render(args: &PlanArgs, found: &Forecast, machines: &Machines) -> String {
    let mut table = Table::new(&[Align::Left, Align::Right, Align::Left]);
    let mut row = |what: &str, figure: String, note: String| table.row([what.to_owned(), figure, note]);
    row("parameters", short_count(found.parameters), format!("{} of them prunable", short_count(found.prunable)));
    row(
        "a shot",
        String::new(),
        format!("{} samples of {} tokens, {} shards", args.samples, args.seq_len, found.shards),
    );
    row("  sweep", rough_duration(found.sweep_seconds_a_shot), format!("{:.3e} operations", found.sweep_flops_a_shot));
    let factors = format_bytes(found.factor_bytes_a_shard);
    row(
        "  factors",
        rough_duration(found.network_seconds_a_shot),
        format!("{factors} a shard, {} in all, on their way meanwhile", format_bytes(found.traffic_bytes_a_shot)),
    );
    row("  removal paths", rough_duration(found.score_seconds_a_shot), "mostly meanwhile".to_owned());
    row("  held-out loss", rough_duration(found.evaluate_seconds_a_shot), format!("{} segments", args.eval_samples));
    row(
        "the run",
        rough_duration(found.total_seconds),
        format!("{}, within a factor of {TOLERANCE}", plural(args.shots, "shot")),
    );
    row(
        "calibrator memory",
        format_bytes(found.calibrator_bytes),
        format!("{} of it weights", format_bytes(found.weight_bytes)),
    );
    row("reading the weights", rough_duration(found.load_seconds), "each calibrator, before its first task".to_owned());
    row("surgeon memory", format_bytes(found.surgeon_bytes), "one block's factors".to_owned());
    let held = if found.shards > 1 { "at most: sums so far, shards before their turn" } else { "factors of the shard" };
    row("store, while a shot lasts", format_bytes(found.store_bytes_a_shot), held.to_owned());
    let verdict = match found.lacking(machines) {
        None => format!("fits {} of {} each\n", args.gpus, format_bytes(machines.memory)),
        Some(bytes) => format!(
            "does not fit: a device of {} lacks {}; take a larger one, a smaller --memory or --dtype, or fewer --seq-len\n",
            format_bytes(machines.memory),
            format_bytes(bytes)
        ),
    };
    format!("{}\n{verdict}", table.render(0))
}
