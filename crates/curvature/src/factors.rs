//! Kronecker factors of one block, or the diagonal of its Fisher, as sums over tokens: accumulate, merge, pack for the wire,
//! finish.
//!
//! Does not damp or factorise, and does not know where the tensors come from.

mod packing;

use crate::CurvatureError;
use crate::inverse::is_finite;
use std::collections::BTreeMap;
use tch::{Device, Kind, Tensor};

/// Rows of a factor that one product covers. Measured at C = 1536, n = 4096 on two cores: one full product 58 ms, panels of
/// 192 to 256 rows 40 ms, of 512 rows 44 ms.
const PANEL: i64 = 256;

/// Which of a layer's two factors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Side {
    /// A, the second moment of the layer's input.
    Input,
    /// G, the second moment of the gradient with respect to the layer's output.
    Gradient,
}

impl Side {
    /// Returns the factor's symbol, as used in keys and messages.
    pub fn symbol(self) -> &'static str {
        match self {
            Self::Input => "A",
            Self::Gradient => "G",
        }
    }

    /// Returns the other side.
    pub(crate) fn other(self) -> Self {
        match self {
            Self::Input => Self::Gradient,
            Self::Gradient => Self::Input,
        }
    }

    /// Returns how messages call this side of a layer.
    pub(crate) fn of(self, layer: &str) -> String {
        format!("{} of {layer}", self.symbol())
    }
}

/// Sums over tokens of the factors of one block.
///
/// Keys are layer names; layers fed by one tensor share A under the name of the first of them. Only the lower triangle of
/// a stored sum counts; what lies above it is unspecified. Sums are f32, or f64 when fed with f64.
#[derive(Debug, Default)]
pub struct BlockFactors {
    /// Tokens that went into the sums.
    pub tokens: u64,
    a: BTreeMap<String, Tensor>,
    g: BTreeMap<String, Tensor>,
    /// Σ gₙ² (xₙ²)ᵀ by layer, `[R, C]`.
    diagonal: BTreeMap<String, Tensor>,
}

/// Key of a layer's diagonal on the wire, before its name.
const DIAGONAL: &str = "D";

impl BlockFactors {
    /// Returns sums over nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds Σ xₙ xₙᵀ over a batch to one factor. Tokens are counted apart, by [`Self::add_tokens`].
    ///
    /// Only the lower block triangle is multiplied, in panels of rows.
    ///
    /// # Shapes
    /// `x_nc`: `[n, c]`, of any float kind; with a bias the caller has appended the column of ones.
    ///
    /// # Errors
    /// `Shape` when it is no matrix or as wide as another than the factor so far.
    pub fn accumulate(&mut self, side: Side, layer: &str, x_nc: &Tensor) -> Result<(), CurvatureError> {
        tch::no_grad(|| {
            let size = x_nc.size();
            let &[_, c] = size.as_slice() else {
                return Err(shape_error(side, layer, vec![-1, -1], size));
            };
            let kind = if x_nc.kind() == Kind::Double { Kind::Double } else { Kind::Float };
            let sums = self.sums_mut(side);
            if !sums.contains_key(layer) {
                sums.insert(layer.to_owned(), Tensor::f_zeros([c, c], (kind, x_nc.device()))?);
            }
            let Some(sum_cc) = sums.get_mut(layer) else { unreachable!("inserted above") };
            if sum_cc.size()[0] != c {
                return Err(shape_error(side, layer, vec![-1, sum_cc.size()[0]], size));
            }
            let x_nc = x_nc.f_to_kind(sum_cc.kind())?;
            add_product(sum_cc, &x_nc, &x_nc)
        })
    }

    /// Adds Σ gₙ² (xₙ²)ᵀ over a batch, squares taken number by number: the diagonal of a layer's empirical Fisher, exactly.
    /// Tokens are counted apart, by [`Self::add_tokens`].
    ///
    /// # Shapes
    /// `x_nc`: `[n, c]`, `g_nr`: `[n, r]`, of any float kind; with a bias the caller has appended the column of ones to x.
    ///
    /// # Errors
    /// `Shape` when they are no matrices of as many tokens, or as wide as others than before.
    pub fn accumulate_diagonal(&mut self, layer: &str, x_nc: &Tensor, g_nr: &Tensor) -> Result<(), CurvatureError> {
        tch::no_grad(|| {
            let kind = if x_nc.kind() == Kind::Double { Kind::Double } else { Kind::Float };
            let (size, found) = (x_nc.size(), g_nr.size());
            let (&[n, c], &[m, r]) = (size.as_slice(), found.as_slice()) else {
                return Err(CurvatureError::Shape { name: layer.to_owned(), expected: vec![-1, -1], actual: size });
            };
            let sum = self.diagonal.get(layer).map_or_else(|| vec![r, c], Tensor::size);
            if n != m || sum != [r, c] {
                return Err(CurvatureError::Shape { name: layer.to_owned(), expected: sum, actual: vec![r, c] });
            }
            let squares = |y: &Tensor| y.f_to_kind(kind)?.f_square();
            let product_rc = squares(g_nr)?.f_tr()?.f_matmul(&squares(x_nc)?)?;
            match self.diagonal.get_mut(layer) {
                Some(sum_rc) => drop(sum_rc.f_add_(&product_rc)?),
                None => drop(self.diagonal.insert(layer.to_owned(), product_rc)),
            }
            Ok(())
        })
    }

    /// Counts tokens, once for all factors of the block.
    pub fn add_tokens(&mut self, n: u64) {
        self.tokens += n;
    }

    /// Adds another block's sums. A factor that only one of them has is taken as it is.
    ///
    /// # Errors
    /// `Shape` when a factor has another size in `other`; then `self` is spoilt.
    pub fn merge(&mut self, other: &Self) -> Result<(), CurvatureError> {
        tch::no_grad(|| {
            let pairs = [(&mut self.a, &other.a), (&mut self.g, &other.g), (&mut self.diagonal, &other.diagonal)];
            for (symbol, (ours, theirs)) in ["A", "G", DIAGONAL].into_iter().zip(pairs) {
                for (layer, theirs) in theirs {
                    let Some(ours) = ours.get_mut(layer) else {
                        ours.insert(layer.clone(), theirs.f_detach_copy()?);
                        continue;
                    };
                    if ours.size() != theirs.size() {
                        let name = format!("{symbol} of {layer}");
                        return Err(CurvatureError::Shape { name, expected: ours.size(), actual: theirs.size() });
                    }
                    let _ = ours.f_add_(&theirs.f_to_device(ours.device())?.f_to_kind(ours.kind())?)?;
                }
            }
            self.tokens += other.tokens;
            Ok(())
        })
    }

    /// Scales the sums and the count of tokens by `rho`, so that what is added later counts for more.
    ///
    /// The count is rounded to whole tokens and the sums are scaled by as much, so that means stay what they are.
    pub fn decay(&mut self, rho: f64) -> Result<(), CurvatureError> {
        let tokens = (self.tokens as f64 * rho).round();
        let scale = if self.tokens == 0 { 0.0 } else { tokens / self.tokens as f64 };
        self.tokens = tokens as u64;
        tch::no_grad(|| {
            for sum in self.a.values_mut().chain(self.g.values_mut()).chain(self.diagonal.values_mut()) {
                let _ = sum.f_mul_scalar_(scale)?;
            }
            Ok(())
        })
    }

    /// Keeps some inputs of a layer only: rows and columns of its A, columns of its diagonal, at rising positions. Nothing for
    /// a layer without either.
    ///
    /// # Errors
    /// `Shape` when a position is beyond the factor.
    pub fn keep_inputs(&mut self, layer: &str, positions: &[i64]) -> Result<(), CurvatureError> {
        let sums = [self.a.get_mut(layer), self.diagonal.get_mut(layer)];
        let Some(n) = sums.iter().flatten().filter_map(|sum| sum.size().last().copied()).min() else { return Ok(()) };
        if let Some(&last) = positions.last().filter(|last| **last >= n) {
            return Err(shape_error(Side::Input, layer, vec![last + 1, last + 1], vec![n, n]));
        }
        let [a, diagonal] = sums;
        tch::no_grad(|| {
            let columns = |sum: &Tensor| {
                let index = Tensor::from_slice(positions).to_device(sum.device());
                sum.f_index_select(1, &index).map(|narrower| (narrower, index))
            };
            if let Some(sum) = a {
                let (narrower, index) = columns(sum)?;
                *sum = narrower.f_index_select(0, &index)?; // rising: the lower triangle stays below
            }
            if let Some(sum) = diagonal {
                (*sum, _) = columns(sum)?;
            }
            Ok(())
        })
    }

    /// Drops what there is of a layer.
    pub fn forget(&mut self, layer: &str) {
        self.diagonal.remove(layer);
        self.a.remove(layer);
        self.g.remove(layer);
    }

    /// Returns all sums for the wire: A by layer name, then G by layer name, each the packed lower triangle by rows
    /// (n(n+1)/2 values), f32 on the CPU, under the key `A:layer` or `G:layer`; then diagonals as they are, `[r, c]`, under
    /// `D:layer`.
    ///
    /// # Errors
    /// `NotFinite`, so that a fault is named where it arose.
    pub fn pack(&self) -> Result<Vec<(String, Tensor)>, CurvatureError> {
        tch::no_grad(|| {
            let mut packed = Vec::with_capacity(self.a.len() + self.g.len());
            for side in [Side::Input, Side::Gradient] {
                for (layer, sum) in self.sums(side) {
                    let values = packing::pack_lower(sum)?;
                    if !is_finite(&values)? {
                        return Err(CurvatureError::NotFinite { name: side.of(layer) });
                    }
                    packed.push((format!("{}:{layer}", side.symbol()), values));
                }
            }
            for (layer, sum) in &self.diagonal {
                let values = sum.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?.f_contiguous()?;
                if !is_finite(&values)? {
                    return Err(CurvatureError::NotFinite { name: format!("{DIAGONAL} of {layer}") });
                }
                packed.push((format!("{DIAGONAL}:{layer}"), values));
            }
            Ok(packed)
        })
    }

    /// Returns the sums that [`Self::pack`] wrote, on `device`.
    ///
    /// # Errors
    /// `Packed` when a key or a length cannot be right.
    pub fn unpack(tokens: u64, tensors: Vec<(String, Tensor)>, device: Device) -> Result<Self, CurvatureError> {
        tch::no_grad(|| {
            let mut factors = Self { tokens, ..Self::default() };
            for (key, values) in tensors {
                match parse(&key, &values)? {
                    Packed::Diagonal { layer } => {
                        factors.diagonal.insert(layer.to_owned(), values.f_to_device(device)?);
                    }
                    Packed::Triangle { side, layer, n } => {
                        let sum = packing::unpack_lower(&values, n)?.f_to_device(device)?;
                        factors.sums_mut(side).insert(layer.to_owned(), sum);
                    }
                }
            }
            Ok(factors)
        })
    }

    /// Returns the mean over tokens of one factor, symmetric.
    ///
    /// # Shapes
    /// → `[c, c]`, in the kind of the sums
    ///
    /// # Errors
    /// `Unknown`, `NoTokens`, `NotFinite`; each names side and layer.
    pub fn finish(&self, side: Side, layer: &str) -> Result<Tensor, CurvatureError> {
        tch::no_grad(|| {
            let name = side.of(layer);
            let Some(sum) = self.sums(side).get(layer) else { return Err(CurvatureError::Unknown { name }) };
            mean(name, sum, self.tokens)
        })
    }

    /// Returns the mean over tokens of a layer's diagonal.
    ///
    /// # Shapes
    /// → `[r, c]`, in the kind of the sums
    ///
    /// # Errors
    /// `Unknown`, `NoTokens`, `NotFinite`.
    pub fn finish_diagonal(&self, layer: &str) -> Result<Tensor, CurvatureError> {
        tch::no_grad(|| {
            let name = format!("{DIAGONAL} of {layer}");
            let Some(sum) = self.diagonal.get(layer) else { return Err(CurvatureError::Unknown { name }) };
            if self.tokens == 0 {
                return Err(CurvatureError::NoTokens { name });
            }
            let mean = sum.f_div_scalar(self.tokens as f64)?;
            if is_finite(&mean)? { Ok(mean) } else { Err(CurvatureError::NotFinite { name }) }
        })
    }

    /// Returns the names under which one side has factors, in order.
    pub fn layers(&self, side: Side) -> impl Iterator<Item = &str> {
        self.sums(side).keys().map(String::as_str)
    }

    /// Takes a sum as it is; only its lower triangle counts.
    pub(crate) fn put(&mut self, side: Side, layer: &str, sum: Tensor) {
        self.sums_mut(side).insert(layer.to_owned(), sum);
    }

    /// Returns a sum as it is.
    pub(crate) fn sum(&self, side: Side, layer: &str) -> Option<&Tensor> {
        self.sums(side).get(layer)
    }

    fn sums(&self, side: Side) -> &BTreeMap<String, Tensor> {
        match side {
            Side::Input => &self.a,
            Side::Gradient => &self.g,
        }
    }

    fn sums_mut(&mut self, side: Side) -> &mut BTreeMap<String, Tensor> {
        match side {
            Side::Input => &mut self.a,
            Side::Gradient => &mut self.g,
        }
    }
}

/// What a packed tensor is, by its key and size.
enum Packed<'a> {
    /// The lower triangle of a factor of `n` rows.
    Triangle { side: Side, layer: &'a str, n: i64 },
    /// A diagonal.
    Diagonal { layer: &'a str },
}

/// Returns what a packed tensor is.
fn parse<'a>(key: &'a str, values: &Tensor) -> Result<Packed<'a>, CurvatureError> {
    let wrong = || CurvatureError::Packed { name: key.to_owned(), values: values.numel() };
    let (side, layer) = match key.split_once(':') {
        Some((DIAGONAL, layer)) if values.dim() == 2 => return Ok(Packed::Diagonal { layer }),
        Some(("A", layer)) => (Side::Input, layer),
        Some(("G", layer)) => (Side::Gradient, layer),
        _ => return Err(wrong()),
    };
    let n = packing::side_length(values.numel()).ok_or_else(wrong)?;
    Ok(Packed::Triangle { side, layer, n })
}

/// Adds packed sums, as [`BlockFactors::pack`] returns them, to others, number by number; tokens are their owner's to count.
/// The same bits as unpacking both, [`BlockFactors::merge`] and packing, without the squares. A factor that only one of them
/// has is taken as it is. `alive` is called before each tensor.
///
/// # Errors
/// `Packed` as in [`BlockFactors::unpack`], `Shape` when a factor has another size in `part`; then `sums` is spoilt.
pub fn merge_packed(
    sums: &mut Vec<(String, Tensor)>,
    part: Vec<(String, Tensor)>,
    alive: &dyn Fn(),
) -> Result<(), CurvatureError> {
    tch::no_grad(|| {
        for (key, ours) in sums.iter_mut() {
            if let Packed::Triangle { .. } = parse(key, ours)? {
                *ours = ours.f_to_kind(Kind::Float)?;
            }
        }
        for (key, theirs) in part {
            alive();
            let found = parse(&key, &theirs)?;
            let Some((_, ours)) = sums.iter_mut().find(|(name, _)| *name == key) else {
                sums.push((key, theirs));
                continue;
            };
            match (parse(&key, ours)?, found) {
                (Packed::Triangle { side, layer, n }, Packed::Triangle { n: found, .. }) if n != found => {
                    return Err(shape_error(side, layer, vec![n, n], vec![found, found]));
                }
                (Packed::Diagonal { layer }, _) if ours.size() != theirs.size() => {
                    let name = format!("{DIAGONAL} of {layer}");
                    return Err(CurvatureError::Shape { name, expected: ours.size(), actual: theirs.size() });
                }
                _ => drop(ours.f_add_(&theirs.f_to_kind(ours.f_kind()?)?.f_reshape(ours.size())?)?),
            }
        }
        Ok(())
    })
}

/// Adds XᵀY, which must be symmetric, to the lower block triangle of `sum_cc`, panel by panel, in place.
pub(crate) fn add_product(sum_cc: &mut Tensor, x_nc: &Tensor, y_nc: &Tensor) -> Result<(), CurvatureError> {
    let c = sum_cc.size()[0];
    for start in (0..c).step_by(PANEL as usize) {
        let rows = PANEL.min(c - start);
        let mut panel = sum_cc.f_narrow(0, start, rows)?.f_narrow(1, 0, start + rows)?;
        let left = x_nc.f_narrow(1, start, rows)?.f_tr()?;
        let _ = panel.f_addmm_(&left, &y_nc.f_narrow(1, 0, start + rows)?)?;
    }
    Ok(())
}

/// Returns the mean over tokens, symmetric, of a sum whose lower triangle counts.
pub(crate) fn mean(name: String, sum_cc: &Tensor, tokens: u64) -> Result<Tensor, CurvatureError> {
    if tokens == 0 {
        return Err(CurvatureError::NoTokens { name });
    }
    let mut lower = sum_cc.f_tril(0)?;
    let _ = lower.f_div_scalar_(tokens as f64)?;
    if !is_finite(&lower)? {
        return Err(CurvatureError::NotFinite { name });
    }
    Ok(lower.f_add(&lower.f_tril(-1)?.f_tr()?)?)
}

fn shape_error(side: Side, layer: &str, expected: Vec<i64>, actual: Vec<i64>) -> CurvatureError {
    CurvatureError::Shape { name: side.of(layer), expected, actual }
}

#[cfg(test)]
mod tests;
