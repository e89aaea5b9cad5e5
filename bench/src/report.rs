//! The result of a run: samples by workload, case and system, as JSON. [`table`](crate::table) prints them as text.

use std::time::Duration;

use serde_json::{Value as Json, json};

use crate::aims::aim;
pub(crate) use crate::case::{ALONE, Case, ETCD, ETCD_STREAMS, KAZOO, ROLLCALL, System, Unit, ZOOKEEPER};
use crate::stats::Spread;

/// A case with its samples.
#[derive(Debug)]
pub(crate) struct Row {
    /// The case.
    pub(crate) case: Case,
    /// One sample a round for each system, in the order in which the systems first appeared.
    systems: Vec<(System, Vec<f64>)>,
}

impl Row {
    /// A system's samples.
    pub(crate) fn samples(&self, system: System) -> &[f64] {
        self.systems.iter().find(|(known, _)| *known == system).map_or(&[], |(_, samples)| samples)
    }

    /// Every peer, with its own figures, and with Rollcall's divided by them. The ratio is taken round by round, since
    /// a disturbance in a round affects both systems; the second spread is that of these ratios.
    pub(crate) fn ratios(&self) -> impl Iterator<Item = (System, Spread, Spread)> {
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
    /// Facts about the machine and the systems.
    pub(crate) facts: Vec<(&'static str, String)>,
    /// The number of counted rounds.
    pub(crate) rounds: u32,
    /// The duration of each measurement.
    pub(crate) seconds: f64,
    /// Every case, in the order in which the warm-up reached it.
    pub(crate) rows: Vec<Row>,
    /// How the systems were driven: by workload, or for all workloads.
    pub(crate) notes: Vec<(&'static str, &'static str)>,
}

/// One round of a workload: its number, and the report that its samples go to.
#[derive(Debug)]
pub(crate) struct Round<'a> {
    report: &'a mut Report,
    number: u32,
    /// The duration of a measurement.
    pub(crate) time: Duration,
}

impl Round<'_> {
    /// Orders the measurements of this round. Each comes first in some round, and not always after the same other.
    pub(crate) fn turn<T, const N: usize>(&self, mut all: [T; N]) -> [T; N] {
        let number = usize::try_from(self.number).unwrap_or_default();
        all.rotate_left(number % N);
        if number / N % 2 == 1 {
            all.reverse();
        }
        all
    }

    /// Adds a sample of a system. A round that warms up only sets the order of cases and systems in the report.
    pub(crate) fn add(&mut self, case: &Case, system: System, sample: f64) {
        let samples = self.report.samples(case, system);
        if self.number > 0 {
            samples.push(sample);
        }
    }
}

impl Report {
    /// An empty report.
    pub(crate) fn new(facts: Vec<(&'static str, String)>, rounds: u32, seconds: f64) -> Report {
        Report { facts, rounds, seconds, rows: Vec::new(), notes: Vec::new() }
    }

    /// A round; number 0 warms up.
    pub(crate) fn round(&mut self, number: u32) -> Round<'_> {
        let time = Duration::from_secs_f64(self.seconds);
        Round { report: self, number, time }
    }

    /// The list that a system's samples are added to.
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

    /// The report with every sample.
    pub(crate) fn json(&self) -> Json {
        let facts: serde_json::Map<String, Json> =
            self.facts.iter().map(|(name, fact)| ((*name).to_owned(), json!(fact))).collect();
        let spread = |spread: Spread| json!({"median": spread.median, "min": spread.min, "max": spread.max});
        let rows = self.rows.iter().map(|row| {
            let systems = row.systems.iter().map(|(system, samples)| {
                json!({"system": system.0, "samples": samples, "spread": Spread::of(samples).map(spread)})
            });
            let ratios = row.ratios().map(
                |(peer, _, ratio)| json!({"peer": peer.0, "spread": spread(ratio), "aim": aim(&row.case, Some(peer))}),
            );
            json!({
                "workload": row.case.workload,
                "case": row.case.name,
                "unit": row.case.unit.label(),
                "more_is_better": row.case.unit.more_is_better(),
                "aim": aim(&row.case, None),
                "systems": systems.collect::<Json>(),
                "rollcall_divided_by": ratios.collect::<Json>(),
            })
        });
        json!({
            "facts": facts,
            "rounds": self.rounds,
            "seconds": self.seconds,
            "notes": self.notes.iter().map(|(about, note)| ((*about).to_owned(), json!(note))).collect::<serde_json::Map<_, _>>(),
            "rows": rows.collect::<Json>(),
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    fn case() -> Case {
        Case { workload: "get", name: "1 at once".to_owned(), unit: Unit::PerSecond }
    }

    /// A report of three rounds on one case.
    pub(crate) fn report() -> Report {
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
    fn the_round_that_warms_up_is_not_counted() {
        let json = report().json();
        assert_eq!(json["rows"][0]["systems"][0]["samples"], json!([1000.0, 3000.0, 20_000.0]));
        assert_eq!(json["rows"][0]["rollcall_divided_by"][0]["spread"]["max"], json!(3.0));
        assert_eq!(json["facts"]["cores"], "2");
        assert_eq!(json["rows"][0]["more_is_better"], true);
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
    fn every_system_comes_first_in_some_round() {
        let mut report = Report::new(Vec::new(), 1, 0.5);
        let orders: Vec<[char; 3]> = (0..4).map(|number| report.round(number).turn(['a', 'b', 'c'])).collect();
        assert_eq!(orders, [['a', 'b', 'c'], ['b', 'c', 'a'], ['c', 'a', 'b'], ['c', 'b', 'a']]);
    }
}
