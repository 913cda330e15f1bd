//! A disk that fills up pauses the run with a word, leaves nothing half-written, and the same command goes on after space
//! is made. On a real, small file system; needs the right to mount one, as CI has.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use e2e::disturbed::{Fate, tell_faults};
use e2e::{expect, prune};
use std::path::Path;
use std::process::Command;

/// A small file system, unmounted when dropped.
struct Small<'a>(&'a Path);

impl Small<'_> {
    fn mount<'a>(at: &'a Path, size: &str) -> Option<Small<'a>> {
        let options = format!("size={size}");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(at).status();
        mounted.is_ok_and(|s| s.success()).then_some(Small(at))
    }

    fn resize(&self, size: &str) {
        let options = format!("remount,size={size}");
        let status = Command::new("mount").args(["-o", &options]).arg(self.0).status().unwrap();
        assert!(status.success());
    }
}

impl Drop for Small<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0).status();
    }
}

#[test]
fn a_full_disk_pauses_the_run_and_space_lets_it_go_on() {
    let temp = tempfile::tempdir().unwrap();
    let mount = temp.path().join("small");
    std::fs::create_dir(&mount).unwrap();
    let Some(disk) = Small::mount(&mount, "1600k") else {
        eprintln!("skipped: this user may not mount a small file system");
        return;
    };
    let output = mount.join("pruned");
    let paused = prune(&output).output().unwrap();
    let said = String::from_utf8_lossy(&paused.stderr).into_owned();
    assert!(matches!(paused.status.code(), Some(74 | 75)), "{:?}: {said}", paused.status);
    assert!(said.contains("same command"), "{said}");
    assert!(!output.exists(), "nothing half-written under the final name");
    disk.resize("64m");
    expect(&mut prune(&output), 0);
    let undisturbed = temp.path().join("pruned");
    expect(&mut prune(&undisturbed), 0);
    let weights = |folder: &Path| std::fs::read(folder.join("model.safetensors")).unwrap();
    assert!(weights(&output) == weights(&undisturbed), "other weights after a full disk");
    tell_faults(1, Fate::Survived, "a disk that is full under `prune`");
}
