//! The state of one layer's power iteration between passes.

use super::{HalfStep, KroneckerSum, KroneckerTerm, dot, norm};
use crate::inverse::is_finite;
use crate::{CurvatureError, Side};
use tch::{Kind, Tensor};

/// When to stop.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PowerOptions {
    /// Terms, K.
    pub rank: u32,
    /// The most half-steps of a term (at least 1); one that has not settled by then is taken as it is, which is the best for
    /// the side that the last half-step started from.
    pub half_steps: u32,
    /// A term has settled when a half-step raises its norm by less than this share of it. The error of its direction is of
    /// the order of the root.
    pub tolerance: f64,
}

impl Default for PowerOptions {
    fn default() -> Self {
        Self { rank: 2, half_steps: 6, tolerance: 1e-3 }
    }
}

/// One layer's way to its Kronecker sum.
///
/// Ask for a [`HalfStep`], sum it up over all tokens, [`Self::advance`] with it, until there is none to ask for. Every term
/// starts from the plain mean A less its share in the terms before: no random numbers.
#[derive(Debug)]
pub struct PowerIteration {
    layer: String,
    options: PowerOptions,
    plain_cc: Tensor,
    found: KroneckerSum,
    /// The term that is sought; `None` when all are found.
    sought: Option<Sought>,
    /// Half-steps of all terms so far.
    number: u32,
}

/// A term on the way.
#[derive(Debug)]
struct Sought {
    /// The side that the next half-step sums.
    next: Side,
    /// What the next half-step starts from, and its twin, unless this is the first.
    known: Tensor,
    twin: Option<Tensor>,
    norm: f64,
    rise: f64,
    half_steps: u32,
}

impl Sought {
    fn from(start_cc: Tensor) -> Self {
        Self { next: Side::Gradient, known: start_cc, twin: None, norm: 0.0, rise: 1.0, half_steps: 0 }
    }

    /// Returns the term, unless there was no half-step.
    fn term(self) -> Option<KroneckerTerm> {
        let (known, twin) = (self.known, self.twin?);
        Some(match self.next {
            Side::Input => KroneckerTerm { g_rr: known, a_cc: twin },
            Side::Gradient => KroneckerTerm { g_rr: twin, a_cc: known },
        })
    }
}

impl PowerIteration {
    /// Returns the start for a layer from A, the plain mean over tokens.
    ///
    /// # Shapes
    /// `plain_cc`: `[c, c]`
    ///
    /// # Errors
    /// `Shape` when not square; `NotFinite`.
    pub fn new(layer: &str, plain_cc: &Tensor, options: PowerOptions) -> Result<Self, CurvatureError> {
        tch::no_grad(|| {
            let (name, size) = (Side::Input.of(layer), plain_cc.size());
            if size.len() != 2 || size[0] != size[1] {
                let n = size.first().copied().unwrap_or(-1);
                return Err(CurvatureError::Shape { name, expected: vec![n, n], actual: size });
            }
            let kind = if plain_cc.kind() == Kind::Double { Kind::Double } else { Kind::Float };
            let plain_cc = plain_cc.f_to_kind(kind)?;
            if !is_finite(&plain_cc)? {
                return Err(CurvatureError::NotFinite { name });
            }
            let something = options.rank > 0 && norm(&plain_cc)? > 0.0;
            let sought = something.then(|| Sought::from(plain_cc.shallow_clone()));
            let found = KroneckerSum { terms: Vec::new(), half_steps: Vec::new(), last_rise: Vec::new() };
            Ok(Self { layer: layer.to_owned(), options, plain_cc, found, sought, number: 0 })
        })
    }

    /// Returns the sum that the next pass should make, empty; `None` when all terms are found.
    pub fn half_step(&self) -> Result<Option<HalfStep>, CurvatureError> {
        tch::no_grad(|| {
            let of = |sought: &Sought| HalfStep::new(&self.layer, self.number + 1, sought.next, &sought.known);
            self.sought.as_ref().map(of).transpose()
        })
    }

    /// Ends the half-step whose sums are given; an error leaves the state as it was.
    ///
    /// # Errors
    /// `Unknown` when they are of another layer or half-step; `NoTokens`, `NotFinite`; `Shape`.
    pub fn advance(&mut self, sums: &HalfStep) -> Result<(), CurvatureError> {
        tch::no_grad(|| {
            let wanted = self.sought.as_ref().map(|sought| (self.layer.as_str(), self.number + 1, sought.next));
            if wanted != Some((sums.layer(), sums.number(), sums.side())) {
                return Err(CurvatureError::Unknown { name: sums.name() });
            }
            let Some(sought) = &self.sought else { unreachable!("something is wanted") };
            let known_norm = norm(&sought.known)?;
            let mut made = self.deflated(sought, sums, known_norm)?;
            let reached = norm(&made)?;
            let _ = made.f_div_scalar_(known_norm)?;
            let Some(mut sought) = self.sought.take() else { unreachable!("something is wanted") };
            sought.rise = if reached > 0.0 { (reached - sought.norm) / reached } else { 0.0 };
            sought.norm = reached;
            sought.half_steps += 1;
            sought.twin = Some(std::mem::replace(&mut sought.known, made));
            sought.next = sought.next.other();
            self.number += 1;
            self.sought = self.settle(sought)?;
            Ok(())
        })
    }

    /// Returns the mean of the sums less what the terms before contribute to it.
    fn deflated(&self, sought: &Sought, sums: &HalfStep, known_norm: f64) -> Result<Tensor, CurvatureError> {
        let mut made = sums.finish()?;
        for earlier in &self.found.terms {
            let theirs = earlier.side(sought.next);
            if theirs.size() != made.size() {
                return Err(CurvatureError::Shape { name: sums.name(), expected: theirs.size(), actual: made.size() });
            }
            let share = dot(earlier.side(sought.next.other()), &sought.known)? / known_norm;
            let _ = made.f_sub_(&theirs.f_mul_scalar(share)?)?;
        }
        Ok(made)
    }

    /// Returns the term that is sought from now on: the same, the next, or none.
    fn settle(&mut self, sought: Sought) -> Result<Option<Sought>, CurvatureError> {
        let first = self.found.terms.first().map_or(Ok(0.0), KroneckerTerm::norm)?;
        if sought.norm <= 16.0 * epsilon(self.plain_cc.kind()) * first {
            return Ok(None); // nothing but rounding is left
        }
        let settled = sought.half_steps > 1 && sought.rise <= self.options.tolerance;
        if !settled && sought.half_steps < self.options.half_steps {
            return Ok(Some(sought));
        }
        if !settled {
            let (term, rise) = (self.found.terms.len() + 1, sought.rise);
            tracing::debug!(layer = self.layer, term, rise, "a term of the Kronecker sum has not settled");
        }
        self.keep(sought);
        if self.found.terms.len() >= self.options.rank as usize {
            return Ok(None);
        }
        Ok(self.next_start()?.map(Sought::from))
    }

    fn keep(&mut self, sought: Sought) {
        let (half_steps, rise) = (sought.half_steps, sought.rise);
        if let Some(term) = sought.term() {
            self.found.terms.push(term);
            self.found.half_steps.push(half_steps);
            self.found.last_rise.push(rise);
        }
    }

    /// Returns the plain mean less its share in the terms found, or, where that is nothing (equal inputs for all tokens, or
    /// symmetric ones), a diagonal of rising values less its share; `None` when both are spanned.
    fn next_start(&self) -> Result<Option<Tensor>, CurvatureError> {
        let c = self.plain_cc.size()[0];
        let options = (self.plain_cc.kind(), self.plain_cc.device());
        let ramp_c = Tensor::f_arange_start(1, c + 1, options)?;
        for start_cc in [self.plain_cc.shallow_clone(), ramp_c.f_diag(0)?] {
            let mut left_cc = start_cc.f_div_scalar(norm(&start_cc)?)?;
            for term in &self.found.terms {
                let share = dot(&term.a_cc, &left_cc)? / dot(&term.a_cc, &term.a_cc)?;
                let _ = left_cc.f_sub_(&term.a_cc.f_mul_scalar(share)?)?;
            }
            if norm(&left_cc)? > epsilon(options.0).sqrt() {
                return Ok(Some(left_cc));
            }
        }
        Ok(None)
    }

    /// Returns the terms found so far; those that are still sought are left out.
    pub fn finish(self) -> KroneckerSum {
        self.found
    }
}

fn epsilon(kind: Kind) -> f64 {
    if kind == Kind::Double { f64::EPSILON } else { f64::from(f32::EPSILON) }
}
