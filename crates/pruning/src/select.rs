//! From costs to an order, and from named units to positions; the rule that query heads go in rounds lives here.
//!
//! Knows no tensors.

use crate::{LayerProblem, PruningError, Units};
use std::cmp::Ordering;
use types::Unit;

/// The order rule of a layer's units: with several groups, each round takes one unit from every group.
#[derive(Debug)]
pub(crate) struct Rounds {
    groups: usize,
    units_per_group: usize,
    steps: usize,
    /// Groups that the current round has already served.
    served: Vec<bool>,
}

impl Rounds {
    pub(crate) fn new(units: &Units) -> Self {
        let groups = units.groups as usize;
        let units_per_group = units.kept.len() / groups;
        let steps = groups * units_per_group.saturating_sub(units.min_keep as usize);
        Self { groups, units_per_group, steps, served: vec![false; groups] }
    }

    /// Returns how many units may go in all.
    pub(crate) fn steps(&self) -> usize {
        self.steps
    }

    /// Returns whether units go one by one, without rounds.
    pub(crate) fn is_free(&self) -> bool {
        self.groups == 1
    }

    /// Returns which of `alive` (unit positions, with `costs` alongside) goes next, as an index into `alive`, and marks its
    /// group as served in this round. The lowest position wins a tie.
    pub(crate) fn take_cheapest(&mut self, alive: &[usize], costs: &[f64]) -> Option<usize> {
        let admitted = (0..alive.len()).filter(|&i| !self.served[self.group(alive[i])]);
        let next = admitted.min_by(|&i, &j| costs[i].total_cmp(&costs[j]))?;
        let group = self.group(alive[next]);
        self.served[group] = true;
        if self.served.iter().all(|&s| s) {
            self.served.fill(false);
        }
        Some(next)
    }

    /// Returns unit positions by rising cost as far as units may go; in rounds, where there are groups.
    pub(crate) fn order(&mut self, costs: &[f64]) -> Vec<usize> {
        let mut alive: Vec<usize> = (0..costs.len()).collect();
        if self.is_free() {
            alive.sort_by(|&i, &j| costs[i].total_cmp(&costs[j]));
            alive.truncate(self.steps);
            return alive;
        }
        let mut order = Vec::with_capacity(self.steps);
        while order.len() < self.steps {
            let alive_costs: Vec<f64> = alive.iter().map(|&unit| costs[unit]).collect();
            let Some(next) = self.take_cheapest(&alive, &alive_costs) else { break };
            order.push(alive.remove(next));
        }
        order
    }

    fn group(&self, position: usize) -> usize {
        position / self.units_per_group
    }
}

/// Returns positions by rising value, the lowest first on a tie.
pub(crate) fn rising(costs: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..costs.len()).collect();
    order.sort_by(|&i, &j| costs[i].total_cmp(&costs[j]));
    order
}

/// Returns which of the layer's units go, by position.
///
/// # Errors
/// `Units` when one is not there, is named twice, or too few would stay, or not equally many in every group.
pub(crate) fn removed_units(
    problem: &LayerProblem,
    units: &Units,
    removed: &[Unit],
) -> Result<Vec<bool>, PruningError> {
    let mut gone = vec![false; units.kept.len()];
    for unit in removed {
        if unit.kind != units.kind {
            return Err(
                problem.units_error(format!("cannot remove a {} among units of kind {}", unit.kind, units.kind))
            );
        }
        mark(problem, &mut gone, &units.kept, *unit)?;
    }
    let per_group = (units.kept.len() / units.groups as usize).max(1);
    let left: Vec<usize> = gone.chunks(per_group).map(|group| group.iter().filter(|gone| !**gone).count()).collect();
    if left.iter().any(|&n| n != left[0]) {
        return Err(problem.units_error(format!("groups would keep unequal numbers of units: {left:?}")));
    }
    if !removed.is_empty() && left.iter().any(|&n| n < units.min_keep as usize) {
        return Err(problem.units_error(format!("{} units must stay in a group, {} would", units.min_keep, left[0])));
    }
    Ok(gone)
}

/// Marks `unit` as gone by its position among the `live` ones.
pub(crate) fn mark(problem: &LayerProblem, gone: &mut [bool], live: &[u32], unit: Unit) -> Result<(), PruningError> {
    let Ok(position) = live.binary_search(&unit.index) else {
        return Err(problem.units_error(format!("there is no live {} {}", unit.kind, unit.index)));
    };
    if std::mem::replace(&mut gone[position], true) {
        return Err(problem.units_error(format!("{} {} is removed twice", unit.kind, unit.index)));
    }
    Ok(())
}

/// Returns the cheaper of two candidates' order, `first` on a tie.
pub(crate) fn first_is_cheaper(first: f64, second: f64) -> bool {
    first.total_cmp(&second) != Ordering::Greater
}

#[cfg(test)]
mod tests {
    use super::*;
    use types::UnitKind;

    fn heads(groups: u32, kept: u32, min_keep: u32) -> Units {
        let kept = (0..kept).collect();
        Units { kind: UnitKind::QueryHead, kept, columns_per_unit: 2, groups, min_keep, freed_per_unit: 1 }
    }

    #[test]
    fn query_heads_go_one_from_every_group_and_round() {
        let costs = [1.0, 2.0, 3.0, 30.0, 20.0, 10.0];
        assert_eq!(Rounds::new(&heads(2, 6, 1)).order(&costs), [0, 5, 1, 4]);
        assert_eq!(Rounds::new(&heads(1, 6, 1)).order(&costs), [0, 1, 2, 5, 4]);
    }

    #[test]
    fn ties_go_to_the_lowest_position() {
        assert_eq!(rising(&[1.0, 0.5, 0.5, 1.0]), [1, 2, 0, 3]);
        assert_eq!(Rounds::new(&heads(2, 4, 0)).order(&[1.0; 4]), [0, 2, 1, 3]);
        assert!(first_is_cheaper(1.0, 1.0));
    }
}
