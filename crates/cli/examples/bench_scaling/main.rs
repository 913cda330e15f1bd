//! How much sooner two calibrators are done than one, on a machine of two cores and one thread each process: of a run as services
//! do it, of the sweep alone, and of bare matrix products of the sweep's sizes, which no program of ours can beat.
//!
//! `bench_scaling MODEL TEXT PROGRAMS [ROUNDS] [PARTS]`: PROGRAMS is the folder of coordinator, calibrator, surgeon and
//! llm-surgeon; PARTS some of `products,sweep,services`. It starts itself for the products (`bench_scaling products UNITS`).

mod products;
mod running;
mod services;
mod sweep;

use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use types::{RunSpec, Target};

const SAMPLES: u64 = 8;
const SEQ_LEN: u64 = 512;
const SHARDS: u32 = 2;
const ROUNDS: usize = 3;

/// What is swept, and by which programs.
#[derive(Debug, Clone)]
struct Bench {
    model: String,
    text: String,
    programs: PathBuf,
}

impl Bench {
    fn spec(&self) -> RunSpec {
        let spec = RunSpec::new(&self.model, &self.text, "", Target::Size(0.8));
        RunSpec { samples: SAMPLES, seq_len: SEQ_LEN, shards: SHARDS, ..spec }
    }

    /// Returns a program that computes on one thread.
    fn program(&self, name: &str) -> std::process::Command {
        single_threaded(&self.programs.join(name))
    }
}

fn single_threaded(program: &Path) -> std::process::Command {
    let mut command = std::process::Command::new(program);
    command.envs(["OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"].map(|name| (name, "1")));
    command
}

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let (bench, rest) = match words.as_slice() {
        ["products", units] => return products::multiply(units.parse()?),
        [model, text, programs, rest @ ..] => {
            let absolute = |path: &str| std::fs::canonicalize(path).with_context(|| path.to_owned());
            let name = |path: &str| Ok::<_, anyhow::Error>(absolute(path)?.display().to_string());
            (Bench { model: name(model)?, text: name(text)?, programs: absolute(programs)? }, rest)
        }
        _ => bail!("usage: bench_scaling MODEL TEXT PROGRAMS [ROUNDS] [PARTS]"),
    };
    let rounds = rest.first().map_or(Ok(ROUNDS), |rounds| rounds.parse())?;
    let parts = rest.get(1).copied().unwrap_or("products,sweep,services");
    head(rounds);
    for part in parts.split(',') {
        match part {
            "products" => row("bare matrix products of the sweep's sizes", rounds, products::seconds)?,
            "sweep" => row("the sweep alone, its factors thrown away", rounds, |count| sweep::seconds(&bench, count))?,
            "services" => {
                row("coordinator and surgeon beside it", rounds, |count| services::seconds(&bench, count, 0))?;
                row("the same, the surgeon under `nice -n 19`", rounds, |count| services::seconds(&bench, count, 19))?;
            }
            other => bail!("unknown part '{other}'"),
        }
    }
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the figures")]
fn head(rounds: usize) {
    println!("{SAMPLES} x {SEQ_LEN} tokens in {SHARDS} shards, one thread a process; medians of {rounds} in turns");
    println!("| what | one process, s | two, s | ratio | ratios of all turns |");
    println!("|---|---|---|---|---|");
}

/// Measures with one and with two processes, in turns, so that what else the machine does falls on both alike.
#[expect(clippy::print_stdout, reason = "the figures")]
fn row(name: &str, rounds: usize, seconds: impl Fn(usize) -> Result<f64>) -> Result<()> {
    let turns = (0..rounds).map(|_| Ok((seconds(1)?, seconds(2)?))).collect::<Result<Vec<_>>>()?;
    let median = |of: fn(&(f64, f64)) -> f64| {
        let mut numbers: Vec<f64> = turns.iter().map(of).collect();
        numbers.sort_by(f64::total_cmp);
        numbers[numbers.len() / 2]
    };
    let all: Vec<String> = turns.iter().map(|(one, two)| format!("{:.2}", one / two)).collect();
    let (one, two, ratio) = (median(|t| t.0), median(|t| t.1), median(|t| t.0 / t.1));
    println!("| {name} | {one:.1} | {two:.1} | x {ratio:.2} | {} |", all.join(", "));
    Ok(())
}
