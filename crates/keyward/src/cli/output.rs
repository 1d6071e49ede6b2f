//! Tables for people, JSON for programs.

use std::io::Write;

use serde_json::{Map, Value, json};

/// Prints a line. A reader that has gone (`| head`) ends the program quietly.
pub fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    let written = out.write_all(line.as_bytes()).and_then(|()| out.write_all(b"\n"));
    if written.and_then(|()| out.flush()).is_err() {
        std::process::exit(0);
    }
}

/// [`say`], with the arguments of `format!`.
macro_rules! sayln {
    ($($argument:tt)*) => { $crate::cli::output::say(&format!($($argument)*)) };
}
pub(crate) use sayln;

/// How answers are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
}

/// A date as people and programs read it: RFC 3339, UTC.
pub fn date(at: Option<&prost_types::Timestamp>) -> String {
    at.and_then(|at| {
        let seconds = time::OffsetDateTime::from_unix_timestamp(at.seconds).ok()?;
        seconds.format(&time::format_description::well_known::Rfc3339).ok()
    })
    .unwrap_or_default()
}

/// Prints one thing: its fields, in order.
pub fn one(format: Format, fields: &[(&str, Value)]) {
    match format {
        Format::Json => {
            let map: Map<String, Value> =
                fields.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
            print_json(&Value::Object(map));
        }
        Format::Table => {
            let width = fields.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
            for (name, value) in fields {
                sayln!("{name:width$}  {}", cell(value));
            }
        }
    }
}

/// Prints a list: one row each, or a JSON array under `name`.
pub fn list(format: Format, name: &str, columns: &[&str], rows: &[Vec<Value>]) {
    match format {
        Format::Json => {
            let rows: Vec<Value> = rows
                .iter()
                .map(|row| {
                    let pairs = columns.iter().zip(row);
                    let map: Map<String, Value> =
                        pairs.map(|(c, v)| ((*c).to_owned(), v.clone())).collect();
                    Value::Object(map)
                })
                .collect();
            print_json(&json!({ name: rows }));
        }
        Format::Table => table(columns, rows),
    }
}

fn table(columns: &[&str], rows: &[Vec<Value>]) {
    let cells: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(cell).collect()).collect();
    let width = |at: usize| {
        let widest = cells.iter().map(|row| row[at].chars().count()).max().unwrap_or(0);
        widest.max(columns[at].len())
    };
    let widths: Vec<usize> = (0..columns.len()).map(width).collect();
    let line = |row: Vec<&str>| {
        let padded: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        sayln!("{}", padded.join("  ").trim_end());
    };
    line(columns.to_vec());
    for row in &cells {
        line(row.iter().map(String::as_str).collect());
    }
    if cells.is_empty() {
        sayln!("(none)");
    }
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(cell).collect::<Vec<_>>().join(", "),
        Value::Object(map) => {
            map.iter().map(|(k, v)| format!("{k}={}", cell(v))).collect::<Vec<_>>().join(", ")
        }
        other => other.to_string(),
    }
}

fn print_json(value: &Value) {
    sayln!("{}", serde_json::to_string_pretty(value).unwrap_or_default());
}

/// Says that something was done.
pub fn done(format: Format, what: &str) {
    match format {
        Format::Json => sayln!("{{}}"),
        Format::Table => sayln!("{what}"),
    }
}
