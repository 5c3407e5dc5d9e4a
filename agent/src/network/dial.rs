//! Connections made from within an instance's own namespace: what it listens on need not be reachable from anywhere else.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpStream;

use super::{Error, namespace};

/// The instance is on this machine: who has not answered by then, will not.
const DEADLINE: Duration = Duration::from_secs(5);

/// Connects to the first of `at` that listens, within the instance `uid`.
pub async fn dial(uid: &str, at: Vec<SocketAddr>) -> Result<TcpStream, Error> {
    super::check_uid("instance", uid)?;
    let ports = at.first().map_or(0, SocketAddr::port);
    let what = format!("connecting to port {ports}");
    let (name, doing) = (uid.to_owned(), what.clone());
    let connection = namespace::run(what.clone(), DEADLINE, move |thread| async move {
        let here = namespace::open(&name)?
            .ok_or_else(|| Error::Invalid("the instance has no network on this host".into()))?;
        namespace::enter(&thread, &here)?;
        // A socket stays in the namespace that it was made in, whoever uses it later.
        let connection = TcpStream::connect(&at[..]).await.and_then(TcpStream::into_std);
        connection.map_err(Error::system(doing))
    })
    .await?;
    let own = connection.set_nodelay(true).and_then(|()| TcpStream::from_std(connection));
    own.map_err(Error::system(what))
}
