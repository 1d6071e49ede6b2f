//! Commands as a drill's file has them: words, and names in braces.

/// A command's words; quotes hold some together.
pub fn words(text: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for c in text.chars() {
        match (c, quote) {
            (c, Some(q)) if c == q => quote = None,
            ('"' | '\'', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (c, None) if c.is_whitespace() => words.extend(word.take()),
            (c, _) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

/// Puts what they stand for in the place of names in braces.
///
/// # Errors
/// A name that stands for nothing.
pub fn fill(text: &str, mut by: impl FnMut(&str) -> Option<String>) -> Result<String, String> {
    let (mut filled, mut rest) = (String::new(), text);
    while let Some((before, behind)) = rest.split_once('{') {
        let (name, after) = behind.split_once('}').unwrap_or((behind, ""));
        filled.push_str(before);
        filled.push_str(&by(name).ok_or_else(|| name.to_owned())?);
        rest = after;
    }
    filled.push_str(rest);
    Ok(filled)
}

/// The error of AWS's that a text names first.
pub fn error_named(text: &str) -> Option<&str> {
    let is_name = |word: &&str| word.ends_with("Exception") && word.len() > "Exception".len();
    text.split(|c: char| !c.is_ascii_alphanumeric()).find(is_name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_hold_words_together_and_braces_are_filled() {
        assert_eq!(
            words("key set-description {k} 'two words' ''"),
            ["key", "set-description", "{k}", "two words", ""]
        );
        let filled = fill("a {x} b", |name| (name == "x").then(|| "1".to_owned()));
        assert_eq!(filled, Ok("a 1 b".to_owned()));
        assert_eq!(fill("a {y} b", |_| None), Err("y".to_owned()));
    }

    #[test]
    fn an_error_is_found_by_its_name() {
        let text = "error: DisabledException: the key is disabled\n  next: ...";
        assert_eq!(error_named(text), Some("DisabledException"));
        assert_eq!(error_named("error: nothing listens there"), None);
    }
}
