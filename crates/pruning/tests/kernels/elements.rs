//! Costs of single weights and of n:m windows against the dense solution, and the way from costs to a mask.

use crate::common::{ALL_FACTORS, Factors, close, dense_removal, fisher, problem};
use proptest::prelude::*;
use pruning::{LayerProblem, PruningError, element_costs, histogram_counts, select_elements, window_costs};
use tch::{Device, Kind, Tensor};
use testkit::{devices, max_difference};
use types::{LayerId, Pattern, Update};

/// Sets some weights (row-major positions) to zero.
fn with_zeros(problem: LayerProblem, zeros: &[i64]) -> LayerProblem {
    let _ = problem.w_rc.view([-1]).index_fill_(0, &Tensor::from_slice(zeros).to_device(problem.w_rc.device()), 0.0);
    problem
}

fn dense(problem: &LayerProblem, positions: &[i64], update: Update) -> f64 {
    dense_removal(&problem.w_rc.to_device(Device::Cpu), &fisher(problem), positions, update).cost
}

fn sets(m: usize, size: usize) -> impl Iterator<Item = Vec<usize>> {
    let of = move |bits: usize| (0..m).filter(|i| bits >> i & 1 == 1).collect::<Vec<_>>();
    (0..1 << m).map(of).filter(move |set| set.len() == size)
}

#[test]
fn the_cost_of_an_element_is_that_of_removing_it_alone() {
    for device in devices() {
        for factors in ALL_FACTORS {
            for bias in [false, true] {
                let c = 4 + i64::from(bias);
                let problem = with_zeros(problem(3, c, bias, factors, 3, device), &[1, c + 2, 3 * c - 1]);
                for update in [Update::Correlated, Update::None] {
                    let found = element_costs(&problem, update).unwrap();
                    assert_eq!(found.costs_rc.size(), [3, 4], "the bias has no cost");
                    assert_eq!(found.damping.a.is_some(), problem.a_cc.is_some());
                    for r in 0..3 {
                        for col in 0..4 {
                            let cost = found.costs_rc.double_value(&[r, col]);
                            let expected = dense(&problem, &[r * c + col], update);
                            assert!(close(cost, expected), "{factors:?} {update} {r},{col}: {cost} {expected}");
                            assert_eq!(cost == 0.0, problem.w_rc.double_value(&[r, col]) == 0.0);
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn only_what_is_zero_costs_nothing() {
    let problem = LayerProblem {
        w_rc: Tensor::from_slice(&[0.0_f32, 1e-30, -1e-30, 2.0]).view([2, 2]),
        ..problem(2, 2, false, Factors::Neither, 1, Device::Cpu)
    };
    let costs = element_costs(&problem, Update::Correlated).unwrap().costs_rc;
    assert_eq!(Vec::<f32>::try_from(costs.view([-1])).unwrap(), [0.0, f32::MIN_POSITIVE, f32::MIN_POSITIVE, 2.0]);
    let pattern = Pattern::new(1, 2).unwrap();
    let windows = window_costs(&problem, pattern, Update::Correlated).unwrap().costs_rk;
    assert_eq!(Vec::<f32>::try_from(windows.view([-1])).unwrap(), [0.0, f32::MIN_POSITIVE]);
}

#[test]
fn a_window_removes_what_is_cheapest_together() {
    for device in devices() {
        for factors in ALL_FACTORS {
            for (n, m, c, bias) in [(2, 4, 6, true), (1, 2, 5, false), (2, 3, 6, false), (1, 4, 5, true)] {
                // Zeros: one in the first window of row 0, many in that of row 1, none in row 2.
                let zeros: Vec<i64> = [1].into_iter().chain((0..i64::from(m)).map(|i| c + i)).collect();
                let problem = with_zeros(problem(3, c, bias, factors, 19, device), &zeros);
                let (size, windows) = ((m - n) as usize, (c - i64::from(bias)) / i64::from(m));
                for update in [Update::Correlated, Update::None] {
                    let found = window_costs(&problem, Pattern::new(n, m).unwrap(), update).unwrap();
                    assert_eq!(found.costs_rk.size(), [3, windows]);
                    assert_eq!(found.tail, c - i64::from(bias) - windows * i64::from(m));
                    for (r, k) in (0..3).flat_map(|r| (0..windows).map(move |k| (r, k))) {
                        let position = |i: usize| r * c + k * i64::from(m) + i as i64;
                        let is_zero = |i: usize| problem.w_rc.view([-1]).double_value(&[position(i)]) == 0.0;
                        let gone: Vec<usize> = (0..m as usize).filter(|i| is_zero(*i)).collect();
                        let best = if gone.len() >= size {
                            (0.0, gone)
                        } else {
                            sets(m as usize, size)
                                .filter(|set| gone.iter().all(|i| set.contains(i)))
                                .map(|set| {
                                    let positions: Vec<i64> = set.iter().map(|i| position(*i)).collect();
                                    (dense(&problem, &positions, update), set)
                                })
                                .min_by(|x, y| x.0.total_cmp(&y.0))
                                .unwrap()
                        };
                        let cost = found.costs_rk.double_value(&[r, k]);
                        let case = format!("{factors:?} {n}:{m} {update} {r},{k}");
                        assert!(close(cost, best.0), "{case}: {cost} {}", best.0);
                        assert_eq!(cost == 0.0, best.0 == 0.0, "{case}");
                        let removed = Vec::<bool>::try_from(found.removed_rkm.get(r).get(k)).unwrap();
                        let removed: Vec<usize> = (0..m as usize).filter(|i| removed[*i]).collect();
                        assert_eq!(removed, best.1, "{case}");
                    }
                    let every = found.costs_rk.ones_like().to_kind(Kind::Bool);
                    let mask = found.removed(&every).unwrap();
                    assert_eq!(mask.size(), [3, c - i64::from(bias)]);
                    let in_tail = mask.narrow(1, windows * i64::from(m), found.tail).to_kind(Kind::Int64);
                    assert_eq!(in_tail.sum(Kind::Int64).int64_value(&[]), 0, "the tail stays");
                    let none = found.removed(&every.logical_not()).unwrap();
                    assert_eq!(none.any().int64_value(&[]), 0);
                    assert!(matches!(found.removed(&every.narrow(0, 0, 1)), Err(PruningError::Shape { .. })));
                }
            }
        }
    }
}

#[test]
fn a_window_with_too_many_choices_goes_one_weight_at_a_time() {
    let pattern = Pattern::new(8, 16).unwrap();
    for device in devices() {
        for factors in ALL_FACTORS {
            let problem = with_zeros(problem(2, 34, false, factors, 29, device), &[3, 17, 34, 35]);
            for update in [Update::Correlated, Update::None] {
                let found = window_costs(&problem, pattern, update).unwrap();
                assert_eq!((found.costs_rk.size(), found.tail), (vec![2, 2], 2));
                for (r, k) in [(0, 1), (1, 0)] {
                    let start = r * 34 + k * 16;
                    let is_zero = |i: &i64| problem.w_rc.view([-1]).double_value(&[start + i]) == 0.0;
                    let mut gone: Vec<i64> = (0..16).filter(is_zero).map(|i| start + i).collect();
                    while gone.len() < 8 {
                        let with = |i: i64| [gone.as_slice(), &[i]].concat();
                        let next = (start..start + 16)
                            .filter(|i| !gone.contains(i))
                            .map(|i| (dense(&problem, &with(i), update), i))
                            .min_by(|x, y| x.0.total_cmp(&y.0));
                        gone.push(next.unwrap().1);
                    }
                    let cost = found.costs_rk.double_value(&[r, k]);
                    let expected = dense(&problem, &gone, update);
                    assert!(close(cost, expected), "{factors:?} {update} {r},{k}: {cost} {expected}");
                    gone.sort_unstable();
                    let removed = Vec::<bool>::try_from(found.removed_rkm.get(r).get(k)).unwrap();
                    let removed: Vec<i64> = (0..16).filter(|i| removed[*i as usize]).map(|i| start + i).collect();
                    assert_eq!(removed, gone, "{factors:?} {update} {r},{k}");
                }
            }
        }
    }
}

#[test]
fn windows_in_many_chunks_are_windows_alone() {
    // 4:16 has so many choices that 48 windows and 16 rows fill a chunk; 1:2 fits whole.
    for (n, m, c) in [(4, 16, 49 * 16 + 3), (1, 2, 7)] {
        let pattern = Pattern::new(n, m).unwrap();
        let all = problem(20, c, false, Factors::Both, 37, Device::Cpu);
        let whole = window_costs(&all, pattern, Update::Correlated).unwrap();
        for row in [0, 19] {
            // One row with its own share of G⁻¹: costs scale, choices stay.
            let alone = LayerProblem {
                w_rc: all.w_rc.narrow(0, row, 1),
                g_rr: None,
                a_cc: all.a_cc.as_ref().map(Tensor::shallow_clone),
                ..problem(1, c, false, Factors::Neither, 1, Device::Cpu)
            };
            let alone = window_costs(&alone, pattern, Update::Correlated).unwrap();
            let removed = |t: &Tensor| t.to_kind(Kind::Double);
            assert_eq!(
                max_difference(&removed(&whole.removed_rkm.narrow(0, row, 1)), &removed(&alone.removed_rkm)),
                0.0
            );
            let scale = whole.costs_rk.get(row) / alone.costs_rk.get(0);
            assert!((scale.max() / scale.min()).double_value(&[]) - 1.0 < 1e-9);
        }
    }
}

#[test]
fn a_layer_narrower_than_a_window_is_all_tail() {
    let problem = problem(2, 4, true, Factors::Both, 5, Device::Cpu);
    for pattern in ["2:4", "8:16"] {
        let found = window_costs(&problem, pattern.parse().unwrap(), Update::Correlated).unwrap();
        assert_eq!((found.costs_rk.size(), found.tail), (vec![2, 0], 3));
        assert_eq!(found.removed(&found.costs_rk.to_kind(Kind::Bool)).unwrap().size(), [2, 3]);
    }
}

#[test]
fn without_curvature_costs_are_half_the_square() {
    let problem = problem(3, 4, false, Factors::Neither, 7, Device::Cpu);
    for update in [Update::Correlated, Update::None] {
        let costs = element_costs(&problem, update).unwrap().costs_rc;
        assert!(max_difference(&costs, &(problem.w_rc.square() * 0.5)) < 1e-15);
        let windows = window_costs(&problem, Pattern::new(2, 4).unwrap(), update).unwrap();
        let two_smallest = costs.sort(1, false).0.narrow(1, 0, 2).sum_dim_intlist(1, true, Kind::Double);
        assert!(max_difference(&windows.costs_rk, &two_smallest) < 1e-12);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn counts_and_selection_are_those_of_sorting(
        seed in 0_u64..1000, (r, c) in (1_i64..5, 1_i64..9), values in 1_i64..20, percent in 0_usize..=100,
    ) {
        let layer = LayerId::new("layer").unwrap();
        // Rounded to few values, so that many are equal.
        let costs = (testkit::random(&[r, c], seed).abs() * values).floor().to_kind(Kind::Float) / 7.0;
        let flat = Vec::<f32>::try_from(costs.view([-1])).unwrap();
        let upper = histogram_counts(&layer, &costs, None).unwrap();
        prop_assert_eq!(upper.len(), 1 << 16);
        for (digit, count) in upper.iter().enumerate().filter(|(_, count)| **count > 0) {
            let expected = flat.iter().filter(|cost| (cost.to_bits() >> 16) as usize == digit).count();
            prop_assert_eq!(*count as usize, expected);
            let lower = histogram_counts(&layer, &costs, Some(digit as u16)).unwrap();
            prop_assert_eq!(lower.iter().sum::<u64>(), *count);
            let in_bin = |cost: &&f32| (cost.to_bits() >> 16) as usize == digit;
            prop_assert!(flat.iter().filter(in_bin).all(|cost| lower[(cost.to_bits() & 0xFFFF) as usize] > 0));
        }
        prop_assert_eq!(upper.iter().sum::<u64>() as usize, flat.len());

        let mut order: Vec<usize> = (0..flat.len()).collect();
        order.sort_by(|x, y| flat[*x].total_cmp(&flat[*y]));
        let count = flat.len() * percent / 100;
        let threshold = order[..count].last().map_or(0, |last| flat[*last].to_bits());
        let below = flat.iter().filter(|cost| cost.to_bits() < threshold).count();
        let mask = select_elements(&layer, &costs, threshold, (count - below) as u64).unwrap();
        prop_assert_eq!(mask.size(), [r, c]);
        let removed = Vec::<bool>::try_from(mask.view([-1])).unwrap();
        let mut expected = vec![false; flat.len()];
        order[..count].iter().for_each(|i| expected[*i] = true);
        prop_assert_eq!(removed, expected);
    }
}

#[test]
fn costs_that_are_none_name_the_layer() {
    let layer = LayerId::new("model.layers.3.fc2").unwrap();
    for (bad, text) in [
        (f32::NAN, "a cost is not finite"),
        (-f32::NAN, "a cost is not finite"),
        (f32::INFINITY, "a cost is not finite"),
        (-1.0, "a cost became -1e0 after 0 removals"),
    ] {
        let costs = Tensor::from_slice(&[1.0, bad]);
        for error in [
            histogram_counts(&layer, &costs, None).map(|_| ()).unwrap_err(),
            select_elements(&layer, &costs, 0, 0).map(|_| ()).unwrap_err(),
        ] {
            assert_eq!(error.to_string(), format!("model.layers.3.fc2: {text}"));
        }
    }
    let costs = Tensor::from_slice(&[1.0_f32, 2.0, 2.0]);
    let error = select_elements(&layer, &costs, 2.0_f32.to_bits(), 3).unwrap_err();
    assert!(error.to_string().contains("3 costs that equal the threshold should go, 2 do"), "{error}");
    let none = Tensor::zeros([0, 4], (Kind::Float, Device::Cpu));
    assert_eq!(histogram_counts(&layer, &none, None).unwrap().iter().sum::<u64>(), 0);
    assert_eq!(select_elements(&layer, &none, 5, 0).unwrap().size(), [0, 4]);
}

#[test]
fn a_cost_above_the_range_of_f32_is_an_error_that_names_the_layer() {
    let problem = LayerProblem {
        w_rc: Tensor::from_slice(&[1e30_f32, 1.0]).view([1, 2]),
        ..problem(1, 2, false, Factors::Neither, 1, Device::Cpu)
    };
    let error = element_costs(&problem, Update::None).unwrap_err();
    assert!(matches!(&error, PruningError::Unstable { layer, .. } if layer.contains("layers.3.fc2")), "{error}");
}
