//! `worker_service.proto`: what workers and the coordinator tell each other about models, data and layers.

use super::{Fields, InvalidMessage, MAX_BLOCKS, MAX_LAYERS, MAX_SIZE, MAX_TEXT, MAX_UNITS};
use crate::v1;
use types::{
    BlockDescription, DataDescription, LayerDescription, LayerState, ModelDescription, ObjectRef, Sizes, UnitGroup,
    UnitKind,
};

/// Longest family name or digest, in bytes.
const MAX_WORD: usize = 128;
/// Longest key in the store, in bytes.
const MAX_KEY: usize = 1024;

impl From<ObjectRef> for v1::ObjectRef {
    fn from(value: ObjectRef) -> Self {
        Self { key: value.key, blake3: value.blake3, bytes: value.bytes }
    }
}

impl TryFrom<v1::ObjectRef> for ObjectRef {
    type Error = InvalidMessage;

    fn try_from(value: v1::ObjectRef) -> Result<Self, InvalidMessage> {
        let fields = Fields("ObjectRef");
        Ok(Self {
            key: fields.text("key", value.key, MAX_KEY)?,
            blake3: fields.blake3("blake3", value.blake3)?,
            bytes: fields.number("bytes", value.bytes, MAX_SIZE)?,
        })
    }
}

impl From<LayerState> for v1::LayerState {
    fn from(value: LayerState) -> Self {
        Self {
            layer: value.layer.into(),
            kind: v1::UnitKind::from(value.kind).into(),
            kept: value.kept,
            kept_rows: value.kept_rows,
            zeros: value.zeros,
            weights: value.weights.map(Into::into),
        }
    }
}

impl TryFrom<v1::LayerState> for LayerState {
    type Error = InvalidMessage;

    fn try_from(value: v1::LayerState) -> Result<Self, InvalidMessage> {
        let fields = Fields("LayerState");
        let weights = value.weights.map(|w| fields.nested("weights", Some(w))).transpose()?;
        Ok(Self {
            layer: fields.layer("layer", &value.layer)?,
            kind: fields.choice::<v1::UnitKind, _>("kind", value.kind, UnitKind::ALL)?,
            kept: fields.rising("kept", value.kept)?,
            kept_rows: fields.rising("kept_rows", value.kept_rows)?,
            zeros: fields.number("zeros", value.zeros, MAX_SIZE)?,
            weights,
        })
    }
}

impl From<ModelDescription> for v1::ModelDescription {
    fn from(value: ModelDescription) -> Self {
        Self {
            family: value.family,
            digest: value.digest,
            hidden: value.hidden,
            vocabulary: value.vocabulary,
            max_positions: value.max_positions,
            dense: Some(value.dense.into()),
            blocks: value.blocks.into_iter().map(Into::into).collect(),
            own_widths_refused: value.own_widths_refused,
        }
    }
}

impl TryFrom<v1::ModelDescription> for ModelDescription {
    type Error = InvalidMessage;

    fn try_from(value: v1::ModelDescription) -> Result<Self, InvalidMessage> {
        let fields = Fields("ModelDescription");
        let blocks: Vec<BlockDescription> = fields.list("blocks", value.blocks, MAX_BLOCKS)?;
        if let Some(n) = (0..blocks.len()).find(|n| blocks[*n].block as usize != *n) {
            return Err(fields.bad(&format!("blocks[{n}].block"), format!("is {}, not its place", blocks[n].block)));
        }
        Ok(Self {
            family: fields.text("family", value.family, MAX_WORD)?,
            digest: fields.text("digest", value.digest, MAX_WORD)?,
            hidden: fields.number("hidden", value.hidden, MAX_SIZE)?,
            vocabulary: fields.number("vocabulary", value.vocabulary, MAX_SIZE)?,
            max_positions: fields.number("max_positions", value.max_positions, MAX_SIZE)?,
            dense: fields.nested("dense", value.dense)?,
            blocks,
            own_widths_refused: fields.short("own_widths_refused", value.own_widths_refused, MAX_TEXT)?,
        })
    }
}

impl From<BlockDescription> for v1::BlockDescription {
    fn from(value: BlockDescription) -> Self {
        Self {
            block: value.block,
            layers: value.layers.into_iter().map(Into::into).collect(),
            groups: value.groups.into_iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<v1::BlockDescription> for BlockDescription {
    type Error = InvalidMessage;

    fn try_from(value: v1::BlockDescription) -> Result<Self, InvalidMessage> {
        let fields = Fields("BlockDescription");
        Ok(Self {
            block: value.block,
            layers: fields.list("layers", value.layers, MAX_LAYERS)?,
            groups: fields.list("groups", value.groups, MAX_LAYERS)?,
        })
    }
}

impl From<LayerDescription> for v1::LayerDescription {
    fn from(value: LayerDescription) -> Self {
        Self {
            layer: value.layer.into(),
            rows: value.rows,
            columns: value.columns,
            bias: value.bias,
            input: value.input.into(),
            curvature: value.curvature,
        }
    }
}

impl TryFrom<v1::LayerDescription> for LayerDescription {
    type Error = InvalidMessage;

    fn try_from(value: v1::LayerDescription) -> Result<Self, InvalidMessage> {
        let fields = Fields("LayerDescription");
        Ok(Self {
            layer: fields.layer("layer", &value.layer)?,
            rows: fields.number("rows", value.rows, MAX_UNITS as u64)?,
            columns: fields.number("columns", value.columns, MAX_UNITS as u64)?,
            bias: value.bias,
            input: fields.layer("input", &value.input)?,
            curvature: value.curvature,
        })
    }
}

impl From<UnitGroup> for v1::UnitGroup {
    fn from(value: UnitGroup) -> Self {
        Self {
            layer: value.layer.into(),
            kind: v1::UnitKind::from(value.kind).into(),
            units: value.units,
            together: value.together,
            min_keep: value.min_keep,
            columns_per_unit: value.columns_per_unit,
            freed_per_unit: Some(value.freed_per_unit.into()),
        }
    }
}

impl TryFrom<v1::UnitGroup> for UnitGroup {
    type Error = InvalidMessage;

    fn try_from(value: v1::UnitGroup) -> Result<Self, InvalidMessage> {
        let fields = Fields("UnitGroup");
        let units = fields.number("units", value.units.into(), MAX_UNITS as u64)?;
        fields.number("min_keep", value.min_keep.into(), units)?;
        if value.together == 0 {
            return Err(fields.bad("together", "is 0"));
        }
        let all = fields.number("together", units * u64::from(value.together), MAX_UNITS as u64)?;
        if value.columns_per_unit == 0 {
            return Err(fields.bad("columns_per_unit", "is 0"));
        }
        let freed: Sizes = fields.nested("freed_per_unit", value.freed_per_unit)?;
        // What all units free together stays a size too, so that planning may multiply.
        let largest = freed.prunable.max(freed.parameters).max(freed.bytes);
        if largest.checked_mul(all).is_none_or(|total| total > MAX_SIZE) {
            return Err(fields.bad("freed_per_unit", format!("{all} units free more than {MAX_SIZE}")));
        }
        Ok(Self {
            layer: fields.layer("layer", &value.layer)?,
            kind: fields.choice::<v1::UnitKind, _>("kind", value.kind, UnitKind::ALL)?,
            units: value.units,
            together: value.together,
            min_keep: value.min_keep,
            columns_per_unit: value.columns_per_unit,
            freed_per_unit: freed,
        })
    }
}

impl From<DataDescription> for v1::DataDescription {
    fn from(value: DataDescription) -> Self {
        Self {
            digest: value.digest,
            tokenizer_digest: value.tokenizer_digest,
            documents: value.documents,
            skipped: value.skipped,
            tokens: value.tokens,
            samples: value.samples,
            sets: value.sets,
            seq_len: value.seq_len,
            overlap: value.overlap,
            bos: value.bos,
        }
    }
}

impl TryFrom<v1::DataDescription> for DataDescription {
    type Error = InvalidMessage;

    fn try_from(value: v1::DataDescription) -> Result<Self, InvalidMessage> {
        let fields = Fields("DataDescription");
        Ok(Self {
            digest: fields.text("digest", value.digest, MAX_WORD)?,
            tokenizer_digest: fields.text("tokenizer_digest", value.tokenizer_digest, MAX_WORD)?,
            documents: fields.number("documents", value.documents, MAX_SIZE)?,
            skipped: fields.number("skipped", value.skipped, MAX_SIZE)?,
            tokens: fields.number("tokens", value.tokens, MAX_SIZE)?,
            samples: fields.number("samples", value.samples, MAX_SIZE)?,
            sets: value.sets.max(1),
            seq_len: fields.number("seq_len", value.seq_len, MAX_SIZE)?,
            overlap: fields.number("overlap", value.overlap, MAX_SIZE)?,
            bos: value.bos,
        })
    }
}
