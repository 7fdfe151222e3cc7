//! Reads keys out of a TOML document and notes every mistake with its place.
//!
//! Not serde's derive: that stops at the first mistake, and cannot say what would have been accepted in its place. Here
//! a section knows the keys that were asked of it, so the list of accepted keys cannot differ from what is read.

use std::{cell::RefCell, collections::BTreeSet, fmt, ops::Range, ops::RangeInclusive, path::Path};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::error::{Issue, Located, Location, position};

/// The text being read, and the mistakes found so far.
pub(super) struct Document<'d> {
    file: &'d Path,
    text: &'d str,
    issues: RefCell<Vec<(usize, Issue)>>,
    /// Every key asked for, without indices: the schema.
    asked: RefCell<BTreeSet<String>>,
    files: Files,
}

/// What becomes of files that the text names.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Files {
    /// They are opened, and a mistake in one is a mistake of the text.
    Opened,
    Named,
}

impl<'d> Document<'d> {
    pub fn new(file: &'d Path, text: &'d str, files: Files) -> Self {
        Self { file, text, issues: RefCell::default(), asked: RefCell::default(), files }
    }

    pub fn opens_files(&self) -> bool {
        self.files == Files::Opened
    }

    /// Returns the text as tables, or `None` after noting what is not TOML.
    pub fn parse(&self) -> Option<Spanned<DeTable<'d>>> {
        let (table, errors) = DeTable::parse_recoverable(self.text);
        for error in &errors {
            let span = error.span().unwrap_or(0..0);
            self.note(&Location { key: String::new(), span }, error.message().trim_end().replace('\n', "; "));
        }
        errors.is_empty().then_some(table)
    }

    pub fn note(&self, at: &Location, message: impl fmt::Display) {
        let (line, column) = position(self.text, at.span.start);
        let (file, key) = (self.file.to_owned(), at.key.clone());
        let issue = Issue { file, line, column, key, message: message.to_string() };
        self.issues.borrow_mut().push((at.span.start, issue));
    }

    /// Returns line and column, for messages that point to a second place.
    pub fn place(&self, at: &Location) -> String {
        let (line, column) = position(self.text, at.span.start);
        format!("line {line}, column {column}")
    }

    pub fn asked(&self) -> BTreeSet<String> {
        self.asked.borrow().clone()
    }

    /// Returns the mistakes in the order of the file.
    pub fn into_issues(self) -> Vec<Issue> {
        let mut issues = self.issues.into_inner();
        issues.sort_by_key(|(offset, _)| *offset);
        issues.into_iter().map(|(_, issue)| issue).collect()
    }
}

/// One table of the document. An absent one reads as empty.
pub(super) struct Section<'d> {
    pub document: &'d Document<'d>,
    table: Option<&'d DeTable<'d>>,
    at: Location,
    known: RefCell<Vec<&'static str>>,
}

impl<'d> Section<'d> {
    pub fn root(document: &'d Document<'d>, table: &'d DeTable<'d>) -> Self {
        Self::new(document, Some(table), Location { key: String::new(), span: 0..0 })
    }

    fn new(document: &'d Document<'d>, table: Option<&'d DeTable<'d>>, at: Location) -> Self {
        Self { document, table, at, known: RefCell::default() }
    }

    pub fn is_present(&self) -> bool {
        self.table.is_some()
    }

    /// Whether the text has `key` here, valid or not.
    pub fn has(&self, key: &str) -> bool {
        self.table.is_some_and(|table| table.iter().any(|(name, _)| name.get_ref() == key))
    }

    pub fn at(&self) -> &Location {
        &self.at
    }

    fn location(&self, key: &str, span: Range<usize>) -> Location {
        let dot = if self.at.key.is_empty() { "" } else { "." };
        Location { key: format!("{}{dot}{key}", self.at.key), span }
    }

    fn entry(&self, key: &'static str) -> Option<(Location, &'d DeValue<'d>)> {
        self.known.borrow_mut().push(key);
        self.document.asked.borrow_mut().insert(without_indices(&self.location(key, 0..0).key));
        let (_, value) = self.table?.iter().find(|(name, _)| name.get_ref() == key)?;
        Some((self.location(key, value.span()), value.get_ref()))
    }

    fn refuse(&self, at: &Location, value: &DeValue<'_>, accepted: &str) {
        self.document.note(at, format_args!("found {}; accepted: {accepted}", describe(value)));
    }

    /// Returns the sub-table `key`.
    pub fn section(&self, key: &'static str) -> Section<'d> {
        match self.entry(key) {
            Some((at, DeValue::Table(table))) => Section::new(self.document, Some(table), at),
            Some((at, other)) => {
                self.refuse(&at, other, &format!("a table, as in [{}]", at.key));
                Section::new(self.document, None, at)
            }
            None => Section::new(self.document, None, self.location(key, self.at.span.clone())),
        }
    }

    /// Returns the tables of the array `key`.
    pub fn sections(&self, key: &'static str) -> Vec<Section<'d>> {
        let Some((at, value)) = self.entry(key) else { return Vec::new() };
        let accepted = format!("an array of tables, each written [[{}]]", at.key);
        let DeValue::Array(array) = value else {
            self.refuse(&at, value, &accepted);
            return Vec::new();
        };
        let mut sections = Vec::new();
        for (index, element) in array.iter().enumerate() {
            let at = self.location(&format!("{key}[{index}]"), element.span());
            match element.get_ref() {
                DeValue::Table(table) => sections.push(Section::new(self.document, Some(table), at)),
                other => self.refuse(&at, other, &accepted),
            }
        }
        sections
    }

    /// Returns what `parse` makes of the string at `key`; `accepted` completes "accepted: …". What `parse` says
    /// of its refusal stands in brackets, unless it is empty.
    pub fn text<T, E: fmt::Display>(
        &self,
        key: &'static str,
        accepted: &str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<Located<T>> {
        let (at, value) = self.entry(key)?;
        self.parse_text(at, value, accepted, parse)
    }

    fn parse_text<T, E: fmt::Display>(
        &self,
        at: Location,
        value: &DeValue<'_>,
        accepted: &str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<Located<T>> {
        let DeValue::String(text) = value else {
            self.refuse(&at, value, accepted);
            return None;
        };
        match parse(text) {
            Ok(value) => Some(Located { value, at }),
            Err(error) => {
                let why = error.to_string();
                let why = if why.is_empty() { why } else { format!(" ({why})") };
                self.refuse(&at, value, &format!("{accepted}{why}"));
                None
            }
        }
    }

    /// Like [`text`](Self::text) for a secret, which no message repeats.
    pub fn secret<T>(&self, key: &'static str, parse: impl FnOnce(&str) -> Option<T>) -> Option<Located<T>> {
        let (at, value) = self.entry(key)?;
        let parsed = if let DeValue::String(text) = value { parse(text) } else { None };
        if parsed.is_none() {
            self.document.note(&at, "not shown; accepted: a non-empty string of printable ASCII characters");
        }
        parsed.map(|value| Located { value, at })
    }

    /// Returns the strings at `key`, which may be one string or an array of them.
    pub fn texts<T, E: fmt::Display>(
        &self,
        key: &'static str,
        accepted: &str,
        mut parse: impl FnMut(&str) -> Result<T, E>,
    ) -> Vec<Located<T>> {
        let accepted = format!("{accepted}, or an array of such");
        match self.entry(key) {
            None => Vec::new(),
            Some((at, DeValue::Array(array))) => {
                if array.is_empty() {
                    self.document.note(&at, format_args!("found an empty array; accepted: {accepted}"));
                }
                let element = |(index, value): (usize, &'d Spanned<DeValue<'d>>)| {
                    let at = self.location(&format!("{key}[{index}]"), value.span());
                    self.parse_text(at, value.get_ref(), &accepted, &mut parse)
                };
                array.iter().enumerate().filter_map(element).collect()
            }
            Some((at, value)) => self.parse_text(at, value, &accepted, parse).into_iter().collect(),
        }
    }

    /// Returns one of `choices`.
    pub fn choice<T: Copy>(&self, key: &'static str, choices: &[(&str, T)]) -> Option<Located<T>> {
        let accepted = choices.iter().map(|(name, _)| format!("{name:?}")).collect::<Vec<_>>().join(", ");
        self.text(key, &accepted, |text| {
            choices.iter().find(|(name, _)| *name == text).map(|(_, value)| *value).ok_or("")
        })
    }

    pub fn boolean(&self, key: &'static str) -> Option<Located<bool>> {
        let (at, value) = self.entry(key)?;
        let DeValue::Boolean(value) = value else {
            self.refuse(&at, value, "true, false");
            return None;
        };
        Some(Located { value: *value, at })
    }

    /// Returns a whole number in `range`.
    pub fn number(&self, key: &'static str, range: RangeInclusive<u32>) -> Option<Located<u32>> {
        let (at, value) = self.entry(key)?;
        let parsed = match value {
            DeValue::Integer(number) => u32::from_str_radix(number.as_str(), number.radix()).ok(),
            _ => None,
        };
        match parsed.filter(|number| range.contains(number)) {
            Some(value) => Some(Located { value, at }),
            None => {
                self.refuse(&at, value, &format!("an integer from {} to {}", range.start(), range.end()));
                None
            }
        }
    }

    /// Returns a port number in `range`.
    pub fn port(&self, key: &'static str, range: RangeInclusive<u16>) -> Option<Located<u16>> {
        let Located { value, at } = self.number(key, (*range.start()).into()..=(*range.end()).into())?;
        Some(Located { value: u16::try_from(value).ok()?, at })
    }

    /// Notes that a key that must be there is not.
    pub fn missing(&self, key: &'static str, accepted: &str) {
        let at = self.location(key, self.at.span.clone());
        self.document.note(&at, format_args!("missing; accepted: {accepted}"));
    }

    /// Notes every key that nobody asked for. Call it last.
    pub fn finish(self) {
        let known = self.known.borrow();
        for (name, _) in self.table.into_iter().flat_map(DeTable::iter) {
            let text = name.get_ref().as_ref();
            if known.contains(&text) {
                continue;
            }
            let hint =
                nearest(text, &known).map(|near| format!("did you mean `{near}`? ")).unwrap_or_default();
            let at = self.location(&shorten(text), name.span());
            self.document.note(&at, format_args!("unknown key; {hint}accepted here: {}", known.join(", ")));
        }
    }
}

fn without_indices(key: &str) -> String {
    let parts = key.split('.').map(|part| part.split('[').next().unwrap_or(part));
    parts.collect::<Vec<_>>().join(".")
}

fn describe(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("{:?}", shorten(text)),
        DeValue::Integer(number) => shorten(&number.to_string()),
        DeValue::Float(number) => shorten(&number.to_string()),
        DeValue::Boolean(value) => value.to_string(),
        DeValue::Datetime(value) => value.to_string(),
        DeValue::Array(_) => "an array".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}

fn shorten(text: &str) -> String {
    const LONGEST: usize = 60;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// Returns the candidate that is a slip of the fingers away from `text`.
pub(super) fn nearest<'c>(text: &str, candidates: &[&'c str]) -> Option<&'c str> {
    let text = shorten(text).to_lowercase().replace('-', "_");
    let allowed = (text.chars().count() / 3).max(1);
    let near = candidates.iter().map(|c| (distance(&text, c), *c)).filter(|(d, _)| *d <= allowed);
    near.min_by_key(|(d, _)| *d).map(|(_, candidate)| candidate)
}

/// Edit distance in which swapping two neighbours counts once.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![(0..=b.len()).collect::<Vec<_>>()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let change = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = change.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_finds_slips_and_nothing_far_away() {
        let keys = ["name", "cgroup", "mesh_port", "port", "guard"];
        assert_eq!(nearest("gaurd", &keys), Some("guard"));
        assert_eq!(nearest("mesh-port", &keys), Some("mesh_port"));
        assert_eq!(nearest("prot", &keys), Some("port"));
        assert_eq!(nearest("CGroup", &keys), Some("cgroup"));
        assert_eq!(nearest("timeout", &keys), None);
    }
}
