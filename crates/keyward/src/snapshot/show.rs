//! `keyward snapshot inspect`, and how a snapshot is shown.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use keyward_env::{Env, RealEnv};
use keyward_snapshot::{AuditEnd, Header, Reader};
use serde_json::{Value, json};

use super::refusal::cannot;
use crate::cli::connect::ConnectArgs;
use crate::cli::output::{Format, date, one};
use crate::error::Failure;

/// A time as people and programs read it.
pub fn moment(ms: i64) -> String {
    let seconds = ms.div_euclid(1000);
    date(Some(&prost_types::Timestamp { seconds, nanos: 0 }))
}

/// The first certificate of a PEM file, DER.
pub fn certificate(path: &Path) -> Result<Vec<u8>, Failure> {
    let pem = std::fs::read(path).map_err(cannot("read", path))?;
    let (_, block) = x509_parser::pem::parse_x509_pem(&pem)
        .map_err(|_| Failure::new(format!("{} is no certificate in PEM", path.display())))?;
    Ok(block.contents)
}

/// The authority that `--ca` names, DER.
pub fn authority(connect: &ConnectArgs) -> Result<Option<Vec<u8>>, Failure> {
    connect.ca.as_deref().map(certificate).transpose()
}

/// How far the nodes' audit trails had come.
pub fn audit_ends(ends: &[AuditEnd]) -> Value {
    let shown = ends.iter().map(|end| match end.next_sequence {
        Some(next) => format!("node {}: before record {next}", end.node),
        None => format!("node {}: did not answer", end.node),
    });
    json!(shown.collect::<Vec<_>>())
}

/// What a header says.
pub fn fields(header: &Header) -> Vec<(&'static str, Value)> {
    let opens = header.sealed_for.iter().map(|copy| {
        let owner = header.roots.iter().find(|root| root.root == copy.root);
        owner.map_or_else(
            || copy.root.to_string(),
            |owner| format!("{} (node {})", copy.root, owner.node),
        )
    });
    vec![
        ("Region", json!(header.region)),
        ("RegionId", json!(header.region_id)),
        ("History", json!(header.history)),
        ("Applied", json!(header.applied)),
        ("RegionTime", json!(moment(header.region_time_ms))),
        ("Taken", json!(moment(header.taken_ms))),
        ("TakenBy", json!(header.node)),
        ("Version", json!(header.version)),
        ("Format", json!(keyward_snapshot::FORMAT)),
        ("Schema", json!(header.schema)),
        ("Keys", json!(header.keys)),
        ("KeysGone", json!(header.gone)),
        ("AuditEnds", audit_ends(&header.audit)),
        ("OpensWith", json!(opens.collect::<Vec<_>>())),
    ]
}

/// Says what a snapshot is. Opens nothing.
pub async fn inspect(connect: &ConnectArgs, format: Format, file: PathBuf) -> Result<(), Failure> {
    let authority = authority(connect)?;
    let look = move || -> Result<(Header, Option<bool>), Failure> {
        let source: Box<dyn Read> = if file == Path::new("-") {
            Box::new(std::io::stdin())
        } else {
            Box::new(File::open(&file).map_err(cannot("read", &file))?)
        };
        let reader = Reader::open(BufReader::with_capacity(256 * 1024, source))
            .map_err(Failure::from_error)?;
        let header = reader.header().clone();
        let Some(authority) = authority else { return Ok((header, None)) };
        let trailer = reader.skip().map_err(Failure::from_error)?;
        trailer.check(&authority).map_err(Failure::from_error)?;
        Ok((header, Some(true)))
    };
    let (header, signed) = RealEnv.blocking(look).await?;
    let mut shown = fields(&header);
    shown.push((
        "Signed",
        match signed {
            Some(_) => json!("by this Region's authority"),
            None => json!("not looked at: give --ca"),
        },
    ));
    one(format, &shown);
    Ok(())
}
