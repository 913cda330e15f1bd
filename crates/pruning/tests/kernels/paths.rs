//! Removal paths against greedy elimination by brute force on the dense Fisher, and against the joint update.

use crate::common::{ALL_FACTORS, Factors, close, columns_of, dense_removal, fisher, problem, units};
use pruning::{LayerProblem, Units, coupled_path, coupled_update, row_column_path, row_column_update};
use tch::{Device, Tensor};
use testkit::{dense_obs, devices, element_indices};
use types::{PathStep, Scoring, Unit, UnitKind, Update};

/// Returns the dense joint cost of removing units.
fn joint(w: &Tensor, f: &Tensor, units: &Units, removed: &[Unit], update: Update) -> f64 {
    let size = w.size();
    let indices = element_indices((size[0], size[1]), &[], &columns_of(units, removed));
    dense_removal(w, f, &indices, update).cost
}

/// Returns the greedy path by brute force: at each step the unit whose removal adds least to the joint cost, one from each
/// group in a round.
fn greedy(problem: &LayerProblem, units: &Units, update: Update) -> Vec<(u32, f64)> {
    let (w, f) = (problem.w_rc.to_device(Device::Cpu), fisher(problem));
    let per_group = units.kept.len() / units.groups as usize;
    let group = |index: u32| units.kept.iter().position(|&k| k == index).unwrap() / per_group;
    let mut removed: Vec<Unit> = Vec::new();
    let mut path = Vec::new();
    let mut total = 0.0;
    while path.len() < units.groups as usize * (per_group - units.min_keep as usize) {
        let round = path.len() / units.groups as usize;
        let served = |g: usize| removed.iter().filter(|u| group(u.index) == g).count() > round;
        let (index, cost) = units
            .kept
            .iter()
            .filter(|&&k| !removed.iter().any(|u| u.index == k) && !served(group(k)))
            .map(|&index| {
                let with: Vec<Unit> = removed.iter().copied().chain([Unit { kind: units.kind, index }]).collect();
                (index, joint(&w, &f, units, &with, update) - total)
            })
            .min_by(|x, y| x.1.total_cmp(&y.1))
            .unwrap();
        removed.push(Unit { kind: units.kind, index });
        total += cost;
        path.push((index, cost));
    }
    path
}

fn assert_same(case: &str, found: &[PathStep], expected: &[(u32, f64)]) {
    assert_eq!(found.len(), expected.len(), "{case}");
    for (step, (index, cost)) in found.iter().zip(expected) {
        assert_eq!(step.unit.index, *index, "{case}");
        assert!(close(step.cost, *cost), "{case}: {} {cost}", step.cost);
    }
}

#[test]
fn a_path_is_the_greedy_elimination_on_the_dense_fisher() {
    for device in devices() {
        for factors in ALL_FACTORS {
            for (kind, count, q, groups, bias) in [
                (UnitKind::FfnChannel, 6, 1, 1, false),
                (UnitKind::FfnChannel, 5, 1, 1, true),
                (UnitKind::KvGroup, 3, 2, 1, true),
                (UnitKind::QueryHead, 6, 1, 2, false),
                (UnitKind::QueryHead, 4, 1, 2, true),
            ] {
                let c = i64::from(count * q) + i64::from(bias);
                let problem = problem(3, c, bias, factors, 53, device);
                let units = Units { groups, ..units(kind, count, q) };
                for update in [Update::Correlated, Update::None] {
                    let path = coupled_path(&problem, &units, Scoring::Sequential, update).unwrap();
                    let case = format!("{factors:?} {kind} {count}x{q} bias {bias} {update}");
                    assert_same(&case, &path.steps, &greedy(&problem, &units, update));
                }
            }
        }
    }
}

#[test]
fn every_prefix_of_a_path_costs_what_its_joint_update_predicts() {
    for factors in ALL_FACTORS {
        let problem =
            LayerProblem { damping_a: 0.02, damping_g: 0.1, ..problem(5, 13, true, factors, 59, Device::Cpu) };
        for (kind, count, q) in [(UnitKind::FfnChannel, 12, 1), (UnitKind::KvGroup, 4, 3)] {
            let units = units(kind, count, q);
            for update in [Update::Correlated, Update::None] {
                let path = coupled_path(&problem, &units, Scoring::Sequential, update).unwrap();
                for n in 0..=path.steps.len() {
                    let removed: Vec<Unit> = path.steps[..n].iter().map(|s| s.unit).collect();
                    let sum: f64 = path.steps[..n].iter().map(|s| s.cost).sum();
                    let predicted = coupled_update(&problem, &units, &removed, update).unwrap().predicted;
                    assert!(close(sum, predicted), "{factors:?} {kind} {update} {n}: {sum} {predicted}");
                }
            }
        }
    }
}

#[test]
fn a_row_column_path_is_the_greedy_elimination_by_cost_per_freed_weight() {
    for device in devices() {
        for (factors, bias) in ALL_FACTORS.into_iter().flat_map(|f| [(f, false), (f, true)]) {
            let (r, c) = (4, 5);
            let width = c + i64::from(bias);
            let problem = problem(r, width, bias, factors, 61, device);
            let (w, f) = (problem.w_rc.to_device(Device::Cpu), fisher(&problem));
            let path =
                row_column_path(&problem, &[0, 1, 2, 3], &[0, 1, 2, 3, 4], Scoring::Sequential, Update::Correlated)
                    .unwrap();
            let (mut rows, mut columns): (Vec<i64>, Vec<i64>) = (vec![], vec![]);
            let mut total = 0.0;
            for step in &path.steps {
                let (live_r, live_c) = (r - rows.len() as i64, c - columns.len() as i64);
                let mut best: Option<(f64, UnitKind, i64, f64)> = None;
                let candidates = (0..r).filter(|i| live_r > 1 && !rows.contains(i)).map(|i| (UnitKind::Row, i));
                let more = (0..c).filter(|i| live_c > 1 && !columns.contains(i)).map(|i| (UnitKind::Column, i));
                for (kind, i) in candidates.chain(more).collect::<Vec<_>>() {
                    let (mut with_rows, mut with_columns) = (rows.clone(), columns.clone());
                    let freed = if kind == UnitKind::Row {
                        with_rows.push(i);
                        live_c
                    } else {
                        with_columns.push(i);
                        live_r
                    };
                    let cost = dense_obs(&w, &f, &element_indices((r, width), &with_rows, &with_columns)).cost - total;
                    let per_weight = cost / freed as f64;
                    if best.is_none_or(|b| per_weight < b.0) {
                        best = Some((per_weight, kind, i, cost));
                    }
                }
                let (_, kind, i, cost) = best.unwrap();
                assert_eq!((step.unit.kind, i64::from(step.unit.index)), (kind, i), "{factors:?} bias {bias}");
                assert!(close(step.cost, cost), "{factors:?}: {} {cost}", step.cost);
                assert_eq!(step.freed as i64, if kind == UnitKind::Row { live_c } else { live_r });
                if kind == UnitKind::Row {
                    rows.push(i);
                } else {
                    columns.push(i);
                }
                total += cost;
            }
            assert_eq!((rows.len() as i64, columns.len() as i64), (r - 1, c - 1));
        }
    }
}

#[test]
fn every_prefix_of_a_row_column_path_costs_what_its_joint_update_predicts() {
    let problem =
        LayerProblem { damping_a: 0.02, damping_g: 0.1, ..problem(7, 11, true, Factors::Both, 67, Device::Cpu) };
    let (live_rows, live_columns) = ([0, 1, 3, 4, 6], [0, 2, 3, 5, 6, 7, 9]);
    let path = row_column_path(&problem, &live_rows, &live_columns, Scoring::Sequential, Update::Correlated).unwrap();
    assert_eq!(path.steps.iter().map(|s| s.freed).sum::<u64>(), 5 * 7 - 1);
    for n in 0..=path.steps.len() {
        let removed: Vec<Unit> = path.steps[..n].iter().map(|s| s.unit).collect();
        let sum: f64 = path.steps[..n].iter().map(|s| s.cost).sum();
        let updated = row_column_update(&problem, &live_rows, &live_columns, &removed, Update::Correlated).unwrap();
        assert!(close(sum, updated.predicted), "{n}: {sum} {}", updated.predicted);
    }
}

#[test]
fn independent_query_heads_go_in_rounds_as_well() {
    let problem = problem(3, 8, false, Factors::Both, 71, Device::Cpu);
    let units = Units { groups: 2, ..units(UnitKind::QueryHead, 8, 1) };
    for scoring in [Scoring::Independent, Scoring::Sequential] {
        for update in [Update::Correlated, Update::None] {
            let path = coupled_path(&problem, &units, scoring, update).unwrap();
            assert_eq!(path.steps.len(), 6);
            for round in path.steps.chunks(2) {
                let in_first = round.iter().filter(|s| units.kept[..4].contains(&s.unit.index)).count();
                assert_eq!(in_first, 1, "one head of each group a round");
            }
            for n in [2, 4, 6] {
                let removed: Vec<Unit> = path.steps[..n].iter().map(|s| s.unit).collect();
                assert_eq!(coupled_update(&problem, &units, &removed, update).unwrap().kept.len(), 8 - n);
            }
            let half_round = [path.steps[0].unit];
            assert!(coupled_update(&problem, &units, &half_round, update).is_err(), "groups would be unequal");
        }
    }
}
