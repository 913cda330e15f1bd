//! Where a run's time went, from its journal alone. Time between two coordinators (a pause, a crash) is not counted.

use coordinator::event::{Event, SweepSeconds};
use serde::Serialize;

/// Seconds by stage, over all shots.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub(crate) struct Timeline {
    /// The run, without pauses.
    pub(crate) total: f64,
    /// Checking model and data.
    pub(crate) prepare: f64,
    /// Sweeps, with their parts.
    pub(crate) calibrate: SweepSeconds,
    /// Removal paths: computing alone; most of it happens while earlier blocks are swept.
    pub(crate) score: f64,
    /// Waiting for the last paths and choosing the cut.
    pub(crate) allocate: f64,
    /// New weights: computing alone.
    pub(crate) update: f64,
    /// Low-rank corrections.
    pub(crate) correct: f64,
    /// Held-out loss.
    pub(crate) evaluate: f64,
    /// The final folder.
    pub(crate) materialise: f64,
    /// Time of the last record, milliseconds since 1970.
    #[serde(skip)]
    last_ms: Option<u64>,
}

impl Timeline {
    /// Adds a record.
    pub(crate) fn record(&mut self, event: &Event, time_ms: u64) {
        let passed = self.last_ms.map_or(0.0, |last| time_ms.saturating_sub(last) as f64 / 1000.0);
        self.last_ms = Some(time_ms);
        if matches!(event, Event::TakenOver { .. }) {
            return;
        }
        self.total += passed;
        match event {
            Event::Prepared(prepared) => self.prepare += prepared.seconds,
            Event::Evaluated(_) => self.evaluate += passed,
            Event::ShardCalibrated(shard) => {
                let (sum, one) = (&mut self.calibrate, shard.seconds);
                sum.total += one.total;
                sum.forward += one.forward;
                sum.head += one.head;
                sum.backward += one.backward;
                sum.gram += one.gram;
                sum.wait += one.wait;
            }
            Event::BlockWeighed(block) => self.score += block.seconds,
            Event::BlockScored(block) => self.score += block.seconds,
            Event::BlockRefined(block) => self.allocate += block.seconds,
            Event::CutChosen(_) => self.allocate += passed,
            Event::BlockUpdated(block) => self.update += block.seconds,
            Event::ShotCorrected(done) => self.correct += done.seconds,
            Event::Materialised(written) => self.materialise += written.seconds,
            Event::Created { .. }
            | Event::TakenOver { .. }
            | Event::Inherited { .. }
            | Event::Traced { .. }
            | Event::ShotOpened { .. }
            | Event::ShardQuarantined(_)
            | Event::RoundDone(_)
            | Event::ShotCommitted { .. }
            | Event::ShotTakenBack { .. }
            | Event::Succeeded
            | Event::Failed { .. }
            | Event::Paused
            | Event::Cancelled => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_between_two_coordinators_does_not_count() {
        let mut timeline = Timeline::default();
        timeline.record(&Event::TakenOver { epoch: 1 }, 1_000);
        timeline.record(&Event::ShotOpened { shot: 1, limit: 5 }, 3_000);
        timeline.record(&Event::TakenOver { epoch: 2 }, 900_000);
        timeline.record(&Event::Succeeded, 901_500);
        assert!((timeline.total - 3.5).abs() < 1e-9, "{}", timeline.total);
    }
}
