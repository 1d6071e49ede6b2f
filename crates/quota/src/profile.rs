//! AWS's published request quotas, as profiles to apply (AWS KMS developer guide, "Request quotas").

use keyward_model::Operation as Op;

use crate::definition::{Covers, Limit, Quota, QuotaName, Scope, Window};
use crate::pool::Pool;

/// When the figures were read.
pub const PROFILES_AS_OF: &str = "2026";

const PREFIX: &str = "aws-";

/// Regions with 100,000 symmetric calls a second.
const LARGE: &[&str] = &["us-east-1", "us-west-2", "eu-west-1"];
/// Regions with 20,000.
const MIDDLE: &[&str] = &[
    "us-east-2",
    "ap-southeast-1",
    "ap-southeast-2",
    "ap-northeast-1",
    "eu-central-1",
    "eu-west-2",
];
/// Regions with 10,000.
const SMALL: &[&str] = &[
    "af-south-1",
    "ap-east-1",
    "ap-east-2",
    "ap-northeast-2",
    "ap-northeast-3",
    "ap-south-1",
    "ap-south-2",
    "ap-southeast-3",
    "ap-southeast-4",
    "ap-southeast-5",
    "ap-southeast-7",
    "ca-central-1",
    "ca-west-1",
    "cn-north-1",
    "cn-northwest-1",
    "eu-central-2",
    "eu-north-1",
    "eu-south-1",
    "eu-south-2",
    "eu-west-3",
    "il-central-1",
    "me-central-1",
    "me-south-1",
    "mx-central-1",
    "sa-east-1",
    "us-gov-east-1",
    "us-gov-west-1",
    "us-west-1",
];

/// The figures of one AWS Region, for each account.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Profile {
    /// `aws-` and the Region.
    pub name: String,
    /// Symmetric cryptographic calls a second.
    pub symmetric: u64,
}

/// No such profile.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "there is no quota profile '{0}': `aws-` and an AWS Region, such as aws-us-east-1; `keyward quota profile list` \
     shows them"
)]
pub struct ProfileError(pub String);

impl Profile {
    /// Every profile, the largest first.
    pub fn all() -> impl Iterator<Item = Self> {
        [(LARGE, 100_000), (MIDDLE, 20_000), (SMALL, 10_000)].into_iter().flat_map(
            |(regions, symmetric)| {
                regions
                    .iter()
                    .map(move |region| Self { name: format!("{PREFIX}{region}"), symmetric })
            },
        )
    }

    /// The profile of that name.
    pub fn named(name: &str) -> Result<Self, ProfileError> {
        Self::all()
            .find(|profile| profile.name == name)
            .ok_or_else(|| ProfileError(name.to_owned()))
    }

    /// Its quotas: one for each pool, for each account. A burst is what a second admits.
    pub fn quotas(&self) -> impl Iterator<Item = Quota> + '_ {
        Pool::all().filter_map(|pool| {
            let rate = self.rate(pool)?;
            Some(Quota {
                name: QuotaName { scope: Scope::EachAccount, covers: Covers::Pool(pool) },
                limits: vec![Limit { window: Window::Second, limit: rate, burst: rate }],
                profile: Some(self.name.clone()),
                revision: 0,
            })
        })
    }

    /// Calls a second; none for Keyward's own operations.
    fn rate(&self, pool: Pool) -> Option<u64> {
        let operation = match pool {
            Pool::SymmetricCrypto => return Some(self.symmetric),
            Pool::Own(operation) => operation,
        };
        Some(match operation {
            Op::DescribeKey | Op::ListResourceTags => 2000,
            Op::GetKeyRotationStatus => 1000,
            Op::ListAliases | Op::ListKeys => 500,
            Op::ListKeyRotations => 100,
            Op::DeleteAlias | Op::EnableKeyRotation | Op::ScheduleKeyDeletion => 15,
            Op::TagResource => 10,
            Op::CancelKeyDeletion
            | Op::CreateAlias
            | Op::CreateKey
            | Op::DisableKey
            | Op::DisableKeyRotation
            | Op::EnableKey
            | Op::ReplicateKey
            | Op::RotateKeyOnDemand
            | Op::UntagResource
            | Op::UpdateAlias
            | Op::UpdateKeyDescription
            | Op::UpdatePrimaryRegion => 5,
            Op::GetKeyDeletionStatus | Op::GetKeyReplicationStatus | Op::WaitForChange => {
                return None;
            }
            // In the symmetric pool.
            Op::Encrypt
            | Op::Decrypt
            | Op::ReEncrypt
            | Op::GenerateDataKey
            | Op::GenerateDataKeyWithoutPlaintext
            | Op::GenerateRandom => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profiles_hold_the_published_figures() {
        let rate = |profile: &str, pool: Pool| {
            let profile = Profile::named(profile).expect("known");
            let covers = Covers::Pool(pool);
            let quota = profile.quotas().find(|quota| quota.name.covers == covers)?;
            assert_eq!(quota.profile.as_deref(), Some(profile.name.as_str()));
            Some(quota.limits[0].limit)
        };
        assert_eq!(rate("aws-us-east-1", Pool::SymmetricCrypto), Some(100_000));
        assert_eq!(rate("aws-eu-west-2", Pool::SymmetricCrypto), Some(20_000));
        assert_eq!(rate("aws-eu-north-1", Pool::SymmetricCrypto), Some(10_000));
        assert_eq!(rate("aws-us-east-1", Pool::Own(Op::CreateKey)), Some(5));
        assert_eq!(rate("aws-us-east-1", Pool::Own(Op::DescribeKey)), Some(2000));
        assert_eq!(rate("aws-us-east-1", Pool::Own(Op::GetKeyDeletionStatus)), None);
        assert!(Profile::named("aws-mars-1").unwrap_err().to_string().contains("aws-us-east-1"));
    }

    #[test]
    fn every_quota_of_every_profile_is_well_formed_and_named_once() {
        for profile in Profile::all() {
            let mut names = std::collections::BTreeSet::new();
            for quota in profile.quotas() {
                assert!(names.insert(quota.name.clone()));
                assert!(Quota::new(quota.name, quota.limits).is_ok());
            }
        }
    }
}
