//! Holds the code to the tables of `ARCHITECTURE.md`.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// The table «module | may import», as the document has it.
fn allowed_imports() -> BTreeMap<String, BTreeSet<String>> {
    let document = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../ARCHITECTURE.md")).unwrap();
    let table = document.split("| module | may import |").nth(1).expect("the table is there");
    let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    rows.map(|row| {
        let cells: Vec<_> = row.split('|').map(str::trim).collect();
        let imports = cells[2].split(',').map(str::trim).filter(|name| !name.is_empty());
        (cells[1].to_owned(), imports.map(str::to_owned).collect())
    })
    .collect()
}

/// Every source file, with its path below `src`.
fn files(directory: &Path, found: &mut Vec<(PathBuf, String)>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            found.push((path.strip_prefix(source()).unwrap().to_owned(), text));
        }
    }
}

fn all_files() -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    files(&source(), &mut found);
    found
}

fn module_of(file: &Path) -> String {
    let first = file.components().next().unwrap().as_os_str().to_string_lossy();
    first.trim_end_matches(".rs").to_owned()
}

/// The code of a file, without its comments.
fn code(text: &str) -> String {
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// The modules that a text names after `crate::`, in groups too.
fn imports(text: &str) -> BTreeSet<String> {
    let mut named = BTreeSet::new();
    for rest in text.split("crate::").skip(1) {
        let is_word = |character: char| character.is_alphanumeric() || character == '_';
        let Some(group) = rest.strip_prefix('{') else {
            named.insert(rest.chars().take_while(|character| is_word(*character)).collect());
            continue;
        };
        let mut depth = 0;
        let mut top_level = String::new();
        for character in group.chars() {
            match character {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                _ if depth == 0 => top_level.push(character),
                _ => {}
            }
        }
        let names = top_level.split(',').map(|item| item.trim().split("::").next().unwrap_or_default().to_owned());
        named.extend(names.filter(|name| !name.is_empty()));
    }
    named
}

#[test]
fn modules_import_only_what_the_table_allows() {
    let allowed = allowed_imports();
    let mut wrong = Vec::new();
    for (file, text) in all_files() {
        let module = module_of(&file);
        if module == "lib" {
            continue;
        }
        let Some(allowed) = allowed.get(&module) else {
            wrong.push(format!("{module} is not in the table"));
            continue;
        };
        for import in imports(&code(&text)) {
            if import != module && !allowed.contains(&import) {
                wrong.push(format!("{} imports {import}", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_table_names_no_module_that_is_gone() {
    let standing: BTreeSet<_> = all_files().iter().map(|(file, _)| module_of(file)).collect();
    let gone: Vec<_> = allowed_imports().into_keys().filter(|module| !standing.contains(module)).collect();
    assert!(gone.is_empty(), "{gone:?}");
}

/// What only some files may name: the text, and where it may stand.
#[test]
fn some_names_stay_where_they_belong() {
    type Rule = (&'static str, fn(&Path) -> bool);
    let rules: [Rule; 4] = [
        ("Code::", |file| file == Path::new("grpc/status.rs")),
        ("rollcall_proto", |file| file.starts_with("grpc") || file == Path::new("app.rs")),
        ("prost_types", |file| file.starts_with("grpc")),
        ("rollcall_wire", |file| file.starts_with("zk") || file == Path::new("types.rs")),
    ];
    let mut wrong = Vec::new();
    for (file, text) in all_files() {
        let code = code(&text);
        let code = ["ErrorCode::", "ExitCode::", "OpCode::", "StatusCode::"]
            .iter()
            .fold(code, |code, other| code.replace(other, ""));
        for (name, may) in &rules {
            if code.contains(name) && !may(&file) {
                wrong.push(format!("{} names {name}", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn no_file_grows_past_a_thousand_lines() {
    let files = all_files().into_iter().map(|(file, text)| (file, text.lines().count()));
    let long: Vec<_> = files.filter(|(_, lines)| *lines >= 1000).collect();
    assert!(long.is_empty(), "{long:?}");
}
