//! What became zero in a model whose tensors keep their shapes, counted in the weights as they were written.

use crate::{Decoder, Linear, ModelError, ModelFolder};
use serde::Serialize;
use tch::{Kind, Tensor};
use types::{LayerId, Pattern};

/// The file's name.
pub(super) const FILE: &str = "mask_report.json";

/// What is zero, layer by layer.
#[derive(Debug, Serialize)]
struct MaskReport {
    /// Version of this file's form.
    format: u32,
    /// The pattern n:m that every full window of every layer keeps; `null` if none was asked for in full.
    pattern: Option<String>,
    /// Weights of all layers, and how many of them are zero.
    weights: u64,
    zeros: u64,
    layers: Vec<LayerMask>,
}

/// What is zero in one layer.
#[derive(Debug, Serialize)]
struct LayerMask {
    layer: LayerId,
    rows: u64,
    columns: u64,
    zeros: u64,
    /// Rows and columns of nothing but zeros.
    zero_rows: u64,
    zero_columns: u64,
}

/// Returns the report of `written`, which was pruned from `folder`.
///
/// # Errors
/// [`ModelError::Pattern`] if a window of a layer keeps more than the `pattern` lets it.
pub(super) fn report(folder: &ModelFolder, written: &Decoder, pattern: Option<Pattern>) -> Result<String, ModelError> {
    let mut layers = Vec::new();
    for (index, names) in folder.layers().iter().enumerate().take(written.block_count()) {
        let block = written.block(index)?;
        for (id, linear) in names.all().into_iter().zip(block.linears()) {
            layers.push(layer(id, linear, pattern)?);
        }
    }
    let report = MaskReport {
        format: 1,
        pattern: pattern.map(|pattern| pattern.to_string()),
        weights: layers.iter().map(|layer| layer.rows * layer.columns).sum(),
        zeros: layers.iter().map(|layer| layer.zeros).sum(),
        layers,
    };
    let text = serde_json::to_string_pretty(&report);
    text.map(|text| text + "\n").map_err(|e| ModelError::TensorFile { file: FILE.to_owned(), reason: e.to_string() })
}

fn layer(id: &LayerId, linear: &Linear, pattern: Option<Pattern>) -> Result<LayerMask, ModelError> {
    let zero_rc = linear.weight.f_eq(0.0)?;
    if let Some(pattern) = pattern {
        check(id, &zero_rc, pattern)?;
    }
    let &[rows, columns] = zero_rc.size().as_slice() else {
        return Err(ModelError::Shape { what: "weight", expected: "[r, c]".to_owned(), found: zero_rc.size() });
    };
    let count = |mask: &Tensor| Ok::<_, ModelError>(mask.f_sum(Kind::Int64)?.f_int64_value(&[])? as u64);
    Ok(LayerMask {
        layer: id.clone(),
        rows: rows as u64,
        columns: columns as u64,
        zeros: count(&zero_rc)?,
        zero_rows: count(&zero_rc.f_all_dim(1, false)?)?,
        zero_columns: count(&zero_rc.f_all_dim(0, false)?)?,
    })
}

/// Checks that each full window of m weights in a row keeps at most n.
fn check(id: &LayerId, zero_rc: &Tensor, pattern: Pattern) -> Result<(), ModelError> {
    let (n, m) = (i64::from(pattern.n), i64::from(pattern.m));
    let windows = zero_rc.size()[1] / m;
    if windows == 0 {
        return Ok(());
    }
    let windows_wm = zero_rc.f_narrow(1, 0, windows * m)?.f_reshape([-1, m])?;
    let kept_w = windows_wm.f_logical_not()?.f_sum_dim_intlist([1].as_slice(), false, Kind::Int64)?;
    let broken = kept_w.f_gt(n)?.f_sum(Kind::Int64)?.f_int64_value(&[])?;
    if broken > 0 {
        return Err(ModelError::Pattern { layer: id.to_string(), pattern: pattern.to_string(), broken: broken as u64 });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    fn linear(weight: Tensor) -> Linear {
        Linear { name: LayerId::new("l").unwrap(), weight, bias: None }
    }

    #[test]
    fn zeros_are_counted_by_weight_row_and_column() {
        let weight = Tensor::ones([3, 5], (Kind::Float, Device::Cpu));
        let _ = weight.select(0, 1).fill_(0.0);
        let _ = weight.select(1, 4).fill_(0.0);
        let linear = linear(weight);
        let found = layer(&linear.name, &linear, None).unwrap();
        assert_eq!((found.zeros, found.zero_rows, found.zero_columns), (7, 1, 1));
    }

    #[test]
    fn a_window_that_keeps_too_many_is_found_and_the_tail_is_free() {
        let pattern = Pattern::new(1, 2).unwrap();
        let good = Tensor::from_slice(&[0.0f32, 1.0, 2.0, 0.0, 3.0]).view([1, 5]);
        let bad = Tensor::from_slice(&[0.0f32, 1.0, 2.0, 1.0, 0.0]).view([1, 5]);
        let found = |weight| {
            let linear = linear(weight);
            layer(&linear.name, &linear, Some(pattern)).map(|mask| mask.zeros)
        };
        assert_eq!(found(good).unwrap(), 2);
        let error = found(bad).unwrap_err().to_string();
        assert!(error.contains("1:2") && error.contains("1 window"), "{error}");
    }
}
