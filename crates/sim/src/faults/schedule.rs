//! What went wrong in a run, and what is to be left out of it: so that a failure can be shrunk to what it needs.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use parking_lot::Mutex;

/// What can be left out of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FaultKind {
    /// Disks of audit trails that break.
    Audit,
    /// Wall clocks set wrong.
    Clocks,
    /// Disks that are full or fail to sync.
    Disks,
    /// Hand-overs that go wrong at the worst moment.
    HandOvers,
    /// Disks that lie, and nodes that are replaced.
    Lies,
    /// Members that come and go, and what goes wrong at the worst moment of that.
    Members,
    /// Roots that are away or changed.
    Roots,
    /// Streams of calls that break, and that are closed.
    Streams,
    /// Weather: messages lost, doubled and late.
    Weather,
    /// One of the things that go wrong one by one.
    Numbered(u32),
}

/// Those that have a name.
const NAMED: [(&str, FaultKind); 9] = [
    ("audit", FaultKind::Audit),
    ("clocks", FaultKind::Clocks),
    ("disks", FaultKind::Disks),
    ("hand-overs", FaultKind::HandOvers),
    ("lies", FaultKind::Lies),
    ("members", FaultKind::Members),
    ("roots", FaultKind::Roots),
    ("streams", FaultKind::Streams),
    ("weather", FaultKind::Weather),
];

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match NAMED.iter().find(|(_, kind)| kind == self) {
            Some((name, _)) => f.write_str(name),
            None => match self {
                Self::Numbered(number) => number.fmt(f),
                _ => Ok(()),
            },
        }
    }
}

/// A set of them, as `clocks,weather,3,7`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spared(pub BTreeSet<FaultKind>);

impl FromStr for Spared {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let one = |part: &str| match NAMED.iter().find(|(name, _)| *name == part) {
            Some((_, kind)) => Ok(*kind),
            None => part.parse().map(FaultKind::Numbered).map_err(|_| {
                let names = NAMED.map(|(name, _)| name).join(", ");
                format!("'{part}' is no fault: expected {names}, or the number of one")
            }),
        };
        text.split(',').map(one).collect::<Result<_, _>>().map(Self)
    }
}

impl fmt::Display for Spared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, kind) in self.0.iter().enumerate() {
            write!(f, "{}{kind}", if place > 0 { "," } else { "" })?;
        }
        Ok(())
    }
}

/// Something that went wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// When, in world time.
    pub at: Duration,
    /// What leaves it out.
    pub kind: FaultKind,
    /// What happened.
    pub what: String,
}

/// A run's faults.
#[derive(Debug, Default)]
pub struct Schedule {
    spared: Spared,
    told: Mutex<Vec<Fault>>,
}

impl Schedule {
    /// One that leaves these out.
    #[must_use]
    pub fn without(spared: Spared) -> Self {
        Self { spared, told: Mutex::default() }
    }

    /// Whether that is left out.
    #[must_use]
    pub fn is_spared(&self, kind: FaultKind) -> bool {
        self.spared.0.contains(&kind)
    }

    /// Takes note.
    pub fn tell(&self, fault: Fault) {
        self.told.lock().push(fault);
    }

    /// All that went wrong.
    #[must_use]
    pub fn take(&self) -> Vec<Fault> {
        std::mem::take(&mut self.told.lock())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_of_faults_are_read_as_they_are_written() {
        let text = "audit,clocks,disks,hand-overs,lies,members,roots,streams,weather,3,17";
        let spared: Spared = text.parse().unwrap();
        assert_eq!(spared.to_string(), text);
        let wrong = "clocks,moon".parse::<Spared>().unwrap_err();
        assert!(wrong.contains("'moon'") && wrong.contains("weather"), "{wrong}");
        assert!("".parse::<Spared>().is_err() && "-1".parse::<Spared>().is_err());
    }
}
