//! The damping ladder: Cholesky in f32, then in f64, then with ten times the damping up to a limit, then an error.
//!
//! Knows one matrix at a time; who counts damped layers is the coordinator.

use crate::CurvatureError;
use crate::inverse::{is_finite, try_cholesky};
use tch::{Kind, Tensor};
use types::{DampingScale, DampingStep, Precision};

/// The largest λ to which the ladder climbs by itself: a matrix that is indefinite when its mean diagonal is doubled is no
/// second moment.
pub const LAMBDA_LIMIT: f64 = 1.0;

/// The first rung above λ = 0.
const LAMBDA_SMALLEST: f64 = 1e-6;

/// Under [`DampingScale::Diagonal`] an entry counts as at least this share of the diagonal's mean, so that an input that
/// never fires has a pivot too.
const ENTRY_SMALLEST: f64 = 1e-6;

/// How much to add to the diagonal.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Damping {
    /// λ.
    pub lambda: f64,
    /// What it is a fraction of.
    pub scale: DampingScale,
}

/// A damped factor with its Cholesky factor.
#[derive(Debug)]
pub struct Factorised {
    /// M + λ D, in the kind of the precision that it took: D = diag M, or mean(diag M) · I.
    pub damped: Tensor,
    /// Its lower Cholesky factor.
    pub l: Tensor,
    /// The rung of the ladder.
    pub step: DampingStep,
}

/// Returns `m` damped and factorised on the first rung of the ladder that holds.
///
/// A matrix in f64 starts in f64. `name` (side and layer) and `tokens` are for the error.
///
/// # Shapes
/// `m`: `[n, n]`, symmetric
///
/// # Errors
/// `Shape` when not square, `NotFinite`, and `NotPositiveDefinite` at the end of the ladder.
pub fn factorise(name: &str, m: &Tensor, damping: Damping, tokens: u64) -> Result<Factorised, CurvatureError> {
    tch::no_grad(|| climb(name, m, damping, tokens))
}

fn climb(name: &str, m: &Tensor, damping: Damping, tokens: u64) -> Result<Factorised, CurvatureError> {
    let size = m.size();
    if size.len() != 2 || size[0] != size[1] {
        let n = size.first().copied().unwrap_or(-1);
        return Err(CurvatureError::Shape { name: name.to_owned(), expected: vec![n, n], actual: size });
    }
    if !is_finite(m)? {
        return Err(CurvatureError::NotFinite { name: name.to_owned() });
    }
    let mut lambda = damping.lambda;
    if m.kind() != Kind::Double
        && let Some(found) = attempt(&m.f_to_kind(Kind::Float)?, damping, 0)?
    {
        return Ok(found);
    }
    let m_double = m.f_to_kind(Kind::Double)?;
    let mut raised = 0;
    loop {
        if let Some(found) = attempt(&m_double, Damping { lambda, ..damping }, raised)? {
            return Ok(found);
        }
        let next = (lambda * 10.0).max(LAMBDA_SMALLEST);
        if next > LAMBDA_LIMIT * (1.0 + 1e-9) {
            let smallest = m_double.f_linalg_eigvalsh("L")?.f_min()?.f_double_value(&[])?;
            return Err(CurvatureError::NotPositiveDefinite { name: name.to_owned(), smallest, lambda, tokens });
        }
        raised += 1;
        tracing::warn!(factor = name, lambda = next, "factor is not positive definite, damping raised");
        lambda = next;
    }
}

/// Returns the factorisation on one rung, in the kind of `m`.
fn attempt(m: &Tensor, damping: Damping, raised: u32) -> Result<Option<Factorised>, CurvatureError> {
    let Damping { lambda, scale } = damping;
    let damped = m.f_detach_copy()?;
    let mut diagonal = damped.f_diagonal(0, 0, 1)?;
    let mean = diagonal.f_mean(Kind::Double)?.f_double_value(&[])?;
    let _ = match scale {
        DampingScale::Mean => diagonal.f_add_scalar_(lambda * mean)?,
        DampingScale::Diagonal => {
            diagonal.f_add_(&diagonal.f_clamp_min(ENTRY_SMALLEST * mean)?.f_mul_scalar(lambda)?)?
        }
    };
    let precision = if m.kind() == Kind::Double { Precision::F64 } else { Precision::F32 };
    let step = DampingStep { lambda, precision, raised };
    Ok(try_cholesky(&damped)?.map(|l| Factorised { damped, l, step }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use testkit::{devices, max_difference, random_spd};

    fn by_mean(lambda: f64) -> Damping {
        Damping { lambda, scale: DampingScale::Mean }
    }

    fn diagonal(values: &[f64]) -> Tensor {
        Tensor::from_slice(values).diag(0)
    }

    #[test]
    fn a_good_factor_takes_the_asked_damping_in_its_own_kind() {
        for device in devices() {
            let m = random_spd(5, 7).to_device(device).to_kind(Kind::Float);
            let found = factorise("A of x", &m, by_mean(0.01), 10).unwrap();
            assert_eq!(found.step, DampingStep { lambda: 0.01, precision: Precision::F32, raised: 0 });
            let mean = m.diagonal(0, 0, 1).mean(Kind::Double).double_value(&[]);
            let expected = &m + Tensor::eye(5, (Kind::Float, device)) * (0.01 * mean);
            assert!(max_difference(&found.damped, &expected) < 1e-6);
            assert!(max_difference(&found.l.matmul(&found.l.tr()), &expected) < 1e-5);
        }
    }

    #[test]
    fn the_diagonal_scale_shrinks_correlations_and_spares_no_dead_input() {
        for device in devices() {
            let m = random_spd(5, 7).to_device(device);
            let _ = m.select(0, 2).zero_();
            let _ = m.select(1, 2).zero_();
            let found = factorise("A of x", &m, Damping { lambda: 0.1, scale: DampingScale::Diagonal }, 10).unwrap();
            let mean = m.diagonal(0, 0, 1).mean(Kind::Double).double_value(&[]);
            let expected = &m + m.diagonal(0, 0, 1).clamp_min(1e-6 * mean).diag(0) * 0.1;
            assert!(max_difference(&found.damped, &expected) < 1e-15);
            assert!(found.l.double_value(&[2, 2]) > 0.0);
            let correlation =
                |m: &Tensor| m.double_value(&[0, 1]) / (m.double_value(&[0, 0]) * m.double_value(&[1, 1])).sqrt();
            assert!((correlation(&found.damped) - correlation(&m) / 1.1).abs() < 1e-12);
        }
    }

    #[test]
    fn rounding_alone_is_cured_by_f64_without_more_damping() {
        // Positive definite by a hair: the second pivot is 1/n rounded up, less 1/n, which f32 may round to nothing.
        let cured = (2..500).filter(|n| {
            let n = *n as f32;
            let mut corner = 1.0 / n;
            while f64::from(corner) * f64::from(n) <= 1.0 {
                corner = corner.next_up();
            }
            let m = Tensor::from_slice(&[n, 1.0, 1.0, corner]).view([2, 2]);
            let step = factorise("A of x", &m, by_mean(0.0), 10).unwrap().step;
            assert_eq!(step.raised, 0);
            step.precision == Precision::F64
        });
        assert!(cured.count() > 0);
    }

    #[test]
    fn the_ladder_reports_how_often_it_raised_the_damping() {
        let m = diagonal(&[1.0, 1.0, 1.0, -0.04]).to_kind(Kind::Float);
        let step = factorise("A of x", &m, by_mean(0.01), 10).unwrap().step;
        assert_eq!((step.precision, step.raised), (Precision::F64, 1));
        assert!((step.lambda - 0.1).abs() < 1e-12);
        let from_zero = factorise("A of x", &diagonal(&[1.0, 0.0]), by_mean(0.0), 10).unwrap().step;
        assert_eq!((from_zero.lambda, from_zero.raised), (1e-6, 1));
    }

    #[test]
    fn the_end_of_the_ladder_names_layer_eigenvalue_and_tokens() {
        let m = diagonal(&[1.0, -3.0]);
        let error = factorise("A of model.layers.3.fc2", &m, by_mean(0.01), 77).unwrap_err();
        let CurvatureError::NotPositiveDefinite { name, smallest, tokens, .. } = &error else { panic!("{error}") };
        assert_eq!((name.as_str(), *tokens), ("A of model.layers.3.fc2", 77));
        assert!((smallest + 3.0).abs() < 1e-12);
        let zero = factorise("G of y", &diagonal(&[0.0, 0.0]), by_mean(0.01), 1).unwrap_err();
        assert!(zero.to_string().contains("G of y"), "{zero}");
    }

    #[test]
    fn what_is_not_finite_is_never_damped_away() {
        let error = factorise("A of model.layers.0.fc2", &diagonal(&[1.0, f64::NAN]), by_mean(0.1), 5).unwrap_err();
        assert!(matches!(&error, CurvatureError::NotFinite { name } if name.contains("layers.0.fc2")), "{error}");
        assert!(matches!(
            factorise("A", &Tensor::zeros([2, 3], (Kind::Float, tch::Device::Cpu)), by_mean(0.1), 5),
            Err(CurvatureError::Shape { .. })
        ));
    }
}
