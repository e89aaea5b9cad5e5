//! The pages as a whole: a reader finds each of them, every link leads somewhere, and the programs take every command.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use rollcall_tests::process::scratch;
use rollcall_tests::server::program;
use rollcall_tests::shell::built;

use crate::polyglot::{path_with, root};

/// Maximum number of lines of the README. A longer one belongs on a page in `docs/`.
const README_LINES: usize = 160;

fn page(file: &Path) -> String {
    fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

/// The pages in `docs/` and at the root, and those of the packages.
fn pages() -> Vec<PathBuf> {
    let root = root();
    let of = |folder: &Path| {
        let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        files.filter(|file| file.extension().is_some_and(|extension| extension == "md")).collect::<Vec<_>>()
    };
    let packages = ["client-py", "client-rs", "cli", "embedded", "proto", "server", "wire"];
    let packages = packages.map(|folder| root.join(folder).join("README.md")).to_vec();
    [of(&root), of(&root.join("docs")), packages].concat()
}

/// The lines outside of blocks of code.
fn prose(page: &str) -> impl Iterator<Item = &str> {
    let mut is_code = false;
    page.lines().filter(move |line| {
        let is_fence = line.starts_with("```");
        is_code ^= is_fence;
        !is_fence && !is_code
    })
}

/// The name by which a link leads to a heading, as GitHub makes it.
fn anchor(heading: &str) -> String {
    let heading = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = heading.chars().filter(|character| character.is_alphanumeric() || " -_".contains(*character));
    kept.map(|character| if character == ' ' { '-' } else { character }).collect()
}

fn links(page: &str) -> Vec<String> {
    let parts = prose(page).flat_map(|line| line.split("](").skip(1));
    parts.filter_map(|part| part.split_once(')')).map(|(link, _)| link.to_owned()).collect()
}

#[test]
fn the_readme_is_short() {
    let lines = page(&root().join("README.md")).lines().count();
    assert!(lines <= README_LINES, "{lines} lines");
}

#[test]
fn the_index_leads_to_every_page() {
    let index = root().join("docs/index.md");
    let linked: BTreeSet<_> = links(&page(&index)).into_iter().collect();
    for file in fs::read_dir(root().join("docs")).unwrap() {
        let name = file.unwrap().file_name().into_string().unwrap();
        assert!(name == "index.md" || linked.contains(&name), "docs/index.md has no link to {name}");
    }
}

#[test]
fn every_link_leads_somewhere() {
    let mut broken = Vec::new();
    for file in pages() {
        for link in links(&page(&file)).into_iter().filter(|link| !link.contains("://")) {
            let (target, heading) = link.split_once('#').map_or((&*link, None), |(target, at)| (target, Some(at)));
            let target = if target.is_empty() { file.clone() } else { file.parent().unwrap().join(target) };
            let is_there = match heading {
                None => target.exists(),
                Some(heading) => {
                    let text = fs::read_to_string(&target).unwrap_or_default();
                    prose(&text).any(|line| line.starts_with('#') && anchor(line) == heading)
                }
            };
            if !is_there {
                broken.push(format!("{}: {link}", file.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

/// The commands of ours that a page shows: lines in blocks of the shell, and code within a sentence, unless a part of it is
/// left out or it ends with an option, whose value may be missing.
fn commands(page: &str) -> Vec<String> {
    let last_word = |text: &str| text.rsplit(' ').next().unwrap_or_default().to_owned();
    let is_ours = |text: &str| text.starts_with("rollcall ") || text.starts_with("rollcall-server ");
    let mut found: Vec<String> = Vec::new();
    let (mut block, mut goes_on) = (None, false);
    for line in page.lines() {
        if let Some(info) = line.strip_prefix("```") {
            block = if block.is_none() { Some(info.split(' ').next().unwrap_or_default().to_owned()) } else { None };
        } else if block.as_deref().is_some_and(|language| ["", "sh", "console"].contains(&language)) {
            let line = line.strip_prefix("$ ").unwrap_or(line);
            match found.last_mut() {
                Some(last) if goes_on => {
                    last.push('\n');
                    last.push_str(line);
                }
                _ if is_ours(line) => found.push(line.to_owned()),
                _ => continue,
            }
            goes_on = line.ends_with('\\');
        } else if block.is_none() {
            let spans = line.split('`').skip(1).step_by(2);
            let is_whole = |span: &&str| !span.contains(['…', '|', '>']) && !last_word(span).starts_with("--");
            found.extend(spans.filter(|span| is_ours(span)).filter(is_whole).map(str::to_owned));
        }
    }
    found
}

#[test]
fn the_programs_take_every_command_of_the_pages() {
    let directory = scratch("pages");
    // Nothing is carried out: each command is asked for its help, after it has read its other arguments.
    for (name, program) in [("rollcall", built("rollcall")), ("rollcall-server", program())] {
        let script = format!(
            "#!/bin/sh\nasked=\nfor argument; do\n    shift\n    \
             [ \"$argument\" = -- ] && [ -z \"$asked\" ] && asked=1 && set -- \"$@\" --help\n    \
             set -- \"$@\" \"$argument\"\ndone\n[ -n \"$asked\" ] || set -- \"$@\" --help\nexec '{}' \"$@\"\n",
            program.display()
        );
        let shim = directory.path().join(name);
        fs::write(&shim, script).unwrap();
        fs::set_permissions(&shim, fs::Permissions::from_mode(0o755)).unwrap();
    }
    fs::write(directory.path().join("limits.json"), "{}").unwrap();
    let mut refused = Vec::new();
    let mut count = 0;
    for file in pages() {
        for command in commands(&page(&file)) {
            let mut shell = Command::new("bash");
            shell.args(["-c", &command]).current_dir(directory.path()).env("PATH", path_with(directory.path()));
            let output = shell.output().unwrap();
            count += 1;
            let said = String::from_utf8_lossy(&output.stdout);
            if !output.status.success() || !said.contains("Usage: rollcall") {
                let said = String::from_utf8_lossy(&output.stderr);
                refused.push(format!("{}: {command}: {said}", file.display()));
            }
        }
    }
    assert!(refused.is_empty(), "{refused:#?}");
    assert!(count > 40, "{count} commands");
}
