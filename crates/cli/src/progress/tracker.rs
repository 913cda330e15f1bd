//! What a run has done and where it is, folded from its events. Pure; times are seconds on the caller's clock.

use super::estimate::{Estimate, Pace, Phase};
use super::lines;
use coordinator::event::{Event, History};
use proto::v1::{Stage, StageProgress};
use std::collections::BTreeMap;

/// Where a run is.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Now {
    /// Shot and stage, for people.
    pub(super) label: String,
    /// Share of the stage that is done.
    pub(super) share: f64,
    /// Seconds left of the stage.
    pub(super) stage_left: Option<f64>,
    /// Seconds left of the run.
    pub(super) run_left: Option<f64>,
}

/// What a run has done and where it is.
#[derive(Debug)]
pub(super) struct Tracker {
    shots: u32,
    /// Shards that a shot sweeps, in all its passes; 1 before that is known.
    shards: u64,
    history: History,
    /// Stages under way, the earliest first.
    stages: BTreeMap<(u32, i32), Pace>,
    estimate: Estimate,
    shot_began: f64,
}

impl Tracker {
    /// Returns the tracker of a run that begins (or goes on) now.
    pub(super) fn new(shots: u32, evaluates: bool, now: f64) -> Self {
        let estimate = Estimate::new(shots, evaluates, now);
        Self { shots, shards: 1, history: History::default(), stages: BTreeMap::new(), estimate, shot_began: now }
    }

    /// Folds a record of the journal. Returns the line that tells of it.
    pub(super) fn record(&mut self, event: &Event, now: f64) -> Option<String> {
        self.history.apply(event.clone());
        self.shots = self.history.planned_shots().unwrap_or(self.shots);
        self.estimate.shots = self.shots;
        self.finish_stages(event);
        match event {
            Event::Created { spec, .. } => self.estimate.corrects = spec.correct_rank > 0,
            Event::ShotOpened { .. } => self.shot_began = now,
            Event::Prepared(found) => {
                let sweeps = |spec: &types::RunSpec| {
                    coordinator::shard_plan(spec, &found.model).len() * (spec.passes() as usize + 1)
                };
                self.shards = self.history.spec.as_ref().map_or(1, sweeps).max(1) as u64;
            }
            _ => {}
        }
        let line = lines::line(event, &self.history, now - self.shot_began);
        if !matches!(event, Event::Created { .. } | Event::TakenOver { .. }) {
            let (shot, phase) = self.phase();
            self.estimate.enter(shot, phase, now);
        }
        line
    }

    /// Notes how far a stage is.
    pub(super) fn stage(&mut self, progress: StageProgress, now: f64) {
        if progress.total == 0 {
            return;
        }
        let mut share = progress.done as f64 / progress.total as f64;
        if progress.stage() == Stage::Calibrate {
            let done = self.settled_sweeps(progress.shot);
            share = (done as f64 + share) / self.shards as f64;
        }
        let share = share.min(1.0);
        let pace = self.stages.entry((progress.shot, progress.stage)).or_insert_with(|| Pace::new(now, share));
        pace.reached(share);
    }

    /// Returns where the run is, if a stage is under way.
    pub(super) fn now(&self, now: f64) -> Option<Now> {
        let ((shot, stage), pace) = self.stages.iter().find(|(_, pace)| pace.share() < 1.0)?;
        let stage_left = pace.left(now);
        let stage = Stage::try_from(*stage).unwrap_or_default();
        let label = match *shot {
            0 if stage == Stage::Evaluate => "dense model: evaluate".to_owned(),
            0 => name(stage).to_owned(),
            _ if stage == Stage::Materialise => name(stage).to_owned(),
            shot => format!("shot {shot}/{}: {}", self.shots, name(stage)),
        };
        Some(Now { label, share: pace.share(), stage_left, run_left: self.estimate.left(now, stage_left) })
    }

    /// Returns how many sweeps of a shot there is nothing more to wait for.
    fn settled_sweeps(&self, shot: u32) -> usize {
        let passes = self.history.spec.as_ref().map_or(0, types::RunSpec::passes);
        self.history.shots.get(&shot).map_or(0, |s| s.settled_sweeps(passes))
    }

    /// Forgets stages that an event ends.
    fn finish_stages(&mut self, event: &Event) {
        let last_shard = |shot| self.settled_sweeps(shot) as u64 >= self.shards;
        let ended = match event {
            Event::Prepared(_) => (0, Stage::Prepare),
            Event::Evaluated(done) => (done.shot, Stage::Evaluate),
            Event::ShardCalibrated(done) if last_shard(done.shot) => (done.shot, Stage::Calibrate),
            Event::ShardQuarantined(gone) if last_shard(gone.shot) => (gone.shot, Stage::Calibrate),
            Event::CutChosen(cut) => (cut.shot, Stage::Allocate),
            Event::ShotCommitted { shot, .. } => (*shot, Stage::Update),
            Event::ShotCorrected(done) => (done.shot, Stage::Correct),
            Event::Materialised(done) => (done.shot, Stage::Materialise),
            _ => return,
        };
        // Stages of a shot are numbered in the order in which they end.
        self.stages.retain(|stage, _| *stage > (ended.0, ended.1 as i32));
    }

    /// Returns the phase after what the journal says.
    fn phase(&self) -> (u32, Phase) {
        let history = &self.history;
        let Some(prepared) = &history.prepared else { return (0, Phase::Prepare) };
        let done = history.shots_done();
        if self.estimate.corrects && history.shots.get(&done).is_some_and(|s| s.corrected.is_none()) {
            return (done, Phase::Correct);
        }
        if prepared.eval_data.is_some() && !history.evaluations.contains_key(&done) {
            return (done, Phase::Evaluate);
        }
        if done >= self.shots {
            return (done, Phase::Materialise);
        }
        let cut = history.shots.get(&(done + 1)).is_some_and(|s| s.cut.is_some() || !s.rounds.is_empty());
        (done + 1, if cut { Phase::Update } else { Phase::Curvature })
    }
}

fn name(stage: Stage) -> &'static str {
    match stage {
        Stage::Unspecified => "work",
        Stage::Prepare => "prepare",
        Stage::Calibrate => "calibrate",
        Stage::Score => "score",
        Stage::Allocate => "allocate",
        Stage::Update => "update",
        Stage::Correct => "correct",
        Stage::Evaluate => "evaluate",
        Stage::Materialise => "materialise",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress(shot: u32, stage: Stage, done: u64) -> StageProgress {
        StageProgress { shot, stage: stage as i32, done, total: 100 }
    }

    #[test]
    fn the_first_unfinished_stage_is_shown() {
        let mut tracker = Tracker::new(2, false, 0.0);
        assert_eq!(tracker.now(0.0), None);
        tracker.stage(progress(1, Stage::Calibrate, 0), 10.0);
        tracker.stage(progress(1, Stage::Score, 0), 10.0);
        tracker.stage(progress(1, Stage::Calibrate, 25), 20.0);
        let now = tracker.now(20.0).unwrap();
        assert_eq!((now.label.as_str(), now.share, now.stage_left), ("shot 1/2: calibrate", 0.25, Some(30.0)));
        tracker.stage(progress(1, Stage::Calibrate, 100), 50.0);
        assert_eq!(tracker.now(50.0).unwrap().label, "shot 1/2: score");
        tracker.stage(progress(1, Stage::Score, 100), 60.0);
        assert_eq!(tracker.now(60.0), None);
    }

    #[test]
    fn a_committed_shot_ends_all_its_stages_but_the_evaluation() {
        let mut tracker = Tracker::new(2, true, 0.0);
        tracker.stage(progress(1, Stage::Update, 100), 1.0);
        tracker.stage(progress(1, Stage::Evaluate, 50), 2.0);
        let sizes = types::Sizes::default();
        let committed =
            Event::ShotCommitted { shot: 1, checkpoint: String::new(), sizes, layers: vec![], predicted: 0.0 };
        tracker.record(&committed, 3.0);
        assert_eq!(tracker.now(3.0).unwrap().label, "shot 1/2: evaluate");
    }
}
