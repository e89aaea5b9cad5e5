//! Output: standard output, colours on a terminal, and the words for times and data.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::SystemTime;

use rollcall::Value;
use serde_json::{Map, Value as Json};

use super::args::{Color, Global};
use super::escape::{escaped, is_obeyed, json_line};
use super::exit::Failure;

/// Whether colours may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    Plain,
    Colored,
}

/// The meaning of a colour.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Tone {
    Good,
    Bad,
    Changed,
    /// A key, or a name.
    Name,
    Plain,
    Faint,
}

impl Style {
    pub(crate) fn of(global: &Global) -> Self {
        let colored = match global.color {
            Color::Always => true,
            Color::Never => false,
            Color::Auto => {
                io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
            }
        };
        if colored { Self::Colored } else { Self::Plain }
    }

    /// The text, [`escaped`], in a colour.
    pub(crate) fn paint(self, tone: Tone, text: &str) -> String {
        let text = escaped(text);
        let code = match (self, tone) {
            (Self::Plain, _) | (_, Tone::Plain) => return text.into_owned(),
            (Self::Colored, Tone::Good) => 32,
            (Self::Colored, Tone::Bad) => 31,
            (Self::Colored, Tone::Changed) => 33,
            (Self::Colored, Tone::Name) => 36,
            (Self::Colored, Tone::Faint) => 2,
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}

/// Prints lines at once, so that a reader at the end of a pipe does not wait.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    if !text.ends_with('\n') {
        stdout.write_all(b"\n")?;
    }
    Ok(stdout.flush()?)
}

/// Prints a message that is not a result, to standard error.
pub(crate) fn say(text: &str) {
    // Nothing can be done when standard error is closed.
    let _ = writeln!(io::stderr(), "rollcall: {}", escaped(text));
}

/// Time since `since`, in the largest unit that fits.
pub(crate) fn age(since: SystemTime) -> String {
    let seconds = since.elapsed().unwrap_or_default().as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86_400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// A time in UTC, to the second.
pub(crate) fn time(time: SystemTime) -> String {
    let text = jiff::Timestamp::try_from(time).map(|time| time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
    text.unwrap_or_else(|_| "-".to_owned())
}

/// The value of a node, on one line: text as it is, unless a character has to be escaped; everything else as JSON.
pub(crate) fn shown(value: Option<&Value>) -> String {
    match value {
        None => String::new(),
        Some(Value::Text(text)) if !text.contains(is_obeyed) => text.clone(),
        Some(value) => json_line(&value.to_json()),
    }
}

/// Joins `KEY=VALUE`s, JSON objects and `@FILE`s into one object; later values win.
pub(crate) fn parse_data(words: &[String]) -> Result<Map<String, Json>, Failure> {
    let mut fields = Map::new();
    for word in words {
        let wrong = |cause: String| Failure::usage(format!("--data {word}: {cause}"));
        let text = match word.strip_prefix('@') {
            Some("-") => Some(io::read_to_string(io::stdin())),
            Some(file) => Some(std::fs::read_to_string(file)),
            None if word.starts_with('{') => Some(Ok(word.clone())),
            None => None,
        };
        if let Some(text) = text {
            match serde_json::from_str(&text.map_err(|error| wrong(error.to_string()))?) {
                Ok(Json::Object(object)) => fields.extend(object),
                Ok(_) => return Err(wrong("it is not a JSON object".to_owned())),
                Err(error) => return Err(wrong(error.to_string())),
            }
            continue;
        }
        let Some((key, value)) = word.split_once('=').filter(|(key, _)| !key.is_empty()) else {
            return Err(Failure::usage(format!("--data {word:?} is neither KEY=VALUE, nor a JSON object, nor @FILE")));
        };
        // 22 is a number and true a boolean; a value that is not JSON is text.
        let value = serde_json::from_str(value).unwrap_or_else(|_| Json::String(value.to_owned()));
        fields.insert(key.to_owned(), value);
    }
    Ok(fields)
}

/// A line of a table. Its first cell has the colour of the tone.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) tone: Tone,
    pub(crate) cells: Vec<String>,
}

/// Formats aligned columns. Cells are [`escaped`].
pub(crate) fn table(style: Style, head: &[&str], rows: &[Row]) -> String {
    let tones = rows.iter().map(|row| row.tone);
    let rows: Vec<Vec<_>> = rows.iter().map(|row| row.cells.iter().map(|cell| escaped(cell)).collect()).collect();
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain(head.get(column).map(|cell| cell.len())).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |tone: Tone, cells: &mut dyn Iterator<Item = &str>| {
        let padded = cells.zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        let padded = padded.enumerate().map(|(column, cell)| if column == 0 { style.paint(tone, &cell) } else { cell });
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    let mut text = line(Tone::Faint, &mut head.iter().copied());
    for (row, tone) in rows.iter().zip(tones) {
        text.push_str(&line(tone, &mut row.iter().map(AsRef::as_ref)));
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::escape::tests::{HARMLESS, HOSTILE};

    #[test]
    fn data_is_json_where_it_looks_like_it() {
        let words = ["port=22", "up=true", "name=a=b", "quoted=\"22\"", "empty="].map(str::to_owned);
        let expected = json!({"port": 22, "up": true, "name": "a=b", "quoted": "22", "empty": ""});
        assert_eq!(Json::Object(parse_data(&words).unwrap()), expected);
        let both = [r#"{"port": 1, "tags": ["a=b"]}"#, "port=2"].map(str::to_owned);
        assert_eq!(Json::Object(parse_data(&both).unwrap()), json!({"port": 2, "tags": ["a=b"]}));
        for wrong in ["nothing", "{", "[1]"] {
            assert!(parse_data(&[wrong.to_owned()]).is_err(), "{wrong}");
        }
        assert!(parse_data(&["=x".to_owned()]).is_err());
        assert!(parse_data(&["@/does/not/exist".to_owned()]).is_err());
    }

    #[test]
    fn what_others_write_is_escaped() {
        let row = Row { tone: Tone::Good, cells: vec![HOSTILE.to_owned()] };
        assert_eq!(table(Style::Plain, &["NAME"], &[row]), format!("NAME\n{HARMLESS}\n"));
        assert_eq!(Style::Colored.paint(Tone::Good, HOSTILE), format!("\x1b[32m{HARMLESS}\x1b[0m"));
        assert_eq!(Style::Plain.paint(Tone::Good, HOSTILE), HARMLESS);
        assert_eq!(shown(Some(&HOSTILE.into())), format!(r#"{{"string_value":"{HARMLESS}"}}"#));
    }

    #[test]
    fn columns_line_up() {
        let row = |name: &str, data: &str| Row { tone: Tone::Good, cells: vec![name.to_owned(), data.to_owned()] };
        let rows = [row("a", "x"), row("böse", "")];
        assert_eq!(table(Style::Plain, &["NAME", "DATA"], &rows), "NAME  DATA\na     x\nböse\n");
        let colored = table(Style::Colored, &["NAME", "DATA"], &rows[..1]);
        assert_eq!(colored, "\x1b[2mNAME\x1b[0m  DATA\n\x1b[32ma   \x1b[0m  x\n");
    }

    #[test]
    fn colours_are_for_terminals() {
        assert_eq!(Style::Plain.paint(Tone::Bad, "x"), "x");
        assert_eq!(Style::Colored.paint(Tone::Bad, "x"), "\x1b[31mx\x1b[0m");
    }
}
