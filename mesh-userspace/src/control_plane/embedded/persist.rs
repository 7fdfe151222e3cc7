//! The SQLite file: schema, migrations, loading, and committing a batch of changes. One connection, owned by the
//! writer thread. Key columns are for people and constraints; the row itself is JSON in `doc`.

use std::{path::Path, sync::Arc};

use rusqlite::{Connection, OpenFlags, Transaction, params};
use serde::{Serialize, de::DeserializeOwned};

use super::{
    model::{Check, IntentionRow, Key, Node, Service},
    tables::Tables,
    txn::Change,
};
use crate::intention::Action;

/// Step N brings a file of version N to version N + 1. Never edited, only added to.
const MIGRATIONS: &[&str] = &[
    "
    CREATE TABLE nodes (name TEXT PRIMARY KEY, doc TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE services (node TEXT NOT NULL, id TEXT NOT NULL, name TEXT NOT NULL,
        as_sidecar INTEGER NOT NULL, doc TEXT NOT NULL, PRIMARY KEY (node, id)) WITHOUT ROWID;
    CREATE TABLE checks (node TEXT NOT NULL, id TEXT NOT NULL, status TEXT NOT NULL,
        doc TEXT NOT NULL, PRIMARY KEY (node, id)) WITHOUT ROWID;
    CREATE TABLE intentions (id TEXT PRIMARY KEY, source TEXT NOT NULL, destination TEXT NOT NULL,
        doc TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE roots (id TEXT PRIMARY KEY, doc TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
",
    "
    CREATE TABLE acl_policies (id TEXT PRIMARY KEY, name TEXT NOT NULL, doc TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE acl_tokens (accessor TEXT PRIMARY KEY, doc TEXT NOT NULL) WITHOUT ROWID;
",
];

/// Where the last index is kept; written with every commit.
const INDEX: &str = "index";
/// Where the CA's configuration is kept.
const CA_CONFIG: &str = "ca_config";

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiskError {
    #[error("{0}")]
    Sqlite(#[from] rusqlite::Error),
    #[error("it is damaged: {0}")]
    Damaged(String),
    #[error("a row of `{table}` cannot be read: {source}")]
    Row { table: &'static str, source: serde_json::Error },
    #[error("it was written by a newer meshnode (schema {found}, this one knows {known})")]
    TooNew { found: usize, known: usize },
}

pub struct Disk {
    connection: Connection,
}

impl Disk {
    /// Opens or makes the file and brings its schema up to date. The file must exist with its final mode, since
    /// SQLite gives the same to the log files beside it.
    pub fn open(path: &Path) -> Result<Self, DiskError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut connection = Connection::open_with_flags(path, flags)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        // A deny that was answered with 200 must survive a power cut.
        connection.pragma_update(None, "synchronous", "FULL")?;
        let verdict: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
        if verdict != "ok" {
            return Err(DiskError::Damaged(verdict));
        }
        migrate(&mut connection)?;
        Ok(Self { connection })
    }

    /// Returns what the file holds.
    pub fn load(&self, default_policy: Action) -> Result<Tables, DiskError> {
        let mut tables = Tables::empty(default_policy);
        self.load_settings(&mut tables)?;
        for (_, doc) in self.pairs("SELECT name, doc FROM nodes")? {
            let node: Node = row("nodes", &doc)?;
            tables.nodes.insert(node.name.clone(), Arc::new(node));
        }
        self.load_services(&mut tables)?;
        for (node, doc) in self.pairs("SELECT node, doc FROM checks")? {
            let check = Check { node: node.into(), ..row::<Check>("checks", &doc)? };
            let entry = (check.node.clone(), check.service_id.clone(), check.id.clone());
            tables.by_service.insert(entry, ());
            tables.checks.insert(check.key(), Arc::new(check));
        }
        for (_, doc) in self.pairs("SELECT id, doc FROM intentions")? {
            tables.index_intention(&Arc::new(row::<IntentionRow>("intentions", &doc)?));
        }
        for (id, doc) in self.pairs("SELECT id, doc FROM roots")? {
            Arc::make_mut(&mut tables.roots).insert(id.into(), Arc::new(row("roots", &doc)?));
        }
        self.load_acl(&mut tables)?;
        Ok(tables)
    }

    fn load_acl(&self, tables: &mut Tables) -> Result<(), DiskError> {
        let registry = Arc::make_mut(&mut tables.acl);
        for (_, doc) in self.pairs("SELECT id, doc FROM acl_policies")? {
            registry.put_policy(Arc::new(row("acl_policies", &doc)?));
        }
        for (_, doc) in self.pairs("SELECT accessor, doc FROM acl_tokens")? {
            registry.put_token(Arc::new(row("acl_tokens", &doc)?));
        }
        registry.settle();
        Ok(())
    }

    fn load_settings(&self, tables: &mut Tables) -> Result<(), DiskError> {
        for (name, value) in self.pairs("SELECT name, value FROM settings")? {
            match name.as_str() {
                INDEX => {
                    tables.index =
                        value.parse().map_err(|_| DiskError::Damaged(format!("the index is `{value}`")))?;
                }
                CA_CONFIG => tables.ca_config = Arc::new(row("settings", &value)?),
                _ => drop(Arc::make_mut(&mut tables.settings).insert(name, value)),
            }
        }
        Ok(())
    }

    fn load_services(&self, tables: &mut Tables) -> Result<(), DiskError> {
        let mut query = self.connection.prepare("SELECT node, as_sidecar, doc FROM services")?;
        let rows = query.query_map([], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, bool>(1)?, row.get::<_, String>(2)?))
        })?;
        for found in rows {
            let (node, as_sidecar, doc) = found?;
            let service =
                Arc::new(Service { node: node.into(), as_sidecar, ..row::<Service>("services", &doc)? });
            tables.index_service(service);
        }
        Ok(())
    }

    fn pairs(&self, sql: &str) -> Result<Vec<(String, String)>, DiskError> {
        let mut query = self.connection.prepare(sql)?;
        let rows = query.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Writes all of `changes` and the index, or nothing.
    pub fn commit(&mut self, changes: &[Change], index: u64) -> Result<(), DiskError> {
        let transaction = self.connection.transaction()?;
        for change in changes {
            write(&transaction, change)?;
        }
        put_setting(&transaction, INDEX, &index.to_string())?;
        Ok(transaction.commit()?)
    }
}

fn migrate(connection: &mut Connection) -> Result<(), DiskError> {
    let found: u32 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    let found = found as usize;
    if found > MIGRATIONS.len() {
        return Err(DiskError::TooNew { found, known: MIGRATIONS.len() });
    }
    let transaction = connection.transaction()?;
    for step in &MIGRATIONS[found..] {
        transaction.execute_batch(step)?;
    }
    transaction.pragma_update(None, "user_version", MIGRATIONS.len() as i64)?;
    Ok(transaction.commit()?)
}

fn row<T: DeserializeOwned>(table: &'static str, doc: &str) -> Result<T, DiskError> {
    serde_json::from_str(doc).map_err(|source| DiskError::Row { table, source })
}

fn doc(row: &impl Serialize) -> String {
    serde_json::to_string(row).expect("invariant: the store's rows have string keys only")
}

fn write(to: &Transaction<'_>, change: &Change) -> Result<(), rusqlite::Error> {
    let run = |sql: &str, values: &[&dyn rusqlite::ToSql]| to.prepare_cached(sql)?.execute(values).map(drop);
    match change {
        Change::Node(name, None) => run("DELETE FROM nodes WHERE name = ?1", params![name]),
        Change::Node(name, Some(row)) => {
            run("INSERT OR REPLACE INTO nodes VALUES (?1, ?2)", params![name, doc(&**row)])
        }
        Change::Service(Key { node, id }, None) => {
            run("DELETE FROM services WHERE node = ?1 AND id = ?2", params![node, id])
        }
        Change::Service(Key { node, id }, Some(row)) => run(
            "INSERT OR REPLACE INTO services VALUES (?1, ?2, ?3, ?4, ?5)",
            params![node, id, row.name, row.as_sidecar, doc(&**row)],
        ),
        Change::Check(Key { node, id }, None) => {
            run("DELETE FROM checks WHERE node = ?1 AND id = ?2", params![node, id])
        }
        Change::Check(Key { node, id }, Some(row)) => run(
            "INSERT OR REPLACE INTO checks VALUES (?1, ?2, ?3, ?4)",
            params![node, id, row.status.as_str(), doc(&**row)],
        ),
        Change::Intention(id, None) => run("DELETE FROM intentions WHERE id = ?1", params![id]),
        Change::Intention(id, Some(row)) => run(
            "INSERT OR REPLACE INTO intentions VALUES (?1, ?2, ?3, ?4)",
            params![id, row.source.to_string(), row.destination.to_string(), doc(&**row)],
        ),
        Change::Root(id, None) => run("DELETE FROM roots WHERE id = ?1", params![id]),
        Change::Root(id, Some(row)) => {
            run("INSERT OR REPLACE INTO roots VALUES (?1, ?2)", params![id, doc(&**row)])
        }
        Change::CaConfig(row) => put_setting(to, CA_CONFIG, &doc(&**row)),
        Change::Setting(name, value) => put_setting(to, name, value),
        Change::Policy(id, None) => run("DELETE FROM acl_policies WHERE id = ?1", params![id]),
        Change::Policy(id, Some(row)) => {
            run("INSERT OR REPLACE INTO acl_policies VALUES (?1, ?2, ?3)", params![id, row.name, doc(&**row)])
        }
        Change::Token(accessor, None) => run("DELETE FROM acl_tokens WHERE accessor = ?1", params![accessor]),
        Change::Token(accessor, Some(row)) => {
            run("INSERT OR REPLACE INTO acl_tokens VALUES (?1, ?2)", params![accessor, doc(&**row)])
        }
    }
}

fn put_setting(to: &Transaction<'_>, name: &str, value: &str) -> Result<(), rusqlite::Error> {
    to.prepare_cached("INSERT OR REPLACE INTO settings VALUES (?1, ?2)")?.execute([name, value]).map(drop)
}
