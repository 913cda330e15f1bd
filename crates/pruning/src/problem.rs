//! One layer as the kernels see it: weights, factors, damping and units; checked, damped and factorised once.

use crate::PruningError;
use curvature::{Damping, Factorised, factorise, is_finite};
use tch::{Device, Kind, Tensor};
use types::{DampingScale, FactorDamping, LayerId, Precision, UnitKind};

/// A layer's weights and curvature.
#[derive(Debug)]
pub struct LayerProblem {
    /// The layer, for errors and results.
    pub layer: LayerId,
    /// Weights `[R, C]`; with a bias that is the last of the C columns.
    pub w_rc: Tensor,
    /// Whether the last column is a bias.
    pub bias: bool,
    /// A, the undamped mean over tokens, `[C, C]`; `None` is the identity.
    pub a_cc: Option<Tensor>,
    /// G, the undamped mean over tokens, `[R, R]`; `None` is the identity.
    pub g_rr: Option<Tensor>,
    /// Tokens that the factors are means of.
    pub tokens: u64,
    /// What λ is a fraction of.
    pub damping_scale: DampingScale,
    /// λ for A.
    pub damping_a: f64,
    /// λ for G.
    pub damping_g: f64,
}

/// The removable units of a consumer layer: equal runs of its columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Units {
    /// What they are.
    pub kind: UnitKind,
    /// Original indices of the units that are left, rising, in the order of the columns.
    pub kept: Vec<u32>,
    /// Columns that one unit covers.
    pub columns_per_unit: u32,
    /// kv groups when the units are query heads (each has the same number of units), otherwise 1.
    pub groups: u32,
    /// How many units must stay; in each group.
    pub min_keep: u32,
    /// Prunable weights that go with one unit.
    pub freed_per_unit: u64,
}

impl LayerProblem {
    /// Returns R and C, bias included.
    pub(crate) fn shape(&self) -> Result<(i64, i64), PruningError> {
        let size = self.w_rc.size();
        let &[r, c] = size.as_slice() else {
            return Err(self.shape_error("weight", vec![-1, -1], size));
        };
        Ok((r, c))
    }

    /// Returns 1 with a bias, otherwise 0.
    pub(crate) fn bias_columns(&self) -> i64 {
        i64::from(self.bias)
    }

    /// Returns the problem on some rows and columns only (positions; the caller includes the bias column).
    pub(crate) fn restricted(&self, rows: &[i64], columns: &[i64]) -> Result<Self, PruningError> {
        let device = self.w_rc.device();
        let (r, c) = (index(rows, device), index(columns, device));
        Ok(Self {
            layer: self.layer.clone(),
            w_rc: block(&self.w_rc, &r, &c)?,
            bias: self.bias,
            a_cc: self.a_cc.as_ref().map(|a| block(a, &c, &c)).transpose()?,
            g_rr: self.g_rr.as_ref().map(|g| block(g, &r, &r)).transpose()?,
            tokens: self.tokens,
            damping_scale: self.damping_scale,
            damping_a: self.damping_a,
            damping_g: self.damping_g,
        })
    }

    /// Returns an error unless weights and factors fit together and the weights are finite.
    pub fn check(&self) -> Result<(), PruningError> {
        let (r, c) = self.shape()?;
        for (what, factor, n) in [("A", &self.a_cc, c), ("G", &self.g_rr, r)] {
            if let Some(factor) = factor
                && factor.size() != [n, n]
            {
                return Err(self.shape_error(what, vec![n, n], factor.size()));
            }
        }
        if !is_finite(&self.w_rc)? {
            return Err(PruningError::NotFinite { layer: self.layer.to_string(), what: "weight" });
        }
        Ok(())
    }

    pub(crate) fn shape_error(&self, what: &'static str, expected: Vec<i64>, actual: Vec<i64>) -> PruningError {
        PruningError::Shape { layer: self.layer.to_string(), what, expected, actual }
    }

    /// Returns an error about the units of this layer.
    pub(crate) fn units_error(&self, reason: String) -> PruningError {
        PruningError::Units { layer: self.layer.to_string(), reason }
    }

    /// Returns the kind of what is computed from the weights: f64 when they are, otherwise f32.
    pub(crate) fn result_kind(&self) -> Kind {
        if self.w_rc.kind() == Kind::Double { Kind::Double } else { Kind::Float }
    }

    /// Returns f64 when any input is f64, otherwise f32.
    fn kind(&self) -> Kind {
        let kinds = [Some(&self.w_rc), self.a_cc.as_ref(), self.g_rr.as_ref()].map(|t| t.map(Tensor::kind));
        if kinds.contains(&Some(Kind::Double)) { Kind::Double } else { Kind::Float }
    }
}

impl Units {
    /// Returns an error unless the units cover the layer's columns.
    pub(crate) fn check(&self, problem: &LayerProblem) -> Result<(), PruningError> {
        let (r, c) = problem.shape()?;
        let expected = self.kept.len() as i64 * i64::from(self.columns_per_unit) + problem.bias_columns();
        if expected != c || self.columns_per_unit == 0 {
            return Err(problem.shape_error("weight", vec![r, expected], vec![r, c]));
        }
        if !self.kept.is_sorted_by(|x, y| x < y) {
            return Err(problem.units_error("units must be named once, in rising order".to_owned()));
        }
        if self.groups == 0 || !self.kept.len().is_multiple_of(self.groups as usize) {
            return Err(problem.units_error(format!(
                "{} units do not fill {} equal groups",
                self.kept.len(),
                self.groups
            )));
        }
        Ok(())
    }
}

/// A problem ready for the kernels: one kind throughout, factors damped and factorised.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) layer: LayerId,
    pub(crate) w_rc: Tensor,
    /// Trailing columns that are never removed: 1 with a bias.
    pub(crate) bias_columns: i64,
    pub(crate) a: Option<Factorised>,
    pub(crate) g: Option<Factorised>,
    pub(crate) damping: FactorDamping,
}

impl Prepared {
    fn new(problem: &LayerProblem, kind: Kind) -> Result<Self, PruningError> {
        let factor = |symbol: &str, m: &Option<Tensor>, lambda: f64| {
            let Some(m) = m else { return Ok(None) };
            let name = format!("{symbol} of {}", problem.layer);
            let damping = Damping { lambda, scale: problem.damping_scale };
            factorise(&name, &m.f_to_kind(kind)?, damping, problem.tokens).map(Some)
        };
        let a = factor("A", &problem.a_cc, problem.damping_a)?;
        let g = factor("G", &problem.g_rr, problem.damping_g)?;
        let damping = FactorDamping { a: a.as_ref().map(|f| f.step), g: g.as_ref().map(|f| f.step), floored: None };
        let double = [damping.a, damping.g].iter().flatten().any(|step| step.precision == Precision::F64);
        if kind != Kind::Double && double {
            // One factor needed f64: then everything is in f64.
            return Self::new(problem, Kind::Double);
        }
        let w_rc = problem.w_rc.f_to_kind(kind)?;
        Ok(Self { layer: problem.layer.clone(), w_rc, bias_columns: problem.bias_columns(), a, g, damping })
    }

    /// Returns R and C, bias included.
    pub(crate) fn shape(&self) -> (i64, i64) {
        let size = self.w_rc.size();
        (size[0], size[1])
    }

    /// Returns damped A, unless it is the identity.
    pub(crate) fn a_cc(&self) -> Option<&Tensor> {
        self.a.as_ref().map(|f| &f.damped)
    }

    /// Returns damped G, unless it is the identity.
    pub(crate) fn g_rr(&self) -> Option<&Tensor> {
        self.g.as_ref().map(|f| &f.damped)
    }

    /// Returns G W, `[R, C]`.
    pub(crate) fn g_w(&self) -> Result<Tensor, PruningError> {
        Ok(match self.g_rr() {
            Some(g) => g.f_matmul(&self.w_rc)?,
            None => self.w_rc.shallow_clone(),
        })
    }

    /// Returns G D A, `[R, C]`: F δ as a matrix.
    pub(crate) fn fisher_product(&self, d_rc: &Tensor) -> Result<Tensor, PruningError> {
        let g_d = self.g_rr().map(|g| g.f_matmul(d_rc)).transpose()?;
        let g_d = g_d.as_ref().unwrap_or(d_rc);
        Ok(self.a_cc().map(|a| g_d.f_matmul(a)).transpose()?.unwrap_or_else(|| g_d.shallow_clone()))
    }

    /// Returns W A, `[R, C]`.
    pub(crate) fn w_a(&self) -> Result<Tensor, PruningError> {
        Ok(match self.a_cc() {
            Some(a) => self.w_rc.f_matmul(a)?,
            None => self.w_rc.shallow_clone(),
        })
    }
}

impl Prepared {
    /// Returns the error for a value that `removed` removals cannot have led to.
    pub(crate) fn unstable(&self, what: &'static str, value: f64, removed: usize) -> PruningError {
        PruningError::Unstable { layer: self.layer.to_string(), what, value, removed }
    }

    /// Returns a rise of the loss that can be one: not finite and, in f32, negative values are `Unstable`; in f64 a negative
    /// rest is zero.
    pub(crate) fn checked(&self, what: &'static str, value: f64, removed: usize) -> Result<f64, PruningError> {
        let rounding = value < 0.0 && self.w_rc.kind() == Kind::Double;
        if value.is_finite() && (value >= 0.0 || rounding) {
            return Ok(value.max(0.0));
        }
        Err(self.unstable(what, value, removed))
    }
}

/// Runs a kernel in the kind of the input, and once more in f64 when the first result is impossible.
pub(crate) fn in_either_precision<T>(
    problem: &LayerProblem,
    kernel: impl Fn(&Prepared) -> Result<T, PruningError>,
) -> Result<T, PruningError> {
    problem.check()?;
    let kind = problem.kind();
    match kernel(&Prepared::new(problem, kind)?) {
        Err(PruningError::Unstable { layer, what, value, removed }) if kind != Kind::Double => {
            tracing::warn!(layer, what, value, removed, "f32 is not enough for this layer, computing it in f64");
            kernel(&Prepared::new(problem, Kind::Double)?)
        }
        result => result,
    }
}

/// Returns positions as an index tensor.
pub(crate) fn index(positions: &[i64], device: Device) -> Tensor {
    Tensor::from_slice(positions).to_device(device)
}

/// Returns the `count` diagonal blocks `[count, q, q]` of a matrix.
pub(crate) fn diagonal_blocks(m_cc: &Tensor, count: i64, q: i64) -> Result<Tensor, PruningError> {
    let square = m_cc.f_narrow(0, 0, count * q)?.f_narrow(1, 0, count * q)?;
    Ok(square.f_view([count, q, count, q])?.f_diagonal(0, 0, 2)?.f_permute([2, 0, 1])?.f_contiguous()?)
}

/// Returns m[rows, columns].
pub(crate) fn block(m: &Tensor, rows: &Tensor, columns: &Tensor) -> Result<Tensor, PruningError> {
    Ok(m.f_index_select(0, rows)?.f_index_select(1, columns)?)
}

/// Returns a vector's values on the host.
pub(crate) fn host(x_n: &Tensor) -> Result<Vec<f64>, PruningError> {
    Ok(Vec::<f64>::try_from(x_n.f_to_device(Device::Cpu)?.f_to_kind(Kind::Double)?.f_contiguous()?)?)
}
