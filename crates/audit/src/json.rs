//! JSON straight into a byte buffer: what a record needs, and no more. Nothing here allocates once the
//! buffer has grown to the size of a record.

use std::collections::BTreeMap;

use keyward_model::Timestamp;
use serde::Serialize;

/// A value of a request parameter, of a response element, or of additional data. The list is closed, and
/// none of its types holds a secret: a plaintext, a ciphertext or key material has no way into a record.
#[derive(Clone, Copy, Debug)]
pub enum Value<'a> {
    /// Not given: the member is left out.
    Absent,
    /// A text.
    Str(&'a str),
    /// A whole number.
    Int(i64),
    /// Yes or no.
    Bool(bool),
    /// An encryption context.
    Map(&'a BTreeMap<String, String>),
    /// A list of texts, such as the tag keys of UntagResource.
    StrList(&'a [String]),
    /// Tags: key and value. Written as CloudTrail does: `[{"tagKey":...,"tagValue":...}]`.
    Tags(&'a [(&'a str, &'a str)]),
    /// A date, in CloudTrail's words for those in parameters: `Apr 12, 2021, 6:58:30 PM`, in UTC.
    Date(Timestamp),
}

/// A member of an object: its name, in lower camel case as CloudTrail writes it, and its value.
pub type Pair<'a> = (&'static str, Value<'a>);

impl<'a> From<&'a str> for Value<'a> {
    fn from(text: &'a str) -> Self {
        Self::Str(text)
    }
}

impl<'a> From<Option<&'a str>> for Value<'a> {
    fn from(text: Option<&'a str>) -> Self {
        text.map_or(Self::Absent, Self::Str)
    }
}

impl From<Option<i32>> for Value<'_> {
    fn from(number: Option<i32>) -> Self {
        number.map_or(Self::Absent, |number| Self::Int(number.into()))
    }
}

/// An encryption context; an empty one is left out, as CloudTrail does.
impl<'a> From<&'a BTreeMap<String, String>> for Value<'a> {
    fn from(map: &'a BTreeMap<String, String>) -> Self {
        if map.is_empty() { Self::Absent } else { Self::Map(map) }
    }
}

fn serialize(out: &mut Vec<u8>, value: &(impl Serialize + ?Sized)) {
    // Texts and numbers always have a JSON form, and a vector takes every write.
    serde_json::to_writer(out, value).expect("a text or a number was written to a vector");
}

/// A text in quotes. Whatever it holds, no line break and no NUL comes out. Most texts need no escape, and looking
/// once whether one does is half as much work as serialising it.
pub(crate) fn text(out: &mut Vec<u8>, text: &str) {
    let escaped = |byte: &u8| *byte < b' ' || *byte == b'"' || *byte == b'\\';
    if text.as_bytes().iter().fold(false, |any, byte| any | escaped(byte)) {
        return serialize(out, text);
    }
    out.reserve(text.len() + 2);
    out.push(b'"');
    out.extend_from_slice(text.as_bytes());
    out.push(b'"');
}

/// `,"name":`, for a name that needs no escape.
pub(crate) fn name(out: &mut Vec<u8>, name: &str) {
    out.extend_from_slice(b",\"");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\":");
}

/// `,"name":"text"`.
pub(crate) fn member(out: &mut Vec<u8>, key: &str, value: &str) {
    name(out, key);
    text(out, value);
}

/// A whole number.
pub(crate) fn int(out: &mut Vec<u8>, number: i64) {
    if number < 0 {
        out.push(b'-');
    }
    uint(out, number.unsigned_abs());
}

/// A whole number.
pub(crate) fn uint(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(Digits::new(number).bytes());
}

/// A whole number's decimal digits.
pub(crate) struct Digits {
    digits: [u8; 20],
    first: usize,
}

impl Digits {
    pub(crate) fn new(number: u64) -> Self {
        let (mut digits, mut first, mut rest) = ([0; 20], 20, number);
        loop {
            first -= 1;
            digits[first] = b"0123456789"[(rest % 10) as usize];
            rest /= 10;
            if rest == 0 {
                return Self { digits, first };
            }
        }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.digits[self.first..]
    }
}

/// `true` or `false`.
pub(crate) fn bool(out: &mut Vec<u8>, value: bool) {
    out.extend_from_slice(if value { b"true" } else { b"false" });
}

fn list<T>(out: &mut Vec<u8>, items: &[T], mut item: impl FnMut(&mut Vec<u8>, &T)) {
    out.push(b'[');
    for (index, one) in items.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        item(out, one);
    }
    out.push(b']');
}

fn value(out: &mut Vec<u8>, value: &Value<'_>) {
    match *value {
        Value::Absent => out.extend_from_slice(b"null"),
        Value::Str(one) => text(out, one),
        Value::Int(number) => int(out, number),
        Value::Bool(yes) => bool(out, yes),
        Value::Map(map) => serialize(out, map),
        Value::StrList(texts) => list(out, texts, |out, one| text(out, one)),
        Value::Tags(tags) => list(out, tags, |out, (key, value)| {
            out.extend_from_slice(b"{\"tagKey\":");
            text(out, key);
            member(out, "tagValue", value);
            out.push(b'}');
        }),
        Value::Date(time) => date_in_words(out, time),
    }
}

/// `,"name":value` for each pair that has a value.
pub(crate) fn members(out: &mut Vec<u8>, pairs: &[Pair<'_>]) {
    for (key, one) in pairs {
        if !matches!(one, Value::Absent) {
            name(out, key);
            value(out, one);
        }
    }
}

/// `{...}` of the pairs that have a value.
pub(crate) fn object(out: &mut Vec<u8>, pairs: &[Pair<'_>]) {
    let start = out.len();
    members(out, pairs);
    if out.len() == start {
        out.push(b'{');
    } else {
        // The comma before the first member gives its place to the brace.
        out[start] = b'{';
    }
    out.push(b'}');
}

const HEX: &[u8; 16] = b"0123456789abcdef";

/// Lower-case hexadecimal digits.
pub(crate) fn hex(out: &mut Vec<u8>, bytes: &[u8]) {
    for byte in bytes {
        out.extend_from_slice(&[HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
    }
}

/// A number as eight lower-case hexadecimal digits.
pub(crate) fn hex_u32(number: u32) -> [u8; 8] {
    std::array::from_fn(|index| HEX[(number >> (28 - 4 * index) & 15) as usize])
}

/// A UUID in quotes.
pub(crate) fn uuid(out: &mut Vec<u8>, bytes: &[u8; 16]) {
    let mut text = *b"\"00000000-0000-0000-0000-000000000000\"";
    // Where each pair of digits begins.
    const AT: [usize; 16] = [1, 3, 5, 7, 10, 12, 15, 17, 20, 22, 25, 27, 29, 31, 33, 35];
    for (at, byte) in AT.into_iter().zip(bytes) {
        text[at] = HEX[usize::from(byte >> 4)];
        text[at + 1] = HEX[usize::from(byte & 15)];
    }
    out.extend_from_slice(&text);
}

/// A point in time taken apart, in UTC.
struct Civil {
    year: i64,
    month: u8,
    day: u8,
    hour: u8,
    minute: u8,
    second: u8,
    millisecond: u16,
}

impl Civil {
    /// Days to year, month and day: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms",
    /// `civil_from_days`.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "all are small")]
    fn new(time: Timestamp) -> Self {
        let (days, left) =
            (time.0.div_euclid(Timestamp::DAY_MS), time.0.rem_euclid(Timestamp::DAY_MS));
        let days = days + 719_468;
        let era = days.div_euclid(146_097);
        let day_of_era = days.rem_euclid(146_097);
        let year_of_era =
            (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let month = (month_from_march + 2) % 12 + 1;
        Self {
            year: year_of_era + era * 400 + i64::from(month <= 2),
            month: month as u8,
            day: (day_of_year - (153 * month_from_march + 2) / 5 + 1) as u8,
            hour: (left / 3_600_000) as u8,
            minute: (left / 60_000 % 60) as u8,
            second: (left / 1000 % 60) as u8,
            millisecond: (left % 1000) as u16,
        }
    }
}

fn two(number: u8) -> [u8; 2] {
    [b'0' + number / 10 % 10, b'0' + number % 10]
}

/// `2021-04-12T18:58:30.123Z`, without quotes (ISO 8601, UTC). The shape is right for the years 0 to
/// 9999; clocks that are further off are shown at the nearest end.
pub(crate) fn iso_8601(out: &mut Vec<u8>, time: Timestamp) {
    const FIRST_MS: i64 = -62_167_219_200_000; // 0000-01-01
    const LAST_MS: i64 = 253_402_300_799_999; // 9999-12-31
    let civil = Civil::new(Timestamp(time.0.clamp(FIRST_MS, LAST_MS)));
    let year = u16::try_from(civil.year).unwrap_or(0);
    let small = |number: u16| u8::try_from(number).unwrap_or(0);
    let mut text = *b"0000-00-00T00:00:00.000Z";
    for (at, number) in [
        (0, small(year / 100)),
        (2, small(year % 100)),
        (5, civil.month),
        (8, civil.day),
        (11, civil.hour),
        (14, civil.minute),
        (17, civil.second),
        (21, small(civil.millisecond % 100)),
    ] {
        text[at..at + 2].copy_from_slice(&two(number));
    }
    text[20] = b'0' + small(civil.millisecond / 100);
    out.extend_from_slice(&text);
}

/// The same as a text of its own.
pub(crate) fn iso_8601_text(time: Timestamp) -> String {
    let mut out = Vec::new();
    iso_8601(&mut out, time);
    String::from_utf8_lossy(&out).into_owned()
}

/// `"Apr 12, 2021, 6:58:30 PM"`.
fn date_in_words(out: &mut Vec<u8>, time: Timestamp) {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let civil = Civil::new(time);
    out.push(b'"');
    out.extend_from_slice(MONTHS[usize::from(civil.month - 1)].as_bytes());
    out.push(b' ');
    int(out, civil.day.into());
    out.extend_from_slice(b", ");
    int(out, civil.year);
    out.extend_from_slice(b", ");
    int(out, i64::from((civil.hour + 11) % 12 + 1));
    for number in [civil.minute, civil.second] {
        out.push(b':');
        out.extend_from_slice(&two(number));
    }
    out.extend_from_slice(if civil.hour < 12 { b" AM\"" } else { b" PM\"" });
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use time::OffsetDateTime;
    use time::format_description::well_known::Rfc3339;

    use super::*;

    fn written(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).unwrap()
    }

    proptest! {
        #[test]
        fn any_text_reads_back_and_stays_on_its_line(hostile in ".*", control in "[\\x00-\\x1f\"\\\\\u{7f}\u{2028}]*") {
            let hostile = hostile + &control;
            let line = written(|out| text(out, &hostile));
            prop_assert!(!line.bytes().any(|byte| byte < 0x20));
            prop_assert_eq!(serde_json::from_str::<String>(&line).unwrap(), hostile);
        }

        #[test]
        fn times_are_those_of_the_time_crate(ms in -62_167_219_200_000i64..=253_402_300_799_999) {
            let known = OffsetDateTime::from_unix_timestamp_nanos(i128::from(ms) * 1_000_000).unwrap();
            let line = written(|out| iso_8601(out, Timestamp(ms)));
            prop_assert_eq!(line.len(), 24);
            prop_assert_eq!(OffsetDateTime::parse(&line, &Rfc3339).unwrap(), known);
        }
    }

    #[test]
    fn a_wild_clock_still_gives_a_time_of_the_right_shape() {
        for (ms, expected) in
            [(i64::MIN, "0000-01-01T00:00:00.000Z"), (i64::MAX, "9999-12-31T23:59:59.999Z")]
        {
            assert_eq!(written(|out| iso_8601(out, Timestamp(ms))), expected);
        }
    }

    #[test]
    fn dates_in_parameters_are_in_cloudtrails_words() {
        let date = |ms| written(|out| date_in_words(out, Timestamp(ms)));
        assert_eq!(date(1_618_253_910_000), "\"Apr 12, 2021, 6:58:30 PM\"");
        assert_eq!(date(0), "\"Jan 1, 1970, 12:00:00 AM\"");
        assert_eq!(date(12 * 3_600_000), "\"Jan 1, 1970, 12:00:00 PM\"");
    }

    #[test]
    fn numbers_are_those_of_the_standard_library() {
        for number in [0, 1, 9, 10, 99, 100, 1 << 32, u64::MAX] {
            assert_eq!(written(|out| uint(out, number)), number.to_string());
        }
        for number in [i64::MIN, -10, -1, 0, 7, i64::MAX] {
            assert_eq!(written(|out| int(out, number)), number.to_string());
        }
    }

    #[test]
    fn absent_members_are_left_out() {
        let none = [("a", Value::Absent)];
        assert_eq!(written(|out| object(out, &none)), "{}");
        let some = [("a", Value::Absent), ("b", Value::Int(-1)), ("c", Value::Bool(true))];
        assert_eq!(written(|out| object(out, &some)), "{\"b\":-1,\"c\":true}");
    }
}
