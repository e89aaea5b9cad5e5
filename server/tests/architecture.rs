//! Holds the code to the tables of `ARCHITECTURE.md`, and to names that mean one thing.

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

/// Names that several modules have for the same part of each.
const IN_MANY_MODULES: [(&str, &str); 7] = [
    ("Error", "what can go wrong in the module"),
    ("Inner", "what the clones of a handle share"),
    ("Limits", "the bounds that the module is given"),
    ("Settings", "the options that the module is given"),
    ("Shared", "what a handle and its tasks share"),
    ("State", "the state that the module's rules work on"),
    ("Task", "the task that owns the module's state"),
];

/// Every file that is part of the server, and not of its tests alone, up to the tests at its end.
fn code_without_tests() -> Vec<(PathBuf, String)> {
    let files = all_files();
    let of_tests: BTreeSet<_> = files.iter().flat_map(|(file, text)| test_modules(file, text)).collect();
    let kept = files.into_iter().filter(|(file, _)| !of_tests.contains(file));
    kept.map(|(file, text)| (file, code(text.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or_default())))
        .collect()
}

/// The files of the modules that a file declares for its tests.
fn test_modules(file: &Path, text: &str) -> Vec<PathBuf> {
    let directory = match file.file_name().unwrap().to_str() {
        Some("mod.rs" | "lib.rs") => file.parent().unwrap().to_owned(),
        _ => file.with_extension(""),
    };
    let declarations = text.split("#[cfg(test)]\n").skip(1).filter_map(|rest| rest.lines().next());
    let names = declarations.filter_map(|line| {
        let (_, name) = line.split_once("mod ")?;
        name.strip_suffix(';')
    });
    names.map(|name| directory.join(name).with_extension("rs")).collect()
}

/// The types and constants that a text defines, with what follows the name: of a constant, its type and value. Those
/// of an `impl` or a trait are left out: its name stands before theirs.
fn definitions(text: &str) -> Vec<(bool, String, String)> {
    let mut found = Vec::new();
    let (mut is_in_impl, mut start) = (false, 0);
    for line in text.split_inclusive('\n') {
        let item = &text[start..];
        start += line.len();
        let indent = line.len() - line.trim_start().len();
        let words = line.split(|character: char| !character.is_alphanumeric() && character != '_');
        let mut words = words.filter(|word| !["", "pub", "crate", "super", "unsafe"].contains(word));
        let (keyword, name) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        if !line.trim_start().starts_with(char::is_alphabetic) {
            continue;
        }
        if indent == 0 && keyword != "where" {
            is_in_impl = ["impl", "trait"].contains(&keyword);
        }
        let is_constant = ["const", "static"].contains(&keyword) && name != "fn";
        let is_type = ["struct", "enum", "trait", "type"].contains(&keyword);
        if (is_constant || is_type) && !(is_in_impl && indent == 4) {
            let item = item.split(";\n").next().unwrap_or_default().trim_end_matches(';');
            let (_, value) = item.split_once(name).unwrap_or_default();
            let value = value.split_whitespace().collect::<Vec<_>>().join(" ");
            found.push((is_constant, name.to_owned(), value));
        }
    }
    found
}

#[test]
fn one_name_means_one_thing() {
    let (mut types, mut constants) = (BTreeMap::<_, Vec<_>>::new(), BTreeMap::<_, BTreeMap<_, _>>::new());
    for (file, text) in code_without_tests() {
        for (is_constant, name, value) in definitions(&text) {
            if is_constant {
                constants.entry(name).or_default().insert(value, file.clone());
            } else {
                types.entry(name).or_default().push(file.clone());
            }
        }
    }
    assert!(types.len() > 300 && constants.len() > 200, "{} types, {} constants", types.len(), constants.len());
    types.retain(|_, files| files.len() > 1);
    let unused: Vec<_> = IN_MANY_MODULES.iter().filter(|(name, _)| types.remove(*name).is_none()).collect();
    constants.retain(|_, values| values.len() > 1);
    assert!(types.is_empty() && constants.is_empty(), "{types:#?} {constants:#?}");
    assert!(unused.is_empty(), "these names may go from the list: {unused:?}");
}

#[test]
fn the_glossary_names_only_what_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let glossary = fs::read_to_string(root.join("GLOSSARY.md")).unwrap();
    let code: Vec<_> = all_files().into_iter().map(|(_, text)| code(&text)).collect();
    let exists = |name: &str| {
        source().join(name).exists() || root.join(name).exists() || code.iter().any(|text| text.contains(name))
    };
    let gone: Vec<_> = glossary.split('`').skip(1).step_by(2).filter(|name| !exists(name)).collect();
    assert!(gone.is_empty(), "{gone:?}");
    assert!(glossary.lines().count() <= 60);
}
