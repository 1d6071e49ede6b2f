//! The file that a Region is backed up in, read and written as a stream.
//!
//! | what | bytes |
//! |---|---|
//! | `KEYWARD SNAPSHOT` | 16 |
//! | version of this format, 1 | 1 |
//! | length of the header, big-endian | 4 |
//! | the header, JSON ([`Header`]) | so many |
//! | SHA-256 of all before it | 32 |
//! | chunks: length with the tag, big-endian, its highest bit set in the last one; sealed bytes; GCM tag | 4 + n + 16 each |
//! | length of the certificate; the certificate, X.509 DER | 4 + n |
//! | length of the signature; the signature, ECDSA P-256 with SHA-256, ASN.1 DER | 4 + n |
//!
//! Chunks hold 64 KiB of rows each, the last one what is left, and are sealed by [`keyward_hsm::FileSealer`] with the
//! header's SHA-256 as AAD: under a key of this file alone, which is in the header, sealed as every token of the Region
//! is. So whoever has one of the Region's roots opens it, and nobody else. The signature is over a label and the SHA-256
//! of all before it ([`signed_message`]); the certificate is issued for this one file by the Region's
//! authority, so that anybody who has the authority's certificate can tell who made the file, without any root.
//!
//! Where to start: [`Writer`], [`Reader`].
//!
//! **Invariants:** no clock, no network. Nothing of a file is believed before its chunk has opened: lengths that a file
//! claims are bounded before memory is taken for them. Key material is in it as it is in the state: sealed.

mod error;
mod header;
mod reader;
mod rows;
mod signature;
#[cfg(test)]
mod tests;
mod writer;

pub use error::SnapshotError;
pub use header::{AuditEnd, Header, RootOf, SealedFor};
pub use reader::{Reader, Unread};
pub use rows::{Go, VisitRows, left_out, order};
pub use signature::{SNAPSHOT_URN, Trailer, signed_message};
pub use writer::{Sign, Writer, Written};

/// Begins every file.
pub(crate) const MAGIC: &[u8; 16] = b"KEYWARD SNAPSHOT";
/// The version of the format that this build writes.
pub const FORMAT: u8 = 1;
/// Bytes of rows in a chunk.
pub const CHUNK_BYTES: usize = 64 * 1024;
/// Set in the length of the last chunk.
pub(crate) const LAST: u32 = 1 << 31;
/// The longest header: a root's sealed copy is a few hundred bytes, and a Region has a few dozen roots at most.
pub const HEADER_BYTES_MAX: usize = 1024 * 1024;
/// The longest certificate, and signature.
pub(crate) const TRAILER_PART_BYTES_MAX: usize = 8 * 1024;
/// The longest key and value of a row: a value is a key with its tags, a list of sealed copies, or a certificate.
pub(crate) const ROW_PART_BYTES_MAX: usize = 16 * 1024 * 1024;
