//! The programs that the host's side runs: `nft` and `iptables`, each with a deadline and in the caller's namespace.
//!
//! Never on the way of a launch: only when a network's leg is first made, and when the host is tended.

use std::io;
use std::process::{Output, Stdio};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::{Error, egress};

/// For one run; both programs may wait for a lock that others hold.
const DEADLINE: Duration = Duration::from_secs(10);

/// A table, as `ip enoki`, as nft prints it; `None` when there is none.
pub async fn table(name: &str) -> Result<Option<String>, Error> {
    let arguments: Vec<&str> = ["list", "table"].into_iter().chain(name.split(' ')).collect();
    let output = command("nft", &arguments, None).await?;
    Ok(output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned()))
}

/// Carries a whole text out, or nothing of it.
pub async fn nft(text: &str) -> Result<(), Error> {
    let output = command("nft", &["-f", "-"], Some(text)).await?;
    succeeded("nft", &output)
}

/// `None` where Docker has no such chain, or there is no iptables and so no Docker that uses it.
pub async fn docker_user_listing() -> Result<Option<String>, Error> {
    match command("iptables", &["-w", "5", "-S", egress::DOCKER_USER], None).await {
        Ok(output) if output.status.success() => {
            Ok(Some(String::from_utf8_lossy(&output.stdout).into_owned()))
        }
        Ok(_) | Err(Error::Missing { .. }) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Without the comment where this kernel has no match for comments.
pub async fn call_iptables(calls: Vec<egress::Call>) -> Result<(), Error> {
    for call in calls {
        let mut output = iptables(&call).await?;
        if let Some(plain) = call.plain().filter(|_| !output.status.success()) {
            output = iptables(&plain).await?;
        }
        succeeded("iptables", &output)?;
    }
    Ok(())
}

async fn iptables(call: &egress::Call) -> Result<Output, Error> {
    let mut arguments = vec!["-w", "5"];
    arguments.extend(call.0.iter().map(String::as_str));
    command("iptables", &arguments, None).await
}

fn succeeded(program: &'static str, output: &Output) -> Result<(), Error> {
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(Error::Command {
        program,
        message: if message.is_empty() { output.status.to_string() } else { message },
    })
}

async fn command(program: &'static str, arguments: &[&str], input: Option<&str>) -> Result<Output, Error> {
    let what = format!("{program} {}", arguments.join(" "));
    // Daemons are started with short search paths, and these programs live in sbin.
    let path = format!("/usr/local/sbin:/usr/sbin:/sbin:{}", std::env::var("PATH").unwrap_or_default());
    let run = async {
        let mut child = Command::new(program)
            .args(arguments)
            .env("PATH", path)
            .env("LC_ALL", "C")
            .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        if let (Some(mut stdin), Some(text)) = (child.stdin.take(), input) {
            // A program that stops reading says why on its standard error.
            let _ = stdin.write_all(text.as_bytes()).await;
        }
        child.wait_with_output().await
    };
    match tokio::time::timeout(DEADLINE, run).await {
        Ok(Ok(output)) => Ok(output),
        Ok(Err(e)) if e.kind() == io::ErrorKind::NotFound => {
            Err(Error::Missing { program, package: if program == "nft" { "nftables" } else { "iptables" } })
        }
        Ok(Err(e)) => Err(Error::System { what, source: e }),
        Err(_) => Err(Error::Deadline { what, seconds: DEADLINE.as_secs() }),
    }
}
