//! The members of etcd: how one is added for a new server, and when it gets a vote.
//!
//! An even number of voters is worse than one less: two stop as soon as either is away. So a new member learns first, has a
//! copy of everything and no vote, and votes once that makes the number odd:
//!
//! ```text
//!   servers   1        2               3             4                 5
//!   voters    1        1               3             3                 5
//!   learners  -        the second      -             the fourth        -
//! ```
//!
//! etcd takes one learner at a time; the one that is there is promoted before the next comes, and for that moment the number
//! is even.

use std::time::Duration;

use async_trait::async_trait;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::Error;

/// More copies make writes slower and nothing safer; servers beyond this number use the members of the others.
pub const MAX_VOTERS: usize = 5;

/// Between two looks at the members.
const LOOK: Duration = Duration::from_secs(2);
/// etcd wants to have seen all of its members for five seconds before it takes another.
const SETTLE: Duration = Duration::from_secs(15);
const AGAIN: Duration = Duration::from_millis(500);

/// One member as etcd knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Member {
    pub id: u64,
    /// The name of its server; empty until it has started once.
    pub name: String,
    /// Where the other members reach it.
    pub peers: Vec<String>,
    /// Where clients reach it; empty until it has started once.
    pub clients: Vec<String>,
    /// It has a copy and no vote.
    pub learner: bool,
}

impl Member {
    fn never_started(&self) -> bool {
        self.name.is_empty()
    }
}

/// What a store that is made of members can do about them. Members are named by etcd's number for them.
#[async_trait]
pub trait Cluster: Send + Sync {
    async fn members(&self) -> Result<Vec<Member>, Error>;
    /// The member on this machine.
    async fn own(&self) -> Result<u64, Error>;
    async fn add_learner(&self, peer: &str) -> Result<(), Error>;
    /// [`Error::Invalid`] while it has not caught up.
    async fn promote(&self, id: u64) -> Result<(), Error>;
    async fn remove(&self, id: u64) -> Result<(), Error>;
    /// Has the others reach a member at `peer` alone.
    async fn readdress(&self, id: u64, peer: &str) -> Result<(), Error>;
}

/// Why no member is added for a server that joins.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error("etcd has a member {name} at {peer} already")]
    Taken { name: String, peer: String },
    #[error("another machine, {peer}, is joining and its etcd has not started yet")]
    Joining { id: u64, peer: String },
    #[error(transparent)]
    Store(#[from] Error),
}

/// What a machine needs to start its member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admission {
    /// For etcd's `--initial-cluster`: `NAME=URL,...` with the new one.
    pub initial_cluster: String,
    /// Where clients reach the members that are there.
    pub clients: Vec<String>,
}

/// PURE: the next step towards a member `name` at `peer`.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Refuse {
        taken: bool,
        id: u64,
        name: String,
        peer: String,
    },
    /// It was added before, and its machine never got to start it.
    Forget(u64),
    Promote(u64),
    Add,
    /// There are enough.
    Without,
}

fn next(members: &[Member], name: &str, peer: &str) -> Step {
    let refuse = |taken: bool, member: &Member| Step::Refuse {
        taken,
        id: member.id,
        name: member.name.clone(),
        peer: member.peers.first().cloned().unwrap_or_default(),
    };
    let same = |member: &&Member| member.peers.iter().any(|at| at == peer);
    if let Some(member) = members.iter().find(|member| member.name == name) {
        return refuse(true, member);
    }
    if let Some(member) = members.iter().find(same) {
        return if member.never_started() { Step::Forget(member.id) } else { refuse(true, member) };
    }
    if let Some(member) = members.iter().find(|member| member.never_started()) {
        return refuse(false, member);
    }
    match members.iter().find(|member| member.learner) {
        _ if members.iter().filter(|member| !member.learner).count() >= MAX_VOTERS => Step::Without,
        Some(learner) => Step::Promote(learner.id),
        None => Step::Add,
    }
}

/// PURE: the learner that is to vote, as that makes the number of voters odd.
pub fn due(members: &[Member]) -> Option<u64> {
    let voters = members.iter().filter(|member| !member.learner).count();
    let learner = members.iter().find(|member| member.learner && !member.never_started())?;
    (voters % 2 == 0).then_some(learner.id)
}

/// Adds a member for the server `name` that will listen for the others at `peer`. None: there are enough.
pub async fn admit(cluster: &dyn Cluster, name: &str, peer: &str) -> Result<Option<Admission>, Refused> {
    let end = Instant::now() + SETTLE;
    loop {
        let members = cluster.members().await?;
        let done = match next(&members, name, peer) {
            Step::Refuse { taken: true, name, peer, .. } => return Err(Refused::Taken { name, peer }),
            Step::Refuse { id, peer, .. } => return Err(Refused::Joining { id, peer }),
            Step::Without => return Ok(None),
            Step::Forget(id) => cluster.remove(id).await,
            Step::Promote(id) => cluster.promote(id).await,
            Step::Add => match cluster.add_learner(peer).await {
                Ok(()) => return Ok(Some(admission(&members, name, peer))),
                Err(error) => Err(error),
            },
        };
        if let Err(error) = done {
            if Instant::now() >= end {
                return Err(error.into());
            }
            tracing::info!(%error, "a member is not added yet");
            sleep(AGAIN).await;
        }
    }
}

fn admission(members: &[Member], name: &str, peer: &str) -> Admission {
    let mut all: Vec<String> = members
        .iter()
        .flat_map(|member| member.peers.iter().map(|at| format!("{}={at}", member.name)))
        .collect();
    all.push(format!("{name}={peer}"));
    let clients = members.iter().flat_map(|member| member.clients.iter());
    let reached = |at: &&String| !at.contains("//127.0.0.1:");
    Admission { initial_cluster: all.join(","), clients: clients.filter(reached).cloned().collect() }
}

/// Takes the member of the server `name` out. False: it has none.
pub async fn dismiss(cluster: &dyn Cluster, name: &str) -> Result<bool, Error> {
    let members = cluster.members().await?;
    match members.iter().find(|member| member.name == name) {
        Some(member) => cluster.remove(member.id).await.map(|()| true),
        None => Ok(false),
    }
}

/// Has the others know where this machine's member listens, and, while this server leads, gives learners their vote.
pub async fn tend(cluster: &dyn Cluster, peer: &str, leads: impl Fn() -> bool, stop: &CancellationToken) {
    let mut known = false;
    while !stop.is_cancelled() {
        if let Err(error) = look(cluster, peer, &mut known, leads()).await {
            tracing::debug!(%error, "etcd's members are not looked after");
        }
        // Cancel-safe: a timer and a token.
        tokio::select! {
            () = sleep(LOOK) => {}
            () = stop.cancelled() => {}
        }
    }
}

async fn look(cluster: &dyn Cluster, peer: &str, known: &mut bool, leads: bool) -> Result<(), Error> {
    if *known && !leads {
        return Ok(());
    }
    let members = cluster.members().await?;
    if !*known {
        let own = cluster.own().await?;
        if members.iter().any(|member| member.id == own && member.peers != [peer]) {
            cluster.readdress(own, peer).await?;
            tracing::info!(peer, "this machine's member of etcd is reached by others now");
        }
        *known = true;
    }
    if leads && let Some(id) = due(&members) {
        cluster.promote(id).await?;
        let name = members.iter().find(|member| member.id == id).map(|member| member.name.as_str());
        tracing::info!(member = name, "a member of etcd has a vote now");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str, learner: bool) -> Member {
        let at = |port: u16| vec![format!("https://198.18.0.{name}:{port}")];
        Member { id: name.parse().unwrap(), name: name.into(), peers: at(2380), clients: at(2379), learner }
    }

    fn unstarted(name: &str) -> Member {
        Member { name: String::new(), clients: Vec::new(), ..member(name, true) }
    }

    #[test]
    fn voters_are_odd_in_number() {
        let (one, two, three) = (member("1", false), member("2", true), member("3", true));
        assert_eq!(due(std::slice::from_ref(&one)), None);
        assert_eq!(due(&[one.clone(), two.clone()]), None, "one vote and a copy");
        assert_eq!(due(&[one.clone(), member("2", false), three]), Some(3));
        assert_eq!(due(&[one.clone(), member("2", false), unstarted("3")]), None, "it has nothing yet");
        assert_eq!(due(&[one, member("2", false), member("3", false), member("4", true)]), None);
    }

    #[test]
    fn a_new_member_comes_after_the_last_one_has_its_vote() {
        let next = |members: &[Member]| next(members, "9", "https://198.18.0.9:2380");
        let (one, two) = (member("1", false), member("2", true));
        assert_eq!(next(std::slice::from_ref(&one)), Step::Add);
        assert_eq!(next(&[one.clone(), two]), Step::Promote(2));
        assert_eq!(next(&[one.clone(), member("2", false)]), Step::Add);
        // Its own first attempt is forgotten; that of another is waited for.
        assert_eq!(next(&[one.clone(), unstarted("9")]), Step::Forget(9));
        let joining = next(&[one.clone(), unstarted("3")]);
        assert!(matches!(joining, Step::Refuse { taken: false, id: 3, .. }), "{joining:?}");
        let taken = next(&[one, member("9", true)]);
        assert!(matches!(taken, Step::Refuse { taken: true, id: 9, .. }), "{taken:?}");
        let many: Vec<Member> = ["1", "2", "3", "4", "5"].map(|name| member(name, false)).into();
        assert_eq!(next(&many), Step::Without);
    }

    #[test]
    fn the_new_one_is_told_of_all_and_of_no_loopback() {
        let mut one = member("1", false);
        one.clients.insert(0, "https://127.0.0.1:2379".into());
        let told = admission(&[one], "2", "https://198.18.0.2:2380");
        assert_eq!(told.initial_cluster, "1=https://198.18.0.1:2380,2=https://198.18.0.2:2380");
        assert_eq!(told.clients, ["https://198.18.0.1:2379"]);
    }
}
