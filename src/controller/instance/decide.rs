//! PURE: what to do about one instance, and how it is shown.

use crate::scheduler::Reason;
use enoki_api::host::HostPhase;
use enoki_api::instance::{Assignment, Instance, InstanceStatus, LimitsState, Phase, Resources};
use enoki_api::protocol::Report;

/// What is known of one instance.
pub struct Seen<'a> {
    pub instance: &'a Instance,
    pub assignment: Option<&'a Assignment>,
    /// As stored: what stands when nothing newer is known.
    pub status: &'a InstanceStatus,
    pub report: Option<&'a Report>,
    /// Of its host. None: no such host.
    pub host: Option<HostPhase>,
    /// Whether its host has confirmed that it is gone.
    pub buried: bool,
    /// Where it asks for something else than it was granted: the scheduler's answer.
    pub offer: Option<Result<Resources, Vec<Reason>>>,
}

pub struct Decision {
    pub want: Want,
    pub status: InstanceStatus,
}

#[derive(Debug, PartialEq)]
pub enum Want {
    Nothing,
    /// A host, and addresses on its networks.
    Place,
    /// Another grant where it is.
    Grant(Box<Assignment>),
    /// Its keys to go, its addresses to be held.
    Finish,
}

pub fn decide(seen: &Seen<'_>) -> Decision {
    let mut status = seen.status.clone();
    let deleting = seen.instance.deleted_at.is_some();
    let Some(assignment) = seen.assignment else {
        if deleting {
            status.phase = Phase::Deleting;
            return Decision { want: Want::Finish, status };
        }
        status = InstanceStatus {
            phase: Phase::Pending,
            reason: status.reason,
            message: status.message,
            ..InstanceStatus::default()
        };
        return Decision { want: Want::Place, status };
    };
    show(&mut status, seen, assignment);
    if deleting {
        status.phase = Phase::Deleting;
        let want = if seen.buried { Want::Finish } else { Want::Nothing };
        return Decision { want, status };
    }
    let want = match &seen.offer {
        None => Want::Nothing,
        Some(Ok(granted)) => Want::Grant(Box::new(Assignment {
            granted: granted.clone(),
            generation: seen.instance.generation,
            ..assignment.clone()
        })),
        Some(Err(reasons)) => {
            status.limits.state = LimitsState::Infeasible;
            status.limits.reason = Some(sentence(reasons));
            if assignment.generation < seen.instance.generation {
                // The old grant holds; the new generation was seen and answered.
                Want::Grant(Box::new(Assignment {
                    generation: seen.instance.generation,
                    ..assignment.clone()
                }))
            } else {
                Want::Nothing
            }
        }
    };
    Decision { want, status }
}

/// The status of an instance that no host was found for.
pub fn refused(status: &mut InstanceStatus, reason: &str, message: String) {
    status.phase = Phase::Pending;
    status.reason = Some(reason.to_owned());
    status.message = Some(message);
}

fn show(status: &mut InstanceStatus, seen: &Seen<'_>, assignment: &Assignment) {
    if status.epoch != assignment.epoch {
        *status = InstanceStatus { phase: Phase::Starting, ..InstanceStatus::default() };
    }
    status.host = Some(assignment.host.clone());
    status.epoch = assignment.epoch;
    status.nics = assignment.nics.clone();
    if let Some(report) = seen.report.filter(|report| report.epoch == assignment.epoch) {
        take(status, report);
        status.observed_generation = observed_generation(seen, assignment, report);
    }
    let silent = match seen.host {
        Some(HostPhase::Ready | HostPhase::Degraded) => None,
        Some(HostPhase::Unknown) => Some("host_unknown"),
        Some(HostPhase::Lost) => Some("host_lost"),
        None => Some("host_missing"),
    };
    if let Some(reason) = silent {
        status.phase = Phase::Unknown;
        status.reason = Some(reason.to_owned());
        status.message = Some(format!("host {} does not answer; what it runs goes on", assignment.host));
    } else if status.phase == Phase::Unknown && seen.report.is_none() {
        // The host is back and will report; until then, starting is what can be said.
        status.phase = Phase::Starting;
        (status.reason, status.message) = (None, None);
    }
}

fn take(status: &mut InstanceStatus, report: &Report) {
    status.phase = report.phase;
    status.reason = report.reason.clone();
    status.message = report.message.clone();
    status.container_id = report.container_id.clone();
    status.pid = report.pid;
    status.started_at = report.started_at;
    status.exit_code = report.exit_code;
    status.oom_killed = report.oom_killed;
    status.restarts = report.restarts;
    status.user_data_exit_code = report.user_data_exit_code;
    status.limits = report.limits.clone();
    status.restart_required = report.restart_required.clone();
    status.squeezed_since = report.squeezed_since;
}

/// The generation that was acted on. While a new grant is on its way, the one that the host has acted on does not
/// count for more than the grant it knows.
fn observed_generation(seen: &Seen<'_>, assignment: &Assignment, report: &Report) -> u64 {
    let mut observed = report.generation;
    if report.assignment_generation < assignment.generation {
        observed = observed.min(report.assignment_generation);
    }
    if seen.offer.is_some() && assignment.generation < seen.instance.generation {
        observed = observed.min(assignment.generation);
    }
    observed
}

fn sentence(reasons: &[Reason]) -> String {
    reasons.iter().map(|reason| reason.message.as_str()).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use enoki_api::instance::InstanceSpec;
    use enoki_api::object::Object;
    use jiff::Timestamp;

    fn instance() -> Instance {
        Object::new(
            Some("default"),
            "web1",
            Default::default(),
            InstanceSpec::new("a"),
            Timestamp::UNIX_EPOCH,
        )
    }

    fn assignment(instance: &Instance, generation: u64) -> Assignment {
        let granted = instance.spec.resources();
        Assignment {
            uid: instance.uid.clone(),
            host: "h1".into(),
            epoch: 1,
            generation,
            granted,
            nics: Default::default(),
        }
    }

    fn report(instance: &Instance, generation: u64, assignment_generation: u64) -> Report {
        Report {
            uid: instance.uid.clone(),
            epoch: 1,
            generation,
            assignment_generation,
            phase: Phase::Running,
            reason: None,
            message: None,
            container_id: None,
            pid: Some(7),
            started_at: None,
            exit_code: None,
            oom_killed: false,
            restarts: 0,
            user_data_exit_code: None,
            limits: Default::default(),
            restart_required: Vec::new(),
            squeezed_since: None,
        }
    }

    fn seen<'a>(
        instance: &'a Instance,
        assignment: Option<&'a Assignment>,
        status: &'a InstanceStatus,
    ) -> Seen<'a> {
        Seen {
            instance,
            assignment,
            status,
            report: None,
            host: Some(HostPhase::Ready),
            buried: false,
            offer: None,
        }
    }

    #[test]
    fn what_has_no_host_is_placed_and_what_is_deleted_goes() {
        let (mut instance, status) = (instance(), InstanceStatus::default());
        assert_eq!(decide(&seen(&instance, None, &status)).want, Want::Place);
        instance.deleted_at = Some(Timestamp::UNIX_EPOCH);
        assert_eq!(decide(&seen(&instance, None, &status)).want, Want::Finish);

        let bound = assignment(&instance, 1);
        let waiting = decide(&seen(&instance, Some(&bound), &status));
        assert_eq!(
            (waiting.want, waiting.status.phase),
            (Want::Nothing, Phase::Deleting),
            "its host has not confirmed"
        );
        let gone = decide(&Seen { buried: true, ..seen(&instance, Some(&bound), &status) });
        assert_eq!(gone.want, Want::Finish);
    }

    #[test]
    fn a_resize_is_observed_only_with_its_grant() {
        let (mut instance, status) = (instance(), InstanceStatus::default());
        let old = assignment(&instance, 1);
        instance.generation = 2;
        instance.spec.pids = Some(5);
        let offer = || Some(Ok(instance.spec.resources()));
        let early = report(&instance, 2, 1);
        let first =
            decide(&Seen { report: Some(&early), offer: offer(), ..seen(&instance, Some(&old), &status) });
        let Want::Grant(new) = first.want else { panic!("a grant") };
        assert_eq!((new.generation, new.granted.pids, first.status.observed_generation), (2, Some(5), 1));
        let between = decide(&Seen { report: Some(&early), ..seen(&instance, Some(&new), &status) });
        assert_eq!((between.want, between.status.observed_generation), (Want::Nothing, 1));
        let done = report(&instance, 2, 2);
        let after = decide(&Seen { report: Some(&done), ..seen(&instance, Some(&new), &status) });
        assert_eq!(after.status.observed_generation, 2);
    }

    #[test]
    fn what_does_not_fit_is_told_and_the_old_grant_stays() {
        let (mut instance, status) = (instance(), InstanceStatus::default());
        let old = assignment(&instance, 1);
        instance.generation = 2;
        instance.spec.pids = Some(5);
        let no = || Some(Err(vec![Reason::new("no_capacity", "too much")]));
        let told = decide(&Seen { offer: no(), ..seen(&instance, Some(&old), &status) });
        assert_eq!(told.status.limits.state, LimitsState::Infeasible);
        let Want::Grant(bumped) = told.want else { panic!("the generation is answered") };
        assert_eq!((bumped.generation, &bumped.granted), (2, &old.granted));
        let again = decide(&Seen { offer: no(), ..seen(&instance, Some(&bumped), &status) });
        assert_eq!((again.want, again.status.limits.reason.as_deref()), (Want::Nothing, Some("too much")));
    }

    #[test]
    fn a_silent_host_makes_it_unknown_and_nothing_else() {
        let (instance, status) = (instance(), InstanceStatus::default());
        let bound = assignment(&instance, 1);
        let report = report(&instance, 1, 1);
        for host in [Some(HostPhase::Unknown), Some(HostPhase::Lost), None] {
            let decision =
                decide(&Seen { host, report: Some(&report), ..seen(&instance, Some(&bound), &status) });
            assert_eq!(
                (decision.want, decision.status.phase, decision.status.pid),
                (Want::Nothing, Phase::Unknown, Some(7))
            );
        }
    }
}
