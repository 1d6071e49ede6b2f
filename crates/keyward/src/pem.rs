//! PEM files (RFC 7468).

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::error::Failure;

/// The text of a block.
pub fn text(label: &str, der: &[u8]) -> zeroize::Zeroizing<String> {
    let digits = zeroize::Zeroizing::new(STANDARD.encode(der));
    let mut text = zeroize::Zeroizing::new(format!("-----BEGIN {label}-----\n"));
    let mut rest = digits.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        text.push_str(line);
        text.push('\n');
        rest = after;
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}

/// The DER of the one certificate in a PEM file.
pub fn certificate(path: &Path) -> Result<Vec<u8>, Failure> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| Failure::new(format!("cannot read {} as PEM: {e}", path.display())))?;
    let wrong = |what: &str| {
        Failure::new(format!("{} {what}", path.display()))
            .next("give the authority's certificate, one, as PEM (-----BEGIN CERTIFICATE-----)")
    };
    let (begin, end) = ("-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----");
    let (_, after) = text.split_once(begin).ok_or_else(|| wrong("holds no certificate"))?;
    let (body, rest) = after.split_once(end).ok_or_else(|| wrong("is cut off"))?;
    if rest.contains(begin) {
        return Err(wrong("holds several certificates"));
    }
    let digits: String = body.split_whitespace().collect();
    STANDARD.decode(digits).map_err(|_| wrong("holds a certificate that is no base64"))
}

/// Writes a block to a new file.
pub fn write(path: &Path, label: &str, der: &[u8], mode: u32) -> Result<(), Failure> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(mode);
    let written = options.open(path).and_then(|mut file| {
        file.write_all(text(label, der).as_bytes())?;
        file.sync_all()
    });
    written.map_err(|e| Failure::new(format!("cannot write {}: {e}", path.display())))
}
