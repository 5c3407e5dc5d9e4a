//! `delete`: runc's own. Before it, whether memory was what ended the run is kept; afterwards the instance's disk is unmounted. Neither
//! changes the outcome: a mount that is missed, the next `create` on that disk finds and takes down.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use enoki_helpers::args::Call;
use enoki_helpers::claim::{self, Claim, Owner};
use enoki_helpers::{Refusal, oom, runc};

pub fn delete(runc: &Path, call: &Call, words: &[OsString], id: &str) -> Result<ExitCode, Refusal> {
    oom::keep(id, call.root.as_deref());
    let status = runc::wait_for(runc, words)
        .map_err(|e| Refusal::new(format!("cannot run {}: {e}", runc.display())))?;
    let me = Owner { container: id.to_owned(), runc_root: call.root.clone() };
    // runc refuses to delete what still runs; then the disk stays where it is.
    let gone = status.success() || claim::status(runc, &me).is_none();
    if gone && let Err(why) = unmount(&me) {
        eprintln!("enoki: {why}");
    }
    Ok(ExitCode::from(runc::code(status)))
}

/// Only what this container mounted: a successor may have taken the disk over already.
fn unmount(me: &Owner) -> Result<(), Refusal> {
    let Some(mountpoint) = claim::mountpoint(&me.container) else {
        return Ok(());
    };
    let mut claim = Claim::lock(&mountpoint)?;
    match claim.owner() {
        Some(owner) if owner.container == me.container => claim.release(),
        _ => Ok(()),
    }
}
