//! The report as text: facts, a line for each peer of each case, notes.

use std::fmt;

use crate::report::{ROLLCALL, Report};
use crate::stats::Spread;

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rounds = ("rounds", format!("{} of {} s a measurement, after one to warm up", self.rounds, self.seconds));
        for (name, fact) in self.facts.iter().chain([&rounds]) {
            writeln!(formatter, "{name:<18}{fact}")?;
        }
        writeln!(formatter)?;
        let table = table(self);
        let columns = table.first().map_or(0, Vec::len);
        let width = |column: usize| table.iter().map(|line| line[column].chars().count()).max().unwrap_or_default();
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for line in &table {
            let mut text = String::new();
            for (column, (cell, width)) in line.iter().zip(&widths).enumerate() {
                // Words to the left, figures to the right.
                let padded =
                    if matches!(column, 0..=2 | 5) { format!("{cell:<width$}") } else { format!("{cell:>width$}") };
                text.push_str(&padded);
                text.push_str("  ");
            }
            writeln!(formatter, "{}", text.trim_end())?;
        }
        writeln!(formatter)?;
        writeln!(
            formatter,
            "Figures are medians over the rounds. ratio: rollcall / peer, the median of each round's own;"
        )?;
        writeln!(formatter, "above 1 is in Rollcall's favour where the unit is /s, below 1 where it is µs.")?;
        for (about, note) in self.notes() {
            writeln!(formatter, "\n{}", wrapped(&format!("{about}: {note}")))?;
        }
        Ok(())
    }
}

fn table(report: &Report) -> Vec<Vec<String>> {
    let head = ["workload", "case", "unit", "rollcall", "min – max", "peer", "peer's", "min – max", "ratio"];
    let mut lines = vec![head.map(str::to_owned).to_vec()];
    for row in &report.rows {
        let Some(ours) = Spread::of(row.samples(ROLLCALL)) else { continue };
        for (peer, theirs, ratio) in row.ratios() {
            lines.push(vec![
                row.case.workload.to_owned(),
                row.case.name.clone(),
                row.case.unit.label().to_owned(),
                number(ours.median),
                range(ours),
                peer.0.to_owned(),
                number(theirs.median),
                range(theirs),
                format!("{:.2}", ratio.median),
            ]);
        }
    }
    lines
}

fn range(spread: Spread) -> String {
    format!("{} – {}", number(spread.min), number(spread.max))
}

/// Broken between words into lines of at most 110 characters.
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

/// Whole, with its thousands set off; below 100 with one decimal.
fn number(value: f64) -> String {
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
    use crate::report::tests::report;

    #[test]
    fn the_table_has_medians_and_the_median_of_the_rounds_ratios() {
        let line = &table(&report())[1];
        assert_eq!(&line[3..], ["3,000", "1,000 – 20,000", "zookeeper", "1,000", "500 – 10,000", "2.00"]);
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
        let end = |line: &str| line.chars().count();
        assert_eq!(end(lines[head]), end(lines[head + 1]), "{text}");
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!(
            [number(0.25), number(99.94), number(100.4), number(1_234_567.0)],
            ["0.2", "99.9", "100", "1,234,567"]
        );
    }
}
