//! Pulling another Region's feed: one task a link, on the leader.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use keyward_env::Env;
use keyward_env::sabotage::{Bug, on};
use keyward_model::{KeyMaterialId, KmsError, Region};
use keyward_raft::BoxFuture;
use keyward_state::{
    Command, Cursor, Fed, ForeignPrincipal, KeyView, PeerRegion, SealedToken, State, Told,
};

use crate::link::Links;
use crate::messages::{
    Page, PullRequest, RegionRequest, RegionResponse, SealedMaterial, decode, encode,
};

/// Keys and principals in one answer at most.
pub const PAGE_KEYS_MAX: u32 = 256;
/// How long the other Region waits for a change before it says that there is none.
const WAIT: Duration = Duration::from_millis(1000);
/// Beyond that, an answer takes no longer than a way there and back and a seal for each material.
const PATIENCE: Duration = Duration::from_secs(5);
/// After a failure; doubled up to [`PAUSE_MAX`].
const PAUSE: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// Between looks while a change is put off.
const DELAY_LOOK: Duration = Duration::from_millis(100);
/// Materials sealed in one answer at most.
const MATERIALS_AT_ONCE: usize = 64;

/// Carries messages to nodes of other Regions.
pub trait RegionTransport: Send + Sync + 'static {
    /// Sends a message to the node of that Region at `endpoint`, and waits for its answer.
    fn call(
        &self,
        peer: Arc<PeerRegion>,
        endpoint: String,
        body: Vec<u8>,
        patience: Duration,
    ) -> BoxFuture<'_, Result<Vec<u8>, String>>;

    /// Whether it needs a certificate to show to other Regions, at this time in milliseconds.
    fn wants_identity(&self, now_ms: i64) -> bool;

    /// Takes one: certificate and private key (PKCS #8), both DER.
    fn take_identity(&self, certificate: &[u8], private_key: &[u8]) -> Result<(), String>;
}

/// What pulling needs of its own Region.
pub trait Local: Send + Sync + 'static {
    /// The seams.
    type Env: Env;

    /// Clocks and sleep.
    fn env(&self) -> &Self::Env;
    /// The state, as this node has it.
    fn state(&self) -> Arc<State>;
    /// Whether this node leads.
    fn leads(&self) -> bool;
    /// The Region's time, in milliseconds since the Unix epoch.
    fn region_now_ms(&self) -> i64;
    /// The links.
    fn links(&self) -> &Links;
    /// How long after it was heard what was told of a key is taken over, where a Region is to seem far away.
    fn delay(&self, state: &State, view: &KeyView) -> Duration;
    /// Makes a change; it is fenced when this returns.
    fn change(&self, command: Command) -> BoxFuture<'_, Result<(), KmsError>>;
    /// Another Region has been told more than this one has: it begins a new line of life.
    fn is_behind_what_was_told(&self) -> BoxFuture<'_, ()>;
    /// Everything that this node has applied is fenced when this returns.
    fn fence(&self) -> BoxFuture<'_, Result<(), KmsError>>;
    /// Has this Region's HSM take over materials of a key that `peer` sealed to it.
    fn import<'a>(
        &'a self,
        peer: &'a PeerRegion,
        page: &'a Page,
        view: &'a KeyView,
        sealed: Vec<SealedMaterial>,
    ) -> BoxFuture<'a, Result<Vec<(KeyMaterialId, SealedToken)>, KmsError>>;
    /// The certificate with which this Region's nodes show who they are to others, if `transport` wants a new one.
    fn identify<'a>(
        &'a self,
        transport: &'a dyn RegionTransport,
    ) -> BoxFuture<'a, Result<(), KmsError>>;
}

/// Why a round came to nothing.
#[derive(Debug, thiserror::Error)]
enum Setback {
    #[error("{0}")]
    Unreachable(String),
    #[error("it refused: {0}")]
    Refused(String),
    #[error("this Region could not take over what it told: {0}")]
    NotTaken(KmsError),
}

struct Puller<L: Local> {
    local: Arc<L>,
    transport: Arc<dyn RegionTransport>,
    region: Region,
    /// The endpoint that answered last.
    at: usize,
}

/// Pulls the feed of `region` for as long as this node leads and the link stands.
pub async fn pull<L: Local>(local: Arc<L>, transport: Arc<dyn RegionTransport>, region: Region) {
    let mut puller = Puller { local, transport, region, at: 0 };
    let mut pause = PAUSE;
    // What an earlier leader has taken over may not be fenced yet, and pulls say that it is.
    let mut fenced = false;
    while puller.local.leads() {
        let state = puller.local.state();
        let Some(peer) = state.peer_region(&puller.region).cloned() else { return };
        let round = async {
            if !fenced {
                puller.local.fence().await.map_err(Setback::NotTaken)?;
                fenced = true;
            }
            let transport = Arc::clone(&puller.transport);
            puller.local.identify(&*transport).await.map_err(Setback::NotTaken)?;
            puller.round(&peer).await
        };
        match round.await {
            Ok(()) => pause = PAUSE,
            Err(setback) => {
                // What is unknown may be applied and not fenced.
                fenced = !matches!(setback, Setback::NotTaken(_)) && fenced;
                tracing::debug!(region = %puller.region, %setback, "a pull is tried again");
                let why = setback.to_string();
                puller.local.links().note(&puller.region, |link| link.failing = Some(why));
                puller.local.env().sleep(pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
    }
}

impl<L: Local> Puller<L> {
    /// Asks for changes, and takes them over.
    async fn round(&mut self, peer: &Arc<PeerRegion>) -> Result<(), Setback> {
        let have = peer.cursor;
        let wait_ms = u64::try_from(WAIT.as_millis()).unwrap_or(0);
        let request = RegionRequest::Pull(PullRequest { have, wait_ms, limit: PAGE_KEYS_MAX });
        let page = match self.ask(peer, &request, WAIT + PATIENCE).await? {
            RegionResponse::Page(page) => page,
            other => return Err(Setback::Refused(format!("an odd answer: {other:?}"))),
        };
        let heard = self.local.env().boot_now();
        let first_head = {
            let mut first = page.head;
            self.local.links().note(&self.region, |link| {
                first = *link.first_head.get_or_insert(page.head);
                link.heard = Some(heard);
                link.failing = None;
                link.head = page.head;
                link.now_ms = page.now_ms;
            });
            first
        };
        if page.upto != have {
            if !self.put_off(heard, &page).await {
                return Ok(());
            }
            if on(Bug::TakenTooEarly) {
                let early = PullRequest { have: page.upto, wait_ms: 0, limit: 1 };
                self.ask(peer, &RegionRequest::Pull(early), PATIENCE).await?;
            }
            self.take_over(peer, &page).await?;
        }
        let taken = self.local.state().peer_region(&self.region).map(|peer| peer.cursor);
        self.local.links().note(&self.region, |link| {
            link.caught_up |= taken
                .is_some_and(|taken| taken.history == page.history && taken.index >= first_head)
                || page.head == 0;
        });
        Ok(())
    }

    /// Waits as long as the Region is to seem far away. False: meanwhile the link has ended here.
    async fn put_off(&self, heard: Duration, page: &Page) -> bool {
        let state = self.local.state();
        let delay = page.views.iter().map(|view| self.local.delay(&state, view)).max();
        let until = heard + delay.unwrap_or_default();
        while self.local.env().boot_now() < until {
            if !self.local.leads() || self.local.state().peer_region(&self.region).is_none() {
                return false;
            }
            self.local.env().sleep(DELAY_LOOK).await;
        }
        true
    }

    async fn take_over(&mut self, peer: &Arc<PeerRegion>, page: &Page) -> Result<(), Setback> {
        let state = self.local.state();
        let mut told = Vec::with_capacity(page.views.len());
        for view in spoilt(&state, &page.views).iter() {
            let missing = state.materials_missing(view);
            let mut tokens = BTreeMap::new();
            for some in missing.chunks(MATERIALS_AT_ONCE) {
                tokens.extend(self.fetch(peer, page, view, some).await?);
            }
            told.push(Told { view: view.clone(), tokens: tokens.into_iter().collect() });
        }
        let from = self.region.clone();
        let principals = let_in(&state, &page.principals);
        let authorities = page.authorities.clone();
        let command = Command::Merge { from, cursor: page.upto, told, principals, authorities };
        self.local.change(command).await.map_err(Setback::NotTaken)
    }

    async fn fetch(
        &mut self,
        peer: &Arc<PeerRegion>,
        page: &Page,
        view: &KeyView,
        materials: &[KeyMaterialId],
    ) -> Result<Vec<(KeyMaterialId, SealedToken)>, Setback> {
        let Some(shared) = &view.shared else { return Ok(Vec::new()) };
        let request = RegionRequest::Materials {
            key: view.key,
            materials: materials.to_vec(),
            version: shared.version.clone(),
        };
        let sealed = match self.ask(peer, &request, PATIENCE).await? {
            RegionResponse::Materials(sealed) => sealed,
            other => return Err(Setback::Refused(format!("an odd answer: {other:?}"))),
        };
        let import = self.local.import(peer, page, view, sealed);
        import.await.map_err(Setback::NotTaken)
    }

    /// Asks the Region's nodes in turn, beginning with the one that answered last.
    async fn ask(
        &mut self,
        peer: &Arc<PeerRegion>,
        request: &RegionRequest,
        patience: Duration,
    ) -> Result<RegionResponse, Setback> {
        let body = encode(request);
        let nodes = peer.endpoints.len();
        let mut setback = Setback::Unreachable("no endpoint of it is known".to_owned());
        for turn in 0..nodes {
            let at = (self.at + turn) % nodes;
            let endpoint = peer.endpoints[at].clone();
            let call =
                self.transport.call(Arc::clone(peer), endpoint.clone(), body.clone(), patience);
            let answer = call.await.and_then(|bytes| decode(&bytes).map_err(|e| e.to_string()));
            match answer {
                Ok(RegionResponse::NotLeader) => {
                    setback = Setback::Unreachable("none of its nodes leads".to_owned());
                }
                Ok(RegionResponse::Refused(why)) => setback = Setback::Refused(why),
                Ok(answer) => {
                    self.at = at;
                    return Ok(answer);
                }
                Err(why) => setback = Setback::Unreachable(format!("{endpoint}: {why}")),
            }
            if !self.local.leads() {
                break;
            }
        }
        Err(setback)
    }
}

/// What a leader answers a pull with, from its own state.
fn page(state: &State, request: &PullRequest, now_ms: i64) -> Page {
    let history = state.history_id();
    // A feed of another line of life says nothing about this one: it is told from the start.
    let known = request.have.history == history || on(Bug::CursorOverHistories);
    let index = if known { request.have.index } else { 0 };
    let head = state.feed_head();
    let limit = request.limit.clamp(1, PAGE_KEYS_MAX) as usize;
    let rows: Vec<_> = state.feed_after(index).take(limit).collect();
    let skipped = usize::from(on(Bug::PageSkips) && rows.len() > 1);
    let view = |fed: &Fed<'_>| match fed {
        Fed::Key(row) => state.view_of(&row.key),
        _ => None,
    };
    let views = rows[skipped..].iter().filter_map(view).map(untold).collect();
    let principals = rows[skipped..].iter().filter_map(|fed| state.told_principal(fed));
    let principals = principals.map(not_shut_out).collect();
    let authorities = rows[skipped..].iter().filter_map(State::told_authority).collect();
    let upto = match rows.last().map(Fed::changed) {
        Some((index, made)) => Cursor { history, index, made },
        None if request.have.history == history => request.have,
        None => Cursor { history, index: 0, made: request.have.made },
    };
    Page { history, views, principals, authorities, upto, head, now_ms }
}

/// A view without what a known bug does not tell.
fn untold(mut view: KeyView) -> KeyView {
    if on(Bug::GoneNotTold) {
        view.gone.clear();
    }
    if on(Bug::RefusalNotTold) {
        view.refused = None;
    }
    view
}

/// A principal without what a known bug does not tell.
fn not_shut_out(mut told: ForeignPrincipal) -> ForeignPrincipal {
    if on(Bug::ShutOutNotTold) {
        told.principal.shut.clear();
    }
    told
}

/// Principals as a known bug takes them over; without one, as they are.
fn let_in(state: &State, told: &[ForeignPrincipal]) -> Vec<ForeignPrincipal> {
    let mut told = told.to_vec();
    if on(Bug::AnyWordLetsIn) {
        let fed: Vec<_> = state.feed_after(0).collect();
        for one in told.iter_mut().filter(|one| !one.principal.is_disabled()) {
            let same = |known: &ForeignPrincipal| {
                known.home_id == one.home_id && known.principal.arn == one.principal.arn
            };
            let known = fed.iter().filter_map(|fed| state.told_principal(fed)).find(same);
            for (region, shut) in known.into_iter().flat_map(|known| known.principal.shut) {
                let word = one.principal.shut.entry(region).or_default();
                (word.times, word.lifted) = (shut.times, shut.times);
            }
        }
    }
    told
}

/// Views as a known bug takes them over; without one, as they are.
fn spoilt<'a>(state: &State, views: &'a [KeyView]) -> Cow<'a, [KeyView]> {
    if !on(Bug::OldEpochAccepted) && !on(Bug::LosersMaterialDropped) {
        return Cow::Borrowed(views);
    }
    let mut views = views.to_vec();
    for view in &mut views {
        let Some(here) = state.multi_region(&view.key).and_then(|row| row.here.as_ref()) else {
            continue;
        };
        let Some(shared) = view.shared.as_mut().filter(|s| s.version <= here.version) else {
            continue;
        };
        if on(Bug::OldEpochAccepted) && shared.version.epoch < here.version.epoch {
            shared.version.epoch.number = here.version.epoch.number + 1;
        }
        if on(Bug::LosersMaterialDropped) {
            let key = state.key(&view.key);
            shared.materials.retain(|m| key.is_some_and(|key| key.material(&m.id).is_some()));
        }
    }
    Cow::Owned(views)
}

/// Whether there is something to tell.
fn has_news(state: &State, request: &PullRequest) -> bool {
    request.have.history != state.history_id() || state.feed_head() > request.have.index
}

/// How often a Region that waits for a change looks.
const LOOK: Duration = Duration::from_millis(5);

/// Answers a pull of `from`, which has shown who it is: at once if there is news, or when there is.
pub async fn answer_pull<L: Local>(
    local: &L,
    from: &Region,
    request: &PullRequest,
) -> RegionResponse {
    if !local.leads() && !on(Bug::FollowerAnswersPulls) {
        return RegionResponse::NotLeader;
    }
    let env = local.env();
    let began = env.boot_now();
    let have = request.have;
    let state = local.state();
    if have.history == state.history_id() && have.index > state.feed_head() {
        // What comes next would bear numbers that it takes for known.
        local.is_behind_what_was_told().await;
    }
    local.links().note(from, |link| {
        link.pulled = Some(began);
        link.taken = have;
    });
    let wait = Duration::from_millis(request.wait_ms).min(WAIT);
    while !has_news(&local.state(), request) && env.boot_now() < began + wait && local.leads() {
        env.sleep(LOOK).await;
    }
    RegionResponse::Page(page(&local.state(), request, local.region_now_ms()))
}
