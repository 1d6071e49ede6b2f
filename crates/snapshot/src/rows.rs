//! What is in the chunks: tables, rows, and how many there were.
//!
//! | record | bytes |
//! |---|---|
//! | 1: a table begins | length of its name (1), the name |
//! | 2: a row | length of the key (4, big-endian), length of the value (4), key, value |
//! | 3: the end | how many rows there were (8, big-endian) |

use keyward_state::Table;

use crate::ROW_PART_BYTES_MAX;
use crate::error::SnapshotError;

pub(crate) const TABLE: u8 = 1;
pub(crate) const ROW: u8 = 2;
pub(crate) const END: u8 = 3;

/// Whether reading goes on after a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Go {
    /// It does.
    On,
    /// Nothing more is wanted.
    NoFurther,
}

/// Visits rows as they are opened: table, key, value.
pub type VisitRows<'a, E> = &'a mut dyn FnMut(Table, &[u8], &[u8]) -> Result<Go, E>;

/// Tables that no snapshot holds: outcomes answer those who try again within minutes.
#[must_use]
pub fn left_out(table: Table) -> bool {
    table == Table::Outcomes
}

/// The tables in the order in which a snapshot holds them: what says who opens what comes first, keys and their tokens
/// last, so that each token can be tried as it is read.
#[must_use]
pub fn order() -> Vec<Table> {
    let late = [Table::Keys, Table::Tokens];
    let early = Table::STATE.into_iter().filter(|table| !left_out(*table) && !late.contains(table));
    early.chain(late).collect()
}

/// Takes records out of what has been opened so far.
#[derive(Default)]
pub(crate) struct Records {
    opened: Vec<u8>,
    /// What of it has been taken.
    taken: usize,
    table: Option<Table>,
    rows: u64,
    ended: bool,
}

impl Records {
    /// Takes in the bytes of one more chunk.
    pub(crate) fn feed(&mut self, chunk: &[u8]) {
        self.opened.drain(..self.taken);
        self.taken = 0;
        self.opened.extend_from_slice(chunk);
    }

    fn left(&self) -> &[u8] {
        &self.opened[self.taken..]
    }

    fn number(bytes: &[u8]) -> usize {
        bytes.iter().fold(0, |sum, byte| (sum << 8) | usize::from(*byte))
    }

    /// Hands out whole rows, as far as they have come.
    pub(crate) fn visit<E: From<SnapshotError>>(
        &mut self,
        visit: VisitRows<'_, E>,
    ) -> Result<Go, E> {
        loop {
            let left = self.left();
            let Some(kind) = left.first().copied() else { return Ok(Go::On) };
            if self.ended {
                return Err(SnapshotError::Rows("there is more behind their end".into()).into());
            }
            match kind {
                TABLE => {
                    let Some(length) = left.get(1).map(|length| usize::from(*length)) else {
                        return Ok(Go::On);
                    };
                    let Some(name) = left.get(2..2 + length) else { return Ok(Go::On) };
                    self.table = Some(named(name)?);
                    self.taken += 2 + length;
                }
                ROW => {
                    let Some(lengths) = left.get(1..9) else { return Ok(Go::On) };
                    let key = Self::number(&lengths[..4]);
                    let value = Self::number(&lengths[4..]);
                    if key > ROW_PART_BYTES_MAX || value > ROW_PART_BYTES_MAX {
                        return Err(SnapshotError::Rows("a row is too long".into()).into());
                    }
                    let Some(row) = left.get(9..9 + key + value) else { return Ok(Go::On) };
                    let table = self.table.ok_or_else(|| {
                        SnapshotError::Rows("a row comes before its table".into())
                    })?;
                    let (key, value) = row.split_at(key);
                    let go = visit(table, key, value)?;
                    self.taken += 9 + row.len();
                    self.rows += 1;
                    if go == Go::NoFurther {
                        return Ok(go);
                    }
                }
                END => {
                    let Some(count) = left.get(1..9) else { return Ok(Go::On) };
                    let told = Self::number(count) as u64;
                    if told != self.rows {
                        let rows = self.rows;
                        let what = format!("{rows} rows are there, and it says {told}");
                        return Err(SnapshotError::Rows(what).into());
                    }
                    self.ended = true;
                    self.taken += 9;
                }
                other => {
                    return Err(SnapshotError::Rows(format!("a record of kind {other}")).into());
                }
            }
        }
    }

    /// The last chunk has been there: all must have been handed out.
    pub(crate) fn end(&self) -> Result<u64, SnapshotError> {
        if self.ended && self.left().is_empty() {
            return Ok(self.rows);
        }
        Err(SnapshotError::Rows("they have no end".into()))
    }
}

fn named(name: &[u8]) -> Result<Table, SnapshotError> {
    let known = Table::STATE.into_iter().find(|table| table.name().as_bytes() == name);
    known.filter(|table| !left_out(*table)).ok_or_else(|| {
        let name = String::from_utf8_lossy(name);
        SnapshotError::Rows(format!(
            "there is a table '{name}', which this build does not know: use the keyward that wrote it, or a later one"
        ))
    })
}
