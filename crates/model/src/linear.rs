//! One linear layer.

use crate::ModelError;
use tch::Tensor;
use types::LayerId;

/// y = W x (+ b).
#[derive(Debug)]
pub struct Linear {
    /// Checkpoint name without `.weight`.
    pub name: LayerId,
    /// W, [r, c].
    pub weight: Tensor,
    /// b, [r].
    pub bias: Option<Tensor>,
}

impl Linear {
    /// Returns y, [.., r], for `x`, [.., c].
    pub fn forward(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        x.f_linear(&self.weight, self.bias.as_ref()).map_err(ModelError::torch(self.name.as_str()))
    }

    /// Returns the output features R.
    pub fn rows(&self) -> i64 {
        self.weight.size()[0]
    }

    /// Returns the input features C, without the bias.
    pub fn columns(&self) -> i64 {
        self.weight.size()[1]
    }
}
