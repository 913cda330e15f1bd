//! The service that hands out factors, without a model: for `make bench-net`, which measures what the way to a surgeon
//! costs.

use crate::by_hand::ByHand;
use crate::error::Error;
use crate::grpc::Grpc;
use crate::shelf::Shelf;
use bytes::Bytes;
use futures::Stream;
use service::{Guard, Peers, Server, Shutdown, SweepKey};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::transport::server::Connected;
use types::{Generation, RunId, WorkerId};

/// How long open calls may take to end.
const GRACE: Duration = Duration::from_secs(2);

/// Serves the same bytes as the factors of so many blocks of shot 1, shard 0, generation 1 of run `run`, the last block first,
/// until all were released.
///
/// # Errors
/// The service cannot be served.
pub async fn serve_factors<I, IO>(run: RunId, block: Bytes, blocks: u32, incoming: I) -> Result<(), Error>
where
    I: Stream<Item = std::io::Result<IO>>,
    IO: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
{
    let shutdown = Shutdown::new();
    let stop = shutdown.token().clone();
    let shelf = Arc::new(Shelf::new());
    let worker = WorkerId::new("calibrator")
        .map_err(|e| Error::Message(proto::InvalidMessage::new("", "worker", e.to_string())))?;
    let grpc =
        Grpc { shelf: Arc::clone(&shelf), worker, device: "none".to_owned(), stop: stop.clone(), standalone: None };
    let sweep = std::thread::spawn(move || {
        let key = SweepKey { run, shot: 1, shard: 0, generation: Generation(1) };
        let wanted: Vec<u32> = (0..blocks).collect();
        let _open = shelf.open(key.clone(), &wanted);
        let never = || false;
        for number in wanted.into_iter().rev() {
            shelf.wait_for_room(&key, &never)?;
            shelf.put(&key, number, block.clone())?;
        }
        shelf.wait_until_released(&key, &never)?;
        shutdown.start();
        Ok::<_, Error>(())
    });
    let server = Server::new(Peers::Network).add_guarded(ByHand::new(grpc), Guard::open());
    server.serve(incoming, stop, GRACE).await?;
    sweep.join().unwrap_or(Err(Error::Stopping))
}
