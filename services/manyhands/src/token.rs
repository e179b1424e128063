//! `manyhands token create`: mints tokens for development and for scripts.

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use manyhands_proto::DocumentName;
use serde::Serialize;

/// The secret that `manyhands dev` and `manyhands token` use by default. Everyone knows it, so a server
/// that has it listens on loopback only.
pub(crate) const DEV_SECRET: &str = "manyhands-dev-secret-known-to-everyone-loopback-only";

/// Shortest secret for HS256, in bytes: as long as its output.
const SECRET_BYTES_MIN: usize = 32;

/// How long a command's own token is good for; `watch` may run for long.
const COMMAND_TTL: Duration = Duration::from_secs(24 * 60 * 60);

const SCOPES: [&str; 3] = ["read", "write", "admin"];

/// Work with tokens.
#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Mint a token and print it, alone, on standard output
    Create(Create),
}

/// What the token says.
#[derive(Debug, Args)]
pub(crate) struct Create {
    /// Workspace that the token is for; repeat for several, or `*` for all
    #[arg(long, required = true)]
    workspace: Vec<String>,
    /// What it allows: read, write, admin, separated by commas
    #[arg(long, value_delimiter = ',', default_value = "read,write")]
    scope: Vec<String>,
    /// How long it is good for: 30s, 15m, 1h
    #[arg(long, default_value = "1h", value_parser = parse_ttl)]
    ttl: Duration,
    /// Who it is for, as others see it in presence and history
    #[arg(long, default_value = "developer")]
    subject: String,
    /// File with the HS256 secret; without it the development secret, which loopback servers take
    #[arg(long)]
    secret_file: Option<PathBuf>,
}

#[derive(Serialize)]
struct Claims {
    sub: String,
    workspaces: Vec<String>,
    scope: String,
    iat: u64,
    exp: u64,
}

impl TokenCommand {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        match self {
            TokenCommand::Create(create) => {
                println!("{}", create.token()?);
                Ok(())
            }
        }
    }
}

impl Create {
    fn token(self) -> anyhow::Result<String> {
        for workspace in &self.workspace {
            if workspace != "*" {
                workspace.parse::<DocumentName>().with_context(|| format!("--workspace {workspace}"))?;
            }
        }
        if let Some(unknown) = self.scope.iter().find(|scope| !SCOPES.contains(&scope.as_str())) {
            bail!("--scope {unknown}: there is no such scope; take some of {}", SCOPES.join(", "));
        }
        let secret = match &self.secret_file {
            Some(path) => read_secret(path)?,
            None => DEV_SECRET.to_owned(),
        };
        sign(self.subject, self.workspace, self.scope.join(" "), self.ttl, &secret)
    }
}

/// A token for one run of a command: everything, for as long as the command may take.
pub(crate) fn for_command(secret: &str) -> anyhow::Result<String> {
    sign("manyhands-cli".to_owned(), vec!["*".to_owned()], "read write".to_owned(), COMMAND_TTL, secret)
}

fn sign(
    subject: String,
    workspaces: Vec<String>,
    scope: String,
    ttl: Duration,
    secret: &str,
) -> anyhow::Result<String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let exp = now.saturating_add(ttl.as_secs());
    let claims = Claims { sub: subject, workspaces, scope, iat: now, exp };
    let key = EncodingKey::from_secret(secret.as_bytes());
    jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &key).context("cannot sign the token")
}

/// The secret in a file, without the line end that editors add.
pub(crate) fn read_secret(path: &std::path::Path) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read the secret from {}", path.display()))?;
    let secret = text.trim_end_matches(['\r', '\n']).to_owned();
    if secret.len() < SECRET_BYTES_MIN {
        bail!(
            "the secret in {} has {} bytes; HS256 needs at least {SECRET_BYTES_MIN}\nfix: head -c 32 /dev/urandom | base64 > {}",
            path.display(),
            secret.len(),
            path.display()
        );
    }
    Ok(secret)
}

fn parse_ttl(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is not a length of time; write 30s, 15m, 1h or 7d");
    let split = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
    let count: u64 = text[..split].parse().map_err(|_| wrong())?;
    let unit = match &text[split..] {
        "s" => 1,
        "m" => 60,
        "h" => 60 * 60,
        "d" => 24 * 60 * 60,
        _ => return Err(wrong()),
    };
    match count.checked_mul(unit) {
        Some(seconds) if seconds > 0 => Ok(Duration::from_secs(seconds)),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time() {
        assert_eq!(parse_ttl("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_ttl("1h"), Ok(Duration::from_secs(3600)));
        for bad in ["", "1", "h", "0s", "-1s", "1w", "1 h", "99999999999999999999h", "18446744073709551615d"]
        {
            assert!(parse_ttl(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_wrong_scope_or_workspace_is_refused() {
        let create = |workspace: &str, scope: &str| Create {
            workspace: vec![workspace.to_owned()],
            scope: vec![scope.to_owned()],
            ttl: Duration::from_secs(60),
            subject: "ada".to_owned(),
            secret_file: None,
        };
        assert!(create("demo", "read").token().is_ok());
        assert!(create("*", "admin").token().is_ok());
        assert!(create("demo", "reed").token().unwrap_err().to_string().contains("no such scope"));
        assert!(create("a/b", "read").token().is_err());
    }
}
