//! Programs that run beside the benchmark, and what one waits for while they do.

use anyhow::{Context, Result, bail, ensure};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// Longest time that anything is waited for.
const PATIENCE: Duration = Duration::from_mins(4);
const PAUSE: Duration = Duration::from_millis(20);
/// Lines of a program's log that say why it ended.
const LAST_LINES: usize = 5;

/// A program, which ends with its owner; what it says is only shown if it ends before.
pub(super) struct Running {
    child: Child,
    log: PathBuf,
}

impl Running {
    /// Starts a program; its log is in `folder`.
    pub(super) fn start(mut command: Command, folder: &Path) -> Result<Self> {
        let log = tempfile::Builder::new().suffix(".log").tempfile_in(folder)?.keep()?.1;
        let name = command.get_program().display().to_string();
        let child = command.stderr(File::create(&log)?).spawn().context(name)?;
        Ok(Self { child, log })
    }

    fn check(&mut self) -> Result<()> {
        let Some(status) = self.child.try_wait()? else { return Ok(()) };
        let said = std::fs::read_to_string(&self.log)?;
        let lines: Vec<&str> = said.lines().collect();
        bail!("a program ended ({status}):\n{}", lines[lines.len().saturating_sub(LAST_LINES)..].join("\n"))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it may have ended
        let _ = self.child.wait();
    }
}

/// Waits until `look` finds something; not for ever, and not for programs that have ended.
pub(super) fn wait<T>(what: &str, running: &mut [Running], mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let begin = Instant::now();
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        running.iter_mut().try_for_each(Running::check)?;
        ensure!(begin.elapsed() < PATIENCE, "{what} did not come within {PATIENCE:?}");
        std::thread::sleep(PAUSE);
    }
}
