//! The code blocks of a documentation page.

/// The blocks under the first heading that equals `heading`, up to the next heading of its level. Each has the text
/// after the opening backticks, and the code.
///
/// # Panics
/// When there is no such heading.
pub fn blocks(page: &str, heading: &str) -> Vec<(String, String)> {
    let mut blocks: Vec<(String, String)> = Vec::new();
    let mut level = None;
    let mut is_open = false;
    for line in page.lines() {
        if let Some(info) = line.strip_prefix("```") {
            is_open = !is_open;
            if is_open && level.is_some() {
                blocks.push((info.trim().to_owned(), String::new()));
            }
        } else if is_open {
            if let (Some((_, text)), true) = (blocks.last_mut(), level.is_some()) {
                text.push_str(line);
                text.push('\n');
            }
        } else if line.starts_with('#') {
            let depth = line.bytes().take_while(|byte| *byte == b'#').count();
            match level {
                Some(level) if depth <= level => break,
                None if line[depth..].trim() == heading => level = Some(depth),
                _ => {}
            }
        }
    }
    assert!(level.is_some(), "no heading {heading:?}");
    blocks
}

/// The only block of a language.
///
/// # Panics
/// When there is none, or more than one.
pub fn only<'a>(blocks: &'a [(String, String)], language: &str) -> &'a str {
    let mut found = blocks.iter().filter(|(info, _)| info == language);
    match (found.next(), found.next()) {
        (Some((_, text)), None) => text,
        _ => panic!("not one block of {language}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_those_of_one_section() {
        let page = "# A\n```go\n# no heading\n```\n## In Go\nText\n```go\nx\n\ny\n```\n### Deeper\n```text\nz\n```\n## B\n```go\n```\n";
        let found = blocks(page, "In Go");
        assert_eq!(found.len(), 2);
        assert_eq!((only(&found, "go"), only(&found, "text")), ("x\n\ny\n", "z\n"));
    }
}
