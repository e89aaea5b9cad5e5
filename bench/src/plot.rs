//! The report as a picture: a bar for each ratio, workload by workload.
//!
//! Every bar shows how many times as good as its peer Rollcall is. So a good result points to the right, whatever the
//! unit is. The scale is logarithmic, so that half as good is as long as twice as good.

use std::fmt::Write as _;

use crate::aims::aim;
use crate::case::Unit;
use crate::report::Report;
use crate::stats::Spread;

/// Positions, in pixels.
const WIDTH: f64 = 1250.0;
const CASE_X: f64 = 16.0;
const PEER_X: f64 = 330.0;
const BARS: [f64; 2] = [520.0, 960.0];
const WORDS_X: f64 = 970.0;
const LINE: f64 = 20.0;
const THICK: f64 = 11.0;

const GOOD: &str = "#2f7fb8";
const BAD: &str = "#cf5c36";
const TEXT: &str = "#222";
const FAINT: &str = "#d9d9d9";

/// One line of the picture.
struct Bar {
    /// Empty where the case is the same as on the line above.
    case: String,
    peer: &'static str,
    /// How many times as good.
    favour: Spread,
    aim: Option<f64>,
}

/// The lines of one workload.
struct Group {
    workload: &'static str,
    bars: Vec<Bar>,
}

/// The picture, as an SVG document.
pub(crate) fn svg(report: &Report) -> String {
    let groups = groups(report);
    let mut picture = Picture { body: String::new(), y: 24.0 };
    picture.text(CASE_X, "Rollcall beside its peers", TEXT, "font-size=\"17\" font-weight=\"bold\"");
    picture.y += LINE;
    let legend = "how many times as good Rollcall is: right of 1 it is the better one. Bar: the median of the rounds' \
                  ratios; line: the least and the most; black mark: the aim";
    picture.text(CASE_X, legend, TEXT, "");
    for (name, fact) in &report.facts {
        picture.y += 0.8 * LINE;
        picture.text(CASE_X, &format!("{name}: {fact}"), "#777", "font-size=\"11\"");
    }
    for group in &groups {
        picture.group(group);
    }
    let height = picture.y + LINE;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height:.0}\" viewBox=\"0 0 {WIDTH} \
         {height:.0}\" font-family=\"Helvetica, Arial, DejaVu Sans, sans-serif\" font-size=\"13\">\n<rect width=\"100%\" \
         height=\"100%\" fill=\"white\"/>\n{}</svg>\n",
        picture.body
    )
}

fn groups(report: &Report) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for row in &report.rows {
        let unit = row.case.unit;
        let mut case = format!("{} [{}]", row.case.name, unit.label());
        for (peer, _, ratio) in row.ratios() {
            let bar = Bar {
                case: std::mem::take(&mut case),
                peer: peer.0,
                favour: favour(unit, ratio),
                aim: aim(&row.case, Some(peer)).map(|aim| times_as_good(unit, aim)),
            };
            match groups.last_mut().filter(|group| group.workload == row.case.workload) {
                Some(group) => group.bars.push(bar),
                None => groups.push(Group { workload: row.case.workload, bars: vec![bar] }),
            }
        }
    }
    groups
}

fn times_as_good(unit: Unit, ratio: f64) -> f64 {
    if unit.more_is_better() { ratio } else { 1.0 / ratio }
}

fn favour(unit: Unit, ratio: Spread) -> Spread {
    let [median, one, other] = [ratio.median, ratio.min, ratio.max].map(|ratio| times_as_good(unit, ratio));
    Spread { median, min: one.min(other), max: one.max(other) }
}

/// The scale of the ratios.
struct Scale {
    least: f64,
    most: f64,
}

impl Scale {
    /// The whole powers of ten around all ratios of the group.
    fn of(group: &Group) -> Scale {
        let mut scale = Scale { least: -1.0, most: 1.0 };
        for bar in &group.bars {
            for ratio in [bar.favour.min, bar.favour.max, bar.aim.unwrap_or(1.0)] {
                if ratio.is_normal() {
                    scale.least = scale.least.min(ratio.log10().floor());
                    scale.most = scale.most.max(ratio.log10().ceil());
                }
            }
        }
        scale
    }

    fn x(&self, ratio: f64) -> f64 {
        // A ratio of zero, or to zero, is drawn at the edge.
        let share = (ratio.log10().clamp(self.least, self.most) - self.least) / (self.most - self.least);
        BARS[0] + share * (BARS[1] - BARS[0])
    }

    /// The powers of ten.
    fn ticks(&self) -> impl Iterator<Item = f64> {
        let first = self.least;
        std::iter::successors(Some(first), |tick| Some(tick + 1.0))
            .take_while(|tick| *tick <= self.most)
            .map(|tick| 10_f64.powf(tick))
    }
}

/// The SVG drawn so far, and the position of the next line.
struct Picture {
    body: String,
    y: f64,
}

impl Picture {
    fn group(&mut self, group: &Group) {
        let scale = Scale::of(group);
        self.y += 2.0 * LINE;
        self.text(CASE_X, group.workload, TEXT, "font-size=\"15\" font-weight=\"bold\"");
        for tick in scale.ticks() {
            let x = scale.x(tick);
            self.text(x, &times(tick), "#777", "font-size=\"11\" text-anchor=\"middle\"");
            let (top, bottom) = (self.y + 5.0, self.y + LINE * (group.bars.len() as f64 + 0.5));
            let color = if tick == 1.0 { "#888" } else { FAINT };
            self.line([x, top], [x, bottom], color, 1.0);
        }
        for bar in &group.bars {
            self.y += LINE;
            self.bar(bar, &scale);
        }
    }

    fn bar(&mut self, bar: &Bar, scale: &Scale) {
        let middle = self.y - 4.5;
        if !bar.case.is_empty() {
            self.line([CASE_X, self.y - 15.0], [WIDTH - CASE_X, self.y - 15.0], "#eee", 1.0);
        }
        self.text(CASE_X, &bar.case, TEXT, "");
        self.text(PEER_X, bar.peer, TEXT, "");
        let Spread { median, min, max } = bar.favour;
        let (from, to) = (scale.x(median.min(1.0)), scale.x(median.max(1.0)));
        let color = if median >= 1.0 { GOOD } else { BAD };
        let (top, width) = (middle - THICK / 2.0, (to - from).max(1.0));
        // Writing to a string does not fail.
        let _ = writeln!(
            self.body,
            "<rect x=\"{from:.1}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"{THICK}\" fill=\"{color}\"/>"
        );
        self.line([scale.x(min), middle], [scale.x(max), middle], TEXT, 1.5);
        for end in [min, max] {
            self.line([scale.x(end), middle - 3.0], [scale.x(end), middle + 3.0], TEXT, 1.5);
        }
        let mut words = format!("{} ({} – {})", times(median), number(min), number(max));
        if let Some(aim) = bar.aim {
            let x = scale.x(aim);
            self.line([x, middle - 9.0], [x, middle + 9.0], "black", 3.0);
            let missed = if median < aim { " missed" } else { "" };
            let _ = write!(words, ", aim {}{missed}", number(aim));
        }
        self.text(WORDS_X, &words, if bar.aim.is_some_and(|aim| median < aim) { BAD } else { TEXT }, "");
    }

    fn text(&mut self, x: f64, text: &str, color: &str, more: &str) {
        let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        let _ = writeln!(self.body, "<text x=\"{x:.1}\" y=\"{:.1}\" fill=\"{color}\" {more}>{text}</text>", self.y);
    }

    fn line(&mut self, [x1, y1]: [f64; 2], [x2, y2]: [f64; 2], color: &str, width: f64) {
        let _ = writeln!(
            self.body,
            "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"{color}\" stroke-width=\"{width}\"/>"
        );
    }
}

fn times(ratio: f64) -> String {
    format!("{}×", number(ratio))
}

/// Formats a ratio with two significant digits, and without decimals from 10.
fn number(ratio: f64) -> String {
    let digits = match ratio {
        9.95.. => 0,
        0.995.. => 1,
        0.0995.. => 2,
        0.00995.. => 3,
        _ => 4,
    };
    let text = format!("{ratio:.digits$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::report;

    #[test]
    fn less_of_what_is_to_be_little_is_as_good_as_more_of_what_is_to_be_much() {
        let ratio = Spread { median: 0.5, min: 0.25, max: 2.0 };
        assert_eq!(favour(Unit::PerSecond, ratio), ratio);
        assert_eq!(favour(Unit::Milliseconds, ratio), Spread { median: 2.0, min: 0.5, max: 4.0 });
    }

    #[test]
    fn a_bar_reaches_from_one_to_its_ratio() {
        let groups = groups(&report());
        assert_eq!((groups.len(), groups[0].bars.len(), groups[0].bars[0].favour.median), (1, 1, 2.0));
        let scale = Scale::of(&groups[0]);
        assert_eq!((scale.x(0.1), scale.x(1.0), scale.x(10.0)), (BARS[0], (BARS[0] + BARS[1]) / 2.0, BARS[1]));
        assert_eq!((scale.x(0.0), scale.x(f64::INFINITY)), (BARS[0], BARS[1]));
        let bar = format!("<rect x=\"{:.1}\"", scale.x(1.0));
        let picture = svg(&report());
        assert!(picture.contains(&bar) && picture.contains(">zookeeper<"), "{picture}");
    }

    #[test]
    fn what_stands_in_it_is_escaped() {
        let mut report = report();
        report.facts.push(("a<b", "c&d".to_owned()));
        assert!(svg(&report).contains("a&lt;b: c&amp;d"));
    }

    #[test]
    fn numbers_are_short() {
        let numbers = [0.0004, 0.0123, 0.5, 1.0, 2.345, 9.96, 12.3, 1234.5].map(number);
        assert_eq!(numbers, ["0.0004", "0.012", "0.5", "1", "2.3", "10", "12", "1234"]);
    }
}
