use std::fmt::Write as _;

use super::BenchReport;

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 480.0;
const LEFT: f64 = 70.0;
const TOP: f64 = 40.0;
const RIGHT: f64 = 600.0;
const BOTTOM: f64 = 420.0;
/// Colours that remain distinct with common colour blindness (Okabe and Ito).
const COLOURS: [&str; 7] = [
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000",
];

/// A named line: points (rows of x, microseconds), sorted by rows.
struct Line {
    name: String,
    points: Vec<(f64, f64)>,
    dashed: bool,
}

/// Plots time against rows of x on logarithmic axes as SVG: each kernel in its fastest configuration, the
/// dense product, and the roofline dashed. `None` when nothing was timed.
pub(crate) fn svg(report: &BenchReport) -> Option<String> {
    let lines = lines(report);
    let all = || lines.iter().flat_map(|line| line.points.iter().copied());
    let rows = Axis::over(all().map(|point| point.0), LEFT, RIGHT, 2.0)?;
    let times = Axis::over(all().map(|point| point.1), BOTTOM, TOP, 10.0)?;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"22\" font-size=\"14\">{}</text>\n",
        escaped(&format!(
            "{} {} {}x{} on {}",
            report.op,
            report.scheme,
            report.out_features,
            report.in_features,
            report.device.as_deref().unwrap_or_default()
        ))
    );
    for tick in rows.ticks() {
        let x = rows.at(tick);
        let _ = writeln!(
            text,
            "<path d=\"M{x:.1} {TOP}V{BOTTOM}\" stroke=\"#ddd\"/><text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{tick}</text>",
            BOTTOM + 18.0
        );
    }
    for tick in times.ticks() {
        let y = times.at(tick);
        let _ = writeln!(
            text,
            "<path d=\"M{LEFT} {y:.1}H{RIGHT}\" stroke=\"#ddd\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{tick}</text>",
            LEFT - 6.0,
            y + 4.0
        );
    }
    let _ = writeln!(
        text,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">rows of x</text>\n\
         <text transform=\"translate(18 {:.1}) rotate(-90)\" text-anchor=\"middle\">microseconds</text>",
        f64::midpoint(LEFT, RIGHT),
        BOTTOM + 40.0,
        f64::midpoint(TOP, BOTTOM)
    );
    for (index, line) in lines.iter().enumerate() {
        let colour = COLOURS[index % COLOURS.len()];
        let dash = if line.dashed {
            " stroke-dasharray=\"6 4\""
        } else {
            ""
        };
        let points: Vec<String> = line
            .points
            .iter()
            .map(|point| format!("{:.1},{:.1}", rows.at(point.0), times.at(point.1)))
            .collect();
        let _ = writeln!(
            text,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"{dash}/>",
            points.join(" ")
        );
        for point in &points {
            let (x, y) = point.split_once(',').unwrap_or_default();
            let _ = writeln!(text, "<circle cx=\"{x}\" cy=\"{y}\" r=\"3\" fill=\"{colour}\"/>");
        }
        let y = TOP + 12.0 + 20.0 * index as f64;
        let _ = writeln!(
            text,
            "<path d=\"M{:.1} {y:.1}h24\" stroke=\"{colour}\" stroke-width=\"2\"{dash}/><text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            RIGHT + 16.0,
            RIGHT + 46.0,
            y + 4.0,
            escaped(&line.name)
        );
    }
    text.push_str("</svg>\n");
    Some(text)
}

fn lines(report: &BenchReport) -> Vec<Line> {
    let mut lines: Vec<Line> = Vec::new();
    let mut add = |name: &str, batch: usize, us: Option<f64>, dashed: bool| {
        let Some(us) = us.filter(|us| *us > 0.0) else {
            return;
        };
        let at = lines
            .iter()
            .position(|line| line.name == name)
            .unwrap_or_else(|| {
                lines.push(Line {
                    name: name.to_owned(),
                    points: Vec::new(),
                    dashed,
                });
                lines.len() - 1
            });
        let points = &mut lines[at].points;
        match points.iter_mut().find(|point| point.0 == batch as f64) {
            Some(point) => point.1 = point.1.min(us),
            None => points.push((batch as f64, us)),
        }
    };
    for case in &report.cases {
        add("roofline", case.batch, case.roofline_us, true);
        add(
            &report.dense,
            case.batch,
            case.dense.map(|times| times.median),
            false,
        );
        for row in &case.kernels {
            add(&row.kernel, case.batch, row.us.map(|times| times.median), false);
        }
    }
    for line in &mut lines {
        line.points.sort_by(|a, b| a.0.total_cmp(&b.0));
    }
    lines
}

/// A logarithmic axis between integer powers of `base`.
struct Axis {
    first: f64,
    last: f64,
    from: f64,
    to: f64,
    base: f64,
}

impl Axis {
    fn over(values: impl Iterator<Item = f64>, from: f64, to: f64, base: f64) -> Option<Self> {
        let (least, most) = values.fold((f64::INFINITY, 0.0_f64), |(least, most), value| {
            (least.min(value), most.max(value))
        });
        if most <= 0.0 {
            return None;
        }
        let first = least.log(base).floor();
        Some(Self {
            first,
            last: most.log(base).ceil().max(first + 1.0),
            from,
            to,
            base,
        })
    }

    fn at(&self, value: f64) -> f64 {
        let part = (value.log(self.base) - self.first) / (self.last - self.first);
        self.from + part * (self.to - self.from)
    }

    fn ticks(&self) -> impl Iterator<Item = f64> {
        (self.first as i32..=self.last as i32).map(|power| self.base.powi(power))
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use aqlm_engine::runs::records::{BenchCase, KernelRow, Times};

    fn report(cases: &[(usize, f64)]) -> BenchReport {
        let times = |median| Times {
            median,
            p10: median,
            p90: median,
        };
        let case = |&(batch, us): &(usize, f64)| {
            let mut slower = KernelRow::new("a<b", Some("1".into()));
            slower.us = Some(times(us * 2.0));
            let mut faster = KernelRow::new("a<b", Some("2".into()));
            faster.us = Some(times(us));
            BenchCase {
                batch,
                dense: None,
                least_bytes: 1,
                roofline_us: Some(us / 10.0),
                kernels: vec![slower, faster, KernelRow::new("untimed", None)],
            }
        };
        BenchReport {
            op: "matmul".into(),
            scheme: "2x8g8".into(),
            activations: "f16".into(),
            out_features: 8,
            in_features: 8,
            device: None,
            memory: None,
            dense: "dense".into(),
            cases: cases.iter().map(case).collect(),
            waived: None,
        }
    }

    #[test]
    fn lines_are_of_the_fastest_configuration_by_rows() {
        let lines = lines(&report(&[(16, 20.0), (1, 10.0)]));
        let names: Vec<&str> = lines.iter().map(|line| line.name.as_str()).collect();
        assert_eq!(names, ["roofline", "a<b"]);
        assert_eq!(lines[1].points, [(1.0, 10.0), (16.0, 20.0)]);
    }

    #[test]
    fn points_lie_inside_of_the_axes_and_names_are_escaped() {
        let text = svg(&report(&[(1, 10.0), (16, 20.0)])).unwrap();
        assert!(text.contains("a&lt;b") && !text.contains("a<b"));
        assert_eq!(text.matches("<polyline").count(), 2);
        for (name, low, high) in [("cx=\"", LEFT, RIGHT), ("cy=\"", TOP, BOTTOM)] {
            let values: Vec<f64> = text
                .split(name)
                .skip(1)
                .map(|rest| rest.split('"').next().unwrap().parse().unwrap())
                .collect();
            assert_eq!(values.len(), 4);
            assert!(
                values.iter().all(|value| (low..=high).contains(value)),
                "{values:?}"
            );
        }
        // Slower is drawn higher.
        let axis = Axis::over([1.0, 100.0].into_iter(), BOTTOM, TOP, 10.0).unwrap();
        assert!(axis.at(100.0) < axis.at(10.0));
    }

    #[test]
    fn nothing_timed_gives_no_plot() {
        assert!(svg(&report(&[])).is_none());
    }
}
