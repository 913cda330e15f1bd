//! The rotary position embedding's parameters, under the old and the new keys.

use super::Fields;
use crate::ModelError;

/// Parameters of the rotary position embedding.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rope {
    /// Base of the wavelengths.
    pub theta: f64,
    /// How frequencies are changed for longer texts.
    pub scaling: RopeScaling,
}

/// How rotary frequencies are changed for longer texts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    Default,
    /// All divided by `factor`.
    Linear {
        /// How many times longer.
        factor: f64,
    },
    /// Long wavelengths divided by `factor`, short ones kept, smooth between (Llama 3.1).
    Llama3 {
        /// How many times longer.
        factor: f64,
        /// Wavelengths above original positions / this are divided.
        low_freq_factor: f64,
        /// Wavelengths below original positions / this are kept.
        high_freq_factor: f64,
        /// Positions before the text was made longer.
        original_max_positions: f64,
    },
}

impl Rope {
    /// Returns what `rope_parameters`, or `rope_theta` with `rope_scaling`, say.
    pub(crate) fn read(fields: &Fields) -> Result<Self, ModelError> {
        let nested = match fields.nested("rope_parameters")? {
            Some(parameters) => Some(parameters),
            None => fields.nested("rope_scaling")?,
        };
        let theta = match &nested {
            Some(n) => n.number("rope_theta")?.or(fields.number("rope_theta")?),
            None => fields.number("rope_theta")?,
        };
        let theta = theta.unwrap_or(10_000.0);
        if !(theta.is_finite() && theta > 0.0) {
            return Err(fields.invalid(&format!("'rope_theta' is {theta}, expected a positive number")));
        }
        let partial = match &nested {
            Some(n) => n.number("partial_rotary_factor")?.or(fields.number("partial_rotary_factor")?),
            None => fields.number("partial_rotary_factor")?,
        };
        if let Some(part) = partial.filter(|part| (part - 1.0).abs() > f64::EPSILON) {
            return Err(fields.unsupported(&format!("'partial_rotary_factor' {part} is not supported, only 1")));
        }
        let scaling = nested.map_or(Ok(RopeScaling::Default), |n| RopeScaling::read(&n))?;
        Ok(Self { theta, scaling })
    }
}

impl RopeScaling {
    fn read(fields: &Fields) -> Result<Self, ModelError> {
        if fields.contains("full_attention") || fields.contains("sliding_attention") {
            return Err(fields.unsupported("rotary positions that differ from block to block are not supported"));
        }
        let name = match fields.text("rope_type")? {
            Some(name) => Some(name),
            None => fields.text("type")?,
        };
        let positive = |key: &str| match fields.number(key)? {
            Some(value) if value.is_finite() && value > 0.0 => Ok(value),
            Some(value) => {
                Err(fields.invalid(&format!("'{key}' of the rope scaling is {value}, expected a positive number")))
            }
            None => Err(fields.invalid(&format!("'{key}' of the rope scaling is missing"))),
        };
        match name {
            None | Some("default") => Ok(Self::Default),
            Some("linear") => Ok(Self::Linear { factor: positive("factor")? }),
            Some("llama3") => {
                let (low, high) = (positive("low_freq_factor")?, positive("high_freq_factor")?);
                if high <= low {
                    return Err(
                        fields.invalid(&format!("'high_freq_factor' {high} must be above 'low_freq_factor' {low}"))
                    );
                }
                Ok(Self::Llama3 {
                    factor: positive("factor")?,
                    low_freq_factor: low,
                    high_freq_factor: high,
                    original_max_positions: positive("original_max_position_embeddings")?,
                })
            }
            Some(other) => Err(fields.unsupported(&format!(
                "the rope scaling '{other}' is not supported (supported: default, linear, llama3)"
            ))),
        }
    }
}
