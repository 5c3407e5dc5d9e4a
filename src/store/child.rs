//! The command line of our own etcd: the one member of the cloud that `enoki up` starts, or one of several, or a test's.
//!
//! Flags are those of etcd 3.4, all still known to 3.5 and 3.6. History is compacted by etcd itself every hour; the
//! pages that this frees are used again, so the file stops growing by itself. Only when the quota is reached nonetheless,
//! [`super::Store::reclaim`] gives them back and clears the alarm.

use std::path::{Path, PathBuf};

/// 8 GiB, the most that etcd recommends. Enough for millions of objects; a file this size opens in seconds.
pub const QUOTA_BYTES: u64 = 8_589_934_592;

/// Certificates, all PEM files. One CA for clients and peers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    pub ca: PathBuf,
    /// Must name the address of both URLs, and be good for servers and clients: etcd dials itself.
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// One member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    pub name: String,
    pub data_dir: PathBuf,
    /// `host:port` that clients dial.
    pub client: String,
    /// `host:port` for peers. A lone member has none, but etcd wants one.
    pub peer: String,
    /// Where others reach it besides. None: nowhere.
    pub elsewhere: Option<Elsewhere>,
    /// How it finds the members that are there at its first start, itself among them: `NAME=URL,...`. None: it is the first.
    pub initial_cluster: Option<String>,
    /// None: plain HTTP, for tests alone.
    pub tls: Option<TlsFiles>,
    pub quota_bytes: u64,
}

/// `host:port` for clients on other machines, and for other members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Elsewhere {
    pub client: String,
    pub peer: String,
}

impl Options {
    /// The usual ports on the loopback address.
    pub fn local(data_dir: impl Into<PathBuf>, tls: TlsFiles) -> Options {
        Options {
            name: "enoki".into(),
            data_dir: data_dir.into(),
            client: "127.0.0.1:2379".into(),
            peer: "127.0.0.1:2380".into(),
            elsewhere: None,
            initial_cluster: None,
            tls: Some(tls),
            quota_bytes: QUOTA_BYTES,
        }
    }

    /// What clients use as the endpoint.
    pub fn endpoint(&self) -> String {
        self.url(&self.client)
    }

    fn url(&self, address: &str) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{address}")
    }
}

/// All arguments for the program `etcd`.
pub fn args(options: &Options) -> Vec<String> {
    let (mut client, mut peer) = (options.url(&options.client), options.url(&options.peer));
    let mut listen_peer = peer.clone();
    if let Some(elsewhere) = &options.elsewhere {
        client = format!("{client},{}", options.url(&elsewhere.client));
        peer = options.url(&elsewhere.peer);
        listen_peer = format!("{listen_peer},{peer}");
    }
    let (cluster, state) = match &options.initial_cluster {
        Some(cluster) => (cluster.clone(), "existing"),
        None => (format!("{}={peer}", options.name), "new"),
    };
    let mut args = vec![
        format!("--name={}", options.name),
        format!("--data-dir={}", text(&options.data_dir)),
        format!("--listen-client-urls={client}"),
        format!("--advertise-client-urls={client}"),
        format!("--listen-peer-urls={listen_peer}"),
        format!("--initial-advertise-peer-urls={peer}"),
        format!("--initial-cluster={cluster}"),
        format!("--initial-cluster-state={state}"),
        format!("--quota-backend-bytes={}", options.quota_bytes),
        "--auto-compaction-mode=periodic".into(),
        "--auto-compaction-retention=1h".into(),
        // etcd 3.4 keeps that many log entries in memory; the default of 100000 is hundreds of megabytes.
        "--snapshot-count=10000".into(),
        // A member that comes back from being cut off asks before it makes the others elect anew.
        "--pre-vote=true".into(),
        "--logger=zap".into(),
        "--log-outputs=stderr".into(),
        "--log-level=warn".into(),
    ];
    if let Some(TlsFiles { ca, cert, key }) = &options.tls {
        let (ca, cert, key) = (text(ca), text(cert), text(key));
        args.extend([
            format!("--cert-file={cert}"),
            format!("--key-file={key}"),
            format!("--trusted-ca-file={ca}"),
            "--client-cert-auth=true".into(),
            format!("--peer-cert-file={cert}"),
            format!("--peer-key-file={key}"),
            format!("--peer-trusted-ca-file={ca}"),
            "--peer-client-cert-auth=true".into(),
        ]);
    }
    args
}

/// Our paths are text by construction; a test's folder with odd bytes would only fail to open.
fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_need_a_certificate_and_nothing_listens_beyond_loopback() {
        let tls = TlsFiles {
            ca: "/etc/enoki/ca.crt".into(),
            cert: "/etc/enoki/etcd.crt".into(),
            key: "/etc/enoki/etcd.key".into(),
        };
        let options = Options::local("/var/lib/enoki/etcd", tls);
        assert_eq!(options.endpoint(), "https://127.0.0.1:2379");
        let args = args(&options);
        for wanted in [
            "--client-cert-auth=true",
            "--peer-client-cert-auth=true",
            "--quota-backend-bytes=8589934592",
            "--auto-compaction-mode=periodic",
            "--auto-compaction-retention=1h",
            "--listen-client-urls=https://127.0.0.1:2379",
        ] {
            assert!(args.iter().any(|arg| arg == wanted), "{wanted}");
        }
        for arg in args.iter().filter(|arg| arg.contains("urls=")) {
            assert!(arg.contains("https://127.0.0.1:"), "{arg}");
        }
    }
}
