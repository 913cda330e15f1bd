//! The sweep alone: calibrators that work for whoever calls, and a caller who throws away what they give.

use super::running::{Running, wait};
use super::{Bench, SAMPLES, SHARDS};
use anyhow::Result;
use proto::bulk::ReceivedPart;
use proto::v1;
use proto::v1::calibrate_response::Part;
use proto::v1::calibrator_service_client::CalibratorServiceClient;
use service::bulk::FactorStream;
use service::{Connector, MemoryNetwork, Wire};
use std::path::Path;
use std::time::Instant;

type Client = CalibratorServiceClient<Wire>;

/// Returns how long so many calibrators take for all shards, each one after the other, from models that are loaded.
pub(super) fn seconds(bench: &Bench, calibrators: usize) -> Result<f64> {
    let folder = tempfile::tempdir()?;
    let endpoints: Vec<String> =
        (0..calibrators).map(|n| format!("unix://{}/{n}.sock", folder.path().display())).collect();
    let mut started = endpoints.iter().map(|at| start(bench, at, folder.path())).collect::<Result<Vec<_>>>()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let took = runtime.block_on(async {
        for (at, calibrator) in endpoints.iter().zip(&mut started) {
            let socket = Path::new(at.trim_start_matches("unix://"));
            wait("a calibrator", std::slice::from_mut(calibrator), || Ok(socket.exists().then_some(())))?;
            let spec = Some(bench.spec().into());
            client(at)?.load_model(v1::LoadModelRequest { spec }).await?;
        }
        let begin = Instant::now();
        let each = SHARDS as usize / calibrators;
        let all = endpoints.iter().enumerate().map(|(n, at)| async move {
            for shard in n * each..(n + 1) * each {
                sweep(bench, at, shard as u64).await?;
            }
            Ok::<_, anyhow::Error>(())
        });
        futures::future::try_join_all(all).await?;
        Ok::<_, anyhow::Error>(begin.elapsed().as_secs_f64())
    });
    drop(started);
    took
}

fn start(bench: &Bench, endpoint: &str, folder: &Path) -> Result<Running> {
    let mut command = bench.program("calibrator");
    command.args(["--standalone", "--listen", endpoint, "--device", "cpu", "--threads", "1"]);
    Running::start(command, folder)
}

fn connector() -> Connector {
    Connector::new(MemoryNetwork::new())
}

fn client(endpoint: &str) -> Result<Client> {
    Ok(CalibratorServiceClient::new(connector().channel(endpoint)?).max_decoding_message_size(proto::MAX_CONTROL_BYTES))
}

/// Sweeps one shard.
async fn sweep(bench: &Bench, endpoint: &str, shard: u64) -> Result<()> {
    let samples = SAMPLES / u64::from(SHARDS);
    let spec = Some(bench.spec().into());
    let request = v1::CalibrateRequest { spec, first_sample: shard * samples, samples, ..Default::default() };
    let mut client = client(endpoint)?;
    let mut told = client.calibrate(request).await?.into_inner();
    let opened = match told.message().await?.and_then(|message| message.part) {
        Some(Part::Opened(opened)) => opened,
        other => anyhow::bail!("{other:?} came first"),
    };
    let end = async {
        while told.message().await?.is_some() {}
        Ok::<_, anyhow::Error>(())
    };
    tokio::try_join!(take(client, endpoint, opened), end)?;
    Ok(())
}

/// Takes every block of a sweep and forgets it.
async fn take(mut client: Client, endpoint: &str, opened: v1::SweepOpened) -> Result<()> {
    let v1::SweepOpened { run, shot, shard, generation, blocks } = opened;
    let request = v1::StreamFactorsRequest { run: run.clone(), shot, shard, generation, blocks, ..Default::default() };
    let mut stream = FactorStream::open(connector().bulk_channel(endpoint)?, request).await?;
    let mut missing = 0;
    while let Some(part) = stream.message().await? {
        match part {
            ReceivedPart::Header(header) => missing = header.bytes,
            ReceivedPart::Chunk(chunk) => {
                missing -= chunk.bytes();
                if missing == 0 {
                    let (request_id, run, block) = (format!("{shard}-{}", chunk.block), run.clone(), chunk.block);
                    let release = v1::ReleaseFactorsRequest { request_id, run, shot, shard, generation, block };
                    client.release_factors(release).await?;
                }
            }
            ReceivedPart::Unknown => {}
        }
    }
    Ok(())
}
