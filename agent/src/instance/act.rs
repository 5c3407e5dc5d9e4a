//! Carries out one action. No choices here: one arm an action, each idempotent, each bounded by the deadlines of
//! what it calls. What fails is told by reason and message; the loop retries.

use super::Host;
use super::facts::Made;
use super::machine;
use super::observe::wanted_image;
use super::observed::{Action, Applied};
use crate::image;
use crate::ledger;
use crate::runtime::{self, Create, ImageInfo};
use enoki_api::instance::{Doomed, LimitsState};
use enoki_api::object::Uid;
use enoki_api::protocol::Order;
use enoki_helpers::{INIT_INSIDE, LOG_INSIDE, USER_DATA_INSIDE, USER_DATA_RESULT_INSIDE};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Why an action was not done.
#[derive(Debug)]
pub struct Failure {
    /// A code for the status.
    pub reason: &'static str,
    pub message: String,
}

impl Failure {
    fn new(reason: &'static str, message: impl ToString) -> Self {
        Failure { reason, message: message.to_string() }
    }

    fn runtime(reason: &'static str) -> impl Fn(runtime::Error) -> Self {
        move |error| match &error {
            runtime::Error::Unavailable(_) => Failure::new("docker_unavailable", error),
            runtime::Error::NotFound(_) | runtime::Error::Conflict(_) | runtime::Error::Refused(_) => {
                Failure::new(reason, error)
            }
        }
    }
}

impl From<machine::Error> for Failure {
    fn from(error: machine::Error) -> Self {
        Failure { reason: error.reason, message: error.message }
    }
}

impl From<image::Error> for Failure {
    fn from(error: image::Error) -> Self {
        let away = matches!(&error, image::Error::Runtime { why: runtime::Error::Unavailable(_), .. });
        Failure::new(if away { "docker_unavailable" } else { "image_missing" }, error)
    }
}

impl From<ledger::Error> for Failure {
    fn from(error: ledger::Error) -> Self {
        Failure::new("ledger_unwritable", error)
    }
}

/// What the actions of one list hand on to each other, and what stays in the agent's memory after them.
#[derive(Default)]
pub struct Scratch {
    /// The container that was just created.
    created: Option<String>,
    pub limits: Option<Applied>,
    pub network_made: bool,
}

impl Scratch {
    /// For an action that goes beside others.
    pub fn part(&self) -> Self {
        Scratch { created: self.created.clone(), ..Scratch::default() }
    }

    /// Takes over what that action had to hand on.
    pub fn absorb(&mut self, part: Self) {
        self.created = part.created.or(self.created.take());
        self.limits = part.limits.or(self.limits.take());
        self.network_made |= part.network_made;
    }
}

/// Does one action for the instance `uid`.
pub async fn act(
    host: &Host,
    uid: &Uid,
    order: Option<&Arc<Order>>,
    action: &Action,
    scratch: &mut Scratch,
) -> Result<(), Failure> {
    let ordered = || order.ok_or_else(|| Failure::new("no_order", "there is no order for this instance"));
    match action {
        Action::Remember(facts) => {
            let (uid, facts) = (uid.clone(), facts.clone());
            host.with_ledger(move |ledger| ledger.remember(&uid, &facts)).await??;
        }
        Action::EnsureImage { pinned } => {
            host.images.ensure(&wanted_image(ordered()?, pinned.as_ref())).await?;
        }
        Action::DeliverFiles => host.machine.deliver(ordered()?).await?,
        Action::EnsureDisk { image } => {
            host.machine.ensure_disk(ordered()?, image.as_deref()).await?;
        }
        Action::EnsureNetwork => {
            host.machine.ensure_network(ordered()?).await?;
            scratch.network_made = true;
        }
        Action::CreateContainer { made, image } => {
            let order = ordered()?;
            // Whether its name was put back decides nothing about this container, which goes by its id.
            let on = machine::pin(order, &image.id);
            if let Err(error) = host.images.restore_name(&wanted_image(order, Some(&on)), image).await {
                tracing::warn!(%uid, %error, "the image's name was not put back");
            }
            let binds = host.machine.binds(order).await?;
            let create = creation(order, made, image, binds);
            let created = host.runtime.create(&create).await.map_err(|error| match error {
                runtime::Error::NotFound(_) => Failure::new("image_missing", error),
                runtime::Error::Conflict(_) => Failure::new("name_held", error),
                other => Failure::runtime("create_failed")(other),
            })?;
            scratch.created = Some(created);
        }
        Action::WriteRecord { container, made } => {
            let container = target(container.as_ref(), scratch)?;
            host.machine.write_record(ordered()?, &container, made).await?;
        }
        Action::StartContainer { container } => {
            let container = target(container.as_ref(), scratch)?;
            host.machine.write_files(ordered()?).await?;
            host.runtime.start(&container).await.map_err(Failure::runtime("start_failed"))?;
        }
        Action::ApplyLimits { container, pid, started_at } => {
            let order = ordered()?;
            let status = host.machine.apply_limits(order, container, *pid).await?;
            let deferred = status.state == LimitsState::Deferred;
            let why = status.reason.clone();
            scratch.limits = Some(Applied {
                container: container.clone(),
                started_at: *started_at,
                granted: order.assignment.granted.clone(),
                status,
            });
            if deferred {
                return Err(Failure::new("limits_deferred", why.unwrap_or_default()));
            }
        }
        Action::StopContainer { container, grace } => {
            absent_is_fine(host.runtime.stop(container, *grace).await)
                .map_err(Failure::runtime("stop_failed"))?;
        }
        Action::RemoveContainer { container } => {
            absent_is_fine(host.runtime.remove(container).await)
                .map_err(Failure::runtime("remove_failed"))?;
            // After the container: the wrapper reads the record when the container goes.
            host.machine.remove_record(container).await?;
        }
        Action::RemoveRemains => host.machine.remove_remains(uid).await?,
        Action::DestroyDisk { disk } => {
            // The last check before the only action that cannot be undone.
            let what = match host.ledger.tombstone(disk).map(|tombstone| tombstone.what) {
                Some(what @ (Doomed::Disk | Doomed::Volume)) => what,
                Some(Doomed::Instance | Doomed::Unknown) | None => {
                    return Err(Failure::new("no_tombstone", format!("disk {disk} has no tombstone")));
                }
            };
            host.machine.destroy(what, disk).await?;
        }
        Action::Bury { uid } => {
            let buried = uid.clone();
            host.with_ledger(move |ledger| ledger.bury(&buried)).await??;
            host.outbox.buried(uid.clone());
        }
    }
    Ok(())
}

fn target(container: Option<&String>, scratch: &Scratch) -> Result<String, Failure> {
    container
        .or(scratch.created.as_ref())
        .cloned()
        .ok_or_else(|| Failure::new("create_failed", "the container was not created"))
}

fn absent_is_fine(result: Result<(), runtime::Error>) -> Result<(), runtime::Error> {
    match result {
        Err(runtime::Error::NotFound(_)) => Ok(()),
        other => other,
    }
}

/// The container's name in Docker.
pub fn container_name(project: &str, name: &str) -> String {
    format!("enoki.{project}.{name}")
}

/// PURE: what Docker is asked to make.
fn creation(
    order: &Order,
    made: &Made,
    image: &ImageInfo,
    binds: Vec<(std::path::PathBuf, String, bool)>,
) -> Create {
    let spec = &order.instance.spec;
    let project = order.instance.project.as_deref().unwrap_or("-");
    let labels = [
        ("project", project.to_owned()),
        ("name", order.instance.name.clone()),
        ("uid", order.uid().to_string()),
        ("epoch", order.assignment.epoch.to_string()),
        ("spec", made.fingerprint.clone()),
    ];
    Create {
        name: container_name(project, &order.instance.name),
        image: image.id.clone(),
        entrypoint: entrypoint(order, image),
        env: order.env.clone(),
        hostname: spec.hostname.clone(),
        // The init is root's; the command's user is its to take.
        user: Some("0".to_owned()),
        binds,
        labels: labels
            .map(|(key, value)| (format!("enoki.{key}"), value))
            .into_iter()
            .collect::<BTreeMap<_, _>>(),
        stop_grace: spec.stop_grace.duration(),
    }
}

/// The init, its options, and the command, as the image's user: the order's, else the image's, else none (the init alone).
fn entrypoint(order: &Order, image: &ImageInfo) -> Vec<String> {
    let spec = &order.instance.spec;
    // Without a command the init itself is what stops: as long as Docker waits, less what the end takes.
    let grace = spec.stop_grace.duration().as_secs().max(1).to_string();
    let mut words: Vec<&str> = vec![INIT_INSIDE, "--log-dir", LOG_INSIDE, "--stop-grace", &grace];
    if spec.user_data.is_some() {
        words.extend(["--user-data", USER_DATA_INSIDE, "--user-data-result", USER_DATA_RESULT_INSIDE]);
    }
    if let Some(user) = &image.user {
        words.extend(["--user", user]);
    }
    words.push("--");
    match &spec.command {
        Some(command) => words.extend(command.iter().map(String::as_str)),
        None => words.extend(image.entrypoint.iter().chain(&image.command).map(String::as_str)),
    }
    words.into_iter().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instance::samples::{changed, order};

    #[test]
    fn the_command_is_the_images_users_and_the_init_is_roots() {
        let words = |order: &Order, image: &ImageInfo| entrypoint(order, image).join(" ");
        let (bare, image) = (order("web1"), ImageInfo::default());
        assert_eq!(words(&bare, &image), format!("{INIT_INSIDE} --log-dir {LOG_INSIDE} --stop-grace 10 --"));
        let image = ImageInfo {
            entrypoint: vec!["serve".to_owned()],
            command: vec!["--port".to_owned(), "80".to_owned()],
            user: Some("app:staff".to_owned()),
            ..image
        };
        assert!(words(&bare, &image).ends_with(" --user app:staff -- serve --port 80"));
        let own = changed(&bare, |spec| spec.command = Some(vec!["sleep".to_owned(), "9".to_owned()]));
        assert!(words(&own, &image).ends_with(" --user app:staff -- sleep 9"));
        let made = Made {
            fingerprint: String::new(),
            spec: own.instance.spec.clone(),
            env: BTreeMap::new(),
            disk: own.disk.clone(),
            image: String::new(),
            volumes: Vec::new(),
        };
        assert_eq!(creation(&own, &made, &image, Vec::new()).user.as_deref(), Some("0"));
    }
}
