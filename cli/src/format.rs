//! A node and everything below it, in the formats of `get`.

use std::collections::BTreeMap;

use rollcall::{Child, Node, Stat, Value};
use serde_json::{Map, Value as Json, json};

use super::escape::json_line;
use super::term::{Row, Style, Tone, age, shown, table, time};

/// A node of a tree.
#[derive(Debug, Default)]
pub(crate) struct Branch {
    pub(crate) value: Option<Value>,
    pub(crate) stat: Option<Stat>,
    pub(crate) below: BTreeMap<String, Branch>,
}

/// The details of nodes that are shown beside their names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Show {
    /// Their values.
    pub(crate) data: bool,
    /// ZooKeeper's record of them.
    pub(crate) stat: bool,
}

/// Removes the inner nodes of ZooKeeper and of locks: `/zookeeper`, and the nodes of the holders and waiters of a lock.
pub(crate) fn hide_inner(node: &mut Node, path: &str) {
    let hidden: Vec<_> = node.children.keys().filter(|name| is_inner(node, path, name)).cloned().collect();
    for name in hidden {
        node.children.remove(&name);
    }
}

fn is_inner(node: &Node, path: &str, name: &str) -> bool {
    let is_zookeepers = path == "/" && name.split('/').next() == Some("zookeeper");
    let is_queue = name.split('/').any(|part| part.ends_with(LOCK_QUEUE));
    let is_lease = || {
        let Some((lock, lease)) = name.rsplit_once('/') else { return false };
        let below = format!("{name}/");
        lease.len() == 32
            && lease.bytes().all(|byte| byte.is_ascii_hexdigit())
            && node.children.contains_key(&format!("{lock}{LOCK_QUEUE}"))
            && !node.children.range(below.clone()..).next().is_some_and(|(next, _)| next.starts_with(&below))
    };
    is_zookeepers || is_queue || is_lease()
}

/// Suffix of the node beside a lock that holds the nodes of its waiters.
pub(crate) const LOCK_QUEUE: &str = "-__lock__";

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

    /// Converts to the form of `ndsr`: `{PATH: {"data": …, "children": [{PATH: {…}}, …]}}`, and the stat if it is
    /// shown.
    pub(crate) fn to_json(&self, path: &str, show: Show) -> Json {
        let mut fields = Map::new();
        if show.data {
            fields.insert("data".to_owned(), self.value.as_ref().map_or(Json::Null, Value::to_json));
        }
        if let Some(stat) = self.stat.filter(|_| show.stat) {
            fields.insert("stat".to_owned(), stat_to_json(&stat));
        }
        if !self.below.is_empty() {
            let children = self.below.iter().map(|(name, below)| below.to_json(&join(path, name), show));
            fields.insert("children".to_owned(), children.collect());
        }
        json!({ path: fields })
    }

    /// One path on each line, the node itself first.
    pub(crate) fn to_dir(&self, path: &str, style: Style) -> String {
        let below = self.below.iter().map(|(name, below)| below.to_dir(&join(path, name), style));
        std::iter::once(style.paint(self.tone(), path) + "\n").chain(below).collect()
    }

    /// Registrations are green.
    pub(crate) fn tone(&self) -> Tone {
        tone(self.stat.as_ref())
    }
}

fn tone(stat: Option<&Stat>) -> Tone {
    if stat.is_some_and(Stat::is_ephemeral) { Tone::Good } else { Tone::Plain }
}

fn stat_to_json(stat: &Stat) -> Json {
    json!({
        "version": stat.version,
        "created": time(stat.created()),
        "modified": time(stat.modified()),
        "czxid": stat.czxid,
        "mzxid": stat.mzxid,
        "ephemeral_owner": stat.is_ephemeral().then(|| session(stat.ephemeral_owner)),
        "data_length": stat.data_length,
        "num_children": stat.num_children,
    })
}

/// The id of a ZooKeeper session, as ZooKeeper writes it.
pub(crate) fn session(id: i64) -> String {
    format!("{id:#x}")
}

/// The names of replicas, by their ZooKeeper sessions.
pub(crate) type Replicas = BTreeMap<i64, String>;

/// One child on each line.
pub(crate) fn to_table(node: &Node, replicas: &Replicas, show: Show, style: Style) -> String {
    let row = |(name, child): (&String, &Child)| {
        let of_stat = |text: fn(&Stat) -> String| child.stat.as_ref().map_or_else(|| "-".to_owned(), text);
        let mut cells = vec![
            name.clone(),
            of_stat(|stat| if stat.is_ephemeral() { "registration" } else { "durable" }.to_owned()),
            of_stat(|stat| stat.version.to_string()),
            of_stat(|stat| age(stat.created())),
            of_stat(|stat| time(stat.modified())),
            holder(child),
            child.stat.and_then(|stat| replicas.get(&stat.ephemeral_owner).cloned()).unwrap_or_else(|| "-".to_owned()),
            of_stat(|stat| if stat.is_ephemeral() { session(stat.ephemeral_owner) } else { "-".to_owned() }),
        ];
        cells.extend(show.data.then(|| shown(child.value.as_ref())));
        Row { tone: tone(child.stat.as_ref()), cells }
    };
    let rows: Vec<_> = node.children.iter().map(row).collect();
    let head = ["NAME", "KIND", "VERSION", "AGE", "MODIFIED", "HOLDER", "REPLICA", "SESSION", "DATA"];
    table(style, &head[..if show.data { 9 } else { 8 }], &rows)
}

/// The process that holds a registration, as it has written itself into the node.
fn holder(child: &Child) -> String {
    let is_registration = child.stat.is_some_and(|stat| stat.is_ephemeral());
    let pid = child.value.as_ref().filter(|_| is_registration).and_then(|value| value.as_data()?.get("pid"));
    pid.map_or_else(|| "-".to_owned(), |pid| format!("pid {pid}"))
}

pub(crate) fn join(path: &str, name: &str) -> String {
    format!("{}/{name}", path.trim_end_matches('/'))
}

/// JSON as YAML in block style. Strings are quoted where they could be taken for another type.
pub(crate) fn to_yaml(json: &Json, style: Style) -> String {
    let mut text = String::new();
    write_yaml(&mut text, json, 0, style);
    text
}

fn write_yaml(text: &mut String, json: &Json, depth: usize, style: Style) {
    let indent = "  ".repeat(depth);
    match json {
        Json::Object(fields) if !fields.is_empty() => {
            for (key, value) in fields {
                text.push_str(&format!("{indent}{}:", style.paint(Tone::Name, &scalar(key))));
                write_below(text, value, depth + 1, style);
            }
        }
        Json::Array(items) if !items.is_empty() => {
            for item in items {
                let mut below = String::new();
                write_yaml(&mut below, item, depth + 1, style);
                // The first line of an item is on the line of its dash.
                text.push_str(&format!("{indent}- {}", below.trim_start_matches(' ')));
            }
        }
        other => text.push_str(&format!("{indent}{}\n", leaf(other))),
    }
}

fn write_below(text: &mut String, value: &Json, depth: usize, style: Style) {
    match value {
        Json::Object(fields) if !fields.is_empty() => {
            text.push('\n');
            write_yaml(text, value, depth, style);
        }
        Json::Array(items) if !items.is_empty() => {
            text.push('\n');
            write_yaml(text, value, depth - 1, style);
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

/// A string: plain where it can't be taken for another type, otherwise quoted as in JSON, which YAML understands.
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
    use std::time::UNIX_EPOCH;

    use super::*;

    const DATA: Show = Show { data: true, stat: false };

    fn node() -> Node {
        let child = |text: &str| Child { value: Some(text.into()), stat: None };
        let children = [("a", child("1")), ("a/b", child("2")), ("c", Child::default())];
        let children = children.into_iter().map(|(name, child)| (name.to_owned(), child)).collect();
        Node { path: "/s".to_owned(), exists: true, value: None, stat: None, children }
    }

    #[test]
    fn a_flat_list_becomes_a_tree() {
        let branch = Branch::of(node());
        assert_eq!(branch.to_dir("/s", Style::Plain), "/s\n/s/a\n/s/a/b\n/s/c\n");
        assert_eq!(
            branch.to_json("/s", Show::default()),
            json!({"/s": {"children": [{"/s/a": {"children": [{"/s/a/b": {}}]}}, {"/s/c": {}}]}})
        );
        assert_eq!(Branch::of(Node::default()).to_dir("/", Style::Plain), "/\n");
        assert_eq!(join("/", "a"), "/a");
    }

    #[test]
    fn the_stat_has_the_version_and_a_table_the_holder() {
        let stat = Stat { version: 3, ephemeral_owner: 0x10, ..Stat::default() };
        let child = Child { value: Some(Value::from_data(json!({"pid": 7})).unwrap()), stat: Some(stat) };
        let durable = Child { stat: Some(Stat { ephemeral_owner: 0, ..stat }), ..child.clone() };
        let children = [("a".to_owned(), child), ("b".to_owned(), durable)].into();
        let node = Node { path: "/s".to_owned(), exists: true, value: None, stat: None, children };
        let replicas = [(0x10, "host:7700".to_owned())].into();
        let table = to_table(&node, &replicas, Show::default(), Style::Plain);
        let cells =
            |line: usize| table.lines().nth(line).unwrap().split("  ").map(str::trim).filter(|cell| !cell.is_empty());
        assert!(
            cells(1).eq([
                "a",
                "registration",
                "3",
                &age(UNIX_EPOCH),
                "1970-01-01T00:00:00Z",
                "pid 7",
                "host:7700",
                "0x10"
            ]),
            "{table}"
        );
        assert!(cells(2).skip(5).eq(["-", "-", "-"]), "{table}");
        let shown = Branch::of(node).to_json("/s", Show { data: false, stat: true });
        let stat = &shown["/s"]["children"][0]["/s/a"]["stat"];
        assert_eq!((&stat["version"], &stat["ephemeral_owner"]), (&json!(3), &json!("0x10")));
    }

    #[test]
    fn inner_nodes_are_hidden_and_nothing_else() {
        const LEASE: &str = "0123456789abcdef0123456789abcdef";
        let kept = ["a", "jobs", "jobs/a", "jobs/a/x", "jobs/a/x/y", "plain", &format!("plain/{LEASE}"), "s/zookeeper"];
        let hidden = [
            "zookeeper",
            "zookeeper/quota",
            "jobs/a-__lock__",
            "jobs/a-__lock__/x__lock__0000000001",
            &format!("jobs/a/{LEASE}"),
        ];
        let children = kept.iter().chain(&hidden).map(|name| ((*name).to_owned(), Child::default())).collect();
        let mut node = Node { path: "/".to_owned(), exists: true, children, ..Node::default() };
        hide_inner(&mut node, "/");
        assert!(node.children.keys().eq(kept), "{:?}", node.children.keys());
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
        assert_eq!(to_yaml(&json, Style::Plain), expected);
        let colored = to_yaml(&json!({"/s": {"data": "x"}}), Style::Colored);
        assert_eq!(colored, "\x1b[36m/s\x1b[0m:\n  \x1b[36mdata\x1b[0m: x\n");
    }

    #[test]
    fn names_and_data_of_others_are_escaped() {
        let child = Child { value: Some("\u{9b}31m".into()), stat: None };
        let children = [("a\x1b\n/evil\u{202e}".to_owned(), child)].into();
        let node = Node { path: "/s".to_owned(), exists: true, value: None, stat: None, children };
        let table = to_table(&node, &Replicas::new(), DATA, Style::Plain);
        assert!(table.contains(r"a\u001b\n/evil\u202e  ") && table.contains(r#""\u009b31m""#), "{table}");
        let branch = Branch::of(node);
        assert_eq!(branch.to_dir("/s", Style::Plain), "/s\n/s/a\\u001b\\n\n/s/a\\u001b\\n/evil\\u202e\n");
        let yaml = to_yaml(&branch.to_json("/s", DATA), Style::Plain);
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
