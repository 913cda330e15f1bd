//! The shelf as the surgeon of this process sees it: blocks are handed over as they lie there.

use crate::grpc::START_WAIT;
use crate::shelf::{Next, Shelf};
use bytes::Bytes;
use service::{LocalBlock, LocalFactors, SweepKey};
use std::collections::BTreeSet;
use tonic::Status;

#[tonic::async_trait]
impl LocalFactors for Shelf {
    async fn next(&self, sweep: &SweepKey, asked: &BTreeSet<u32>) -> Result<Option<LocalBlock>, Status> {
        match Self::next(self, sweep, asked, &BTreeSet::new(), START_WAIT).await? {
            Next::Ready(factors) => Ok(Some(LocalBlock { block: factors.block, to_read: factors.to_read() })),
            Next::Done => Ok(None),
        }
    }

    async fn read(&self, sweep: &SweepKey, block: u32) -> Result<Vec<Bytes>, Status> {
        let factors = self.waiting(sweep, block)?;
        let parts = factors.parts().await.map_err(|error| self.lose(sweep, &error))?;
        crate::metrics::sent(parts.iter().map(Bytes::len).sum());
        Ok(parts)
    }

    async fn release(&self, sweep: &SweepKey, block: u32) -> Result<(), Status> {
        Ok(Self::release(self, sweep, block, START_WAIT).await?)
    }
}
