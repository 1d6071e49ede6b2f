//! Calls of the data plane that are RPCs of their own, the short way: from a request of HTTP/2 to a
//! [`Call`](keyward_service::Call) and back.
//!
//! What the generated server does for a unary call (routing, a buffer for each direction, headers made and copied again) costs
//! more than Keyward's own part of it (`docs/performance.md`). A request that has arrived whole, as clients send what is
//! small: one message, not compressed, in one frame, and the stream's end, is decoded and answered here. Whatever else comes
//! goes the long way, to the generated server, and so to the same layers and the same operations.
//!
//! Format: gRPC over HTTP/2 (PROTOCOL-HTTP2.md), "Length-Prefixed-Message", "Response-Headers", "Trailers-Only".

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Method, Request, Response};
use http_body::{Body, Frame};
use keyward_env::RealEnv;
use keyward_model::{ErrorCode, KmsError};
use keyward_proto::v1;
use keyward_service::{Handler, Response as Reply, Stack, api};
use prost::Message;
use tonic::Status;

use crate::common::{Asks, call, caller, request_id_header};
use crate::errors::{GRPC_STATUS, trailers_only};
use crate::kms::KeyDoor;
use crate::tls::Peer;
use crate::uses::{Asked, Told};

/// How the paths of the service's methods begin.
const SERVICE: &str = "/keyward.v1.KeyService/";
const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
const OK: HeaderValue = HeaderValue::from_static("0");
/// Before each message: whether it is compressed, and its length.
const PREFIX_BYTES: usize = 5;

/// What has arrived of a body.
pub(crate) struct Arrived<E> {
    /// Its first frame that is not empty.
    first: Option<Bytes>,
    /// What came behind it.
    next: Option<Box<Result<Frame<Bytes>, E>>>,
    /// Nothing more comes.
    ended: bool,
}

impl<E> Arrived<E> {
    const NOTHING: Self = Self { first: None, next: None, ended: false };

    /// Takes out what is there, one frame as a rule and an empty one that ends the stream, and waits for nothing. (Whoever
    /// looks again is woken for what is still to come.)
    fn of(body: &mut (impl Body<Data = Bytes, Error = E> + Unpin)) -> Self {
        let mut arrived = Self::NOTHING;
        let mut context = Context::from_waker(Waker::noop());
        while !arrived.ended && arrived.next.is_none() {
            let frame = match Pin::new(&mut *body).poll_frame(&mut context) {
                Poll::Pending => break,
                Poll::Ready(frame) => frame,
            };
            match frame.map(|frame| frame.map(Frame::into_data)) {
                None => arrived.ended = true,
                Some(Ok(Ok(data))) if data.is_empty() => {}
                Some(Ok(Ok(data))) if arrived.first.is_none() => arrived.first = Some(data),
                Some(Ok(Ok(data))) => arrived.next = Some(Box::new(Ok(Frame::data(data)))),
                Some(Ok(Err(trailers))) => arrived.next = Some(Box::new(Ok(trailers))),
                Some(Err(error)) => arrived.next = Some(Box::new(Err(error))),
            }
            arrived.ended |= body.is_end_stream();
        }
        arrived
    }

    /// The body's message, if there is one and all of it is there.
    fn message(&self) -> Option<Bytes> {
        let whole = self.ended && self.next.is_none();
        self.first.clone().filter(|_| whole).and_then(only_message)
    }

    /// The body as it was.
    pub(crate) fn put_back<B>(self, rest: B) -> PutBack<B>
    where
        B: Body<Data = Bytes, Error = E>,
    {
        PutBack { taken: self, rest }
    }
}

/// A body of which something was taken out.
pub(crate) struct PutBack<B: Body> {
    taken: Arrived<B::Error>,
    rest: B,
}

impl<B: Body<Data = Bytes, Error: Unpin> + Unpin> Body for PutBack<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let first = self.taken.first.take().map(|first| Ok(Frame::data(first)));
        match first.or_else(|| self.taken.next.take().map(|next| *next)) {
            Some(frame) => Poll::Ready(Some(frame)),
            None => Pin::new(&mut self.rest).poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.taken.first.is_none() && self.taken.next.is_none() && self.rest.is_end_stream()
    }
}

/// The message in a frame that holds exactly one, not compressed.
fn only_message(mut frame: Bytes) -> Option<Bytes> {
    if frame.len() < PREFIX_BYTES || frame.get_u8() != 0 {
        return None;
    }
    let length = frame.get_u32();
    (usize::try_from(length) == Ok(frame.len())).then_some(frame)
}

/// A message as it goes out.
fn framed(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut frame = BytesMut::with_capacity(PREFIX_BYTES + length);
    frame.put_u8(0);
    // No answer comes near 4 GiB.
    frame.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    message.encode_raw(&mut frame);
    frame.freeze()
}

/// From the wire and back, for one operation.
#[derive(Clone, Copy)]
struct Operation {
    asked: fn(Bytes) -> Option<api::Request>,
    told: fn(Reply) -> Option<Bytes>,
}

impl Operation {
    const fn of<In: Message + Default + Asked, Out: Message + Told>() -> Self {
        Self {
            asked: |message| In::decode(message).ok().map(Asked::asked),
            told: |reply| Out::told(reply).map(|answer| framed(&answer)),
        }
    }

    fn at(path: &str) -> Option<Self> {
        Some(match path.strip_prefix(SERVICE)? {
            "Encrypt" => Self::of::<v1::EncryptRequest, v1::EncryptResponse>(),
            "Decrypt" => Self::of::<v1::DecryptRequest, v1::DecryptResponse>(),
            "ReEncrypt" => Self::of::<v1::ReEncryptRequest, v1::ReEncryptResponse>(),
            "GenerateDataKey" => {
                Self::of::<v1::GenerateDataKeyRequest, v1::GenerateDataKeyResponse>()
            }
            "GenerateDataKeyWithoutPlaintext" => Self::of::<
                v1::GenerateDataKeyWithoutPlaintextRequest,
                v1::GenerateDataKeyWithoutPlaintextResponse,
            >(),
            "GenerateRandom" => Self::of::<v1::GenerateRandomRequest, v1::GenerateRandomResponse>(),
            _ => return None,
        })
    }
}

impl KeyDoor {
    /// Begins to serve a principal's call of the data plane that is there as a whole. Otherwise returns what was taken out of
    /// its body.
    pub(crate) fn take<B>(
        &self,
        peer: &Peer,
        request: &mut Request<B>,
    ) -> Result<Served, Arrived<B::Error>>
    where
        B: Body<Data = Bytes> + Unpin,
    {
        let operation = Operation::at(request.uri().path());
        let operation = operation.filter(|_| request.method() == Method::POST);
        let Some(operation) = operation else { return Err(Arrived::NOTHING) };
        let arrived = Arrived::of(request.body_mut());
        let asked = arrived.message().and_then(operation.asked);
        let seen = Seen { headers: request.headers(), peer };
        let (Some(asked), Ok(caller)) = (asked, caller(&seen)) else { return Err(arrived) };
        let request_id = self.kms.audit().next_request_id();
        let served = self.stack.handle(call(&seen, caller, asked, request_id));
        Ok(Served { served, told: operation.told, request_id })
    }
}

/// A request's head.
struct Seen<'a> {
    headers: &'a HeaderMap,
    peer: &'a Peer,
}

impl Asks for Seen<'_> {
    fn peer(&self) -> Option<&Peer> {
        Some(self.peer)
    }

    fn headers(&self) -> &HeaderMap {
        self.headers
    }
}

/// A call that is served the short way.
pub(crate) struct Served {
    served: <Stack<RealEnv> as Handler>::Future,
    told: fn(Reply) -> Option<Bytes>,
    request_id: [u8; 16],
}

impl Future for Served {
    type Output = Response<Answer>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Response<Answer>> {
        let this = self.get_mut();
        Pin::new(&mut this.served).poll(context).map(|result| this.answer(result))
    }
}

impl Served {
    fn answer(&self, result: Result<Reply, KmsError>) -> Response<Answer> {
        let odd =
            || KmsError::new(ErrorCode::KMSInternalException, "an answer of another operation");
        let told = result.and_then(|reply| (self.told)(reply).ok_or_else(odd));
        let (mut headers, answer) = match told {
            Ok(message) => {
                let mut headers = HeaderMap::with_capacity(4);
                headers.insert(CONTENT_TYPE, GRPC);
                (headers, Answer::Message(message))
            }
            Err(refusal) => (trailers_only(refusal), Answer::Ended),
        };
        let (name, id) = request_id_header(self.request_id);
        headers.insert(name, id);
        let mut response = Response::new(answer);
        *response.headers_mut() = headers;
        response
    }
}

/// The body of an answer.
pub(crate) enum Answer {
    /// A message, then the trailers.
    Message(Bytes),
    Trailers,
    Ended,
    /// As the generated server has made it.
    Long(tonic::body::Body),
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        let next = match this {
            Self::Long(body) => return Pin::new(body).poll_frame(context),
            Self::Message(_) => Self::Trailers,
            Self::Trailers | Self::Ended => Self::Ended,
        };
        Poll::Ready(match std::mem::replace(this, next) {
            Self::Message(message) => Some(Ok(Frame::data(message))),
            Self::Trailers => {
                let mut trailers = HeaderMap::with_capacity(1);
                trailers.insert(GRPC_STATUS, OK);
                Some(Ok(Frame::trailers(trailers)))
            }
            Self::Ended | Self::Long(_) => None,
        })
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Long(body) => body.is_end_stream(),
            Self::Ended => true,
            Self::Message(_) | Self::Trailers => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt, StreamExt};
    use http_body_util::{BodyExt, StreamBody};

    use super::*;

    fn request() -> v1::EncryptRequest {
        let plaintext = b"plaintext".to_vec();
        v1::EncryptRequest { key_id: "k".to_owned(), plaintext, ..v1::EncryptRequest::default() }
    }

    #[test]
    fn a_message_that_is_whole_alone_and_not_compressed_is_taken() {
        let message = request();
        let frame = framed(&message);
        assert_eq!(only_message(frame.clone()).expect("one").as_ref(), message.encode_to_vec());
        let empty = framed(&v1::GenerateRandomRequest::default());
        assert_eq!(only_message(empty).expect("one").len(), 0);
        for cut in 0..frame.len() {
            assert_eq!(only_message(frame.slice(..cut)), None, "cut off at {cut}");
        }
        let mut longer = frame.to_vec();
        longer.push(0);
        assert_eq!(only_message(longer.into()), None);
        assert_eq!(only_message([frame.as_ref(), frame.as_ref()].concat().into()), None);
        let mut compressed = frame.to_vec();
        compressed[0] = 1;
        assert_eq!(only_message(compressed.into()), None);
    }

    #[test]
    fn an_operation_is_known_by_its_path_and_reads_its_own_message_only() {
        let path = |name: &str| format!("{SERVICE}{name}");
        let encrypt = Operation::at(&path("Encrypt")).expect("it has a short way");
        let asked = (encrypt.asked)(request().encode_to_vec().into()).expect("a request");
        let api::Request::Encrypt(asked) = asked else { panic!("another operation") };
        assert_eq!(asked.key_id, "k");
        assert!((encrypt.asked)(Bytes::from_static(b"\xff\xff")).is_none());
        assert!((encrypt.told)(Reply::Done).is_none(), "another operation's answer");
        let changes = ["CreateKey", "DisableKey", "WaitForChange", "", "encrypt", "Encrypt/"];
        assert!(changes.iter().all(|name| Operation::at(&path(name)).is_none()));
        assert!(Operation::at("/keyward.v1.OperatorService/Encrypt").is_none());
    }

    /// A body of these pieces, of which so many are there at once.
    fn body(pieces: &[&'static str], at_once: usize) -> tonic::body::Body {
        let frames: Vec<Result<_, Status>> =
            pieces.iter().map(|piece| Ok(Frame::data(Bytes::from(*piece)))).collect();
        let stream = futures_util::stream::iter(frames).enumerate().then(move |(index, frame)| {
            let mut waits = index >= at_once;
            std::future::poll_fn(move |context| {
                context.waker().wake_by_ref();
                if std::mem::take(&mut waits) { Poll::Pending } else { Poll::Ready(()) }
            })
            .map(|()| frame)
        });
        tonic::body::Body::new(StreamBody::new(Box::pin(stream)))
    }

    #[tokio::test]
    async fn what_goes_the_long_way_arrives_as_it_came() {
        let pieces = ["one", "", "two", "three"];
        for at_once in 0..=pieces.len() {
            let mut body = body(&pieces, at_once);
            let arrived = Arrived::of(&mut body);
            assert_eq!(arrived.first.is_some(), at_once > 0);
            assert!(arrived.message().is_none());
            let all = arrived.put_back(body).collect().await.expect("a body").to_bytes();
            assert_eq!(all, "onetwothree", "{at_once} at once");
        }
    }

    #[test]
    fn a_message_is_taken_once_all_of_it_is_there() {
        // An empty message, as one frame; the stream ends in it, or in an empty one behind it.
        let whole = "\0\0\0\0\0";
        for pieces in [&[whole][..], &[whole, ""], &["", whole, "", ""]] {
            let arrived = Arrived::of(&mut body(pieces, pieces.len()));
            assert_eq!(arrived.message().as_deref(), Some(&b""[..]), "{pieces:?}");
            // The end is still to come.
            let arrived = Arrived::of(&mut body(pieces, pieces.len() - 1));
            assert!(arrived.message().is_none(), "{pieces:?}");
        }
        let twice = [whole, whole];
        assert!(Arrived::of(&mut body(&twice, 2)).message().is_none());
    }

    #[tokio::test]
    async fn an_answer_is_its_message_and_then_the_status() {
        let mut answer = Answer::Message(Bytes::from_static(b"message"));
        assert!(!answer.is_end_stream());
        let frame = answer.frame().await.expect("a frame").expect("no error");
        assert_eq!(frame.into_data().expect("a message"), "message");
        let frame = answer.frame().await.expect("a frame").expect("no error");
        assert_eq!(frame.into_trailers().expect("trailers")["grpc-status"], "0");
        assert!(answer.is_end_stream() && answer.frame().await.is_none());
    }
}
