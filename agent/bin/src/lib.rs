//! What stands at the container's boundary, shared by the two static programs beside every container and by the agent.
//!
//! * `enoki-runtime` is registered in dockerd as the runtime `enoki`. On `create` it puts the instance's own network namespace,
//!   disk and limits under the container, as the agent's [`record`] says, and hands over to runc. It refuses when anything is missing.
//! * `enoki-init` is PID 1 inside: it reaps, forwards signals, runs user data once and owns the output as bounded [log files](logline).
//!
//! Nothing here depends on a running agent, dockerd or network: what a start needs is on this host's disk.

pub mod args;
pub mod claim;
pub mod clock;
pub mod edit;
pub mod folders;
pub mod logline;
pub mod lower;
pub mod netns;
pub mod oom;
pub mod overlay;
pub mod record;
pub mod refusal;
pub mod runc;

pub use record::{IoLimit, Record, Resources, Rootfs};
pub use refusal::Refusal;

/// The agent's records, one file a container: root's alone.
pub const RECORDS: &str = "/var/lib/enoki/containers";
/// Pins (bind mounts) of the instances' network namespaces.
pub const NETNS: &str = "/run/enoki/netns";
/// The namespace that holds this host's bridges: no container may ever join it.
pub const FABRIC: &str = "/run/enoki/netns/fabric";
/// Where the wrapper is installed; what `runtimes.enoki.path` in daemon.json names.
pub const RUNTIME: &str = "/usr/local/lib/enoki/runtime";
/// Where the init is installed on the host; bound read-only to [`INIT_INSIDE`].
pub const INIT: &str = "/usr/local/lib/enoki/init";
/// The container's entrypoint.
pub const INIT_INSIDE: &str = "/dev/.enoki/init";
/// The instance's `machine/` folder as seen from inside.
pub const STATE_INSIDE: &str = "/dev/.enoki/state";
/// The init's log files as seen from inside.
pub const LOG_INSIDE: &str = "/dev/.enoki/state/log";
/// The user-data script as seen from inside.
pub const USER_DATA_INSIDE: &str = "/dev/.enoki/state/user-data";
/// Its exit code, in decimal, once it has finished.
pub const USER_DATA_RESULT_INSIDE: &str = "/dev/.enoki/state/user_data_exit_code";
/// The name under which dockerd knows the wrapper.
pub const RUNTIME_NAME: &str = "enoki";
