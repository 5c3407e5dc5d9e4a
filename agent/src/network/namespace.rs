//! Network namespaces: made, pinned, entered and removed.
//!
//! A namespace belongs to a *thread*, so nothing here may run on a thread that others share: whatever enters a
//! namespace needs a [`Dedicated`], and only [`run`] and [`host_thread`] give one. Such a thread ends after its work.
//!
//! A pin is a bind mount of the namespace's file. It is made last, after the namespace is prepared: what is pinned is
//! complete, and a thread killed before leaves nothing but a plain file, which counts as no pin.

use std::fs::{self, File};
use std::future::Future;
use std::io;
use std::marker::PhantomData;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::{FsType, fstatfs};
use tokio::sync::oneshot;

use super::{Error, names};

const PINS: &str = "/run/enoki/netns";
/// `NSFS_MAGIC` of linux/magic.h.
const NSFS: FsType = FsType(0x6e73_6673);

/// Two pins of one name at the same moment would stack two mounts and hide one namespace for ever.
static PINNING: Mutex<()> = Mutex::new(());

/// Proof that the current thread serves one task only, and may change its namespace.
pub struct Dedicated(PhantomData<*const ()>);

/// Which namespace a file is: equal for two files of the same one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity(u64, u64);

pub fn identity(namespace: &File) -> Result<Identity, Error> {
    let meta = namespace.metadata().map_err(Error::system("reading a namespace's identity"))?;
    Ok(Identity(meta.dev(), meta.ino()))
}

/// The pin's path; it may not exist.
pub fn path(name: &str) -> PathBuf {
    Path::new(PINS).join(name)
}

/// The pinned namespace. `None` when there is no such file, or one on which nothing is mounted (left by a reboot or
/// a kill between its two steps).
pub fn open(name: &str) -> Result<Option<File>, Error> {
    let path = path(name);
    match File::open(&path) {
        Ok(file) => Ok(is_namespace(&file).then_some(file)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::System { what: format!("opening {}", path.display()), source: e }),
    }
}

fn is_namespace(file: &File) -> bool {
    fstatfs(file).is_ok_and(|s| s.filesystem_type() == NSFS)
}

/// The namespace that this thread is in.
pub fn current() -> Result<File, Error> {
    File::open("/proc/thread-self/ns/net").map_err(Error::system("opening this thread's network namespace"))
}

pub fn enter(_thread: &Dedicated, namespace: &File) -> Result<(), Error> {
    setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)
        .map_err(|e| Error::System { what: "entering a network namespace".into(), source: e.into() })
}

/// Moves this thread into a new namespace and pins it under `name` once `prepare` has run inside. When somebody else
/// pinned that name meanwhile, theirs stands and this thread enters it.
pub fn make(
    thread: &Dedicated,
    name: &str,
    prepare: impl FnOnce() -> Result<(), Error>,
) -> Result<File, Error> {
    unshare(CloneFlags::CLONE_NEWNET)
        .map_err(|e| Error::System { what: "making a network namespace".into(), source: e.into() })?;
    prepare()?;
    let mine = current()?;
    match pin(name, Path::new("/proc/thread-self/ns/net"))? {
        None => Ok(mine),
        Some(theirs) => {
            enter(thread, &theirs)?;
            Ok(theirs)
        }
    }
}

/// Pins the namespace at `source` under `name`. `Some` is the namespace that was pinned there already; it stays.
pub fn pin(name: &str, source: &Path) -> Result<Option<File>, Error> {
    let target = path(name);
    let what = || format!("pinning a network namespace at {}", target.display());
    // A poisoned lock guards no data, only the order of these steps.
    let _one_at_a_time = PINNING.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if let Some(theirs) = open(name)? {
        return Ok(Some(theirs));
    }
    fs::create_dir_all(PINS).map_err(Error::system(what()))?;
    File::options().create(true).append(true).open(&target).map_err(Error::system(what()))?;
    mount(Some(source), &target, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .map_err(|e| Error::System { what: what(), source: e.into() })?;
    Ok(None)
}

/// Names that have a namespace, the fabric's not among them.
pub fn list() -> Result<Vec<String>, Error> {
    let mut names = Vec::new();
    for name in pins()? {
        if name != names::FABRIC && open(&name)?.is_some() {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// Names of all pins, also of those with nothing mounted.
pub fn pins() -> Result<Vec<String>, Error> {
    let entries = match fs::read_dir(PINS) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => {
            return Err(Error::System { what: format!("listing {PINS}"), source: e });
        }
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(Error::system(format!("listing {PINS}")))?;
        // A name that is not UTF-8 is none of ours.
        if let Ok(name) = entry.file_name().into_string() {
            names.push(name);
        }
    }
    Ok(names)
}

/// Unpins; the namespace ends with the last process in it. Fine when there is no pin.
pub fn remove(name: &str) -> Result<(), Error> {
    let path = path(name);
    let what = || format!("removing {}", path.display());
    let _one_at_a_time = PINNING.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    // More than one mount cannot come from here, but a stack would keep the namespace: bounded, all of it.
    for _ in 0..16 {
        if open(name)?.is_none() {
            break;
        }
        umount2(&path, MntFlags::MNT_DETACH).map_err(|e| Error::System { what: what(), source: e.into() })?;
    }
    match fs::remove_file(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::System { what: what(), source: e }),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Removes the pins' folder when it is empty.
pub fn remove_folder() -> Result<(), Error> {
    match fs::remove_dir(PINS) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(Error::System { what: format!("removing {PINS}"), source: e })
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Writes a sysctl of the namespace that this thread is in, unless it has the value already. A setting that this
/// kernel does not have (IPv6 off) is left out.
pub fn sysctl(name: &str, value: &str) -> Result<(), Error> {
    let path = Path::new("/proc/sys").join(name);
    let what = || format!("setting {} to {value:?}", path.display());
    let present = match fs::read_to_string(&path) {
        Ok(present) => present,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => {
            return Err(Error::System { what: what(), source: e });
        }
    };
    if present.split_whitespace().eq(value.split_whitespace()) {
        return Ok(());
    }
    fs::write(&path, value).map_err(Error::system(what()))
}

/// Runs `work` on a thread of its own with a small runtime, and waits for it at most `deadline`.
///
/// The kernel does netlink's work inside `send`, under a lock of the whole machine: here it holds up this thread, never
/// the agent's runtime. A caller that goes away does not stop the work half-way.
pub async fn run<T, F, Fut>(what: String, deadline: Duration, work: F) -> Result<T, Error>
where
    T: Send + 'static,
    F: FnOnce(Dedicated) -> Fut + Send + 'static,
    Fut: Future<Output = Result<T, Error>>,
{
    let (answer, answered) = oneshot::channel();
    let late = {
        let what = what.clone();
        move || Error::Deadline { what, seconds: deadline.as_secs() }
    };
    let inner_late = late.clone();
    host_thread("enoki-netns", move |thread| async move {
        let result = tokio::time::timeout(deadline, work(thread)).await.unwrap_or_else(|_| Err(inner_late()));
        // Nobody listens any more: the work is done all the same.
        let _ = answer.send(result);
    })?;
    match tokio::time::timeout(deadline + Duration::from_secs(1), answered).await {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => {
            Err(Error::System { what, source: io::Error::other("its thread ended without an answer") })
        }
        Err(_) => Err(late()),
    }
}

/// Starts a thread with a small runtime of its own; it begins in the namespace of its caller.
pub fn host_thread<F, Fut>(name: &str, work: F) -> Result<(), Error>
where
    F: FnOnce(Dedicated) -> Fut + Send + 'static,
    Fut: Future<Output = ()>,
{
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Error::system("starting a runtime for a namespace's thread"))?;
    std::thread::Builder::new()
        .name(name.into())
        .spawn(move || runtime.block_on(work(Dedicated(PhantomData))))
        .map_err(Error::system("starting a thread for a namespace"))?;
    Ok(())
}
