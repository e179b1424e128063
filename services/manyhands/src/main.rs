//! The one binary: a subcommand per service, `dev` with all of them in one process, and tools.

mod dev;
mod serve;
mod settings;
mod token;
mod ws;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// A real-time sync engine: many people edit the same document.
#[derive(Debug, Parser)]
#[command(name = "manyhands", version, propagate_version = true, infer_subcommands = true)]
struct Arguments {
    #[command(flatten)]
    from: settings::From,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run everything in one process, with its data in a directory
    Dev(dev::Dev),
    /// Run an edge: sockets in, sockets out
    Edge(serve::EdgeFlags),
    /// Run a document node: one writer per partition
    Document(serve::DocumentFlags),
    /// Make the event log, or bring its schema forward
    Migrate,
    /// Read and write the maps of a workspace
    #[command(subcommand)]
    Ws(Box<ws::WsCommand>),
    /// Work with tokens
    #[command(subcommand)]
    Token(token::TokenCommand),
    /// Work with the configuration
    #[command(subcommand)]
    Config(ConfigCommand),
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Read the configuration as the services do, print it with the layer that set each value, and say what is wrong
    Check,
}

fn main() -> ExitCode {
    let Arguments { from, command } = Arguments::parse();
    let done = match command {
        Command::Dev(dev) => run(dev.run(from)),
        Command::Edge(flags) => run(serve::edge(from, flags)),
        Command::Document(flags) => run(serve::document(from, flags)),
        Command::Migrate => run(serve::migrate(from)),
        Command::Ws(command) => run(command.run()),
        Command::Token(command) => command.run(),
        Command::Config(ConfigCommand::Check) => check(&from),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // One line for what failed and why; a `fix:` line follows where one is known.
            eprintln!("error: {error:#}");
            error.downcast_ref::<ws::Failure>().map_or(ExitCode::FAILURE, |failure| failure.exit.into())
        }
    }
}

fn run(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(work)
}

fn check(from: &settings::From) -> anyhow::Result<()> {
    let loaded = from.load()?;
    print!("{}", loaded.effective());
    loaded.config.document.check().map_err(|wrong| anyhow::anyhow!("[document] {wrong}"))?;
    Ok(())
}
