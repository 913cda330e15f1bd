//! Peak memory of the sweep must not grow with depth.

#![allow(clippy::unwrap_used)] // a test that cannot go on fails

#[path = "common/peak.rs"]
mod peak;
#[path = "common/random.rs"]
mod random;

use model::sweep::{self, Observer, ObserverError, SweepOptions};
use std::ops::ControlFlow;
use tch::{Kind, Tensor};
use types::{Fisher, LayerId};

/// Looks at everything and keeps nothing.
struct Nothing;

impl Observer for Nothing {
    fn block(&mut self, _: u32) -> Result<(), ObserverError> {
        Ok(())
    }
    fn input(&mut self, _: &LayerId, x_nc: &Tensor) -> Result<(), ObserverError> {
        let _ = x_nc.f_sum(Kind::Float)?;
        Ok(())
    }
    fn gradient(&mut self, _: &LayerId, _: &LayerId, dy_nr: &Tensor) -> Result<(), ObserverError> {
        let _ = dy_nr.f_sum(Kind::Float)?;
        Ok(())
    }
    fn finished(&mut self, _: u32) -> Result<(), ObserverError> {
        Ok(())
    }
}

#[test]
fn peak_memory_does_not_grow_with_depth() {
    peak::does_not_grow_with_depth("peak_memory_does_not_grow_with_depth", &|llama, decoder, samples, tokens| {
        let layers =
            decoder.resident().unwrap().iter().flat_map(|b| b.linears().into_iter().map(|l| (b.index, l.name.clone())));
        let options = SweepOptions {
            micro_batch: peak::SAMPLES,
            boundary_kind: Kind::Float,
            fisher: Fisher::Empirical,
            seed: 0,
            first_sample: 0,
            curvature: layers.collect(),
            head_chunk: 256,
        };
        let samples = llama.samples(samples, tokens);
        sweep::run(decoder, &samples, &options, &mut Nothing, &mut |_, _| ControlFlow::Continue(())).unwrap();
    });
}
