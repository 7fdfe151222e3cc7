//! The figures as a picture: a panel for each kind of load, a bar for each contestant. SVG, written by hand: bars and
//! words are all that it takes.

use std::fmt::Write as _;

use super::report::{Report, Summary, short};

/// Measure, figure, and what stands above its panel.
const PANELS: [(&str, &str, &str); 6] = [
    ("down-1", "gbit_per_s", "Bulk, one stream: Gbit/s"),
    ("down-1", "cpu_s_per_gb", "CPU of both proxies: seconds per GB (less is better)"),
    ("ping-32", "per_s", "128-byte requests on 32 connections: per second"),
    ("connect-16", "per_s", "Connect, request, close, 16 at once: per second"),
    ("handshake-16", "per_s", "Full TLS handshakes, server side: per second"),
    ("idle", "kb_per_connection", "Idle connection, both proxies: kB (less is better)"),
];

const WIDTH: usize = 960;
const PANEL: usize = WIDTH / 2;
const LABEL: usize = 90;
const BAR: usize = 16;
const ROW: usize = 22;
const HEAD: usize = 34;

/// Returns the picture; panels without figures are left out.
pub fn svg(report: &Report) -> String {
    let panels: Vec<_> = PANELS.iter().filter_map(|panel| Panel::new(report, *panel)).collect();
    let rows = panels.iter().map(|panel| panel.bars.len()).max().unwrap_or_default();
    let height = HEAD + rows * ROW + 16;
    let mut text = String::new();
    let mut line = |words: std::fmt::Arguments<'_>| writeln!(text, "{words}").expect("a string takes it");
    let all = panels.len().div_ceil(2) * height;
    line(format_args!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {all}" font-family="sans-serif" font-size="12">"#
    ));
    line(format_args!(r#"<rect width="{WIDTH}" height="{all}" fill="white"/>"#));
    for (n, panel) in panels.iter().enumerate() {
        let (x, y) = (n % 2 * PANEL + 12, n / 2 * height);
        line(format_args!(r#"<text x="{x}" y="{}" font-weight="bold">{}</text>"#, y + 22, panel.title));
        let longest = panel.bars.iter().map(|(_, summary)| summary.median).fold(f64::MIN_POSITIVE, f64::max);
        let room = (PANEL - LABEL - 90) as f64;
        for (row, (name, Summary { median, min, max })) in panel.bars.iter().enumerate() {
            let top = y + HEAD + row * ROW;
            let scaled = |value: f64| (value / longest * room).clamp(0.0, room * 1.1);
            let (words, middle, left) = (top + BAR - 4, top + BAR / 2, x + LABEL);
            let colour = if *name == "meshnode" { "#d9480f" } else { "#8aa0b6" };
            line(format_args!(r##"<text x="{}" y="{words}" text-anchor="end">{name}</text>"##, left - 6));
            line(format_args!(
                r#"<rect x="{left}" y="{top}" width="{:.1}" height="{BAR}" fill="{colour}"/>"#,
                scaled(*median)
            ));
            // From the worst round to the best.
            line(format_args!(
                r##"<path d="M{:.1} {middle}H{:.1}" stroke="#333" stroke-width="1.5"/>"##,
                left as f64 + scaled(*min),
                left as f64 + scaled(*max)
            ));
            let end = left as f64 + scaled(median.max(*max)) + 6.0;
            line(format_args!(r#"<text x="{end:.1}" y="{words}">{}</text>"#, short(*median)));
        }
    }
    text + "</svg>\n"
}

struct Panel {
    title: &'static str,
    bars: Vec<(&'static str, Summary)>,
}

impl Panel {
    fn new(report: &Report, (measure, figure, title): (&str, &str, &'static str)) -> Option<Self> {
        let across = report.contestants.iter().filter(|contestant| !contestant.name.ends_with("-local"));
        let bar = |name| Some((name, report.summary(name, measure, figure)?));
        let bars: Vec<_> =
            across.filter_map(|one| bar(one.name)).filter(|(_, summary)| summary.median > 0.0).collect();
        (!bars.is_empty()).then_some(Self { title, bars })
    }
}
