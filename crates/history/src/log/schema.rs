//! What an event log's database must look like: the migrations, and who it belongs to.

use std::collections::BTreeMap;

use manyhands_proto::PARTITIONS;

use super::LogError;

/// One step of the schema, in both dialects.
pub(crate) struct Migration {
    pub(crate) name: &'static str,
    pub(crate) postgres: &'static str,
    pub(crate) sqlite: &'static str,
}

macro_rules! migration {
    ($name:literal) => {
        Migration {
            name: $name,
            postgres: include_str!(concat!("../../../../migrations/postgres/", $name, ".sql")),
            sqlite: include_str!(concat!("../../../../migrations/sqlite/", $name, ".sql")),
        }
    };
}

/// Every step, in order. Steps are added, never changed.
pub(crate) const MIGRATIONS: &[Migration] = &[migration!("0001_event_log")];

/// The function that places documents: [`PartitionId::of`](manyhands_proto::PartitionId::of).
const HASH: &str = "fnv1a-64";

/// The table that says what the database is. It comes before every migration.
pub(crate) const CREATE_META: &str =
    "CREATE TABLE IF NOT EXISTS meta (key text NOT NULL PRIMARY KEY, value text NOT NULL)";
pub(crate) const READ_META: &str = "SELECT key, value FROM meta";
pub(crate) const WRITE_META: &str =
    "INSERT INTO meta (key, value) VALUES ($1, $2) ON CONFLICT (key) DO UPDATE SET value = excluded.value";

/// What a database says about itself.
#[derive(Debug, Default)]
pub(crate) struct Meta(BTreeMap<String, String>);

impl FromIterator<(String, String)> for Meta {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(rows: I) -> Meta {
        Meta(rows.into_iter().collect())
    }
}

impl Meta {
    /// What a database that is up to date says.
    pub(crate) fn current(cluster: &str) -> [(&'static str, String); 4] {
        [
            ("schema", MIGRATIONS.len().to_string()),
            ("partitions", PARTITIONS.to_string()),
            ("hash", HASH.to_owned()),
            ("cluster", cluster.to_owned()),
        ]
    }

    fn schema(&self) -> usize {
        self.0.get("schema").and_then(|text| text.parse().ok()).unwrap_or(0)
    }

    /// The steps that are missing, if the database is ours to bring forward.
    pub(crate) fn missing(&self, place: &str, cluster: &str) -> Result<&'static [Migration], LogError> {
        let schema = self.schema();
        if schema > 0 {
            self.check_owner(place, cluster)?;
        }
        MIGRATIONS.get(schema..).ok_or_else(|| newer(place, schema))
    }

    /// Refuses a database that this program must not write to.
    pub(crate) fn check(&self, place: &str, cluster: &str) -> Result<(), LogError> {
        let (schema, known) = (self.schema(), MIGRATIONS.len());
        if schema == 0 {
            return Err(empty(place));
        }
        if schema < known {
            return Err(LogError::Mismatch(format!(
                "the event log in {place} has schema {schema} and this program needs {known}: run `manyhands migrate`"
            )));
        }
        if schema > known {
            return Err(newer(place, schema));
        }
        self.check_owner(place, cluster)
    }

    fn check_owner(&self, place: &str, cluster: &str) -> Result<(), LogError> {
        for (key, ours) in Meta::current(cluster) {
            let theirs = self.0.get(key).map_or("", String::as_str);
            let mend = match key {
                "schema" => continue,
                "cluster" => {
                    "give each cluster a database of its own, or set this node's cluster id to that one"
                }
                _ => "use the program that made it, or another database",
            };
            if theirs != ours {
                return Err(LogError::Mismatch(format!(
                    "the event log in {place} has {key} {theirs:?}, not {ours:?}: {mend}"
                )));
            }
        }
        Ok(())
    }
}

/// The refusal of a database without an event log.
pub(crate) fn empty(place: &str) -> LogError {
    LogError::Mismatch(format!("there is no event log in {place}: run `manyhands migrate`"))
}

fn newer(place: &str, schema: usize) -> LogError {
    LogError::Mismatch(format!(
        "the event log in {place} has schema {schema} and this program knows {}: run a newer manyhands",
        MIGRATIONS.len()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A migration that nobody runs, or that one dialect lacks, would be found in production.
    #[test]
    fn every_file_is_a_migration() {
        let ours: Vec<String> = MIGRATIONS.iter().map(|step| format!("{}.sql", step.name)).collect();
        for dialect in ["postgres", "sqlite"] {
            let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../migrations/").to_owned() + dialect;
            let mut files: Vec<String> = std::fs::read_dir(folder)
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            files.sort();
            assert_eq!(files, ours, "{dialect}");
        }
    }

    fn meta(changes: &[(&str, &str)]) -> Meta {
        let mut meta: Meta =
            Meta::current("mine").into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        for (key, value) in changes {
            meta.0.insert((*key).to_owned(), (*value).to_owned());
        }
        meta
    }

    #[test]
    fn a_foreign_database_is_refused_with_what_to_do() {
        assert_eq!(meta(&[]).check("db", "mine"), Ok(()));
        for (changes, says) in [
            (&[("schema", "0")][..], "run `manyhands migrate`"),
            (&[("schema", "99")], "run a newer manyhands"),
            (&[("partitions", "16")], "has partitions \"16\", not \"271\""),
            (&[("hash", "md5")], "has hash \"md5\""),
            (&[("cluster", "yours")], "has cluster \"yours\", not \"mine\": give each cluster a database"),
        ] {
            let Err(LogError::Mismatch(message)) = meta(changes).check("db", "mine") else {
                panic!("{changes:?} was accepted")
            };
            assert!(message.contains(says), "{message}");
            assert!(!message.contains('\n'));
        }
        assert_eq!(meta(&[("schema", "0")]).missing("db", "mine").unwrap().len(), MIGRATIONS.len());
        assert!(meta(&[("cluster", "yours")]).missing("db", "mine").is_err());
    }
}
