//! `enoki`: the control plane, the agent, the one-machine cloud and the command line, in one binary.

use clap::{FromArgMatches, Subcommand};
use enoki::cli::server::{ServerArgs, ServerCommand};
use enoki::cli::{self, Cli, Command};
use enoki::config::{AgentConfig, ServerConfig};
use enoki::{host, memory, server, up};
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// The verbs that run Enoki; all others talk to it.
#[derive(Subcommand)]
enum Machine {
    /// Starts a one-machine cloud in the background; again at any time
    Up(up::UpArgs),
    /// Stops Enoki's processes and leaves instances running; with --purge removes everything
    Down(up::DownArgs),
    /// Runs this host's agent in the foreground
    #[command(args_conflicts_with_subcommands = true)]
    Agent {
        #[command(subcommand)]
        command: Option<AgentCommand>,
    },
    #[command(hide = true)]
    Supervise(up::SuperviseArgs),
}

#[derive(Subcommand)]
enum AgentCommand {
    Join(host::JoinArgs),
}

fn main() -> ExitCode {
    memory::few_arenas();
    let command = Machine::augment_subcommands(Cli::command_for_people());
    let matches = command.clone().get_matches();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: the runtime does not start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let code = match Machine::from_arg_matches(&matches) {
        Ok(machine) => runtime.block_on(ended(run(machine))),
        Err(_) => match Cli::from_arg_matches(&matches) {
            Ok(Cli { command: Command::Server(ServerArgs { command: None }), .. }) => {
                runtime.block_on(ended(daemon(async |stop| server::run(ServerConfig::load()?, stop).await)))
            }
            Ok(Cli {
                command: Command::Server(ServerArgs { command: Some(ServerCommand::Join(args)) }),
                ..
            }) => runtime.block_on(ended(server::join(args))),
            Ok(cli) => runtime.block_on(cli::run(cli, command)),
            Err(error) => error.exit(),
        },
    };
    // A thread that waits for the terminal's next key would hold up the end.
    runtime.shutdown_background();
    code
}

/// Runs one of the parts to its end.
async fn ended(part: impl Future<Output = anyhow::Result<()>>) -> ExitCode {
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        eprintln!("error: another crypto provider is installed");
        return ExitCode::FAILURE;
    }
    match part.await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            if error.is::<up::Usage>() { ExitCode::from(2) } else { ExitCode::FAILURE }
        }
    }
}

async fn run(machine: Machine) -> anyhow::Result<()> {
    match machine {
        Machine::Up(args) => up::up(args).await,
        Machine::Down(args) => up::down(args).await,
        Machine::Supervise(args) => up::supervise(args).await,
        Machine::Agent { command: Some(AgentCommand::Join(args)) } => host::join(args).await,
        Machine::Agent { command: None } => {
            daemon(async |stop| host::run(AgentConfig::load()?, stop).await).await
        }
    }
}

/// A long-running part: logs on stderr, ends well on SIGTERM and SIGINT.
async fn daemon(part: impl AsyncFnOnce(CancellationToken) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let filter = EnvFilter::try_from_env("ENOKI_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    let stop = CancellationToken::new();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::spawn(memory::give_back(stop.clone()));
    let told = stop.clone();
    tokio::spawn(async move {
        // Cancel-safe: a signal that comes twice is one signal.
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        told.cancel();
    });
    part(stop).await
}
