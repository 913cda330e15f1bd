//! One shard's factors received as a surgeon does, checksums and digests included, and dropped: for `make bench-net`, which
//! measures what the way from a calibrator costs, without what keeping them costs.

use crate::error::Error;
use crate::receive::{Partial, StreamFault};
use proto::bulk::ReceivedPart;
use proto::v1;
use proto::v1::calibrator_service_client::CalibratorServiceClient;
use service::bulk::FactorStream;
use service::{Connector, RequestIds};
use types::RunId;

/// Receives so many blocks of shot 1, shard 0, generation 1 of run `run` from a calibrator, and returns their bytes.
///
/// # Errors
/// The calibrator cannot be reached, or what it sends cannot be taken.
pub async fn receive_factors(connector: &Connector, endpoint: &str, run: &RunId, blocks: u32) -> Result<u64, Error> {
    let lost = |status| Error::Calibrator(Box::new(status));
    let mut control = CalibratorServiceClient::new(connector.channel(endpoint)?);
    let (run, shot, generation, ids) = (run.to_string(), 1, 1, RequestIds::new("bench"));
    let all = (0..blocks).collect();
    let request = v1::StreamFactorsRequest {
        run: run.clone(),
        shot,
        generation,
        blocks: all,
        ..v1::StreamFactorsRequest::default()
    };
    let mut stream = FactorStream::open(connector.bulk_channel(endpoint)?, request).await.map_err(lost)?;
    let (mut bytes, mut open) = (0, None::<Partial>);
    while let Some(message) = stream.message().await.map_err(lost)? {
        match message {
            ReceivedPart::Header(header) => open = Some(Partial::begin(&header)?),
            ReceivedPart::Chunk(chunk) => {
                let block = chunk.block;
                let early = || StreamFault::Contract { block, problem: "a chunk came before a header".to_owned() };
                let partial = open.as_mut().ok_or_else(early)?;
                bytes += chunk.bytes();
                if partial.append(chunk)? {
                    open.take().map(Partial::finish).transpose()?;
                    let (request_id, run) = (ids.next(), run.clone());
                    let release = v1::ReleaseFactorsRequest { request_id, run, shot, shard: 0, generation, block };
                    control.release_factors(release).await.map_err(lost)?;
                }
            }
            ReceivedPart::Unknown => {}
        }
    }
    Ok(bytes)
}
