//! The report as text: facts, a line for each peer of each case, and notes.

use std::fmt;

use crate::aims::aim;
use crate::case::{ALONE, ROLLCALL, Unit};
use crate::report::{Report, Row};
use crate::stats::Spread;

/// The workloads with many figures of many subjects. They have a table of their own.
const PIVOTED: [&str; 1] = ["citizen"];
const LEGEND: &str = "In brackets: without a flood. !: the aim is missed.";

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rounds = ("rounds", format!("{} of {} s a measurement, after one to warm up", self.rounds, self.seconds));
        for (name, fact) in self.facts.iter().chain([&rounds]) {
            writeln!(formatter, "{name:<18}{fact}")?;
        }
        writeln!(formatter)?;
        let table = table(self);
        // Words are in these columns of the main table, and only in the first column of the others.
        write_table(formatter, &table, |column| matches!(column, 0..=2 | 5 | 9))?;
        for workload in PIVOTED {
            let table = pivoted(self, workload);
            if !table.is_empty() {
                writeln!(formatter)?;
                write_table(formatter, &table, |column| column == 0)?;
                writeln!(formatter, "\n{LEGEND}")?;
            }
        }
        writeln!(formatter)?;
        writeln!(
            formatter,
            "Figures are medians over the rounds. ratio: rollcall / peer, the median of each round's own;"
        )?;
        writeln!(formatter, "above 1 is in Rollcall's favour where the unit is /s, below 1 where it is another.")?;
        for (about, note) in &self.notes {
            writeln!(formatter, "\n{}", wrapped(&format!("{about}: {note}")))?;
        }
        Ok(())
    }
}

/// Writes aligned columns: words to the left, figures to the right.
fn write_table(
    formatter: &mut fmt::Formatter<'_>,
    table: &[Vec<String>],
    is_word: impl Fn(usize) -> bool,
) -> fmt::Result {
    let columns = table.first().map_or(0, Vec::len);
    let width = |column: usize| table.iter().map(|line| line[column].chars().count()).max().unwrap_or_default();
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for line in table {
        let mut text = String::new();
        for (column, (cell, width)) in line.iter().zip(&widths).enumerate() {
            let padded = if is_word(column) { format!("{cell:<width$}") } else { format!("{cell:>width$}") };
            text.push_str(&padded);
            text.push_str("  ");
        }
        writeln!(formatter, "{}", text.trim_end())?;
    }
    Ok(())
}

/// A line for each subject of a workload whose cases are named `FIGURE: SUBJECT`, and a column for each figure.
fn pivoted(report: &Report, workload: &str) -> Vec<Vec<String>> {
    let (mut figures, mut subjects, mut cells) = (Vec::new(), Vec::new(), Vec::new());
    for row in report.rows.iter().filter(|row| row.case.workload == workload) {
        let Some((figure, subject)) = row.case.name.split_once(": ") else { continue };
        let figure = match row.case.unit.label() {
            "" => figure.to_owned(),
            label => format!("{figure}, {label}"),
        };
        if !figures.contains(&figure) {
            figures.push(figure.clone());
        }
        if !subjects.contains(&subject) {
            subjects.push(subject);
        }
        cells.push((figure, subject, cell(row)));
    }
    let found = |subject: &str, figure: &String| {
        let cell = cells.iter().find(|(of, about, _)| (of, *about) == (figure, subject));
        cell.map_or_else(|| "–".to_owned(), |(_, _, text)| text.clone())
    };
    let line = |subject: &&str| {
        let found = figures.iter().map(|figure| found(subject, figure));
        std::iter::once((*subject).to_owned()).chain(found).collect()
    };
    let lines: Vec<Vec<String>> = subjects.iter().map(line).collect();
    if lines.is_empty() {
        return lines;
    }
    let head = std::iter::once(workload.to_owned()).chain(figures.iter().cloned()).collect();
    std::iter::once(head).chain(lines).collect()
}

/// A figure, with its value without the flood, and with a mark where it misses its aim.
fn cell(row: &Row) -> String {
    let median = |samples| Spread::of(samples).map_or(0.0, |spread| spread.median);
    let (ours, alone) = (median(row.samples(ROLLCALL)), row.samples(ALONE));
    let is_missed = |value, peer| aim(&row.case, peer).is_some_and(|aim| !row.case.unit.reaches(value, aim));
    let is_missed = is_missed(ours, None) || !alone.is_empty() && is_missed(ours / median(alone), Some(ALONE));
    let beside = if alone.is_empty() { String::new() } else { format!(" ({})", number(median(alone))) };
    format!("{}{beside}{}", number(ours), if is_missed { " !" } else { "" })
}

fn table(report: &Report) -> Vec<Vec<String>> {
    let head = ["workload", "case", "unit", "rollcall", "min – max", "peer", "peer's", "min – max", "ratio", "aim"];
    let mut lines = vec![head.map(str::to_owned).to_vec()];
    for row in report.rows.iter().filter(|row| !PIVOTED.contains(&row.case.workload)) {
        let (case, Some(ours)) = (&row.case, Spread::of(row.samples(ROLLCALL))) else { continue };
        let figure = [
            case.workload.to_owned(),
            case.name.clone(),
            case.unit.label().to_owned(),
            number(ours.median),
            range(ours),
        ];
        let own_aim = aim(case, None).map(|aim| verdict(case.unit, ours.median, aim));
        let mut peers: Vec<[String; 5]> = row
            .ratios()
            .map(|(peer, theirs, ratio)| {
                let aim = aim(case, Some(peer)).map(|aim| verdict(case.unit, ratio.median, aim));
                let ratio = format!("{:.2}", ratio.median);
                [peer.0.to_owned(), number(theirs.median), range(theirs), ratio, aim.unwrap_or_default()]
            })
            .collect();
        if peers.is_empty() || own_aim.is_some() {
            let nobody = || String::new();
            peers.insert(0, [nobody(), nobody(), nobody(), nobody(), own_aim.unwrap_or_default()]);
        }
        lines.extend(peers.into_iter().map(|peer| figure.iter().cloned().chain(peer).collect()));
    }
    lines
}

/// The aim, and whether the figure reaches it.
fn verdict(unit: Unit, figure: f64, aim: f64) -> String {
    let side = if unit.more_is_better() { '≥' } else { '≤' };
    format!("{side} {aim}{}", if unit.reaches(figure, aim) { "" } else { ": MISSED" })
}

fn range(spread: Spread) -> String {
    format!("{} – {}", number(spread.min), number(spread.max))
}

/// Wraps text between words into lines of at most 110 characters.
fn wrapped(text: &str) -> String {
    let mut lines = String::new();
    let mut width = 0;
    for word in text.split(' ') {
        let length = word.chars().count();
        if width > 0 && width + 1 + length > 110 {
            lines.push('\n');
            width = 0;
        } else if width > 0 {
            lines.push(' ');
            width += 1;
        }
        lines.push_str(word);
        width += length;
    }
    lines
}

/// Formats a number: without decimals and with separated thousands; below 100 with one decimal, below 10 with two.
fn number(value: f64) -> String {
    if value.abs() < 9.995 {
        return format!("{value:.2}");
    }
    if value.abs() < 100.0 {
        return format!("{value:.1}");
    }
    let digits = format!("{value:.0}");
    let mut grouped = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::Case;
    use crate::report::tests::report;

    #[test]
    fn the_table_has_medians_and_the_median_of_the_rounds_ratios() {
        let line = &table(&report())[1];
        assert_eq!(&line[3..9], ["3,000", "1,000 – 20,000", "zookeeper", "1,000", "500 – 10,000", "2.00"]);
    }

    #[test]
    fn a_pivoted_workload_has_a_line_for_each_subject_and_a_mark_where_an_aim_is_missed() {
        let mut report = Report::new(Vec::new(), 1, 0.5);
        let mut round = report.round(1);
        let mut add = |name: &str, unit, system, value| {
            round.add(&Case { workload: "citizen", name: name.to_owned(), unit }, system, value);
        };
        add("Get p99: spin", Unit::Milliseconds, ROLLCALL, 7.0);
        add("Get p99: spin", Unit::Milliseconds, ALONE, 2.0);
        add("missed: puts", Unit::Count, ROLLCALL, 0.0);
        let lines = [["citizen", "Get p99, ms", "missed"], ["spin", "7.00 (2.00) !", "–"], ["puts", "–", "0.00"]];
        assert_eq!(pivoted(&report, "citizen"), lines);
        assert!(pivoted(&report, "get").is_empty());
        assert_eq!(table(&report).len(), 1, "it is in no other table");
    }

    #[test]
    fn an_aim_is_a_least_where_more_is_better_and_a_most_elsewhere() {
        assert_eq!(verdict(Unit::PerSecond, 1.5, 1.5), "≥ 1.5");
        assert_eq!(verdict(Unit::PerSecond, 1.4, 1.5), "≥ 1.5: MISSED");
        assert_eq!(verdict(Unit::Megabytes, 8.0, 25.0), "≤ 25");
        assert_eq!(verdict(Unit::Milliseconds, 151.0, 150.0), "≤ 150: MISSED");
    }

    #[test]
    fn long_notes_are_broken_between_words() {
        let text = wrapped(&"twelve bytes ".repeat(20));
        assert!(text.lines().count() == 3 && text.lines().all(|line| line.len() <= 110), "{text}");
    }

    #[test]
    fn columns_stand_under_each_other() {
        let text = report().to_string();
        let lines: Vec<&str> = text.lines().collect();
        let head = lines.iter().position(|line| line.starts_with("workload")).unwrap();
        let start = |line: &str, word: &str| line.split_once(word).map(|(before, _)| before.chars().count());
        assert_eq!(start(lines[head], "unit"), start(lines[head + 1], "/s"), "{text}");
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!(
            [number(0.25), number(99.94), number(100.4), number(1_234_567.0)],
            ["0.25", "99.9", "100", "1,234,567"]
        );
    }
}
