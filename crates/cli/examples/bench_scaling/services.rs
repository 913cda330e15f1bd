//! A run as services do it: a coordinator, a surgeon that scores meanwhile, and calibrators.

use super::running::{Running, wait};
use super::{Bench, SAMPLES, SEQ_LEN, SHARDS};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Stdio};

/// Returns how long so many calibrators take, from the opening of a shot to the last shard's record.
pub(super) fn seconds(bench: &Bench, calibrators: usize, surgeon_nice: u8) -> Result<f64> {
    let folder = tempfile::tempdir()?;
    let mut running = vec![start(bench, folder.path(), "coordinator", 0)?];
    running.push(start(bench, folder.path(), "surgeon-0", surgeon_nice)?);
    for number in 0..calibrators {
        running.push(start(bench, folder.path(), &format!("calibrator-{number}"), 0)?);
    }
    let workers = || Ok::<_, anyhow::Error>(ask(bench, folder.path(), &["workers", "--json"])?.lines().count());
    wait("the workers", &mut running, || Ok((workers()? > calibrators).then_some(())))?;
    let (samples, seq_len, shards) = (SAMPLES.to_string(), SEQ_LEN.to_string(), SHARDS.to_string());
    let out = folder.path().join("out").display().to_string();
    let submit = ["submit", &bench.model, "--data", &bench.text, "--target-size", "0.8", "--out", &out];
    let of_shot = ["--samples", &samples, "--seq-len", &seq_len, "--shards", &shards];
    ask(bench, folder.path(), &[&submit[..], &of_shot[..]].concat())?;
    wait("the sweep", &mut running, || sweep_of(&folder.path().join("store/runs")))
}

fn endpoint(folder: &Path, name: &str) -> String {
    format!("unix://{}/{name}.sock", folder.display())
}

fn start(bench: &Bench, folder: &Path, name: &str, nice: u8) -> Result<Running> {
    let program = name.split('-').next().unwrap_or(name);
    let plain = bench.program(program);
    let mut command = Command::new("nice");
    command.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.arg("-n").arg(nice.to_string()).arg(plain.get_program()).arg("--store").arg(folder.join("store"));
    command.args(["--listen", &endpoint(folder, name)]);
    if program != "coordinator" {
        let coordinator = endpoint(folder, "coordinator");
        command.args(["--coordinator", &coordinator, "--worker", name, "--device", "cpu", "--threads", "1"]);
        command.args(["--advertise", &endpoint(folder, name)]);
    }
    Running::start(command, folder)
}

fn ask(bench: &Bench, folder: &Path, words: &[&str]) -> Result<String> {
    let mut command = bench.program("llm-surgeon");
    command.args(words).args(["--coordinator", &endpoint(folder, "coordinator")]).stdin(Stdio::null());
    let answer = command.output().context("llm-surgeon")?;
    let problem = String::from_utf8_lossy(&answer.stderr);
    ensure!(answer.status.success() || words.contains(&"--json"), "llm-surgeon {}: {problem}", words.join(" "));
    Ok(String::from_utf8(answer.stdout)?)
}

/// Returns from the only run's journal how many seconds its first shot was swept for, once it is.
fn sweep_of(runs: &Path) -> Result<Option<f64>> {
    let Some(run) = std::fs::read_dir(runs).ok().and_then(|mut runs| runs.next()) else { return Ok(None) };
    let Ok(records) = std::fs::read_dir(run?.path().join("journal")) else { return Ok(None) };
    let (mut opened, mut swept) = (None, Vec::new());
    for record in records {
        let path = record?.path();
        // The store writes under another name first.
        if !path.file_name().is_some_and(|name| name.as_encoded_bytes().iter().all(u8::is_ascii_digit)) {
            continue;
        }
        let envelope: Value = serde_json::from_slice(&std::fs::read(&path)?)?;
        let time = envelope["record"]["time_ms"].as_u64().context("a record without a time")?;
        match envelope["record"]["event"].as_str() {
            Some("shot-opened") => opened = Some(time),
            Some("shard-calibrated") => swept.push(time),
            Some("failed") => anyhow::bail!("the run failed: {envelope}"),
            _ => {}
        }
    }
    let last = swept.iter().max().filter(|_| swept.len() == SHARDS as usize);
    Ok(opened.zip(last).map(|(opened, &last)| (last - opened) as f64 / 1000.0))
}
