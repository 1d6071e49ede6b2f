//! What is wrong with a drill's file: where it is, and what would do.

use std::fmt;
use std::ops::Range;

/// One thing that is wrong.
#[derive(Debug)]
pub struct Fault {
    pub at: Range<usize>,
    pub what: String,
    /// What would do.
    pub hint: Option<String>,
}

/// All that is wrong with a drill's file.
#[derive(Debug)]
pub struct Faults {
    pub file: String,
    pub text: String,
    pub faults: Vec<Fault>,
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, fault) in self.faults.iter().enumerate() {
            let before = &self.text[..fault.at.start.min(self.text.len())];
            let line = before.matches('\n').count() + 1;
            let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
            let shown = self.text.lines().nth(line - 1).unwrap_or("");
            if number > 0 {
                writeln!(f)?;
            }
            write!(f, "{}:{line}:{column}: {}\n    {shown}", self.file, fault.what)?;
            if let Some(hint) = &fault.hint {
                write!(f, "\n    {hint}")?;
            }
        }
        Ok(())
    }
}

/// The name that is likely meant.
pub fn nearest(name: &str, all: &[String]) -> Option<String> {
    let near = all.iter().map(|known| (distance(name, known), known)).min()?;
    (near.0 <= 2.max(name.len() / 3)).then(|| near.1.clone())
}

/// Changes of single characters from one text to the other (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut corner = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let changed = corner + usize::from(x != *y);
            corner = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(corner + 1);
        }
    }
    row[b.len()]
}
