//! Waiting for an instance to get where it should be, or for an object to be gone.
//!
//! The server waits with the write for the first seconds, which tells soonest; after that the object is read again
//! and again, so that a failure ends the wait at once and a restarted server does not end it at all.

use super::context::{CALL, Context};
use super::failure::Failure;
use super::table;
use enoki_api::client::{self, Answer, WriteOptions};
use enoki_api::instance::Phase;
use enoki_api::quantity::Span;
use enoki_api::{Code, Instance, Kind};
use indicatif::ProgressBar;
use serde_json::Value;
use std::time::{Duration, Instant};

/// How long the server is asked to wait with a write.
const WITH_WRITE: Duration = Duration::from_secs(5);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(250);

/// A failure counts when it was seen this often in a row: a host may tell that it knows of a new generation a moment
/// before it acts on it.
const FAILED_LOOKS: u32 = 3;

/// How long to wait, as every waiting command takes it.
#[derive(clap::Args, Clone, Copy, Debug)]
pub struct WaitFlags {
    /// Return as soon as the request is accepted.
    #[arg(long, conflicts_with = "timeout")]
    pub no_wait: bool,
    /// How long to wait; when it takes longer, the exit code is 3 and the work goes on.
    #[arg(long, default_value = "60s", value_name = "DURATION")]
    pub timeout: Span,
}

/// A wait that has begun.
pub struct Waiting {
    since: Instant,
    timeout: Span,
    spinner: ProgressBar,
}

impl Waiting {
    /// Begins to wait; `talk` is shown on a terminal meanwhile.
    pub fn begin(timeout: Span, talk: impl Into<String>) -> Self {
        // Draws on stderr, and only where that is a terminal.
        let spinner = ProgressBar::new_spinner();
        spinner.set_message(talk.into());
        spinner.enable_steady_tick(Duration::from_millis(120));
        Waiting { since: Instant::now(), timeout, spinner }
    }

    /// Options that let the server wait with the write.
    pub fn with_write(&self, until: &str) -> WriteOptions {
        WriteOptions::wait(until, self.timeout.duration().min(WITH_WRITE))
    }

    pub fn late(&self) -> bool {
        self.since.elapsed() >= self.timeout.duration()
    }

    /// Pauses before the next look; an error when the time is up. `state` says how it stands.
    pub async fn pause(&self, state: impl Into<String>) -> Result<(), Failure> {
        let state = state.into();
        if self.late() {
            return Err(Failure::timed_out(format!("not done after {}: {state}", self.timeout)));
        }
        self.spinner.set_message(state);
        let left = self.timeout.duration().saturating_sub(self.since.elapsed());
        tokio::time::sleep(PAUSE.min(left)).await;
        Ok(())
    }

    /// Waits until an instance that a write answered with is in `phase`. The object as it then is.
    pub async fn for_phase(self, ctx: &Context, answer: Answer, phase: Phase) -> Result<Value, Failure> {
        if answer.reached() {
            return Ok(answer.body);
        }
        let mut object = answer.body;
        // The generation that the write made: what is seen of older ones does not count.
        let wanted: Instance = table::decode(&object)?;
        let mut failed = 0;
        loop {
            let seen: Instance = table::decode(&object)?;
            match verdict(&seen, phase, wanted.generation) {
                Verdict::Reached => return Ok(object),
                Verdict::Failed if failed >= FAILED_LOOKS => return Err(Failure::failed(standing(&seen))),
                Verdict::Failed => failed += 1,
                Verdict::Waiting => failed = 0,
            }
            self.pause(standing(&seen)).await?;
            object = self.look(ctx, Kind::Instance, &wanted.name).await?.unwrap_or(object);
        }
    }

    /// The object now. None: the server is away for the moment.
    pub async fn look(&self, ctx: &Context, kind: Kind, name: &str) -> Result<Option<Value>, Failure> {
        match ctx.client.read(&ctx.object(kind, name), CALL).await {
            Ok(answer) => Ok(Some(answer.body)),
            Err(client::Error::Problem(problem)) if problem.code != Code::StoreUnavailable => {
                Err(client::Error::Problem(problem).into())
            }
            Err(error) if self.late() => Err(error.into()),
            Err(_) => Ok(None),
        }
    }

    /// Waits until the object of this uid is gone (another one of its name does not count).
    pub async fn for_deletion(
        &self,
        ctx: &Context,
        kind: Kind,
        name: &str,
        uid: Option<&str>,
    ) -> Result<(), Failure> {
        loop {
            let state = match ctx.client.read(&ctx.object(kind, name), CALL).await {
                Err(error) if error.code() == Some(Code::NotFound) => return Ok(()),
                Err(error @ client::Error::Problem(_)) => return Err(error.into()),
                Err(error) => error.to_string(),
                Ok(answer) if uid.is_some() && answer.body["uid"].as_str() != uid => return Ok(()),
                Ok(answer) => match (kind, table::decode::<Instance>(&answer.body)) {
                    (Kind::Instance, Ok(seen)) => standing(&seen),
                    _ => format!("{kind}/{name} is still there"),
                },
            };
            self.pause(state).await?;
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.spinner.finish_and_clear();
    }
}

enum Verdict {
    Reached,
    /// It will not get there by itself.
    Failed,
    Waiting,
}

fn verdict(seen: &Instance, wanted: Phase, generation: u64) -> Verdict {
    if seen.status.observed_generation < generation {
        return Verdict::Waiting;
    }
    match seen.status.phase {
        phase if phase == wanted => Verdict::Reached,
        Phase::Failed => Verdict::Failed,
        // Its program ended, and its restart policy leaves it at that; or somebody stopped it.
        Phase::Stopped => Verdict::Failed,
        Phase::Deleting => Verdict::Failed,
        Phase::Pending
        | Phase::Starting
        | Phase::Running
        | Phase::Stopping
        | Phase::Backoff
        | Phase::Unknown => Verdict::Waiting,
    }
}

/// `instance/web1 is pending (no_capacity): no host has room`.
pub fn standing(seen: &Instance) -> String {
    let status = &seen.status;
    let mut text = format!("instance/{} is {}", seen.name, status.phase);
    if let Some(reason) = &status.reason {
        text.push_str(&format!(" ({reason})"));
    }
    match (&status.message, status.exit_code) {
        (Some(message), _) => text.push_str(&format!(": {message}")),
        (None, Some(code)) if matches!(status.phase, Phase::Failed | Phase::Stopped | Phase::Backoff) => {
            text.push_str(&format!(": it ended with exit code {code}"));
        }
        (None, _) => {}
    }
    text
}
