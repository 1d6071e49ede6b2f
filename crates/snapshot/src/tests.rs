//! The file, and everything that can happen to it.

use std::sync::Arc;

use keyward_env::OsEntropy;
use keyward_hsm::{ARENA_BYTES_MIN, ArenaConfig, Hsm, HsmConfig, MemoryRoot, SealedDomainKey};
use keyward_state::Table;
use keyward_state::codec::SCHEMA;
use rcgen::string::Ia5String;
use rcgen::{CertificateParams, Issuer, KeyPair, SanType, SigningKey};

use super::*;

fn hsm(seed: &[u8]) -> Arc<Hsm> {
    let entropy = Arc::new(OsEntropy);
    let root = MemoryRoot::new(seed, entropy.clone(), true).expect("a root");
    let arena = ArenaConfig { bytes: ARENA_BYTES_MIN, grows: false, allow_unlocked: true };
    let config = HsmConfig { cache_max_entries: 64, arena };
    Hsm::new(Arc::new(root), entropy, &config).expect("an HSM")
}

/// An authority, and what signs files on its behalf.
struct Authority {
    key: KeyPair,
    certificate: Vec<u8>,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
        let certificate = params.self_signed(&key).expect("signed").der().to_vec();
        Self { key, certificate }
    }

    fn issue(&self, uri: &str) -> (KeyPair, Vec<u8>) {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(Ia5String::try_from(uri).expect("ASCII"))];
        let own = rustls_pki_types::CertificateDer::from(self.certificate.as_slice());
        let issuer = Issuer::from_ca_cert_der(&own, &self.key).expect("an issuer");
        let certificate = params.signed_by(&key, &issuer).expect("signed").der().to_vec();
        (key, certificate)
    }
}

const REGION_ID: [u8; 16] = [7; 16];

fn header(domain_key: &SealedDomainKey, file_key: &keyward_hsm::SealedToken) -> Header {
    let mut header = Header {
        region: "eu-west-1".into(),
        region_id: hex::encode(REGION_ID),
        history: hex::encode(REGION_ID),
        applied: 42,
        region_time_ms: 1_800_000_000_000,
        taken_ms: 1_800_000_000_001,
        node: 2,
        version: "0.1.0".into(),
        schema: SCHEMA,
        keys: 3,
        gone: 0,
        audit: vec![AuditEnd { node: 1, next_sequence: Some(9) }],
        roots: Vec::new(),
        domain_key: String::new(),
        sealed_for: Vec::new(),
        file_key: String::new(),
    };
    header.seal_with(domain_key, file_key);
    header
}

type Row = (Table, Vec<u8>, Vec<u8>);

/// As many as fill several chunks, with one that is longer than a chunk.
fn rows() -> Vec<Row> {
    let small =
        (0..900_u32).map(|at| (Table::Keys, at.to_be_bytes().to_vec(), vec![at as u8; 150]));
    let long = (Table::Tokens, vec![1; 32], vec![9; CHUNK_BYTES + 5000]);
    small.chain([long]).collect()
}

struct Made {
    hsm: Arc<Hsm>,
    authority: Authority,
    file: Vec<u8>,
    /// Where each chunk begins, and the end of the last one.
    edges: Vec<usize>,
}

async fn made_by(hsm: Arc<Hsm>, change: impl Fn(&mut Header)) -> Made {
    let domain_key = hsm.generate_domain_key().await.expect("a domain key");
    let (sealer, file_key) = hsm.generate_file_key(domain_key.id).expect("a file key");
    let mut header = header(&domain_key, &file_key);
    change(&mut header);
    let mut writer = Writer::begin(Vec::new(), &header, sealer).expect("begun");
    let mut table = None;
    for (of, key, value) in rows() {
        if table != Some(of) {
            writer.table(of).expect("written");
            table = Some(of);
        }
        writer.row(&key, &value).expect("written");
    }
    let authority = Authority::new();
    let (key, certificate) =
        authority.issue(&format!("{SNAPSHOT_URN}eu-west-1:{}", hex::encode(REGION_ID)));
    let sign = |message: &[u8]| key.sign(message).map_err(std::io::Error::other);
    let (file, written) = writer.finish(&certificate, &sign).expect("written");
    assert_eq!((written.bytes, written.rows), (file.len() as u64, 901));
    let edges = edges(&file);
    Made { hsm, authority, file, edges }
}

async fn made() -> Made {
    made_by(hsm(b"ours"), |_| ()).await
}

fn edges(file: &[u8]) -> Vec<usize> {
    let number = |at: usize| u32::from_be_bytes(file[at..at + 4].try_into().expect("4 bytes"));
    let mut at = 21 + number(17) as usize + 32;
    let mut edges = vec![at];
    loop {
        let length = number(at);
        at += 4 + (length & !LAST) as usize;
        edges.push(at);
        if length & LAST != 0 {
            return edges;
        }
    }
}

fn read(made: &Made, file: &[u8]) -> Result<Vec<Row>, SnapshotError> {
    let reader = Reader::open(file)?;
    let opener = made.hsm.open_file_key(&reader.header().file_key()?)?;
    let mut rows = Vec::new();
    let read = reader.rows::<SnapshotError>(opener, &mut |table, key, value| {
        rows.push((table, key.to_vec(), value.to_vec()));
        Ok(Go::On)
    })?;
    match read {
        Unread::Nothing(trailer) => trailer.check(&made.authority.certificate)?,
        Unread::Rest => panic!("all was wanted"),
    }
    Ok(rows)
}

#[tokio::test]
async fn what_was_written_is_read_and_vouched_for() {
    let made = made().await;
    assert_eq!(made.edges.len(), 5, "several chunks");
    assert!(read(&made, &made.file).expect("whole") == rows());
    let header = Reader::open(made.file.as_slice()).expect("whole").header().clone();
    assert_eq!((header.applied, header.region().unwrap().as_str()), (42, "eu-west-1"));
    let root = made.hsm.root_id();
    assert!(header.domain_key().unwrap().copy_for(&root).is_some(), "it says who opens it");
    // Without any root it is known who made it.
    let trailer = Reader::open(made.file.as_slice()).expect("whole").skip().expect("whole");
    trailer.check(&made.authority.certificate).expect("its authority's");
    let wrong = trailer.check(&Authority::new().certificate);
    assert!(matches!(wrong, Err(SnapshotError::Signature { .. })));
}

#[tokio::test]
async fn reading_ends_where_no_more_is_wanted() {
    let made = made().await;
    let reader = Reader::open(made.file.as_slice()).expect("whole");
    let opener = made.hsm.open_file_key(&reader.header().file_key().unwrap()).expect("opens");
    let mut count = 0;
    let read = reader.rows::<SnapshotError>(opener, &mut |_, _, _| {
        count += 1;
        Ok(if count == 3 { Go::NoFurther } else { Go::On })
    });
    assert!(matches!(read, Ok(Unread::Rest)) && count == 3);
}

#[tokio::test]
async fn a_file_that_was_cut_off_is_refused_wherever_it_ends() {
    let made = made().await;
    let around = made.edges.iter().flat_map(|edge| [edge - 1, *edge, edge + 1, edge + 4]);
    let ends = (0..60).chain(around).chain([made.file.len() - 1]);
    for end in ends.filter(|end| *end < made.file.len()) {
        let error = read(&made, &made.file[..end]).expect_err("refused");
        let named = matches!(error, SnapshotError::NotASnapshot | SnapshotError::Truncated { .. });
        assert!(named, "cut at {end}: {error}");
    }
    // A last chunk's mark does not make an end of it.
    let mut file = made.file[..made.edges[1]].to_vec();
    file[made.edges[0]] |= 0x80;
    file.extend_from_slice(&made.file[made.edges[4]..]);
    assert!(matches!(read(&made, &file), Err(SnapshotError::Chunk { number: 0, .. })));
    let mut longer = made.file.clone();
    longer.push(0);
    assert!(matches!(read(&made, &longer), Err(SnapshotError::Trailer { .. })));
}

#[tokio::test]
async fn a_flipped_bit_is_found_wherever_it_is() {
    let made = made().await;
    let (body, end) = (made.edges[0], made.edges[4]);
    // All of the header and of the end; in chunks their edges, and some between.
    let around = made.edges[..4].iter().flat_map(|edge| *edge..edge + 24);
    let places =
        (0..body).chain(around).chain((body..end).step_by(9973)).chain(end..made.file.len());
    for at in places {
        for bit in [0, 7] {
            let mut file = made.file.clone();
            file[at] ^= 1 << bit;
            assert!(read(&made, &file).is_err(), "bit {bit} of byte {at}");
        }
    }
}

#[tokio::test]
async fn chunks_that_changed_places_or_came_from_another_file_are_refused() {
    let made = made().await;
    let chunk = |file: &[u8], edges: &[usize], at: usize| file[edges[at]..edges[at + 1]].to_vec();
    let put = |order: &[Vec<u8>]| {
        let head = made.file[..made.edges[0]].to_vec();
        [head, order.concat(), made.file[made.edges[4]..].to_vec()].concat()
    };
    let own: Vec<_> = (0..4).map(|at| chunk(&made.file, &made.edges, at)).collect();
    assert!(read(&made, &put(&own)).is_ok());
    let other = made_by(Arc::clone(&made.hsm), |_| ()).await;
    let foreign = chunk(&other.file, &other.edges, 1);
    for order in [
        vec![own[1].clone(), own[0].clone(), own[2].clone(), own[3].clone()],
        vec![own[0].clone(), own[2].clone(), own[3].clone()],
        vec![own[0].clone(), own[0].clone(), own[1].clone(), own[2].clone(), own[3].clone()],
        vec![own[0].clone(), foreign, own[2].clone(), own[3].clone()],
    ] {
        let error = read(&made, &put(&order)).expect_err("refused");
        assert!(matches!(error, SnapshotError::Chunk { .. }), "{error}");
    }
    // Another file's header does not go with these chunks.
    let spliced = [&other.file[..other.edges[0]], &made.file[made.edges[0]..]].concat();
    assert!(matches!(read(&made, &spliced), Err(SnapshotError::Chunk { number: 0, .. })));
}

#[tokio::test]
async fn without_a_root_that_opens_it_nothing_is_read() {
    let made = made().await;
    let stranger = Made { hsm: hsm(b"a stranger"), ..made };
    let error = read(&stranger, &stranger.file).expect_err("refused");
    assert!(matches!(error, SnapshotError::Hsm(keyward_hsm::HsmError::DomainKeyNotOpen(_))));
    let sealed = Reader::open(stranger.file.as_slice()).unwrap().header().domain_key().unwrap();
    let error = stranger.hsm.open_domain_key(&sealed).await.expect_err("no copy");
    assert!(matches!(error, keyward_hsm::HsmError::NoCopyForRoot { .. }));
    assert_ne!(sealed.copies[0].root, *stranger.hsm.root().identity());
}

#[tokio::test]
async fn what_a_later_version_wrote_is_named_and_not_guessed() {
    let newer = made_by(hsm(b"ours"), |header| header.schema = SCHEMA + 1).await;
    let error = read(&newer, &newer.file).expect_err("refused");
    let SnapshotError::NewerSchema { found, known, by } = error else { panic!("{error}") };
    assert_eq!((found, known, by.as_str()), (SCHEMA + 1, SCHEMA, "0.1.0"));
    let mut made = made().await;
    made.file[16] = FORMAT + 1;
    let error = read(&made, &made.file).expect_err("refused");
    assert!(matches!(error, SnapshotError::NewerFormat { found } if found == FORMAT + 1));
    assert!(matches!(Reader::open(&b"-----BEGIN"[..]), Err(SnapshotError::NotASnapshot)));
}

#[tokio::test]
async fn a_certificate_of_the_authority_for_another_purpose_vouches_for_nothing() {
    let made = made().await;
    let trailer = Reader::open(made.file.as_slice()).unwrap().skip().unwrap();
    for uri in [
        "urn:keyward:node:2",
        "urn:keyward:snapshot:eu-west-1:00",
        "urn:keyward:snapshot:us-east-1:07",
    ] {
        let (key, certificate) = made.authority.issue(uri);
        let signature = key.sign(&signed_message(&trailer.digest)).expect("signed");
        let forged = Trailer { certificate, signature, ..trailer.clone() };
        let error = forged.check(&made.authority.certificate).expect_err("refused");
        assert!(error.to_string().contains("for another purpose"), "{uri}: {error}");
    }
}

#[test]
fn every_table_of_the_state_is_in_a_snapshot_and_tokens_come_last() {
    let order = order();
    assert_eq!(order.len() + 1, Table::STATE.len(), "all but the outcomes");
    assert_eq!(order.last(), Some(&Table::Tokens));
    let at = |table| order.iter().position(|one| *one == table);
    assert!(at(Table::DomainKeys) < at(Table::Keys) && at(Table::Meta) == Some(0));
}
