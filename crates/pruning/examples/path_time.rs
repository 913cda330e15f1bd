//! Prints how long a layer's path and update take, and how its Cholesky stage compares with plain matrix products of the
//! same operations: `cargo run --release -p pruning --example path_time [C] [R]`.
#![allow(clippy::print_stdout)]

use curvature::{BlockFactors, Damping, Side, factorise};
use pruning::{LayerProblem, Units, coupled_path, coupled_update, row_column_path, row_column_update};
use std::time::Instant;
use tch::{Device, Kind, Tensor};
use types::{DampingScale, LayerId, Scoring, Unit, UnitKind, Update};

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1).map(|a| a.parse::<i64>());
    let columns = arguments.next().transpose()?.unwrap_or(1536);
    let rows = arguments.next().transpose()?.unwrap_or(576);
    tch::manual_seed(0);
    let device = Device::cuda_if_available();
    println!("{device:?}, {} threads, C = {columns}, R = {rows}", tch::get_num_threads());
    let problem = timed("factors (4096 tokens)", || problem(rows, columns, device))?;
    cholesky_floor(columns, problem.a_cc.as_ref())?;
    let ffn = units(UnitKind::FfnChannel, columns as u32, 1);
    let heads = units(UnitKind::QueryHead, (columns / 64) as u32, 64);
    for (name, units) in [("ffn channels", &ffn), ("blocks of 64", &heads)] {
        for (scoring, update) in [
            (Scoring::Sequential, Update::Correlated),
            (Scoring::Independent, Update::Correlated),
            (Scoring::Sequential, Update::None),
        ] {
            timed(&format!("{name}: path, {scoring}, {update}"), || {
                Ok(coupled_path(&problem, units, scoring, update)?)
            })?;
        }
        let path = coupled_path(&problem, units, Scoring::Sequential, Update::Correlated)?;
        let removed: Vec<Unit> = path.steps[..path.steps.len() / 5].iter().map(|s| s.unit).collect();
        let sum: f64 = path.steps[..removed.len()].iter().map(|s| s.cost).sum();
        let updated = timed(&format!("{name}: update, 20 % removed"), || {
            Ok(coupled_update(&problem, units, &removed, Update::Correlated)?)
        })?;
        println!("    marginals add up to {sum:.6e}, the update predicts {:.6e}", updated.predicted);
    }
    let (live_rows, live_columns): (Vec<u32>, Vec<u32>) = ((0..rows as u32).collect(), (0..columns as u32).collect());
    let path = timed("rows and columns: path", || {
        Ok(row_column_path(&problem, &live_rows, &live_columns, Scoring::Sequential, Update::Correlated)?)
    })?;
    let removed: Vec<Unit> = path.steps[..path.steps.len() / 5].iter().map(|s| s.unit).collect();
    let sum: f64 = path.steps[..removed.len()].iter().map(|s| s.cost).sum();
    let updated = timed("rows and columns: update, 20 % of the steps", || {
        Ok(row_column_update(&problem, &live_rows, &live_columns, &removed, Update::Correlated)?)
    })?;
    println!("    marginals add up to {sum:.6e}, the update predicts {:.6e}", updated.predicted);
    Ok(())
}

fn problem(rows: i64, columns: i64, device: Device) -> Result<LayerProblem, Failure> {
    let options = (Kind::Float, device);
    let mut factors = BlockFactors::new();
    // Correlated inputs of unequal size, as activations are.
    let mix = Tensor::randn([columns, columns], options) / (columns as f64).sqrt() + Tensor::eye(columns, options);
    let scale = (Tensor::randn([1, columns], options)).exp();
    factors.accumulate(Side::Input, "down_proj", &(Tensor::randn([4096, columns], options).matmul(&mix) * scale))?;
    factors.accumulate(Side::Gradient, "down_proj", &(Tensor::randn([4096, rows], options) * 1e-2))?;
    factors.add_tokens(4096);
    Ok(LayerProblem {
        layer: LayerId::new("down_proj")?,
        w_rc: Tensor::randn([rows, columns], options) * 0.05,
        bias: false,
        a_cc: Some(factors.finish(Side::Input, "down_proj")?),
        g_rr: Some(factors.finish(Side::Gradient, "down_proj")?),
        tokens: 4096,
        damping_scale: DampingScale::Mean,
        damping_a: 0.01,
        damping_g: 0.01,
    })
}

/// Prints the time of factorisation and inverse (n³ operations) as a ratio to a product of the same count (half of 2n³).
fn cholesky_floor(n: i64, a_cc: Option<&Tensor>) -> Result<(), Failure> {
    let Some(a_cc) = a_cc else { return Ok(()) };
    let mut ratios = Vec::new();
    for _ in 0..5 {
        let start = Instant::now();
        let factor = factorise("A", a_cc, Damping { lambda: 0.01, scale: DampingScale::Mean }, 4096)?;
        let inverse = curvature::inverse(&factor.l)?;
        let took = start.elapsed().as_secs_f64();
        let start = Instant::now();
        let product = a_cc.f_matmul(&inverse.f_narrow(1, 0, n / 2)?)?;
        let floor = start.elapsed().as_secs_f64();
        let _ = std::hint::black_box(product); // made, but its values are not wanted
        ratios.push((took / floor, took, floor));
    }
    ratios.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (ratio, took, floor) = ratios[ratios.len() / 2];
    println!(
        "Cholesky and inverse of A: {took:.3} s, product of as many operations {floor:.3} s, ratio {ratio:.2} (median of 5)"
    );
    Ok(())
}

fn units(kind: UnitKind, count: u32, columns_per_unit: u32) -> Units {
    Units { kind, kept: (0..count).collect(), columns_per_unit, groups: 1, min_keep: 1, freed_per_unit: 1 }
}

fn timed<T>(name: &str, work: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    let start = Instant::now();
    let result = work()?;
    println!("{name}: {:.3} s", start.elapsed().as_secs_f64());
    Ok(result)
}
