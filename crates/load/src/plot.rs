//! Line charts as SVG, for pages that need nothing else.

use std::fmt::Write;

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 280.0;
const LEFT: f64 = 72.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 40.0;
/// Points of a line; of more, the extremes of each stretch are drawn.
const POINTS_MAX: usize = 1000;

/// One line: a name and points. A gap is a point that is not finite.
#[derive(Clone, Debug)]
pub struct Line {
    /// What it is.
    pub name: String,
    /// From left to right.
    pub points: Vec<(f64, f64)>,
    /// A bound, drawn in dashes.
    pub dashed: bool,
}

impl Line {
    /// A line of its own colour.
    pub fn new(name: impl Into<String>, points: impl IntoIterator<Item = (f64, f64)>) -> Self {
        Self { name: name.into(), points: points.into_iter().collect(), dashed: false }
    }
}

/// How values lie on an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// Evenly, from zero on.
    Linear,
    /// By powers of ten.
    Log,
    /// Percentiles: each further nine takes the same room. Values are parts below 1.
    Nines,
}

/// Lines over two axes.
#[derive(Clone, Debug)]
pub struct Chart<'a> {
    /// What lies to the right.
    pub x_name: &'a str,
    /// What rises.
    pub y_name: &'a str,
    /// How the one lies.
    pub x: Scale,
    /// How the other lies.
    pub y: Scale,
    /// The lines, in the order of their colours.
    pub lines: Vec<Line>,
}

/// An axis: from a value to a place.
struct Axis {
    scale: Scale,
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Axis {
    fn new(scale: Scale, values: impl Iterator<Item = f64>, from: f64, to: f64) -> Self {
        let values = values.filter(|value| value.is_finite());
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in values.filter(|value| scale != Scale::Log || *value > 0.0) {
            (low, high) = (low.min(value), high.max(value));
        }
        let (low, high) = match scale {
            Scale::Linear => (0.0, if high > 0.0 { high } else { 1.0 }),
            Scale::Log if high > 0.0 => {
                (10f64.powf(low.log10().floor()), 10f64.powf((high * 1.0001).log10().ceil()))
            }
            Scale::Log => (0.1, 10.0),
            Scale::Nines => (0.0, nines(high.clamp(0.9, 0.999_999))),
        };
        Self { scale, low, high, from, to }
    }

    fn place(&self, value: f64) -> f64 {
        let (value, low, high) = match self.scale {
            Scale::Linear => (value, self.low, self.high),
            Scale::Log => (value.max(self.low).log10(), self.low.log10(), self.high.log10()),
            Scale::Nines => (nines(value), self.low, self.high),
        };
        let part = ((value - low) / (high - low)).clamp(0.0, 1.0);
        self.from + part * (self.to - self.from)
    }

    /// Where there is a mark, and what it says.
    fn ticks(&self) -> Vec<(f64, String)> {
        match self.scale {
            Scale::Linear => {
                let step = step(self.high / 8.0);
                let count = (self.high / step).floor() as usize;
                (0..=count).map(|tick| tick as f64 * step).map(|at| (at, number(at))).collect()
            }
            Scale::Log => {
                let (low, high) =
                    (self.low.log10().round() as i32, self.high.log10().round() as i32);
                (low..=high).map(|power| 10f64.powi(power)).map(|at| (at, number(at))).collect()
            }
            Scale::Nines => {
                let all = [
                    (0.0, "0 %"),
                    (0.5, "50 %"),
                    (0.9, "90 %"),
                    (0.99, "99 %"),
                    (0.999, "99.9 %"),
                    (0.9999, "99.99 %"),
                    (0.99999, "99.999 %"),
                ];
                let within = all.into_iter().filter(|(at, _)| nines(*at) <= self.high + 1e-9);
                within.map(|(at, text)| (at, text.to_owned())).collect()
            }
        }
    }
}

fn nines(part: f64) -> f64 {
    -(1.0 - part).max(1e-9).log10()
}

/// A round number near `about`: 1, 2 or 5 times a power of ten.
fn step(about: f64) -> f64 {
    let power = 10f64.powf(about.log10().floor());
    let leading = about / power;
    power
        * if leading <= 1.0 {
            1.0
        } else if leading <= 2.0 {
            2.0
        } else if leading <= 5.0 {
            5.0
        } else {
            10.0
        }
}

/// A number as people read it.
#[must_use]
pub fn number(value: f64) -> String {
    let size = value.abs();
    if size >= 1e6 {
        return format!("{} M", trimmed(value / 1e6, 2));
    }
    if size >= 1e4 {
        return format!("{} k", trimmed(value / 1e3, 1));
    }
    trimmed(
        value,
        if size >= 100.0 {
            0
        } else if size >= 10.0 {
            1
        } else {
            3
        },
    )
}

fn trimmed(value: f64, digits: usize) -> String {
    let text = format!("{value:.digits$}");
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    }
}

/// A text within HTML.
#[must_use]
pub fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            other => safe.push(other),
        }
    }
    safe
}

/// Points that show what all of them would: of each stretch the lowest and the highest.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    if points.len() <= POINTS_MAX {
        return points.to_vec();
    }
    let stretch = points.len().div_ceil(POINTS_MAX / 2);
    let mut kept = Vec::with_capacity(POINTS_MAX);
    for part in points.chunks(stretch) {
        let low = part.iter().min_by(|one, other| one.1.total_cmp(&other.1));
        let high = part.iter().max_by(|one, other| one.1.total_cmp(&other.1));
        let mut both: Vec<_> = low.into_iter().chain(high).copied().collect();
        both.sort_by(|one, other| one.0.total_cmp(&other.0));
        kept.extend(both);
    }
    kept
}

impl Chart<'_> {
    /// The chart, with its legend.
    #[must_use]
    pub fn svg(&self) -> String {
        self.svg_marked(&[])
    }

    /// The same, with moments marked: a place on the axis to the right, and what it is called.
    #[must_use]
    pub fn svg_marked(&self, marks: &[(f64, String)]) -> String {
        let all = || self.lines.iter().flat_map(|line| &line.points);
        let x = Axis::new(self.x, all().map(|point| point.0), LEFT, WIDTH - RIGHT);
        let y = Axis::new(self.y, all().map(|point| point.1), HEIGHT - BOTTOM, TOP);
        let mut svg = format!(
            "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{} by {}\">",
            escaped(self.y_name),
            escaped(self.x_name)
        );
        self.grid(&mut svg, &x, &y);
        for (number, line) in self.lines.iter().enumerate() {
            draw(&mut svg, line, number, &x, &y);
        }
        for (at, name) in marks {
            let (place, bottom) = (x.place(*at), HEIGHT - BOTTOM);
            let _ = write!(
                svg,
                "<line class=\"mark\" x1=\"{place:.1}\" x2=\"{place:.1}\" y1=\"{TOP}\" y2=\"{bottom}\"/>\
                 <text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                place + 3.0,
                TOP + 10.0,
                escaped(name)
            );
        }
        svg.push_str("</svg>");
        let legend = self.lines.iter().enumerate().map(|(number, line)| {
            let dashed = if line.dashed { " dashed" } else { "" };
            format!(
                "<span class=\"key\"><i class=\"c{}{dashed}\"></i>{}</span>",
                number % 6,
                escaped(&line.name)
            )
        });
        format!("<div class=\"legend\">{}</div>{svg}", legend.collect::<String>())
    }

    fn grid(&self, svg: &mut String, x: &Axis, y: &Axis) {
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        for (at, text) in y.ticks() {
            let place = y.place(at);
            let _ = write!(
                svg,
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{place:.1}\" y2=\"{place:.1}\"/>"
            );
            let _ = write!(
                svg,
                "<text class=\"tick\" x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{text}</text>",
                LEFT - 8.0,
                place + 4.0
            );
        }
        for (at, text) in x.ticks() {
            let place = x.place(at);
            let _ = write!(
                svg,
                "<line class=\"grid\" x1=\"{place:.1}\" x2=\"{place:.1}\" y1=\"{TOP}\" y2=\"{bottom}\"/>"
            );
            let _ = write!(
                svg,
                "<text class=\"tick\" x=\"{place:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{text}</text>",
                bottom + 16.0
            );
        }
        let middle = f64::midpoint(LEFT, right);
        let _ = write!(
            svg,
            "<text class=\"name\" x=\"{middle}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
            HEIGHT - 4.0,
            escaped(self.x_name)
        );
        let height = f64::midpoint(TOP, bottom);
        let _ = write!(
            svg,
            "<text class=\"name\" transform=\"translate(14 {height}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
            escaped(self.y_name)
        );
    }
}

fn draw(svg: &mut String, line: &Line, number: usize, x: &Axis, y: &Axis) {
    let mut path = String::new();
    let mut pen_is_down = false;
    let drawn = |point: &(f64, f64)| {
        point.0.is_finite() && point.1.is_finite() && (y.scale != Scale::Log || point.1 > 0.0)
    };
    for point in thinned(&line.points) {
        if drawn(&point) {
            let step = if pen_is_down { 'L' } else { 'M' };
            let _ = write!(path, "{step}{:.1} {:.1}", x.place(point.0), y.place(point.1));
        }
        pen_is_down = drawn(&point);
    }
    let dashed = if line.dashed { " dashed" } else { "" };
    let name = escaped(&line.name);
    let _ = write!(
        svg,
        "<path class=\"line c{}{dashed}\" d=\"{path}\"><title>{name}</title></path>",
        number % 6
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_marks_are_round() {
        let says: Vec<_> = [0.0, 0.25, 1.0, 12.34, 150.4, 10_500.0, 2_500_000.0].map(number).into();
        assert_eq!(says, ["0", "0.25", "1", "12.3", "150", "10.5 k", "2.5 M"]);
        let axis = Axis::new(Scale::Linear, [3.0, 47.0].into_iter(), 0.0, 470.0);
        let marks: Vec<_> = axis.ticks().into_iter().map(|(_, text)| text).collect();
        assert_eq!(marks, ["0", "10", "20", "30", "40"]);
        assert_eq!(Axis::new(Scale::Linear, [14.0].into_iter(), 0.0, 1.0).ticks().len(), 8);
        assert!((axis.place(23.5) - 235.0).abs() < 1e-9);
        let log = Axis::new(Scale::Log, [0.3, 40.0].into_iter(), 0.0, 300.0);
        assert_eq!((log.low, log.high), (0.1, 100.0));
        assert!((log.place(1.0) - 100.0).abs() < 1e-6);
        let nines = Axis::new(Scale::Nines, [0.0, 0.999].into_iter(), 0.0, 300.0);
        assert!((nines.place(0.99) - 200.0).abs() < 1e-6);
    }

    #[test]
    fn a_chart_escapes_names_and_leaves_gaps_open() {
        let line = Line::new("<b>", [(0.0, 1.0), (1.0, f64::NAN), (2.0, 3.0), (3.0, 4.0)]);
        let chart = Chart {
            x_name: "s",
            y_name: "a\"b",
            x: Scale::Linear,
            y: Scale::Linear,
            lines: vec![line],
        };
        let svg = chart.svg();
        assert!(svg.contains("&lt;b&gt;") && svg.contains("a&quot;b") && !svg.contains("<b>"));
        let path = svg.split(" d=\"").nth(1).unwrap().split('"').next().unwrap();
        assert_eq!(path.matches('M').count(), 2, "{path}");
        assert!(!svg.contains("NaN"));
    }

    #[test]
    fn nothing_and_one_value_draw_as_well() {
        for points in [vec![], vec![(0.0, 0.0)], vec![(5.0, 1e-9)]] {
            for scale in [Scale::Linear, Scale::Log, Scale::Nines] {
                let lines = vec![Line::new("l", points.clone())];
                let svg = Chart { x_name: "x", y_name: "y", x: scale, y: scale, lines }.svg();
                assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
            }
        }
    }

    #[test]
    fn extremes_survive_thinning() {
        let points: Vec<_> =
            (0..100_000).map(|at| (f64::from(at), if at == 77_777 { 9.0 } else { 1.0 })).collect();
        let kept = thinned(&points);
        assert!(kept.len() <= POINTS_MAX);
        assert!(kept.contains(&(77_777.0, 9.0)));
    }
}
