//! Promises: each has one limit, and is about calls or Regions that there are.

use super::Check;
use crate::drill::definition::{PromiseSpec, Text};

/// Of what a limit can be promised.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Of {
    Load,
    Region,
    Either,
}

/// A promise's limits, by their names.
fn limits(promise: &PromiseSpec) -> Vec<(&'static str, Of)> {
    let all = [
        ("errors_per_million", promise.errors_per_million.is_some(), Of::Either),
        ("errors_only", promise.errors_only.is_some(), Of::Either),
        ("outage_max", promise.outage_max.is_some(), Of::Load),
        ("p99_max", promise.p99_max.is_some(), Of::Either),
        ("refused_with", promise.refused_with.is_some(), Of::Load),
        ("last_success_max", promise.last_success_max.is_some(), Of::Either),
        ("per_second_min", promise.per_second_min.is_some(), Of::Load),
        ("quota", promise.quota.is_some(), Of::Load),
        ("rto_max", promise.rto_max.is_some(), Of::Region),
        ("rpo_max", promise.rpo_max.is_some(), Of::Region),
        ("lag_max", promise.lag_max.is_some(), Of::Region),
    ];
    all.into_iter().filter(|(_, given, _)| *given).map(|(name, _, of)| (name, of)).collect()
}

impl Check<'_> {
    pub(super) fn promise(&mut self, promise: &PromiseSpec) {
        let name = &promise.name;
        self.times(promise);
        self.of_what(promise, name);
        let durations = [&promise.outage_max, &promise.p99_max, &promise.rto_max, &promise.lag_max];
        for limit in durations.into_iter().chain([&promise.last_success_max]).flatten() {
            self.long(limit);
        }
        if promise.error.is_some() && promise.errors_per_million.is_none() {
            self.fault(name, "error goes with errors_per_million", None);
        }
        match (&promise.last_success_max, &promise.after) {
            (Some(_), Some(step)) => {
                let names = self.drill.step.iter().filter_map(|step| step.name.as_ref());
                let names: Vec<String> = names.map(|name| name.get_ref().clone()).collect();
                self.known("step", step, &names);
            }
            (Some(limit), None) => {
                let hint = "after = the name of a [[step]]".to_owned();
                self.fault(limit, "it is counted from a step's end", Some(hint));
            }
            (None, Some(step)) => self.fault(step, "after goes with last_success_max", None),
            (None, None) => {}
        }
    }

    fn times(&mut self, promise: &PromiseSpec) {
        let from = promise.from.as_ref().map(|at| self.at(at));
        let until = promise.until.as_ref().map(|at| self.at(at));
        if let (Some(from), Some(until), Some(at)) = (from, until, &promise.until)
            && until <= from
        {
            self.fault(at, "it ends before it begins", None);
        }
    }

    fn of_what(&mut self, promise: &PromiseSpec, name: &Text) {
        let limits = limits(promise);
        let [(limit, of)] = limits[..] else {
            let hint = "errors_per_million, errors_only, outage_max, p99_max, refused_with, last_success_max, \
                        per_second_min, quota, rto_max, rpo_max or lag_max";
            return self.fault(name, "a promise has one limit", Some(hint.to_owned()));
        };
        match (&promise.load, &promise.region) {
            (Some(load), None) if of != Of::Region => {
                let loads = self.drill.load.iter().map(|load| load.name.get_ref().clone());
                let loads: Vec<String> = loads.collect();
                self.known("load", load, &loads);
            }
            (None, Some(region)) if of != Of::Load => {
                self.region(region);
                let changed = |at: &Text| {
                    self.drill.changes.iter().any(|c| c.region.get_ref() == at.get_ref())
                };
                if limit == "rpo_max" && !changed(region) {
                    let hint = "give [[changes]] in it".to_owned();
                    self.fault(region, "nothing is changed in that Region", Some(hint));
                }
            }
            _ => {
                let hint = match of {
                    Of::Load => "give load, and no region",
                    Of::Region => "give region, and no load",
                    Of::Either => "give one of them",
                };
                let what = format!("{limit} is of a load or a Region");
                self.fault(name, what, Some(hint.to_owned()));
            }
        }
    }
}
