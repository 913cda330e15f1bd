//! A layer's removal problem under one Kronecker product, a sum of two or a diagonal, and the power iteration that finds
//! the two.
//!
//! A diagonal D needs no kernels of its own: what removing W costs under D and no update is what removing W ∘ √D costs by
//! magnitude.
//!
//! The state of a power iteration is what its passes summed up: it is run again from the first pass whenever it is needed,
//! which costs no look at a token.

use crate::error::Error;
use curvature::{BlockFactors, KroneckerTerm, PowerIteration, PowerOptions, Side};
use model::ModelError;
use pruning::{Clamping, ElementCosts, KroneckerSumProblem, LayerProblem, MaskedUpdate, MaskedUpdated, Units, Updated};
use tch::{Kind, Tensor};
use types::{FactorDamping, LayerDescription, LayerId, RemovalPath, RunSpec, Unit, Update};

/// A removal problem.
pub(super) enum Curved {
    /// F = G ⊗ A.
    OneTerm(LayerProblem),
    /// F = G₁ ⊗ A₁ + G₂ ⊗ A₂.
    TwoTerms(KroneckerSumProblem),
    /// F = diag(D).
    Diagonal {
        /// The weights, without curvature.
        plain: LayerProblem,
        /// W ∘ √D, without curvature.
        scaled: LayerProblem,
    },
}

/// Least number of a diagonal, as a fraction of its mean: what the samples never use costs next to nothing, but counts as
/// weight.
const FLOOR: f64 = 1e-9;

impl Curved {
    /// Returns `plain` under the terms that a power iteration found: two, or one where the Fisher has no more.
    pub(super) fn with_terms(plain: LayerProblem, terms: Vec<KroneckerTerm>) -> Result<Self, Error> {
        let mut terms = terms.into_iter();
        let first = terms.next().ok_or_else(|| Error::Bug(format!("{} has no curvature at all", plain.layer)))?;
        let first = LayerProblem { a_cc: Some(first.a_cc), g_rr: Some(first.g_rr), ..plain };
        Ok(match terms.next() {
            None => Self::OneTerm(first),
            Some(second) => Self::TwoTerms(KroneckerSumProblem { first, second, floor: KroneckerSumProblem::FLOOR }),
        })
    }

    /// Returns `plain` under a diagonal, `[R, C]`.
    pub(super) fn with_diagonal(plain: LayerProblem, diagonal_rc: &Tensor) -> Result<Self, Error> {
        let mean = diagonal_rc.f_mean(Kind::Double).and_then(|mean| mean.f_double_value(&[]));
        let floor = mean.map_err(ModelError::from)? * FLOOR;
        let root = diagonal_rc.f_clamp_min(floor).and_then(|floored| floored.f_sqrt());
        let w_rc = root.and_then(|root| plain.w_rc.f_mul(&root)).map_err(ModelError::from)?;
        let scaled = LayerProblem { layer: plain.layer.clone(), w_rc, a_cc: None, g_rr: None, ..plain };
        Ok(Self::Diagonal { plain, scaled })
    }

    /// Returns the layer.
    pub(super) fn layer(&self) -> &LayerId {
        match self {
            Self::OneTerm(problem) => &problem.layer,
            Self::TwoTerms(problem) => &problem.first.layer,
            Self::Diagonal { plain, .. } => &plain.layer,
        }
    }

    /// Returns an error unless weights and factors fit together.
    pub(super) fn check(&self) -> Result<(), Error> {
        Ok(match self {
            Self::OneTerm(problem) | Self::Diagonal { scaled: problem, .. } => problem.check(),
            Self::TwoTerms(problem) => problem.first.check(),
        }?)
    }

    /// Returns the problem of one term that costs are those of.
    ///
    /// # Errors
    /// There are two terms, which not every structure has.
    pub(super) fn costed(&self) -> Result<&LayerProblem, Error> {
        match self {
            Self::OneTerm(problem) | Self::Diagonal { scaled: problem, .. } => Ok(problem),
            Self::TwoTerms(_) => Err(Error::Bug(format!("{} has two terms, for one", self.layer()))),
        }
    }

    /// Returns the removal path of rows and columns.
    pub(super) fn row_column_path(
        &self,
        (rows, columns): (&[u32], &[u32]),
        spec: &RunSpec,
    ) -> Result<RemovalPath, Error> {
        Ok(pruning::row_column_path(self.costed()?, rows, columns, spec.scoring, spec.update)?)
    }

    /// Returns the layer without the removed rows and columns.
    pub(super) fn row_column_update(
        &self,
        (rows, columns): (&[u32], &[u32]),
        removed: &[Unit],
        spec: &RunSpec,
    ) -> Result<Updated, Error> {
        let update = |problem| pruning::row_column_update(problem, rows, columns, removed, spec.update);
        let costed = update(self.costed()?)?;
        Ok(match self {
            Self::Diagonal { plain, .. } => Updated { predicted: costed.predicted, ..update(plain)? },
            Self::OneTerm(_) | Self::TwoTerms(_) => costed,
        })
    }

    /// Returns the removal path of a consumer's units.
    pub(super) fn coupled_path(&self, units: &Units, spec: &RunSpec) -> Result<RemovalPath, Error> {
        Ok(match self {
            Self::OneTerm(problem) | Self::Diagonal { scaled: problem, .. } => {
                pruning::coupled_path(problem, units, spec.scoring, spec.update)?
            }
            Self::TwoTerms(problem) => {
                let found = pruning::kronecker_sum_path(problem, units, joint_or_none(spec.update))?;
                RemovalPath { damping: floored(found.value.damping, found.clamping), ..found.value }
            }
        })
    }

    /// Returns the consumer without the removed units.
    pub(super) fn coupled_update(&self, units: &Units, removed: &[Unit], spec: &RunSpec) -> Result<Updated, Error> {
        Ok(match self {
            Self::OneTerm(problem) => pruning::coupled_update(problem, units, removed, spec.update)?,
            Self::Diagonal { plain, scaled } => Updated {
                predicted: pruning::coupled_update(scaled, units, removed, spec.update)?.predicted,
                ..pruning::coupled_update(plain, units, removed, spec.update)?
            },
            Self::TwoTerms(problem) => {
                pruning::kronecker_sum_coupled_update(problem, units, removed, masked(spec))?.value
            }
        })
    }

    /// Returns the costs of the layer's single weights.
    pub(super) fn element_costs(&self, update: Update) -> Result<ElementCosts, Error> {
        Ok(match self {
            Self::OneTerm(problem) | Self::Diagonal { scaled: problem, .. } => pruning::element_costs(problem, update)?,
            Self::TwoTerms(problem) => {
                let found = pruning::kronecker_sum_element_costs(problem, joint_or_none(update))?;
                ElementCosts { damping: floored(found.value.damping, found.clamping), ..found.value }
            }
        })
    }

    /// Returns the layer without the weights in `removed`.
    pub(super) fn masked_update(&self, removed: &Tensor, spec: &RunSpec) -> Result<MaskedUpdated, Error> {
        Ok(match self {
            Self::OneTerm(problem) => pruning::masked_update(problem, removed, masked(spec))?,
            Self::Diagonal { plain, scaled } => MaskedUpdated {
                predicted: pruning::masked_update(scaled, removed, masked(spec))?.predicted,
                ..pruning::masked_update(plain, removed, masked(spec))?
            },
            Self::TwoTerms(problem) => pruning::kronecker_sum_masked_update(problem, removed, masked(spec))?.value,
        })
    }
}

/// Returns a damping with the share of directions that are held at the floor.
fn floored(damping: FactorDamping, clamping: Clamping) -> FactorDamping {
    let Clamping { directions, clamped, smallest } = clamping;
    tracing::debug!(clamped, directions, smallest, "second term floored");
    FactorDamping { floored: Some(clamped as f64 / directions.max(1) as f64), ..damping }
}

/// Returns a layer's power iteration after the passes whose sums are given: the plain factors first.
pub(super) fn power_iteration(
    spec: &RunSpec,
    layer: &LayerDescription,
    sums: &[BlockFactors],
) -> Result<PowerIteration, Error> {
    let (plain, passes) = sums.split_first().ok_or_else(super::nothing_here)?;
    // No term settles early: layers go on in step, so that a pass is the same half-step for all.
    let options = PowerOptions { rank: spec.kronecker_rank, half_steps: spec.half_steps, tolerance: -1.0 };
    let a_cc = plain.finish(Side::Input, layer.input.as_str())?;
    let mut power = PowerIteration::new(layer.layer.as_str(), &a_cc, options)?;
    for pass in passes {
        let Some(mut half_step) = power.half_step()? else { break };
        half_step.add_sums(pass)?;
        power.advance(&half_step)?;
    }
    Ok(power)
}

/// Returns how single weights, or whatever two terms remove, are updated.
fn masked(spec: &RunSpec) -> MaskedUpdate {
    MaskedUpdate::new(spec.update, spec.max_correlate)
}

fn joint_or_none(update: Update) -> Update {
    if update == Update::None { Update::None } else { Update::Correlated }
}
