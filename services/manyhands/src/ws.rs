//! `manyhands ws`: reads and writes the maps of a workspace, as any client does.
//!
//! What is asked for goes to standard output, everything else to standard error. The exit code says what kind of
//! thing went wrong; see [`Failure`].

mod binary;
mod failure;
mod json;
mod show;

use std::io::Read as _;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use manyhands_client::Strategy;
use url::Url;

use crate::token::{self, DEV_SECRET};

pub(crate) use failure::Failure;

/// Read and write the maps of a workspace.
#[derive(Debug, Subcommand)]
#[command(
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not allowed, 4 no such key, 5 the key has another value,
6 no server or no answer, 7 refused by the server."
)]
pub(crate) enum WsCommand {
    /// Print the value of a key, or all keys
    Get(Get),
    /// Set a key to a JSON value, and wait until it is durable
    Put(Put),
    /// Remove a key, and wait until that is durable
    Del(Del),
    /// Print what a map has and then everything that changes it, one JSON object a line
    Watch(Watch),
    /// Print the values that were written concurrently with the one that won and that nobody replaced yet
    Conflicts(Conflicts),
}

/// Where, as whom and how.
#[derive(Clone, Debug, Args)]
pub(crate) struct To {
    /// Address of an edge
    #[arg(long, env = URL_VARIABLE, default_value = "ws://127.0.0.1:8080", help_heading = "Connection")]
    url: Url,
    /// Token to show; without one, a token is minted with the secret
    #[arg(long, env = TOKEN_VARIABLE, hide_env_values = true, help_heading = "Connection")]
    token: Option<String>,
    /// File with the HS256 secret to mint a token with; without it the development secret
    #[arg(long, conflicts_with = "token", help_heading = "Connection")]
    secret_file: Option<PathBuf>,
    /// Protocol to speak
    #[arg(long, value_enum, default_value_t = Dialect::Binary, help_heading = "Connection")]
    dialect: Dialect,
    /// How the workspace is to merge: crdt, lww or server. Decides it for a new one
    #[arg(long, help_heading = "Connection")]
    strategy: Option<Strategy>,
    /// Map; the one without a name is what JSON clients see, and the only one that they see
    #[arg(long, default_value = "", hide_default_value = true)]
    map: String,
    /// How to print
    #[arg(long, short, value_enum, default_value_t = Format::Table)]
    output: Format,
    /// How long it may take: 500ms, 10s, 1m
    #[arg(long, default_value = "10s", value_parser = parse_duration, help_heading = "Connection")]
    timeout: Duration,
}

/// What the environment may say instead of flags.
pub(crate) const URL_VARIABLE: &str = "MANYHANDS_URL";
pub(crate) const TOKEN_VARIABLE: &str = "MANYHANDS_TOKEN";

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Dialect {
    /// manyhands.v1: everything
    Binary,
    /// manyhands.json.v1: the map without a name, and no conflicts
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people: keys and values in columns; a single value alone
    Table,
    /// For programs: one JSON document
    Json,
}

#[derive(Debug, Args)]
pub(crate) struct Get {
    /// Workspace
    workspace: String,
    /// Key; all of them without one
    key: Option<String>,
    #[command(flatten)]
    to: To,
}

#[derive(Debug, Args)]
pub(crate) struct Put {
    /// Workspace
    workspace: String,
    /// Key
    key: String,
    /// Value as JSON; `-` reads it from standard input
    #[arg(allow_hyphen_values = true)]
    value: String,
    /// Take VALUE as a text instead of JSON
    #[arg(long)]
    text: bool,
    /// Only if the key still has the value of this seq, 0 for none; for the strategy server
    #[arg(long, value_name = "SEQ")]
    expect: Option<u64>,
    /// Microseconds since 1970 to write under instead of the present; with the JSON dialect
    #[arg(long, value_name = "MICROS")]
    timestamp: Option<u64>,
    /// Directory that keeps the write until the server has it, also when this command is killed; a later put or
    /// del with the same directory and workspace sends it. With the binary dialect
    #[arg(long, value_name = "DIR")]
    profile: Option<PathBuf>,
    #[command(flatten)]
    to: To,
}

#[derive(Debug, Args)]
pub(crate) struct Del {
    /// Workspace
    workspace: String,
    /// Key
    key: String,
    /// Only if the key still has the value of this seq; for the strategy server
    #[arg(long, value_name = "SEQ")]
    expect: Option<u64>,
    /// Directory that keeps the removal until the server has it; see put
    #[arg(long, value_name = "DIR")]
    profile: Option<PathBuf>,
    #[command(flatten)]
    to: To,
}

#[derive(Debug, Args)]
pub(crate) struct Watch {
    /// Workspace
    workspace: String,
    /// Key; all of them without one
    key: Option<String>,
    /// End after so many changes
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    #[command(flatten)]
    to: To,
}

#[derive(Debug, Args)]
pub(crate) struct Conflicts {
    /// Workspace
    workspace: String,
    /// Key; all of them without one
    key: Option<String>,
    #[command(flatten)]
    to: To,
}

/// A write to one key.
struct Write {
    key: String,
    /// JSON; none removes the key.
    value: Option<String>,
    expect: Option<u64>,
    timestamp: Option<u64>,
    profile: Option<PathBuf>,
}

impl WsCommand {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        match self {
            WsCommand::Get(get) => {
                let within = get.to.timeout;
                let items = in_time(within, async {
                    match get.to.dialect {
                        Dialect::Binary => binary::get(&get.to, &get.workspace).await,
                        Dialect::Json => json::get(&get.to, &get.workspace).await,
                    }
                });
                show::items(items.await?, get.key.as_deref(), get.to.output)
            }
            WsCommand::Put(put) => {
                let value = value(&put.value, put.text)?;
                let Put { workspace, key, expect, timestamp, profile, to, .. } = put;
                write(&to, &workspace, Write { key, value: Some(value), expect, timestamp, profile }).await
            }
            WsCommand::Del(del) => {
                let Del { workspace, key, expect, profile, to } = del;
                write(&to, &workspace, Write { key, value: None, expect, timestamp: None, profile }).await
            }
            WsCommand::Watch(watch) => match watch.to.dialect {
                Dialect::Binary => binary::watch(&watch).await,
                Dialect::Json => json::watch(&watch).await,
            },
            WsCommand::Conflicts(conflicts) => {
                if conflicts.to.dialect == Dialect::Json {
                    return Err(Failure::usage(
                        "the JSON dialect tells winners only",
                        "Leave --dialect json out.",
                    )
                    .into());
                }
                let within = conflicts.to.timeout;
                let found = in_time(within, binary::conflicts(&conflicts.to, &conflicts.workspace)).await?;
                show::conflicts(found, conflicts.key.as_deref(), conflicts.to.output)
            }
        }
    }
}

async fn write(to: &To, workspace: &str, write: Write) -> anyhow::Result<()> {
    if let Some(value) = &write.value {
        manyhands_client::check_json(value).map_err(|flaw| {
            let fix = format!("Quote it for the shell, or take it as a text: --text '{value}'.");
            Failure::usage(&format!("this is {flaw}"), &fix)
        })?;
    }
    match to.dialect {
        Dialect::Binary if write.timestamp.is_some() => {
            Err(Failure::usage("--timestamp is for the JSON dialect", "Add --dialect json.").into())
        }
        Dialect::Json if write.profile.is_some() => {
            Err(Failure::usage("--profile is for the binary dialect", "Leave --dialect json out.").into())
        }
        Dialect::Binary => in_time(to.timeout, binary::write(to, workspace, write)).await,
        Dialect::Json => in_time(to.timeout, json::write(to, workspace, write)).await,
    }
}

impl To {
    fn token(&self) -> anyhow::Result<String> {
        match (&self.token, &self.secret_file) {
            (Some(token), _) => Ok(token.clone()),
            (None, Some(path)) => token::for_command(&token::read_secret(path)?),
            (None, None) => token::for_command(DEV_SECRET),
        }
    }

    /// The JSON dialect has one map.
    fn only_root(&self) -> anyhow::Result<()> {
        if !self.map.is_empty() {
            let fix = "Leave --map or --dialect json out.";
            return Err(Failure::usage("the JSON dialect sees the map without a name only", fix).into());
        }
        Ok(())
    }
}

/// The value of a command line.
fn value(value: &str, is_text: bool) -> anyhow::Result<String> {
    let value = match value {
        "-" => {
            let mut read = String::new();
            std::io::stdin().read_to_string(&mut read)?;
            read
        }
        value => value.to_owned(),
    };
    Ok(if is_text { serde_json::to_string(&value)? } else { value })
}

async fn in_time<T>(within: Duration, what: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    match tokio::time::timeout(within, what).await {
        Ok(result) => result,
        Err(_) => Err(Failure::unavailable(
            &format!("no answer within {within:?}"),
            "Check --url and that the server runs, or give it more time with --timeout.",
        )
        .into()),
    }
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is not a length of time; write 500ms, 10s or 1m");
    let split = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
    let count: u64 = text[..split].parse().map_err(|_| wrong())?;
    let millis = match &text[split..] {
        "ms" => Some(count),
        "s" => count.checked_mul(1_000),
        "m" => count.checked_mul(60_000),
        _ => None,
    };
    millis.filter(|millis| *millis > 0).map(Duration::from_millis).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time() {
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(parse_duration("1m"), Ok(Duration::from_secs(60)));
        for bad in ["", "1", "s", "0s", "1h", "99999999999999999999s", "18446744073709551615m"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }
}
