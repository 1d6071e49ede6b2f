//! What the services of the door share: the caller, the deadline, dates.

use std::sync::Arc;
use std::time::Duration;

use http::header::USER_AGENT;
use http::{HeaderMap, HeaderName, HeaderValue};
use keyward_env::RealEnv;
use keyward_model::limits::{CALL_DEADLINE_DEFAULT, CALL_DEADLINE_MAX};
use keyward_model::{ErrorCode, KmsError, Timestamp};
use keyward_service::{Call, Caller, Kms, Trace, api};
use tonic::metadata::{AsciiMetadataValue, MetadataMap};
use tonic::{Request, Response, Status};

use crate::errors::status;
use crate::tls::{Identity, Peer};

/// Tells a caller the id of its call, as the audit trail has it.
const REQUEST_ID: &str = "keyward-request-id";

/// The deadline of a call, as gRPC tells it.
const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// A request's head, as tonic has it or as HTTP has it.
pub(crate) trait Asks {
    /// The other end of its connection.
    fn peer(&self) -> Option<&Peer>;

    /// Its headers.
    fn headers(&self) -> &HeaderMap;

    /// A header, if it is a text.
    fn header(&self, name: &HeaderName) -> Option<&str> {
        self.headers().get(name)?.to_str().ok()
    }
}

impl<T> Asks for Request<T> {
    fn peer(&self) -> Option<&Peer> {
        self.extensions().get()
    }

    fn headers(&self) -> &HeaderMap {
        self.metadata().as_ref()
    }
}

/// The principal behind a request; nodes and strangers are refused.
pub(crate) fn caller(request: &impl Asks) -> Result<Arc<Caller>, KmsError> {
    let refuse = |why: String| Err(KmsError::new(ErrorCode::UnrecognizedClientException, why));
    match request.peer().map(|peer| &peer.identity) {
        Some(Identity::Principal(caller)) => Ok(Arc::clone(caller)),
        Some(Identity::Node(_)) => {
            refuse("a node's certificate is not let in here: use a principal's".to_owned())
        }
        Some(Identity::Invitation(_)) => {
            refuse("an invitation is good for joining and for nothing else".to_owned())
        }
        Some(Identity::Region(region, _)) => refuse(format!(
            "a certificate of Region {region} is good for its link and for nothing else"
        )),
        Some(Identity::Nobody(why)) => refuse(why.clone()),
        None => refuse("the connection has no identity".to_owned()),
    }
}

/// What the audit trail keeps of a request beside its content.
pub(crate) fn trace(request: &impl Asks, request_id: [u8; 16]) -> Trace {
    let agent = request.header(&USER_AGENT);
    Trace { client: request.peer().map(|peer| peer.origin.client(agent)), request_id }
}

/// A principal's call.
pub(crate) fn call(
    request: &impl Asks,
    caller: Arc<Caller>,
    asked: api::Request,
    request_id: [u8; 16],
) -> Call {
    let call = Call::new(caller, asked, patience(request));
    Call { trace: trace(request, request_id), ..call }
}

/// Refuses a call of somebody who is no principal, on record.
pub(crate) async fn turned_away(
    kms: &Kms<RealEnv>,
    name: &str,
    trace: &Trace,
    request_id: [u8; 16],
    refusal: KmsError,
) -> Status {
    let env = kms.node().env();
    let told =
        kms.audit().other_call(env, name, false, false, None, trace, &[], Some(&refusal)).await;
    let mut status = status(told.err().unwrap_or(refusal));
    with_id(status.metadata_mut(), request_id);
    status
}

/// An answer that tells the call's id.
pub(crate) fn answer<T>(result: Result<T, KmsError>, request_id: [u8; 16]) -> Answer<T> {
    let mut answer = result.map(Response::new).map_err(status);
    match &mut answer {
        Ok(response) => with_id(response.metadata_mut(), request_id),
        Err(status) => with_id(status.metadata_mut(), request_id),
    }
    answer
}

fn with_id(metadata: &mut MetadataMap, request_id: [u8; 16]) {
    let (_, id) = request_id_header(request_id);
    if let Ok(mut id) = AsciiMetadataValue::try_from(id.as_bytes()) {
        id.set_sensitive(true);
        metadata.insert(REQUEST_ID, id);
    }
}

/// The header that tells a caller the id of its call.
pub(crate) fn request_id_header(request_id: [u8; 16]) -> (HeaderName, HeaderValue) {
    const NAME: HeaderName = HeaderName::from_static(REQUEST_ID);
    let mut digits = [0; 32];
    let encoded = hex::encode_to_slice(request_id, &mut digits);
    let id = encoded.ok().and_then(|()| HeaderValue::from_bytes(&digits).ok());
    let mut id = id.unwrap_or_else(|| unreachable!("digits are a header's value"));
    // No other answer has it: it is not worth a place in HPACK's table.
    id.set_sensitive(true);
    (NAME, id)
}

/// What an RPC answers.
pub(crate) type Answer<T> = Result<Response<T>, Status>;

/// How long the caller waits: its `grpc-timeout`, a little less so that a typed answer still gets back.
pub(crate) fn patience(request: &impl Asks) -> Duration {
    match request.header(&GRPC_TIMEOUT).and_then(parse_timeout) {
        Some(timeout) => {
            let margin = (timeout / 20).min(Duration::from_millis(20));
            timeout.saturating_sub(margin).min(CALL_DEADLINE_MAX)
        }
        None => CALL_DEADLINE_DEFAULT,
    }
}

/// gRPC over HTTP/2, "Timeout": at most eight digits and a unit.
fn parse_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(number * 3600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

pub(crate) fn date(time: Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: time.0.div_euclid(1000),
        nanos: i32::try_from(time.0.rem_euclid(1000) * 1_000_000).unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_as_grpc_writes_them() {
        assert_eq!(parse_timeout("250m"), Some(Duration::from_millis(250)));
        assert_eq!(parse_timeout("2S"), Some(Duration::from_secs(2)));
        for bad in ["", "S", "123456789S", "5x", "-1S", "é"] {
            assert_eq!(parse_timeout(bad), None, "{bad}");
        }
    }
}
