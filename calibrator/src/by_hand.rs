//! `CalibratorService` as it is served: generated, but for `StreamFactors`, whose answers are put together by hand so that no
//! payload is copied.

use crate::grpc::Grpc;
use futures::StreamExt;
use proto::v1::calibrator_service_server::CalibratorServiceServer;
use service::bulk;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::codegen::http::{Request, Response};
use tonic::server::NamedService;

/// The service.
#[derive(Debug, Clone)]
pub(crate) struct ByHand {
    generated: CalibratorServiceServer<Grpc>,
    grpc: Grpc,
}

impl ByHand {
    pub(crate) fn new(grpc: Grpc) -> Self {
        Self { generated: CalibratorServiceServer::new(grpc.clone()), grpc }
    }
}

impl NamedService for ByHand {
    const NAME: &'static str = CalibratorServiceServer::<Grpc>::NAME;
}

impl Service<Request<Body>> for ByHand {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        <CalibratorServiceServer<Grpc> as Service<Request<Body>>>::poll_ready(&mut self.generated, cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        if request.uri().path() != bulk::STREAM_FACTORS {
            return self.generated.call(request);
        }
        let grpc = self.grpc.clone();
        Box::pin(async move { Ok(stream_factors(&grpc, request).await.unwrap_or_else(Status::into_http)) })
    }
}

async fn stream_factors(grpc: &Grpc, request: Request<Body>) -> Result<Response<Body>, Status> {
    let parts = grpc.parts(bulk::request(request.into_body()).await?)?;
    Ok(bulk::answer(parts.boxed()))
}
