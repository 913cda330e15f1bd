//! The machine's own limit: the sweep's matrix products, and nothing else, in one process or two.

use super::{SHARDS, single_threaded};
use anyhow::{Context, Result};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Stdio};
use std::time::Instant;
use tch::{Device, Kind, Tensor};

/// SmolLM2-135M: outputs and inputs of a block's layers, its blocks, and tokens of a micro-batch.
const LAYERS: [(i64, i64); 7] = [(576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (1536, 576), (576, 1536)];
const BLOCKS: usize = 30;
const TOKENS: i64 = 2048;
const F32: (Kind, Device) = (Kind::Float, Device::Cpu);

/// Returns how long so many processes take for as much as there are shards.
pub(super) fn seconds(processes: usize) -> Result<f64> {
    let units = SHARDS as usize / processes;
    let mut children = (0..processes).map(|_| start(units)).collect::<Result<Vec<_>>>()?;
    let begin = Instant::now();
    for (child, _) in &mut children {
        child.stdin.take().context("no standard input")?.write_all(b"\n")?;
    }
    for (mut child, mut said) in children {
        said.read_line(&mut String::new())?;
        child.wait()?;
    }
    Ok(begin.elapsed().as_secs_f64())
}

/// Starts a process and waits until it has its matrices.
fn start(units: usize) -> Result<(Child, impl BufRead)> {
    let mut command = single_threaded(&std::env::current_exe()?);
    let command = command.args(["products", &units.to_string()]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn()?;
    let mut said = BufReader::new(child.stdout.take().context("no standard output")?);
    said.read_line(&mut String::new())?;
    Ok((child, said))
}

/// The process: one unit is one micro-batch through every block, forward, again, backward, and the sums of its consumers.
#[expect(clippy::print_stdout, reason = "how it tells that it is ready")]
pub(super) fn multiply(units: usize) -> Result<()> {
    let random = |rows: i64, columns: i64| Tensor::f_randn([rows, columns], F32);
    let weights = (0..BLOCKS).map(|_| LAYERS.iter().map(|&(r, c)| random(r, c)).collect::<Result<Vec<_>, _>>());
    let weights = weights.collect::<Result<Vec<_>, _>>()?;
    let wide = |columns: i64| random(TOKENS, columns);
    let sides = [(192, wide(192)?), (576, wide(576)?), (1536, wide(1536)?)];
    let side = |columns: i64| sides.iter().find(|(c, _)| *c == columns).map(|(_, x)| x).context("no such side");
    println!("ready");
    std::io::stdout().flush()?;
    std::io::stdin().read_line(&mut String::new())?;
    for _ in 0..units {
        for block in &weights {
            for (weight_rc, &(r, c)) in block.iter().zip(&LAYERS) {
                for _ in 0..2 {
                    drop(side(c)?.f_mm(&weight_rc.tr())?);
                }
                drop(side(r)?.f_mm(weight_rc)?);
            }
            for x_nc in [side(576)?, side(576)?, side(1536)?, side(576)?] {
                drop(x_nc.tr().f_mm(x_nc)?);
            }
        }
    }
    println!("done");
    Ok(())
}
