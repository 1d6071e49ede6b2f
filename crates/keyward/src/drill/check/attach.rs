//! An attached deployment: where it is, and what it allows.

use super::Check;
use crate::drill::definition::{Attach, AttachedRegion};

impl Check<'_> {
    pub(super) fn attach(&mut self, attach: &Attach) {
        if attach.region.is_empty() {
            self.whole("[attach] names no Region: give [[attach.region]]");
        }
        for region in &attach.region {
            self.attached_region(region);
        }
        self.unique("command", attach.command.iter().map(|own| &own.name));
        for own in &attach.command {
            if own.run.get_ref().trim().is_empty() {
                self.fault(&own.run, "there is nothing to run", None);
            }
        }
        for entry in &attach.allow {
            self.allow(entry, attach);
        }
        let signs = |region: &AttachedRegion| {
            region.env_prefix.is_some()
                || (region.operator_certificate.is_some() && region.operator_key.is_some())
        };
        if let Some(first) = attach.region.first()
            && !signs(first)
        {
            let hint = "give operator_certificate and operator_key of the first Region".to_owned();
            self.fault(&first.name, "nobody signs the report", Some(hint));
        }
        self.things_of_the_owner();
        for changes in &self.drill.changes {
            let may = attach.allow.iter().map(|one| one.get_ref().as_str());
            if !may.into_iter().any(|one| one == "key" || one == "key enable-rotation") {
                let hint = "if it may be done: add \"key enable-rotation\" to allow in [attach]";
                let what = "this deployment does not allow 'key enable-rotation'";
                self.fault(&changes.name, what, Some(hint.to_owned()));
            }
        }
    }

    fn attached_region(&mut self, region: &AttachedRegion) {
        let files = [&region.ca, &region.certificate, &region.private_key];
        let files_given = files.iter().any(|file| file.is_some()) || !region.endpoints.is_empty();
        let all = files.iter().all(|file| file.is_some()) && !region.endpoints.is_empty();
        match &region.env_prefix {
            Some(prefix) if files_given => {
                self.fault(prefix, "a Region is told by env_prefix or by its files", None);
            }
            None if !all => {
                let hint = "give endpoints, ca, certificate and private_key; or env_prefix = \"\", and KEYWARD_ENDPOINTS, \
                            KEYWARD_CA, KEYWARD_CERT, KEYWARD_KEY in the environment";
                let what = format!(
                    "where {} is, and who calls it, is not all told",
                    region.name.get_ref()
                );
                self.fault(&region.name, what, Some(hint.to_owned()));
            }
            _ => {}
        }
    }

    /// Keys and principals are there already: a drill makes nothing in a deployment that is not its own.
    fn things_of_the_owner(&mut self) {
        for key in &self.drill.key {
            if key.id.is_none() {
                let hint = "id = \"alias/rehearsal\": a key that is there, for the rehearsal alone"
                    .to_owned();
                self.fault(
                    &key.name,
                    "a drill makes no keys in a deployment that is not its own",
                    Some(hint),
                );
            }
        }
        for one in &self.drill.principal {
            if one.arn.is_none() || one.certificate.is_none() || one.private_key.is_none() {
                let hint = "give arn, certificate and private_key".to_owned();
                let what = "a drill makes no principals in a deployment that is not its own";
                self.fault(&one.name, what, Some(hint));
            }
        }
    }
}
