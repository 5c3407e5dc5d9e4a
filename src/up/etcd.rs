//! The one-machine etcd: its flags, whether it is well, who holds its ports when it cannot start, and a root shell's way in.
//!
//! It listens on loopback, and where its configuration says so for other servers, and talks to nobody without a certificate
//! of its own CA, because everything that the cloud knows is in it. Who answers on its port without such a certificate is a stranger and is never used.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};

use super::process;
use crate::auth::ca::{self, Pki, Renewed};
use crate::config::{EtcdConfig, ServerConfig, paths, write_atomic};
use crate::store::child;

/// The command line. Data folder and certificates are at their fixed places; the CA may be named by the configuration.
pub fn args(server: &ServerConfig) -> Vec<OsString> {
    let config = &server.etcd;
    let pki = Pki::new(paths::PKI);
    let tls = child::TlsFiles { ca: config.ca.clone(), cert: pki.cert("etcd"), key: pki.key("etcd") };
    let elsewhere = config.listen.map(|address| child::Elsewhere {
        client: SocketAddr::new(address, paths::ETCD_PORT).to_string(),
        peer: SocketAddr::new(address, paths::ETCD_PEER_PORT).to_string(),
    });
    let options = child::Options {
        name: server.etcd_name(),
        elsewhere,
        initial_cluster: config.initial_cluster.clone(),
        ..child::Options::local(paths::ETCD_DATA, tls)
    };
    child::args(&options).into_iter().map(OsString::from).collect()
}

/// Makes and renews the certificates of this machine's server and etcd.
pub fn ensure_certificates(config: &EtcdConfig) -> Result<Renewed, ca::Error> {
    let names: Vec<String> = config.listen.iter().map(ToString::to_string).collect();
    Pki::new(paths::PKI).ensure(SystemTime::now(), &names)
}

/// `/etc/enoki/etcdctl.env`: after `set -a; . /etc/enoki/etcdctl.env`, plain etcdctl works.
pub fn write_etcdctl_env(config: &EtcdConfig) -> std::io::Result<()> {
    let pki = Pki::new(paths::PKI);
    let text = format!(
        "ETCDCTL_API=3\nETCDCTL_ENDPOINTS={}\nETCDCTL_CACERT={}\nETCDCTL_CERT={}\nETCDCTL_KEY={}\n",
        config.endpoints.join(","),
        config.ca.display(),
        pki.cert("etcdctl").display(),
        pki.key("etcdctl").display(),
    );
    let path = Path::new(paths::ETCDCTL_ENV);
    if std::fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    write_atomic(path, text.as_bytes(), 0o600)
}

/// The data folder, private to root as etcd asks for.
pub fn make_data_folder() -> std::io::Result<()> {
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
    let folder = Path::new(paths::ETCD_DATA);
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700))
}

/// Whether an etcd that our CA vouches for answers as healthy on the one-machine port.
pub async fn healthy(config: &EtcdConfig) -> bool {
    let config = config.clone();
    let asked = tokio::task::spawn_blocking(move || ask_health(&config));
    matches!(asked.await, Ok(Ok(true)))
}

/// `GET /health` over TLS with a client certificate, two seconds at most for each step.
fn ask_health(config: &EtcdConfig) -> Result<bool, Box<dyn std::error::Error + Send + Sync>> {
    const STEP: Duration = Duration::from_secs(2);
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(&config.ca)?)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_client_auth_cert(
            vec![CertificateDer::from_pem_file(&config.cert)?],
            PrivateKeyDer::from_pem_file(&config.key)?,
        )?;
    let address: std::net::SocketAddr = paths::ETCD_CLIENT.parse()?;
    let socket = TcpStream::connect_timeout(&address, STEP)?;
    socket.set_read_timeout(Some(STEP))?;
    socket.set_write_timeout(Some(STEP))?;
    let connection = rustls::ClientConnection::new(Arc::new(tls), ServerName::try_from("127.0.0.1")?)?;
    let mut stream = rustls::StreamOwned::new(connection, socket);
    stream.write_all(b"GET /health HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
    let mut answer = Vec::new();
    // The peer may close without a TLS farewell: what has come by then is the answer.
    let _ = Read::by_ref(&mut stream).take(64 << 10).read_to_end(&mut answer);
    let answer = String::from_utf8_lossy(&answer);
    Ok(answer.starts_with("HTTP/1.") && answer.contains(" 200 ") && answer.contains(r#""health":"true""#))
}

/// Somebody who listens where our etcd must.
#[derive(Debug, Clone, PartialEq)]
pub struct Holder {
    pub address: String,
    /// "NAME (pid N)", or a statement that it cannot be told.
    pub who: String,
}

/// Who listens on etcd's two ports in this network namespace. Empty: both are free.
pub fn port_holders() -> Vec<Holder> {
    let mut holders = Vec::new();
    for address in [paths::ETCD_CLIENT, paths::ETCD_PEER] {
        let Ok(wanted) = address.parse::<SocketAddrV4>() else {
            continue;
        };
        let mut inodes = Vec::new();
        for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
            inodes.extend(listeners(&std::fs::read_to_string(table).unwrap_or_default(), wanted));
        }
        if let Some(inode) = inodes.first() {
            holders.push(Holder { address: address.to_owned(), who: socket_owner(*inode) });
        }
    }
    holders
}

/// The socket inodes in a table of proc(5)'s /proc/net/tcp that listen on the port, on this address or on all.
fn listeners(table: &str, wanted: SocketAddrV4) -> Vec<u64> {
    const LISTEN: &str = "0A";
    let port = format!("{:04X}", wanted.port());
    // The address is printed as the number that the machine holds in memory.
    let own = format!("{:08X}", u32::from_ne_bytes(wanted.ip().octets()));
    let any = format!("{:08X}", u32::from(Ipv4Addr::UNSPECIFIED));
    let fits = |local: &str| match local.split_once(':') {
        Some((address, p)) if p == port => {
            address == own
                || address == any
                || address == "0".repeat(32)
                || (address.len() == 32 && address.ends_with(&own))
        }
        _ => false,
    };
    table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            let (local, state, inode) = (fields.get(1)?, fields.get(3)?, fields.get(9)?);
            (*state == LISTEN && fits(local)).then(|| inode.parse().ok()).flatten()
        })
        .collect()
}

fn socket_owner(inode: u64) -> String {
    let wanted = format!("socket:[{inode}]");
    let Ok(processes) = std::fs::read_dir("/proc") else {
        return "an unknown process".to_owned();
    };
    for pid in processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok()) {
        let Ok(descriptors) = std::fs::read_dir(format!("/proc/{pid}/fd")) else {
            continue;
        };
        for descriptor in descriptors.flatten() {
            if std::fs::read_link(descriptor.path()).is_ok_and(|target| target.as_os_str() == wanted.as_str())
            {
                return format!("{} (pid {pid})", process::program_name(pid));
            }
        }
    }
    "a process that cannot be seen from here".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:094B 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 111 1 0 100 0 0 10 0
   1: 0100007F:094B 0100007F:9C40 01 00000000:00000000 00:00000000 00000000     0        0 222 1 0 100 0 0 10 0
   2: 00000000:094C 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 333 1 0 100 0 0 10 0
   3: 0200007F:094C 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 444 1 0 100 0 0 10 0\n";

    #[test]
    fn listeners_are_found_in_the_kernels_table() {
        assert_eq!(listeners(TABLE, "127.0.0.1:2379".parse().unwrap()), [111]);
        assert_eq!(listeners(TABLE, "127.0.0.1:2380".parse().unwrap()), [333]);
        assert_eq!(listeners(TABLE, "127.0.0.1:80".parse().unwrap()), Vec::<u64>::new());
        let six = "h\n 0: 00000000000000000000000000000000:094B 0:0 0A 0 0 0 0 0 555 1\n";
        assert_eq!(listeners(six, "127.0.0.1:2379".parse().unwrap()), [555]);
        assert_eq!(listeners("", "127.0.0.1:2379".parse().unwrap()), Vec::<u64>::new());
    }

    #[test]
    fn a_listener_is_named() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let std::net::SocketAddr::V4(address) = socket.local_addr().unwrap() else { panic!("not IPv4") };
        let found = listeners(&std::fs::read_to_string("/proc/net/tcp").unwrap(), address);
        assert!(socket_owner(found[0]).contains(&format!("(pid {})", std::process::id())));
    }

    #[test]
    fn etcd_is_run_where_we_look_for_it() {
        let args = args(&ServerConfig { name: "h1".into(), ..ServerConfig::default() });
        for wanted in [
            format!("--listen-client-urls=https://{}", paths::ETCD_CLIENT),
            format!("--listen-peer-urls=https://{}", paths::ETCD_PEER),
            "--trusted-ca-file=/etc/enoki/pki/etcd-ca.crt".to_owned(),
            "--cert-file=/etc/enoki/pki/etcd.crt".to_owned(),
            "--data-dir=/var/lib/enoki/etcd".to_owned(),
            format!("--initial-cluster=h1=https://{}", paths::ETCD_PEER),
        ] {
            assert!(args.iter().any(|arg| *arg == *wanted), "{wanted} is not in {args:?}");
        }
    }
}
