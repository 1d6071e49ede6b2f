//! The ways between Regions: a network like the one within a Region, only longer. Its addresses are nodes of Regions.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use keyward_model::{NodeId, Region};
use keyward_raft::BoxFuture;
use keyward_regions::RegionTransport;
use keyward_service::Kms;
use keyward_state::PeerRegion;
use parking_lot::Mutex;

use crate::cluster::{FOUNDERS, address_of};
use crate::env::SimEnv;
use crate::network::Net;
use crate::runtime::{Group, World};

/// Addresses of one Region.
const ADDRESSES: u64 = 16;

/// The ways between Regions.
pub struct Roads {
    /// What happens on them.
    pub net: Arc<Net>,
    regions: Vec<Region>,
    /// Which Region of its name each is: what its certificates say.
    ids: Mutex<BTreeMap<Region, [u8; 16]>>,
}

impl Roads {
    /// The ways between these Regions, in fair weather.
    #[must_use]
    pub fn new(world: &Arc<World>, seed: u64, regions: Vec<Region>) -> Arc<Self> {
        let net = Net::new(Arc::clone(world), seed);
        Arc::new(Self { net, regions, ids: Mutex::default() })
    }

    /// A Region was founded: its nodes show this from now on.
    pub fn identify(&self, region: &Region, id: [u8; 16]) {
        self.ids.lock().insert(region.clone(), id);
    }

    fn number(&self, region: &Region) -> Option<usize> {
        self.regions.iter().position(|known| known == region)
    }

    fn address(&self, region: &Region, index: usize) -> NodeId {
        let number = self.number(region).unwrap_or(self.regions.len());
        (number as u64 + 1) * ADDRESSES + index as u64
    }

    /// Cuts the way from all nodes of one Region to all of another.
    pub fn cut(&self, from: usize, to: usize) {
        for (a, b) in (0..FOUNDERS).flat_map(|a| (0..FOUNDERS).map(move |b| (a, b))) {
            let address = |number: usize, index| self.address(&self.regions[number], index);
            self.net.cut(address(from, a), address(to, b));
        }
    }

    /// A node listens to other Regions from now on.
    pub fn listen(
        self: &Arc<Self>,
        region: &Region,
        index: usize,
        group: Group,
        kms: &Arc<Kms<SimEnv>>,
    ) {
        let (this, kms) = (Arc::clone(self), Arc::clone(kms));
        let answers = move |from: NodeId, body: Vec<u8>| {
            let (this, kms) = (Arc::clone(&this), Arc::clone(&kms));
            let answer: BoxFuture<'static, Option<Vec<u8>>> = Box::pin(async move {
                let number = usize::try_from(from / ADDRESSES).ok()?.checked_sub(1)?;
                let from = this.regions.get(number)?.clone();
                let id = this.ids.lock().get(&from).copied()?;
                kms.answer_region(from, id, body).await.ok()
            });
            answer
        };
        self.net.listen(self.address(region, index), group, Arc::new(answers));
    }

    /// Nobody listens there any more.
    pub fn hang_up(&self, region: &Region, index: usize) {
        self.net.hang_up(self.address(region, index));
    }

    /// That process's end of the ways.
    #[must_use]
    pub fn end_of(
        self: &Arc<Self>,
        region: &Region,
        index: usize,
        group: Group,
    ) -> Arc<dyn RegionTransport> {
        let me = self.address(region, index);
        Arc::new(End { roads: Arc::clone(self), me, group })
    }
}

/// One process's end of the ways.
struct End {
    roads: Arc<Roads>,
    me: NodeId,
    group: Group,
}

impl RegionTransport for End {
    fn call(
        &self,
        peer: Arc<PeerRegion>,
        endpoint: String,
        body: Vec<u8>,
        patience: Duration,
    ) -> BoxFuture<'_, Result<Vec<u8>, String>> {
        Box::pin(async move {
            let index = (0..FOUNDERS).find(|index| address_of(*index) == endpoint);
            let index = index.ok_or_else(|| format!("there is no {endpoint}"))?;
            let to = self.roads.address(&peer.region, index);
            let answer = self.roads.net.call((self.me, self.group), to, body, patience).await;
            answer.map_err(|error| error.to_string())
        })
    }

    /// Who calls is known here by the address.
    fn wants_identity(&self, _: i64) -> bool {
        false
    }

    fn take_identity(&self, _: &[u8], _: &[u8]) -> Result<(), String> {
        Ok(())
    }
}
