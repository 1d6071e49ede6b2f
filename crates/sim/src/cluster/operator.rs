//! What an operator does: founding the Region, and calls on its nodes.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use keyward_model::{KmsError, Timestamp};
use keyward_service::{Caller, FoundingRequest, Issuer, Kms, fingerprint};

use super::{Cluster, address_of};
use crate::env::SimEnv;
use crate::runtime::Cut;
use crate::walls::WALL_START_MS;

/// The authority's certificate and key. Fixed bytes: making them takes the operating system's randomness.
const CA_CERTIFICATE: &[u8] = include_bytes!("../../assets/authority.der");
const CA_PRIVATE_KEY: &[u8] = include_bytes!("../../assets/authority-key.der");

const OPERATOR_SERIAL: u8 = 1;
const OPERATOR: &str = "arn:aws:iam::111122223333:user/operator";
const CLIENT: &str = "arn:aws:iam::111122223333:user/client";
/// How long an operator's call may take while the Region is set up.
const SETUP_PATIENCE: Duration = Duration::from_secs(20);

/// Who operates the Region.
#[must_use]
pub fn operator() -> Arc<Caller> {
    caller(OPERATOR, OPERATOR_SERIAL, 30)
}

/// Who uses and manages its keys.
#[must_use]
pub fn client() -> Arc<Caller> {
    caller(CLIENT, 2, 30)
}

/// The same, with a certificate that ended the day before: no node may take it for a good one, whatever its
/// clock shows.
#[must_use]
pub fn expired_client() -> Arc<Caller> {
    caller(CLIENT, 3, -1)
}

/// Callers with quotas, by number.
#[must_use]
pub fn metered(number: u8) -> Arc<Caller> {
    caller(&format!("{CLIENT}-{number}"), 10 + number, 30)
}

/// Callers of several Regions, by the number of the Region that makes them.
#[must_use]
pub fn roamer(number: usize) -> Arc<Caller> {
    caller(&format!("{CLIENT}-roams-{number}"), 200, 30)
}

fn caller(arn: &str, serial: u8, days: i64) -> Arc<Caller> {
    let principal = match arn.parse() {
        Ok(principal) => principal,
        Err(_) => unreachable!("the ARNs above are well formed"),
    };
    let not_after = Timestamp(WALL_START_MS + days * Timestamp::DAY_MS);
    // A principal made without a certificate of the Region's own authority: an outside one speaks for it.
    let own = serial == OPERATOR_SERIAL;
    let issuer = if own { Issuer::Own } else { Issuer::Outside(fingerprint(CA_CERTIFICATE)) };
    Arc::new(Caller::new(principal, vec![serial], not_after, issuer))
}

impl Cluster {
    /// Runs an operator's call on node `index`.
    pub async fn operate<T, F, Fut>(&self, index: usize, call: F) -> Result<T, String>
    where
        T: Send + 'static,
        F: FnOnce(Arc<Kms<SimEnv>>) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, KmsError>> + Send + 'static,
    {
        let running = self.running(index).ok_or("the node is down")?;
        let kms = running.kms;
        let done: Result<_, Cut> =
            self.world.spawn_in(running.group, async move { call(kms).await }).await;
        match done {
            Ok(result) => result.map_err(|e| format!("{e:?}")),
            Err(cut) => Err(cut.to_string()),
        }
    }

    /// Switches the first machines on, founds the Region on the first, adds the others and makes the client's principal.
    pub async fn set_up(self: &Arc<Self>) -> Result<(), String> {
        for index in 0..self.founders() {
            self.boot(index);
        }
        self.all_running().await?;
        let request = FoundingRequest {
            purpose: self.purpose,
            region: self.region.clone(),
            timers: self.timers,
            operator: operator().principal.clone(),
            ca_certificate: CA_CERTIFICATE.to_vec(),
            ca_private_key: CA_PRIVATE_KEY.to_vec().into(),
            outside_authorities: vec![CA_CERTIFICATE.to_vec()],
        };
        self.operate(0, |kms| async move { kms.found(&operator(), request, SETUP_PATIENCE).await })
            .await?;
        self.operate(0, |kms| async move {
            let kinds = ["administrator".to_owned(), "user".to_owned()];
            let who = operator();
            kms.create_principal(&who, CLIENT, &kinds, None, None, SETUP_PATIENCE).await
        })
        .await?;
        for index in 1..self.founders() {
            let id = self.id(index);
            self.operate(0, move |kms| async move {
                let who = operator();
                let address = address_of(index);
                kms.add_node(&who, id, address, false, SETUP_PATIENCE).await
            })
            .await?;
        }
        Ok(())
    }

    async fn all_running(&self) -> Result<(), String> {
        let patience = Duration::from_secs(5);
        let end = self.world.now() + patience;
        while (0..self.founders()).any(|index| self.running(index).is_none()) {
            if self.world.now() > end {
                return Err(format!("not every node has started: {:?}", self.failures()));
            }
            crate::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// Where the node of machine `index` is reached.
    #[must_use]
    pub fn address(&self, index: usize) -> String {
        address_of(index)
    }

    /// True if the leader counts the node of machine `index` among the voters.
    #[must_use]
    pub fn votes(&self, index: usize) -> bool {
        let id = self.id(index);
        self.members().into_iter().all(|other| {
            self.running(other).is_some_and(|running| {
                let node = running.kms.node();
                let votes = |member: &keyward_raft::Member| member.node == id && member.voter;
                !node.voters_change() && node.members().iter().any(votes)
            })
        })
    }
}
