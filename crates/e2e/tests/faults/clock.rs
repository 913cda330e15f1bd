//! A wall clock that jumps.

use e2e::cluster::Cluster;
use e2e::disturbed::{Disturbed, Fate, SHARDED, tell, tell_faults, undisturbed};
use std::path::{Path, PathBuf};

/// Where each jump lies, from the present.
const JUMPS: [&str; 4] = ["+1d", "-1d", "+400d", "+0"];

/// Returns the library that lies about the time (Debian: libfaketime), if it is there: `make test-models` puts it into the cache.
fn library() -> Option<PathBuf> {
    let places = [e2e::cache().join("faketime/usr/lib"), "/usr/lib".into(), "/usr/local/lib".into()];
    let nested = places.iter().filter_map(|place| std::fs::read_dir(place).ok()).flatten().flatten();
    let folders = places.iter().cloned().chain(nested.map(|entry| entry.path()));
    folders.map(|folder| folder.join("faketime/libfaketimeMT.so.1")).find(|file| file.is_file())
}

#[test]
fn a_clock_that_jumps_by_days_changes_nothing() {
    let Some(library) = library() else {
        tell("skipped: libfaketime is not there (make test-models, or apt-get install libfaketime)");
        return;
    };
    let temp = tempfile::tempdir().unwrap();
    let output = temp.path().join("pruned");
    let alone = undisturbed(&output, &SHARDED);
    let folder = temp.path().join("cluster");
    std::fs::create_dir(&folder).unwrap();
    let offset = folder.join("clock");
    let set = |jump: &str| {
        let next = folder.join("clock.next");
        std::fs::write(&next, format!("{jump}\n")).unwrap();
        std::fs::rename(&next, &offset).unwrap(); // never read half-written
    };
    set("+0");
    let variables = [
        ("LD_PRELOAD", library.to_str().unwrap()),
        ("FAKETIME_TIMESTAMP_FILE", offset.to_str().unwrap()),
        ("FAKETIME_NO_CACHE", "1"),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
    ];
    let store = folder.join("store").display().to_string();
    let mut cluster = Cluster::new(&folder).with_store(&store, &variables);
    cluster.start(1, 1);
    cluster.wait_for_workers(2);
    let mut run = Disturbed::start(cluster, &folder, &output, &SHARDED);
    let mut jumps = 0;
    for jump in JUMPS.iter().cycle() {
        if !run.more_records(2) {
            break;
        }
        set(jump);
        jumps += 1;
    }
    run.ends_as(&alone, &format!("{jumps} jumps of the clock"));
    let times: Vec<u64> = e2e::journal(&run.cluster.store()).iter().map(|record| time_of(record)).collect();
    let back = times.windows(2).filter(|pair| pair[1] < pair[0]).count();
    assert!(back > 0, "the services' clock did not jump: {times:?}");
    tell_faults(
        jumps,
        Fate::Survived,
        &format!("jumps of the wall clock (the journal went back in time {back} times)"),
    );
}

/// Returns when a journal record was written, in its coordinator's time.
fn time_of(record: &Path) -> u64 {
    let value: serde_json::Value = serde_json::from_slice(&std::fs::read(record).unwrap()).unwrap();
    value["record"]["time_ms"].as_u64().unwrap()
}
