//! What is said at the end. Holds no times: the report is part of the output, and the same run gives the same bytes.

use crate::{DataDescription, FactorDamping, LayerId, RunSpec, Shape, Sizes, UnitKind};
use serde::{Deserialize, Serialize};

/// Perplexity with its protocol: a number without it is no figure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Mean negative log-likelihood, nats per token.
    pub loss: f64,
    /// exp(loss).
    pub perplexity: f64,
    /// Segments of `seq_len` tokens that were scored.
    pub segments: u64,
    /// Segments there are in the data; when more than `segments`, evenly spaced ones were taken.
    pub segments_in_data: u64,
    /// Tokens a segment.
    pub seq_len: u64,
    /// Number format of the forward pass.
    pub dtype: String,
    /// The data.
    pub data: DataDescription,
}

/// One layer after one shot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LayerReport {
    /// The layer.
    pub layer: LayerId,
    /// Units removed in this shot.
    pub removed: u64,
    /// Units left after it (rows and columns together for `row-column`).
    pub left: u64,
    /// Predicted rise of the loss by this layer's removal, nats per token.
    pub predicted: f64,
    /// Damping used.
    pub damping: FactorDamping,
}

/// One correction.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct CorrectionReport {
    /// Loss before it, nats per token, on calibration samples that no sweep sees.
    pub loss_before: f64,
    /// Loss of what was kept on the same.
    pub loss_after: f64,
    /// Steps done.
    pub steps_done: u32,
    /// Steps after which the loss was least and which were kept; 0 when none helped.
    pub steps_kept: u32,
}

/// One shot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ShotReport {
    /// Its number, from 1.
    pub shot: u32,
    /// Largest size allowed after it, in the target's figure.
    pub limit: u64,
    /// How often it was cut less deep because the held-out loss rose too far (adaptive schedule).
    #[serde(skip_serializing_if = "is_zero", default)]
    pub taken_back: u32,
    /// Size after it.
    pub sizes: Sizes,
    /// The threshold: cost per freed weight at the cut, nats per token; `None` when the shape is uniform (a width is chosen instead).
    pub threshold: Option<f64>,
    /// Loss on the calibration data before the removal, nats per token.
    pub calibration_loss: f64,
    /// Predicted rise of the loss by this shot, nats per token.
    pub predicted: f64,
    /// What the other shape would have been predicted to cost (`uniform` against `per-layer`), where it applies.
    pub predicted_other_shape: Option<f64>,
    /// The low-rank correction after it, if there was one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub correction: Option<CorrectionReport>,
    /// Loss on the held-out data after it, when there is such data.
    pub evaluation: Option<Evaluation>,
    /// Layer by layer.
    pub layers: Vec<LayerReport>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// What a shape of `auto` came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ShapeChoice {
    /// Uniform or per-layer.
    pub shape: Shape,
    /// Why.
    pub reason: String,
}

/// What is left in one layer at the end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KeptUnits {
    /// The layer.
    pub layer: LayerId,
    /// Kind of unit.
    pub kind: UnitKind,
    /// Original indices that are left.
    pub kept: Vec<u32>,
    /// Rows that are left (`row-column`).
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub kept_rows: Vec<u32>,
}

/// `pruning_report.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunReport {
    /// Version of this file's form.
    pub format: u32,
    /// Version of the program.
    pub program: String,
    /// The run's name.
    pub run: String,
    /// Everything that could change a number.
    pub spec: RunSpec,
    /// Model family.
    pub family: String,
    /// Digest of the base model.
    pub model_digest: String,
    /// Calibration data.
    pub data: DataDescription,
    /// Size before.
    pub before: Sizes,
    /// Size after.
    pub after: Sizes,
    /// What a shape of `auto` came to.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub shape_choice: Option<ShapeChoice>,
    /// Held-out loss before.
    pub evaluation_before: Option<Evaluation>,
    /// Held-out loss after.
    pub evaluation_after: Option<Evaluation>,
    /// Each shot.
    pub shots: Vec<ShotReport>,
    /// Kept units.
    pub kept: Vec<KeptUnits>,
    /// Things a reader should know: few tokens, overlapping data, raised damping.
    pub warnings: Vec<String>,
}

impl RunReport {
    /// Name of the file in an output folder.
    pub const FILE: &str = "pruning_report.json";
    /// Version of its form that this program writes and reads.
    pub const FORMAT: u32 = 1;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DampingStep, Precision, Target};
    use serde_json::{Map, Value};

    const SCHEMA: &str = include_str!("../../../docs/pruning_report.schema.json");

    /// Returns a report with everything that may be in one.
    fn full() -> RunReport {
        let data = DataDescription {
            digest: "d".repeat(64),
            tokenizer_digest: "t".repeat(64),
            documents: 1,
            skipped: 0,
            tokens: 9,
            samples: 1,
            sets: 1,
            seq_len: 8,
            overlap: 0,
            bos: false,
        };
        let evaluation = Evaluation {
            loss: 1.0,
            perplexity: 2.7,
            segments: 1,
            segments_in_data: 1,
            seq_len: 8,
            dtype: "f32".into(),
            data: data.clone(),
        };
        let layer = LayerId::new("layer").unwrap();
        let step = Some(DampingStep { lambda: 0.1, precision: Precision::F32, raised: 0 });
        let damping = FactorDamping { a: step, g: step, floored: Some(0.5) };
        let shot = ShotReport {
            shot: 1,
            limit: 1,
            taken_back: 1,
            sizes: Sizes::default(),
            threshold: Some(0.5),
            calibration_loss: 1.0,
            predicted: 0.5,
            predicted_other_shape: Some(0.5),
            correction: Some(CorrectionReport { loss_before: 1.0, loss_after: 0.5, steps_done: 2, steps_kept: 1 }),
            evaluation: Some(evaluation.clone()),
            layers: vec![LayerReport { layer: layer.clone(), removed: 1, left: 1, predicted: 0.5, damping }],
        };
        RunReport {
            format: 1,
            program: "llm-surgeon 0".into(),
            run: "r-1".into(),
            spec: RunSpec::new("/m", "/d", "/o", Target::Size(0.5)),
            family: "llama".into(),
            model_digest: "m".repeat(64),
            data,
            before: Sizes::default(),
            after: Sizes::default(),
            shape_choice: Some(ShapeChoice { shape: Shape::Uniform, reason: "r".into() }),
            evaluation_before: Some(evaluation.clone()),
            evaluation_after: Some(evaluation),
            shots: vec![shot],
            kept: vec![KeptUnits { layer, kind: UnitKind::Column, kept: vec![0], kept_rows: vec![0] }],
            warnings: vec!["w".into()],
        }
    }

    /// Returns the schemas that may describe a value: what references and choices lead to.
    fn leads_to<'a>(schema: &'a Value, all: &'a Value) -> Vec<&'a Value> {
        let named = schema["$ref"].as_str().and_then(|name| all.pointer(name.trim_start_matches('#')));
        let choices = ["anyOf", "oneOf"].iter().filter_map(|key| schema[*key].as_array()).flatten();
        let further: Vec<_> = named.into_iter().chain(choices).flat_map(|next| leads_to(next, all)).collect();
        if further.is_empty() { vec![schema] } else { further }
    }

    /// Notes where fields and their description differ. Kinds of values and ranges are checked with a validator, on real
    /// reports, by `scripts/check_report.py`.
    fn compare(place: &str, value: &Value, schema: &Value, all: &Value, faults: &mut Vec<String>) {
        let schemas = leads_to(schema, all);
        match value {
            Value::Object(fields) => {
                let empty = Map::new();
                let fits = |s: &&&Value| {
                    s["properties"].as_object().unwrap_or(&empty).contains_key(fields.keys().next().unwrap())
                };
                let Some(schema) = schemas.iter().find(fits) else {
                    return faults.push(format!("{place} is not described"));
                };
                for (name, field) in fields {
                    match schema["properties"].get(name) {
                        Some(described) => compare(&format!("{place}.{name}"), field, described, all, faults),
                        None => faults.push(format!("{place}.{name} is not described")),
                    }
                }
                let required = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
                faults
                    .extend(required.filter(|r| !fields.contains_key(*r)).map(|r| format!("{place}.{r} is not there")));
            }
            Value::Array(items) => {
                let schema = schemas.iter().find(|s| s["items"].is_object());
                let described = schema.map_or(&Value::Null, |s| &s["items"]);
                for item in items {
                    compare(&format!("{place}[]"), item, described, all, faults);
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }

    #[test]
    fn the_schema_describes_every_field_of_a_report() {
        let schema: Value = serde_json::from_str(SCHEMA).unwrap();
        let report = serde_json::to_value(full()).unwrap();
        let mut faults = Vec::new();
        compare("report", &report, &schema, &schema, &mut faults);
        assert!(faults.is_empty(), "{faults:#?}");
        assert_eq!(schema["properties"]["format"]["const"], report["format"]);
    }
}
