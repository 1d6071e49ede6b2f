//! Writing a snapshot.

use std::io::{self, Write};

use keyward_hsm::FileSealer;
use keyward_state::Table;
use ring::digest::{Context, SHA256};

use crate::error::SnapshotError;
use crate::header::Header;
use crate::rows::{END, ROW, TABLE};
use crate::signature::{digest_of, signed_message};
use crate::{CHUNK_BYTES, FORMAT, HEADER_BYTES_MAX, LAST, MAGIC};

/// Signs a message ([`signed_message`]): ECDSA P-256 with SHA-256, ASN.1 DER.
pub type Sign<'a> = &'a dyn Fn(&[u8]) -> io::Result<Vec<u8>>;

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Bytes of the file.
    pub bytes: u64,
    /// Rows in it.
    pub rows: u64,
}

/// Writes one snapshot: [`Writer::begin`], then tables and rows, then [`Writer::finish`].
pub struct Writer<W> {
    out: W,
    hash: Context,
    sealer: FileSealer,
    /// SHA-256 of the header: every chunk's AAD.
    header: [u8; 32],
    /// Rows that are not sealed yet.
    chunk: Vec<u8>,
    written: Written,
}

impl<W: Write> Writer<W> {
    /// Writes the header.
    ///
    /// # Errors
    /// What the other end refused with; a header that is too long.
    pub fn begin(out: W, header: &Header, sealer: FileSealer) -> Result<Self, SnapshotError> {
        let json =
            serde_json::to_vec(header).map_err(|e| SnapshotError::Header { why: e.to_string() })?;
        let length = u32::try_from(json.len()).ok().filter(|_| json.len() <= HEADER_BYTES_MAX);
        let length = length.ok_or_else(|| SnapshotError::Header {
            why: format!("it has {} bytes, and {HEADER_BYTES_MAX} are the most", json.len()),
        })?;
        let start = [MAGIC, &[FORMAT][..], &length.to_be_bytes(), &json].concat();
        let mut first = Context::new(&SHA256);
        first.update(&start);
        let mut writer = Self {
            out,
            hash: Context::new(&SHA256),
            sealer,
            header: digest_of(first),
            chunk: Vec::with_capacity(CHUNK_BYTES + 16),
            written: Written { bytes: 0, rows: 0 },
        };
        writer.put(&start)?;
        let header = writer.header;
        writer.put(&header)?;
        Ok(writer)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), SnapshotError> {
        self.out.write_all(bytes)?;
        self.hash.update(bytes);
        self.written.bytes += bytes.len() as u64;
        Ok(())
    }

    fn seal(&mut self, last: bool) -> Result<(), SnapshotError> {
        let mut chunk = std::mem::take(&mut self.chunk);
        self.sealer.seal(last, &self.header, &mut chunk)?;
        // A chunk is no longer than CHUNK_BYTES and a tag.
        let length = chunk.len() as u32 | if last { LAST } else { 0 };
        self.put(&length.to_be_bytes())?;
        self.put(&chunk)?;
        chunk.clear();
        self.chunk = chunk;
        Ok(())
    }

    fn add(&mut self, mut bytes: &[u8]) -> Result<(), SnapshotError> {
        while !bytes.is_empty() {
            if self.chunk.len() == CHUNK_BYTES {
                self.seal(false)?;
            }
            let (now, later) = bytes.split_at(bytes.len().min(CHUNK_BYTES - self.chunk.len()));
            self.chunk.extend_from_slice(now);
            bytes = later;
        }
        Ok(())
    }

    /// The rows that follow are of this table.
    ///
    /// # Errors
    /// What the other end refused with.
    pub fn table(&mut self, table: Table) -> Result<(), SnapshotError> {
        let name = table.name().as_bytes();
        // Names are short words.
        self.add(&[TABLE, name.len() as u8])?;
        self.add(name)
    }

    /// Adds a row.
    ///
    /// # Errors
    /// What the other end refused with.
    pub fn row(&mut self, key: &[u8], value: &[u8]) -> Result<(), SnapshotError> {
        let too_long = |_| SnapshotError::Rows("a row is too long".into());
        let key_bytes = u32::try_from(key.len()).map_err(too_long)?;
        let value_bytes = u32::try_from(value.len()).map_err(too_long)?;
        self.add(&[ROW])?;
        self.add(&key_bytes.to_be_bytes())?;
        self.add(&value_bytes.to_be_bytes())?;
        self.add(key)?;
        self.add(value)?;
        self.written.rows += 1;
        Ok(())
    }

    /// Seals the last chunk, and signs with the key of `certificate` (X.509, DER), which the Region's authority issued for
    /// this file.
    ///
    /// # Errors
    /// What the other end, or the signer, refused with.
    pub fn finish(
        mut self,
        certificate: &[u8],
        sign: Sign<'_>,
    ) -> Result<(W, Written), SnapshotError> {
        let rows = self.written.rows;
        self.add(&[END])?;
        self.add(&rows.to_be_bytes())?;
        self.seal(true)?;
        self.part(certificate)?;
        let signature = sign(&signed_message(&digest_of(self.hash.clone())))?;
        self.part(&signature)?;
        self.out.flush()?;
        Ok((self.out, self.written))
    }

    fn part(&mut self, bytes: &[u8]) -> Result<(), SnapshotError> {
        // As long as certificates and signatures are.
        let length = bytes.len() as u32;
        self.put(&length.to_be_bytes())?;
        self.put(bytes)
    }
}
