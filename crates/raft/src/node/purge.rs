//! Gone means gone: what was deleted leaves every file of this node.

use super::*;

/// Between looks.
const LOOK: Duration = Duration::from_millis(250);

impl<E: Env> Node<E> {
    /// After each deletion: the state's files are compacted down to the bottom, a new checkpoint takes the
    /// place of the old one (whose hard links keep the bytes), sealed material leaves the log, and then it
    /// is on record. Deletions that come meanwhile are the next round's.
    pub(super) async fn purge_what_is_gone(self: Arc<Self>) {
        while !self.is_stopped() {
            let state = self.visible.load();
            let done = self.log.purged_of_keys();
            if state.deletions() > done
                && let Err(error) = self.purge(&state, done).await
            {
                tracing::error!(%error, "deleted keys are still on this node's disk; it is tried again");
            }
            drop(state);
            self.env.sleep(LOOK).await;
        }
    }

    async fn purge(&self, state: &State, done: u64) -> io::Result<()> {
        let installs = self.stand.installs();
        // What was received of a snapshot and not taken over holds files of before the deletion. Who is still sending
        // it begins anew.
        drop(self.incoming.lock().take());
        // A replica that was made anew has its old material again.
        let alive = |key: &KeyId| state.key(key).is_some();
        let gone = state.deleted_after(done).map(|tomb| tomb.key).filter(|key| !alive(key));
        let gone: BTreeSet<_> = gone.collect();
        if !on(Bug::StateNotPurged) {
            self.stand.purge(&self.env, &self.state_store, &[Table::Tokens]).await?;
        }
        if !on(Bug::LogNotScrubbed) {
            self.log.scrub(&Arc::new(gone), state.applied).await?;
        }
        self.stand.note_purged(&self.log, state.deletions(), installs).await
    }
}
