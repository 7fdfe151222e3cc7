//! Output for people: aligned tables, colours where they are wanted, sizes and ages that can be read.

use std::{
    io::{self, IsTerminal, Write},
    time::Duration,
};

use super::Failure;

/// Writes `text` to standard output; a reader that went away is [`Failure::ClosedPipe`].
pub fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Failure::ClosedPipe),
        Err(error) => Err(Failure::Output(error)),
    }
}

/// Writes `value` as indented JSON and a newline.
pub fn print_json(value: &impl serde::Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).expect("invariant: reports have string keys");
    print(&(text + "\n"))
}

/// How text may look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Style {
    pub colours: bool,
    /// The terminal's; `None` where lines may be of any length.
    pub width: Option<usize>,
}

impl Style {
    /// Returns what suits standard output: colours on a terminal, unless NO_COLOR is set.
    pub fn of_stdout() -> Self {
        let terminal = io::stdout().is_terminal();
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let width = terminal.then(|| terminal_size().map(|(_, columns)| columns)).flatten();
        Self { colours: terminal && wanted && !dumb, width }
    }

    pub fn paint(self, colour: Colour, text: &str) -> String {
        match colour.code() {
            Some(code) if self.colours => format!("\x1b[{code}m{text}\x1b[0m"),
            _ => text.to_owned(),
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Colour {
    #[default]
    Plain,
    Bold,
    Good,
    Warning,
    Bad,
    Dim,
}

impl Colour {
    fn code(self) -> Option<&'static str> {
        match self {
            Self::Plain => None,
            Self::Bold => Some("1"),
            Self::Good => Some("32"),
            Self::Warning => Some("33"),
            Self::Bad => Some("31"),
            Self::Dim => Some("2"),
        }
    }
}

/// Returns rows and columns of the terminal on standard output.
pub fn terminal_size() -> Option<(usize, usize)> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ writes one `winsize` to the pointer, which is to a live one.
    let result = unsafe { libc::ioctl(libc::STDOUT_FILENO, libc::TIOCGWINSZ, &raw mut size) };
    (result == 0 && size.ws_row > 0 && size.ws_col > 0).then_some((size.ws_row.into(), size.ws_col.into()))
}

/// One cell of a table.
#[derive(Clone, Debug, Default)]
pub struct Cell {
    text: String,
    colour: Colour,
    right: bool,
}

impl Cell {
    pub fn coloured(text: impl AsRef<str>, colour: Colour) -> Self {
        Self { colour, ..Self::from(text.as_ref()) }
    }

    /// A cell whose text ends at the column's right edge, as numbers do.
    pub fn right(text: impl AsRef<str>) -> Self {
        Self { right: true, ..Self::from(text.as_ref()) }
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self { text: printable(text), ..Self::default() }
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        text.as_str().into()
    }
}

/// Returns `text` without what would steer a terminal: program names are chosen by whoever runs the program.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// Rows whose columns are aligned. Where the style has a width, the widest column that may shrink gives way.
pub struct Table {
    rows: Vec<Vec<Cell>>,
    /// Columns that may be cut, with an ellipsis.
    flexible: &'static [usize],
}

const GAP: usize = 2;
const INDENT: usize = 2;
const NARROWEST: usize = 8;

impl Table {
    pub fn new(header: &[&str], flexible: &'static [usize]) -> Self {
        Self { rows: vec![header.iter().map(|text| Cell::coloured(text, Colour::Dim)).collect()], flexible }
    }

    pub fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        self.rows.push(cells.into_iter().collect());
    }

    pub fn render(&self, style: Style) -> String {
        let widths = self.widths(style.width);
        let mut text = String::new();
        for row in &self.rows {
            let mut line = " ".repeat(INDENT);
            for (index, (cell, width)) in row.iter().zip(&widths).enumerate() {
                let shown = cut(&cell.text, *width);
                let padding = " ".repeat(width - shown.chars().count());
                let painted = style.paint(cell.colour, &shown);
                let last = index + 1 == row.len();
                match (cell.right, last) {
                    (true, _) => line.extend([padding.as_str(), &painted]),
                    (false, true) => line.push_str(&painted),
                    (false, false) => line.extend([painted.as_str(), &padding]),
                }
                if !last {
                    line.push_str(&" ".repeat(GAP));
                }
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }

    fn widths(&self, limit: Option<usize>) -> Vec<usize> {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let widest = |column: usize| {
            self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.text.chars().count()).max()
        };
        let mut widths: Vec<usize> = (0..columns).map(|column| widest(column).unwrap_or(0)).collect();
        let Some(limit) = limit else { return widths };
        let total =
            |widths: &[usize]| INDENT + widths.iter().sum::<usize>() + GAP * columns.saturating_sub(1);
        while total(&widths) > limit {
            let Some(&column) = self.flexible.iter().max_by_key(|column| widths[**column]) else { break };
            if widths[column] <= NARROWEST {
                break;
            }
            widths[column] -= (total(&widths) - limit).min(widths[column] - NARROWEST).min(1);
        }
        widths
    }
}

fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let mut cut: String = text.chars().take(width.saturating_sub(1)).collect();
    cut.push('…');
    cut
}

/// Returns `bytes` in at most seven characters, as in `1.2 KiB`.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    #[expect(clippy::cast_precision_loss, reason = "shown with one digit after the point")]
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if value < 10.0 { format!("{value:.1} {}", UNITS[unit]) } else { format!("{value:.0} {}", UNITS[unit]) }
}

/// Returns a duration in its two largest units, as in `3h12m`.
pub fn age(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d{:02}h", seconds / 86_400, seconds / 3600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_ages_are_short() {
        for (value, shown) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1229, "1.2 KiB"),
            (3_565_158, "3.4 MiB"),
            (1 << 40, "1.0 TiB"),
            (u64::MAX, "16 EiB"),
        ] {
            assert_eq!(bytes(value), shown);
        }
        for (seconds, shown) in [(0, "0s"), (59, "59s"), (61, "1m01s"), (11_520, "3h12m"), (90_000, "1d01h")]
        {
            assert_eq!(age(Duration::from_secs(seconds)), shown);
        }
    }

    #[test]
    fn a_table_aligns_and_gives_way_only_where_it_may() {
        let mut table = Table::new(&["NAME", "PATH", "N"], &[1]);
        table.row(["a".into(), "/very/long/path/indeed".into(), Cell::right("7")]);
        table.row(["abc".into(), "/x".into(), Cell::right("12")]);
        let wide = "  NAME  PATH                    N\n  a     /very/long/path/indeed   7\n  abc   /x                      12\n";
        assert_eq!(table.render(Style::default()), wide);
        let narrow = table.render(Style { width: Some(24), colours: false });
        assert!(narrow.contains("/very/long/…"), "{narrow}");
        assert!(narrow.lines().all(|line| line.chars().count() <= 24), "{narrow}");
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        let mut table = Table::new(&["P"], &[]);
        table.row(["\x1b[2Jevil\n".into()]);
        let shown = table.render(Style { colours: true, width: None });
        assert!(shown.contains("?[2Jevil?"), "{shown:?}");
    }

    #[test]
    fn colours_only_where_the_style_has_them() {
        assert_eq!(Style::default().paint(Colour::Bad, "x"), "x");
        assert_eq!(Style { colours: true, width: None }.paint(Colour::Bad, "x"), "\x1b[31mx\x1b[0m");
    }
}
