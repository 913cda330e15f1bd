//! Costs and updates under a Kronecker sum of two terms against the dense solution, sizes up to 6, f64.

use crate::common::{Factors, close, columns_of, dense_removal, fisher, mask, problem, units, without};
use curvature::{CurvatureError, KroneckerTerm};
use proptest::prelude::*;
use pruning::{
    Clamping, KroneckerSumProblem, LayerProblem, MaskedUpdate, PruningError, coupled_path, coupled_update,
    element_costs, kronecker_sum_coupled_update, kronecker_sum_element_costs, kronecker_sum_masked_update,
    kronecker_sum_path, kronecker_sum_row_column_costs, masked_update, row_column_path,
};
use tch::{Device, Kind, Tensor};
use testkit::{dense_obs, dense_zeroing, devices, element_indices, kron, max_difference, random, random_spd};
use types::{Scoring, Unit, UnitKind, Update};

const OPTIMUM: MaskedUpdate = MaskedUpdate::ConjugateGradient { tolerance: 1e-22 };
const UPDATES: [Update; 2] = [Update::Correlated, Update::None];

/// What the second term is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Second {
    /// F is positive definite as it is.
    Mild,
    /// F is indefinite.
    Wild,
    /// Not there.
    Zero,
}

fn symmetric(n: i64, seed: u64) -> Tensor {
    let half = random(&[n, n], seed);
    &half + half.tr()
}

/// Returns a problem `[r, c]`, bias included in `c`, with damping on the first term.
fn sum_problem(r: i64, c: i64, bias: bool, second: Second, seed: u64, device: Device) -> KroneckerSumProblem {
    let first = LayerProblem { damping_a: 0.02, damping_g: 0.05, ..problem(r, c, bias, Factors::Both, seed, device) };
    let (g_rr, a_cc) = match second {
        // Positive semidefinite on both sides, so that no damping of the first term matters.
        Second::Mild => (random_spd(r, seed + 8), random_spd(c, seed + 9)),
        Second::Wild => (symmetric(r, seed + 8), symmetric(c, seed + 9)),
        Second::Zero => (random_spd(r, seed + 8), Tensor::zeros([c, c], (Kind::Double, Device::Cpu))),
    };
    let second = KroneckerTerm { g_rr: g_rr.to_device(device), a_cc: a_cc.to_device(device) };
    KroneckerSumProblem { first, second, floor: 0.05 }
}

/// Returns the damped first term on the CPU.
fn first_term(problem: &KroneckerSumProblem) -> Tensor {
    let damped = |m: &Option<Tensor>, lambda: f64| {
        let m = m.as_ref().unwrap().to_device(Device::Cpu);
        let mean = m.diagonal(0, 0, 1).mean(Kind::Double).double_value(&[]);
        &m + Tensor::eye(m.size()[0], (Kind::Double, Device::Cpu)) * (lambda * mean)
    };
    kron(&damped(&problem.first.g_rr, problem.first.damping_g), &damped(&problem.first.a_cc, problem.first.damping_a))
}

fn plain_sum(problem: &KroneckerSumProblem) -> Tensor {
    let second = kron(&problem.second.g_rr, &problem.second.a_cc).to_device(Device::Cpu);
    first_term(problem) + second
}

/// Returns the floored F and how it came about: with F₁ = L Lᵀ and L⁻¹ F L⁻ᵀ = E diag(d) Eᵀ, L E diag(max(d, floor)) Eᵀ Lᵀ.
fn floored(problem: &KroneckerSumProblem) -> (Tensor, Clamping) {
    let l = first_term(problem).linalg_cholesky(false).contiguous();
    let inverse = Tensor::linalg_inv(&l);
    let (d, e) = inverse.matmul(&plain_sum(problem)).matmul(&inverse.tr()).linalg_eigh("L");
    let root = l.matmul(&e);
    let clamped = d.lt(problem.floor).sum(Kind::Int64).int64_value(&[]) as u64;
    let clamping = Clamping { directions: d.numel() as u64, clamped, smallest: d.min().double_value(&[]) };
    ((&root * d.clamp_min(problem.floor)).matmul(&root.tr()), clamping)
}

fn cases(r: i64, c: i64) -> impl Iterator<Item = (KroneckerSumProblem, String)> {
    devices().into_iter().flat_map(move |device| {
        [Second::Mild, Second::Wild].into_iter().flat_map(move |second| {
            [false, true].into_iter().map(move |bias| {
                (
                    sum_problem(r, c + i64::from(bias), bias, second, 17, device),
                    format!("{second:?} bias {bias} {device:?}"),
                )
            })
        })
    })
}

fn same_clamping(found: Clamping, expected: Clamping) -> bool {
    (found.directions, found.clamped) == (expected.directions, expected.clamped)
        && close(found.smallest, expected.smallest)
}

fn dense(problem: &KroneckerSumProblem, f: &Tensor, positions: &[i64], update: Update) -> f64 {
    dense_removal(&problem.first.w_rc.to_device(Device::Cpu), f, positions, update).cost
}

#[test]
fn an_indefinite_sum_is_floored_and_says_so() {
    for (problem, case) in cases(4, 5) {
        let (f, expected) = floored(&problem);
        let found = kronecker_sum_element_costs(&problem, Update::Correlated).unwrap().clamping;
        assert!(same_clamping(found, expected), "{case}: {found:?} {expected:?}");
        assert_eq!(found.clamped > 0, case.starts_with("Wild"), "{case}: {found:?}");
        if found.clamped == 0 {
            assert!(max_difference(&f, &plain_sum(&problem)) < 1e-9, "{case}: what needs no floor is left as it is");
        }
    }
}

#[test]
fn the_cost_of_an_element_is_that_of_removing_it_alone() {
    for (problem, case) in cases(3, 4) {
        let (f, _) = floored(&problem);
        let c = problem.first.w_rc.size()[1];
        let _ = problem.first.w_rc.get(1).get(2).fill_(0.0);
        for update in UPDATES {
            let costs = kronecker_sum_element_costs(&problem, update).unwrap().value.costs_rc;
            assert_eq!(costs.size(), [3, 4]);
            for (r, column) in (0..3).flat_map(|r| (0..4).map(move |c| (r, c))) {
                let cost = costs.double_value(&[r, column]);
                let expected = dense(&problem, &f, &[r * c + column], update);
                assert!(close(cost, expected), "{case} {update} {r},{column}: {cost} {expected}");
                assert_eq!(cost == 0.0, (r, column) == (1, 2));
            }
        }
    }
}

#[test]
fn the_costs_of_rows_and_columns_are_those_of_removing_each_alone() {
    for (problem, case) in cases(4, 5) {
        let (f, _) = floored(&problem);
        let shape = problem.first.w_rc.size2().unwrap();
        for update in UPDATES {
            let found = kronecker_sum_row_column_costs(&problem, update).unwrap().value;
            assert_eq!((found.rows.len(), found.columns.len()), (4, 5));
            for (r, cost) in (0..).zip(&found.rows) {
                let expected = dense(&problem, &f, &element_indices(shape, &[r], &[]), update);
                assert!(close(*cost, expected), "{case} {update} row {r}: {cost} {expected}");
            }
            for (c, cost) in (0..).zip(&found.columns) {
                let expected = dense(&problem, &f, &element_indices(shape, &[], &[c]), update);
                assert!(close(*cost, expected), "{case} {update} column {c}: {cost} {expected}");
            }
        }
    }
}

#[test]
fn units_are_ordered_by_what_removing_each_alone_costs() {
    for (count, q) in [(6, 1), (3, 2), (2, 3)] {
        for (problem, case) in cases(4, 6) {
            let (f, _) = floored(&problem);
            let shape = problem.first.w_rc.size2().unwrap();
            let units = units(UnitKind::KvGroup, count, q);
            for update in UPDATES {
                let path = kronecker_sum_path(&problem, &units, update).unwrap().value;
                assert_eq!(path.steps.len(), count as usize - 1);
                assert!(path.steps.is_sorted_by(|x, y| x.cost <= y.cost));
                for step in &path.steps {
                    let columns = columns_of(&units, &[step.unit]);
                    let expected = dense(&problem, &f, &element_indices(shape, &[], &columns), update);
                    assert!(close(step.cost, expected), "{case} {q} {update}: {} {expected}", step.cost);
                }
            }
        }
    }
}

#[test]
fn the_masked_update_is_the_dense_optimum() {
    for (problem, case) in cases(5, 6) {
        let (f, expected) = floored(&problem);
        for share in [0.0, 0.2, 0.5, 1.0] {
            let (removed, positions) = mask(&problem.first, share, 5);
            let w = problem.first.w_rc.to_device(Device::Cpu);
            for (how, dense) in
                [(OPTIMUM, dense_obs(&w, &f, &positions)), (MaskedUpdate::None, dense_zeroing(&w, &f, &positions))]
            {
                let found = kronecker_sum_masked_update(&problem, &removed, how).unwrap();
                assert!(same_clamping(found.clamping, expected));
                let found = found.value;
                assert!(close(found.predicted, dense.cost), "{case} {share}: {} {}", found.predicted, dense.cost);
                assert!(max_difference(&found.w_rc, &dense.w_rc) < 1e-8, "{case} {share} {how:?}");
                assert_eq!(found.removed as usize, positions.len());
            }
        }
    }
}

#[test]
fn removing_columns_together_is_the_dense_optimum() {
    for (count, q, positions) in [(6, 1, vec![2]), (6, 1, vec![0, 1, 2, 4, 5]), (3, 2, vec![0, 2])] {
        for (problem, case) in cases(4, 6) {
            let (f, _) = floored(&problem);
            let shape = problem.first.w_rc.size2().unwrap();
            let units = units(UnitKind::KvGroup, count, q);
            let unit = |i: &i64| Unit { kind: units.kind, index: units.kept[*i as usize] };
            let removed: Vec<Unit> = positions.iter().map(unit).collect();
            let columns = columns_of(&units, &removed);
            let indices = element_indices(shape, &[], &columns);
            let w = problem.first.w_rc.to_device(Device::Cpu);
            for (how, dense) in
                [(OPTIMUM, dense_obs(&w, &f, &indices)), (MaskedUpdate::None, dense_zeroing(&w, &f, &indices))]
            {
                let found = kronecker_sum_coupled_update(&problem, &units, &removed, how).unwrap().value;
                assert!(close(found.predicted, dense.cost), "{case} {how:?}: {} {}", found.predicted, dense.cost);
                assert!(max_difference(&found.w_rc, &without(&dense.w_rc, &[], &columns)) < 1e-8, "{case} {how:?}");
                assert_eq!(found.kept.len(), count as usize - positions.len());
            }
        }
    }
}

#[test]
fn a_second_term_of_zero_gives_the_kernels_of_one_term() {
    for device in devices() {
        for bias in [false, true] {
            let problem = sum_problem(4, 6 + i64::from(bias), bias, Second::Zero, 29, device);
            let single = &problem.first;
            let units = units(UnitKind::KvGroup, 3, 2);
            let (removed, _) = mask(&problem.first, 0.4, 7);
            let gone = [Unit { kind: units.kind, index: units.kept[1] }];
            let none = Clamping { directions: 4 * (6 + u64::from(bias)), clamped: 0, smallest: 1.0 };
            for (update, how) in [(Update::Correlated, OPTIMUM), (Update::None, MaskedUpdate::None)] {
                let elements = kronecker_sum_element_costs(&problem, update).unwrap();
                assert_eq!(elements.clamping, none);
                let expected = element_costs(single, update).unwrap();
                assert!(max_difference(&elements.value.costs_rc, &expected.costs_rc) < 1e-9);
                assert_eq!(elements.value.damping, expected.damping);
                let path = kronecker_sum_path(&problem, &units, update).unwrap().value;
                let expected = coupled_path(single, &units, Scoring::Independent, update).unwrap();
                for (step, expected) in path.steps.iter().zip(&expected.steps) {
                    assert_eq!((step.unit, step.freed), (expected.unit, expected.freed));
                    assert!(close(step.cost, expected.cost));
                }
                let lines = kronecker_sum_row_column_costs(&problem, update).unwrap().value;
                let all = (&[0, 1, 2, 3][..], &[0, 1, 2, 3, 4, 5][..]);
                for step in row_column_path(single, all.0, all.1, Scoring::Independent, update).unwrap().steps {
                    let of_kind = if step.unit.kind == UnitKind::Row { &lines.rows } else { &lines.columns };
                    assert!(close(of_kind[step.unit.index as usize], step.cost));
                }
                let found = kronecker_sum_masked_update(&problem, &removed, how).unwrap().value;
                let expected = masked_update(single, &removed, how).unwrap();
                assert!(max_difference(&found.w_rc, &expected.w_rc) < 1e-9 && found.removed == expected.removed);
                assert!(close(found.predicted, expected.predicted));
                let found = kronecker_sum_coupled_update(&problem, &units, &gone, how).unwrap().value;
                let expected = coupled_update(single, &units, &gone, update).unwrap();
                assert!(max_difference(&found.w_rc, &expected.w_rc) < 1e-9 && found.kept == expected.kept);
                assert!(close(found.predicted, expected.predicted));
            }
        }
    }
}

#[test]
fn a_second_term_equal_to_the_first_doubles_every_cost_and_changes_no_update() {
    let twice = |bias| {
        let first =
            LayerProblem { damping_a: 0.0, damping_g: 0.0, ..problem(4, 6, bias, Factors::Both, 37, Device::Cpu) };
        let copy = |m: &Option<Tensor>| m.as_ref().unwrap().copy();
        let second = KroneckerTerm { g_rr: copy(&first.g_rr), a_cc: copy(&first.a_cc) };
        KroneckerSumProblem { first, second, floor: KroneckerSumProblem::FLOOR }
    };
    let problem = twice(true);
    let costs = kronecker_sum_element_costs(&problem, Update::Correlated).unwrap().value.costs_rc;
    let single = element_costs(&problem.first, Update::Correlated).unwrap().costs_rc;
    assert!(max_difference(&costs, &(single * 2.0)) < 1e-9);
    let (removed, _) = mask(&problem.first, 0.5, 3);
    let found = kronecker_sum_masked_update(&problem, &removed, OPTIMUM).unwrap().value;
    let single = masked_update(&problem.first, &removed, OPTIMUM).unwrap();
    assert!(max_difference(&found.w_rc, &single.w_rc) < 1e-9);
    assert!(close(found.predicted, 2.0 * single.predicted));
    assert!(max_difference(&fisher(&problem.first), &first_term(&problem)) < 1e-12);
}

#[test]
fn f32_at_the_usual_tolerance_is_close_to_the_optimum() {
    for second in [Second::Mild, Second::Wild] {
        let exact = sum_problem(40, 61, true, second, 41, Device::Cpu);
        let single = |t: &Tensor| t.to_kind(Kind::Float);
        let problem = KroneckerSumProblem {
            first: LayerProblem {
                w_rc: single(&exact.first.w_rc),
                a_cc: exact.first.a_cc.as_ref().map(single),
                g_rr: exact.first.g_rr.as_ref().map(single),
                layer: exact.first.layer.clone(),
                ..exact.first
            },
            second: KroneckerTerm { g_rr: single(&exact.second.g_rr), a_cc: single(&exact.second.a_cc) },
            floor: exact.floor,
        };
        let (removed, _) = mask(&exact.first, 0.5, 11);
        let usual = MaskedUpdate::new(Update::Correlated, 1);
        let found = kronecker_sum_masked_update(&problem, &removed, usual).unwrap();
        let optimum = kronecker_sum_masked_update(&exact, &removed, OPTIMUM).unwrap();
        assert_eq!(found.value.w_rc.kind(), Kind::Float);
        let excess = found.value.predicted / optimum.value.predicted - 1.0;
        assert!((-1e-3..1e-2).contains(&excess), "{second:?}: {excess:e}, {} iterations", found.value.iterations);
        let units = units(UnitKind::FfnChannel, 60, 1);
        let gone: Vec<Unit> = units.kept.iter().take(20).map(|&index| Unit { kind: units.kind, index }).collect();
        let found = kronecker_sum_coupled_update(&problem, &units, &gone, usual).unwrap().value;
        let optimum = kronecker_sum_coupled_update(&exact, &units, &gone, OPTIMUM).unwrap().value;
        let excess = found.predicted / optimum.predicted - 1.0;
        assert!((-1e-3..1e-2).contains(&excess), "{second:?}: {excess:e}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn an_update_never_costs_more_than_zeroing_and_what_is_removed_is_zero(
        seed in 0_u64..10_000, bias: bool, share in 0.0..1.0_f64, wild: bool,
    ) {
        let second = if wild { Second::Wild } else { Second::Mild };
        let problem = sum_problem(5, 7 + i64::from(bias), bias, second, seed, Device::Cpu);
        let (removed, positions) = mask(&problem.first, share, seed + 2);
        let optimum = kronecker_sum_masked_update(&problem, &removed, OPTIMUM).unwrap().value;
        let zeroing = kronecker_sum_masked_update(&problem, &removed, MaskedUpdate::None).unwrap().value;
        prop_assert!(optimum.predicted <= zeroing.predicted * (1.0 + 1e-9));
        let flat = Vec::<f64>::try_from(optimum.w_rc.reshape([-1])).unwrap();
        prop_assert!(positions.iter().all(|i| flat[*i as usize].to_bits() == 0));
        // Whole columns either way.
        let units = units(UnitKind::FfnChannel, 7, 1);
        let gone: Vec<Unit> = units.kept.iter().take((share * 6.0) as usize).map(|&index| Unit { kind: units.kind, index }).collect();
        let columns = columns_of(&units, &gone);
        let whole = Tensor::zeros([5, 7], (Kind::Bool, Device::Cpu)).index_fill(1, &Tensor::from_slice(&columns), 1);
        let by_mask = kronecker_sum_masked_update(&problem, &whole, OPTIMUM).unwrap().value;
        let by_columns = kronecker_sum_coupled_update(&problem, &units, &gone, OPTIMUM).unwrap().value;
        prop_assert!(close(by_mask.predicted, by_columns.predicted), "{} {}", by_mask.predicted, by_columns.predicted);
        prop_assert!(max_difference(&without(&by_mask.w_rc, &[], &columns), &by_columns.w_rc) < 1e-7);
    }
}

#[test]
fn faults_are_errors_that_name_the_layer() {
    let base = || sum_problem(3, 5, true, Second::Mild, 5, Device::Cpu);
    let errors = |problem: &KroneckerSumProblem| {
        let units = units(UnitKind::FfnChannel, 4, 1);
        let none = Tensor::zeros([3, 4], (Kind::Bool, Device::Cpu));
        [
            kronecker_sum_element_costs(problem, Update::None).map(|_| ()).unwrap_err(),
            kronecker_sum_row_column_costs(problem, Update::None).map(|_| ()).unwrap_err(),
            kronecker_sum_path(problem, &units, Update::None).map(|_| ()).unwrap_err(),
            kronecker_sum_masked_update(problem, &none, OPTIMUM).map(|_| ()).unwrap_err(),
            kronecker_sum_coupled_update(problem, &units, &[], OPTIMUM).map(|_| ()).unwrap_err(),
        ]
    };
    let with_second = |g_rr: Tensor| {
        let base = base();
        KroneckerSumProblem { second: KroneckerTerm { g_rr, ..base.second }, ..base }
    };
    let nan = Tensor::full([3, 3], f64::NAN, (Kind::Double, Device::Cpu));
    for error in errors(&with_second(nan)) {
        assert_eq!(error.to_string(), "second G of model.layers.3.fc2 is not finite");
    }
    for error in errors(&with_second(random_spd(4, 1))) {
        assert!(matches!(error, PruningError::Factor(CurvatureError::Shape { .. })), "{error}");
    }
    for floor in [0.0, -1.0, 1.5, f64::NAN] {
        for error in errors(&KroneckerSumProblem { floor, ..base() }) {
            assert!(error.to_string().contains("model.layers.3.fc2: the floor must be"), "{error}");
        }
    }
    let base = base();
    let without_a = KroneckerSumProblem { first: LayerProblem { a_cc: None, ..base.first }, ..base };
    for error in errors(&without_a) {
        assert_eq!(error.to_string(), "there is no factor A of model.layers.3.fc2");
    }
    let base = sum_problem(3, 5, true, Second::Mild, 5, Device::Cpu);
    let none = Tensor::zeros([3, 4], (Kind::Bool, Device::Cpu));
    let error = kronecker_sum_masked_update(&base, &none, MaskedUpdate::TwoSided).unwrap_err();
    assert!(matches!(error, PruningError::Units { .. }), "{error}");
}
