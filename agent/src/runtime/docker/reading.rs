//! What Docker's answers mean: containers, images, events and errors in the words of the trait.
//!
//! An answer that cannot be understood is *unknown* ([`Error::Unavailable`]), never *absent*.

use super::super::{Container, Error, Event, ExecEnd, ImageInfo, State};
use bollard::errors::Error as Fault;
use bollard::models::{
    ContainerInspectResponse, ContainerState, ContainerStateStatusEnum as Status, ContainerSummary,
    ContainerSummaryStateEnum, EventMessage, ExecInspectResponse, ImageInspect,
};
use enoki_api::object::Uid;
use jiff::Timestamp;
use std::collections::HashMap;

pub const UID_LABEL: &str = "enoki.uid";
const EPOCH_LABEL: &str = "enoki.epoch";
const SPEC_LABEL: &str = "enoki.spec";
const PROJECT_LABEL: &str = "enoki.project";
const NAME_LABEL: &str = "enoki.name";

/// Docker's error by what a caller would do about it.
pub fn error(what: &str, fault: Fault) -> Error {
    match fault {
        Fault::DockerResponseServerError { status_code, message } => by_status(what, status_code, message),
        Fault::DockerStreamError { error } => Error::Refused(format!("{what}: {error}")),
        Fault::RequestTimeoutError => Error::Unavailable(format!("{what}: no answer in time")),
        Fault::SocketNotFoundError(path) => Error::Unavailable(format!("there is no socket {path}")),
        fault @ (Fault::URLEncodedError { .. }
        | Fault::URLParseError { .. }
        | Fault::InvalidURIError { .. }
        | Fault::InvalidURIPartsError { .. }
        | Fault::StrFmtError { .. }) => Error::Refused(format!("{what}: {fault}")),
        // Connections refused or broken, and answers that are cut short or not understood.
        other => Error::Unavailable(format!("{what}: {}", chain(&other))),
    }
}

/// The whole story: the outermost words alone ("client error (Connect)") do not tell why.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

fn by_status(what: &str, status: u16, message: String) -> Error {
    let message = message.trim().to_owned();
    let lower = message.to_lowercase();
    match status {
        // A daemon (or what stands in its place) that does not know the path says 404 too.
        404 if lower.contains("no such") || (lower.contains("not found") && lower != "page not found") => {
            Error::NotFound(message)
        }
        404 => Error::Unavailable(format!("{what}: a strange answer: 404 {message}")),
        409 => Error::Conflict(message),
        502..=504 => Error::Unavailable(format!("{what}: {message}")),
        500 if AWAY.iter().any(|words| lower.contains(words)) => {
            Error::Unavailable(format!("{what}: {message}"))
        }
        _ if message.is_empty() => Error::Refused(format!("{what}: answer {status} without a reason")),
        _ => Error::Refused(message),
    }
}

/// What a dockerd says whose containerd is away.
const AWAY: [&str; 6] = [
    "error while dialing",
    "transport is closing",
    "containerd.sock",
    "context deadline exceeded",
    "context canceled",
    "error reading from server: eof",
];

struct Labels {
    uid: Uid,
    epoch: u64,
    spec: String,
    project: String,
    instance: String,
    well_formed: bool,
}

/// None: not ours.
fn labels(id: &str, labels: &HashMap<String, String>) -> Option<Labels> {
    let given = labels.get(UID_LABEL)?;
    let text = |key: &str| labels.get(key).cloned().unwrap_or_default();
    let uid = Uid::parse(given);
    let epoch = labels.get(EPOCH_LABEL).and_then(|epoch| epoch.parse().ok());
    let names = !text(PROJECT_LABEL).is_empty() && !text(NAME_LABEL).is_empty();
    Some(Labels {
        well_formed: uid.is_some() && epoch.is_some() && names,
        // No order can ever name this identity, so nobody acts on such a container by mistake.
        uid: uid.unwrap_or_else(|| nobody().derive(id)),
        epoch: epoch.unwrap_or(0),
        spec: text(SPEC_LABEL),
        project: text(PROJECT_LABEL),
        instance: text(NAME_LABEL),
    })
}

/// The nil UUID: the name space of containers whose own label names none.
fn nobody() -> Uid {
    Uid::parse("00000000-0000-0000-0000-000000000000").unwrap_or_else(Uid::random)
}

/// None: not ours.
pub fn container(answer: ContainerInspectResponse) -> Option<Container> {
    let id = answer.id.unwrap_or_default();
    let given = answer.config.and_then(|config| config.labels).unwrap_or_default();
    let labels = labels(&id, &given)?;
    let state = if labels.well_formed {
        state(answer.state.unwrap_or_default(), answer.created.as_deref())
    } else {
        State::Broken
    };
    let name = answer.name.unwrap_or_default().trim_start_matches('/').to_owned();
    Some(assemble(id, name, labels, state))
}

fn assemble(id: String, name: String, labels: Labels, state: State) -> Container {
    let Labels { uid, epoch, spec, project, instance, .. } = labels;
    Container { id, name, uid, epoch, spec, project, instance, state }
}

/// Docker's zero time ("0001-01-01T00:00:00Z") stands for *never*.
fn time(text: Option<&str>) -> Option<Timestamp> {
    text?.parse::<Timestamp>().ok().filter(|time| *time > Timestamp::UNIX_EPOCH)
}

fn state(state: ContainerState, created: Option<&str>) -> State {
    let error = state.error.clone().unwrap_or_default();
    let exited = |state: &ContainerState| State::Exited {
        code: state.exit_code.unwrap_or_default(),
        oom_killed: state.oom_killed.unwrap_or_default(),
        finished_at: time(state.finished_at.as_deref())
            .or_else(|| time(state.started_at.as_deref()))
            .or_else(|| time(created))
            .unwrap_or(Timestamp::UNIX_EPOCH),
        error: state.error.clone().unwrap_or_default(),
    };
    if state.dead == Some(true) {
        return State::Broken;
    }
    match state.status {
        // A first start that was refused leaves the state at `created` with the reason beside it.
        Some(Status::CREATED) if error.is_empty() => State::Created,
        Some(Status::CREATED | Status::EXITED | Status::RESTARTING) => exited(&state),
        Some(Status::RUNNING | Status::PAUSED | Status::STOPPING) => {
            let pid = state.pid.and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid > 0);
            match pid {
                Some(pid) => State::Running {
                    pid,
                    started_at: time(state.started_at.as_deref()).unwrap_or(Timestamp::UNIX_EPOCH),
                },
                None => State::Broken,
            }
        }
        Some(Status::REMOVING | Status::DEAD | Status::EMPTY) | None => State::Broken,
    }
}

/// Whether the list itself says that the container is half removed.
pub fn is_wreck(summary: &ContainerSummary) -> bool {
    matches!(
        summary.state,
        None | Some(
            ContainerSummaryStateEnum::DEAD
                | ContainerSummaryStateEnum::REMOVING
                | ContainerSummaryStateEnum::EMPTY
        )
    )
}

/// What is known of a container that cannot be inspected.
pub fn wreck(summary: &ContainerSummary) -> Container {
    let id = summary.id.clone().unwrap_or_default();
    let given = summary.labels.clone().unwrap_or_default();
    let name = summary.names.iter().flatten().next().cloned().unwrap_or_default();
    let labels = labels(&id, &given).unwrap_or_else(|| Labels {
        uid: nobody().derive(&id),
        epoch: 0,
        spec: String::new(),
        project: String::new(),
        instance: String::new(),
        well_formed: false,
    });
    assemble(id, name.trim_start_matches('/').to_owned(), labels, State::Broken)
}

pub fn event(message: EventMessage) -> Option<Event> {
    let actor = message.actor?;
    let container = actor.id?;
    let given = actor.attributes?;
    let uid = labels(&container, &given)?.uid;
    Some(Event { uid, container, action: message.action? })
}

/// None: it still runs. Docker makes up 126 or 127 for a program that it could not start, which a shell gives for its
/// own reasons too; but only what was started has a process id.
pub fn exec_end(answer: &ExecInspectResponse) -> Option<ExecEnd> {
    let code = answer.exit_code.filter(|_| answer.running != Some(true))?;
    let started = answer.pid.is_some_and(|pid| pid > 0);
    Some(if !started && matches!(code, 126 | 127) { ExecEnd::NotStarted } else { ExecEnd::Exited(code) })
}

pub fn image_info(answer: ImageInspect) -> ImageInfo {
    let config = answer.config.unwrap_or_default();
    ImageInfo {
        id: answer.id.unwrap_or_default(),
        names: answer.repo_tags.unwrap_or_default(),
        entrypoint: config.entrypoint.unwrap_or_default(),
        command: config.cmd.unwrap_or_default(),
        volumes: config.volumes.unwrap_or_default(),
        user: config.user.filter(|user| !user.is_empty()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bollard::models::ContainerConfig;

    const UID: &str = "6f1c1a0e-6c1b-4f6e-9b1a-0f5f0c4d2a11";

    fn answer(status: Status, change: impl FnOnce(&mut ContainerState)) -> ContainerInspectResponse {
        let mut state = ContainerState {
            status: Some(status),
            started_at: Some("2026-01-02T03:04:05.678901234Z".into()),
            finished_at: Some("0001-01-01T00:00:00Z".into()),
            ..ContainerState::default()
        };
        change(&mut state);
        let labels = [(UID_LABEL, UID), (EPOCH_LABEL, "3"), (PROJECT_LABEL, "p"), (NAME_LABEL, "web1")];
        ContainerInspectResponse {
            id: Some("abc".into()),
            name: Some("/enoki.p.web1".into()),
            created: Some("2026-01-01T00:00:00Z".into()),
            state: Some(state),
            config: Some(ContainerConfig {
                labels: Some(labels.map(|(k, v)| (k.to_owned(), v.to_owned())).into()),
                ..ContainerConfig::default()
            }),
            ..ContainerInspectResponse::default()
        }
    }

    #[test]
    fn states() {
        let seen = container(answer(Status::RUNNING, |s| s.pid = Some(7))).unwrap();
        assert_eq!((seen.name.as_str(), seen.epoch), ("enoki.p.web1", 3));
        assert!(matches!(seen.state, State::Running { pid: 7, .. }));
        // Running without a process is not running.
        assert_eq!(container(answer(Status::RUNNING, |s| s.pid = Some(0))).unwrap().state, State::Broken);
        assert_eq!(container(answer(Status::CREATED, |_| ())).unwrap().state, State::Created);
        let refused = container(answer(Status::CREATED, |s| {
            s.started_at = Some("0001-01-01T00:00:00Z".into());
            s.error = Some("no record".into());
            s.exit_code = Some(128);
        }));
        let State::Exited { code: 128, error, finished_at, .. } = refused.unwrap().state else {
            panic!("a refused first start has a reason")
        };
        assert_eq!((error.as_str(), finished_at.to_string()), ("no record", "2026-01-01T00:00:00Z".into()));
        for status in [Status::DEAD, Status::REMOVING] {
            assert_eq!(container(answer(status, |_| ())).unwrap().state, State::Broken);
        }
        let dead = container(answer(Status::EXITED, |s| s.dead = Some(true)));
        assert_eq!(dead.unwrap().state, State::Broken);
    }

    #[test]
    fn damaged_labels_are_shown_as_broken() {
        for (key, value) in [(UID_LABEL, "../.."), (EPOCH_LABEL, "x"), (NAME_LABEL, "")] {
            let mut damaged = answer(Status::RUNNING, |s| s.pid = Some(7));
            let labels = damaged.config.as_mut().and_then(|c| c.labels.as_mut()).unwrap();
            labels.insert(key.into(), value.into());
            let seen = container(damaged).unwrap();
            assert_eq!(seen.state, State::Broken, "{key}");
            assert!(Uid::parse(seen.uid.as_str()).is_some(), "{key}");
        }
        let mut stranger = answer(Status::RUNNING, |s| s.pid = Some(7));
        stranger.config = None;
        assert_eq!(container(stranger), None);
    }

    #[test]
    fn a_program_that_never_ran_is_told_from_one_that_ended_like_it() {
        let end = |running, exit_code, pid| {
            exec_end(&ExecInspectResponse { running, exit_code, pid, ..ExecInspectResponse::default() })
        };
        assert_eq!(end(Some(false), Some(126), Some(0)), Some(ExecEnd::NotStarted));
        assert_eq!(end(Some(false), Some(127), None), Some(ExecEnd::NotStarted));
        assert_eq!(end(Some(false), Some(126), Some(7)), Some(ExecEnd::Exited(126)));
        assert_eq!(end(Some(false), Some(0), Some(7)), Some(ExecEnd::Exited(0)));
        assert_eq!(end(Some(true), None, Some(7)), None);
        assert_eq!(end(Some(false), None, Some(0)), None, "not started yet");
    }

    #[test]
    fn an_image_without_a_user_is_roots() {
        let user = |user: &str| {
            let config = bollard::models::ImageConfig { user: Some(user.into()), ..Default::default() };
            image_info(ImageInspect { config: Some(config), ..ImageInspect::default() }).user
        };
        assert_eq!(user(""), None);
        assert_eq!(user("app:staff").as_deref(), Some("app:staff"));
    }

    #[test]
    fn errors_by_what_to_do() {
        let fault = |status_code, message: &str| {
            error("x", Fault::DockerResponseServerError { status_code, message: message.into() })
        };
        assert!(matches!(fault(404, "No such container: a"), Error::NotFound(_)));
        assert!(matches!(fault(404, "page not found"), Error::Unavailable(_)));
        assert!(matches!(fault(404, ""), Error::Unavailable(_)));
        assert!(matches!(fault(409, "name in use"), Error::Conflict(_)));
        assert!(matches!(fault(400, "OCI runtime create failed"), Error::Refused(_)));
        assert!(matches!(fault(500, "OCI runtime create failed: enoki-runtime"), Error::Refused(_)));
        assert!(matches!(fault(500, "connection error: error while dialing unix"), Error::Unavailable(_)));
        assert!(matches!(fault(503, ""), Error::Unavailable(_)));
        let cut = serde_json::from_str::<Vec<u8>>("[1,").unwrap_err();
        assert!(matches!(error("x", Fault::JsonSerdeError { err: cut }), Error::Unavailable(_)));
    }
}
