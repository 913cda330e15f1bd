//! What a surgeon says of one block, held against the model: removal paths and histograms that cannot be are refused before they
//! get to the store, where a cut would be made of them. Does not judge whether costs are right; only their surgeon knows.

use proto::convert::{Fields, InvalidMessage};
use proto::v1;
use std::collections::BTreeSet;
use types::{
    BlockDescription, CostHistogram, LayerId, LayerState, PathStep, RemovalPath, RunSpec, Structure, UnitGroup,
    UnitKind,
};

const PATHS: Fields = Fields("ReportPathsRequest");
const HISTOGRAMS: Fields = Fields("ReportCostHistogramRequest");

/// The layers of a block whose paths are due, in the model's order, each with what is left of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Due(Vec<Site>);

/// One layer that has a path.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Site {
    layer: LayerId,
    left: Left,
}

/// What may go from a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Left {
    /// Units of one kind, each of which frees as much.
    Units { kind: UnitKind, units: BTreeSet<u32>, must_stay: usize, freed: u64 },
    /// Rows and columns: a row frees a weight in each column that is left, a column one in each row.
    Lines { rows: BTreeSet<u32>, columns: BTreeSet<u32> },
}

impl Due {
    /// Returns what is due of a block; `state`: what a layer looks like before the cut, if it differs from the base model.
    pub(crate) fn of<'a>(
        block: &BlockDescription,
        structure: Structure,
        state: impl Fn(&LayerId) -> Option<&'a LayerState>,
    ) -> Self {
        let cut = |layer: &LayerId| state(layer).filter(|state| state.kind != UnitKind::Whole);
        let sites: Vec<Site> = match structure {
            Structure::Coupled => block.groups.iter().map(|group| units_of(group, cut(&group.layer))).collect(),
            Structure::RowColumn => {
                let described = block.layers.iter().filter(|layer| layer.curvature);
                described.map(|d| lines_of(&d.layer, (d.rows, d.columns), cut(&d.layer))).collect()
            }
            Structure::Element | Structure::NofM => Vec::new(), // they have no paths
        };
        // What is gone altogether has no path.
        Self(sites.into_iter().filter(|site| site.left.any()).collect())
    }

    /// Returns how many layers there are.
    pub(crate) fn layers(&self) -> usize {
        self.0.len()
    }

    /// Returns how many steps all paths together have at most.
    pub(crate) fn most_steps(&self) -> usize {
        self.0.iter().map(|site| site.left.longest()).sum()
    }

    /// Refuses paths of other layers than are due, and steps that cannot be.
    pub(crate) fn check(&self, paths: &[RemovalPath]) -> Result<(), InvalidMessage> {
        if !paths.iter().map(|path| &path.layer).eq(self.0.iter().map(|site| &site.layer)) {
            let due: Vec<&str> = self.0.iter().map(|site| site.layer.as_str()).collect();
            return Err(PATHS.bad("path.layer", format!("paths are due of {}, in this order", due.join(", "))));
        }
        for (site, path) in self.0.iter().zip(paths) {
            site.left.check(&path.steps).map_err(|(n, problem)| {
                PATHS.bad(&format!("path.steps[{n}]"), format!("of {}: {problem}", site.layer))
            })?;
        }
        Ok(())
    }
}

fn units_of(group: &UnitGroup, state: Option<&LayerState>) -> Site {
    let all = 0..group.units * group.together;
    let units = state.map_or_else(|| all.collect(), |state| state.kept.iter().copied().collect());
    let must_stay = group.min_keep as usize * group.together as usize;
    let left = Left::Units { kind: group.kind, units, must_stay, freed: group.freed_per_unit.prunable };
    Site { layer: group.layer.clone(), left }
}

fn lines_of(layer: &LayerId, (rows, columns): (u64, u64), state: Option<&LayerState>) -> Site {
    let all = |count: u64| (0..count as u32).collect();
    let (rows, columns) = state.map_or_else(
        || (all(rows), all(columns)),
        |state| (state.kept_rows.iter().copied().collect(), state.kept.iter().copied().collect()),
    );
    Site { layer: layer.clone(), left: Left::Lines { rows, columns } }
}

impl Left {
    /// Says whether anything is left.
    fn any(&self) -> bool {
        match self {
            Self::Units { units, .. } => !units.is_empty(),
            Self::Lines { .. } => true, // the last row and the last column stay
        }
    }

    /// Returns how long a path may be.
    fn longest(&self) -> usize {
        match self {
            Self::Units { units, must_stay, .. } => units.len().saturating_sub(*must_stay),
            Self::Lines { rows, columns } => rows.len().saturating_sub(1) + columns.len().saturating_sub(1),
        }
    }

    /// Takes the steps one after the other; returns the first that cannot be, and why.
    fn check(&self, steps: &[PathStep]) -> Result<(), (usize, String)> {
        if steps.len() > self.longest() {
            return Err((self.longest(), format!("{} may go", self.longest())));
        }
        let mut left = self.clone();
        for (n, step) in steps.iter().enumerate() {
            let freed = left.take(step).ok_or_else(|| {
                (n, format!("{} {} is not there, or goes a second time", step.unit.kind, step.unit.index))
            })?;
            if step.freed != freed {
                return Err((n, format!("it frees {freed} weights, not {}", step.freed)));
            }
        }
        Ok(())
    }

    /// Removes what a step removes, and returns what that frees; nothing if it is not there.
    fn take(&mut self, step: &PathStep) -> Option<u64> {
        match (self, step.unit.kind) {
            (Self::Units { kind, units, freed, .. }, of) if *kind == of => {
                units.remove(&step.unit.index).then_some(*freed)
            }
            (Self::Lines { rows, columns }, UnitKind::Row) if rows.len() > 1 => {
                rows.remove(&step.unit.index).then_some(columns.len() as u64)
            }
            (Self::Lines { rows, columns }, UnitKind::Column) if columns.len() > 1 => {
                columns.remove(&step.unit.index).then_some(rows.len() as u64)
            }
            _ => None,
        }
    }
}

/// Paths as they come, message after message.
#[derive(Debug)]
pub(crate) struct Coming {
    layers: usize,
    steps: u64,
    paths: Vec<RemovalPath>,
    came: u64,
}

impl Coming {
    /// Begins with what a header announces.
    pub(crate) fn begin(due: &Due, (layers, steps): (u32, u64)) -> Result<Self, InvalidMessage> {
        PATHS.at_most("header.layers", layers as usize, due.layers(), "layers")?;
        PATHS.number("header.steps", steps, due.most_steps() as u64)?;
        Ok(Self { layers: layers as usize, steps, paths: Vec::new(), came: 0 })
    }

    /// Adds a path, or more of the last one.
    pub(crate) fn add(&mut self, path: v1::LayerPath) -> Result<(), InvalidMessage> {
        let damped = path.damping.is_some();
        let path = RemovalPath::try_from(path)?;
        self.came += path.steps.len() as u64;
        PATHS.number("path.steps", self.came, self.steps)?;
        match self.paths.last_mut() {
            Some(last) if last.layer == path.layer => {
                if damped || path.steps.is_empty() {
                    return Err(PATHS.bad("path", format!("the path of {} begins a second time", path.layer)));
                }
                last.steps.extend(path.steps);
            }
            _ => {
                PATHS.at_most("path", self.paths.len() + 1, self.layers, "layers")?;
                if !damped {
                    return Err(PATHS.bad("path.damping", format!("the path of {} begins without it", path.layer)));
                }
                self.paths.push(path);
            }
        }
        Ok(())
    }

    /// Returns the paths, if all have come.
    pub(crate) fn finish(self) -> Result<Vec<RemovalPath>, InvalidMessage> {
        if self.paths.len() < self.layers || self.came < self.steps {
            let problem = format!(
                "{} of {} layers and {} of {} steps came",
                self.paths.len(),
                self.layers,
                self.came,
                self.steps
            );
            return Err(PATHS.bad("path", problem));
        }
        Ok(self.paths)
    }
}

/// Returns how many items each layer of a block has whose costs are counted: weights, or windows of n:m.
pub(crate) fn items(block: &BlockDescription, spec: &RunSpec) -> Vec<(LayerId, u64)> {
    let counted = block.layers.iter().filter(|layer| layer.curvature);
    let a_row = |columns: u64| spec.pattern.map_or(columns, |pattern| columns / u64::from(pattern.m));
    counted.map(|layer| (layer.layer.clone(), layer.rows * a_row(layer.columns))).collect()
}

/// Returns how many items have the first digit `digit`: those that second digits are counted of.
pub(crate) fn items_with(first: &[CostHistogram], digit: u16) -> Vec<(LayerId, u64)> {
    let of = |histogram: &CostHistogram| {
        let found = histogram.bins.iter().find(|(d, _)| *d == digit);
        found.map_or(0, |(_, items)| *items)
    };
    first.iter().map(|histogram| (histogram.layer.clone(), of(histogram))).collect()
}

/// Refuses histograms of other layers than are due, or of more or fewer items than there are.
pub(crate) fn check_histograms(due: &[(LayerId, u64)], histograms: &[CostHistogram]) -> Result<(), InvalidMessage> {
    if !histograms.iter().map(|h| &h.layer).eq(due.iter().map(|(layer, _)| layer)) {
        let due: Vec<&str> = due.iter().map(|(layer, _)| layer.as_str()).collect();
        return Err(HISTOGRAMS.bad("histograms", format!("they are due of {}, in this order", due.join(", "))));
    }
    for (n, ((layer, due), histogram)) in due.iter().zip(histograms).enumerate() {
        let counted = histogram.bins.iter().try_fold(0_u64, |sum, (_, items)| sum.checked_add(*items));
        if counted != Some(*due) {
            let counted = counted.map_or("too many".to_owned(), |counted| counted.to_string());
            let problem = format!("{counted} items of {layer} are counted, there are {due}");
            return Err(HISTOGRAMS.bad(&format!("histograms[{n}].items"), problem));
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "scores_tests.rs"]
mod tests;
