//! etcd's own word on its members.

use async_trait::async_trait;
use etcd_client::{Member as Said, MemberAddOptions};

use super::{Etcd, protocol};
use crate::store::Error;
use crate::store::members::{Cluster, Member};

#[async_trait]
impl Cluster for Etcd {
    async fn members(&self) -> Result<Vec<Member>, Error> {
        let mut cluster = self.ways.client().cluster_client();
        let list = self.read("members", cluster.member_list()).await?;
        Ok(list.members().iter().map(member).collect())
    }

    async fn own(&self) -> Result<u64, Error> {
        let mut maintenance = self.ways.first().maintenance_client();
        let status = self.read("status", maintenance.status()).await?;
        status.header().map(|header| header.member_id()).ok_or_else(|| protocol("an answer without a header"))
    }

    async fn add_learner(&self, peer: &str) -> Result<(), Error> {
        let mut cluster = self.ways.client().cluster_client();
        let options = MemberAddOptions::new().with_is_learner();
        self.write("a new member", cluster.member_add([peer.to_owned()], Some(options))).await.map(drop)
    }

    async fn promote(&self, id: u64) -> Result<(), Error> {
        let mut cluster = self.ways.client().cluster_client();
        self.write("promotion of a member", cluster.member_promote(id)).await.map(drop)
    }

    async fn remove(&self, id: u64) -> Result<(), Error> {
        let mut cluster = self.ways.client().cluster_client();
        self.write("removal of a member", cluster.member_remove(id)).await.map(drop)
    }

    async fn readdress(&self, id: u64, peer: &str) -> Result<(), Error> {
        let mut cluster = self.ways.client().cluster_client();
        self.write("a member's address", cluster.member_update(id, [peer.to_owned()])).await.map(drop)
    }
}

fn member(said: &Said) -> Member {
    Member {
        id: said.id(),
        name: said.name().to_owned(),
        peers: said.peer_urls().to_vec(),
        clients: said.client_urls().to_vec(),
        learner: said.is_learner(),
    }
}
