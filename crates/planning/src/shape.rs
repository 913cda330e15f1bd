//! Which shape `auto` takes: the same widths in every block, or widths of their own.
//!
//! Equal widths load in every runtime and run faster for their size; widths of their own cost less of the loss. Nothing but
//! the two predictions and the sizes at which they end is known when this is decided, at the first shot.

use types::{Shape, ShapeChoice};

/// How many times the rise of the loss with widths of their own equal widths may cost.
///
/// Measured: uniform models of the same size are up to a seventh faster in stock runtimes; a quarter of the rise is what
/// a tenth of the weights costs around 80 % (docs/quality.md).
const WORTH: f64 = 1.25;

/// What a shape would come to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Offer {
    /// Predicted rise of the loss by the shot, nats per token.
    pub predicted: f64,
    /// Size that is left, in the target's figure.
    pub left: u64,
}

/// Returns the shape to take. `uniform`: `None` where no equal widths reach the size. `obstacle`: why widths of their own
/// cannot be written for the runtimes asked for, if so.
pub fn choose(uniform: Option<Offer>, own: Offer, obstacle: Option<&str>) -> ShapeChoice {
    let taken = |shape, reason| ShapeChoice { shape, reason };
    let Some(uniform) = uniform else {
        // With an obstacle nothing is left to take: the cut with equal widths will say why it cannot be.
        let shape = if obstacle.is_some() { Shape::Uniform } else { Shape::PerLayer };
        return taken(shape, "no equal widths reach the size".to_owned());
    };
    let figures = format!(
        "the first shot is predicted to raise the loss by {:.4} nats per token with equal widths ({} left) and by {:.4} with \
         widths of their own ({} left)",
        uniform.predicted, uniform.left, own.predicted, own.left
    );
    if let Some(obstacle) = obstacle {
        return taken(Shape::Uniform, format!("{figures}; {obstacle}"));
    }
    if uniform.predicted > own.predicted * WORTH {
        return taken(Shape::PerLayer, format!("{figures}: more than {WORTH} times as much"));
    }
    taken(Shape::Uniform, format!("{figures}: at most {WORTH} times as much, and equal widths load everywhere"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn offer(predicted: f64) -> Offer {
        Offer { predicted, left: 80 }
    }

    #[test]
    fn equal_widths_are_taken_until_they_cost_too_much() {
        assert_eq!(choose(Some(offer(0.12)), offer(0.1), None).shape, Shape::Uniform);
        assert_eq!(choose(Some(offer(0.13)), offer(0.1), None).shape, Shape::PerLayer);
        assert_eq!(choose(None, offer(0.1), None).shape, Shape::PerLayer);
        assert_eq!(choose(None, offer(0.1), Some("no runtime")).shape, Shape::Uniform);
        let refused = choose(Some(offer(0.9)), offer(0.1), Some("no runtime"));
        assert_eq!(refused.shape, Shape::Uniform);
        assert!(refused.reason.contains("no runtime") && refused.reason.contains("0.9000"));
    }

    proptest! {
        #[test]
        fn a_dearer_uniform_never_becomes_the_choice(own in 0.0..1.0f64, cheap in 0.0..2.0f64, more in 0.0..2.0f64) {
            let shape = |uniform: f64| choose(Some(offer(uniform)), offer(own), None).shape;
            prop_assert!(shape(cheap) == Shape::Uniform || shape(cheap + more) == Shape::PerLayer);
        }
    }
}
