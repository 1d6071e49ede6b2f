//! Reading a snapshot.

use std::io::{self, Read};

use keyward_hsm::{FileOpener, HsmError};
use ring::digest::{Context, SHA256};

use crate::error::SnapshotError;
use crate::header::Header;
use crate::rows::{Go, Records, VisitRows};
use crate::signature::{Trailer, digest_of};
use crate::{CHUNK_BYTES, FORMAT, HEADER_BYTES_MAX, LAST, MAGIC, TRAILER_PART_BYTES_MAX};

const TAG_BYTES: usize = 16;

/// A snapshot whose header has been read, and nothing more.
pub struct Reader<R> {
    source: Source<R>,
    header: Header,
    digest: [u8; 32],
}

/// What came of reading rows.
#[derive(Debug)]
pub enum Unread {
    /// All was read, and this is the end.
    Nothing(Trailer),
    /// Whoever reads wanted no more.
    Rest,
}

/// Bytes, counted and hashed as they come.
struct Source<R> {
    inner: R,
    hash: Context,
    bytes: u64,
}

impl<R: Read> Source<R> {
    fn fill(&mut self, buffer: &mut [u8], within: &'static str) -> Result<(), SnapshotError> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.inner.read(&mut buffer[filled..]) {
                Ok(0) => {
                    let bytes = self.bytes + filled as u64;
                    return Err(SnapshotError::Truncated { bytes, within });
                }
                Ok(more) => filled += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.hash.update(buffer);
        self.bytes += buffer.len() as u64;
        Ok(())
    }

    fn length(&mut self, within: &'static str) -> Result<u32, SnapshotError> {
        let mut bytes = [0; 4];
        self.fill(&mut bytes, within)?;
        Ok(u32::from_be_bytes(bytes))
    }
}

/// A chunk as it stands in the file.
struct Chunk {
    number: u64,
    at: u64,
    last: bool,
}

impl<R: Read> Reader<R> {
    /// Reads the header.
    ///
    /// # Errors
    /// [`SnapshotError::NotASnapshot`], `NewerFormat`, `NewerSchema`, `Header`, `Truncated`.
    pub fn open(source: R) -> Result<Self, SnapshotError> {
        let mut source = Source { inner: source, hash: Context::new(&SHA256), bytes: 0 };
        let mut magic = [0; MAGIC.len()];
        source.fill(&mut magic, "its first bytes").map_err(|error| match error {
            SnapshotError::Truncated { .. } => SnapshotError::NotASnapshot,
            other => other,
        })?;
        if magic != *MAGIC {
            return Err(SnapshotError::NotASnapshot);
        }
        let within = "its header";
        let mut format = [0];
        source.fill(&mut format, within)?;
        if format[0] != FORMAT {
            return Err(SnapshotError::NewerFormat { found: format[0] });
        }
        let length = source.length(within)? as usize;
        if length > HEADER_BYTES_MAX {
            return Err(SnapshotError::Header { why: "it says that it is longer than any".into() });
        }
        let mut json = vec![0; length];
        source.fill(&mut json, within)?;
        let digest = digest_of(source.hash.clone());
        let mut told = [0; 32];
        source.fill(&mut told, within)?;
        if told != digest {
            return Err(SnapshotError::Header { why: "its digest does not fit".into() });
        }
        let header = Header::parse(&json)?;
        Ok(Self { source, header, digest })
    }

    /// What it says of itself. Nobody vouches for that yet.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Opens chunk after chunk, and hands out the rows in them, until the end or as long as they are wanted. Each is what
    /// was written; that there are no others is known at the end.
    ///
    /// # Errors
    /// [`SnapshotError::Chunk`], `Truncated`, `Rows`, `Trailer`, and what `visit` refuses with.
    pub fn rows<E: From<SnapshotError>>(
        mut self,
        mut opener: FileOpener,
        visit: VisitRows<'_, E>,
    ) -> Result<Unread, E> {
        let mut records = Records::default();
        let mut bytes = Vec::new();
        let mut number = 0;
        loop {
            let chunk = self.chunk(number, &mut bytes)?;
            opener.open(chunk.last, &self.digest, &mut bytes).map_err(|error| match error {
                HsmError::ChunkDoesNotOpen => {
                    SnapshotError::Chunk { number: chunk.number, at: chunk.at }
                }
                other => SnapshotError::Hsm(other),
            })?;
            records.feed(&bytes);
            if records.visit(visit)? == Go::NoFurther {
                return Ok(Unread::Rest);
            }
            if chunk.last {
                records.end()?;
                return Ok(Unread::Nothing(self.trailer()?));
            }
            number += 1;
        }
    }

    /// Reads to the end without opening anything: for whoever has no root, to look at the signature.
    ///
    /// # Errors
    /// [`SnapshotError::Chunk`], `Truncated`, `Trailer`.
    pub fn skip(mut self) -> Result<Trailer, SnapshotError> {
        let mut bytes = Vec::new();
        let mut number = 0;
        while !self.chunk(number, &mut bytes)?.last {
            number += 1;
        }
        self.trailer()
    }

    fn chunk(&mut self, number: u64, bytes: &mut Vec<u8>) -> Result<Chunk, SnapshotError> {
        let at = self.source.bytes;
        let told = self.source.length("its chunks")?;
        let last = told & LAST != 0;
        let length = (told & !LAST) as usize;
        let whole = CHUNK_BYTES + TAG_BYTES;
        let fits = if last { (TAG_BYTES..=whole).contains(&length) } else { length == whole };
        if !fits {
            return Err(SnapshotError::Chunk { number, at });
        }
        bytes.clear();
        bytes.resize(length, 0);
        self.source.fill(bytes, "its chunks")?;
        Ok(Chunk { number, at, last })
    }

    fn trailer(mut self) -> Result<Trailer, SnapshotError> {
        let at = self.source.bytes;
        let certificate = self.part(at)?;
        let digest = digest_of(self.source.hash.clone());
        let signature = self.part(at)?;
        if self.source.inner.read(&mut [0])? != 0 {
            return Err(SnapshotError::Trailer { at, why: "something follows the signature" });
        }
        let Header { region, region_id, .. } = self.header;
        Ok(Trailer { digest, certificate, signature, region, region_id })
    }

    fn part(&mut self, at: u64) -> Result<Vec<u8>, SnapshotError> {
        let length = self.source.length("its signature")? as usize;
        if length > TRAILER_PART_BYTES_MAX {
            return Err(SnapshotError::Trailer { at, why: "it says that it is longer than any" });
        }
        let mut bytes = vec![0; length];
        self.source.fill(&mut bytes, "its signature")?;
        Ok(bytes)
    }
}
