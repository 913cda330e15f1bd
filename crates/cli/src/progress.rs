//! Progress for people, on standard error: bars on a terminal, plain lines elsewhere, nothing when asked to be quiet.
//!
//! Does not talk to services and keeps no record of its own; it is fed with a run's events.

mod estimate;
mod lines;
mod tracker;
mod transfer;

pub(crate) use transfer::Transfer;

use crate::error::CliError;
use crate::output::tell;
use crate::text::rough_duration;
use coordinator::event::Event;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use proto::v1::StageProgress;
use service::telemetry::{self, LogFormat};
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};
use tracker::{Now, Tracker};

/// How often a plain line tells how far the stage is.
const LINE_EVERY: Duration = Duration::from_secs(10);
/// Steps of a bar.
const BAR_STEPS: u64 = 1000;
const BAR: &str = "{prefix:21} [{bar:16}] {percent:>3} %  {wide_msg}";

/// Where progress goes.
#[derive(Debug, Clone)]
pub(crate) enum Display {
    /// Bars that redraw themselves.
    Terminal(MultiProgress),
    /// A line now and then.
    Plain,
    /// Nowhere.
    Quiet,
}

/// Returns the display of a command, chosen for where it writes; the program's log goes through it, from `level` on.
pub(crate) fn start(quiet: bool, level: &str) -> Result<Display, CliError> {
    let display = Display::choose(quiet);
    let log = display.clone();
    telemetry::init_with_writer(LogFormat::Plain, level, move || log.writer())
        .map_err(|e| CliError::Usage(service::status::chain(&e)))?;
    Ok(display)
}

impl Display {
    /// Returns bars if standard error is a terminal, and nothing if `quiet`.
    pub(crate) fn choose(quiet: bool) -> Self {
        match (quiet, io::stderr().is_terminal()) {
            (true, _) => Self::Quiet,
            (false, true) => Self::Terminal(MultiProgress::new()),
            (false, false) => Self::Plain,
        }
    }

    /// Tells a line for people, above the bars.
    pub(crate) fn line(&self, line: &str) {
        match self {
            Self::Terminal(bars) => bars.suspend(|| tell(&format!("{line}\n"))),
            Self::Plain => tell(&format!("{line}\n")),
            Self::Quiet => {}
        }
    }

    /// Returns a writer to standard error that keeps clear of the bars, for logs.
    pub(crate) fn writer(&self) -> LogWriter {
        LogWriter { bars: if let Self::Terminal(bars) = self { Some(bars.clone()) } else { None } }
    }

    /// Returns a bar, if this is a terminal.
    pub(crate) fn bar(&self) -> Option<ProgressBar> {
        let Self::Terminal(bars) = self else { return None };
        let style = ProgressStyle::with_template(BAR).unwrap_or_else(|_| ProgressStyle::default_bar());
        Some(bars.add(ProgressBar::new(BAR_STEPS).with_style(style.progress_chars("=> "))))
    }
}

/// Writes log lines to standard error while bars are drawn there.
#[derive(Debug)]
pub(crate) struct LogWriter {
    bars: Option<MultiProgress>,
}

impl Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &self.bars {
            Some(bars) => bars.suspend(|| io::stderr().write(bytes)),
            None => io::stderr().write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// Shows how far a run is.
#[derive(Debug)]
pub(crate) struct Progress {
    display: Display,
    tracker: Tracker,
    bar: Option<ProgressBar>,
    started: Instant,
    last_line: Instant,
}

impl Progress {
    /// Returns the progress of a run that starts or goes on now.
    pub(crate) fn new(display: Display, shots: u32, evaluates: bool) -> Self {
        let now = Instant::now();
        Self { display, tracker: Tracker::new(shots, evaluates, 0.0), bar: None, started: now, last_line: now }
    }

    /// Takes a record of the journal; old ones, from before this start, are not told again.
    pub(crate) fn record(&mut self, event: &Event, is_old: bool) {
        let line = self.tracker.record(event, self.seconds());
        if let Some(line) = line.filter(|_| !is_old) {
            self.display.line(&line);
            self.last_line = Instant::now();
        }
        self.show();
    }

    /// Takes the state of a stage.
    pub(crate) fn stage(&mut self, progress: StageProgress) {
        self.tracker.stage(progress, self.seconds());
        self.show();
    }

    /// Takes the bars away.
    pub(crate) fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    fn seconds(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    fn show(&mut self) {
        let Some(now) = self.tracker.now(self.seconds()) else { return self.finish() };
        match self.display {
            Display::Terminal(_) => self.draw(&now),
            Display::Plain if self.last_line.elapsed() >= LINE_EVERY => {
                self.display.line(&plain(&now));
                self.last_line = Instant::now();
            }
            Display::Plain | Display::Quiet => {}
        }
    }

    fn draw(&mut self, now: &Now) {
        if self.bar.is_none() {
            self.bar = self.display.bar();
        }
        if let Some(bar) = &self.bar {
            bar.set_prefix(now.label.clone());
            bar.set_message(left(now));
            bar.set_position((now.share * BAR_STEPS as f64) as u64);
        }
    }
}

fn plain(now: &Now) -> String {
    let left = left(now);
    let comma = if left.is_empty() { "" } else { ", " };
    format!("{} {:.0} %{comma}{left}", now.label, now.share * 100.0)
}

fn left(now: &Now) -> String {
    let stage = now.stage_left.map(|s| format!("{} left", rough_duration(s)));
    let run = now.run_left.map(|s| format!("run about {}", rough_duration(s)));
    [stage, run].into_iter().flatten().collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_line_says_what_how_far_and_how_long() {
        let mut now =
            Now { label: "shot 1/2: score".into(), share: 0.42, stage_left: Some(95.0), run_left: Some(700.0) };
        assert_eq!(plain(&now), "shot 1/2: score 42 %, 1 min 30 s left, run about 12 min");
        (now.stage_left, now.run_left) = (None, None);
        assert_eq!(plain(&now), "shot 1/2: score 42 %");
    }
}
