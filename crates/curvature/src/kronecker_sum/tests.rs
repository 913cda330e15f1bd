use super::*;
use crate::{Damping, factorise};
use proptest::prelude::*;
use tch::{Device, Kind};
use testkit::{devices, kron, max_difference, random, random_spd};
use types::DampingScale;

/// Never settles by tolerance: the error of a direction is the root of what the norm shows.
const EXACT: PowerOptions = PowerOptions { rank: 2, half_steps: 600, tolerance: -1.0 };

/// Returns inputs and gradients of `n` tokens that depend on each other, so that the Fisher is no Kronecker product.
fn tokens(n: i64, r: i64, c: i64, seed: u64) -> (Tensor, Tensor) {
    let x_nc = random(&[n, c], seed) + random(&[n, 1], seed + 1);
    let by_token = random(&[n, 1], seed + 2).square() + x_nc.select(1, 0).unsqueeze(1).square();
    (x_nc, (random(&[n, r], seed + 3) + random(&[1, r], seed + 4)) * by_token)
}

fn plain(x_nc: &Tensor) -> Tensor {
    x_nc.tr().matmul(x_nc) / x_nc.size()[0] as f64
}

/// Returns the empirical Fisher rearranged, `[R², C²]`: row by row the pairs (r, r'), column by column (c, c').
fn rearranged(x_nc: &Tensor, g_nr: &Tensor) -> Tensor {
    let pairs = |z: &Tensor| (z.unsqueeze(2) * z.unsqueeze(1)).flatten(1, 2);
    pairs(g_nr).tr().matmul(&pairs(x_nc)) / x_nc.size()[0] as f64
}

/// Returns the empirical Fisher of row-major vec(W), `[R·C, R·C]`.
fn dense_fisher(x_nc: &Tensor, g_nr: &Tensor) -> Tensor {
    plain(&(g_nr.unsqueeze(2) * x_nc.unsqueeze(1)).flatten(1, 2))
}

fn iterate(x_nc: &Tensor, g_nr: &Tensor, options: PowerOptions) -> KroneckerSum {
    let mut state = PowerIteration::new("fc2", &plain(x_nc), options).unwrap();
    while let Some(mut step) = state.half_step().unwrap() {
        step.accumulate(x_nc, g_nr).unwrap();
        state.advance(&step).unwrap();
    }
    state.finish()
}

#[test]
fn the_terms_are_the_singular_pairs_of_the_rearranged_fisher() {
    for device in devices() {
        for seed in [1, 20, 300] {
            let (x, g) = tokens(40, 4, 5, seed);
            let (u, s, v) = rearranged(&x, &g).svd(true, true);
            let found = iterate(&x.to_device(device), &g.to_device(device), EXACT);
            assert_eq!(found.terms.len(), 2);
            for (k, term) in found.terms.iter().enumerate() {
                let k = k as i64;
                let pair = s.double_value(&[k]) * u.select(1, k).outer(&v.select(1, k));
                let term_pair = term.g_rr.reshape([-1]).outer(&term.a_cc.reshape([-1]));
                let difference = max_difference(&term_pair, &pair) / s.double_value(&[0]);
                assert!(difference < 1e-9, "seed {seed}, term {k}: {difference:e}");
                assert!((term.norm().unwrap() / s.double_value(&[k]) - 1.0).abs() < 1e-9);
            }
            // The first is positive semidefinite on both sides, and both are what was said of F.
            for side in [Side::Input, Side::Gradient] {
                let smallest = found.terms[0].side(side).linalg_eigvalsh("L").min().double_value(&[]);
                assert!(smallest > 0.0, "{side:?}: {smallest}");
            }
            let sum = found.terms.iter().map(|t| kron(&t.g_rr, &t.a_cc).to_device(Device::Cpu));
            let left = sum.fold(dense_fisher(&x, &g), |left, term| left - term);
            let tail: f64 = (2..s.size()[0]).map(|k| s.double_value(&[k]).powi(2)).sum();
            assert!((norm(&left).unwrap() / tail.sqrt() - 1.0).abs() < 1e-9);
        }
    }
}

#[test]
fn terms_found_one_after_the_other_are_the_greedy_deflation() {
    let (x, g) = tokens(40, 4, 5, 7);
    // Unsettled terms: what is left is exactly F less the terms, and the last side made is the best for its twin.
    let found = iterate(&x, &g, PowerOptions { rank: 3, half_steps: 3, ..EXACT });
    assert_eq!((found.terms.len(), found.half_steps.as_slice()), (3, [3, 3, 3].as_slice()));
    let mut left = rearranged(&x, &g);
    for term in &found.terms {
        let best = left.matmul(&term.a_cc.reshape([-1])) / term.a_cc.square().sum(Kind::Double);
        assert!(max_difference(&best.view([4, 4]), &term.g_rr) < 1e-12);
        left -= term.g_rr.reshape([-1]).outer(&term.a_cc.reshape([-1]));
    }
    assert!(found.terms[0].norm().unwrap() > found.terms[1].norm().unwrap());
}

#[test]
fn every_half_step_brings_the_sum_closer() {
    let (x, g) = tokens(60, 4, 5, 11);
    let fisher = dense_fisher(&x, &g);
    let error = |half_steps| {
        let found = iterate(&x, &g, PowerOptions { rank: 1, half_steps, ..EXACT });
        norm(&(&fisher - kron(&found.terms[0].g_rr, &found.terms[0].a_cc))).unwrap()
    };
    let errors: Vec<f64> = (1..8).map(error).collect();
    assert!(errors.is_sorted_by(|x, y| x >= y), "{errors:?}");
    let independent = norm(&(&fisher - kron(&plain(&g), &plain(&x)))).unwrap();
    assert!(errors[0] < independent, "the first is no worse than the plain means: {} {independent}", errors[0]);
}

#[test]
fn independent_inputs_and_gradients_give_the_plain_means_and_no_second_term() {
    // All pairs of some inputs and some gradients: F is their means' product.
    let (x, g) = (random(&[6, 4], 1), random(&[5, 3], 2));
    let (all_x, all_g) = (x.repeat_interleave_self_int(5, 0, None), g.repeat([6, 1]));
    for device in devices() {
        let found = iterate(&all_x.to_device(device), &all_g.to_device(device), PowerOptions::default());
        assert_eq!((found.terms.len(), found.half_steps.as_slice()), (1, [2].as_slice()));
        assert!(max_difference(&found.terms[0].a_cc, &plain(&x)) < 1e-12);
        assert!(max_difference(&found.terms[0].g_rr, &plain(&g)) < 1e-12);
    }
    // A side of one number has one singular value.
    let found = iterate(&random(&[9, 1], 3), &random(&[9, 3], 4), EXACT);
    assert_eq!(found.terms.len(), 1);
}

#[test]
fn a_plain_mean_without_a_share_in_the_second_term_is_no_obstacle() {
    // Two kinds of tokens: F = ½ (E₁ ⊗ E₁ + E₂ ⊗ E₂), and the plain means are ½ I.
    let x = Tensor::eye(2, (Kind::Double, Device::Cpu));
    let found = iterate(&x, &x, EXACT);
    assert_eq!(found.terms.len(), 2);
    let sum = kron(&found.terms[0].g_rr, &found.terms[0].a_cc) + kron(&found.terms[1].g_rr, &found.terms[1].a_cc);
    assert!(max_difference(&sum, &dense_fisher(&x, &x)) < 1e-12);
}

#[test]
fn without_curvature_there_is_no_term() {
    let zeros = Tensor::zeros([3, 2], (Kind::Double, Device::Cpu));
    assert!(iterate(&zeros, &random(&[3, 2], 1), EXACT).terms.is_empty());
    assert!(iterate(&random(&[3, 2], 1), &zeros, EXACT).terms.is_empty());
    let none = iterate(&random(&[3, 2], 1), &random(&[3, 2], 2), PowerOptions { rank: 0, ..EXACT });
    assert!(none.terms.is_empty());
}

#[test]
fn f32_and_half_precision_come_close() {
    let (x, g) = tokens(64, 5, 6, 5);
    let exact = iterate(&x, &g, EXACT);
    let single = iterate(
        &x.to_kind(Kind::Float),
        &g.to_kind(Kind::Float),
        PowerOptions { tolerance: 1e-6, half_steps: 60, ..EXACT },
    );
    for (term, expected) in single.terms.iter().zip(&exact.terms) {
        assert_eq!(term.a_cc.kind(), Kind::Float);
        let product = kron(&expected.g_rr, &expected.a_cc);
        let difference = norm(&(kron(&term.g_rr, &term.a_cc) - &product)).unwrap() / exact.terms[0].norm().unwrap();
        assert!(difference < 1e-2, "{difference}");
    }
    let half = (x.to_kind(Kind::BFloat16), g.to_kind(Kind::BFloat16));
    let mut step =
        PowerIteration::new("l", &plain(&x).to_kind(Kind::Float), EXACT).unwrap().half_step().unwrap().unwrap();
    step.accumulate(&half.0, &half.1).unwrap();
    assert_eq!(step.finish().unwrap().kind(), Kind::Float);
}

#[test]
fn faults_name_side_layer_and_half_step() {
    let (x, g) = tokens(9, 3, 4, 3);
    let start = || PowerIteration::new("layers.4.fc2", &plain(&x), EXACT).unwrap();
    let text = |error: CurvatureError| error.to_string();
    let mut state = start();
    let mut first = state.half_step().unwrap().unwrap();
    assert_eq!((first.layer(), first.side(), first.number()), ("layers.4.fc2", Side::Gradient, 1));
    assert!(text(state.advance(&first).unwrap_err()).contains("G of layers.4.fc2, half-step 1: no tokens"));
    assert!(text(first.accumulate(&random(&[9, 5], 1), &g).unwrap_err()).contains("A of layers.4.fc2"));
    assert!(text(first.accumulate(&x, &g.narrow(0, 0, 3)).unwrap_err()).contains("[9, -1], got [3, 3]"));
    first.accumulate(&x, &g).unwrap();
    assert!(text(first.accumulate(&x, &random(&[9, 2], 1)).unwrap_err()).contains("G of layers.4.fc2"));
    state.advance(&first).unwrap();
    // The sums of a half-step that is over, or of another one, are refused and change nothing.
    assert!(matches!(state.advance(&first), Err(CurvatureError::Unknown { name }) if name.ends_with("half-step 1")));
    let mut second = state.half_step().unwrap().unwrap();
    assert_eq!((second.side(), second.number()), (Side::Input, 2));
    assert!(matches!(second.merge(&first), Err(CurvatureError::Unknown { .. })));
    let bad = Tensor::full([1, 3], f64::NAN, (Kind::Double, Device::Cpu));
    second.accumulate(&x.narrow(0, 0, 1), &bad).unwrap();
    assert!(
        matches!(state.advance(&second), Err(CurvatureError::NotFinite { name }) if name.contains("A of layers.4.fc2"))
    );
    assert!(state.half_step().unwrap().is_some(), "an error ends nothing");
    assert!(matches!(PowerIteration::new("l", &x, EXACT), Err(CurvatureError::Shape { .. })));
    let nan = Tensor::full([2, 2], f64::NAN, (Kind::Double, Device::Cpu));
    assert!(matches!(PowerIteration::new("l", &nan, EXACT), Err(CurvatureError::NotFinite { .. })));
}

#[test]
fn the_common_basis_makes_both_matrices_diagonal_and_inverts_their_sum() {
    for device in devices() {
        let (first, half) = (random_spd(5, 1).to_device(device), random(&[5, 5], 2).to_device(device));
        let second = &half + half.tr();
        let damping = Damping { lambda: 0.0, scale: DampingScale::Mean };
        let basis = common_basis("A of x", &factorise("A of x", &first, damping, 1).unwrap(), &second).unwrap();
        let with = |left: &Tensor, d: &Tensor| (left * d).matmul(&left.tr());
        assert!(max_difference(&with(&basis.v, &basis.mu.ones_like()), &first) < 1e-9);
        assert!(max_difference(&with(&basis.v, &basis.mu), &second) < 1e-9);
        let tau = 0.37;
        let inverse = Tensor::linalg_inv(&(&first + &second * tau));
        assert!(max_difference(&with(&basis.u, &(&basis.mu * tau + 1.0).reciprocal()), &inverse) < 1e-9);
        assert!(max_difference(&basis.u.tr().matmul(&basis.v), &Tensor::eye(5, (Kind::Double, device))) < 1e-9);
        let small = factorise("A", &first.narrow(0, 0, 4).narrow(1, 0, 4), damping, 1).unwrap();
        assert!(matches!(common_basis("A", &small, &second), Err(CurvatureError::Shape { .. })));
        let nan = &second * f64::NAN;
        let full = factorise("A", &first, damping, 1).unwrap();
        assert!(matches!(common_basis("A", &full, &nan), Err(CurvatureError::NotFinite { .. })));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn merging_any_split_equals_one_pass(seed in 0_u64..1000, n in 2_i64..40, r in 1_i64..7, c in 1_i64..7, cuts in prop::collection::vec(0.0_f64..1.0, 0..4)) {
        let (x, g) = tokens(n, r, c, seed);
        let mut state = PowerIteration::new("l", &plain(&x), PowerOptions { half_steps: 2, ..EXACT }).unwrap();
        while let Some(mut whole) = state.half_step().unwrap() {
            whole.accumulate(&x, &g).unwrap();
            let mut edges: Vec<i64> = cuts.iter().map(|f| (f * n as f64) as i64).chain([0, n]).collect();
            edges.sort_unstable();
            let mut merged = state.half_step().unwrap().unwrap();
            for pair in edges.windows(2) {
                let mut part = state.half_step().unwrap().unwrap();
                let cut = |z: &Tensor| z.narrow(0, pair[0], pair[1] - pair[0]);
                part.accumulate(&cut(&x), &cut(&g)).unwrap();
                merged.merge(&part).unwrap();
            }
            prop_assert_eq!(merged.tokens, n as u64);
            let (found, expected) = (merged.finish().unwrap(), whole.finish().unwrap());
            let difference = max_difference(&found, &expected) / (1.0 + norm(&expected).unwrap());
            prop_assert!(difference < 1e-12, "{difference}");
            state.advance(&whole).unwrap();
        }
    }
}
