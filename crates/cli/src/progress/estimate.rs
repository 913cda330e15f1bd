//! How long it still takes: extrapolation from what is done. Pure; times are seconds on the caller's clock.

/// Share of a stage below which its pace says nothing.
const LEAST_SHARE: f64 = 0.01;
/// What an update takes of a sweep's time, until one was seen.
const UPDATE_SHARE: f64 = 0.1;

/// The pace of one stage.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Pace {
    began: f64,
    /// Share that was done then: a stage that goes on does not begin at nothing.
    from: f64,
    share: f64,
}

impl Pace {
    /// Returns the pace of a stage that is first seen now.
    pub(super) fn new(now: f64, share: f64) -> Self {
        Self { began: now, from: share, share }
    }

    /// Notes how much is done.
    pub(super) fn reached(&mut self, share: f64) {
        self.share = share.clamp(self.share.min(1.0), 1.0);
    }

    /// Returns the share that is done.
    pub(super) fn share(&self) -> f64 {
        self.share
    }

    /// Returns the seconds left, once there is something to extrapolate from.
    pub(super) fn left(&self, now: f64) -> Option<f64> {
        let done = self.share - self.from;
        (done >= LEAST_SHARE).then(|| (now - self.began) * (1.0 - self.share) / done)
    }
}

/// A stretch of a run that nothing overlaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Model and data are checked.
    Prepare,
    /// Held-out loss.
    Evaluate,
    /// Sweep, paths, cut.
    Curvature,
    /// New weights.
    Update,
    /// Low-rank correction.
    Correct,
    /// The final folder.
    Materialise,
}

/// How long each phase took when it was last seen, and where the run is.
#[derive(Debug, Clone)]
pub(super) struct Estimate {
    pub(super) shots: u32,
    evaluates: bool,
    shot: u32,
    phase: Phase,
    began: f64,
    /// Whether each shot is corrected.
    pub(super) corrects: bool,
    lengths: [Option<f64>; 6],
}

impl Estimate {
    /// Returns an estimate of a run that begins (or goes on) now.
    pub(super) fn new(shots: u32, evaluates: bool, now: f64) -> Self {
        Self { shots, evaluates, shot: 0, phase: Phase::Prepare, began: now, corrects: false, lengths: [None; 6] }
    }

    /// Notes where the run is. A phase that was entered and left is a length for the next of its kind.
    pub(super) fn enter(&mut self, shot: u32, phase: Phase, now: f64) {
        if (shot, phase) == (self.shot, self.phase) {
            return;
        }
        self.lengths[self.phase as usize] = Some(now - self.began);
        (self.shot, self.phase, self.began) = (shot, phase, now);
    }

    /// Returns the seconds left of the run; `stage` are those left of the stage under way, if known.
    pub(super) fn left(&self, now: f64, stage: Option<f64>) -> Option<f64> {
        let elapsed = now - self.began;
        let present = stage.or_else(|| self.length(self.phase).map(|whole| (whole - elapsed).max(0.0)))?;
        let curvature = match self.phase {
            Phase::Curvature => self.length(Phase::Curvature).unwrap_or(elapsed + present),
            _ => self.length(Phase::Curvature).or_else(|| (self.shot >= self.shots).then_some(0.0))?,
        };
        let update = self.length(Phase::Update).unwrap_or(UPDATE_SHARE * curvature);
        let correct = if self.corrects { self.length(Phase::Correct).unwrap_or(curvature) } else { 0.0 };
        let evaluate =
            if self.evaluates { self.length(Phase::Evaluate).unwrap_or(UPDATE_SHARE * curvature) } else { 0.0 };
        let materialise = self.length(Phase::Prepare).unwrap_or(0.0);
        let rest_of_shot = match self.phase {
            Phase::Curvature => update + correct + evaluate + materialise,
            Phase::Update => correct + evaluate + materialise,
            Phase::Correct => evaluate + materialise,
            Phase::Prepare => self.lengths[Phase::Evaluate as usize].map_or(evaluate, |_| 0.0) + materialise,
            Phase::Evaluate => materialise,
            Phase::Materialise => 0.0,
        };
        let more = f64::from(self.shots.saturating_sub(self.shot)) * (curvature + update + correct + evaluate);
        Some(present + rest_of_shot + more)
    }

    fn length(&self, phase: Phase) -> Option<f64> {
        self.lengths[phase as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_that_goes_on_in_the_middle_is_paced_by_what_was_done_since() {
        let mut pace = Pace::new(100.0, 0.5);
        assert_eq!(pace.left(101.0), None);
        pace.reached(0.75);
        assert_eq!(pace.left(110.0), Some(10.0));
        pace.reached(0.6); // a late message
        assert!((pace.share() - 0.75).abs() < 1e-12);
    }

    #[test]
    fn later_shots_are_expected_to_take_what_the_last_one_took() {
        let mut estimate = Estimate::new(3, true, 0.0);
        assert_eq!(estimate.left(1.0, None), None);
        estimate.enter(0, Phase::Evaluate, 2.0);
        estimate.enter(1, Phase::Curvature, 12.0); // evaluation took 10 s
        // Half of a sweep of 100 s: 50 left, update guessed at 10, then 10 + 2, and two shots more of 120.
        assert_eq!(estimate.left(62.0, Some(50.0)), Some(50.0 + 10.0 + 10.0 + 2.0 + 2.0 * 120.0));
        estimate.enter(1, Phase::Update, 112.0);
        estimate.enter(1, Phase::Evaluate, 117.0);
        estimate.enter(2, Phase::Curvature, 127.0);
        // Known now: 100 + 5 + 10 a shot.
        assert_eq!(estimate.left(127.0, None), Some(115.0 + 2.0 + 115.0));
        estimate.enter(3, Phase::Evaluate, 352.0);
        assert_eq!(estimate.left(352.0, Some(4.0)), Some(4.0 + 2.0));
    }
}
