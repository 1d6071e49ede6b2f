//! One record: a CloudTrail event (CloudTrail user guide, "CloudTrail record contents"; AWS KMS developer
//! guide, "Logging AWS KMS API calls with AWS CloudTrail") on one line.

use keyward_model::{ErrorCode, KmsError, Operation, Plane, Region, Timestamp};

use crate::json::{self, Pair, Value};
use crate::written::{Actor, Client, account_in};

/// What is between a record's additional data and who acted: with the version of CloudTrail's format that the fields
/// follow.
const HEAD: &[u8] = b"},\"eventVersion\":\"1.11\",\"userIdentity\":";

/// The longest line, in bytes. The largest request that a door takes has 256 KiB, and a byte of it grows
/// to six at most (`\u0000`); the rest of a record has a few KiB.
pub const RECORD_BYTES_MAX: usize = 2 * 1024 * 1024;

/// Who acted.
#[derive(Clone, Copy, Debug)]
pub enum Identity<'a> {
    /// A principal that the connection's certificate names.
    Principal(&'a Actor),
    /// A caller who could not be told.
    Unknown,
    /// Keyward itself.
    Service,
}

/// Whose operation it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The key service: `kms.amazonaws.com`.
    Kms,
    /// The operator service, which AWS has no like of: `operator.keyward`.
    Operator,
}

/// What kind of event it is.
#[derive(Clone, Copy, Debug)]
pub enum Kind<'a> {
    /// A call: `AwsApiCall`.
    ApiCall,
    /// Something that Keyward did by itself: `AwsServiceEvent`, with its `serviceEventDetails`.
    ServiceEvent(&'a [Pair<'a>]),
}

/// One event. All is borrowed; what is not known is `None` and left out, or `null` where CloudTrail
/// writes that. The trail adds what it alone knows: `eventID`, and `additionalEventData.keyward`.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// When, on the node's wall clock. Records are in the order of their sequence numbers, not of this.
    pub time: Timestamp,
    /// The Region.
    pub region: &'a Region,
    /// Whose operation.
    pub source: Source,
    /// The operation, by AWS's name.
    pub name: &'a str,
    /// True when it changes nothing.
    pub read_only: bool,
    /// A call, or an event of Keyward's own.
    pub kind: Kind<'a>,
    /// Who.
    pub identity: Identity<'a>,
    /// From where.
    pub client: Option<&'a Client>,
    /// The request's id, as the caller got it.
    pub request_id: Option<[u8; 16]>,
    /// What was asked. `None` is written as `null`.
    pub parameters: Option<&'a [Pair<'a>]>,
    /// What was answered: only operations that change something tell. `None` is written as `null`.
    pub response: Option<&'a [Pair<'a>]>,
    /// Members of `additionalEventData`, such as `keyMaterialId`.
    pub additional: &'a [Pair<'a>],
    /// The ARNs of the keys that it touched.
    pub key_arns: &'a [&'a str],
    /// Why it was refused.
    pub refusal: Option<&'a KmsError>,
}

impl<'a> Record<'a> {
    /// A call of the key service, with all that may be unknown left open: use it with `..`.
    #[must_use]
    pub fn call(
        operation: Operation,
        time: Timestamp,
        region: &'a Region,
        identity: Identity<'a>,
    ) -> Self {
        Self {
            time,
            region,
            source: Source::Kms,
            name: operation.name(),
            read_only: operation.plane() != Plane::Manage,
            kind: Kind::ApiCall,
            identity,
            client: None,
            request_id: None,
            parameters: None,
            response: None,
            additional: &[],
            key_arns: &[],
            refusal: None,
        }
    }

    /// A call of the operator service.
    #[must_use]
    pub fn operator_call(
        name: &'a str,
        read_only: bool,
        time: Timestamp,
        region: &'a Region,
        identity: Identity<'a>,
    ) -> Self {
        let any = Self::call(Operation::CreateKey, time, region, identity);
        Self { source: Source::Operator, name, read_only, ..any }
    }

    /// Something that Keyward did by itself.
    #[must_use]
    pub fn service_event(
        name: &'a str,
        time: Timestamp,
        region: &'a Region,
        details: &'a [Pair<'a>],
    ) -> Self {
        let any = Self::call(Operation::CreateKey, time, region, Identity::Service);
        Self { name, read_only: false, kind: Kind::ServiceEvent(details), ..any }
    }

    /// Writes the body of a line: what stands between the node's id and the event's (`segment::frame`).
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        // What CloudTrail has no field for.
        if let Identity::Principal(actor) = self.identity {
            out.extend_from_slice(&actor.serial);
        }
        if self.refusal.is_some_and(|refusal| refusal.outcome_unknown) {
            json::members(out, &[("outcomeUnknown", Value::Bool(true))]);
        }
        out.push(b'}');
        json::members(out, self.additional);
        out.extend_from_slice(HEAD);
        out.extend_from_slice(match self.identity {
            Identity::Principal(actor) => &actor.identity,
            Identity::Unknown => b"{\"type\":\"Unknown\"}",
            Identity::Service => b"{\"invokedBy\":\"Keyward\"}",
        });
        out.extend_from_slice(b",\"eventTime\":\"");
        json::iso_8601(out, self.time);
        out.extend_from_slice(match self.source {
            Source::Kms => b"\",\"eventSource\":\"kms.amazonaws.com\",\"eventName\":",
            Source::Operator => b"\",\"eventSource\":\"operator.keyward\",\"eventName\":",
        });
        json::text(out, self.name);
        json::member(out, "awsRegion", self.region.as_str());
        if let Some(client) = self.client {
            out.extend_from_slice(&client.members);
        }
        if let Some(refusal) = self.refusal {
            json::member(out, "errorCode", error_code(refusal.code));
            if !refusal.message.is_empty() {
                json::member(out, "errorMessage", &refusal.message);
            }
        }
        out.extend_from_slice(b",\"requestParameters\":");
        object_or_null(out, self.parameters);
        out.extend_from_slice(b",\"responseElements\":");
        object_or_null(out, self.response);
        if let Some(id) = &self.request_id {
            json::name(out, "requestID");
            json::uuid(out, id);
        }
        json::name(out, "readOnly");
        json::bool(out, self.read_only);
        self.resources(out);
        match self.kind {
            Kind::ApiCall => out.extend_from_slice(b",\"eventType\":\"AwsApiCall\""),
            Kind::ServiceEvent(details) => {
                json::member(out, "eventType", "AwsServiceEvent");
                json::name(out, "serviceEventDetails");
                json::object(out, details);
            }
        }
        // All of KMS is management in CloudTrail, cryptographic operations too.
        out.extend_from_slice(b",\"managementEvent\":true");
        if let Identity::Principal(actor) = self.identity {
            out.extend_from_slice(&actor.account);
        }
        out.extend_from_slice(b",\"eventCategory\":\"Management\"");
    }

    fn resources(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b",\"resources\":[");
        for (index, arn) in self.key_arns.iter().enumerate() {
            if index > 0 {
                out.push(b',');
            }
            out.push(b'{');
            if let Some(account) = account_in(arn) {
                out.extend_from_slice(b"\"accountId\":\"");
                out.extend_from_slice(account.as_bytes());
                out.extend_from_slice(b"\",");
            }
            out.extend_from_slice(b"\"type\":\"AWS::KMS::Key\"");
            json::member(out, "ARN", arn);
            out.push(b'}');
        }
        out.push(b']');
    }
}

fn object_or_null(out: &mut Vec<u8>, pairs: Option<&[Pair<'_>]>) {
    match pairs {
        Some(pairs) => json::object(out, pairs),
        None => out.extend_from_slice(b"null"),
    }
}

/// The name that CloudTrail shows for a refusal: that of the API, but for the one that IAM's own words
/// stand for.
#[must_use]
pub fn error_code(code: ErrorCode) -> &'static str {
    match code {
        ErrorCode::AccessDeniedException => "AccessDenied",
        other => other.name(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::segment;
    use crate::written::Tls;

    const KEY: &str = "arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab";

    fn line(record: &Record<'_>) -> String {
        let (mut body, mut out) = (Vec::new(), Vec::new());
        record.write(&mut body);
        segment::line(&mut out, 42, 3, 7, &body);
        assert_eq!(out.pop(), Some(b'\n'));
        assert_eq!(segment::check_line(&out), Ok(42));
        String::from_utf8(out).unwrap()
    }

    fn parsed(record: &Record<'_>) -> serde_json::Value {
        let mut value: serde_json::Value = serde_json::from_str(&line(record)).unwrap();
        let keyward = &mut value["additionalEventData"]["keyward"];
        assert_eq!(keyward["crc32"].take().as_str().map(str::len), Some(8));
        keyward.as_object_mut().unwrap().remove("crc32");
        value
    }

    #[test]
    fn a_decrypt_is_recorded_as_cloudtrail_does() {
        let region = "eu-west-1".parse().unwrap();
        let arn = "arn:aws:iam::111122223333:user/team/alice".parse().unwrap();
        let context = BTreeMap::from([("Department".to_owned(), "Engineering".to_owned())]);
        let actor = Actor::new(&arn, &[0x0a, 0xff]);
        let tls = Tls {
            version: "TLSv1.3",
            cipher_suite: "TLS_AES_256_GCM_SHA384",
            host: Some("kms.example"),
        };
        let ip = Some("192.0.2.1".parse().unwrap());
        let client = Client::new(ip, Some("aws-cli/2"), Some(tls));
        let identity = Identity::Principal(&actor);
        let time = Timestamp(1_618_253_910_123);
        let record = Record {
            client: Some(&client),
            request_id: Some([0x11; 16]),
            parameters: Some(&[
                ("encryptionAlgorithm", Value::Str("SYMMETRIC_DEFAULT")),
                ("keyId", Value::Absent),
                ("encryptionContext", (&context).into()),
            ]),
            additional: &[("keyMaterialId", Value::Str("ab"))],
            key_arns: &[KEY],
            ..Record::call(Operation::Decrypt, time, &region, identity)
        };
        let expected = json!({
            "additionalEventData": {
                "keyward": {"sequence": 42, "nodeId": 3, "certificateSerial": "0aff"},
                "keyMaterialId": "ab",
            },
            "eventVersion": "1.11",
            "userIdentity": {
                "type": "IAMUser",
                "arn": "arn:aws:iam::111122223333:user/team/alice",
                "accountId": "111122223333",
                "userName": "alice",
            },
            "eventTime": "2021-04-12T18:58:30.123Z",
            "eventSource": "kms.amazonaws.com",
            "eventName": "Decrypt",
            "awsRegion": "eu-west-1",
            "sourceIPAddress": "192.0.2.1",
            "userAgent": "aws-cli/2",
            "tlsDetails": {
                "tlsVersion": "TLSv1.3",
                "cipherSuite": "TLS_AES_256_GCM_SHA384",
                "clientProvidedHostHeader": "kms.example",
            },
            "requestParameters": {
                "encryptionAlgorithm": "SYMMETRIC_DEFAULT",
                "encryptionContext": {"Department": "Engineering"},
            },
            "responseElements": null,
            "requestID": "11111111-1111-1111-1111-111111111111",
            "eventID": "00000000-0000-802a-8000-000000000001",
            "readOnly": true,
            "resources": [{"accountId": "111122223333", "type": "AWS::KMS::Key", "ARN": KEY}],
            "eventType": "AwsApiCall",
            "managementEvent": true,
            "recipientAccountId": "111122223333",
            "eventCategory": "Management",
        });
        assert_eq!(parsed(&record), expected);
    }

    #[test]
    fn what_is_not_known_is_left_out_and_nothing_is_made_up() {
        let region = "eu-west-1".parse().unwrap();
        let refusal = KmsError::invalid_ciphertext();
        let record = Record {
            refusal: Some(&refusal),
            ..Record::call(Operation::EnableKey, Timestamp(0), &region, Identity::Unknown)
        };
        let value = parsed(&record);
        assert_eq!(value["userIdentity"], json!({"type": "Unknown"}));
        assert_eq!(value["errorCode"], "InvalidCiphertextException");
        assert_eq!(value["requestParameters"], json!(null));
        assert_eq!(value["resources"], json!([]));
        assert_eq!(value["readOnly"], false);
        for absent in [
            "errorMessage",
            "sourceIPAddress",
            "userAgent",
            "tlsDetails",
            "requestID",
            "recipientAccountId",
            "serviceEventDetails",
        ] {
            assert!(value.get(absent).is_none(), "{absent}");
        }
    }

    #[test]
    fn refusals_say_when_the_outcome_is_unknown_and_bear_cloudtrails_names() {
        let region = "eu-west-1".parse().unwrap();
        let arn = "arn:aws:iam::111122223333:role/app".parse().unwrap();
        let actor = Actor::new(&arn, &[1]);
        let identity = Identity::Principal(&actor);
        let call = Record::call(Operation::DisableKey, Timestamp(0), &region, identity);
        let unknown = KmsError::unknown_outcome("later");
        let value = parsed(&Record { refusal: Some(&unknown), ..call });
        assert_eq!(value["additionalEventData"]["keyward"]["outcomeUnknown"], true);
        assert_eq!(value["errorMessage"], "later");
        assert_eq!(value["userIdentity"]["type"], "Role");
        assert!(value["userIdentity"].get("userName").is_none());
        let denied = KmsError::new(ErrorCode::AccessDeniedException, "no");
        let value = parsed(&Record { refusal: Some(&denied), ..call });
        assert_eq!(value["errorCode"], "AccessDenied");
    }

    #[test]
    fn operator_calls_and_service_events_say_whose_they_are() {
        let region = "eu-west-1".parse().unwrap();
        let time = Timestamp(0);
        let call = Record::operator_call("AddNode", false, time, &region, Identity::Unknown);
        assert_eq!(parsed(&call)["eventSource"], "operator.keyward");
        let details = [("keyId", Value::Str("k"))];
        let event = parsed(&Record::service_event("DeleteKey", time, &region, &details));
        assert_eq!(event["eventType"], "AwsServiceEvent");
        assert_eq!(event["serviceEventDetails"], json!({"keyId": "k"}));
        assert_eq!(event["userIdentity"], json!({"invokedBy": "Keyward"}));
    }

    proptest! {
        #[test]
        fn hostile_texts_read_back_as_they_were(
            texts in prop::collection::vec("[\\PC\\x00-\\x1f\"\\\\{}\\[\\],:\u{2028}]{0,40}", 6),
            map in prop::collection::btree_map(".{0,20}", ".{0,20}", 1..4),
            number in any::<i64>(),
        ) {
            let region = "eu-west-1".parse().unwrap();
            let refusal = KmsError::new(ErrorCode::ValidationException, texts[0].clone());
            let lists = &texts[..3];
            let tags = [(&*texts[3], &*texts[4])];
            let tls = Tls { version: &texts[2], cipher_suite: &texts[3], host: Some(&texts[4]) };
            let client = Client::new(None, Some(&texts[1]), Some(tls));
            let record = Record {
                client: Some(&client),
                parameters: Some(&[
                    ("keyId", Value::Str(&texts[5])),
                    ("encryptionContext", Value::Map(&map)),
                    ("tagKeys", Value::StrList(lists)),
                    ("tags", Value::Tags(&tags)),
                    ("limit", Value::Int(number)),
                ]),
                response: Some(&[("aliasName", Value::Str(&texts[0]))]),
                additional: &[("grantId", Value::Str(&texts[1]))],
                key_arns: &[&texts[2], &texts[3]],
                refusal: Some(&refusal),
                ..Record::call(Operation::TagResource, Timestamp(number), &region, Identity::Unknown)
            };
            prop_assert!(!line(&record).bytes().any(|byte| byte < 0x20));
            let value = parsed(&record);
            prop_assert_eq!(&value["userAgent"], &texts[1]);
            prop_assert_eq!(&value["tlsDetails"]["clientProvidedHostHeader"], &texts[4]);
            let asked = &value["requestParameters"];
            prop_assert_eq!(&asked["keyId"], &texts[5]);
            prop_assert_eq!(&asked["encryptionContext"], &json!(map));
            prop_assert_eq!(&asked["tagKeys"], &json!(lists));
            prop_assert_eq!(&asked["tags"], &json!([{"tagKey": tags[0].0, "tagValue": tags[0].1}]));
            prop_assert_eq!(&asked["limit"], &json!(number));
            prop_assert_eq!(&value["responseElements"]["aliasName"], &texts[0]);
            prop_assert_eq!(&value["additionalEventData"]["grantId"], &texts[1]);
            prop_assert_eq!(&value["resources"][1]["ARN"], &texts[3]);
            let message = value["errorMessage"].as_str().unwrap_or_default();
            prop_assert_eq!(message, &texts[0]);
        }
    }
}
