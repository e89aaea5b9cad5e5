//! Runs the console blocks of a documentation page, word for word, and compares their output.
//!
//! A block that opens with ```` ```console ```` is a terminal. A line that begins with `$ ` is a command; it continues
//! on lines that begin with `> `, or after a backslash at its end. The lines after it are its output, on standard
//! output and standard error. `…` stands for any text within a line, and on a line of its own for any lines. `^C`
//! interrupts the command.
//!
//! A second word after `console` names the terminal, so that a page can use several at once. A terminal is one shell,
//! from its first block to its last: variables stay. A command that is still running when a block ends runs on, until a
//! later block of that terminal begins with more of its output, with `^C`, or with the next command, which waits for
//! its end. A command that still runs at the end of the page is interrupted.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::{ChildStdin, Command};

use tempfile::TempDir;

use crate::process::{Process, scratch};
use crate::wait::{SOON, eventually};

/// The control character that a terminal prints when a command has ended. No command prints it.
const END: char = '\u{1e}';

/// One command, interruption or further output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The terminal's name; empty for the terminal without a name.
    pub terminal: String,
    /// Its line on the page, from 1.
    pub line: usize,
    /// The action.
    pub action: Action,
    /// The output of the action.
    pub output: Vec<String>,
}

/// The action of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Enters a command.
    Run(String),
    /// Presses Ctrl-C.
    Interrupt,
    /// Waits for more output.
    Watch,
}

/// Reads the console blocks under the first heading that contains `heading`, up to the next heading of its level.
///
/// # Panics
/// When there is no such heading, or no command under it.
pub fn parse(page: &str, heading: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut level = None;
    let mut block: Option<Block> = None;
    for (index, line) in page.lines().enumerate() {
        if let Some(open) = &mut block {
            if line.trim_end() == "```" {
                block = None;
            } else if let Some(terminal) = &open.terminal {
                read_line(&mut steps, terminal, &mut open.begun, index + 1, line);
            }
        } else if let Some(info) = line.strip_prefix("```") {
            let mut words = info.split_whitespace();
            let shown = level.is_some() && words.next() == Some("console");
            block = Some(Block { terminal: shown.then(|| words.next().unwrap_or_default().to_owned()), begun: false });
        } else if line.starts_with('#') {
            let depth = line.bytes().take_while(|byte| *byte == b'#').count();
            match level {
                Some(level) if depth <= level => break,
                None if line.to_lowercase().contains(&heading.to_lowercase()) => level = Some(depth),
                _ => {}
            }
        }
    }
    assert!(level.is_some(), "no heading with {heading:?}");
    assert!(!steps.is_empty(), "no console block under the heading with {heading:?}");
    steps
}

struct Block {
    /// `None`: a block that is no terminal, or is outside the section.
    terminal: Option<String>,
    begun: bool,
}

fn read_line(steps: &mut Vec<Step>, terminal: &str, begun: &mut bool, number: usize, line: &str) {
    let step = |action| Step { terminal: terminal.to_owned(), line: number, action, output: Vec::new() };
    if let Some(command) = line.strip_prefix("$ ") {
        steps.push(step(Action::Run(command.to_owned())));
    } else if line == "^C" {
        steps.push(step(Action::Interrupt));
    } else {
        if !*begun {
            steps.push(step(Action::Watch));
        }
        let last = steps.last_mut().expect("the block has begun");
        match &mut last.action {
            Action::Run(command) if last.output.is_empty() && (line.starts_with("> ") || command.ends_with('\\')) => {
                command.push('\n');
                command.push_str(line.strip_prefix("> ").unwrap_or(line));
            }
            _ => last.output.push(line.to_owned()),
        }
    }
    *begun = true;
}

/// Carries the steps out, with `environment` added to that of the test program.
///
/// # Panics
/// When the output differs from the page, or does not come in time.
pub async fn run(steps: &[Step], environment: &[(&str, &str)]) {
    let directory = scratch("console");
    let mut terminals: BTreeMap<&str, Terminal> = BTreeMap::new();
    for step in steps {
        let terminal = terminals
            .entry(&step.terminal)
            .or_insert_with_key(|name| Terminal::open(&format!("terminal-{name}"), &directory, environment));
        terminal.step(step).await;
    }
    for terminal in terminals.values_mut() {
        terminal.close().await;
    }
}

struct Terminal {
    shell: Process,
    input: ChildStdin,
    /// Number of commands entered.
    commands: usize,
    /// The output that the last command has to have printed by now, and its line on the page.
    shown: Vec<String>,
    line: usize,
}

/// The output of a command so far.
struct Printed {
    lines: Vec<String>,
    ended: bool,
}

impl Terminal {
    fn open(name: &str, directory: &TempDir, environment: &[(&str, &str)]) -> Terminal {
        let mut command = Command::new("bash");
        command.args(["--noprofile", "--norc"]).envs(environment.iter().copied());
        let (shell, mut input) = Process::spawn_with_input(name, directory.path(), &mut command);
        // The shell outlives an interrupt, but its commands do not.
        writeln!(input, "exec 2>&1; trap : INT").expect("the shell reads");
        Terminal { shell, input, commands: 0, shown: Vec::new(), line: 0 }
    }

    async fn step(&mut self, step: &Step) {
        match &step.action {
            Action::Run(command) => {
                self.ended().await;
                let quoted = command.replace('\'', r"'\''");
                writeln!(self.input, "eval '{quoted}' </dev/null; printf '\\036'").expect("the shell reads");
                self.commands += 1;
                self.shown.clone_from(&step.output);
                self.line = step.line;
                if step.output.is_empty() {
                    return self.ended().await;
                }
            }
            Action::Interrupt => {
                self.shell.interrupt();
                self.shown.extend_from_slice(&step.output);
                return self.ended().await;
            }
            Action::Watch => self.shown.extend_from_slice(&step.output),
        }
        self.matches(false).await;
    }

    /// Waits until the last command has ended, with the output that the page shows.
    async fn ended(&mut self) {
        if self.commands > 0 {
            self.matches(true).await;
        }
    }

    async fn matches(&mut self, to_the_end: bool) {
        let what = format!("the output that line {} shows", self.line);
        eventually(&what, SOON, async || {
            let printed = self.printed();
            if !lines_match(&self.shown, &printed.lines) {
                Err(format!("\n{}\ninstead of\n{}\n", printed.lines.join("\n"), self.shown.join("\n")))
            } else if to_the_end && !printed.ended {
                Err("the command goes on".to_owned())
            } else {
                Ok(())
            }
        })
        .await;
    }

    fn printed(&self) -> Printed {
        let all = self.shell.stdout();
        let mut outputs = all.split(END).skip(self.commands - 1);
        let lines = outputs.next().unwrap_or_default().lines().map(str::to_owned).collect();
        Printed { lines, ended: outputs.next().is_some() }
    }

    async fn close(&mut self) {
        // Output that arrived after the step passed counts too.
        self.matches(false).await;
        if !self.printed().ended {
            self.shell.interrupt();
        }
        eventually("the terminal's last command ends", SOON, async || {
            if self.printed().ended { Ok(()) } else { Err("it goes on".to_owned()) }
        })
        .await;
    }
}

/// Whether `shown` matches `printed`. A line `…` in `shown` stands for any lines.
fn lines_match(shown: &[String], printed: &[String]) -> bool {
    match shown.split_first() {
        None => printed.is_empty(),
        Some((first, rest)) if first.trim() == "…" => {
            (0..=printed.len()).any(|skipped| lines_match(rest, &printed[skipped..]))
        }
        Some((first, rest)) => {
            printed.split_first().is_some_and(|(line, others)| line_matches(first, line) && lines_match(rest, others))
        }
    }
}

/// Whether `shown` matches `printed`. `…` in `shown` stands for any text. Trailing blanks do not count.
fn line_matches(shown: &str, printed: &str) -> bool {
    let printed = printed.trim_end();
    let mut parts = shown.trim_end().split('…');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = printed.strip_prefix(first) else { return false };
    let Some(last) = parts.next_back() else { return rest.is_empty() };
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = r###"# Title
```console
$ echo not in the section
```
## A tour of the shell
```sh
$ echo no console
```
```console
$ word=blue; echo 'it'"'"'s a sky'
it's a sky
$ echo one \
  two
one two
$ cat <<X
> a $word thing
> X
> echo done >&2
a … thing
done
```
```console other
$ bash -c 'echo waiting; trap "echo interrupted; exit" INT; while :; do sleep 0.1; done'
waiting
```
```console
$ echo $word; printf '%s\n' 1 2 3 4
blue
…
4
```
```console other
^C
interrupted
```
### A part of it
```console third
$ echo still here; sleep 600
still here
```
## Another section
```console
$ echo not in the section either
```
"###;

    #[test]
    fn a_page_is_read_step_by_step() {
        let steps = parse(PAGE, "tour");
        let lines: Vec<usize> = steps.iter().map(|step| step.line).collect();
        assert_eq!(lines, [10, 12, 15, 23, 27, 33, 38]);
        assert_eq!(steps[1].action, Action::Run("echo one \\\n  two".to_owned()));
        assert_eq!(steps[2].action, Action::Run("cat <<X\na $word thing\nX\necho done >&2".to_owned()));
        assert_eq!(steps[5].action, Action::Interrupt);
        assert_eq!(steps[3].terminal, "other");
        assert_eq!(steps[4].output, ["blue", "…", "4"]);
    }

    #[tokio::test]
    async fn a_page_that_tells_the_truth_passes() {
        run(&parse(PAGE, "tour"), &[]).await;
    }

    #[tokio::test(start_paused = true)]
    #[should_panic(expected = "the output that line 10 shows")]
    async fn a_page_that_lies_fails() {
        let mut steps = parse(PAGE, "tour");
        steps.truncate(1);
        steps[0].output = vec!["it's a sea".to_owned()];
        run(&steps, &[]).await;
    }

    #[test]
    fn an_ellipsis_stands_for_any_text_and_any_lines() {
        for (shown, printed) in [("a…c", "abc"), ("…", ""), ("…", "x"), ("a…", "a"), ("…b…d", "abcd"), ("x", "x  ")]
        {
            assert!(line_matches(shown, printed), "{shown} {printed}");
        }
        for (shown, printed) in [("a…c", "abd"), ("a", "ab"), ("…bb…b", "abb"), ("", "x")] {
            assert!(!line_matches(shown, printed), "{shown} {printed}");
        }
        let lines = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert!(lines_match(&lines("a … d"), &lines("a b c d")));
        assert!(lines_match(&lines("a … d"), &lines("a d")));
        assert!(!lines_match(&lines("a … d"), &lines("a d e")));
    }
}
