//! A real etcd as a child of the test: on free loopback ports, in a temporary folder, gone with the test however it ends.
//!
//! Start and restart it from the test's own thread: the kernel ends the child with the thread that made it.

use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use enoki::store::Store;
use enoki::store::child::{self, TlsFiles};
use enoki::store::etcd::{Config, DEADLINE, Etcd, Tls};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use tempfile::TempDir;

/// How clients speak to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Plain,
    /// Client certificates, as in a real cloud.
    Tls,
}

/// A running, stopped or killed etcd.
pub struct EtcdChild {
    pub options: child::Options,
    tls: Option<Tls>,
    child: Option<Child>,
    dir: Arc<TempDir>,
}

/// Certificates of a test: a CA, and one pair for server and client alike.
pub struct Pki {
    pub ca: String,
    pub cert: String,
    pub key: String,
}

pub fn pki() -> Pki {
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    let ca_cert = ca.self_signed(&ca_key).unwrap();
    let issuer = Issuer::new(ca, ca_key);
    let key = KeyPair::generate().unwrap();
    let mut leaf = CertificateParams::new(vec!["127.0.0.1".to_string(), "localhost".to_string()]).unwrap();
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let cert = leaf.signed_by(&key, &issuer).unwrap();
    Pki { ca: ca_cert.pem(), cert: cert.pem(), key: key.serialize_pem() }
}

impl EtcdChild {
    /// Starts an empty one and waits until it answers.
    pub async fn start(mode: Mode) -> EtcdChild {
        EtcdChild::start_with(mode, |_| ()).await
    }

    /// The same with other options, a small quota for example.
    pub async fn start_with(mode: Mode, change: impl Fn(&mut child::Options)) -> EtcdChild {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let dir = tempfile::Builder::new().prefix("enoki-etcd-").tempdir();
        let dir = Arc::new(dir.unwrap());
        let (tls, files) = match mode {
            Mode::Plain => (None, None),
            Mode::Tls => {
                let pki = pki();
                let file = |name: &str, text: &str| {
                    let path = dir.path().join(name);
                    std::fs::write(&path, text).unwrap();
                    path
                };
                let files = TlsFiles {
                    ca: file("ca.crt", &pki.ca),
                    cert: file("etcd.crt", &pki.cert),
                    key: file("etcd.key", &pki.key),
                };
                let tls =
                    Tls { ca: pki.ca.into_bytes(), cert: pki.cert.into_bytes(), key: pki.key.into_bytes() };
                (Some(tls), Some(files))
            }
        };
        // Somebody may take a free port between our look and etcd's: then once more with others.
        for attempt in 1.. {
            let [client, peer] = free_ports();
            let mut options = child::Options {
                name: "test".into(),
                data_dir: dir.path().join(format!("data-{attempt}")),
                client: format!("127.0.0.1:{client}"),
                elsewhere: None,
                peer: format!("127.0.0.1:{peer}"),
                tls: files.clone(),
                initial_cluster: None,
                quota_bytes: child::QUOTA_BYTES,
            };
            change(&mut options);
            let mut etcd = EtcdChild { options, tls: tls.clone(), child: None, dir: dir.clone() };
            match etcd.spawn().await {
                Ok(()) => return etcd,
                Err(why) if attempt == 3 => panic!("{why}"),
                Err(_) => {}
            }
        }
        unreachable!("the loop returns or panics")
    }

    pub fn config(&self) -> Config {
        Config { endpoints: vec![self.options.endpoint()], tls: self.tls.clone(), deadline: DEADLINE }
    }

    /// A client with a connection of its own.
    pub async fn client(&self) -> Etcd {
        Etcd::new(self.config()).await.unwrap()
    }

    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// kill -9, and waits until it is gone.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Starts it again with the same data and ports.
    pub async fn restart(&mut self) {
        self.kill();
        self.spawn().await.unwrap();
    }

    /// Forgets all data; for a store that went back.
    pub fn wipe(&mut self) {
        self.kill();
        std::fs::remove_dir_all(&self.options.data_dir).unwrap();
    }

    /// SIGSTOP: it is there and says nothing.
    pub fn freeze(&self) {
        self.signal(Signal::SIGSTOP);
    }

    pub fn thaw(&self) {
        self.signal(Signal::SIGCONT);
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = self.pid() {
            kill(Pid::from_raw(pid as i32), signal).unwrap();
        }
    }

    async fn spawn(&mut self) -> Result<(), String> {
        let log =
            std::fs::OpenOptions::new().create(true).append(true).open(self.dir.path().join("log")).unwrap();
        let mut command = Command::new("etcd");
        command
            .args(child::args(&self.options))
            .env_clear()
            .env("PATH", std::env::var("PATH").unwrap_or_default())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        // SAFETY: prctl is a bare system call, allowed between fork and exec.
        unsafe {
            command.pre_exec(|| Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?));
        }
        self.child = Some(command.spawn().map_err(|error| format!("etcd: {error}"))?);
        let store = self.client().await.with_deadline(Duration::from_secs(1));
        let patience = Instant::now() + Duration::from_secs(30);
        loop {
            let Err(error) = store.get("/").await else {
                return Ok(());
            };
            let exited = self
                .child
                .as_mut()
                .is_some_and(|child| child.try_wait().is_ok_and(|status| status.is_some()));
            if exited || Instant::now() > patience {
                return Err(format!("etcd does not come up: {error}\n{}", self.log()));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

impl Drop for EtcdChild {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A loopback address that nobody listens on.
pub fn free_address() -> String {
    format!("127.0.0.1:{}", free_ports()[0])
}

fn free_ports() -> [u16; 2] {
    // Both held at once, so that they differ.
    let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}
