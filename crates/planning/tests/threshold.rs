//! What holds for every cut (the numbered list in the README), against brute force where the problem is small.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use planning::PlanningError;
use planning::threshold::{Cut, LayerPath, Ranking, per_layer, removal_order, uniform};
use proptest::prelude::*;
use types::{LayerId, PathStep, Unit, UnitKind};

/// A path that owns its steps.
#[derive(Debug, Clone)]
struct Layer {
    id: LayerId,
    kind: UnitKind,
    units_left: u32,
    quantum: u32,
    round: u32,
    freed_per_unit: Option<u64>,
    steps: Vec<PathStep>,
}

impl Layer {
    fn new(kind: UnitKind, freed: u64, costs: &[f64]) -> Self {
        let step =
            |(index, cost): (usize, &f64)| PathStep { unit: Unit { kind, index: index as u32 }, cost: *cost, freed };
        Self {
            id: LayerId::new("layer").unwrap(),
            kind,
            units_left: costs.len() as u32 + 1,
            quantum: 1,
            round: 1,
            freed_per_unit: Some(freed),
            steps: costs.iter().enumerate().map(step).collect(),
        }
    }

    fn path(&self) -> LayerPath<'_> {
        LayerPath {
            layer: &self.id,
            kind: self.kind,
            units_left: self.units_left,
            quantum: self.quantum,
            round: self.round,
            freed_per_unit: self.freed_per_unit,
            steps: &self.steps,
        }
    }

    /// Prefixes that may go, by the words of the definition.
    fn allowed(&self) -> Vec<usize> {
        let fits = |steps: usize| {
            let left = self.units_left as usize - steps;
            steps == 0 || (left.is_multiple_of(self.quantum as usize) && steps.is_multiple_of(self.round as usize))
        };
        (0..=self.steps.len()).filter(|steps| fits(*steps)).collect()
    }

    fn freed(&self, steps: usize) -> u64 {
        self.steps[..steps].iter().map(|s| self.freed_per_unit.unwrap_or(s.freed)).sum()
    }

    fn cost(&self, steps: usize) -> f64 {
        self.steps[..steps].iter().map(|s| s.cost).sum()
    }
}

fn paths(layers: &[Layer]) -> Vec<LayerPath<'_>> {
    layers.iter().map(Layer::path).collect()
}

fn most(layers: &[Layer]) -> u64 {
    layers.iter().map(|l| l.freed(l.allowed().pop().unwrap())).sum()
}

/// All combinations of allowed prefixes as (freed, cost, prefixes).
fn combinations(layers: &[Layer]) -> Vec<(u64, f64, Vec<usize>)> {
    layers.iter().fold(vec![(0, 0.0, vec![])], |all, layer| {
        let extend = |(freed, cost, taken): &(u64, f64, Vec<usize>)| {
            let with =
                |steps| (freed + layer.freed(steps), cost + layer.cost(steps), [taken.as_slice(), &[steps]].concat());
            layer.allowed().into_iter().map(with).collect::<Vec<_>>()
        };
        all.iter().flat_map(extend).collect()
    })
}

fn cheapest(layers: &[Layer], to_free: u64) -> f64 {
    combinations(layers).into_iter().filter(|c| c.0 >= to_free).map(|c| c.1).fold(f64::INFINITY, f64::min)
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-9 * (1.0 + a.abs() + b.abs())
}

/// Any layer: marginals in any order, rounds and quanta of any size, freed amounts by layer or by step.
fn any_layer(longest: usize) -> impl Strategy<Value = Layer> {
    let steps = prop::collection::vec((0.0..1.0_f64, 0_u64..30), 0..=longest);
    (steps, 1_u32..5, 1_u32..4, 0_u32..6, prop::option::of(1_u64..30)).prop_map(
        |(steps, quantum, round, kept, freed_per_unit)| {
            let mut layer = Layer::new(UnitKind::FfnChannel, 0, &steps.iter().map(|s| s.0).collect::<Vec<_>>());
            layer.steps.iter_mut().zip(&steps).for_each(|(step, (_, freed))| step.freed = *freed);
            Layer { units_left: steps.len() as u32 + kept, quantum, round, freed_per_unit, ..layer }
        },
    )
}

/// A layer whose marginals rise, so that the path is its own hull.
fn convex_layer(kind: UnitKind, freed: u64, length: usize) -> impl Strategy<Value = Layer> {
    prop::collection::vec(0.0..1.0_f64, length).prop_map(move |mut costs| {
        costs.sort_by(f64::total_cmp);
        Layer::new(kind, freed, &costs)
    })
}

/// Blocks with FFN and attention paths, equal in width over the blocks; either kind may be absent.
fn any_blocks() -> impl Strategy<Value = Vec<Layer>> {
    let kind = |kind, most: usize| (Just(kind), 0..=most, 1_u64..20, 1_u32..4, 1_u32..3, 1_u32..4);
    (1_usize..4, kind(UnitKind::FfnChannel, 12), kind(UnitKind::KvGroup, 4)).prop_flat_map(
        |(blocks, ffn, attention)| {
            let layer = |(kind, length, freed, quantum, round, kept): (_, usize, _, _, _, u32)| {
                let costs = prop::collection::vec(0.0..1.0_f64, length);
                costs.prop_map(move |costs| {
                    let units_left = costs.len() as u32 + kept;
                    Layer { units_left, quantum, round, ..Layer::new(kind, freed, &costs) }
                })
            };
            let of = |present: bool| if present { blocks } else { 0 };
            let both = (
                prop::collection::vec(layer(ffn), of(ffn.1 > 0)),
                prop::collection::vec(layer(attention), of(attention.1 > 0)),
            );
            both.prop_map(|(ffn, attention)| [ffn, attention].concat())
        },
    )
}

fn share(of: u64, percent: u64) -> u64 {
    of * percent / 100
}

fn check_cut(layers: &[Layer], cut: &Cut, to_free: u64) -> Result<(), TestCaseError> {
    let steps: Vec<usize> = cut.steps.iter().map(|s| *s as usize).collect();
    prop_assert_eq!(steps.len(), layers.len());
    for (layer, steps) in layers.iter().zip(&steps) {
        prop_assert!(layer.allowed().contains(steps), "{} of {:?}", steps, layer);
    }
    let sums = layers.iter().zip(&steps);
    prop_assert_eq!(cut.freed, sums.clone().map(|(l, s)| l.freed(*s)).sum::<u64>());
    prop_assert!(close(cut.predicted, sums.map(|(l, s)| l.cost(*s)).sum()));
    prop_assert!(cut.freed >= to_free);
    Ok(())
}

fn any_ranking() -> impl Strategy<Value = Ranking> {
    prop::sample::select(vec![Ranking::CostPerWeight, Ranking::Cost])
}

proptest! {
    #[test]
    fn a_cut_is_allowed_and_meets_the_target_within_one_step(
        layers in prop::collection::vec(any_layer(20), 0..6), percent in 0_u64..=100, ranking in any_ranking(),
    ) {
        let to_free = share(most(&layers), percent);
        let cut = per_layer(&paths(&layers), to_free, ranking).unwrap();
        check_cut(&layers, &cut, to_free)?;
        prop_assert_eq!(cut.threshold.is_none(), to_free == 0);
        // Some layer's last step was needed: with that layer one allowed point back, too little is freed.
        let one_back = |(layer, steps): (&Layer, &u32)| {
            let before = layer.allowed().into_iter().rfind(|s| *s < *steps as usize);
            before.is_some_and(|s| cut.freed - layer.freed(*steps as usize) + layer.freed(s) < to_free)
        };
        prop_assert!(to_free == 0 || layers.iter().zip(&cut.steps).any(one_back));
        prop_assert!(to_free > 0 || cut.steps.iter().all(|s| *s == 0));
    }

    #[test]
    fn a_larger_target_never_shortens_a_prefix(
        layers in prop::collection::vec(any_layer(20), 1..6), a in 0_u64..=100, b in 0_u64..=100, ranking in any_ranking(),
    ) {
        let solve = |percent| per_layer(&paths(&layers), share(most(&layers), percent), ranking).unwrap();
        let (small, large) = (solve(a.min(b)), solve(a.max(b)));
        prop_assert!(small.steps.iter().zip(&large.steps).all(|(s, l)| s <= l), "{:?} {:?}", small, large);
        prop_assert!(small.freed <= large.freed);
        prop_assert!(small.predicted <= large.predicted + 1e-12);
        prop_assert!(small.threshold.unwrap_or(f64::NEG_INFINITY) <= large.threshold.unwrap_or(f64::INFINITY));
    }

    #[test]
    fn solving_for_what_was_freed_changes_nothing(
        layers in prop::collection::vec(any_layer(20), 0..6), percent in 0_u64..=100, ranking in any_ranking(),
    ) {
        let once = per_layer(&paths(&layers), share(most(&layers), percent), ranking).unwrap();
        prop_assert_eq!(per_layer(&paths(&layers), once.freed, ranking).unwrap(), once);
    }

    #[test]
    fn cuts_follow_the_removal_order(
        mut layers in prop::collection::vec(any_layer(20), 1..6), ranking in any_ranking(),
    ) {
        layers.iter_mut().flat_map(|l| &mut l.steps).for_each(|step| step.freed += 1);
        let order = removal_order(&paths(&layers), ranking).unwrap();
        let mut steps = vec![0; layers.len()];
        for stretch in &order {
            prop_assert_eq!(steps[stretch.path], stretch.steps.start);
            steps[stretch.path] = stretch.steps.end;
            let cut = per_layer(&paths(&layers), stretch.freed, ranking).unwrap();
            prop_assert_eq!((&cut.steps, cut.freed), (&steps, stretch.freed));
            prop_assert!(close(cut.predicted, stretch.predicted));
        }
        prop_assert_eq!(order.last().map_or(0, |last| last.freed), most(&layers));
    }

    #[test]
    fn the_order_of_the_layers_does_not_matter(
        (layers, order) in prop::collection::vec(any_layer(20), 1..6)
            .prop_flat_map(|l| (Just(l.clone()), Just((0..l.len()).collect::<Vec<_>>()).prop_shuffle())),
        percent in 0_u64..=100, ranking in any_ranking(),
    ) {
        let to_free = share(most(&layers), percent);
        let shuffled: Vec<_> = order.iter().map(|i| layers[*i].clone()).collect();
        let (a, b) = (per_layer(&paths(&layers), to_free, ranking).unwrap(), per_layer(&paths(&shuffled), to_free, ranking).unwrap());
        let expected: Vec<_> = order.iter().map(|i| a.steps[*i]).collect();
        prop_assert_eq!(&b.steps, &expected);
        prop_assert_eq!(a.freed, b.freed);
        prop_assert!(close(a.predicted, b.predicted));
    }

    #[test]
    fn on_convex_paths_nothing_cheaper_frees_as_much(
        layers in prop::collection::vec((1_u64..9, 0_usize..5).prop_flat_map(|(f, n)| convex_layer(UnitKind::FfnChannel, f, n)), 1..5),
        percent in 0_u64..=100,
    ) {
        let cut = per_layer(&paths(&layers), share(most(&layers), percent), Ranking::CostPerWeight).unwrap();
        prop_assert!(close(cut.predicted, cheapest(&layers, cut.freed)), "{:?}", cut);
    }

    #[test]
    fn one_tau_takes_exactly_what_costs_no_more(
        layers in prop::collection::vec(convex_layer(UnitKind::Column, 3, 12), 1..5), percent in 1_u64..=100,
    ) {
        let cut = per_layer(&paths(&layers), share(most(&layers), percent).max(1), Ranking::Cost).unwrap();
        let tau = cut.threshold.unwrap();
        for (layer, steps) in layers.iter().zip(&cut.steps) {
            prop_assert_eq!(*steps as usize, layer.steps.iter().filter(|s| s.cost <= tau).count());
        }
    }

    #[test]
    fn uniform_is_the_cheapest_of_all_uniform_cuts(layers in any_blocks(), percent in 0_u64..=100) {
        let prefix_of = |kind| layers.iter().position(|l| l.kind == kind);
        let same = |taken: &[usize]| layers.iter().zip(taken).all(|(l, t)| taken[prefix_of(l.kind).unwrap()] == *t);
        let to_free = share(most(&layers), percent);
        let cut = uniform(&paths(&layers), to_free).unwrap();
        check_cut(&layers, &cut, to_free)?;
        prop_assert!(same(&cut.steps.iter().map(|s| *s as usize).collect::<Vec<_>>()));
        let enough = combinations(&layers).into_iter().filter(|c| c.0 >= to_free && same(&c.2));
        let least = enough.map(|c| c.1).fold(f64::INFINITY, f64::min);
        prop_assert!(close(cut.predicted, least), "{} {}", cut.predicted, least);
        let again = uniform(&paths(&layers), cut.freed).unwrap();
        prop_assert!(again.freed >= cut.freed && close(again.predicted, cut.predicted));
        let one_back = |kind| {
            let of_kind = || layers.iter().zip(&cut.steps).filter(move |(l, _)| l.kind == kind);
            let Some((first, steps)) = of_kind().next() else { return false };
            let Some(before) = first.allowed().into_iter().rfind(|s| *s < *steps as usize) else { return false };
            let given_back: u64 = of_kind().map(|(l, s)| l.freed(*s as usize) - l.freed(before)).sum();
            cut.freed - given_back < to_free
        };
        prop_assert!(to_free == 0 || one_back(UnitKind::FfnChannel) || one_back(UnitKind::KvGroup));
    }

    #[test]
    fn a_width_for_each_layer_is_predicted_to_cost_no_more_than_one_for_all(
        layers in (1_usize..5, 1_u64..9, 1_u64..60).prop_flat_map(|(blocks, ffn, attention)| {
            let ffn = prop::collection::vec(convex_layer(UnitKind::FfnChannel, ffn, 16), blocks);
            let attention = prop::collection::vec(convex_layer(UnitKind::KvGroup, attention, 3), blocks);
            (ffn, attention).prop_map(|(f, a)| [f, a].concat())
        }),
        percent in 0_u64..=100,
    ) {
        let same = uniform(&paths(&layers), share(most(&layers), percent)).unwrap();
        let own = per_layer(&paths(&layers), same.freed, Ranking::CostPerWeight).unwrap();
        let last_step = own.threshold.unwrap_or(0.0) * layers.iter().filter_map(|l| l.freed_per_unit).max().unwrap() as f64;
        let beyond = if own.freed == same.freed { 0.0 } else { last_step };
        prop_assert!(own.predicted <= same.predicted + beyond + 1e-9, "{:?} {:?}", own, same);
    }
}

#[test]
fn a_cheap_step_behind_a_dear_one_is_found() {
    // 9 then 1 is a slope of 5 for both; the other layer's steps of 4 go first, those of 6 last.
    let layers = [Layer::new(UnitKind::FfnChannel, 1, &[9.0, 1.0]), Layer::new(UnitKind::FfnChannel, 1, &[4.0, 6.0])];
    let cut = |to_free| per_layer(&paths(&layers), to_free, Ranking::CostPerWeight).unwrap();
    assert_eq!(cut(1).steps, [0, 1]);
    assert_eq!(cut(3), Cut { steps: vec![2, 1], freed: 3, predicted: 14.0, threshold: Some(5.0) });
    assert_eq!(cut(4).steps, [2, 2]);
}

#[test]
fn equal_keys_go_in_the_order_of_the_layers() {
    let layers = vec![Layer::new(UnitKind::Column, 2, &[0.0, 0.5]); 3];
    for ranking in [Ranking::CostPerWeight, Ranking::Cost] {
        assert_eq!(per_layer(&paths(&layers), 8, ranking).unwrap().steps, [2, 1, 1]);
        assert_eq!(per_layer(&paths(&layers), 5, ranking).unwrap().steps, [1, 1, 1]);
    }
}

#[test]
fn uniform_prefers_the_ffn_between_equals() {
    let ffn = Layer::new(UnitKind::FfnChannel, 1, &[1.0; 4]);
    let heads = Layer { round: 2, units_left: 4, ..Layer::new(UnitKind::QueryHead, 2, &[1.5, 2.5]) };
    let layers = [ffn.clone(), heads.clone(), ffn, heads];
    let solve = |to_free| uniform(&paths(&layers), to_free);
    // Four channels or two heads of each block: 8 freed for 8 nats either way.
    assert_eq!(solve(8), Ok(Cut { steps: vec![4, 0, 4, 0], freed: 8, predicted: 8.0, threshold: None }));
    assert_eq!(solve(9).unwrap().steps, [1, 2, 1, 2]);
    assert_eq!(solve(17), Err(PlanningError::Infeasible { asked: 17, available: 16 }));
}

#[test]
fn what_cannot_be_is_an_error_that_says_why() {
    let good = Layer::new(UnitKind::FfnChannel, 5, &[0.1, 0.2, 0.3]);
    let text =
        |layers: &[Layer], to_free| per_layer(&paths(layers), to_free, Ranking::CostPerWeight).unwrap_err().to_string();
    let coarse = Layer { quantum: 2, ..good.clone() };
    assert_eq!(text(&[coarse], 11), "11 must be freed, but at most 10 can be");
    assert_eq!(text(&[], 1), "1 must be freed, but at most 0 can be");
    let nan = Layer::new(UnitKind::FfnChannel, 5, &[0.1, f64::NAN]);
    assert_eq!(text(&[good.clone(), nan], 1), "removal path of 'layer' is invalid: a cost is not finite");
    let long = Layer { units_left: 2, ..good.clone() };
    assert_eq!(text(&[long], 1), "removal path of 'layer' is invalid: it has more steps than there are units");
    let zero = Layer { quantum: 0, ..good.clone() };
    assert_eq!(text(&[zero], 0), "removal path of 'layer' is invalid: quantum and round must be at least 1");
    let huge = Layer { freed_per_unit: Some(u64::MAX), ..good.clone() };
    assert_eq!(text(&[huge], 0), "removal path of 'layer' is invalid: the freed amounts overflow");

    let narrow = Layer { units_left: 5, ..good.clone() };
    let unequal = uniform(&paths(&[good.clone(), narrow]), 1);
    assert!(matches!(unequal, Err(PlanningError::Unequal { what: "units left", .. })), "{unequal:?}");
    let [kv, heads, row] =
        [UnitKind::KvGroup, UnitKind::QueryHead, UnitKind::Row].map(|kind| Layer { kind, ..good.clone() });
    for layers in [vec![kv, heads], vec![good, row]] {
        let refused = uniform(&paths(&layers), 1);
        assert!(matches!(refused, Err(PlanningError::NoUniformShape { .. })), "{refused:?}");
    }
}
