//! What a dry run answers: the plan, and which hosts it fits.

use super::context::Context;
use super::failure::Failure;
use super::output::{self, Format};
use enoki_api::Kind;
use serde::Deserialize;
use serde_json::Value;

/// Whether an instance fits on a host, and why not.
#[derive(Debug, Deserialize)]
pub struct Fit {
    pub host: String,
    pub fits: bool,
    #[serde(default)]
    pub reasons: Vec<Reason>,
}

#[derive(Debug, Deserialize)]
pub struct Reason {
    pub code: String,
    pub message: String,
}

impl Fit {
    /// The hosts of an answer; none where it has none, or is of another shape.
    pub fn of(answer: &Value) -> Vec<Fit> {
        answer.get("hosts").and_then(|hosts| Vec::<Fit>::deserialize(hosts).ok()).unwrap_or_default()
    }

    /// `node1: no (no_capacity: 2Gi of memory asked, 1Gi free)`.
    pub fn line(&self) -> String {
        let reasons: Vec<_> = self.reasons.iter().map(|r| format!("{}: {}", r.code, r.message)).collect();
        let why = if reasons.is_empty() { String::new() } else { format!(" ({})", reasons.join("; ")) };
        format!("{}: {}{why}", self.host, if self.fits { "fits" } else { "does not fit" })
    }
}

/// Prints a plan: `instance/web1 would be created`, and each host.
pub fn show(ctx: &Context, kind: Kind, name: &str, done: &str, answer: &Value) -> Result<(), Failure> {
    match ctx.format {
        Format::Json => return output::json(answer),
        Format::Yaml => return output::yaml(answer),
        Format::Name => return output::line(format!("{kind}/{name}")),
        Format::Table | Format::Wide => {}
    }
    output::line(format!("{kind}/{name} would be {done}"))?;
    Fit::of(answer).iter().try_for_each(|fit| output::line(format!("  {}", fit.line())))
}
