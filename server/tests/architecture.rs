//! Holds the code to the tables of `ARCHITECTURE.md`, to names that mean one thing, and to imports in one direction.

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
fn no_file_grows_past_six_hundred_lines() {
    let files = all_files().into_iter().map(|(file, text)| (file, text.lines().count()));
    let long: Vec<_> = files.filter(|(_, lines)| *lines > 600).collect();
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

/// A `use` of something of the own crate: its path from the crate's root, and the name that it gets.
type CrateUse = (Vec<String>, String);

/// The code of each file of a crate, without its tests, by module; that of `lib.rs` is the empty name.
fn modules(root: &Path) -> BTreeMap<String, String> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                found.push((path.strip_prefix(root).unwrap().to_owned(), text));
            }
        }
    }
    let of_tests: BTreeSet<_> = found.iter().flat_map(|(file, text)| test_modules(file, text)).collect();
    found.retain(|(file, _)| !of_tests.contains(file) && file != Path::new("main.rs"));
    let module = |file: &Path| {
        let name = file.with_extension("").to_string_lossy().replace('/', "::");
        match name.as_str() {
            "lib" => String::new(),
            name => name.trim_end_matches("::mod").to_owned(),
        }
    };
    let without_tests = |text: &str| code(text.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or_default());
    found.iter().map(|(file, text)| (module(file), without_tests(text))).collect()
}

/// The single paths of a `use` with groups, nested ones too.
fn expand(import: &str) -> Vec<String> {
    let Some((prefix, group)) = import.split_once('{') else { return vec![import.trim().to_owned()] };
    let (mut depth, mut items) = (0, vec![String::new()]);
    for character in group.chars() {
        match character {
            '}' if depth == 0 => break,
            ',' if depth == 0 => items.push(String::new()),
            _ => {
                depth += i32::from(character == '{') - i32::from(character == '}');
                items.last_mut().unwrap().push(character);
            }
        }
    }
    let items = items.iter().map(|item| item.trim()).filter(|item| !item.is_empty());
    items.flat_map(expand).map(|item| format!("{}{item}", prefix.trim())).collect()
}

/// What a file imports of its own crate.
fn crate_uses(module: &str, code: &str) -> Vec<CrateUse> {
    let starts = ["use ", "pub use ", "pub(crate) use ", "pub(super) use "];
    let mut statements = Vec::new();
    let mut rest = code;
    while let Some(line) = rest.lines().next() {
        if let Some(path) = starts.iter().find_map(|start| line.trim_start().strip_prefix(start)) {
            let from = &rest[line.len() - path.len()..];
            statements.push(from.split(';').next().unwrap_or_default().replace('\n', " "));
        }
        rest = rest[line.len()..].trim_start_matches('\n');
    }
    let own: Vec<_> = module.split("::").filter(|segment| !segment.is_empty()).map(str::to_owned).collect();
    let absolute = |import: String| {
        let (path, alias) =
            import.split_once(" as ").map_or((import.as_str(), None), |(path, alias)| (path, Some(alias)));
        let mut segments = path.split("::").map(str::trim).peekable();
        let mut base = match segments.next()? {
            "crate" => Vec::new(),
            "self" => own.clone(),
            "super" => {
                let mut base = own.clone();
                base.pop();
                base
            }
            _ => return None,
        };
        while segments.next_if_eq(&"super").is_some() {
            base.pop();
        }
        base.extend(segments.filter(|segment| *segment != "self").map(str::to_owned));
        let name = alias.map_or_else(|| base.last().cloned().unwrap_or_default(), |alias| alias.trim().to_owned());
        Some((base, name))
    };
    statements.iter().flat_map(|statement| expand(statement)).filter_map(absolute).collect()
}

/// The file that defines what a path names: re-exports and imports of other files are followed.
fn defining_file(path: &[String], uses: &BTreeMap<String, Vec<CrateUse>>, depth: usize) -> String {
    let length = (0..=path.len()).rev().find(|length| uses.contains_key(&path[..*length].join("::")));
    let length = length.unwrap_or_default();
    let (file, rest) = (path[..length].join("::"), &path[length..]);
    let renamed = rest.first().and_then(|name| uses.get(&file)?.iter().find(|(_, alias)| alias == name));
    match renamed {
        Some((target, _)) if depth > 0 => defining_file(&[target.as_slice(), &rest[1..]].concat(), uses, depth - 1),
        _ => file,
    }
}

/// Which files each file imports from.
fn file_imports(root: &Path) -> BTreeMap<String, BTreeSet<String>> {
    let modules = modules(root);
    let uses: BTreeMap<_, _> =
        modules.iter().map(|(module, code)| (module.clone(), crate_uses(module, code))).collect();
    let of = |module: &String, uses_of: &Vec<CrateUse>| {
        let files = uses_of.iter().map(|(path, _)| defining_file(path, &uses, 8));
        files.filter(|file| file != module).collect()
    };
    uses.iter().map(|(module, uses_of)| (module.clone(), of(module, uses_of))).collect()
}

/// The files that are in a circle: each can be reached from itself.
fn in_circles(imports: &BTreeMap<String, BTreeSet<String>>) -> Vec<&String> {
    let reaches_itself = |start: &String| {
        let (mut seen, mut next) = (BTreeSet::new(), vec![start]);
        while let Some(file) = next.pop() {
            for import in imports.get(file).into_iter().flatten() {
                if import == start {
                    return true;
                }
                if seen.insert(import) {
                    next.push(import);
                }
            }
        }
        false
    };
    imports.keys().filter(|file| reaches_itself(file)).collect()
}

#[test]
fn files_do_not_import_in_circles() {
    let server = Path::new(env!("CARGO_MANIFEST_DIR"));
    let imports = file_imports(&source());
    assert!(imports["locks::task"].contains("locks::acquire::attempt"), "{:?}", imports["locks::task"]);
    assert!(imports["grpc::locks"].contains("locks::stream::event"), "a re-export is followed");
    for root in [source(), server.join("../wire/src"), server.join("../embedded/src")] {
        let imports = file_imports(&root);
        assert!(imports.len() > 5, "{}", root.display());
        let circular = in_circles(&imports);
        assert!(circular.is_empty(), "{}: {circular:?}", root.display());
    }
}

#[test]
fn a_use_with_nested_groups_is_read_as_its_paths() {
    let code =
        "use super::{a::{B, c::D}, self};\n    pub(crate) use crate::e::{\n    F as G,\n    h,\n};\nuse std::fmt;";
    let uses: Vec<_> = crate_uses("x::y", code).into_iter().map(|(path, name)| (path.join("::"), name)).collect();
    let expected = [("x::a::B", "B"), ("x::a::c::D", "D"), ("x", "x"), ("e::F", "G"), ("e::h", "h")];
    assert_eq!(uses, expected.map(|(path, name)| (path.to_owned(), name.to_owned())));
    let circle = [("a", "b"), ("b", "c"), ("c", "b"), ("d", "a")];
    let circle = circle.map(|(file, import)| (file.to_owned(), BTreeSet::from([import.to_owned()])));
    assert_eq!(in_circles(&BTreeMap::from(circle)), ["b", "c"]);
}
