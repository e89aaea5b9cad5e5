//! What a run found: samples by workload, case and system, as a table and as JSON.

use std::fmt;

use serde_json::{Value as Json, json};

use crate::stats::Spread;
use crate::workloads::NOTES;

/// A system under test, and the way in which it was driven where there are several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct System(pub(crate) &'static str);

/// Rollcall, through gRPC. Every other system is its peer.
pub(crate) const ROLLCALL: System = System("rollcall");

/// ZooKeeper, through the crate zookeeper-client on one session.
pub(crate) const ZOOKEEPER: System = System("zookeeper");

/// What a figure counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Operations per second: more is better.
    PerSecond,
    /// Microseconds: less is better.
    Microseconds,
}

impl Unit {
    fn label(self) -> &'static str {
        match self {
            Unit::PerSecond => "/s",
            Unit::Microseconds => "µs",
        }
    }
}

/// One thing that is measured of several systems.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Case {
    /// The workload that it belongs to.
    pub(crate) workload: &'static str,
    /// What is done.
    pub(crate) name: String,
    /// What is counted.
    pub(crate) unit: Unit,
}

#[derive(Debug)]
struct Row {
    case: Case,
    /// One sample a round of each system, in the order in which they first came.
    systems: Vec<(System, Vec<f64>)>,
}

impl Row {
    fn samples(&self, system: System) -> &[f64] {
        self.systems.iter().find(|(known, _)| *known == system).map_or(&[], |(_, samples)| samples)
    }

    /// Every peer, with Rollcall's figure divided by the peer's. Each round has its own ratio, since what disturbs a
    /// round disturbs both; this is their spread.
    fn ratios(&self) -> impl Iterator<Item = (System, Spread, Spread)> {
        let rollcall = self.samples(ROLLCALL);
        self.systems.iter().filter(|(system, _)| *system != ROLLCALL).filter_map(move |(system, samples)| {
            let ratios: Vec<f64> = rollcall.iter().zip(samples).map(|(ours, theirs)| ours / theirs).collect();
            Some((*system, Spread::of(samples)?, Spread::of(&ratios)?))
        })
    }
}

/// The report of a run.
#[derive(Debug)]
pub(crate) struct Report {
    facts: Vec<(&'static str, String)>,
    rounds: u32,
    seconds: f64,
    rows: Vec<Row>,
}

/// Takes the samples of one round.
#[derive(Debug)]
pub(crate) struct Round<'a> {
    report: &'a mut Report,
    warm_up: bool,
}

impl Round<'_> {
    /// Adds what a system reached. Of a round that warms up only the order counts, in which cases and systems come: it
    /// is the report's.
    pub(crate) fn add(&mut self, case: &Case, system: System, sample: f64) {
        let samples = self.report.samples(case, system);
        if !self.warm_up {
            samples.push(sample);
        }
    }
}

impl Report {
    /// An empty report. `facts` say what was measured on what.
    pub(crate) fn new(facts: Vec<(&'static str, String)>, rounds: u32, seconds: f64) -> Report {
        Report { facts, rounds, seconds, rows: Vec::new() }
    }

    /// The samples of a round; round 0 warms up.
    pub(crate) fn round(&mut self, round: u32) -> Round<'_> {
        Round { report: self, warm_up: round == 0 }
    }

    /// Where a system's samples go.
    fn samples(&mut self, case: &Case, system: System) -> &mut Vec<f64> {
        let row = self.rows.iter().position(|row| row.case == *case).unwrap_or_else(|| {
            self.rows.push(Row { case: case.clone(), systems: Vec::new() });
            self.rows.len() - 1
        });
        let systems = &mut self.rows[row].systems;
        let at = systems.iter().position(|(known, _)| *known == system).unwrap_or_else(|| {
            systems.push((system, Vec::new()));
            systems.len() - 1
        });
        &mut systems[at].1
    }

    /// What is to be said of the workloads that ran.
    fn notes(&self) -> impl Iterator<Item = &'static (&'static str, &'static str)> {
        NOTES.iter().filter(|(about, _)| *about == "all" || self.rows.iter().any(|row| row.case.workload == *about))
    }

    /// The report with every sample.
    pub(crate) fn json(&self) -> Json {
        let facts: serde_json::Map<String, Json> =
            self.facts.iter().map(|(name, fact)| ((*name).to_owned(), json!(fact))).collect();
        let spread = |spread: Spread| json!({"median": spread.median, "min": spread.min, "max": spread.max});
        let rows = self.rows.iter().map(|row| {
            let systems = row.systems.iter().map(|(system, samples)| {
                json!({"system": system.0, "samples": samples, "spread": Spread::of(samples).map(spread)})
            });
            let ratios = row.ratios().map(|(peer, _, ratio)| json!({"peer": peer.0, "spread": spread(ratio)}));
            json!({
                "workload": row.case.workload,
                "case": row.case.name,
                "unit": row.case.unit.label(),
                "systems": systems.collect::<Json>(),
                "rollcall_divided_by": ratios.collect::<Json>(),
            })
        });
        json!({
            "facts": facts,
            "rounds": self.rounds,
            "seconds": self.seconds,
            "notes": self.notes().map(|(about, note)| ((*about).to_owned(), json!(note))).collect::<serde_json::Map<_, _>>(),
            "rows": rows.collect::<Json>(),
        })
    }

    fn table(&self) -> Vec<Vec<String>> {
        let head = ["workload", "case", "unit", "rollcall", "min – max", "peer", "peer's", "min – max", "ratio"];
        let mut lines = vec![head.map(str::to_owned).to_vec()];
        for row in &self.rows {
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
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rounds = ("rounds", format!("{} of {} s a measurement, after one to warm up", self.rounds, self.seconds));
        for (name, fact) in self.facts.iter().chain([&rounds]) {
            writeln!(formatter, "{name:<18}{fact}")?;
        }
        writeln!(formatter)?;
        let table = self.table();
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

    fn case() -> Case {
        Case { workload: "get", name: "1 at once".to_owned(), unit: Unit::PerSecond }
    }

    fn report() -> Report {
        let mut report = Report::new(vec![("cores", "2".to_owned())], 3, 0.5);
        for (round, (ours, theirs)) in
            [(9.0, 9.0), (1000.0, 500.0), (3000.0, 1000.0), (20_000.0, 10_000.0)].into_iter().enumerate()
        {
            let mut round = report.round(u32::try_from(round).unwrap());
            round.add(&case(), ROLLCALL, ours);
            round.add(&case(), ZOOKEEPER, theirs);
        }
        report
    }

    #[test]
    fn the_table_has_medians_and_the_median_of_the_rounds_ratios() {
        let line = &report().table()[1];
        assert_eq!(&line[3..], ["3,000", "1,000 – 20,000", "zookeeper", "1,000", "500 – 10,000", "2.00"]);
    }

    #[test]
    fn the_round_that_warms_up_is_not_counted() {
        let json = report().json();
        assert_eq!(json["rows"][0]["systems"][0]["samples"], json!([1000.0, 3000.0, 20_000.0]));
        assert_eq!(json["rows"][0]["rollcall_divided_by"][0]["spread"]["max"], json!(3.0));
        assert_eq!(json["facts"]["cores"], "2");
    }

    #[test]
    fn the_round_that_warms_up_says_the_order() {
        let mut report = Report::new(Vec::new(), 1, 0.5);
        report.round(0).add(&case(), ROLLCALL, 1.0);
        report.round(0).add(&case(), ZOOKEEPER, 1.0);
        report.round(1).add(&case(), ZOOKEEPER, 1.0);
        report.round(1).add(&case(), ROLLCALL, 1.0);
        assert_eq!(report.json()["rows"][0]["systems"][0]["system"], "rollcall");
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
