//! What a bench makes for its load, keys and principals, and what it does with them at its end.

use std::sync::Arc;

use keyward_client::{Client, ClientConfig, Repeat};
use keyward_env::{AsyncRuntime, Env, RealEnv};
use keyward_load::{Stop, create_key};
use keyward_proto::v1;

use super::live::Live;
use crate::error::Failure;
use crate::pem;

/// Keys that are made or deleted side by side.
const SIDE_BY_SIDE: usize = 32;
/// Days that a key of a load waits for its deletion: the fewest there are.
const DELETION_DAYS: i32 = 7;
/// What a refusal for want of permission means here.
pub const WHO_MAY: &str = "keys are made and changed by their administrators, and used by their users: give a principal \
                       that may (--cert, --key), keys that there are (--key-id), or other operations (--mix)";

/// What the bench has made, and cleans up.
#[derive(Default)]
pub struct Made {
    /// Keys, by id.
    pub keys: Vec<String>,
    /// Principals, by ARN.
    pub principals: Vec<String>,
}

/// Does something for each of `0..count`, side by side; what is done stays done when one fails.
async fn side_by_side<T, F, Fut>(
    count: usize,
    live: &Live,
    stop: &Stop,
    done: &mut Vec<T>,
    one: F,
) -> Result<(), Failure>
where
    T: Send + 'static,
    F: Fn(usize) -> Fut,
    Fut: Future<Output = Result<T, Failure>> + Send + 'static,
{
    let mut under_way = std::collections::VecDeque::new();
    let mut failed = None;
    for number in 0..count {
        if failed.is_some() || stop.is_told() {
            break;
        }
        under_way.push_back(<RealEnv as Env>::Runtime::spawn(one(number)));
        if under_way.len() == SIDE_BY_SIDE
            && let Some(first) = under_way.pop_front()
        {
            failed = note(first.await, done);
            live.at(done.len());
        }
    }
    for rest in under_way {
        failed = note(rest.await, done).or(failed);
        live.at(done.len());
    }
    match failed {
        Some(failure) => Err(failure),
        None if stop.is_told() => Err(Failure::new("stopped")),
        None => Ok(()),
    }
}

fn note<T, E: std::fmt::Display>(
    ended: Result<Result<T, Failure>, E>,
    done: &mut Vec<T>,
) -> Option<Failure> {
    match ended {
        Ok(Ok(one)) => done.push(one),
        Ok(Err(failure)) => return Some(failure),
        Err(error) => return Some(Failure::new(error.to_string())),
    }
    None
}

pub async fn make_keys(
    config: &ClientConfig,
    count: usize,
    made: &mut Vec<String>,
    live: &Live,
    stop: &Stop,
) -> Result<(), Failure> {
    let client = Arc::new(Client::new(config)?);
    side_by_side(count, live, stop, made, |_| {
        let client = Arc::clone(&client);
        async move {
            create_key(&client, true).await.map_err(|error| {
                let denied = error.code.as_deref() == Some("AccessDeniedException");
                let failure = Failure::from(error);
                if denied { failure.next(WHO_MAY) } else { failure }
            })
        }
    })
    .await
}

pub async fn account_of(client: &Client, key: &str) -> Result<String, Failure> {
    let request = v1::DescribeKeyRequest { key_id: key.to_owned() };
    let described = client
        .key(Repeat::Safe, request, |mut c, r| async move { c.describe_key(r).await })
        .await?;
    Ok(described.key_metadata.unwrap_or_default().aws_account_id)
}

/// Principals of the account, each with a certificate of its own.
pub async fn make_principals(
    operator: &Arc<Client>,
    config: &ClientConfig,
    (account, changes): (&str, bool),
    count: usize,
    made: &mut Vec<String>,
    live: &Live,
) -> Result<Vec<ClientConfig>, Failure> {
    let mut configs = Vec::with_capacity(count);
    for number in 1..=count {
        let arn = format!("arn:aws:iam::{account}:user/keyward-bench-{number}");
        let (key, request) = keyward_service::signing_request().map_err(Failure::from_error)?;
        // Before: what is half made is disabled as well.
        made.push(arn.clone());
        let certificate = principal(operator, &arn, request, changes).await?;
        live.at(number);
        configs.push(ClientConfig {
            certificate: pem::text("CERTIFICATE", &certificate).as_bytes().to_vec(),
            private_key: pem::text("PRIVATE KEY", &key).as_bytes().to_vec().into(),
            ..config.clone()
        });
    }
    Ok(configs)
}

/// A certificate for a principal, which is made, or was by another bench.
async fn principal(
    operator: &Client,
    arn: &str,
    request: Vec<u8>,
    changes: bool,
) -> Result<Vec<u8>, Failure> {
    let mut kinds = vec!["user".to_owned()];
    kinds.extend(changes.then(|| "administrator".to_owned()));
    let create = v1::CreatePrincipalRequest {
        arn: arn.to_owned(),
        kinds,
        certificate_signing_request: Some(request.clone()),
        validity_in_days: Some(1),
    };
    let created = operator
        .operator(Repeat::IfUnsent, create, |mut c, r| async move { c.create_principal(r).await })
        .await;
    match created {
        Ok(created) => return Ok(created.certificate.unwrap_or_default()),
        Err(error) if error.code.as_deref() == Some("AlreadyExistsException") => {}
        Err(error) => return Err(error.into()),
    }
    let enable = v1::EnablePrincipalRequest { arn: arn.to_owned() };
    operator
        .operator(Repeat::IfUnsent, enable, |mut c, r| async move { c.enable_principal(r).await })
        .await?;
    let issue = v1::IssueCertificateRequest {
        arn: arn.to_owned(),
        certificate_signing_request: request,
        validity_in_days: Some(1),
    };
    let issued = operator
        .operator(Repeat::IfUnsent, issue, |mut c, r| async move { c.issue_certificate(r).await })
        .await?;
    Ok(issued.certificate)
}

impl Made {
    /// Disables principals, and schedules the deletion of keys. Goes on where one is refused, and tells of the first.
    pub async fn clean_up(
        self,
        config: &ClientConfig,
        operator: Option<&Client>,
        keep_keys: bool,
    ) -> Result<(), Failure> {
        let disabled = match operator {
            Some(operator) => disable(operator, self.principals).await,
            None => Ok(()),
        };
        if !keep_keys && !self.keys.is_empty() {
            delete(config, self.keys).await?;
        }
        disabled
    }
}

async fn disable(operator: &Client, principals: Vec<String>) -> Result<(), Failure> {
    let mut first = Ok(());
    for arn in principals {
        let next = format!("`keyward principal disable {arn}` does it");
        let request = v1::DisablePrincipalRequest { arn };
        let call = operator.operator(Repeat::IfUnsent, request, |mut c, r| async move {
            c.disable_principal(r).await
        });
        let told =
            |error| Failure::new(format!("a principal of the bench is left: {error}")).next(next);
        first = first.and(call.await.map(drop).map_err(told));
    }
    first
}

async fn delete(config: &ClientConfig, keys: Vec<String>) -> Result<(), Failure> {
    let live = Live::count("scheduling the deletion of the keys", keys.len());
    let client = Arc::new(Client::new(config)?);
    let (mut done, on) = (Vec::new(), Stop::default());
    let deleted = side_by_side(keys.len(), &live, &on, &mut done, |number| {
        let client = Arc::clone(&client);
        let request = v1::ScheduleKeyDeletionRequest {
            key_id: keys[number].clone(),
            pending_window_in_days: Some(DELETION_DAYS),
        };
        async move {
            let call = client.key(Repeat::IfUnsent, request, |mut c, r| async move {
                c.schedule_key_deletion(r).await
            });
            Ok(call.await.map(drop)?)
        }
    });
    deleted.await.map_err(|failure| {
        let left = keys.len() - done.len();
        failure.next(format!(
            "{left} keys of the bench are left (`keyward key list`); `keyward key schedule-deletion KEY` deletes one"
        ))
    })
}
