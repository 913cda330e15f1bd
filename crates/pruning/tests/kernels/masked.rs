//! Updates for any set of removed weights, against the dense solution and against each other.

use crate::common::{ALL_FACTORS, Factors, close, fisher, mask, problem};
use proptest::prelude::*;
use pruning::{LayerProblem, MaskedUpdate, MaskedUpdated, PruningError, element_costs, masked_update, window_costs};
use tch::{Device, Kind, Tensor};
use testkit::{dense_obs, dense_zeroing, devices, max_difference};
use types::{DampingScale, Pattern, Update};

const OPTIMUM: MaskedUpdate = MaskedUpdate::ConjugateGradient { tolerance: 1e-22 };
const ALL_WAYS: [MaskedUpdate; 6] = [
    OPTIMUM,
    MaskedUpdate::Grouped { max_correlate: 1000 },
    MaskedUpdate::Grouped { max_correlate: 3 },
    MaskedUpdate::TwoSided,
    MaskedUpdate::Independent,
    MaskedUpdate::None,
];

fn set_zero(problem: &LayerProblem, positions: &[i64]) {
    let _ =
        problem.w_rc.view([-1]).index_fill_(0, &Tensor::from_slice(positions).to_device(problem.w_rc.device()), 0.0);
}

/// Returns ½ δᵀ F δ.
fn loss(problem: &LayerProblem, found: &Tensor) -> f64 {
    let delta = (found.to_device(Device::Cpu) - problem.w_rc.to_device(Device::Cpu)).reshape([-1]);
    0.5 * delta.dot(&fisher(problem).matmul(&delta)).double_value(&[])
}

#[test]
fn conjugate_gradients_and_one_group_of_all_are_the_dense_optimum() {
    for device in devices() {
        for factors in ALL_FACTORS {
            for (bias, share) in [(false, 0.5), (true, 0.5), (true, 0.2), (true, 1.0), (false, 0.0)] {
                let problem = problem(5, 6, bias, factors, 13, device);
                let (removed, positions) = mask(&problem, share, 99);
                let dense = dense_obs(&problem.w_rc.to_device(Device::Cpu), &fisher(&problem), &positions);
                for how in [OPTIMUM, MaskedUpdate::Grouped { max_correlate: 1000 }] {
                    let found = masked_update(&problem, &removed, how).unwrap();
                    let case = format!("{factors:?} bias {bias} {share} {how:?}");
                    assert!(close(found.predicted, dense.cost), "{case}: {} {}", found.predicted, dense.cost);
                    assert!(max_difference(&found.w_rc, &dense.w_rc) < 1e-9, "{case}");
                    assert_eq!(found.removed, positions.len() as u64);
                    assert!(!positions.is_empty() || found.iterations == 0, "{case}");
                }
                let found = masked_update(&problem, &removed, MaskedUpdate::None).unwrap();
                let dense = dense_zeroing(&problem.w_rc.to_device(Device::Cpu), &fisher(&problem), &positions);
                assert!(close(found.predicted, dense.cost));
                assert_eq!(max_difference(&found.w_rc, &dense.w_rc), 0.0);
            }
        }
    }
}

#[test]
fn one_removed_weight_has_the_same_update_whichever_way() {
    for factors in ALL_FACTORS {
        let problem = problem(4, 5, true, factors, 17, Device::Cpu);
        let removed = Tensor::zeros([4, 4], (Kind::Bool, Device::Cpu));
        let _ = removed.get(0).get(0).fill_(1);
        let dense = dense_obs(&problem.w_rc, &fisher(&problem), &[0]);
        let cost = element_costs(&problem, Update::Correlated).unwrap().costs_rc.double_value(&[0, 0]);
        assert!(close(cost, dense.cost));
        // At the first position nothing was passed before, so the sweep is the optimum as well.
        for how in &ALL_WAYS[..5] {
            let found = masked_update(&problem, &removed, *how).unwrap();
            assert!(close(found.predicted, cost), "{factors:?} {how:?}");
            assert!(max_difference(&found.w_rc, &dense.w_rc) < 1e-9, "{factors:?} {how:?}");
        }
    }
}

#[test]
fn the_cost_of_a_window_is_that_of_its_update() {
    for factors in ALL_FACTORS {
        let problem = problem(3, 6, true, factors, 23, Device::Cpu);
        set_zero(&problem, &[1]);
        for update in [Update::Correlated, Update::None] {
            let windows = window_costs(&problem, Pattern::new(2, 4).unwrap(), update).unwrap();
            for r in 0..3 {
                let chosen = windows.costs_rk.zeros_like().to_kind(Kind::Bool);
                let _ = chosen.get(r).fill_(1);
                let removed = windows.removed(&chosen).unwrap();
                let how = if update == Update::None { MaskedUpdate::None } else { OPTIMUM };
                let others = LayerProblem { w_rc: problem.w_rc.copy(), ..dense_copy(&problem) };
                if r > 0 {
                    // The zero of row 0 would take part.
                    let _ = others.w_rc.view([-1]).get(1).fill_(1.0);
                }
                let found = masked_update(&others, &removed, how).unwrap();
                let cost = windows.costs_rk.double_value(&[r, 0]);
                assert!(close(found.predicted, cost), "{factors:?} {update} {r}: {} {cost}", found.predicted);
            }
        }
    }
}

fn dense_copy(problem: &LayerProblem) -> LayerProblem {
    LayerProblem {
        layer: problem.layer.clone(),
        w_rc: problem.w_rc.copy(),
        a_cc: problem.a_cc.as_ref().map(Tensor::copy),
        g_rr: problem.g_rr.as_ref().map(Tensor::copy),
        ..*problem
    }
}

/// The two-sided sweep weight by weight, in row-major order, with the root of Gi ⊗ Ai.
fn swept(problem: &LayerProblem, positions: &[i64]) -> Tensor {
    let (r, c) = problem.w_rc.size2().unwrap();
    let root = |m: &Option<Tensor>, n: i64| match m {
        Some(m) => Tensor::linalg_inv(&m.to_device(Device::Cpu)).linalg_cholesky(true),
        None => Tensor::eye(n, (Kind::Double, Device::Cpu)),
    };
    let (ug, ua) = (root(&problem.g_rr, r), root(&problem.a_cc, c));
    let mut w = problem.w_rc.to_device(Device::Cpu).copy();
    for (row, column) in positions.iter().map(|i| (i / c, i % c)) {
        let line = ug.get(row).outer(&ua.get(column));
        let step = w.double_value(&[row, column]) / line.double_value(&[row, column]);
        w -= line * step;
    }
    w.view([-1]).index_fill(0, &Tensor::from_slice(positions), 0.0).view([r, c])
}

#[test]
fn the_two_sided_sweep_is_obs_with_what_was_passed_held() {
    for device in devices() {
        for factors in ALL_FACTORS {
            // The second has several tiles on both sides.
            for (r, c, bias) in [(4, 6, true), (70, 131, false)] {
                let problem = problem(r, c, bias, factors, 41, device);
                let (removed, positions) = mask(&problem, 0.5, 5);
                let found = masked_update(&problem, &removed, MaskedUpdate::TwoSided).unwrap();
                assert!(max_difference(&found.w_rc, &swept(&problem, &positions)) < 1e-9, "{factors:?}");
            }
        }
    }
}

/// When weights that earlier groups made zero, or that were zero before, become zero again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Zeroing {
    BetweenGroups,
    AtTheEnd,
}

/// The paper's formula for groups, each with dense Z and both products over the whole layer.
fn grouped(problem: &LayerProblem, positions: &[i64], groups: &[&[i64]], zeroing: Zeroing) -> Tensor {
    let inverse = Tensor::linalg_inv(&fisher(problem));
    let removed = Tensor::from_slice(positions);
    let mut w = problem.w_rc.to_device(Device::Cpu).copy().view([-1]);
    let mut done: Vec<i64> = positions.iter().copied().filter(|i| w.double_value(&[*i]) == 0.0).collect();
    for group in groups {
        let s = Tensor::from_slice(group);
        let gi_s = inverse.index_select(1, &s);
        let z = Tensor::linalg_solve(&gi_s.index_select(0, &s), &w.index_select(0, &s).unsqueeze(1), true);
        w -= gi_s.matmul(&z).view([-1]);
        done.extend_from_slice(group);
        if zeroing == Zeroing::BetweenGroups {
            w = w.index_fill(0, &Tensor::from_slice(&done), 0.0);
        }
    }
    w.index_fill(0, &removed, 0.0).view_as(&problem.w_rc)
}

/// Splits positions in a layer of rows of `c` into groups, as the kernel says it does.
fn groups_of(positions: &[i64], c: i64, most: usize) -> Vec<&[i64]> {
    let mut groups = Vec::new();
    let mut start = 0;
    for row in positions.chunk_by(|x, y| x / c == y / c) {
        let end = positions.iter().position(|i| i == row.last().unwrap()).unwrap() + 1;
        let first = end - row.len();
        if end - start > most && first > start {
            groups.push(&positions[start..first]);
            start = first;
        }
        while end - start > most {
            groups.push(&positions[start..start + most]);
            start += most;
        }
    }
    groups.push(&positions[start..]);
    groups
}

#[test]
fn groups_touching_only_their_rows_are_the_papers_formula() {
    for device in devices() {
        for factors in ALL_FACTORS {
            for bias in [false, true] {
                let problem = problem(6, 7, bias, factors, 47, device);
                let (removed, positions) = mask(&problem, 0.5, 7);
                for most in [1, 2, 4, 7, 50] {
                    let groups = groups_of(&positions, 7, most);
                    let found = masked_update(&problem, &removed, MaskedUpdate::Grouped { max_correlate: most as u32 })
                        .unwrap();
                    assert_eq!(found.iterations as usize, groups.len());
                    for zeroing in [Zeroing::AtTheEnd, Zeroing::BetweenGroups] {
                        let expected = grouped(&problem, &positions, &groups, zeroing);
                        assert!(max_difference(&found.w_rc, &expected) < 1e-9, "{factors:?} {most} {zeroing:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn taking_back_what_moved_a_zero_costs_less_than_zeroing_it_early() {
    let (mut together, mut early) = (0.0, 0.0);
    for seed in 0..20 {
        let problem = problem(8, 9, false, Factors::Both, 100 + 7 * seed, Device::Cpu);
        let (_, zeros) = mask(&problem, 0.3, seed);
        set_zero(&problem, &zeros);
        let (removed, _) = mask(&problem, 0.3, seed + 1000);
        let gone = removed.logical_or(&problem.w_rc.eq(0.0));
        let flat = Vec::<bool>::try_from(gone.view([-1])).unwrap();
        let positions: Vec<i64> = (0..72).filter(|i| flat[*i as usize]).collect();
        let groups = groups_of(&positions, 9, 6);
        let found = masked_update(&problem, &removed, MaskedUpdate::Grouped { max_correlate: 6 }).unwrap();
        assert!(max_difference(&found.w_rc, &grouped(&problem, &positions, &groups, Zeroing::AtTheEnd)) < 1e-9);
        together += found.predicted;
        early += loss(&problem, &grouped(&problem, &positions, &groups, Zeroing::BetweenGroups));
    }
    assert!(together < early, "{together} {early}");
}

#[test]
fn the_independent_update_is_the_sum_of_single_ones() {
    for factors in ALL_FACTORS {
        let problem = problem(4, 6, true, factors, 53, Device::Cpu);
        let (removed, positions) = mask(&problem, 0.4, 3);
        let f = fisher(&problem);
        let sum = positions
            .iter()
            .fold(problem.w_rc.copy(), |sum, i| sum + dense_obs(&problem.w_rc, &f, &[*i]).w_rc - &problem.w_rc);
        let expected = sum.view([-1]).index_fill(0, &Tensor::from_slice(&positions), 0.0).view_as(&problem.w_rc);
        let found = masked_update(&problem, &removed, MaskedUpdate::Independent).unwrap();
        assert!(max_difference(&found.w_rc, &expected) < 1e-9, "{factors:?}");
        assert!(close(found.predicted, loss(&problem, &expected)));
    }
}

#[test]
fn without_g_the_update_is_layer_wise_and_without_both_there_is_none() {
    let layer_wise = problem(4, 6, false, Factors::OnlyA, 59, Device::Cpu);
    let (removed, _) = mask(&layer_wise, 0.5, 4);
    let whole = masked_update(&layer_wise, &removed, OPTIMUM).unwrap();
    for r in 0..4 {
        let row = LayerProblem { w_rc: layer_wise.w_rc.narrow(0, r, 1), ..dense_copy(&layer_wise) };
        let alone = masked_update(&row, &removed.narrow(0, r, 1), OPTIMUM).unwrap();
        assert!(max_difference(&whole.w_rc.narrow(0, r, 1), &alone.w_rc) < 1e-9);
    }
    let magnitude = problem(4, 6, false, Factors::Neither, 59, Device::Cpu);
    for how in ALL_WAYS {
        let found = masked_update(&magnitude, &removed, how).unwrap();
        assert_eq!(max_difference(&found.w_rc, &magnitude.w_rc.masked_fill(&removed, 0.0)), 0.0, "{how:?}");
    }
}

fn any_factors() -> impl Strategy<Value = Factors> {
    prop::sample::select(ALL_FACTORS.to_vec())
}

fn zero_bits(w_rc: &Tensor) -> Vec<bool> {
    Vec::<f64>::try_from(w_rc.to_kind(Kind::Double).reshape([-1])).unwrap().iter().map(|w| w.to_bits() == 0).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn no_way_costs_less_than_conjugate_gradients_and_zeros_stay_zero(
        seed in 0_u64..10_000, factors in any_factors(), bias: bool, share in 0.0..1.0_f64, zeros in 0.0..0.4_f64,
        most in 1_u32..12, scale in prop::sample::select(DampingScale::ALL.to_vec()),
    ) {
        let problem = LayerProblem {
            damping_a: 0.01, damping_g: 0.1, damping_scale: scale,
            ..problem(5, 8 + i64::from(bias), bias, factors, seed, Device::Cpu)
        };
        let (_, before) = mask(&problem, zeros, seed + 1);
        set_zero(&problem, &before);
        if bias {
            // A bias of zero is no removed weight.
            let _ = problem.w_rc.select(1, 8).get(0).fill_(0.0);
        }
        let (removed, positions) = mask(&problem, share, seed + 2);
        let results: Vec<(MaskedUpdate, MaskedUpdated)> = ALL_WAYS
            .into_iter()
            .chain([MaskedUpdate::Grouped { max_correlate: most }])
            .map(|how| (how, masked_update(&problem, &removed, how).unwrap()))
            .collect();
        let optimum = &results[0].1;
        for (how, found) in &results {
            prop_assert!(found.predicted >= optimum.predicted * (1.0 - 1e-9), "{:?}: {} {}", how, found.predicted, optimum.predicted);
            let zero = zero_bits(&found.w_rc);
            prop_assert!(before.iter().chain(&positions).all(|i| zero[*i as usize]), "{:?}", how);
            let gone = (0..zero.len()).filter(|i| before.contains(&(*i as i64)) || positions.contains(&(*i as i64)));
            prop_assert_eq!(found.removed as usize, gone.count());
            prop_assert_eq!(found.w_rc.size(), problem.w_rc.size());
            if bias && factors != Factors::Neither && found.predicted > 0.0 && *how == OPTIMUM && factors != Factors::OnlyG {
                prop_assert!(max_difference(&found.w_rc.select(1, 8), &problem.w_rc.select(1, 8)) > 0.0, "the bias is updated");
            }
            // What was removed stays so, and costs nothing more.
            let again = LayerProblem { w_rc: found.w_rc.copy(), ..dense_copy(&problem) };
            let twice = masked_update(&again, &removed, *how).unwrap();
            prop_assert!(twice.predicted < 1e-20, "{:?}: {}", how, twice.predicted);
        }
        prop_assert!(optimum.predicted <= results[5].1.predicted);
    }

    #[test]
    fn the_usual_tolerance_is_close_to_the_optimum_in_f32(seed in 0_u64..10_000, factors in any_factors()) {
        let problem = LayerProblem { damping_a: 0.01, damping_g: 0.01, ..problem(40, 60, true, factors, seed, Device::Cpu) };
        let (removed, _) = mask(&problem, 0.5, seed);
        let exact = masked_update(&problem, &removed, OPTIMUM).unwrap();
        let single = LayerProblem {
            w_rc: problem.w_rc.to_kind(Kind::Float),
            a_cc: problem.a_cc.as_ref().map(|a| a.to_kind(Kind::Float)),
            g_rr: problem.g_rr.as_ref().map(|g| g.to_kind(Kind::Float)),
            ..problem
        };
        let found = masked_update(&single, &removed, MaskedUpdate::new(Update::Correlated, 1)).unwrap();
        prop_assert_eq!(found.w_rc.kind(), Kind::Float);
        prop_assert!(found.iterations < 100, "{} iterations", found.iterations);
        let excess = found.predicted / exact.predicted - 1.0;
        prop_assert!((-1e-4..1e-2).contains(&excess), "{} iterations, {excess:e}", found.iterations);
    }
}

#[test]
fn faults_are_errors_that_name_the_layer() {
    let base = || problem(3, 5, true, Factors::Both, 5, Device::Cpu);
    let nan = |n: i64, m: i64| Tensor::full([n, m], f64::NAN, (Kind::Double, Device::Cpu));
    let none = Tensor::zeros([3, 4], (Kind::Bool, Device::Cpu));
    let pattern = Pattern::new(2, 4).unwrap();
    for problem in [
        LayerProblem { w_rc: nan(3, 5), ..base() },
        LayerProblem { a_cc: Some(nan(5, 5)), ..base() },
        LayerProblem { g_rr: Some(nan(3, 3)), ..base() },
    ] {
        let mut errors: Vec<PruningError> =
            ALL_WAYS.map(|how| masked_update(&problem, &none, how).map(|_| ()).unwrap_err()).into();
        for update in [Update::Correlated, Update::None] {
            errors.push(element_costs(&problem, update).map(|_| ()).unwrap_err());
            errors.push(window_costs(&problem, pattern, update).map(|_| ()).unwrap_err());
        }
        for error in errors {
            let error = error.to_string();
            assert!(error.contains("model.layers.3.fc2") && error.contains("not finite"), "{error}");
        }
    }
    let wide = Tensor::zeros([3, 5], (Kind::Bool, Device::Cpu));
    let error = masked_update(&base(), &wide, OPTIMUM).unwrap_err().to_string();
    assert!(error.contains("removal mask should have shape [3, 4] and has [3, 5]"), "{error}");
    let error = masked_update(&base(), &none, MaskedUpdate::Grouped { max_correlate: 0 }).unwrap_err();
    assert!(matches!(error, PruningError::Units { .. }));
}
