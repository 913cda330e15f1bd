//! Readers that are slow, or read nothing at all.

use crate::caller::Caller;
use crate::cut::before;
use e2e::cluster::Cluster;
use e2e::dice::seed;
use e2e::disturbed::{Disturbed, Fate, SHARDED, tell_faults, undisturbed};
use e2e::proxy::Fault;
use proto::v1;

/// Watchers of each kind.
const WATCHERS: usize = 8;

#[test]
fn watchers_that_read_nothing_do_not_hold_the_run_up() {
    let temp = tempfile::tempdir().unwrap();
    let output = temp.path().join("pruned");
    let alone = undisturbed(&output, &SHARDED);
    let folder = temp.path().join("cluster");
    let mut cluster = Cluster::new(&folder);
    cluster.start(1, 1);
    cluster.wait_for_workers(2);
    let deaf = before(&cluster, "coordinator", "deaf", Fault::Deaf { after: 400 }, seed());
    let direct = cluster.endpoint("coordinator");
    let mut run = Disturbed::start(cluster, &folder, &output, &SHARDED);
    let name = Caller::new(&direct).only_run().name;
    // One kind never asks for a message of its stream; before the other even the socket is not read.
    let callers: Vec<Caller> = [&direct, &deaf.endpoint()]
        .into_iter()
        .flat_map(|endpoint| (0..WATCHERS).map(move |_| Caller::new(endpoint)))
        .collect();
    let watches: Vec<_> = callers
        .iter()
        .map(|caller| {
            caller.run(async |mut client| {
                let watch = client.watch_run(v1::WatchRunRequest { name: name.clone(), from_sequence: 1 });
                // The answer's head may be among what is not read.
                tokio::time::timeout(std::time::Duration::from_millis(200), watch).await
            })
        })
        .collect();
    let opened = watches.iter().filter(|watch| matches!(watch, Ok(Ok(_)))).count();
    run.ends_as(&alone, "watchers that read nothing");
    assert!(opened >= WATCHERS, "only {opened} watches were opened");
    assert!(deaf.faults() > 0, "nobody was deaf");
    tell_faults(watches.len() as u64, Fate::Survived, "watchers that read nothing");
}

#[test]
fn a_surgeon_on_a_slow_line_gets_its_factors_all_the_same() {
    let temp = tempfile::tempdir().unwrap();
    let output = temp.path().join("pruned");
    let flags = ["--target-size", "0.8", "--shots", "1", "--memory", "16MiB"];
    let alone = undisturbed(&output, &flags);
    let folder = temp.path().join("cluster");
    std::fs::create_dir(&folder).unwrap();
    let mut cluster = Cluster::new(&folder);
    let slow = Fault::Slow { bytes_per_second: 256 << 10 };
    let proxy = before(&cluster, "calibrator-0", "slow-calibrator-0", slow, seed());
    cluster.detour("calibrator-0", proxy.endpoint());
    cluster.start(1, 1);
    cluster.wait_for_workers(2);
    let mut run = Disturbed::start(cluster, &folder, &output, &flags);
    run.ends_as(&alone, "a slow line");
    tell_faults(proxy.faults(), Fate::Survived, &format!("connections of 256 kB/s ({} bytes came)", proxy.bytes()));
    assert!(proxy.faults() > 0 && proxy.bytes() > 1 << 20, "{proxy:?}");
}
