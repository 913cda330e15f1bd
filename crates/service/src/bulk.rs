//! Both ends of `StreamFactors` without a copy of what they carry: a body of parts that are sent from where they lie, and a
//! stream that leaves what it receives where it came.
//!
//! On the wire this is plain gRPC ([`proto::bulk`]); either end understands, and is understood by, generated clients and servers.
//! Whom a stream serves and what becomes of its parts is not known here.

use crate::transport::Wire;
use bytes::Bytes;
use futures::{Stream, StreamExt};
use http_body_util::BodyExt;
use hyper::body::{Body as HttpBody, Frame};
use proto::bulk::{Malformed, Reader, ReceivedPart};
use proto::v1;
use proto::v1::stream_factors_response::Part;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tonic::body::Body;
use tonic::codec::{Codec, EncodeBody, Streaming};
use tonic::codegen::http::header::{CONTENT_TYPE, HeaderValue, TE};
use tonic::codegen::http::{HeaderMap, Request, Response, StatusCode, Version};
use tonic::{Code, Status};
use tonic_prost::ProstCodec;
use tower::{Service, ServiceExt};

/// Path of the call.
pub const STREAM_FACTORS: &str = "/llm_surgeon.v1.CalibratorService/StreamFactors";
const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
/// Largest request, in bytes.
const MAX_REQUEST_BYTES: usize = 4 << 20;

/// Returns what a call asks for.
///
/// # Errors
/// Its body is no request.
pub async fn request(body: Body) -> Result<v1::StreamFactorsRequest, Status> {
    let decoder = ProstCodec::<(), v1::StreamFactorsRequest>::default().decoder();
    let mut messages = Streaming::new_request(decoder, body, None, Some(MAX_REQUEST_BYTES));
    messages.message().await?.ok_or_else(|| Status::invalid_argument("the request is missing"))
}

/// Returns an answer that sends parts as they come; an error ends it, as its status.
pub fn answer<S>(parts: S) -> Response<Body>
where
    S: Stream<Item = Result<Part, Status>> + Send + Unpin + 'static,
{
    let mut response = Response::new(Body::new(Parts { coming: parts, payload: None, ended: false }));
    response.headers_mut().insert(CONTENT_TYPE, GRPC);
    response
}

/// Parts on their way: each message's head, then its payload, from where it lies.
struct Parts<S> {
    coming: S,
    /// What belongs to the head that was sent last.
    payload: Option<Bytes>,
    ended: bool,
}

impl<S: Stream<Item = Result<Part, Status>> + Unpin> HttpBody for Parts<S> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Some(payload) = self.payload.take() {
            return Poll::Ready(Some(Ok(Frame::data(payload))));
        }
        if self.ended {
            return Poll::Ready(None);
        }
        let status = match ready!(self.coming.poll_next_unpin(cx)) {
            Some(Ok(part)) => {
                let (head, payload) = proto::bulk::encode(part);
                self.payload = payload;
                return Poll::Ready(Some(Ok(Frame::data(head))));
            }
            Some(Err(status)) => status,
            None => Status::ok(""),
        };
        self.ended = true;
        let mut trailers = HeaderMap::new();
        Poll::Ready(Some(status.add_header(&mut trailers).map(|()| Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.ended && self.payload.is_none()
    }
}

/// A stream of factors as it comes. Dropping it ends the call.
#[derive(Debug)]
pub struct FactorStream {
    body: Body,
    reader: Reader,
    ended: bool,
}

impl FactorStream {
    /// Asks a calibrator for factors; returns once it has begun to answer.
    ///
    /// # Errors
    /// It cannot be reached or refuses.
    pub async fn open(mut wire: Wire, request: v1::StreamFactorsRequest) -> Result<Self, Status> {
        let encoder = ProstCodec::<v1::StreamFactorsRequest, ()>::default().encoder();
        let message = futures::stream::iter([Ok(request)]);
        let mut call = Request::post(STREAM_FACTORS)
            .version(Version::HTTP_2)
            .body(Body::new(EncodeBody::new_client(encoder, message, None, None)))
            .map_err(|e| Status::internal(e.to_string()))?;
        call.headers_mut().insert(TE, HeaderValue::from_static("trailers"));
        call.headers_mut().insert(CONTENT_TYPE, GRPC);
        let wire = wire.ready().await.map_err(unreachable)?;
        let (head, body) = wire.call(call).await.map_err(unreachable)?.map(Body::new).into_parts();
        // An answer without a body has its status in its head.
        let status = Status::from_header_map(&head.headers);
        match status {
            Some(status) if status.code() != Code::Ok => Err(status),
            None if head.status != StatusCode::OK => Err(Status::unavailable(format!("HTTP status {}", head.status))),
            status => Ok(Self { body, reader: Reader::default(), ended: status.is_some() }),
        }
    }

    /// Returns the next message, waiting for it; nothing at the end.
    ///
    /// Cancel-safe: what came is kept.
    ///
    /// # Errors
    /// The calibrator's own, the connection's, or what came is no message.
    pub async fn message(&mut self) -> Result<Option<ReceivedPart>, Status> {
        loop {
            if let Some(came) = self.reader.message().map_err(|e| malformed(&e))? {
                return Ok(Some(came));
            }
            if self.ended {
                return Ok(None);
            }
            let frame = match self.body.frame().await {
                Some(frame) => frame?,
                None => return self.end(None),
            };
            match frame.into_data() {
                Ok(data) => self.reader.push(data),
                Err(other) => return self.end(other.into_trailers().ok().as_ref()),
            }
        }
    }

    fn end(&mut self, trailers: Option<&HeaderMap>) -> Result<Option<ReceivedPart>, Status> {
        self.ended = true;
        let status = trailers.and_then(Status::from_header_map);
        let status = status.unwrap_or_else(|| Status::unknown("the stream ended without a status"));
        if status.code() != Code::Ok {
            return Err(status);
        }
        self.reader.finish().map_err(|e| malformed(&e))?;
        Ok(None)
    }
}

fn unreachable(error: tonic::transport::Error) -> Status {
    Status::from_error(error.into())
}

fn malformed(error: &Malformed) -> Status {
    match error {
        Malformed::TooLong(_) => Status::out_of_range(error.to_string()),
        Malformed::Compressed | Malformed::Fields(_) | Malformed::CutOff(_) => Status::internal(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_is_the_contract_s() {
        assert!(proto::methods().contains(STREAM_FACTORS.trim_start_matches('/')));
    }
}
