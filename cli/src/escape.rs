//! Keeps output harmless. Names, values and messages come from others, and may contain characters that a terminal obeys
//! or that a reader takes for another line.

use std::borrow::Cow;
use std::fmt::Write as _;

use serde_json::Value as Json;

/// Whether a terminal obeys the character, or shows the text after it in another order or on another line: control
/// characters (C0, DEL, C1), line and paragraph separators, and the marks that override the direction of writing.
pub(super) fn is_obeyed(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Escapes text of others for one line: characters that a terminal would obey are written as in JSON.
pub(crate) fn escaped(text: &str) -> Cow<'_, str> {
    escaped_but(text, &[])
}

/// Like [`escaped`], but leaves some characters as they are.
fn escaped_but<'a>(text: &'a str, kept: &[char]) -> Cow<'a, str> {
    let is_escaped = |c: char| is_obeyed(c) && !kept.contains(&c);
    if !text.contains(is_escaped) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            '\n' if is_escaped(c) => safe.push_str("\\n"),
            '\t' => safe.push_str("\\t"),
            '\r' => safe.push_str("\\r"),
            // All of them have four digits; writing to a string does not fail.
            c if is_escaped(c) => drop(write!(safe, "\\u{:04x}", u32::from(c))),
            c => safe.push(c),
        }
    }
    Cow::Owned(safe)
}

/// JSON on one line. It also escapes the characters that JSON itself lets through: DEL, C1 and the marks of direction.
pub(crate) fn json_line(json: &Json) -> String {
    escaped(&json.to_string()).into_owned()
}

/// JSON over several lines.
pub(crate) fn json_page(json: &Json) -> String {
    // Line breaks within strings are escaped already.
    escaped_but(&format!("{json:#}"), &['\n']).into_owned()
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;

    use super::*;

    /// ESC, BEL, a line break, DEL, CSI of C1, and marks that turn the direction of writing and isolate text from it.
    pub(crate) const HOSTILE: &str = "a\x1b[2J\x07\n\t\x7f\u{9b}31m\u{202e}\u{2066}\u{2028}ü";
    pub(crate) const HARMLESS: &str = r"a\u001b[2J\u0007\n\t\u007f\u009b31m\u202e\u2066\u2028ü";

    #[test]
    fn what_a_terminal_would_obey_is_escaped() {
        assert_eq!(escaped(HOSTILE), HARMLESS);
        assert!(matches!(escaped("grün 日本 \\ \""), Cow::Borrowed(_)));
    }

    #[test]
    fn json_is_escaped_and_stays_the_same() {
        let json = json!({HOSTILE: [HOSTILE, {"a": HOSTILE}]});
        for text in [json_line(&json), json_page(&json)] {
            assert!(!text.replace('\n', "").contains(is_obeyed), "{text}");
            assert_eq!(serde_json::from_str::<Json>(&text).unwrap(), json);
        }
        assert_eq!(json_line(&json).lines().count(), 1);
    }
}
