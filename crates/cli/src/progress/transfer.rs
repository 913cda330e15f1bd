//! How much of a file has gone its way.

use super::{BAR_STEPS, Display, LINE_EVERY};
use indicatif::ProgressBar;
use std::time::Instant;
use types::format_bytes;

/// A file on its way.
#[derive(Debug)]
pub(crate) struct Transfer {
    display: Display,
    label: String,
    bytes: u64,
    bar: Option<ProgressBar>,
    last_line: Instant,
}

impl Transfer {
    /// Returns a file of so many bytes, none of them gone.
    pub(crate) fn new(display: &Display, label: &str, bytes: u64) -> Self {
        let bar = display.bar();
        if let Some(bar) = &bar {
            bar.set_prefix(label.to_owned());
        }
        Self { display: display.clone(), label: label.to_owned(), bytes, bar, last_line: Instant::now() }
    }

    /// Shows that so many bytes have gone.
    pub(crate) fn at(&mut self, bytes: u64) {
        let share = bytes as f64 / self.bytes.max(1) as f64;
        let figures = format!("{} of {}", format_bytes(bytes), format_bytes(self.bytes));
        if let Some(bar) = &self.bar {
            bar.set_position((share * BAR_STEPS as f64) as u64);
            bar.set_message(figures);
        } else if self.last_line.elapsed() >= LINE_EVERY {
            self.display.line(&format!("{} {:.0} %, {figures}", self.label, share * 100.0));
            self.last_line = Instant::now();
        }
    }

    /// Takes the bar away and says what became of the file.
    pub(crate) fn finish(self, line: &str) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
        self.display.line(&format!("{} {line}", self.label));
    }
}
