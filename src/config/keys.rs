//! From `[[key]]` tables to what the holders of keys may do.

use std::collections::{HashMap, HashSet};
use std::num::NonZero;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::Deserialize;
use toml::value::Datetime;

use super::access::{self, Listed};
use super::key_file;
use super::plan::PlanError;
use super::text;
use super::toml_file::{FileError, Table};
use crate::addr::Name;
use crate::gate::{KeyRules, Quota};
use crate::pipe::{Role, Spec};
use crate::proto::key::Fingerprint;

/// What a file says of one key.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct KeyOptions {
    /// Where the key is: by itself, or in a directory of keys.
    file: PathBuf,
    #[serde(default, deserialize_with = "text::optional")]
    name: Option<Name>,
    #[serde(default, deserialize_with = "text::optional_list")]
    allow: Option<Vec<Listed>>,
    #[serde(default)]
    max_connections: Option<NonZero<u32>>,
    #[serde(default)]
    rate: Option<NonZero<u32>>,
    #[serde(default)]
    expires: Option<Expires>,
}

impl KeyOptions {
    /// What only an end that accepts the key can see to.
    fn of_a_responder(&self) -> Option<&'static str> {
        let given = [
            ("allow", self.allow.is_some()),
            ("max-connections", self.max_connections.is_some()),
            ("rate", self.rate.is_some()),
        ];
        given.into_iter().find_map(|(option, is_given)| is_given.then_some(option))
    }
}

/// A moment that is the same everywhere.
#[derive(Clone, Copy, Deserialize)]
#[serde(try_from = "Datetime")]
struct Expires(Timestamp);

impl TryFrom<Datetime> for Expires {
    type Error = String;

    fn try_from(written: Datetime) -> Result<Self, String> {
        let wrong = || {
            format!(
                "'{written}' is no moment; write a date such as 2027-01-31, which begins at midnight UTC, or a time with its \
                 offset such as 2027-01-31T18:00:00+01:00"
            )
        };
        let text = match written {
            Datetime { date: Some(date), time: None, .. } => format!("{date}T00:00:00Z"),
            // A local time would be another moment on another host.
            Datetime { offset: None, .. } => return Err(wrong()),
            Datetime { .. } => written.to_string(),
        };
        text.parse().map(Self).map_err(|_| wrong())
    }
}

/// Has what `tables` say hold for all `specs` that have the keys. Gives the files of lists that they name. Relative paths are
/// `beside` the file with the tables.
///
/// # Errors
/// [`FileError`], at the table that says what cannot be.
pub(super) fn apply(
    tables: &[Table<KeyOptions>],
    specs: &mut [Spec],
    beside: &Path,
) -> Result<Vec<PathBuf>, FileError> {
    if tables.is_empty() {
        return Ok(Vec::new());
    }
    let by_path = by_path(specs, beside);
    let (mut lists, mut names, mut by_key) = (Vec::new(), HashMap::new(), HashMap::new());
    for table in tables {
        let KeyOptions { file, name, allow, max_connections, rate, expires } = &table.options;
        let contradiction = |option, message| table.blame(PlanError::contradiction(option, message));
        let key = *by_path.get(&real(beside.join(file))).ok_or_else(|| {
            let file = file.display();
            contradiction(
                "file",
                format!("no pipe has the key {file}; give it to a pipe, or remove this table"),
            )
        })?;
        if let Some(name) = name
            && let Some(first) = names.insert(name, table.line())
        {
            let message = format!("'{name}' is the name of the key in line {first}, too; give each its own");
            return Err(contradiction("name", message));
        }
        let (access, files) = access::access(allow.as_deref(), &[], beside)
            .map_err(|(option, source)| table.blame(PlanError::List { option, source }))?;
        lists.extend(files);
        let quota = Quota { connections: *max_connections, rate: *rate };
        let rules = KeyRules { access, quota, expires: expires.map(|Expires(expires)| expires) };
        if let Some((first, _)) = by_key.insert(key, (table, rules)) {
            let first = first.line();
            let message = format!("line {first} has a table for this key already; make one table of the two");
            return Err(contradiction("file", message));
        }
    }
    check(&by_key, specs)?;
    for Spec { common, rules, .. } in specs {
        let keys: Vec<_> = common.key_names.iter().map(|(key, _)| key).collect();
        for (key, (table, of_key)) in keys.iter().filter_map(|key| Some((*key, by_key.get(key)?))) {
            rules.of_keys.insert(key, of_key.clone());
            if let Some(name) = &table.options.name {
                common.key_names.set_name(key, name.clone());
            }
        }
    }
    Ok(lists)
}

/// Asserts that each table makes sense for the pipes that have its key.
fn check(
    by_key: &HashMap<Fingerprint, (&Table<KeyOptions>, KeyRules)>,
    specs: &[Spec],
) -> Result<(), FileError> {
    let responders = specs.iter().filter(|spec| matches!(spec.role, Role::Responder { .. }));
    let accepted: HashSet<_> =
        responders.flat_map(|spec| spec.role.keys()).map(|key| key.fingerprint()).collect();
    // The first mistake of the file first.
    let mut in_order: Vec<_> = by_key.iter().collect();
    in_order.sort_by_key(|(_, (table, _))| table.line());
    for (key, (table, _)) in in_order {
        if !accepted.contains(key)
            && let Some(option) = table.options.of_a_responder()
        {
            let message = format!(
                "{option} is for the end that accepts the key, and no pipe here with mode = \"decrypt\" does; leave it out"
            );
            return Err(table.blame(PlanError::contradiction(option, message)));
        }
    }
    let now = Timestamp::now();
    for spec in specs {
        if let Role::Initiator { key, .. } = &spec.role
            && let Some((table, KeyRules { expires: Some(expires), .. })) = by_key.get(&key.fingerprint())
            && *expires <= now
        {
            let file = table.options.file.display();
            let message = format!("the key {file} expired at {expires}; get a new one for {spec}");
            return Err(table.blame(PlanError::contradiction("expires", message)));
        }
    }
    Ok(())
}

/// The keys of all `specs`, by where they are.
fn by_path(specs: &[Spec], beside: &Path) -> HashMap<PathBuf, Fingerprint> {
    let mut by_path = HashMap::new();
    for (key, file) in specs.iter().flat_map(|spec| spec.common.key_names.iter()) {
        let path = beside.join(file);
        for original in key_file::original_names(&path) {
            by_path.entry(path.with_file_name(original)).or_insert(key);
        }
        by_path.insert(real(path), key);
    }
    by_path
}

/// One path for all that lead to a file.
fn real(path: PathBuf) -> PathBuf {
    path.canonicalize().unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expires(text: &str) -> Result<String, String> {
        let Expires(expires) = text.parse::<Datetime>().unwrap().try_into()?;
        Ok(expires.to_string())
    }

    #[test]
    fn a_date_begins_at_midnight_utc() {
        assert_eq!(expires("2027-01-31").unwrap(), "2027-01-31T00:00:00Z");
    }

    #[test]
    fn a_time_counts_with_its_offset() {
        assert_eq!(expires("2027-01-31 18:00:00+01:00").unwrap(), "2027-01-31T17:00:00Z");
    }

    #[test]
    fn a_time_without_an_offset_is_no_moment() {
        for local in ["2027-01-31T18:00:00", "18:00:00"] {
            assert!(expires(local).unwrap_err().contains("is no moment"), "{local}");
        }
    }
}
