//! Connections that are cut at random bytes.

use e2e::cluster::Cluster;
use e2e::dice::seed;
use e2e::disturbed::{Disturbed, Fate, SHARDED, tell, tell_faults, undisturbed};
use e2e::proxy::{Fault, Proxy};

/// Shots enough for the connections to carry something.
const MORE_SHOTS: [&str; 6] = ["--target-size", "0.8", "--shots", "4", "--memory", "16MiB"];

/// Larger than a block's factors (330 kB, one chunk), which must get through whole in the end.
const OFTEN_WITHIN_BLOCKS: Fault = Fault::CutWithin { bytes: 700 << 10, most: u64::MAX };
/// An answer with tasks that is lost costs a lease (20 s) each time.
const SOMETIMES: Fault = Fault::CutWithin { bytes: 32 << 10, most: 6 };
const OFTEN: Fault = Fault::CutWithin { bytes: 20 << 10, most: u64::MAX };

/// Starts a proxy before a service's socket.
pub(crate) fn before(cluster: &Cluster, service: &str, name: &str, fault: Fault, seed: u64) -> Proxy {
    Proxy::start(&cluster.socket(name), &cluster.socket(service), fault, seed)
}

/// Carries out a run with the proxies that `place` puts in, and tells what they did.
fn run_with_cuts(flags: &[&str], at_least: u64, place: impl Fn(&mut Cluster) -> Vec<(&'static str, Proxy)>) {
    let temp = tempfile::tempdir().unwrap();
    let output = temp.path().join("pruned");
    let alone = undisturbed(&output, flags);
    let folder = temp.path().join("cluster");
    std::fs::create_dir(&folder).unwrap();
    let mut cluster = Cluster::new(&folder);
    let proxies = place(&mut cluster);
    start(&mut cluster);
    let mut run = Disturbed::start(cluster, &folder, &output, flags);
    let ended = run.finish();
    let told: Vec<String> = proxies.iter().map(|(name, p)| format!("{name} {}", p.faults())).collect();
    let (cuts, bytes): (u64, u64) =
        proxies.iter().fold((0, 0), |(cuts, bytes), (_, p)| (cuts + p.faults(), bytes + p.bytes()));
    let after = format!("{cuts} cuts ({}) in {bytes} bytes, seed {}", told.join(", "), seed());
    tell(&format!("{after}; the run {ended}"));
    run.ends_as(&alone, &after);
    tell_faults(cuts, Fate::Survived, "connections cut at random bytes");
    assert!(cuts >= at_least, "only {after}");
}

fn start(cluster: &mut Cluster) {
    cluster.start(2, 2);
    cluster.wait_for_workers(4);
}

#[test]
fn factors_whose_streams_are_cut_anywhere_arrive_whole() {
    let place = |cluster: &mut Cluster| {
        let proxies = ["calibrator-0", "calibrator-1"].map(|service| {
            let proxy = before(cluster, service, &format!("cut-{service}"), OFTEN_WITHIN_BLOCKS, seed());
            cluster.detour(service, proxy.endpoint());
            (service, proxy)
        });
        proxies.into()
    };
    run_with_cuts(&SHARDED, 5, place);
}

#[test]
fn workers_whose_connection_to_the_coordinator_is_cut_anywhere_do_all_tasks_once() {
    let place = |cluster: &mut Cluster| {
        let proxy = before(cluster, "coordinator", "cut-coordinator", SOMETIMES, seed());
        cluster.detour("coordinator", proxy.endpoint());
        vec![("coordinator", proxy)]
    };
    run_with_cuts(&MORE_SHOTS, 3, place);
}

#[test]
fn a_follower_whose_stream_is_cut_anywhere_sees_the_run_s_end() {
    let place = |cluster: &mut Cluster| {
        let proxy = before(cluster, "coordinator", "cut-callers", OFTEN, seed());
        cluster.detour_of_callers(proxy.endpoint());
        vec![("follower", proxy)]
    };
    run_with_cuts(&SHARDED, 5, place);
}
