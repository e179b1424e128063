//! Printing: columns for people, JSON for programs.

use std::io::Write as _;

use manyhands_client::Item;

use super::{Failure, Format};

/// A key, what it has, and what was written concurrently with it.
pub(super) type Contested = (String, Item, Vec<Item>);

/// All keys, or the value of one.
pub(super) fn items(items: Vec<(String, Item)>, key: Option<&str>, format: Format) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    if let Some(key) = key {
        let (_, item) = items.into_iter().find(|(other, _)| other == key).ok_or_else(|| missing(key))?;
        writeln!(out, "{}", if format == Format::Json { object(&item) } else { item.json })?;
        return Ok(());
    }
    match format {
        Format::Table => {
            let width = items.iter().map(|(key, _)| key.chars().count()).max().unwrap_or(0).min(40);
            for (key, item) in &items {
                writeln!(out, "{key:<width$}  {}", item.json)?;
            }
        }
        Format::Json => {
            let members = items.iter().map(|(key, item)| format!("{}:{}", quoted(key), item.json));
            writeln!(out, "{{{}}}", members.collect::<Vec<_>>().join(","))?;
        }
    }
    Ok(())
}

/// What lost, beside what won.
pub(super) fn conflicts(found: Vec<Contested>, key: Option<&str>, format: Format) -> anyhow::Result<()> {
    if let Some(key) = key
        && !found.iter().any(|(other, ..)| other == key)
    {
        return Err(missing(key).into());
    }
    let wanted = |other: &str| key.is_none_or(|key| key == other);
    let found = found.into_iter().filter(|(other, _, losers)| wanted(other) && !losers.is_empty());
    let mut out = std::io::stdout().lock();
    match format {
        Format::Table => {
            for (key, winner, losers) in found {
                writeln!(out, "{key}  {}", winner.json)?;
                for loser in losers {
                    writeln!(
                        out,
                        "{:width$}  {}  (concurrent)",
                        "",
                        loser.json,
                        width = key.chars().count()
                    )?;
                }
            }
        }
        Format::Json => {
            let members = found.map(|(key, winner, losers)| {
                let losers: Vec<String> = losers.iter().map(object).collect();
                let (winner, losers) = (object(&winner), losers.join(","));
                format!("{}:{{\"winner\":{winner},\"conflicts\":[{losers}]}}", quoted(&key))
            });
            writeln!(out, "{{{}}}", members.collect::<Vec<_>>().join(","))?;
        }
    }
    Ok(())
}

/// One line of `watch`, with the time when it was written where that is known. Says whether there is anybody to
/// read it.
pub(super) fn change(key: &str, value: Option<&str>, timestamp: Option<u64>) -> bool {
    let value = value.map_or_else(|| "\"deleted\":true".to_owned(), |value| format!("\"value\":{value}"));
    let timestamp = timestamp.map_or_else(String::new, |micros| format!(",\"timestamp\":{micros}"));
    let mut out = std::io::stdout().lock();
    writeln!(out, "{{\"key\":{},{value}{timestamp}}}", quoted(key)).and_then(|()| out.flush()).is_ok()
}

fn object(item: &Item) -> String {
    format!("{{\"value\":{},\"timestamp\":{},\"seq\":{}}}", item.json, item.stamp.micros, item.seq)
}

fn quoted(key: &str) -> String {
    serde_json::Value::from(key).to_string()
}

fn missing(key: &str) -> Failure {
    Failure::not_found(
        &format!("there is no key {}", quoted(key)),
        "List the keys: manyhands ws get WORKSPACE.",
    )
}
