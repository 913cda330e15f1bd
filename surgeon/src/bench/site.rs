//! What a job is about: one block, and its removal problems.

use crate::error::Error;
use pruning::Units;
use service::checkpoint::LayerBytes;
use std::collections::BTreeMap;
use types::{BlockDescription, LayerDescription, LayerId, LayerState, RunSpec, Structure, UnitGroup, UnitKind};

/// One block as a job sees it.
#[derive(Debug, Clone)]
pub(crate) struct BlockJob {
    /// Everything that can change a number.
    pub(crate) spec: RunSpec,
    /// The block in the original model.
    pub(crate) block: BlockDescription,
    /// Its layers that differ from the base model, with their weights' bytes.
    pub(crate) changed: Vec<LayerBytes>,
}

impl BlockJob {
    /// Returns the removal problems of the block, in the order of its description.
    pub(super) fn sites(&self) -> Result<Vec<Site<'_>>, Error> {
        let layers = || self.block.layers.iter().filter(|l| l.curvature);
        match self.spec.structure {
            Structure::Coupled => self.block.groups.iter().map(|group| self.coupled_site(group)).collect(),
            Structure::RowColumn => Ok(layers().map(|layer| self.row_column_site(layer)).collect()),
            Structure::Element | Structure::NofM => Ok(layers().map(|layer| Site::Elements { layer }).collect()),
        }
    }

    pub(super) fn coupled_site(&self, group: &UnitGroup) -> Result<Site<'_>, Error> {
        let layer = self.block.layers.iter().find(|l| l.layer == group.layer);
        let layer =
            layer.ok_or_else(|| Error::Bug(format!("units of layer {}, which the block lacks", group.layer)))?;
        let units = Units {
            kind: group.kind,
            kept: self.units_left(group),
            columns_per_unit: group.columns_per_unit,
            groups: group.together,
            min_keep: group.min_keep,
            freed_per_unit: group.freed_per_unit.prunable,
        };
        Ok(Site::Coupled { layer, units })
    }

    fn row_column_site<'a>(&self, layer: &'a LayerDescription) -> Site<'a> {
        let (rows, columns) = match self.cut(&layer.layer) {
            Some(state) => (state.kept_rows.clone(), state.kept.clone()),
            None => ((0..layer.rows as u32).collect(), (0..layer.columns as u32).collect()),
        };
        Site::RowColumn { layer, rows, columns }
    }

    /// Returns the units of each group that are left.
    pub(super) fn kept(&self) -> BTreeMap<LayerId, Vec<u32>> {
        self.block.groups.iter().map(|group| (group.layer.clone(), self.units_left(group))).collect()
    }

    pub(super) fn units_left(&self, group: &UnitGroup) -> Vec<u32> {
        self.cut(&group.layer).map_or_else(|| (0..group.units * group.together).collect(), |state| state.kept.clone())
    }

    /// Returns the state of a layer that has lost units.
    fn cut(&self, layer: &LayerId) -> Option<&LayerState> {
        let states = self.changed.iter().map(|(state, _)| state);
        states.filter(|state| state.kind != UnitKind::Whole).find(|state| state.layer == *layer)
    }
}

/// One removal problem of a block: a consumer and its units, or a layer with its rows and columns.
pub(super) enum Site<'a> {
    Coupled { layer: &'a LayerDescription, units: Units },
    RowColumn { layer: &'a LayerDescription, rows: Vec<u32>, columns: Vec<u32> },
    Elements { layer: &'a LayerDescription },
}

impl Site<'_> {
    pub(super) fn layer(&self) -> &LayerDescription {
        match self {
            Self::Coupled { layer, .. } | Self::RowColumn { layer, .. } | Self::Elements { layer } => layer,
        }
    }

    pub(super) fn kind(&self) -> UnitKind {
        match self {
            Self::Coupled { units, .. } => units.kind,
            Self::RowColumn { .. } => UnitKind::Column,
            Self::Elements { .. } => UnitKind::Element,
        }
    }
}
