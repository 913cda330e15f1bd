//! A run on separate processes that something is done to while it is under way, and what it must come to all the same.

use crate::cluster::{Cluster, until};
use crate::{expect, folder_digest, journal, prune_to, root};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

/// Little memory, so that a sweep comes in several shards.
pub const SHARDED: [&str; 6] = ["--target-size", "0.8", "--shots", "2", "--memory", "16MiB"];

/// Returns the digest of what one undisturbed process writes to `output`, with the flags of [`Cluster::submit`]. Nothing is
/// left there.
///
/// # Panics
/// When it fails.
pub fn undisturbed(output: &Path, flags: &[&str]) -> String {
    let mut prune = prune_to(output);
    prune.arg("--eval-data").arg(root().join("testdata/text/heldout")).args(["--eval-samples", "8"]);
    expect(prune.args(flags), 0);
    let digest = folder_digest(output);
    std::fs::remove_dir_all(output).unwrap_or_else(|e| panic!("{}: {e}", output.display()));
    digest
}

/// A run that is followed.
#[derive(Debug)]
pub struct Disturbed {
    /// Its services.
    pub cluster: Cluster,
    follower: Child,
    said: PathBuf,
    output: PathBuf,
}

impl Disturbed {
    /// Submits a run to a cluster and follows it; the follower's words go to a file in `folder`.
    ///
    /// # Panics
    /// When the follower cannot be started.
    pub fn start(cluster: Cluster, folder: &Path, output: &Path, flags: &[&str]) -> Self {
        let mut submit = cluster.submit(output);
        submit.args(flags);
        Self::follow(cluster, submit, folder, output)
    }

    /// Does the same with a `submit` of its own.
    ///
    /// # Panics
    /// As [`Self::start`].
    pub fn follow(cluster: Cluster, mut submit: Command, folder: &Path, output: &Path) -> Self {
        let said = folder.join("follower.log");
        let log = std::fs::File::create(&said).unwrap_or_else(|e| panic!("{}: {e}", said.display()));
        submit.arg("--follow").stdout(Stdio::null()).stderr(log);
        let follower = submit.spawn().unwrap_or_else(|e| panic!("{submit:?}: {e}"));
        Self { cluster, follower, said, output: output.to_owned() }
    }

    /// Returns the number of journal records in the store, if that is the cluster's own folder.
    pub fn records(&self) -> usize {
        journal(&self.cluster.store()).len()
    }

    /// Says how the follower ended, if it has.
    ///
    /// # Panics
    /// When the system cannot tell.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.follower.try_wait().unwrap_or_else(|e| panic!("the follower: {e}"))
    }

    /// Waits for so many more records; false if the run ends before.
    ///
    /// # Panics
    /// When the run stands still.
    pub fn more_records(&mut self, more: usize) -> bool {
        let wanted = self.records() + more;
        let moved = until(|| {
            let ended = self.ended().is_some();
            (ended || self.records() >= wanted).then_some(ended)
        });
        !moved.unwrap_or_else(|| panic!("the run stands still: {}", self.said()))
    }

    /// Waits until a service has said something.
    ///
    /// # Panics
    /// When it does not in time.
    pub fn wait_for_words(&self, service: &str, words: &str) {
        let heard = until(|| self.cluster.said(service).contains(words).then_some(()));
        assert!(heard.is_some(), "{service} does not say '{words}':\n{}", self.cluster.said(service));
    }

    /// Returns what the follower has said.
    pub fn said(&self) -> String {
        std::fs::read_to_string(&self.said).unwrap_or_default()
    }

    /// Waits for the run's end and says how the follower ended.
    ///
    /// # Panics
    /// When it does not end in time.
    pub fn finish(&mut self) -> ExitStatus {
        until(|| self.ended()).unwrap_or_else(|| panic!("the run does not end: {}", self.said()))
    }

    /// Waits for the run's end, which must be what an undisturbed run gives.
    ///
    /// # Panics
    /// When it is not.
    pub fn ends_as(&mut self, digest: &str, after: &str) {
        let ended = self.finish();
        assert!(ended.success(), "the follower ended with {ended:?} after {after}: {}", self.said());
        assert_eq!(folder_digest(&self.output), digest, "other bits after {after}");
        let parent = self.output.parent().unwrap_or(Path::new("."));
        let names = std::fs::read_dir(parent).unwrap_or_else(|e| panic!("{}: {e}", parent.display()));
        let staged: Vec<_> = names.flatten().map(|e| e.file_name()).filter(|n| is_staged(n)).collect();
        assert!(staged.is_empty(), "half-written folders are left: {staged:?}");
    }
}

impl Drop for Disturbed {
    fn drop(&mut self) {
        let _ = self.follower.kill(); // it may have ended
        let _ = self.follower.wait();
    }
}

/// Says whether a name is that of an output that is not finished.
fn is_staged(name: &std::ffi::OsStr) -> bool {
    let name = name.to_string_lossy();
    name.starts_with('.') && name.ends_with(".partial")
}

/// Tells what a test did; shown when it fails, or with `--no-capture`.
pub fn tell(line: &str) {
    let _ = std::io::Write::write_all(&mut std::io::stderr(), format!("{line}\n").as_bytes());
}

/// What became of faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// The run ended in the digest of an undisturbed one, nothing was lost.
    Survived,
    /// Whoever did it was told no, and the run ended as if nothing had been.
    Refused,
    /// The run cannot be right any more: it ended in the error that says why.
    Told,
}

/// Tells how many faults a test put in, once it has seen what became of them; a line more of the file that `LLM_SURGEON_FAULTS` names,
/// if it does, for `make test-faults` to add up.
///
/// # Panics
/// When the file cannot be written.
pub fn tell_faults(count: u64, fate: Fate, what: &str) {
    let fate = match fate {
        Fate::Survived => "survived",
        Fate::Refused => "refused",
        Fate::Told => "told",
    };
    tell(&format!("faults injected {count}, {fate} {count}, bytes lost 0: {what}"));
    let Some(file) = std::env::var_os("LLM_SURGEON_FAULTS") else { return };
    let line = format!("{count}\t{fate}\t{what}\n");
    let file = std::fs::OpenOptions::new().append(true).create(true).open(file);
    let written = file.and_then(|mut file| std::io::Write::write_all(&mut file, line.as_bytes()));
    written.unwrap_or_else(|e| panic!("LLM_SURGEON_FAULTS: {e}"));
}
