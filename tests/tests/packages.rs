//! The packages that a release publishes, their names and versions, and the commands of the pages that install them.
//! `tests/setup.sh packaging buf` fetches the programs that these tests need.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rollcall_tests::page;
use rollcall_tests::process::{Process, beside, scratch};
use rollcall_tests::server::Server;
use rollcall_tests::wait::SOON;
use rollcall_tests::zookeeper::free_address;
use tempfile::TempDir;

use crate::go_client::{COMPILING, go};
use crate::polyglot::{installed, path_with, root, succeed};

const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The crates that a release publishes, each after the crates that it depends on, with their folders.
const CRATES: [(&str, &str); 6] = [
    ("rollcall-wire", "wire"),
    ("rollcall-proto", "proto"),
    ("rollcall-embedded", "embedded"),
    ("rollcall-client", "client-rs"),
    ("rollcall-cli", "cli"),
    ("rollcall-server", "server"),
];
/// Time in which pip creates and fills an environment, and a package is built, on a busy machine.
const INSTALLING: Duration = Duration::from_secs(300);

/// The files of the repository, ignored ones left out, by their paths below its root.
fn files() -> Vec<PathBuf> {
    let mut git = Command::new("git");
    git.args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]).current_dir(root());
    let listed = git.output().expect("git runs");
    assert!(listed.status.success(), "the tests run outside of a clone: {listed:?}");
    let listed = String::from_utf8(listed.stdout).unwrap();
    // A removed file is listed until the removal is committed.
    listed
        .split_terminator('\0')
        .map(PathBuf::from)
        .filter(|file| root().join(file).symlink_metadata().is_ok())
        .collect()
}

/// Copies the repository as a clone has it, without anything that was built or fetched.
fn clone_into(to: &Path) {
    for file in files() {
        let (from, to) = (root().join(&file), to.join(&file));
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        if from.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(from).unwrap(), to).unwrap();
        } else {
            fs::copy(from, to).unwrap();
        }
    }
}

/// An empty folder in `target/tmp`. Its path is the same in each run, so that results that cargo keeps for it replace older
/// ones.
fn lasting(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    if folder.exists() {
        fs::remove_dir_all(&folder).unwrap();
    }
    fs::create_dir_all(&folder).unwrap();
    folder
}

/// cargo without network. It builds into the workspace's own `target`, where the dependencies are built already.
fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    cargo.env("CARGO_TARGET_DIR", root().join("target")).env("CARGO_NET_OFFLINE", "true");
    cargo
}

/// A new Python environment, in which pip has no index, only the wheels that `tests/setup.sh packaging` has downloaded.
struct Environment {
    folder: TempDir,
    wheels: PathBuf,
}

impl Environment {
    async fn create() -> Environment {
        let wheels = installed("packaging/wheels", "packaging");
        let folder = scratch("environment");
        let mut create = Command::new(installed("packaging/venv/bin/python", "packaging"));
        succeed("venv", create.args(["-m", "venv"]).arg(folder.path()), INSTALLING).await;
        Environment { folder, wheels }
    }

    /// A command in the environment, whose programs come first on the PATH.
    fn command(&self, program: &str) -> Command {
        let programs = self.folder.path().join("bin");
        let mut command = Command::new(program);
        command
            .env("PATH", path_with(&programs))
            .env("PIP_NO_INDEX", "1")
            .env("PIP_FIND_LINKS", &self.wheels)
            .env("PIP_DISABLE_PIP_VERSION_CHECK", "1")
            .env_remove("PYTHONPATH")
            .current_dir(self.folder.path());
        command
    }

    /// Checks that all of Rollcall's client is installed, and that it reaches a server.
    async fn has_the_client(&self, server: &Server) {
        succeed("pip-check", self.command("python").args(["-m", "pip", "check"]), INSTALLING).await;
        let mut program = self.command("python");
        // With -I, Python imports nothing from the folder of the program.
        program.arg("-I").arg(root().join("tests/python/installed.py")).arg(server.grpc().to_string());
        let said = succeed("installed", &mut program, 2 * SOON).await;
        assert_eq!(said, format!("rollcall-client {VERSION} host1:80\n"));
    }
}

#[tokio::test]
async fn the_python_package_is_built_and_installs_into_a_clean_environment() {
    let server = Server::start_embedded(free_address()).await;
    let directory = scratch("wheel");
    let (clone, dist) = (directory.path().join("rollcall"), directory.path().join("dist"));
    clone_into(&clone);
    let mut build = Command::new(installed("packaging/venv/bin/python", "packaging"));
    build.args(["-m", "build", "--no-isolation", "--outdir"]).arg(&dist).arg("client-py").current_dir(&clone);
    succeed("build", &mut build, INSTALLING).await;
    let made: BTreeSet<_> =
        fs::read_dir(&dist).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    let expected = [format!("rollcall_client-{VERSION}-py3-none-any.whl"), format!("rollcall_client-{VERSION}.tar.gz")];
    assert_eq!(made, BTreeSet::from(expected));
    for file in made {
        let environment = Environment::create().await;
        let mut install = environment.command("pip");
        succeed("pip-install", install.arg("install").arg(dist.join(file)), INSTALLING).await;
        environment.has_the_client(&server).await;
    }
}

/// Each crate is compiled from its package, so that a file that the package lacks is missing here too.
#[tokio::test]
async fn crates_build_from_their_packages_and_each_has_its_licence_and_a_readme() {
    let folder = lasting("packages");
    let mut package = cargo();
    package.args(["package", "--quiet", "--locked", "--no-verify", "--allow-dirty", "--workspace", "--target-dir"]);
    package.arg(folder.join("target")).args(["--exclude", "rollcall-tests", "--exclude", "rollcall-bench"]);
    succeed("cargo-package", package.current_dir(root()), COMPILING).await;
    let mut manifest =
        "[workspace]\nresolver = \"3\"\nmembers = [\"*-[0-9]*\", \"program\"]\n\n[patch.crates-io]\n".to_owned();
    for (name, _) in CRATES {
        let archive = folder.join(format!("target/package/{name}-{VERSION}.crate"));
        let mut unpack = Command::new("tar");
        // -m gives the files the present time. The time in the archive is always the same: cargo would not see a change.
        succeed("tar", unpack.arg("-xzmf").arg(archive).arg("-C").arg(&folder), SOON).await;
        let folder = folder.join(format!("{name}-{VERSION}"));
        for file in ["LICENSE", "README.md"] {
            let text = fs::read_to_string(folder.join(file)).unwrap_or_else(|error| panic!("{name}: {file}: {error}"));
            assert!(file != "LICENSE" || text == fs::read_to_string(root().join("LICENSE")).unwrap(), "{name}: {file}");
        }
        manifest += &format!("{name} = {{ path = \"{name}-{VERSION}\" }}\n");
    }
    // With the workspace's profile and lock file, cargo does not build the dependencies again.
    let workspace = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let (_, profiles) = workspace.split_once("[profile.dev]").expect("the workspace has profiles");
    manifest += &format!("\n[profile.dev]{profiles}");
    fs::write(folder.join("Cargo.toml"), manifest).unwrap();
    fs::copy(root().join("Cargo.lock"), folder.join("Cargo.lock")).unwrap();
    // The program of the client's README, in a package that depends on the client.
    let page = fs::read_to_string(root().join("client-rs/README.md")).unwrap();
    let shown = page::blocks(&page, "rollcall-client");
    let head = "[package]\nname = \"program\"\nedition = \"2024\"\n\n";
    let others = "serde_json = \"1\"\ntokio = { version = \"1\", features = [\"full\"] }\n";
    fs::create_dir_all(folder.join("program/src")).unwrap();
    fs::write(folder.join("program/Cargo.toml"), format!("{head}{}{others}", page::only(&shown, "toml"))).unwrap();
    fs::write(folder.join("program/src/main.rs"), page::only(&shown, "rust")).unwrap();
    let mut check = cargo();
    succeed("cargo-check", check.args(["check", "--quiet", "--workspace"]).current_dir(&folder), COMPILING).await;
}

/// The commands that docs/install.md shows below a heading.
fn shown(heading: &str) -> String {
    let page = fs::read_to_string(root().join("docs/install.md")).expect("there is a docs/install.md");
    page::only(&page::blocks(&page, heading), "sh").to_owned()
}

#[tokio::test]
async fn the_python_client_installs_as_the_page_shows() {
    let server = Server::start_embedded(free_address()).await;
    let environment = Environment::create().await;
    clone_into(&environment.folder.path().join("rollcall"));
    let mut shell = environment.command("sh");
    succeed("install-python", shell.args(["-ec", &shown("Python")]), INSTALLING).await;
    environment.has_the_client(&server).await;
}

#[tokio::test]
async fn the_go_client_is_got_as_the_page_shows() {
    let directory = scratch("install-go");
    let module = directory.path().join("program");
    fs::create_dir(&module).unwrap();
    clone_into(&directory.path().join("rollcall"));
    let tour = fs::read_to_string(root().join("docs/tour.md")).unwrap();
    fs::write(module.join("main.go"), page::only(&page::blocks(&tour, "In Go"), "go")).unwrap();
    // client-go's dependencies are downloaded first, and its go.sum has their sums, so the rest needs no network.
    fs::copy(root().join("client-go/go.sum"), module.join("go.sum")).unwrap();
    let offline = |command: &mut Command| {
        command.current_dir(&module).env("GOPROXY", "off").env("GOFLAGS", "-mod=mod");
    };
    let mut fetch = go("client-go");
    succeed("go-mod-download", fetch.args(["mod", "download"]), COMPILING).await;
    let mut init = go("client-go");
    offline(&mut init);
    succeed("go-mod-init", init.args(["mod", "init", "example.com/program"]), SOON).await;
    let mut shell = Command::new("sh");
    offline(&mut shell);
    succeed("install-go", shell.args(["-ec", &shown("Go")]), COMPILING).await;
    let mut build = go("client-go");
    offline(&mut build);
    succeed("go-build", build.args(["build", "-o", "program", "."]), COMPILING).await;
}

/// The test of the packages above compiles the crate.
#[tokio::test]
async fn the_rust_client_is_added_as_the_page_shows() {
    let directory = scratch("install-rust");
    let package = directory.path().join("program");
    fs::create_dir_all(package.join("src")).unwrap();
    clone_into(&directory.path().join("rollcall"));
    fs::write(package.join("src/main.rs"), "fn main() {}\n").unwrap();
    fs::write(package.join("Cargo.toml"), "[package]\nname = \"program\"\nedition = \"2024\"\n").unwrap();
    fs::copy(root().join("Cargo.lock"), package.join("Cargo.lock")).unwrap();
    let mut shell = Command::new("sh");
    shell.args(["-ec", &shown("Rust")]).env("CARGO_NET_OFFLINE", "true").current_dir(&package);
    succeed("cargo-add", &mut shell, COMPILING).await;
    let mut tree = cargo();
    tree.args(["tree", "--edges", "normal", "--prefix", "none", "--format", "{p}"]).current_dir(&package);
    let said = succeed("cargo-tree", &mut tree, COMPILING).await;
    let of_the_command: Vec<_> = said
        .lines()
        .filter(|line| ["clap ", "clap_complete ", "jiff "].iter().any(|name| line.starts_with(name)))
        .collect();
    assert!(said.lines().any(|line| line.starts_with(&format!("rollcall-client v{VERSION}"))), "{said}");
    assert!(of_the_command.is_empty(), "the library depends on crates of the command: {of_the_command:?}");
}

#[test]
fn cargo_installs_the_server_and_the_command_from_where_the_page_says() {
    let commands = shown("Server and command");
    let folders: Vec<_> =
        commands.lines().filter_map(|line| line.strip_prefix("cargo install --locked --path rollcall/")).collect();
    assert_eq!(folders.len(), 2, "{commands}");
    for line in folders {
        let (folder, program) = line.split_once('#').unwrap();
        let manifest = fs::read_to_string(root().join(folder.trim()).join("Cargo.toml")).unwrap();
        let is_its_own = manifest.contains(&format!("name = \"{}\"\n", program.trim()));
        assert!(is_its_own, "{folder} has no program {program}");
    }
}

/// The value of the line that starts with `key` in a manifest.
fn of_manifest(manifest: &str, key: &str) -> String {
    let text = fs::read_to_string(root().join(manifest)).unwrap();
    let value = text.lines().find_map(|line| line.strip_prefix(key));
    value.unwrap_or_else(|| panic!("{manifest} has no {key:?}")).trim_matches(['"', '>', '=', ' ']).to_owned()
}

#[test]
fn the_page_names_the_oldest_versions_that_the_manifests_accept() {
    let page = fs::read_to_string(root().join("docs/install.md")).unwrap();
    let rust = of_manifest("Cargo.toml", "rust-version = ");
    let go = of_manifest("client-go/go.mod", "go ");
    let python = of_manifest("client-py/pyproject.toml", "requires-python = ");
    for (part, version) in [
        ("| server |", format!("Rust {rust}")),
        ("| Rust client |", format!("Rust {rust}")),
        ("| Go client |", format!("Go {}", go.trim_end_matches(".0"))),
        ("| Python client |", format!("Python {python}")),
    ] {
        let row = page.lines().find(|line| line.starts_with(part)).unwrap_or_else(|| panic!("no row {part}"));
        assert!(row.contains(&version), "{row}: not {version}");
    }
}

#[test]
fn all_parts_have_one_version() {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let own = manifest.lines().filter(|line| line.starts_with("rollcall") && !line.starts_with("rollcall-tests"));
    let own: Vec<_> = own.collect();
    assert_eq!(own.len(), 4, "{own:?}");
    for line in own {
        assert!(line.contains(&format!("version = \"{VERSION}\"")), "{line}: not {VERSION}");
    }
    let python = fs::read_to_string(root().join("client-py/rollcall/version.py")).unwrap();
    assert!(python.contains(&format!("VERSION = \"{VERSION}\"\n")), "client-py/rollcall/version.py: not {VERSION}");
}

/// On crates.io and on PyPI the name `rollcall` belongs to other programs.
#[test]
fn no_page_installs_another_program() {
    let members: BTreeSet<_> = files()
        .iter()
        .filter(|file| file.ends_with("Cargo.toml"))
        .filter_map(|file| {
            let text = fs::read_to_string(root().join(file)).unwrap();
            Some(text.strip_prefix("[package]\nname = \"")?.split_once('"')?.0.to_owned())
        })
        .collect();
    assert!(CRATES.iter().all(|(name, _)| members.contains(*name)), "{members:?}");
    let (mut named, mut wrong) = (0, Vec::new());
    for file in files().iter().filter(|file| !file.ends_with("tests/packages.rs")) {
        let Ok(text) = fs::read_to_string(root().join(file)) else { continue };
        for line in text.lines() {
            for start in ["pip install ", "cargo add ", "cargo install ", "-p "] {
                for (at, _) in line.match_indices(&format!("{start}rollcall")) {
                    let rest = &line[at + start.len()..];
                    let end =
                        rest.find(|letter: char| !(letter.is_alphanumeric() || letter == '-')).unwrap_or(rest.len());
                    named += 1;
                    if !members.contains(&rest[..end]) && !line.contains("other programs") {
                        wrong.push(format!("{}: {line}", file.display()));
                    }
                }
            }
        }
    }
    assert!(named > 10, "{named} names were looked at");
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_workflows_call_targets_of_the_makefile() {
    let makefile = fs::read_to_string(root().join("Makefile")).unwrap();
    let mut made = BTreeSet::new();
    for entry in fs::read_dir(root().join(".github/workflows")).unwrap() {
        let workflow = fs::read_to_string(entry.unwrap().path()).unwrap();
        made.extend(workflow.lines().filter_map(|line| Some(line.trim().strip_prefix("- run: make ")?.to_owned())));
    }
    assert!(["check", "test", "archive", "wheel"].iter().all(|target| made.contains(*target)), "{made:?}");
    for target in made {
        assert!(makefile.contains(&format!("\n{target}:")), "the Makefile has no {target}");
    }
}

#[tokio::test]
async fn a_release_archive_has_both_programs_and_a_checksum() {
    let directory = scratch("archive");
    let mut pack = Command::new(root().join("packaging/archive.sh"));
    pack.arg(beside("")).arg(directory.path()).env("CARGO_NET_OFFLINE", "true");
    let archive = succeed("archive", &mut pack, COMPILING).await;
    let archive = Path::new(archive.trim());
    let name = archive.file_name().unwrap().to_str().unwrap();
    assert!(name.starts_with(&format!("rollcall-{VERSION}-")), "{name}");
    let mut check = Command::new("sha256sum");
    check.args(["--check", "--strict"]).arg(format!("{name}.sha256")).current_dir(directory.path());
    succeed("sha256sum", &mut check, INSTALLING).await;
    let mut unpack = Command::new("tar");
    succeed("tar", unpack.arg("-xzf").arg(archive).current_dir(directory.path()), INSTALLING).await;
    let unpacked = directory.path().join(name.trim_end_matches(".tar.gz"));
    for program in ["rollcall", "rollcall-server"] {
        let said = succeed(program, Command::new(unpacked.join(program)).arg("--version"), SOON).await;
        assert_eq!(said, format!("{program} {VERSION}\n"));
    }
    let licences = fs::read_to_string(unpacked.join("THIRD-PARTY-LICENSES.txt")).unwrap();
    for text in ["\ntokio 1.", "\nclap 4.", "Permission is hereby granted"] {
        assert!(licences.contains(text), "the licences lack {text:?}");
    }
    assert!(unpacked.join("LICENSE").is_file());
}

/// A new repository with the API in it, for `packaging/breaking.sh`.
struct Api {
    directory: TempDir,
}

impl Api {
    async fn create() -> Api {
        let api = Api { directory: scratch("breaking") };
        for file in files() {
            if file.starts_with("proto/rollcall")
                || file.ends_with("buf.yaml")
                || file.ends_with("packaging/breaking.sh")
            {
                let to = api.directory.path().join(&file);
                fs::create_dir_all(to.parent().unwrap()).unwrap();
                fs::copy(root().join(&file), to).unwrap();
            }
        }
        api.git(&["init", "--quiet"]).await;
        api.commit().await;
        api
    }

    async fn git(&self, arguments: &[&str]) {
        let mut git = Command::new("git");
        git.args(["-c", "user.name=test", "-c", "user.email=test@localhost"]).args(arguments);
        succeed("git", git.current_dir(self.directory.path()), SOON).await;
    }

    async fn commit(&self) {
        self.git(&["add", "--all"]).await;
        self.git(&["commit", "--quiet", "--message", "x"]).await;
    }

    fn change(&self, file: &str, from: &str, to: &str) {
        let file = self.directory.path().join("proto/rollcall/v1").join(file);
        let text = fs::read_to_string(&file).unwrap();
        assert!(text.contains(from), "{}: no {from:?}", file.display());
        fs::write(file, text.replacen(from, to, 1)).unwrap();
    }

    /// Runs the check. Returns whether it passes, and its output.
    async fn check(&self) -> (bool, String) {
        let mut check = Command::new(self.directory.path().join("packaging/breaking.sh"));
        check.env("BUF", installed("npm/node_modules/.bin/buf", "buf")).env_remove("GITHUB_ACTIONS");
        let directory = scratch("checked");
        let mut process = Process::spawn("breaking", directory.path(), &mut check);
        let status = process.wait(INSTALLING).await;
        (status.success(), process.stdout() + &process.stderr())
    }
}

#[tokio::test]
async fn the_api_is_compared_with_the_last_release_and_without_one_the_check_says_so() {
    let api = Api::create().await;
    let (passes, said) = api.check().await;
    assert!(passes && said.contains("NOT CHECKED: no tag"), "{said}");

    api.git(&["tag", "v0.1.0"]).await;
    let (passes, said) = api.check().await;
    assert!(passes && said.contains("NOT CHECKED"), "a first release has nothing before it: {said}");

    api.change("read.proto", "message GetRequest {", "message GetRequest {\n  // New.\n  string added = 1000;");
    api.commit().await;
    let (passes, said) = api.check().await;
    assert!(passes && said.contains("nothing breaks what v0.1.0 promised"), "{said}");

    // Not committed yet.
    api.change("registry.proto", "rpc Get(", "rpc Fetch(");
    let (passes, said) = api.check().await;
    assert!(!passes && said.contains("\"Get\""), "{said}");

    // A release is compared with the one before it.
    api.commit().await;
    api.git(&["tag", "v0.2.0"]).await;
    let (passes, said) = api.check().await;
    assert!(!passes && said.contains("\"Get\""), "{said}");
}
