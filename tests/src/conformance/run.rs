//! A run of steps, each done on both servers, and what was found to differ.

use std::{
    collections::{BTreeMap, BTreeSet},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use super::{
    compare::{self, Found},
    declared::Difference,
    normal,
    servers::{SIDES, Servers, Side},
    wire::Answer,
};
use crate::wait;

/// How long a read may take to say what was written: Consul's agent hands its services on to the catalog.
const SETTLING: Duration = Duration::from_secs(30);

/// A run over a pair of servers, against a table of declared differences.
pub struct Run<'a> {
    pub servers: &'a Servers,
    declared: &'a [Difference],
    /// Which of `declared` were seen.
    seen: BTreeSet<usize>,
    undeclared: Vec<String>,
    /// Names for what each server has made up itself, as `{name}` in paths and bodies.
    names: [BTreeMap<String, String>; 2],
    indexes: BTreeMap<String, u64>,
}

impl<'a> Run<'a> {
    pub fn new(servers: &'a Servers, declared: &'a [Difference]) -> Self {
        Self {
            servers,
            declared,
            seen: BTreeSet::new(),
            undeclared: Vec::new(),
            names: Default::default(),
            indexes: BTreeMap::new(),
        }
    }

    /// Reads, on both, until both say the same but for what is declared.
    #[track_caller]
    pub fn get(&mut self, path: &str) -> [Answer; 2] {
        // Where much differs, waiting for each of it would take minutes.
        let settling = if self.undeclared.len() < 3 { SETTLING } else { SETTLING / 50 };
        let deadline = Instant::now() + settling * wait::slowness();
        loop {
            let answers = self.both("GET", path, &[], "");
            let found = compare::answers(&answers[0], &answers[1]);
            let settled = found.iter().all(|found| self.declares("GET", path, found));
            if settled || Instant::now() > deadline {
                self.note("GET", path, found);
                self.note_index(path, &answers[1]);
                return answers;
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Reads, on both, until `ready` holds for both, and compares then.
    #[track_caller]
    pub fn get_when(&mut self, path: &str, ready: impl Fn(&Value) -> bool) -> [Answer; 2] {
        for side in SIDES {
            wait::until(&format!("{path} on {side:?}"), || {
                let answer = self.one(side, "GET", path, &[], "");
                let body = serde_json::from_str(&answer.body).unwrap_or(Value::Null);
                if ready(&body) { Ok(()) } else { Err(answer.body) }
            });
        }
        self.get(path)
    }

    #[track_caller]
    pub fn put(&mut self, path: &str, body: &Value) -> [Answer; 2] {
        self.request("PUT", path, &[], &body.to_string())
    }

    #[track_caller]
    pub fn post(&mut self, path: &str, body: &Value) -> [Answer; 2] {
        self.request("POST", path, &[], &body.to_string())
    }

    #[track_caller]
    pub fn delete(&mut self, path: &str) -> [Answer; 2] {
        self.request("DELETE", path, &[], "")
    }

    /// Makes the request of both, once, and compares.
    #[track_caller]
    pub fn request(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> [Answer; 2] {
        let answers = self.both(method, path, headers, body);
        self.note(method, path, compare::answers(&answers[0], &answers[1]));
        answers
    }

    /// Runs `consul WORDS…` against both, and compares what it prints and how it ends. `{scratch}` is the host's own
    /// directory.
    #[track_caller]
    pub fn cli(&mut self, words: &[&str]) {
        let found = self.cli_found(words);
        self.note("consul", &words.join(" "), found);
    }

    /// The same for what only reads, until both say the same but for what is declared.
    #[track_caller]
    pub fn cli_when_settled(&mut self, words: &[&str]) {
        let deadline = Instant::now() + SETTLING * wait::slowness();
        loop {
            let found = self.cli_found(words);
            let line = words.join(" ");
            let settled = found.iter().all(|found| self.declares("consul", &line, found));
            if settled || Instant::now() > deadline {
                return self.note("consul", &line, found);
            }
            thread::sleep(Duration::from_millis(100));
        }
    }

    #[track_caller]
    fn cli_found(&self, words: &[&str]) -> Vec<Found> {
        let outputs = SIDES.map(|side| {
            let scratch = self.servers.host(side).space().scratch().display().to_string();
            let words: Vec<_> = words.iter().map(|word| word.replace("{scratch}", &scratch)).collect();
            let mut said = self.servers.cli(side, &words.iter().map(String::as_str).collect::<Vec<_>>());
            said.stdout = said.stdout.replace(&scratch, "{scratch}");
            said.stderr = said.stderr.replace(&scratch, "{scratch}");
            said
        });
        compare::outputs(&outputs[0], &outputs[1])
    }

    /// Gives a name to what each server made up: `name` is then for the string at `pointer` of its answer.
    #[track_caller]
    pub fn name(&mut self, name: &str, answers: &[Answer; 2], pointer: &str) {
        for (names, answer) in self.names.iter_mut().zip(answers) {
            let body: Value = serde_json::from_str(&answer.body).unwrap_or(Value::Null);
            let found = body.pointer(pointer).and_then(Value::as_str);
            let found = found.unwrap_or_else(|| panic!("{pointer} is not in {}", answer.body));
            names.insert(name.to_owned(), found.to_owned());
        }
    }

    /// The same for what is known already.
    pub fn name_it(&mut self, name: &str, values: [String; 2]) {
        for (names, value) in self.names.iter_mut().zip(values) {
            names.insert(name.to_owned(), value);
        }
    }

    /// Makes the request of one of them.
    #[track_caller]
    pub fn one(&self, side: Side, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        let (path, body) = (self.filled(side, path), self.filled(side, body));
        self.servers.request(side, method, &path, headers, &body)
    }

    /// Makes the request of both at once, and compares nothing.
    #[track_caller]
    pub fn both(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> [Answer; 2] {
        SIDES.map(|side| self.one(side, method, path, headers, body))
    }

    /// Returns `text` with the names filled in.
    pub fn filled(&self, side: Side, text: &str) -> String {
        let mut text = text.to_owned();
        for (name, value) in &self.names[side as usize] {
            text = text.replace(&format!("{{{name}}}"), value);
        }
        text
    }

    fn declares(&self, method: &str, path: &str, found: &Found) -> bool {
        let endpoint = format!("{method} {path}");
        self.declared.iter().any(|difference| difference.covers(&endpoint, found))
    }

    /// Takes down what was found to differ at an endpoint.
    pub fn note(&mut self, method: &str, path: &str, found: Vec<Found>) {
        let endpoint = format!("{method} {path}");
        for found in found {
            let by: Vec<_> =
                (0..self.declared.len()).filter(|n| self.declared[*n].covers(&endpoint, &found)).collect();
            if by.is_empty() {
                self.undeclared.push(format!("{endpoint}\n    {found}"));
            }
            self.seen.extend(by);
        }
    }

    /// The embedded server's index is 1 or more, and never less than it was. (Consul's is, of a node that was removed.)
    fn note_index(&mut self, path: &str, embedded: &Answer) {
        let Some(index) = embedded.index() else { return };
        let last = self.indexes.insert(path.to_owned(), index).unwrap_or(1);
        if index < last {
            self.undeclared.push(format!("GET {path}\n    the index is {index} after {last}"));
        }
    }

    /// Compares what the embedded server answers with what later versions of Consul are documented to answer.
    #[track_caller]
    pub fn documented(&mut self, method: &str, path: &str, body: &str, documented: &Value) {
        let answer = self.one(Side::Embedded, method, path, &[], body);
        let said: Value =
            serde_json::from_str(&answer.body).unwrap_or_else(|e| panic!("{path}: {e}: {}", answer.body));
        let mut found = Vec::new();
        compare::values("body", &normal::value(documented), &normal::value(&said), &mut found);
        self.note(method, path, found);
    }

    /// Compares what a test has found out about each of them by other means than one answer.
    pub fn compare(&mut self, method: &str, path: &str, place: &str, said: [String; 2]) {
        let [consul, embedded] = said;
        if consul != embedded {
            self.note(method, path, vec![Found { place: place.to_owned(), consul, embedded }]);
        }
    }

    /// # Panics
    /// With every difference that is not declared, and every declared one that did not occur.
    #[track_caller]
    pub fn finish(mut self) {
        let stale: Vec<_> = (0..self.declared.len())
            .filter(|n| !self.seen.contains(n))
            .map(|n| self.declared[n].row())
            .collect();
        let undeclared = std::mem::take(&mut self.undeclared);
        assert!(
            undeclared.is_empty() && stale.is_empty(),
            "{} differences that are not declared:\n{}\n\n{} declared ones that did not occur:\n{}",
            undeclared.len(),
            undeclared.join("\n"),
            stale.len(),
            stale.join("\n")
        );
    }
}

impl Drop for Run<'_> {
    /// A test that fails in between still tells what it had found.
    fn drop(&mut self) {
        if thread::panicking() && !self.undeclared.is_empty() {
            eprintln!("not declared so far:\n{}", self.undeclared.join("\n"));
        }
    }
}
