//! Prints what it takes to remove half of a layer's weights and to update the rest, as ratios to the paper's procedure
//! done directly: `cargo run --release -p pruning --example element_time [SIZE] [--max-correlate N]
//! [--shared S]`.
//!
//! Conjugate gradients and the groups that touch only their rows are the library's. The direct form of the groups (dense Z,
//! both products over the whole layer for every group) exists only here. What would take more than a minute is timed on
//! the first groups and extrapolated, and then says so.
#![allow(clippy::print_stdout)]

use pruning::{
    LayerProblem, MaskedUpdate, MaskedUpdated, element_costs, histogram_counts, masked_update, select_elements,
};
use std::time::Instant;
use tch::{Device, Kind, Tensor};
use types::{DampingScale, LayerId, Update};

type Failure = Box<dyn std::error::Error>;

/// What is estimated to take longer is extrapolated.
const LONGEST_SECONDS: f64 = 60.0;

/// Groups that the direct form is timed on.
const DIRECT_GROUPS: usize = 3;

fn main() -> Result<(), Failure> {
    let Arguments { size, max_correlate, shared } = arguments()?;
    tch::manual_seed(0);
    let _no_grad = tch::no_grad_guard();
    let device = Device::cuda_if_available();
    println!(
        "{device:?}, {} threads, {size} x {size}, groups of {max_correlate}, inputs share {shared}",
        tch::get_num_threads()
    );
    let problem = problem(size, shared, device)?;

    let (scoring, removed) = timed(device, || mask(&problem))?;
    println!("scoring and selection: {scoring:.2} s, {} of {} go", count(&removed)?, size * size);
    let (iterating, optimum) = timed(device, || optimum(&problem, &removed))?;
    let ours = scoring + iterating;
    let (iterations, predicted) = (optimum.iterations, optimum.predicted);
    println!("conjugate gradients: {iterating:.2} s, {iterations} iterations, predicted {predicted:.6e}");

    let grouped = grouped(device, &problem, &removed, &optimum, max_correlate)?;
    let direct = direct(device, &problem, &removed, grouped.groups, max_correlate)?;
    println!("ratios: direct groups / (scoring + conjugate gradients) = {:.1}", direct / ours);
    println!("        direct groups / groups touching only their rows = {:.1}", direct / grouped.seconds);
    println!(
        "        groups touching only their rows / (scoring + conjugate gradients) = {:.1}",
        grouped.seconds / ours
    );
    for (name, how) in [
        ("two-sided", MaskedUpdate::TwoSided),
        ("independent", MaskedUpdate::Independent),
        ("none", MaskedUpdate::None),
    ] {
        let (took, found) = timed(device, || Ok(masked_update(&problem, &removed, how)?))?;
        let share = found.predicted / predicted;
        println!("{name}: {took:.2} s, predicted {:.6e}, {share:.2} of conjugate gradients'", found.predicted);
    }
    Ok(())
}

/// What was asked for.
struct Arguments {
    size: i64,
    max_correlate: u32,
    /// How strong the direction is that all inputs share, against their own variation: the more, the more iterations.
    shared: f64,
}

fn arguments() -> Result<Arguments, Failure> {
    let mut asked = Arguments { size: 4096, max_correlate: 2000, shared: 0.1 };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{argument} takes a number"));
        match argument.as_str() {
            "--max-correlate" => asked.max_correlate = value()?.parse()?,
            "--shared" => asked.shared = value()?.parse()?,
            size => asked.size = size.parse()?,
        }
    }
    Ok(asked)
}

/// Returns a layer with correlated inputs and gradients of unequal size, as those of a transformer are; inputs share a
/// direction.
fn problem(size: i64, shared: f64, device: Device) -> Result<LayerProblem, Failure> {
    let options = (Kind::Float, device);
    let second_moment = |shared: f64| {
        let mix = Tensor::randn([size, size], options) / (size as f64).sqrt() + Tensor::eye(size, options);
        let scale = (Tensor::randn([1, size], options) * 0.5).exp();
        let common = Tensor::randn([2 * size, 1], options) * shared;
        let x_nc = (Tensor::randn([2 * size, size], options).matmul(&mix) + common) * scale;
        x_nc.tr().matmul(&x_nc) / (2 * size) as f64
    };
    Ok(LayerProblem {
        layer: LayerId::new("down_proj")?,
        w_rc: Tensor::randn([size, size], options) * 0.05,
        bias: false,
        a_cc: Some(second_moment(shared)),
        g_rr: Some(second_moment(0.0) * 1e-4),
        tokens: 2 * size as u64,
        damping_scale: DampingScale::Mean,
        damping_a: 0.01,
        damping_g: 0.1,
    })
}

/// Returns the cheaper half of the weights, by two rounds over the bits of the costs as the coordinator does it.
fn mask(problem: &LayerProblem) -> Result<Tensor, Failure> {
    let costs = element_costs(problem, Update::Correlated)?;
    let mut left = costs.costs_rc.numel() as u64 / 2;
    let mut digit = |counts: Vec<u64>| {
        let mut below = 0;
        let digit = counts.iter().position(|count| {
            below += count;
            below >= left
        });
        let digit = digit.unwrap_or_default();
        left -= below - counts[digit];
        digit as u32
    };
    let upper = digit(histogram_counts(&costs.layer, &costs.costs_rc, None)?);
    let lower = digit(histogram_counts(&costs.layer, &costs.costs_rc, Some(upper as u16))?);
    Ok(select_elements(&costs.layer, &costs.costs_rc, upper << 16 | lower, left)?)
}

fn optimum(problem: &LayerProblem, removed: &Tensor) -> Result<MaskedUpdated, Failure> {
    Ok(masked_update(problem, removed, MaskedUpdate::new(Update::Correlated, 1))?)
}

/// What the groups that touch only their rows take for the whole layer.
struct Grouped {
    seconds: f64,
    groups: f64,
}

/// Times the library's groups, on the whole layer if that fits the time, and prints their loss on what they were timed on.
fn grouped(
    device: Device,
    problem: &LayerProblem,
    removed: &Tensor,
    optimum_of_all: &MaskedUpdated,
    max_correlate: u32,
) -> Result<Grouped, Failure> {
    let size = removed.size()[0];
    let run = |rows: i64| {
        let part = first_rows(removed, rows, size)?;
        timed(device, || Ok(masked_update(problem, &part, MaskedUpdate::Grouped { max_correlate })?))
    };
    // The difference of two times: the shorter of two runs each, in turn, as other work on the machine only adds.
    let some = (size / 16).clamp(2, 64);
    let ((fixed, of_one), (longer, of_some)) = (run(1)?, run(some)?);
    let (fixed, longer) = (fixed.min(run(1)?.0), longer.min(run(some)?.0));
    let between = of_some.iterations.saturating_sub(of_one.iterations).max(1);
    let per_group = (longer - fixed).max(0.0) / f64::from(between);
    let groups = f64::from(of_some.iterations) * size as f64 / some as f64;
    let expected = fixed + per_group * groups;
    let (name, millis) = ("groups, only their rows", 1e3 * per_group);
    if expected <= LONGEST_SECONDS {
        let (seconds, of_all) = run(size)?;
        let share = of_all.predicted / optimum_of_all.predicted;
        println!("{name}: {seconds:.2} s, {} groups, {millis:.1} ms each", of_all.iterations);
        println!("    predicted {:.6e}, {share:.3} of conjugate gradients'", of_all.predicted);
        return Ok(Grouped { seconds, groups: f64::from(of_all.iterations) });
    }
    let used = of_some.iterations;
    println!("{name}: {expected:.2} s (extrapolated from {used} groups), {groups:.0} groups, {millis:.1} ms each");
    println!(
        "    what they predict against conjugate gradients is printed where all groups fit the time: take a smaller size"
    );
    Ok(Grouped { seconds: expected, groups })
}

/// Returns the seconds that the direct form takes for `groups` groups, from the first few, and prints how far it is from the
/// library's.
fn direct(
    device: Device,
    problem: &LayerProblem,
    removed: &Tensor,
    groups: f64,
    max_correlate: u32,
) -> Result<f64, Failure> {
    let (inverting, inverses) = timed(device, || inverses(problem))?;
    let run = || directly(problem, removed, &inverses, max_correlate as usize);
    let (first, done) = timed(device, run)?;
    let per_group = first.min(timed(device, run)?.0) / done.groups as f64;
    let seconds = inverting + per_group * groups;
    let (used, millis) = (done.groups, 1e3 * per_group);
    println!(
        "groups, dense Z and both products: {seconds:.2} s (extrapolated from {used} groups), {millis:.1} ms each"
    );
    let same = masked_update(problem, &done.removed, MaskedUpdate::Grouped { max_correlate })?;
    let difference = (same.w_rc - &done.w_rc).abs().max().double_value(&[]);
    println!("    both forms of these groups differ by at most {difference:.1e}, in weights of 0.05");
    Ok(seconds)
}

/// Returns the mask in the first rows alone.
fn first_rows(removed: &Tensor, rows: i64, size: i64) -> Result<Tensor, Failure> {
    let part = removed.f_detach_copy()?;
    let _ = part.f_narrow(0, rows, size - rows)?.f_fill_(0)?;
    Ok(part)
}

/// Returns Gi and Ai of the damped factors.
fn inverses(problem: &LayerProblem) -> Result<(Tensor, Tensor), Failure> {
    let inverse = |factor: &Option<Tensor>, lambda: f64| -> Result<Tensor, Failure> {
        let factor = factor.as_ref().ok_or("the layer has both factors")?;
        let damping = curvature::Damping { lambda, scale: problem.damping_scale };
        Ok(curvature::inverse(&curvature::factorise("factor", factor, damping, problem.tokens)?.l)?)
    };
    Ok((inverse(&problem.g_rr, problem.damping_g)?, inverse(&problem.a_cc, problem.damping_a)?))
}

/// Where the first groups led.
struct Done {
    w_rc: Tensor,
    /// What went with these groups.
    removed: Tensor,
    groups: usize,
}

/// The paper's groups, done directly: the first few of them.
fn directly(
    problem: &LayerProblem,
    removed: &Tensor,
    (gi, ai): &(Tensor, Tensor),
    most: usize,
) -> Result<Done, Failure> {
    let (r, c) = problem.w_rc.size2()?;
    let mut w_rc = problem.w_rc.copy();
    let gone = removed.zeros_like();
    let positions = Vec::<i64>::try_from(removed.view([-1]).nonzero().view([-1]).to_device(Device::Cpu))?;
    let groups: Vec<&[i64]> = groups_of(&positions, c, most).take(DIRECT_GROUPS).collect();
    for group in &groups {
        let s = Tensor::from_slice(group).to_device(w_rc.device());
        let (rows, columns) = (s.floor_divide_scalar(c), s.remainder(c));
        let sub = |m: &Tensor, i: &Tensor| m.index_select(0, i).index_select(1, i);
        let l = (sub(gi, &rows) * sub(ai, &columns)).f_linalg_cholesky(false)?;
        let z_s = curvature::solve(&l, &w_rc.view([-1]).index_select(0, &s).unsqueeze(1))?.view([-1]);
        let z_rc = w_rc.zeros_like().view([-1]).index_copy(0, &s, &z_s).view([r, c]);
        let _ = gone.view([-1]).index_fill_(0, &s, 1);
        w_rc = (w_rc - gi.matmul(&z_rc).matmul(ai)).masked_fill(&gone, 0.0);
    }
    Ok(Done { w_rc, removed: gone, groups: groups.len() })
}

/// Returns runs of `positions`: whole rows together, rows with more than `most` split.
fn groups_of(positions: &[i64], c: i64, most: usize) -> impl Iterator<Item = &[i64]> {
    let mut left = positions;
    std::iter::from_fn(move || {
        let row_end = |from: usize| left.partition_point(|i| i / c <= left[from] / c);
        let mut end = if left.is_empty() { return None } else { row_end(0).min(most) };
        while end < left.len() && left[end] / c != left[end - 1] / c && row_end(end) <= most {
            end = row_end(end);
        }
        let (group, rest) = left.split_at(end);
        left = rest;
        Some(group)
    })
}

fn count(removed: &Tensor) -> Result<i64, Failure> {
    Ok(removed.f_sum(Kind::Int64)?.f_int64_value(&[])?)
}

/// Returns the seconds that `work` takes, to the end of what it put on the device.
fn timed<T>(device: Device, work: impl FnOnce() -> Result<T, Failure>) -> Result<(f64, T), Failure> {
    let start = Instant::now();
    let result = work()?;
    if let Device::Cuda(index) = device {
        tch::Cuda::synchronize(index as i64);
    }
    Ok((start.elapsed().as_secs_f64(), result))
}
