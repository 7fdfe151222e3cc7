//! The text of a policy: HCL as far as policies use it (blocks with labels, assignments, strings, comments), or JSON.
//! Both become the same tree; what its keys mean is `rules`' business.

use serde_json::Value as Json;

/// Deeper nesting than any policy has.
const MAX_DEPTH: usize = 8;

/// A key's value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Text(String),
    /// In the order of the text; a key may come more than once.
    Object(Vec<Entry>),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub key: String,
    pub at: Position,
    pub value: Value,
}

/// Line and column, from 1; 0 where the text does not tell (JSON).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    pub line: usize,
    pub column: usize,
}

#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SyntaxError {
    #[error("At {}:{}: {why}", at.line, at.column)]
    Hcl { at: Position, why: String },
    #[error("JSON: {0}")]
    Json(String),
}

/// Returns the entries of the text's top level.
pub fn parse(text: &str) -> Result<Vec<Entry>, SyntaxError> {
    if text.trim_start().starts_with('{') {
        let json: Json = serde_json::from_str(text).map_err(|error| SyntaxError::Json(error.to_string()))?;
        return match from_json(&json, MAX_DEPTH)? {
            Value::Object(entries) => Ok(entries),
            Value::Text(_) => Err(SyntaxError::Json("an object is wanted".to_owned())),
        };
    }
    let mut parser = Parser { rest: text, at: Position { line: 1, column: 1 } };
    parser.entries(MAX_DEPTH, false)
}

fn from_json(json: &Json, depth: usize) -> Result<Value, SyntaxError> {
    let wrong = |what: &str| SyntaxError::Json(format!("found {what}; accepted: strings and objects"));
    if depth == 0 {
        return Err(SyntaxError::Json("nested too deep".to_owned()));
    }
    match json {
        Json::String(text) => Ok(Value::Text(text.clone())),
        Json::Object(fields) => {
            let entry = |(key, value): (&String, &Json)| {
                let value = from_json(value, depth - 1)?;
                Ok(Entry { key: key.clone(), at: Position::default(), value })
            };
            Ok(Value::Object(fields.iter().map(entry).collect::<Result<_, _>>()?))
        }
        // HCL's JSON writes repeated blocks as a list of objects.
        Json::Array(list) => {
            let mut all = Vec::new();
            for element in list {
                match from_json(element, depth - 1)? {
                    Value::Object(entries) => all.extend(entries),
                    Value::Text(_) => return Err(wrong("a list of strings")),
                }
            }
            Ok(Value::Object(all))
        }
        Json::Null => Err(wrong("null")),
        Json::Bool(_) => Err(wrong("a boolean")),
        Json::Number(_) => Err(wrong("a number")),
    }
}

struct Parser<'t> {
    rest: &'t str,
    at: Position,
}

impl Parser<'_> {
    fn fail<T>(&self, why: impl Into<String>) -> Result<T, SyntaxError> {
        Err(SyntaxError::Hcl { at: self.at, why: why.into() })
    }

    /// Reads entries up to the end of the text, or up to the closing brace of a block.
    fn entries(&mut self, depth: usize, in_block: bool) -> Result<Vec<Entry>, SyntaxError> {
        let mut entries = Vec::new();
        loop {
            self.skip()?;
            match self.rest.chars().next() {
                None if in_block => return self.fail("a closing `}` is missing"),
                None => return Ok(entries),
                Some('}') if in_block => {
                    self.take();
                    return Ok(entries);
                }
                Some(',' | ';') if in_block => drop(self.take()),
                Some(_) => entries.push(self.entry(depth)?),
            }
        }
    }

    /// `key = "text"`, `key = { … }`, or `key "label" … { … }`.
    fn entry(&mut self, depth: usize) -> Result<Entry, SyntaxError> {
        let at = self.at;
        if depth == 0 {
            return self.fail("nested too deep");
        }
        let key = self.word()?;
        self.skip()?;
        let value = match self.rest.chars().next() {
            Some('=') => {
                self.take();
                self.skip()?;
                self.value(depth)?
            }
            Some('{') => self.value(depth)?,
            Some('"') => Value::Object(vec![self.entry(depth - 1)?]),
            _ => return self.fail(format!("after `{key}`, one of `=`, `{{` and a name in quotes is wanted")),
        };
        Ok(Entry { key, at, value })
    }

    fn value(&mut self, depth: usize) -> Result<Value, SyntaxError> {
        match self.rest.chars().next() {
            Some('"') => self.quoted().map(Value::Text),
            Some('{') => {
                self.take();
                self.entries(depth - 1, true).map(Value::Object)
            }
            _ => self.fail("a string in quotes is wanted"),
        }
    }

    fn word(&mut self) -> Result<String, SyntaxError> {
        if self.rest.starts_with('"') {
            return self.quoted();
        }
        let mut word = String::new();
        while let Some(c) =
            self.rest.chars().next().filter(|c| c.is_ascii_alphanumeric() || "_-.".contains(*c))
        {
            self.take();
            word.push(c);
        }
        match self.rest.chars().next() {
            Some(c) if word.is_empty() => self.fail(format!("`{}` begins nothing", c.escape_debug())),
            _ => Ok(word),
        }
    }

    fn quoted(&mut self) -> Result<String, SyntaxError> {
        let start = self.at;
        let open = |why: &str| SyntaxError::Hcl { at: start, why: why.to_owned() };
        self.take();
        let mut text = String::new();
        loop {
            match self.take() {
                Some('"') => return Ok(text),
                Some('\\') => match self.take() {
                    Some(c @ ('"' | '\\')) => text.push(c),
                    Some('n') => text.push('\n'),
                    Some('t') => text.push('\t'),
                    _ => return Err(open(r#"only \", \\, \n and \t are accepted in a string"#)),
                },
                Some('\n') | None => return Err(open("the string has no closing quote")),
                Some(c) => text.push(c),
            }
        }
    }

    /// Skips white space and comments.
    fn skip(&mut self) -> Result<(), SyntaxError> {
        loop {
            let rest = self.rest;
            if rest.starts_with(char::is_whitespace) {
                self.take();
            } else if rest.starts_with('#') || rest.starts_with("//") {
                while self.take().is_some_and(|c| c != '\n') {}
            } else if let Some(comment) = rest.strip_prefix("/*") {
                let Some(end) = comment.find("*/") else { return self.fail("the comment has no end") };
                let stop = rest.len() - (end + 4);
                while self.rest.len() > stop {
                    self.take();
                }
            } else {
                return Ok(());
            }
        }
    }

    fn take(&mut self) -> Option<char> {
        let c = self.rest.chars().next()?;
        self.rest = &self.rest[c.len_utf8()..];
        if c == '\n' {
            self.at = Position { line: self.at.line + 1, column: 1 };
        } else {
            self.at.column += 1;
        }
        Some(c)
    }
}
