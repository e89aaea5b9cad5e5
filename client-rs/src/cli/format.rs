//! A node and what is below it, in the formats of `get`.

use std::collections::BTreeMap;

use rollcall::{Child, Node, Stat, Value};
use serde_json::{Map, Value as Json, json};

use super::escape::{escaped, json_line};
use super::term::{shown, table, time};

/// A node of a tree.
#[derive(Debug, Default)]
pub(crate) struct Branch {
    pub(crate) value: Option<Value>,
    pub(crate) stat: Option<Stat>,
    pub(crate) below: BTreeMap<String, Branch>,
}

/// Whether what nodes hold is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Show {
    Names,
    Data,
}

impl Show {
    pub(crate) fn data(data: bool) -> Self {
        if data { Self::Data } else { Self::Names }
    }
}

impl Branch {
    pub(crate) fn of(node: Node) -> Self {
        let mut root = Self { value: node.value, stat: node.stat, below: BTreeMap::new() };
        for (path, Child { value, stat }) in node.children {
            let mut branch = &mut root;
            for part in path.split('/') {
                branch = branch.below.entry(part.to_owned()).or_default();
            }
            (branch.value, branch.stat) = (value, stat);
        }
        root
    }

    /// As `ndsr` has it: `{PATH: {"data": …, "children": [{PATH: {…}}, …]}}`.
    pub(crate) fn to_json(&self, path: &str, show: Show) -> Json {
        let mut fields = Map::new();
        if show == Show::Data {
            fields.insert("data".to_owned(), self.value.as_ref().map_or(Json::Null, Value::to_json));
        }
        if !self.below.is_empty() {
            let children = self.below.iter().map(|(name, below)| below.to_json(&join(path, name), show));
            fields.insert("children".to_owned(), children.collect());
        }
        json!({ path: fields })
    }

    /// One path a line, [`escaped`], the node itself first.
    pub(crate) fn to_dir(&self, path: &str) -> String {
        let below = self.below.iter().map(|(name, below)| below.to_dir(&join(path, name)));
        std::iter::once(format!("{}\n", escaped(path))).chain(below).collect()
    }
}

/// One line a child.
pub(crate) fn to_table(node: &Node, show: Show) -> String {
    let rows: Vec<_> = node
        .children
        .iter()
        .map(|(name, child)| {
            let kind = child.stat.map_or("-", |stat| if stat.is_ephemeral() { "registration" } else { "durable" });
            let modified = child.stat.map_or_else(|| "-".to_owned(), |stat| time(stat.modified()));
            let version = child.stat.map_or_else(|| "-".to_owned(), |stat| stat.version.to_string());
            let mut row = vec![name.clone(), kind.to_owned(), version, modified];
            row.extend((show == Show::Data).then(|| shown(child.value.as_ref())));
            row
        })
        .collect();
    let head = ["NAME", "KIND", "VERSION", "MODIFIED", "DATA"];
    table(if show == Show::Data { &head } else { &head[..4] }, &rows)
}

pub(crate) fn join(path: &str, name: &str) -> String {
    format!("{}/{name}", path.trim_end_matches('/'))
}

/// JSON as YAML: block style, strings quoted where they could be taken for something else.
pub(crate) fn to_yaml(json: &Json) -> String {
    let mut text = String::new();
    write_yaml(&mut text, json, 0);
    text
}

fn write_yaml(text: &mut String, json: &Json, depth: usize) {
    let indent = "  ".repeat(depth);
    match json {
        Json::Object(fields) if !fields.is_empty() => {
            for (key, value) in fields {
                text.push_str(&format!("{indent}{}:", scalar(key)));
                write_below(text, value, depth + 1);
            }
        }
        Json::Array(items) if !items.is_empty() => {
            for item in items {
                let mut below = String::new();
                write_yaml(&mut below, item, depth + 1);
                // The first line of an item stands beside its dash.
                text.push_str(&format!("{indent}- {}", below.trim_start_matches(' ')));
            }
        }
        other => text.push_str(&format!("{indent}{}\n", leaf(other))),
    }
}

fn write_below(text: &mut String, value: &Json, depth: usize) {
    match value {
        Json::Object(fields) if !fields.is_empty() => {
            text.push('\n');
            write_yaml(text, value, depth);
        }
        Json::Array(items) if !items.is_empty() => {
            text.push('\n');
            write_yaml(text, value, depth - 1);
        }
        other => text.push_str(&format!(" {}\n", leaf(other))),
    }
}

fn leaf(json: &Json) -> String {
    match json {
        Json::String(string) => scalar(string),
        other => json_line(other),
    }
}

/// A string: plain where it can't be taken for anything else, quoted as in JSON, which YAML understands, otherwise.
fn scalar(string: &str) -> String {
    let begins = string.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/' || c == '_');
    let plain = string.chars().all(|c| c.is_ascii_alphanumeric() || "/_.:@+-".contains(c)) && !string.ends_with(':');
    let word = matches!(
        string.to_ascii_lowercase().as_str(),
        "true" | "false" | "null" | "yes" | "no" | "on" | "off" | "y" | "n"
    );
    if begins && plain && !word { string.to_owned() } else { json_line(&string.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> Node {
        let child = |text: &str| Child { value: Some(text.into()), stat: None };
        let children = [("a", child("1")), ("a/b", child("2")), ("c", Child::default())];
        let children = children.into_iter().map(|(name, child)| (name.to_owned(), child)).collect();
        Node { path: "/s".to_owned(), exists: true, value: None, stat: None, children }
    }

    #[test]
    fn a_flat_list_becomes_a_tree() {
        let branch = Branch::of(node());
        assert_eq!(branch.to_dir("/s"), "/s\n/s/a\n/s/a/b\n/s/c\n");
        assert_eq!(
            branch.to_json("/s", Show::Names),
            json!({"/s": {"children": [{"/s/a": {"children": [{"/s/a/b": {}}]}}, {"/s/c": {}}]}})
        );
        assert_eq!(Branch::of(Node::default()).to_dir("/"), "/\n");
        assert_eq!(join("/", "a"), "/a");
    }

    #[test]
    fn yaml_reads_as_ndsr_prints_it() {
        let json = json!({"/s": {"children": [{"/s/a:1": {"data": {"number": 1, "t": "x y", "l": ["a", {"b": 2}]}}}, {"/s/c": {}}], "data": null}});
        let expected = "\
/s:
  children:
  - /s/a:1:
      data:
        l:
        - a
        - b: 2
        number: 1
        t: \"x y\"
  - /s/c: {}
  data: null
";
        assert_eq!(to_yaml(&json), expected);
    }

    #[test]
    fn names_and_data_of_others_are_escaped() {
        let child = Child { value: Some("\u{9b}31m".into()), stat: None };
        let children = [("a\x1b\n/evil\u{202e}".to_owned(), child)].into();
        let node = Node { path: "/s".to_owned(), exists: true, value: None, stat: None, children };
        let table = to_table(&node, Show::Data);
        assert!(table.contains(r"a\u001b\n/evil\u202e  ") && table.contains(r#""\u009b31m""#), "{table}");
        let branch = Branch::of(node);
        assert_eq!(branch.to_dir("/s"), "/s\n/s/a\\u001b\\n\n/s/a\\u001b\\n/evil\\u202e\n");
        let yaml = to_yaml(&branch.to_json("/s", Show::Data));
        assert!(
            yaml.contains(r#""/s/a\u001b\n/evil\u202e":"#) && yaml.contains(r#"string_value: "\u009b31m""#),
            "{yaml}"
        );
    }

    #[test]
    fn strings_that_look_like_something_else_are_quoted() {
        for text in ["yes", "22", "", "a: b", "- a", "#a", "a:", "ü", "2026-01-01 00:00:00", "1:22"] {
            assert!(scalar(text).starts_with('"'), "{text}");
        }
        for text in ["server1:22", "/services/ssh", "a-b_c.d"] {
            assert_eq!(scalar(text), text);
        }
    }
}
