//! Quotas on the command line: the flags that `project create` and `project quota` share, and the latter itself.

use super::context::Context;
use super::failure::Failure;
use super::limits::{Limit, set};
use super::output::{self, Format};
use super::table;
use enoki_api::client::WriteOptions;
use enoki_api::project::Resource;
use enoki_api::quantity::{Bytes, MilliCpu};
use enoki_api::{Kind, Project};
use serde_json::{Map, Value, json};

#[derive(clap::Args, Clone, Debug, Default)]
#[command(next_help_heading = "Quota, in sum (`none`: no bound)")]
pub struct QuotaFlags {
    /// CPU time
    #[arg(long = "quota-cpus", visible_alias = "cpus", value_name = "N")]
    cpus: Option<Limit<MilliCpu>>,
    /// Memory
    #[arg(long = "quota-memory", visible_alias = "memory", value_name = "BYTES")]
    memory: Option<Limit<Bytes>>,
    /// Processes and threads
    #[arg(long = "quota-pids", visible_alias = "pids", value_name = "N")]
    pids: Option<Limit<u64>>,
    /// Sizes of root disks
    #[arg(long = "quota-disk-size", visible_alias = "disk-size", value_name = "BYTES")]
    disk_size: Option<Limit<Bytes>>,
    /// Instances
    #[arg(long = "quota-instances", visible_alias = "instances", value_name = "N")]
    instances: Option<Limit<u64>>,
    /// Networks, with the default one
    #[arg(long = "quota-networks", visible_alias = "networks", value_name = "N")]
    networks: Option<Limit<u64>>,
    /// Volumes
    #[arg(long = "quota-volumes", visible_alias = "volumes", value_name = "N")]
    volumes: Option<Limit<u64>>,
    /// Clusters
    #[arg(long = "quota-clusters", visible_alias = "clusters", value_name = "N")]
    clusters: Option<Limit<u64>>,
}

impl QuotaFlags {
    /// What was given, as a merge-patch of a quota.
    pub fn patch(&self) -> Map<String, Value> {
        let mut patch = Map::new();
        set(&mut patch, "cpus", &self.cpus);
        set(&mut patch, "memory", &self.memory);
        set(&mut patch, "pids", &self.pids);
        set(&mut patch, "disk_size", &self.disk_size);
        set(&mut patch, "instances", &self.instances);
        set(&mut patch, "networks", &self.networks);
        set(&mut patch, "volumes", &self.volumes);
        set(&mut patch, "clusters", &self.clusters);
        patch
    }
}

/// `enoki project quota`: changes what is given, or shows what is used of what is allowed.
pub async fn quota(ctx: &Context, name: &str, flags: &QuotaFlags, dry_run: bool) -> Result<(), Failure> {
    let patch = flags.patch();
    if !patch.is_empty() {
        let options = WriteOptions { dry_run, ..Default::default() };
        let target = ctx.object(Kind::Project, name);
        let body = json!({"spec": {"quota": patch}});
        let answer = ctx.client.patch(target, &body, &options, super::context::CALL).await?;
        if dry_run {
            return super::plan::show(ctx, Kind::Project, name, "changed", &answer.body);
        }
        return ctx.done(Kind::Project, name, "quota changed", &answer.body);
    }
    let object = ctx.read(Kind::Project, name).await?;
    match ctx.format {
        Format::Json | Format::Yaml | Format::Name => ctx.show(Kind::Project, &object),
        Format::Table | Format::Wide => {
            let project: Project = table::decode(&object)?;
            let row = |resource: Resource| {
                let allowed = project.spec.quota.of(resource).map(|most| resource.print(most));
                let used = resource.print(project.status.of(resource));
                vec![resource.name().to_owned(), used, allowed.unwrap_or_else(|| "no bound".to_owned())]
            };
            output::table(&["RESOURCE", "USED", "ALLOWED"], Resource::ALL.into_iter().map(row).collect())
        }
    }
}

/// `3/5`, or `3` where there is no bound.
pub fn share(project: &Project, resource: Resource) -> String {
    let used = resource.print(project.status.of(resource));
    match project.spec.quota.of(resource) {
        None => used,
        Some(most) => format!("{used}/{}", resource.print(most)),
    }
}
