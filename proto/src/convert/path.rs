//! `path.proto`: removal paths and histograms of costs, and cuts of them.
//!
//! Checks what can be seen from a message alone. Whether a path or a histogram can be that of a layer is the coordinator's matter.

use super::{Fields, InvalidMessage, MAX_SIZE, MAX_UNITS};
use crate::v1;
use types::{
    CostHistogram, DampingStep, ElementCut, FactorDamping, LayerCut, PathStep, Precision, RemovalPath, UnitKind,
};

/// Most steps of one message; a longer path comes in several. A step takes 30 bytes at most.
pub const MAX_STEPS: usize = 1 << 16;

/// Digits have 16 bits.
const DIGITS: usize = 1 << 16;
const PATH: Fields = Fields("LayerPath");
const HISTOGRAM: Fields = Fields("CostHistogram");
const DAMPING: Fields = Fields("FactorDamping");

impl From<LayerCut> for v1::LayerCut {
    fn from(value: LayerCut) -> Self {
        let elements = value.elements.map(|e| v1::ElementCut { bits: e.bits, ties: e.ties, items: e.items });
        Self { layer: value.layer.into(), steps: value.steps, elements }
    }
}

impl TryFrom<v1::LayerCut> for LayerCut {
    type Error = InvalidMessage;

    fn try_from(value: v1::LayerCut) -> Result<Self, InvalidMessage> {
        let fields = Fields("LayerCut");
        let elements = value.elements.map(|e| {
            let ties = fields.number("elements.ties", e.ties, MAX_SIZE)?;
            Ok(ElementCut { bits: e.bits, ties, items: fields.number("elements.items", e.items, MAX_SIZE)? })
        });
        Ok(Self { layer: fields.layer("layer", &value.layer)?, steps: value.steps, elements: elements.transpose()? })
    }
}

/// Returns a path in as many messages as it takes.
pub fn path_messages(path: &RemovalPath) -> Vec<v1::LayerPath> {
    let (layer, damping) = (path.layer.to_string(), v1::FactorDamping::from(path.damping));
    let message = |(n, steps): (usize, &[PathStep])| v1::LayerPath {
        layer: layer.clone(),
        steps: steps.iter().copied().map(Into::into).collect(),
        damping: (n == 0).then_some(damping),
    };
    if path.steps.is_empty() {
        return vec![message((0, &[]))];
    }
    path.steps.chunks(MAX_STEPS).enumerate().map(message).collect()
}

impl From<RemovalPath> for v1::LayerPath {
    fn from(value: RemovalPath) -> Self {
        let steps = value.steps.into_iter().map(Into::into).collect();
        Self { layer: value.layer.into(), steps, damping: Some(value.damping.into()) }
    }
}

/// One message is a whole path or a part of it.
impl TryFrom<v1::LayerPath> for RemovalPath {
    type Error = InvalidMessage;

    fn try_from(value: v1::LayerPath) -> Result<Self, InvalidMessage> {
        Ok(Self {
            layer: PATH.layer("layer", &value.layer)?,
            steps: PATH.list("steps", value.steps, MAX_STEPS)?,
            damping: value.damping.map(|d| PATH.nested("damping", Some(d))).transpose()?.unwrap_or_default(),
        })
    }
}

impl From<PathStep> for v1::PathStep {
    fn from(value: PathStep) -> Self {
        let kind = v1::UnitKind::from(value.unit.kind).into();
        Self { kind, unit: value.unit.index, cost: value.cost, freed: value.freed }
    }
}

impl TryFrom<v1::PathStep> for PathStep {
    type Error = InvalidMessage;

    fn try_from(value: v1::PathStep) -> Result<Self, InvalidMessage> {
        let fields = Fields("PathStep");
        let kind = fields.choice::<v1::UnitKind, _>("kind", value.kind, UnitKind::ALL)?;
        fields.number("unit", value.unit.into(), MAX_UNITS as u64)?;
        Ok(Self {
            unit: types::Unit { kind, index: value.unit },
            cost: fields.finite("cost", value.cost)?,
            freed: fields.number("freed", value.freed, MAX_SIZE)?,
        })
    }
}

impl From<CostHistogram> for v1::CostHistogram {
    fn from(value: CostHistogram) -> Self {
        let mut before = 0;
        let mut distance = |digit: u16| {
            let digit = u32::from(digit);
            digit - std::mem::replace(&mut before, digit)
        };
        Self {
            layer: value.layer.into(),
            digits: value.bins.iter().map(|(digit, _)| distance(*digit)).collect(),
            items: value.bins.iter().map(|(_, items)| *items).collect(),
            damping: Some(value.damping.into()),
        }
    }
}

impl TryFrom<v1::CostHistogram> for CostHistogram {
    type Error = InvalidMessage;

    fn try_from(value: v1::CostHistogram) -> Result<Self, InvalidMessage> {
        HISTOGRAM.at_most("digits", value.digits.len(), DIGITS, "digits")?;
        if value.digits.len() != value.items.len() {
            let problem = format!("{} counts are of {} digits", value.items.len(), value.digits.len());
            return Err(HISTOGRAM.bad("items", problem));
        }
        let mut bins: Vec<(u16, u64)> = Vec::with_capacity(value.digits.len());
        for (distance, items) in value.digits.into_iter().zip(value.items) {
            let before = bins.last().map(|(digit, _)| u32::from(*digit));
            if before.is_some() && distance == 0 {
                return Err(HISTOGRAM.bad("digits", "do not rise"));
            }
            let digit = before.unwrap_or(0).checked_add(distance).and_then(|digit| u16::try_from(digit).ok());
            let digit = digit.ok_or_else(|| HISTOGRAM.bad("digits", "have more than 16 bits"))?;
            if items == 0 {
                return Err(HISTOGRAM.bad("items", format!("digit {digit} is listed and does not occur")));
            }
            bins.push((digit, HISTOGRAM.number("items", items, MAX_SIZE)?));
        }
        Ok(Self {
            layer: HISTOGRAM.layer("layer", &value.layer)?,
            bins,
            damping: HISTOGRAM.nested("damping", value.damping)?,
        })
    }
}

impl From<FactorDamping> for v1::FactorDamping {
    fn from(value: FactorDamping) -> Self {
        Self { a: value.a.map(Into::into), g: value.g.map(Into::into), floored: value.floored }
    }
}

impl TryFrom<v1::FactorDamping> for FactorDamping {
    type Error = InvalidMessage;

    fn try_from(value: v1::FactorDamping) -> Result<Self, InvalidMessage> {
        Ok(Self {
            a: value.a.map(|a| DAMPING.nested("a", Some(a))).transpose()?,
            g: value.g.map(|g| DAMPING.nested("g", Some(g))).transpose()?,
            floored: value.floored.map(|share| DAMPING.finite("floored", share)).transpose()?,
        })
    }
}

impl From<DampingStep> for v1::DampingStep {
    fn from(value: DampingStep) -> Self {
        let precision = v1::Precision::from(value.precision).into();
        Self { lambda: value.lambda, precision, raised: value.raised }
    }
}

impl TryFrom<v1::DampingStep> for DampingStep {
    type Error = InvalidMessage;

    fn try_from(value: v1::DampingStep) -> Result<Self, InvalidMessage> {
        let fields = Fields("DampingStep");
        Ok(Self {
            lambda: fields.finite("lambda", value.lambda)?,
            precision: fields.choice::<v1::Precision, _>(
                "precision",
                value.precision,
                &[Precision::F32, Precision::F64],
            )?,
            raised: value.raised,
        })
    }
}

impl From<Precision> for v1::Precision {
    fn from(value: Precision) -> Self {
        match value {
            Precision::F32 => Self::F32,
            Precision::F64 => Self::F64,
        }
    }
}
