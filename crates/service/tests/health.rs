//! What probes are told: whether a service is ready, and whether it lives, on a port with nothing else on it.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use futures::StreamExt;
use service::listen::{Listener, Plain};
use service::server::{LIVE, Vitals, tell_of_all};
use service::{ComputeThread, Connector, MemoryNetwork, Peers, Server};
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

async fn listener() -> Listener {
    Listener::bind(&"127.0.0.1:0".parse().unwrap(), None, Plain::Local).await.unwrap()
}

#[tokio::test]
async fn a_stuck_compute_thread_is_told_to_probes_and_so_is_its_return() {
    let (listener, admin) = (listener().await, listener().await);
    let endpoint = admin.endpoint().unwrap();
    let compute = ComputeThread::spawn("compute-test", 1).unwrap();
    let (ready, is_ready) = watch::channel(false);
    let server = Server::new(Peers::Network).with_admin(Some(admin)).ready_when(is_ready);
    let server = server.alive_while(compute.beat(), Duration::from_millis(200));
    let stop = CancellationToken::new();
    let serving = tokio::spawn(server.serve(listener.incoming(), stop.clone(), Duration::ZERO));

    let probe = HealthClient::new(Connector::new(MemoryNetwork::new()).channel(&endpoint).unwrap());
    let check = async |service: &str| {
        let request = HealthCheckRequest { service: service.to_owned() };
        probe.clone().check(request).await.unwrap().into_inner().status()
    };
    assert_eq!(check(LIVE).await, ServingStatus::Serving, "alive before it is ready");
    assert_eq!(check("").await, ServingStatus::NotServing);
    ready.send_replace(true);
    let request = HealthCheckRequest { service: LIVE.to_owned() };
    let mut told = probe.clone().watch(request).await.unwrap().into_inner();
    assert_eq!(told.next().await.unwrap().unwrap().status(), ServingStatus::Serving);

    let (release, blocked) = std::sync::mpsc::channel::<()>();
    let busy = compute.clone();
    let job = tokio::spawn(async move { busy.run(move || blocked.recv().is_ok()).await });
    assert_eq!(told.next().await.unwrap().unwrap().status(), ServingStatus::NotServing, "the thread is stuck");
    assert_eq!(check("").await, ServingStatus::Serving, "which is not the same as not being ready");
    release.send(()).unwrap();
    assert!(job.await.unwrap().unwrap());
    assert_eq!(told.next().await.unwrap().unwrap().status(), ServingStatus::Serving, "it goes on");

    stop.cancel();
    serving.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_process_with_two_roles_is_ready_when_both_are_and_alive_while_both_are() {
    let admin = listener().await;
    let endpoint = admin.endpoint().unwrap();
    let (first, hears_first) = watch::channel(Vitals::default());
    let (second, hears_second) = watch::channel(Vitals::default());
    let telling = tokio::spawn(tell_of_all(admin, vec![hears_first, hears_second]));
    let probe = HealthClient::new(Connector::new(MemoryNetwork::new()).channel(&endpoint).unwrap());
    let check = async |service: &str| {
        let request = HealthCheckRequest { service: service.to_owned() };
        probe.clone().check(request).await.map_or(ServingStatus::Unknown, |answer| answer.into_inner().status())
    };
    let becomes = async |service: &str, wanted: ServingStatus| {
        for _ in 0..200 {
            if check(service).await == wanted {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        false
    };
    assert!(becomes(LIVE, ServingStatus::Serving).await, "alive before it is ready");
    assert!(becomes("", ServingStatus::NotServing).await);

    // One role as a server tells of it, the other by hand.
    let compute = ComputeThread::spawn("compute-test", 1).unwrap();
    let (ready, is_ready) = watch::channel(false);
    let server = Server::new(Peers::SameProcess).tell(Some(first)).ready_when(is_ready);
    let server = server.alive_while(compute.beat(), Duration::from_millis(200));
    let network = MemoryNetwork::new();
    let stop = CancellationToken::new();
    let serving = tokio::spawn(server.serve(network.listen("role").unwrap(), stop.clone(), Duration::ZERO));
    ready.send_replace(true);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(check("").await, ServingStatus::NotServing, "the other is not");
    second.send_replace(Vitals { ready: true, alive: true });
    assert!(becomes("", ServingStatus::Serving).await);

    let (release, blocked) = std::sync::mpsc::channel::<()>();
    let busy = compute.clone();
    let job = tokio::spawn(async move { busy.run(move || blocked.recv().is_ok()).await });
    assert!(becomes(LIVE, ServingStatus::NotServing).await, "one thread is stuck");
    release.send(()).unwrap();
    assert!(job.await.unwrap().unwrap());
    assert!(becomes(LIVE, ServingStatus::Serving).await);
    second.send_replace(Vitals { ready: true, alive: false });
    assert!(becomes(LIVE, ServingStatus::NotServing).await);

    drop(second);
    assert!(becomes("", ServingStatus::NotServing).await, "a role has ended");
    stop.cancel();
    serving.await.unwrap().unwrap();
    telling.abort();
}
