//! Every row of the structured table against the dense OBS solution under G ⊗ A, sizes up to 6, f64.

use crate::common::{ALL_FACTORS, close, column, columns_of, dense_removal, fisher, problem, row, units, without};
use pruning::{coupled_path, coupled_update, row_column_path, row_column_update};
use tch::{Device, Tensor};
use testkit::{dense_obs, dense_zeroing, devices, element_indices, max_difference};
use types::{Scoring, Unit, UnitKind, Update};

const TOLERANCE: f64 = 1e-9;

#[test]
fn removing_columns_together_is_the_dense_solution() {
    for device in devices() {
        for factors in ALL_FACTORS {
            // (columns without bias, columns a unit, removed units by position); 5 of 6 makes more columns go than there are rows.
            for (count, q, positions) in
                [(5, 1, vec![2]), (5, 1, vec![0, 3]), (6, 1, vec![0, 1, 2, 4, 5]), (3, 2, vec![1]), (3, 2, vec![0, 2])]
            {
                for bias in [false, true] {
                    let c = i64::from(count * q) + i64::from(bias);
                    let problem = problem(3, c, bias, factors, 11, device);
                    let units = units(UnitKind::KvGroup, count, q);
                    let removed: Vec<Unit> =
                        positions.iter().map(|&i| Unit { kind: units.kind, index: units.kept[i as usize] }).collect();
                    let columns = columns_of(&units, &removed);
                    let indices = element_indices((3, c), &[], &columns);
                    let (w, f) = (problem.w_rc.to_device(Device::Cpu), fisher(&problem));
                    for (update, dense) in [
                        (Update::Correlated, dense_obs(&w, &f, &indices)),
                        (Update::None, dense_zeroing(&w, &f, &indices)),
                    ] {
                        let found = coupled_update(&problem, &units, &removed, update).unwrap();
                        let case = format!("{factors:?} {count}x{q} {positions:?} bias {bias} {update}");
                        assert!(close(found.predicted, dense.cost), "{case}: {} {}", found.predicted, dense.cost);
                        assert!(
                            max_difference(&found.w_rc, &without(&dense.w_rc, &[], &columns)) < TOLERANCE,
                            "{case}"
                        );
                        assert_eq!(found.kept.len(), count as usize - positions.len());
                        assert!(found.kept_rows.is_empty());
                    }
                }
            }
        }
    }
}

#[test]
fn removing_rows_and_columns_together_is_the_dense_solution() {
    for device in devices() {
        for factors in ALL_FACTORS {
            for (rows, columns) in [
                (vec![2], vec![]),
                (vec![], vec![1]),
                (vec![0, 3], vec![]),
                (vec![1, 2], vec![0, 4]),
                (vec![0, 1, 2], vec![3]),
            ] {
                for bias in [false, true] {
                    let c = 5 + i64::from(bias);
                    let problem = problem(4, c, bias, factors, 23, device);
                    let removed: Vec<Unit> =
                        rows.iter().map(|&r| row(r as u32)).chain(columns.iter().map(|&c| column(c as u32))).collect();
                    let indices = element_indices((4, c), &rows, &columns);
                    let (w, f) = (problem.w_rc.to_device(Device::Cpu), fisher(&problem));
                    for (update, dense) in [
                        (Update::Correlated, dense_obs(&w, &f, &indices)),
                        (Update::None, dense_zeroing(&w, &f, &indices)),
                    ] {
                        let found =
                            row_column_update(&problem, &[0, 1, 2, 3], &[0, 1, 2, 3, 4], &removed, update).unwrap();
                        let case = format!("{factors:?} rows {rows:?} columns {columns:?} bias {bias} {update}");
                        assert!(close(found.predicted, dense.cost), "{case}: {} {}", found.predicted, dense.cost);
                        assert!(max_difference(&found.w_rc, &dense.w_rc) < TOLERANCE, "{case}");
                        assert_eq!((found.kept_rows.len(), found.kept.len()), (4 - rows.len(), 5 - columns.len()));
                    }
                }
            }
        }
    }
}

#[test]
fn dead_rows_and_columns_take_no_part() {
    let problem = problem(4, 6, true, crate::common::Factors::Both, 31, Device::Cpu);
    let (live_rows, live_columns) = ([0, 2, 3], [0, 1, 4]);
    let found =
        row_column_update(&problem, &live_rows, &live_columns, &[row(2), column(4)], Update::Correlated).unwrap();
    assert_eq!((found.kept_rows.as_slice(), found.kept.as_slice()), ([0, 3].as_slice(), [0, 1].as_slice()));
    // The Fisher of what is left: rows 0 2 3, columns 0 1 4 and the bias 5.
    let select = |m: &tch::Tensor, r: &[i64], c: &[i64]| {
        m.index_select(0, &tch::Tensor::from_slice(r)).index_select(1, &tch::Tensor::from_slice(c))
    };
    let (rows, columns) = ([0, 2, 3], [0, 1, 4, 5]);
    let f = testkit::kron(
        &select(problem.g_rr.as_ref().unwrap(), &rows, &rows),
        &select(problem.a_cc.as_ref().unwrap(), &columns, &columns),
    );
    let dense = dense_obs(&select(&problem.w_rc, &rows, &columns), &f, &element_indices((3, 4), &[1], &[2]));
    assert!(close(found.predicted, dense.cost));
    assert!(max_difference(&select(&found.w_rc, &rows, &columns), &dense.w_rc) < TOLERANCE);
    for (r, c) in [(1, 0), (1, 5), (2, 0), (2, 5), (0, 2), (0, 3), (3, 4)] {
        let value = found.w_rc.double_value(&[r, c]);
        assert_eq!(value.to_bits(), 0.0_f64.to_bits(), "weight {r},{c} is {value:?}");
    }
}

#[test]
fn independent_costs_are_those_of_each_unit_alone() {
    for device in devices() {
        for factors in ALL_FACTORS {
            for (count, q, bias) in [(5, 1, false), (5, 1, true), (3, 2, true)] {
                let c = i64::from(count * q) + i64::from(bias);
                let problem = problem(3, c, bias, factors, 41, device);
                let units = units(UnitKind::KvGroup, count, q);
                let (w, f) = (problem.w_rc.to_device(Device::Cpu), fisher(&problem));
                for update in [Update::Correlated, Update::None] {
                    let path = coupled_path(&problem, &units, Scoring::Independent, update).unwrap();
                    assert_eq!(path.steps.len(), count as usize - 1);
                    assert!(path.steps.is_sorted_by(|x, y| x.cost <= y.cost));
                    for step in &path.steps {
                        let indices = element_indices((3, c), &[], &columns_of(&units, &[step.unit]));
                        let dense = dense_removal(&w, &f, &indices, update);
                        assert!(
                            close(step.cost, dense.cost),
                            "{factors:?} {update} {}: {} {}",
                            step.unit.index,
                            step.cost,
                            dense.cost
                        );
                        assert_eq!(step.freed, 10);
                    }
                }
            }
        }
    }
}

#[test]
fn independent_costs_of_rows_and_columns_are_those_of_each_alone() {
    for factors in ALL_FACTORS {
        let problem = problem(4, 6, true, factors, 43, Device::Cpu);
        let f = fisher(&problem);
        for (scoring, update) in [
            (Scoring::Independent, Update::Correlated),
            (Scoring::Independent, Update::None),
            (Scoring::Sequential, Update::None),
        ] {
            let path = row_column_path(&problem, &[0, 1, 2, 3], &[0, 1, 2, 3, 4], scoring, update).unwrap();
            assert!(path.steps.is_sorted_by(|x, y| x.cost <= y.cost));
            let freed: u64 = path.steps.iter().map(|s| s.freed).sum();
            assert_eq!(freed, 4 * 5 - 1, "one row and one column are left");
            for step in &path.steps {
                let index = [i64::from(step.unit.index)];
                let (rows, columns) =
                    if step.unit.kind == UnitKind::Row { (&index[..], &[][..]) } else { (&[][..], &index[..]) };
                let indices = element_indices((4, 6), rows, columns);
                let dense = dense_removal(&problem.w_rc, &f, &indices, update);
                assert!(close(step.cost, dense.cost), "{factors:?} {update} {:?}", step.unit);
            }
        }
    }
}

#[test]
fn without_curvature_and_update_it_is_magnitude() {
    let problem = problem(4, 6, false, crate::common::Factors::Neither, 47, Device::Cpu);
    let units = units(UnitKind::FfnChannel, 6, 1);
    let path = coupled_path(&problem, &units, Scoring::Sequential, Update::None).unwrap();
    assert_eq!(path.damping, types::FactorDamping::default());
    let mut norms: Vec<(f64, u32)> = (0..6)
        .map(|c| {
            (0.5 * problem.w_rc.select(1, c).square().sum(tch::Kind::Double).double_value(&[]), units.kept[c as usize])
        })
        .collect();
    norms.sort_by(|x, y| x.0.total_cmp(&y.0));
    for (step, (norm, index)) in path.steps.iter().zip(norms) {
        assert_eq!(step.unit.index, index);
        assert!(close(step.cost, norm));
    }
    let removed: Vec<Unit> = path.steps.iter().take(2).map(|s| s.unit).collect();
    for update in [Update::None, Update::Correlated] {
        let found = coupled_update(&problem, &units, &removed, update).unwrap();
        assert_eq!(max_difference(&found.w_rc, &without(&problem.w_rc, &[], &columns_of(&units, &removed))), 0.0);
    }
}

/// Returns W plus the dense solutions' changes for each set of positions as if it went alone, zero at all of them.
fn added_up(w: &Tensor, f: &Tensor, sets: &[Vec<i64>]) -> (Tensor, f64) {
    let changes = sets.iter().map(|set| dense_obs(w, f, set).w_rc - w);
    let gone = Tensor::from_slice(&sets.concat());
    let updated = changes.fold(w.copy(), |sum, change| sum + change).reshape([-1]).index_fill(0, &gone, 0.0);
    let delta = &updated - w.reshape([-1]);
    (updated.reshape(w.size()), 0.5 * delta.dot(&f.matmul(&delta)).double_value(&[]))
}

#[test]
fn the_independent_update_adds_up_what_each_removal_alone_would_do() {
    for factors in ALL_FACTORS {
        for bias in [false, true] {
            let (c, groups) = (6 + i64::from(bias), problem(3, 6 + i64::from(bias), bias, factors, 31, Device::Cpu));
            let (w, f) = (groups.w_rc.copy(), fisher(&groups));
            for (count, q, positions) in [(6, 1, vec![0, 3, 4]), (3, 2, vec![0, 2])] {
                let units = units(UnitKind::KvGroup, count, q);
                let unit = |&i: &i64| Unit { kind: units.kind, index: units.kept[i as usize] };
                let removed: Vec<Unit> = positions.iter().map(unit).collect();
                let columns: Vec<Vec<i64>> =
                    removed.iter().map(|unit| columns_of(&units, std::slice::from_ref(unit))).collect();
                let sets: Vec<_> = columns.iter().map(|of_unit| element_indices((3, c), &[], of_unit)).collect();
                let (expected, cost) = added_up(&w, &f, &sets);
                let found = coupled_update(&groups, &units, &removed, Update::Independent).unwrap();
                assert!(max_difference(&found.w_rc, &without(&expected, &[], &columns.concat())) < TOLERANCE);
                assert!(close(found.predicted, cost), "{factors:?}: {} {cost}", found.predicted);
                let joint = coupled_update(&groups, &units, &removed, Update::Correlated).unwrap().predicted;
                assert!(joint <= cost * (1.0 + 1e-9), "{factors:?}: {joint} {cost}");
            }
            let removed = [row(1), column(0), column(4)];
            let sets = [
                element_indices((3, c), &[1], &[]),
                element_indices((3, c), &[], &[0]),
                element_indices((3, c), &[], &[4]),
            ];
            let (expected, cost) = added_up(&w, &f, &sets);
            let live: Vec<u32> = (0..6).collect();
            let found = row_column_update(&groups, &[0, 1, 2], &live, &removed, Update::Independent).unwrap();
            assert!(max_difference(&found.w_rc, &expected) < TOLERANCE, "{factors:?}");
            assert!(close(found.predicted, cost), "{factors:?}: {} {cost}", found.predicted);
        }
    }
}
