//! The command line: the same API as everyone's, over the local socket.
//!
//! Data goes to stdout and talk to stderr; progress and colour only to a terminal. Exit codes: 0 done, 1 failed,
//! 2 called wrongly, 3 not done in time; `exec` and `console` pass the program's own. Each verb is a module with
//! its flags and its work; [`context::Context`] is what they share.

mod adopt;
mod apply;
mod attach;
mod audit;
mod cluster;
mod context;
pub mod contexts;
mod create;
mod describe;
mod failure;
mod forward;
mod get;
mod image;
mod lifecycle;
mod limits;
mod logs;
mod manifest;
mod operation;
mod output;
mod plan;
mod quota;
mod run;
pub mod server;
mod table;
mod terminal;
mod token;
mod top;
mod wait;

use self::context::{Context, Global};
use self::failure::Failure;
use self::lifecycle::Verb;
use clap::{CommandFactory, Parser, Subcommand};
use std::process::ExitCode;

/// A private cloud: containers that live like machines
#[derive(Parser, Debug)]
#[command(name = "enoki", version, propagate_version = true, disable_help_subcommand = true)]
#[command(after_help = "\
Kinds: host, project, network, volume, secret, image, instance, cluster, job, token, operation,
event; the plural is taken too.
Exit codes: 0 done, 1 failed, 2 called wrongly, 3 not done in time.

Examples:
  enoki run web1 --image enoki/debian:12 --cpus 0.5 --memory 256Mi --wait
  enoki get instances
  enoki exec -it web1 -- bash
  enoki resize web1 --memory 512Mi
  enoki describe instance web1
  enoki delete instance web1")]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand, Debug)]
pub enum Command {
    // Boxed: it has by far the most flags.
    Run(Box<run::Run>),
    Apply(apply::Apply),
    Get(get::Get),
    Describe(describe::Describe),
    Delete(lifecycle::Delete),
    Label(lifecycle::Label),
    Watch(get::Watch),
    Exec(attach::Exec),
    Console(attach::Console),
    PortForward(forward::PortForward),
    Logs(logs::Logs),
    /// Starts stopped instances
    Start(lifecycle::Names),
    /// Stops instances; their disks and addresses stay
    Stop(lifecycle::Names),
    /// Stops instances and starts them again
    Restart(lifecycle::Names),
    Rebuild(lifecycle::Rebuild),
    Resize(limits::Resize),
    Top(top::Top),
    #[command(subcommand)]
    Network(create::NetworkCommand),
    #[command(subcommand)]
    Volume(create::VolumeCommand),
    #[command(subcommand)]
    Secret(create::SecretCommand),
    #[command(subcommand)]
    Project(create::ProjectCommand),
    #[command(subcommand)]
    Image(image::ImageCommand),
    #[command(subcommand)]
    Cluster(cluster::ClusterCommand),
    #[command(subcommand)]
    Host(lifecycle::HostCommand),
    Server(server::ServerArgs),
    #[command(subcommand)]
    Operation(operation::OperationCommand),
    Adopt(adopt::Adopt),
    Audit(audit::Audit),
    Login(contexts::Login),
    #[command(subcommand)]
    Context(contexts::ContextCommand),
    #[command(subcommand)]
    Token(token::TokenCommand),
    /// Prints completions for a shell
    #[command(after_help = "\
Examples:
  enoki completion bash > /etc/bash_completion.d/enoki
  enoki completion zsh > ~/.zfunc/_enoki
  enoki completion fish > ~/.config/fish/completions/enoki.fish")]
    Completion {
        shell: Shell,
    },
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum Shell {
    Bash,
    Zsh,
    Fish,
}

impl Cli {
    /// The command line as clap knows it; `main` adds the verbs that run Enoki itself.
    pub fn command_for_people() -> clap::Command {
        Cli::command()
    }
}

/// Does what the command line says. Failures are told on stderr; the exit code is the whole result. `whole` is the
/// command line with every verb, for completions.
pub async fn run(cli: Cli, whole: clap::Command) -> ExitCode {
    match dispatch(cli, whole).await {
        Ok(code) => ExitCode::from(code),
        Err(failure) => failure.report(),
    }
}

async fn dispatch(cli: Cli, whole: clap::Command) -> Result<u8, Failure> {
    // These need no server, or choose one.
    let command = match cli.command {
        Command::Completion { shell } => return completion(shell, whole).map(|()| 0),
        Command::Context(command) => return contexts::context(command).map(|()| 0),
        Command::Login(args) => return contexts::login(cli.global.project, args).await.map(|()| 0),
        command => command,
    };
    let ctx = &Context::new(cli.global)?;
    match command {
        Command::Completion { .. } | Command::Context(_) | Command::Login(_) => {}
        Command::Token(command) => token::token(ctx, command).await?,
        Command::Run(args) => run::run(ctx, *args).await?,
        Command::Apply(args) => apply::apply(ctx, args).await?,
        Command::Get(args) => get::get(ctx, args).await?,
        Command::Describe(args) => describe::describe(ctx, args).await?,
        Command::Delete(args) => lifecycle::delete(ctx, args).await?,
        Command::Label(args) => lifecycle::label(ctx, args).await?,
        Command::Watch(args) => get::watch(ctx, args).await?,
        Command::Exec(args) => return attach::exec(ctx, args).await,
        Command::Console(args) => return attach::console(ctx, args).await,
        Command::PortForward(args) => forward::forward(ctx, args).await?,
        Command::Logs(args) => logs::logs(ctx, args).await?,
        Command::Start(args) => lifecycle::act(ctx, Verb::Start, args).await?,
        Command::Stop(args) => lifecycle::act(ctx, Verb::Stop, args).await?,
        Command::Restart(args) => lifecycle::act(ctx, Verb::Restart, args).await?,
        Command::Rebuild(args) => lifecycle::rebuild(ctx, args).await?,
        Command::Resize(args) => limits::resize(ctx, args).await?,
        Command::Top(args) => top::top(ctx, args).await?,
        Command::Network(command) => create::network(ctx, command).await?,
        Command::Volume(command) => create::volume(ctx, command).await?,
        Command::Secret(command) => create::secret(ctx, command).await?,
        Command::Project(command) => create::project(ctx, command).await?,
        Command::Image(command) => image::image(ctx, command).await?,
        Command::Cluster(command) => return cluster::cluster(ctx, command).await,
        Command::Host(command) => lifecycle::host(ctx, command).await?,
        Command::Server(args) => match args.command {
            Some(command) => server::server(ctx, command).await?,
            None => return Err(Failure::usage("a server is run, not asked")),
        },
        Command::Operation(command) => operation::operation(ctx, command).await?,
        Command::Audit(args) => audit::audit(ctx, args).await?,
        Command::Adopt(args) => adopt::adopt(ctx, args).await?,
    }
    Ok(0)
}

fn completion(shell: Shell, mut whole: clap::Command) -> Result<(), Failure> {
    let shell = match shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut whole, "enoki", &mut script);
    output::text(script)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
