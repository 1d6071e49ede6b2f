//! Quotas: definitions, and what is used up of those of a minute or a day.

use std::sync::Arc;

use keyward_model::limits::QUOTAS_MAX;
use keyward_model::{ErrorCode, KmsError};
use keyward_quota::{BucketId, Quota, QuotaName, Scope, WindowUse};

use super::{DONE, Tx};
use crate::command::{Outcome, Reply};
use crate::state::State;

impl State {
    /// Whether a quota may be set: its limits make sense, and whom it names is known.
    ///
    /// # Errors
    /// `ValidationException` or `NotFoundException`.
    pub fn check_quota(&self, quota: &Quota) -> Result<(), KmsError> {
        quota.check().map_err(|why| KmsError::validation(why.to_string()))?;
        match &quota.name.scope {
            Scope::Principal(arn) if !self.knows_principal(arn) => Err(KmsError::new(
                ErrorCode::NotFoundException,
                format!(
                    "{arn} is not a principal of this Region; `keyward principal list` shows them"
                ),
            )),
            _ => Ok(()),
        }
    }

    /// The quota of that name.
    ///
    /// # Errors
    /// `NotFoundException`.
    pub fn existing_quota(&self, name: &QuotaName) -> Result<&Arc<Quota>, KmsError> {
        self.quota(name).ok_or_else(|| {
            KmsError::new(
                ErrorCode::NotFoundException,
                format!("there is no quota {name}; `keyward quota list` shows them"),
            )
        })
    }
}

impl Tx<'_> {
    pub(super) fn put_quotas(&mut self, quotas: &[Quota], profile: bool) -> Outcome {
        for quota in quotas {
            // The proposer has looked; the rule is kept here.
            self.state.check_quota(quota)?;
        }
        let added = quotas.iter().filter(|quota| self.state.quota(&quota.name).is_none()).count();
        if self.state.quotas.size() + added > QUOTAS_MAX {
            return Err(KmsError::new(
                ErrorCode::LimitExceededException,
                format!("there would be more than {QUOTAS_MAX} quotas, the most allowed"),
            ));
        }
        let revision = self.state.quotas_revision + 1;
        self.put_quotas_revision(revision);
        if profile {
            let old: Vec<QuotaName> = self
                .state
                .quotas()
                .filter(|quota| quota.profile.is_some())
                .map(|quota| quota.name.clone())
                .collect();
            old.iter().for_each(|name| self.remove_quota(name));
        }
        for quota in quotas {
            self.put_quota(Quota { revision, ..quota.clone() });
        }
        DONE
    }

    pub(super) fn delete_quota(&mut self, name: &QuotaName) -> Outcome {
        self.state.existing_quota(name)?;
        self.put_quotas_revision(self.state.quotas_revision + 1);
        self.remove_quota(name);
        DONE
    }

    /// Windows that are over are forgotten.
    pub(super) fn note_quota_use(&mut self, used: &[(BucketId, WindowUse)]) -> Outcome {
        for (bucket, used) in used {
            let known = self.state.quota_use(bucket).unwrap_or_default();
            if used.window >= known.window {
                self.put_quota_use(bucket, *used);
            }
        }
        let now = u64::try_from(self.now.0).unwrap_or(0);
        let over = |bucket: &BucketId, used: &WindowUse| {
            (used.window + 1).saturating_mul(bucket.window.seconds() * 1000) <= now
        };
        let old: Vec<BucketId> = self
            .state
            .quota_use
            .iter()
            .filter(|(bucket, used)| over(bucket, used))
            .map(|(bucket, _)| bucket.clone())
            .collect();
        old.iter().for_each(|bucket| self.remove_quota_use(bucket));
        Ok(Reply::Done)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use keyward_model::{Operation, Timestamp};
    use keyward_quota::{Covers, Holder, Limit, Pool, Profile, Window};

    use super::*;
    use crate::command::Command;
    use crate::state::META_QUOTAS;
    use crate::{
        Batch, Envelope, MemStore, Purpose, RegionFacts, State, Store, Table, Timers, apply, codec,
    };

    fn founded() -> State {
        let facts = RegionFacts {
            region: "eu-west-1".parse().expect("a Region"),
            region_id: [1; 16],
            founded: Timestamp(0),
            timers: Timers::DEFAULT,
            purpose: Purpose::Dev,
            ca_certificate: Vec::new(),
            ca_private_key: keyward_hsm::SealedToken::from_bytes(Vec::new()),
            active_domain_key: keyward_model::DomainKeyId::new([1; 16]),
        };
        State { region: Some(Arc::new(facts)), ..State::default() }
    }

    /// Applies, and looks that a store that got the same rows would be read as the same quotas.
    fn run(state: &mut State, number: u8, time: i64, command: Command) -> Outcome {
        let envelope = Envelope { id: [number; 16], time: Timestamp(time), command };
        let before = state.clone();
        let mut batch = Batch::default();
        let outcome = apply(state, &mut batch, &envelope);
        let store = MemStore::default();
        let mut rows = Batch::default();
        for quota in before.quotas() {
            rows.put(Table::Quotas, codec::encode(&quota.name), codec::encode(quota));
        }
        for (bucket, used) in &before.quota_use {
            rows.put(Table::QuotaUse, codec::encode(bucket), codec::encode(&(bucket, used)));
        }
        rows.put(Table::Meta, META_QUOTAS, codec::encode(&before.quotas_revision));
        rows.changes.extend(batch.changes);
        store.write(rows, false).expect("written");
        let read = State::load(&store).expect("read");
        assert_eq!(read.quotas, state.quotas);
        assert_eq!(read.quota_use, state.quota_use);
        assert_eq!(read.quotas_revision, state.quotas_revision);
        outcome
    }

    fn quota(scope: Scope, limit: u64) -> Quota {
        let name = QuotaName { scope, covers: Covers::All };
        Quota::new(name, vec![Limit { window: Window::Second, limit, burst: limit }]).expect("fine")
    }

    fn put(quotas: Vec<Quota>, profile: bool) -> Command {
        Command::PutQuotas { quotas, profile }
    }

    #[test]
    fn the_special_quota_counts_and_then_the_general_one() {
        let mut state = founded();
        let account = "111122223333".parse().expect("an account");
        let bucket = |account| BucketId {
            holder: Holder::Account(account),
            covers: Covers::All,
            window: Window::Second,
        };
        let quotas = vec![quota(Scope::EachAccount, 100), quota(Scope::Account(account), 500)];
        assert!(run(&mut state, 1, 1, put(quotas, false)).is_ok());
        let limit =
            |state: &State, account| state.quota_of(&bucket(account)).map(|q| q.limits[0].limit);
        let other = "444455556666".parse().expect("an account");
        assert_eq!((limit(&state, account), limit(&state, other)), (Some(500), Some(100)));
        let before = state.quotas_revision;
        let name = QuotaName { scope: Scope::Account(account), covers: Covers::All };
        assert!(run(&mut state, 2, 2, Command::DeleteQuota { name: name.clone() }).is_ok());
        assert_eq!(limit(&state, account), Some(100));
        assert!(state.quotas_revision > before);
        let error = run(&mut state, 3, 3, Command::DeleteQuota { name }).unwrap_err();
        assert_eq!(error.code, ErrorCode::NotFoundException);
    }

    #[test]
    fn nobody_unknown_and_nothing_absurd() {
        let mut state = founded();
        let arn = "arn:aws:iam::111122223333:user/nobody".parse().expect("an ARN");
        let refused = run(&mut state, 1, 1, put(vec![quota(Scope::Principal(arn), 5)], false));
        assert_eq!(refused.unwrap_err().code, ErrorCode::NotFoundException);
        let mut absurd = quota(Scope::EachAccount, 5);
        absurd.limits[0].limit = 0;
        let refused =
            run(&mut state, 2, 2, put(vec![quota(Scope::EachPrincipal, 5), absurd], false));
        assert_eq!(refused.unwrap_err().code, ErrorCode::ValidationException);
        assert_eq!((state.quotas().count(), state.quotas_revision), (0, 0));
    }

    #[test]
    fn a_profile_takes_the_place_of_another_and_leaves_own_quotas_alone() {
        let mut state = founded();
        assert!(run(&mut state, 1, 1, put(vec![quota(Scope::EachAccount, 7)], false)).is_ok());
        let symmetric = |state: &State| {
            let covers = Covers::Pool(Pool::SymmetricCrypto);
            let name = QuotaName { scope: Scope::EachAccount, covers };
            state.quota(&name).map(|quota| quota.limits[0].limit)
        };
        for (number, (profile, limit)) in
            (2..).zip([("aws-us-east-1", 100_000), ("aws-eu-north-1", 10_000)])
        {
            let quotas = Profile::named(profile).expect("known").quotas().collect();
            assert!(run(&mut state, number, 2, put(quotas, true)).is_ok());
            assert_eq!(symmetric(&state), Some(limit));
        }
        let own = Covers::Pool(Pool::Own(Operation::CreateKey));
        assert!(state.quota(&QuotaName { scope: Scope::EachAccount, covers: own }).is_some());
        assert!(state.quotas().any(|quota| quota.profile.is_none()));
    }

    #[test]
    fn use_goes_forward_and_is_forgotten_when_its_window_is_over() {
        let mut state = founded();
        let bucket = BucketId {
            holder: Holder::Account("111122223333".parse().expect("an account")),
            covers: Covers::All,
            window: Window::Minute,
        };
        let note = |window, used| Command::NoteQuotaUse {
            used: vec![(bucket.clone(), WindowUse { window, used })],
        };
        assert!(run(&mut state, 1, 60_000, note(1, 30)).is_ok());
        assert!(run(&mut state, 2, 61_000, note(0, 99)).is_ok());
        assert_eq!(state.quota_use(&bucket), Some(WindowUse { window: 1, used: 30 }));
        let nothing = Command::NoteQuotaUse { used: Vec::new() };
        assert!(run(&mut state, 3, 120_000, nothing).is_ok());
        assert_eq!(state.quota_use(&bucket), None);
    }
}
