//! What stays the same from call to call of a connection: who calls, and from where. It is written down once, as records
//! have it; each record copies it.

use std::net::IpAddr;

use keyward_model::PrincipalArn;

use crate::json::{self, Value};

/// A principal, and the certificate that it showed.
#[derive(Clone, Debug)]
pub struct Actor {
    /// `,"certificateSerial":"..."`.
    pub(crate) serial: Box<[u8]>,
    /// `{"type":...}`.
    pub(crate) identity: Box<[u8]>,
    /// `,"recipientAccountId":"..."`.
    pub(crate) account: Box<[u8]>,
}

fn written(write: impl FnOnce(&mut Vec<u8>)) -> Box<[u8]> {
    let mut out = Vec::new();
    write(&mut out);
    out.into()
}

impl Actor {
    /// The principal of that ARN, with a certificate of that serial number.
    #[must_use]
    pub fn new(arn: &PrincipalArn, certificate_serial: &[u8]) -> Self {
        let arn = arn.as_str();
        let account = account_in(arn).unwrap_or_default();
        let (path, name) = arn.rsplit_once('/').unwrap_or((arn, ""));
        let user = path.split('/').next().is_some_and(|kind| kind.ends_with(":user"));
        Self {
            serial: written(|out| {
                json::name(out, "certificateSerial");
                out.push(b'"');
                json::hex(out, certificate_serial);
                out.push(b'"');
            }),
            identity: written(|out| {
                let kind: &[u8] =
                    if user { b"{\"type\":\"IAMUser\"" } else { b"{\"type\":\"Role\"" };
                out.extend_from_slice(kind);
                json::member(out, "arn", arn);
                json::member(out, "accountId", account);
                if user {
                    json::member(out, "userName", name);
                }
                out.push(b'}');
            }),
            account: written(|out| json::member(out, "recipientAccountId", account)),
        }
    }
}

/// The connection's TLS.
#[derive(Clone, Copy, Debug)]
pub struct Tls<'a> {
    /// The version, as CloudTrail writes it: `TLSv1.3`.
    pub version: &'a str,
    /// The cipher suite's name: `TLS_AES_256_GCM_SHA384`.
    pub cipher_suite: &'a str,
    /// The host that the client asked for.
    pub host: Option<&'a str>,
}

/// Where calls come from, and over what.
#[derive(Clone, Debug)]
pub struct Client {
    /// `,"sourceIPAddress":...,"userAgent":...,"tlsDetails":...`, as far as known.
    pub(crate) members: Box<[u8]>,
}

impl Client {
    /// The peer's address, the client program as it names itself, and the connection's TLS. What is not known is left
    /// out of records.
    #[must_use]
    pub fn new(ip: Option<IpAddr>, user_agent: Option<&str>, tls: Option<Tls<'_>>) -> Self {
        let members = written(|out| {
            if let Some(ip) = ip {
                json::member(out, "sourceIPAddress", &ip.to_string());
            }
            if let Some(agent) = user_agent {
                json::member(out, "userAgent", agent);
            }
            if let Some(tls) = tls {
                json::name(out, "tlsDetails");
                let host = ("clientProvidedHostHeader", tls.host.into());
                let suite = ("cipherSuite", Value::Str(tls.cipher_suite));
                json::object(out, &[("tlsVersion", Value::Str(tls.version)), suite, host]);
            }
        });
        Self { members }
    }
}

/// The account in an ARN: `arn:partition:service:region:account:resource`.
pub(crate) fn account_in(arn: &str) -> Option<&str> {
    let mut colons = arn.bytes().enumerate().filter(|(_, byte)| *byte == b':').map(|(at, _)| at);
    let (begins, ends) = (colons.nth(3)? + 1, colons.next()?);
    let account = &arn[begins..ends];
    (account.len() == 12 && account.bytes().all(|byte| byte.is_ascii_digit())).then_some(account)
}
