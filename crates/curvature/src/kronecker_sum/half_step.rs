//! The sum of one half-step over tokens: weights from one side, second moments of the other.

use super::norm;
use crate::factors::{add_product, mean};
use crate::{BlockFactors, CurvatureError, Side};
use tch::Tensor;

/// Σ wₙ gₙ gₙᵀ with wₙ = xₙᵀ A xₙ, or Σ wₙ xₙ xₙᵀ with wₙ = gₙᵀ G gₙ, for one layer.
///
/// The matrix that weighs is of norm 1. The kind is that matrix's: f32 in service, f64 in tests.
#[derive(Debug)]
pub struct HalfStep {
    /// Tokens that went into the sum.
    pub tokens: u64,
    layer: String,
    /// Which half-step of the layer, from 1.
    number: u32,
    /// The side that is summed.
    side: Side,
    /// The other side's matrix.
    weigher: Tensor,
    /// Only the lower triangle counts.
    sum: Option<Tensor>,
}

impl HalfStep {
    /// Returns a sum over nothing for one side, weighed by the other side's `twin`.
    pub(super) fn new(layer: &str, number: u32, side: Side, twin: &Tensor) -> Result<Self, CurvatureError> {
        let weigher = twin.f_div_scalar(norm(twin)?)?;
        Ok(Self { tokens: 0, layer: layer.to_owned(), number, side, weigher, sum: None })
    }

    /// Returns the sum over nothing that [`Self::weighers`] describes: what a calibrator adds tokens to.
    ///
    /// `side`: the one that weighs; `number`: of the half-step; `weigher`: its symmetric matrix of norm 1.
    pub fn weighed_by(side: Side, layer: &str, number: u32, weigher: Tensor) -> Self {
        Self { tokens: 0, layer: layer.to_owned(), number, side: side.other(), weigher, sum: None }
    }

    /// Returns the matrices that weigh in some half-steps of a block, as sums over one token, so that they travel as
    /// factors do.
    pub fn weighers(half_steps: &[Self]) -> BlockFactors {
        let mut weighers = BlockFactors::new();
        for half_step in half_steps {
            weighers.put(half_step.side.other(), &half_step.layer, half_step.weigher.shallow_clone());
        }
        weighers.add_tokens(1);
        weighers
    }

    /// Returns the sums of some half-steps of a block, so that they travel as factors do. Tokens are counted apart.
    pub fn sums(half_steps: Vec<Self>) -> BlockFactors {
        let mut sums = BlockFactors::new();
        for half_step in half_steps {
            if let Some(sum) = half_step.sum {
                sums.put(half_step.side, &half_step.layer, sum);
            }
        }
        sums
    }

    /// Adds this half-step's part of what [`Self::sums`] collected.
    ///
    /// # Errors
    /// `Unknown` when it has none; `Shape`.
    pub fn add_sums(&mut self, sums: &BlockFactors) -> Result<(), CurvatureError> {
        let theirs = sums.sum(self.side, &self.layer);
        let theirs = theirs.ok_or_else(|| CurvatureError::Unknown { name: self.name() })?;
        let other = Self {
            tokens: sums.tokens,
            layer: self.layer.clone(),
            number: self.number,
            side: self.side,
            weigher: self.weigher.shallow_clone(),
            sum: Some(theirs.shallow_clone()),
        };
        self.merge(&other)
    }

    /// Returns the layer.
    pub fn layer(&self) -> &str {
        &self.layer
    }

    /// Returns the side that is summed.
    pub fn side(&self) -> Side {
        self.side
    }

    /// Returns which half-step of the layer this is, from 1.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Returns the weight of each token, `[n]`, from the side that is not summed; for terms after the first some are
    /// negative.
    ///
    /// # Shapes
    /// `x_nc`: `[n, c]`, `g_nr`: `[n, r]`
    ///
    /// # Errors
    /// `Shape` when that side is no matrix or of another width than the one that weighs.
    pub fn weights(&self, x_nc: &Tensor, g_nr: &Tensor) -> Result<Tensor, CurvatureError> {
        tch::no_grad(|| {
            let weighed = match self.side {
                Side::Input => g_nr,
                Side::Gradient => x_nc,
            };
            let (size, width) = (weighed.size(), self.weigher.size()[0]);
            if size.len() != 2 || size[1] != width {
                return Err(self.shape_error(self.side.other(), vec![-1, width], size));
            }
            let weighed = weighed.f_to_kind(self.weigher.kind())?;
            let products = weighed.f_matmul(&self.weigher)?.f_mul_(&weighed)?;
            Ok(products.f_sum_dim_intlist([1_i64].as_slice(), false, self.weigher.kind())?)
        })
    }

    /// Adds a batch of tokens and counts them.
    ///
    /// # Shapes
    /// `x_nc`: `[n, c]`, `g_nr`: `[n, r]`, of any float kind; with a bias the caller has appended the column of ones to x.
    ///
    /// # Errors
    /// `Shape` when they are no matrices of as many tokens, or as wide as others than before.
    pub fn accumulate(&mut self, x_nc: &Tensor, g_nr: &Tensor) -> Result<(), CurvatureError> {
        tch::no_grad(|| {
            let weights_n = self.weights(x_nc, g_nr)?;
            let summed = match self.side {
                Side::Input => x_nc,
                Side::Gradient => g_nr,
            };
            let (size, n) = (summed.size(), weights_n.size()[0]);
            let width = self.sum.as_ref().map_or(-1, |sum| sum.size()[0]);
            if size.len() != 2 || size[0] != n || (width != -1 && size[1] != width) {
                return Err(self.shape_error(self.side, vec![n, width], size));
            }
            let summed = summed.f_to_kind(self.weigher.kind())?;
            let options = (summed.kind(), summed.device());
            let mut sum = match self.sum.take() {
                Some(sum) => sum,
                None => Tensor::f_zeros([size[1], size[1]], options)?,
            };
            add_product(&mut sum, &summed.f_mul(&weights_n.f_unsqueeze(1)?)?, &summed)?;
            self.sum = Some(sum);
            self.tokens += n as u64;
            Ok(())
        })
    }

    /// Adds what another pass of the same half-step summed up over other tokens.
    ///
    /// # Errors
    /// `Unknown` when `other` is of another layer or half-step, `Shape` when it is of another size.
    pub fn merge(&mut self, other: &Self) -> Result<(), CurvatureError> {
        tch::no_grad(|| {
            if (&self.layer, self.number, self.side) != (&other.layer, other.number, other.side) {
                return Err(CurvatureError::Unknown { name: other.name() });
            }
            self.tokens += other.tokens;
            let Some(theirs) = &other.sum else { return Ok(()) };
            let Some(ours) = &mut self.sum else {
                self.sum = Some(theirs.f_detach_copy()?);
                return Ok(());
            };
            if ours.size() != theirs.size() {
                let (expected, actual) = (ours.size(), theirs.size());
                return Err(self.shape_error(self.side, expected, actual));
            }
            let _ = ours.f_add_(&theirs.f_to_device(ours.device())?.f_to_kind(ours.kind())?)?;
            Ok(())
        })
    }

    /// Returns the mean over tokens, symmetric.
    ///
    /// # Errors
    /// `NoTokens`, `NotFinite`.
    pub(super) fn finish(&self) -> Result<Tensor, CurvatureError> {
        let Some(sum) = &self.sum else { return Err(CurvatureError::NoTokens { name: self.name() }) };
        mean(self.name(), sum, self.tokens)
    }

    /// Returns how messages call the sum.
    pub(super) fn name(&self) -> String {
        format!("{}, half-step {}", self.side.of(&self.layer), self.number)
    }

    fn shape_error(&self, side: Side, expected: Vec<i64>, actual: Vec<i64>) -> CurvatureError {
        CurvatureError::Shape { name: side.of(&self.layer), expected, actual }
    }
}
