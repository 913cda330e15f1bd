//! What holds for every problem, and how faults are reported.

use crate::common::{Factors, column, columns_of, problem, row, units};
use proptest::prelude::*;
use pruning::{LayerProblem, PruningError, coupled_path, coupled_update, row_column_path, row_column_update};
use tch::{Device, Kind, Tensor};
use testkit::max_difference;
use types::{Precision, Scoring, Unit, UnitKind, Update};

fn any_factors() -> impl Strategy<Value = Factors> {
    prop::sample::select(crate::common::ALL_FACTORS.to_vec())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn an_update_never_costs_more_than_plain_zeroing(
        seed in 0_u64..10_000, factors in any_factors(), bias: bool, gone in prop::collection::vec(any::<bool>(), 7),
    ) {
        let problem = LayerProblem { damping_a: 0.01, damping_g: 0.01, ..problem(4, 7 + i64::from(bias), bias, factors, seed, Device::Cpu) };
        let units = pruning::Units { min_keep: 0, ..units(UnitKind::FfnChannel, 7, 1) };
        let removed: Vec<Unit> = units.kept.iter().zip(&gone).filter(|(_, gone)| **gone).map(|(&index, _)| Unit { kind: units.kind, index }).collect();
        let with = coupled_update(&problem, &units, &removed, Update::Correlated).unwrap();
        let without = coupled_update(&problem, &units, &removed, Update::None).unwrap();
        prop_assert!(with.predicted >= 0.0);
        prop_assert!(with.predicted <= without.predicted * (1.0 + 1e-12));
        prop_assert_eq!(with.w_rc.size(), without.w_rc.size());
        if problem.a_cc.is_none() {
            // A = I: the update is plain zeroing.
            prop_assert_eq!(max_difference(&with.w_rc, &without.w_rc), 0.0);
        }
        if removed.is_empty() {
            prop_assert_eq!(max_difference(&with.w_rc, &problem.w_rc), 0.0);
            prop_assert_eq!(with.predicted, 0.0);
        }
    }

    #[test]
    fn removed_rows_and_columns_are_exactly_positive_zero(
        seed in 0_u64..10_000, factors in any_factors(), bias: bool,
        gone in prop::collection::vec(any::<bool>(), 9), correlated: bool,
    ) {
        let problem = LayerProblem { damping_a: 0.01, damping_g: 0.01, ..problem(5, 6 + i64::from(bias), bias, factors, seed, Device::Cpu) };
        // Row 4 and column 5 always stay.
        let removed: Vec<Unit> = (0..9).filter(|&i| gone[i as usize]).map(|i| if i < 4 { row(i) } else { column(i - 4) }).collect();
        let update = if correlated { Update::Correlated } else { Update::None };
        let found = row_column_update(&problem, &[0, 1, 2, 3, 4], &[0, 1, 2, 3, 4, 5], &removed, update).unwrap();
        prop_assert_eq!(found.w_rc.size(), problem.w_rc.size());
        for unit in &removed {
            let line = match unit.kind {
                UnitKind::Row => found.w_rc.select(0, i64::from(unit.index)),
                _ => found.w_rc.select(1, i64::from(unit.index)),
            };
            let values = Vec::<f64>::try_from(line.contiguous()).unwrap();
            prop_assert!(values.iter().all(|v| v.to_bits() == 0), "{:?}: {values:?}", unit);
        }
    }

    #[test]
    fn marginal_costs_are_never_negative_with_an_update_and_f32_agrees_with_f64(seed in 0_u64..10_000) {
        let problem = LayerProblem { damping_a: 0.01, damping_g: 0.01, ..problem(8, 20, false, Factors::Both, seed, Device::Cpu) };
        let single = LayerProblem {
            layer: problem.layer.clone(),
            w_rc: problem.w_rc.to_kind(Kind::Float),
            a_cc: problem.a_cc.as_ref().map(|a| a.to_kind(Kind::Float)),
            g_rr: problem.g_rr.as_ref().map(|g| g.to_kind(Kind::Float)),
            ..problem
        };
        let units = units(UnitKind::FfnChannel, 20, 1);
        let exact = coupled_path(&problem, &units, Scoring::Sequential, Update::Correlated).unwrap();
        let found = coupled_path(&single, &units, Scoring::Sequential, Update::Correlated).unwrap();
        prop_assert_eq!(found.damping.a.unwrap().precision, Precision::F32);
        prop_assert!(found.steps.iter().all(|s| s.cost >= 0.0));
        let total = |steps: &[types::PathStep]| steps.iter().map(|s| s.cost).sum::<f64>();
        prop_assert!((total(&found.steps) / total(&exact.steps) - 1.0).abs() < 0.05);
        let removed: Vec<Unit> = found.steps[..10].iter().map(|s| s.unit).collect();
        let updated = coupled_update(&single, &units, &removed, Update::Correlated).unwrap();
        prop_assert_eq!(updated.w_rc.kind(), Kind::Float);
        prop_assert!((total(&found.steps[..10]) / updated.predicted - 1.0).abs() < 1e-3);
    }
}

#[test]
fn a_factor_that_needs_f64_takes_the_whole_layer_there() {
    // Rank one in A and no damping: f32 cannot factorise it, f64 only after the damping is raised.
    let x = Tensor::ones([1, 6], (Kind::Float, Device::Cpu));
    let problem = LayerProblem {
        a_cc: Some(x.tr().matmul(&x)),
        w_rc: testkit::random(&[3, 6], 1).to_kind(Kind::Float),
        g_rr: Some(testkit::random_spd(3, 2).to_kind(Kind::Float)),
        ..problem(3, 6, false, Factors::Both, 1, Device::Cpu)
    };
    let units = units(UnitKind::FfnChannel, 6, 1);
    let path = coupled_path(&problem, &units, Scoring::Sequential, Update::Correlated).unwrap();
    let (a, g) = (path.damping.a.unwrap(), path.damping.g.unwrap());
    assert!(a.raised > 0 && a.precision == Precision::F64, "{a:?}");
    assert_eq!((g.raised, g.precision), (0, Precision::F64));
    assert_eq!(path.steps.len(), 5);
    let removed: Vec<Unit> = path.steps[..3].iter().map(|s| s.unit).collect();
    let updated = coupled_update(&problem, &units, &removed, Update::Correlated).unwrap();
    let sum: f64 = path.steps[..3].iter().map(|s| s.cost).sum();
    assert_eq!(updated.w_rc.kind(), Kind::Float);
    assert!((sum / updated.predicted - 1.0).abs() < 1e-6, "{sum} {}", updated.predicted);
}

#[test]
fn what_is_not_finite_names_the_layer() {
    let units = units(UnitKind::FfnChannel, 4, 1);
    let nan = |n: i64, m: i64| Tensor::full([n, m], f64::NAN, (Kind::Double, Device::Cpu));
    let base = || problem(3, 4, false, Factors::Both, 5, Device::Cpu);
    let broken = [
        LayerProblem { w_rc: nan(3, 4), ..base() },
        LayerProblem { a_cc: Some(nan(4, 4)), ..base() },
        LayerProblem { g_rr: Some(nan(3, 3)), ..base() },
    ];
    for problem in &broken {
        let errors = [
            coupled_path(problem, &units, Scoring::Sequential, Update::Correlated).map(|_| ()),
            coupled_update(problem, &units, &[], Update::None).map(|_| ()),
            row_column_path(problem, &[0, 1, 2], &[0, 1, 2, 3], Scoring::Independent, Update::None).map(|_| ()),
            row_column_update(problem, &[0, 1, 2], &[0, 1, 2, 3], &[], Update::Correlated).map(|_| ()),
        ];
        for error in errors {
            let error = error.unwrap_err().to_string();
            assert!(error.contains("model.layers.3.fc2") && error.contains("not finite"), "{error}");
        }
    }
}

#[test]
fn an_indefinite_factor_names_the_layer_its_eigenvalue_and_the_tokens() {
    let a = Tensor::from_slice(&[1.0, 1.0, 1.0, -9.0]).diag(0);
    let problem = LayerProblem { a_cc: Some(a), ..problem(3, 4, false, Factors::Both, 5, Device::Cpu) };
    let units = units(UnitKind::FfnChannel, 4, 1);
    let error = coupled_path(&problem, &units, Scoring::Sequential, Update::Correlated).unwrap_err().to_string();
    for part in ["A of model.layers.3.fc2", "-9", "100 tokens"] {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn inputs_that_do_not_fit_are_refused_with_both_shapes() {
    let problem = problem(3, 4, false, Factors::Both, 5, Device::Cpu);
    let path = |units: &pruning::Units| coupled_path(&problem, units, Scoring::Sequential, Update::Correlated);
    let wide = path(&units(UnitKind::FfnChannel, 5, 1)).unwrap_err();
    assert!(wide.to_string().contains("[3, 5] and has [3, 4]"), "{wide}");
    let good = units(UnitKind::FfnChannel, 4, 1);
    let unsorted = pruning::Units { kept: vec![2, 1, 3, 4], ..good.clone() };
    assert!(matches!(path(&unsorted), Err(PruningError::Units { .. })));
    let unit = |index| Unit { kind: UnitKind::FfnChannel, index };
    for bad in [vec![unit(2)], vec![unit(1), unit(1)], vec![row(1)], good.kept.iter().map(|&i| unit(i)).collect()] {
        let result = coupled_update(&problem, &good, &bad, Update::Correlated);
        assert!(matches!(result, Err(PruningError::Units { .. })), "{bad:?}");
    }
    let path = row_column_path(&problem, &[0, 1, 7], &[0, 1], Scoring::Sequential, Update::Correlated);
    assert!(matches!(path, Err(PruningError::Units { .. })));
    let all_rows = [row(0), row(1), row(2)];
    let update = row_column_update(&problem, &[0, 1, 2], &[0, 1, 2, 3], &all_rows, Update::Correlated);
    assert!(matches!(update, Err(PruningError::Units { .. })));
    let removed_columns = columns_of(&good, &[unit(4)]);
    assert_eq!(removed_columns, [1]);
}
