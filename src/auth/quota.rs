//! PURE: may a project have more? What its specs ask for in sum, against its quota.
//!
//! Only growth is refused, each resource for itself: what is beyond a quota that was lowered stays, and may shrink in
//! steps. What a spec asks for counts whether it runs or not, until nothing of it is left.

use crate::state::Snapshot;
use enoki_api::error::{Code, Problem};
use enoki_api::instance::{InstanceSpec, RunState};
use enoki_api::object::Faults;
use enoki_api::project::{ProjectStatus, Quota, Resource};

/// What a write asks for.
#[derive(Clone, Copy)]
pub enum Asked<'a> {
    /// An instance, in place of `before` where it is a change of one.
    Instance {
        before: Option<&'a InstanceSpec>,
        wanted: &'a InstanceSpec,
    },
    Network,
    Volume,
    Cluster,
}

impl Asked<'_> {
    /// By how much the project grows.
    pub fn growth(&self) -> ProjectStatus {
        match self {
            Asked::Instance { before, wanted } => {
                let sum = |instance: &InstanceSpec| {
                    let mut sum = ProjectStatus::default();
                    sum.add(instance);
                    sum
                };
                sum(wanted).beyond(&before.map(sum).unwrap_or_default())
            }
            Asked::Network => ProjectStatus { networks: 1, ..Default::default() },
            Asked::Volume => ProjectStatus { volumes: 1, ..Default::default() },
            Asked::Cluster => ProjectStatus { clusters: 1, ..Default::default() },
        }
    }

    /// Whether it begins to run, or runs on, without a limit that it was not without before.
    fn unlimited(&self, resource: Resource) -> bool {
        let Asked::Instance { before, wanted } = self else { return false };
        let starts =
            |before: &InstanceSpec| before.state != RunState::Running && wanted.state == RunState::Running;
        resource.unlimited(wanted)
            && before.is_none_or(|before| !resource.unlimited(before) || starts(before))
    }

    /// What of it a quota could bound.
    fn grows(&self) -> impl Iterator<Item = Resource> {
        let growth = self.growth();
        Resource::ALL
            .into_iter()
            .filter(move |resource| growth.of(*resource) > 0 || self.unlimited(*resource))
    }

    /// Whether any quota could have something to say to it.
    pub fn is_growth(&self) -> bool {
        self.grows().next().is_some()
    }

    /// Whether this one has.
    pub fn concerns(&self, quota: &Quota) -> bool {
        self.grows().any(|resource| quota.of(resource).is_some())
    }
}

/// What the specs of a project ask for in sum, those that are being deleted included.
pub fn used(snapshot: &Snapshot, project: &str) -> ProjectStatus {
    let project = Some(project);
    let mut used = ProjectStatus {
        networks: snapshot.networks.of(project).count() as u64,
        volumes: snapshot.volumes.of(project).count() as u64,
        clusters: snapshot.clusters.of(project).count() as u64,
        ..Default::default()
    };
    snapshot.instances.of(project).for_each(|row| used.add(&row.object.spec));
    used
}

/// Refuses what would bring the project beyond its quota.
pub fn check(project: &str, quota: &Quota, used: &ProjectStatus, asked: Asked<'_>) -> Result<(), Problem> {
    let growth = asked.growth();
    let mut faults = Faults::default();
    for resource in Resource::ALL {
        let Some(allowed) = quota.of(resource) else { continue };
        let (name, more, used) = (resource.name(), growth.of(resource), used.of(resource));
        let beyond =
            |detail: String| Problem::new(Code::QuotaExceeded, detail).holder(format!("project {project}"));
        if asked.unlimited(resource) {
            let detail = format!(
                "an instance without a limit, where the project may have {name} {}",
                resource.print(allowed)
            );
            faults.push(beyond(detail).field(format!("spec.{name}")).hint(format!("set {name}")));
        } else if more > 0 && used.saturating_add(more) > allowed {
            let detail = format!(
                "{name}: {} more asked, {} of {} used",
                resource.print(more),
                resource.print(used),
                resource.print(allowed)
            );
            faults.push(beyond(detail).hint("make room in the project, or ask an admin for a larger quota"));
        }
    }
    faults.into_result()
}

#[cfg(test)]
mod tests {
    use super::*;
    use enoki_api::cluster::ClusterSpec;
    use enoki_api::network::NetworkSpec;
    use enoki_api::object::Object;
    use enoki_api::quantity::{Bytes, MilliCpu};
    use jiff::Timestamp;

    fn instance(cpus: Option<u64>, memory: Option<u64>) -> InstanceSpec {
        let mut spec = InstanceSpec::new("enoki/tiny:1");
        (spec.cpus, spec.memory) = (cpus.map(MilliCpu), memory.map(Bytes));
        spec
    }

    fn code(quota: &Quota, used: &ProjectStatus, asked: Asked<'_>) -> Option<String> {
        let refused = check("shop", quota, used, asked).err()?;
        assert_eq!((refused.code, refused.holder.as_deref()), (Code::QuotaExceeded, Some("project shop")));
        assert!(refused.hint.is_some(), "{refused}");
        assert!(asked.concerns(quota), "what is refused is also what is guarded: {refused}");
        Some(refused.detail)
    }

    #[test]
    fn what_is_deleting_counts_and_other_projects_do_not() {
        let mut snapshot = Snapshot::default();
        for (project, name, deleting) in
            [("shop", "a", false), ("shop", "b", true), ("other", "c", false), ("shopping", "d", false)]
        {
            let spec = instance(Some(500), Some(1 << 20));
            let mut object =
                Object::new(Some(project), name, Default::default(), spec, Timestamp::UNIX_EPOCH);
            object.deleted_at = deleting.then_some(Timestamp::UNIX_EPOCH);
            snapshot.seed_instance(object);
        }
        let unlimited = instance(None, None);
        snapshot.seed_instance(Object::new(
            Some("shop"),
            "e",
            Default::default(),
            unlimited,
            Timestamp::UNIX_EPOCH,
        ));
        let network: NetworkSpec =
            serde_json::from_value(serde_json::json!({"cidr": "198.18.100.0/24"})).unwrap();
        for project in ["shop", "other"] {
            let made = Object::new(
                Some(project),
                "blue",
                Default::default(),
                network.clone(),
                Timestamp::UNIX_EPOCH,
            );
            snapshot.seed_network(made);
            let lake: ClusterSpec = serde_json::from_value(serde_json::json!({"version": "4.0.1"})).unwrap();
            let made = Object::new(Some(project), "lake", Default::default(), lake, Timestamp::UNIX_EPOCH);
            snapshot.seed_cluster(made);
        }
        let wanted = ProjectStatus {
            instances: 3,
            networks: 1,
            clusters: 1,
            cpus: MilliCpu(1000),
            memory: Bytes(2 << 20),
            ..Default::default()
        };
        assert_eq!(used(&snapshot, "shop"), wanted);
        assert_eq!(used(&snapshot, "nobody's"), ProjectStatus::default());
    }

    #[test]
    fn growth_up_to_the_quota_and_no_further() {
        let quota = Quota { cpus: Some(MilliCpu(2000)), instances: Some(3), ..Default::default() };
        let used = ProjectStatus { cpus: MilliCpu(1500), instances: 2, ..Default::default() };
        let new = |cpus| instance(Some(cpus), None);
        for (wanted, refused) in [
            (new(500), None),
            (new(501), Some("cpus: 0.501 more asked, 1.5 of 2 used")),
            (new(u64::MAX), Some("cpus: 18446744073709551.615 more asked, 1.5 of 2 used")),
            (instance(None, None), Some("an instance without a limit, where the project may have cpus 2")),
        ] {
            let asked = Asked::Instance { before: None, wanted: &wanted };
            assert_eq!(code(&quota, &used, asked).as_deref(), refused, "{wanted:?}");
        }
        let full = ProjectStatus { instances: 3, ..used };
        let (small, large) = (new(10), new(501));
        let asked = Asked::Instance { before: None, wanted: &small };
        assert_eq!(code(&quota, &full, asked).as_deref(), Some("instances: 1 more asked, 3 of 3 used"));
        let asked = Asked::Instance { before: None, wanted: &large };
        let both = code(&quota, &full, asked).unwrap();
        assert_eq!(both, "cpus: 0.501 more asked, 1.5 of 2 used (and 1 more)");
        let none = Quota { networks: Some(0), volumes: Some(1), clusters: Some(0), ..Default::default() };
        assert!(code(&none, &used, Asked::Network).is_some());
        assert_eq!(code(&none, &used, Asked::Volume), None);
        let refused = code(&none, &used, Asked::Cluster);
        assert_eq!(refused.as_deref(), Some("clusters: 1 more asked, 0 of 0 used"));
        assert_eq!(code(&Quota::default(), &full, Asked::Network), None);
    }

    #[test]
    fn a_change_is_asked_only_for_what_it_adds() {
        // Lowered below what is used: 3 of 2.
        let quota = Quota { cpus: Some(MilliCpu(2000)), memory: Some(Bytes(1 << 30)), ..Default::default() };
        let used = ProjectStatus { cpus: MilliCpu(3000), memory: Bytes(1 << 29), ..Default::default() };
        let before = instance(Some(1000), Some(1 << 28));
        for (wanted, refused) in [
            (before.clone(), None),
            (instance(Some(900), Some(1 << 28)), None),
            (instance(Some(900), Some(3 << 28)), None),
            (instance(Some(1001), Some(1 << 28)), Some("cpus: 0.001 more asked, 3 of 2 used")),
            (
                instance(Some(900), Some((3 << 28) + 1)),
                Some("memory: 536870913 more asked, 512Mi of 1Gi used"),
            ),
            (
                instance(Some(1000), None),
                Some("an instance without a limit, where the project may have memory 1Gi"),
            ),
        ] {
            let asked = Asked::Instance { before: Some(&before), wanted: &wanted };
            assert_eq!(code(&quota, &used, asked).as_deref(), refused, "{wanted:?}");
        }
        // Without a limit from before the quota: it stays, but is not started anew.
        let free = instance(None, Some(1 << 28));
        let mut stopped = free.clone();
        stopped.state = RunState::Stopped;
        let change = |before, wanted| code(&quota, &used, Asked::Instance { before: Some(before), wanted });
        assert_eq!(change(&free, &free), None);
        assert_eq!(change(&free, &stopped), None);
        assert!(change(&stopped, &free).is_some());
        let mut limited = stopped.clone();
        (limited.cpus, limited.state) = (Some(MilliCpu(10)), RunState::Running);
        assert!(change(&stopped, &limited).is_some(), "a limit is asked for like any other growth");
        assert_eq!(
            change(&before, &{
                let mut off = before.clone();
                off.state = RunState::Stopped;
                off
            }),
            None
        );
    }

    #[test]
    fn only_what_a_quota_bounds_is_guarded() {
        let quota = Quota { memory: Some(Bytes(1 << 30)), ..Default::default() };
        let (before, wanted) = (instance(Some(1000), Some(1 << 28)), instance(Some(2000), Some(1 << 28)));
        let more_cpus = Asked::Instance { before: Some(&before), wanted: &wanted };
        assert!(!more_cpus.concerns(&quota));
        assert!(!Asked::Volume.concerns(&quota));
        assert!(!more_cpus.concerns(&Quota::default()));
        assert!(Asked::Instance { before: None, wanted: &wanted }.concerns(&quota));
    }
}
