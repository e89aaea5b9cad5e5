//! Rules of this crate and of the command that the compiler does not check: their files import in one direction, and
//! generated types stay under `rollcall::proto`.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The text of each file of the library and the command, without its tests, by module path such as `lock::keep`.
fn files() -> BTreeMap<String, String> {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = BTreeMap::new();
    for (root, prefix) in [("src", ""), ("../cli/src", "cli")] {
        let root = package.join(root);
        let mut folders = vec![root.clone()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else if !path.ends_with("state_tests.rs") {
                    let text = std::fs::read_to_string(&path).unwrap();
                    let code = text.split("#[cfg(test)]").next().unwrap().to_owned();
                    files.insert(module(&Path::new(prefix).join(path.strip_prefix(&root).unwrap())), code);
                }
            }
        }
    }
    files
}

fn module(file: &Path) -> String {
    let file: PathBuf = if file.ends_with("mod.rs") { file.parent().unwrap().into() } else { file.with_extension("") };
    file.to_string_lossy().replace('/', "::")
}

/// The modules that a file imports from.
fn imports(module: &str, code: &str, all: &BTreeSet<&str>) -> BTreeSet<String> {
    let parent = module.rsplit_once("::").map_or("", |(parent, _)| parent);
    let uses = code.lines().filter_map(|line| line.trim().trim_start_matches("pub ").strip_prefix("use "));
    let uses = uses.filter_map(|path| {
        let (base, rest) = [("crate::", ""), ("super::", parent), ("self::", module)]
            .iter()
            .find_map(|(prefix, base)| Some((*base, path.strip_prefix(prefix)?)))?;
        let rest = rest.split(['{', ';', ' ']).next().unwrap().trim_end_matches("::");
        let mut path = format!("{base}::{rest}").trim_start_matches("::").to_owned();
        // The longest prefix that is a file.
        while !all.contains(path.as_str()) {
            path = path.rsplit_once("::")?.0.to_owned();
        }
        (path != module).then_some(path)
    });
    uses.collect()
}

#[test]
fn files_do_not_import_in_circles() {
    let files = files();
    let all: BTreeSet<_> = files.keys().map(String::as_str).collect();
    let mut left: BTreeMap<_, _> =
        files.iter().map(|(name, code)| (name.as_str(), imports(name, code, &all))).collect();
    assert!(left["client"].contains("register::session") && left["register"].contains("client"), "{left:#?}");
    loop {
        let free: Vec<_> = left.iter().filter(|(_, imports)| imports.is_empty()).map(|(name, _)| *name).collect();
        if free.is_empty() {
            break;
        }
        left.retain(|name, _| !free.contains(name));
        left.values_mut().for_each(|imports| imports.retain(|import| !free.contains(&import.as_str())));
    }
    assert!(left.is_empty(), "in circles, or behind one: {left:#?}");
}

/// The heads of public items, fields and variants, and of implementations, each up to its body: everything that other
/// crates can name.
fn public_heads(code: &str) -> Vec<String> {
    let lines: Vec<_> = code.lines().map(str::trim).filter(|line| !line.starts_with("//")).collect();
    let is_public = |line: &str| line.starts_with("pub ") || line.starts_with("impl");
    let heads = lines.iter().enumerate().filter(|(_, line)| is_public(line)).map(|(at, _)| {
        let head = lines[at..].join(" ");
        let end = head.find([';', '{']).unwrap_or(head.len());
        let end = if head.starts_with("pub enum") { end_of_block(&head).unwrap_or(end) } else { end };
        head[..end].to_owned()
    });
    heads.collect()
}

/// The end of the first block.
fn end_of_block(code: &str) -> Option<usize> {
    let mut depth = 0;
    let braces = code.char_indices().filter(|(_, each)| matches!(each, '{' | '}'));
    braces.into_iter().find_map(|(at, brace)| {
        depth += if brace == '{' { 1 } else { -1 };
        (depth == 0).then_some(at)
    })
}

#[test]
fn no_generated_type_is_in_the_public_interface() {
    let mut count = 0;
    for (module, code) in files() {
        for head in public_heads(&code) {
            count += 1;
            let is_generated = ["v1::", "proto::", "prost", "RegistryClient"].iter().any(|name| head.contains(name));
            let is_door = head.starts_with("pub use rollcall_proto as proto");
            assert!(is_door || !is_generated, "{module}: {head}");
        }
    }
    assert!(count > 150, "{count} public items were looked at");
}
