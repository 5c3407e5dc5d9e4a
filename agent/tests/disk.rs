//! Disks and volumes on a real file system with real loop devices, in a temporary folder.

use enoki_agent::disk::{Disks, Error, Pinned, Rootfs};
use enoki_agent::limits::device::Device;
use enoki_agent::mounts;
use enoki_api::object::Uid;
use enoki_api::quantity::Bytes;
use nix::sys::statvfs::{FsFlags, statvfs};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A state folder; what a failed test left mounted in it goes with it.
struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Home {
        Home(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn mounts(&self) -> Vec<PathBuf> {
        let mut points: Vec<PathBuf> = mounts::own().unwrap().into_iter().map(|mount| mount.point).collect();
        points.retain(|point| point.starts_with(self.path()));
        points.reverse();
        points
    }

    fn unmount(&self) {
        for point in self.mounts() {
            nix::mount::umount(&point).unwrap();
        }
    }

    fn names(&self, folder: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path().join(folder)).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    async fn swept(&self, folder: &str) {
        let until = Instant::now() + Duration::from_secs(20);
        while self.names(folder).iter().any(|name| name.starts_with('.')) {
            assert!(Instant::now() < until, "left: {:?}", self.names(folder));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        for point in self.mounts() {
            let _ = nix::mount::umount2(&point, nix::mount::MntFlags::MNT_DETACH);
        }
    }
}

const MI: u64 = 1 << 20;

fn size_of(mounted: &Path) -> u64 {
    let seen = statvfs(mounted).unwrap();
    seen.blocks() * seen.fragment_size()
}

fn fs_of(rootfs: &Rootfs) -> PathBuf {
    rootfs.disk.join("fs")
}

#[tokio::test]
async fn a_disk_without_a_size() {
    let home = Home::new();
    let disks = Disks::open(home.path()).await.unwrap();
    let uid = Uid::random();
    let first = disks.ensure(&uid, None).await.unwrap();
    assert_eq!(first.disk, home.path().join("disks").join(uid.as_str()));
    assert_eq!(fs::read_to_string(first.upper.join("etc/machine-id")).unwrap(), format!("{}\n", uid.hex()));
    assert_eq!(fs::metadata(&first.upper).unwrap().mode() & 0o7777, 0o755);
    for part in [&first.work, &first.mountpoint, &first.machine] {
        assert!(part.is_dir(), "{}", part.display());
    }
    assert!(home.mounts().is_empty());
    fs::write(first.upper.join("file"), "kept").unwrap();
    assert_eq!(disks.ensure(&uid, None).await.unwrap(), first);
    assert_eq!(fs::read_to_string(first.upper.join("file")).unwrap(), "kept");
    assert_eq!(disks.size(&uid).await.unwrap(), None);
    assert!(matches!(disks.grow(&uid, Bytes(64 * MI)).await, Err(Error::NoImage)));
    assert!(matches!(disks.ensure(&uid, Some(Bytes(64 * MI))).await, Err(Error::NoImage)));
    let devices = disks.devices(&uid, &[]).await.unwrap();
    assert_eq!(devices, [Device::under(home.path()).unwrap().unwrap()]);
    disks.destroy(&uid).await.unwrap();
    home.swept("disks").await;
    assert!(home.names("disks").is_empty());
    assert!(matches!(disks.size(&uid).await, Err(Error::Missing(_))));
}

#[tokio::test]
async fn a_disk_with_a_size() {
    let home = Home::new();
    let disks = Disks::open(home.path()).await.unwrap();
    let uid = Uid::random();
    let before = Instant::now();
    let rootfs = disks.ensure(&uid, Some(Bytes(64 * MI))).await.unwrap();
    println!("made in {:?}", before.elapsed());
    let fs_folder = fs_of(&rootfs);
    assert_eq!(home.mounts(), std::slice::from_ref(&fs_folder));
    assert_eq!(size_of(&fs_folder), 64 * MI, "df tells the size exactly");
    let seen = statvfs(&fs_folder).unwrap();
    // Nothing is kept for root (ext4 itself keeps a fiftieth back for what is not yet written out).
    assert!(seen.blocks_free() - seen.blocks_available() <= seen.blocks() / 50);
    assert!(seen.flags().contains(FsFlags::ST_NODEV) && !seen.flags().contains(FsFlags::ST_NOSUID));
    assert_eq!(fs::read_to_string(rootfs.upper.join("etc/machine-id")).unwrap(), format!("{}\n", uid.hex()));
    assert_eq!(fs::metadata(&rootfs.upper).unwrap().mode() & 0o7777, 0o755);
    let image = fs::metadata(rootfs.disk.join("disk.img")).unwrap();
    assert!(image.blocks() * 512 < 24 * MI, "sparse: {} bytes", image.blocks() * 512);

    // Bounded: the host's disk is larger, this one is full.
    let full = fs::write(rootfs.upper.join("big"), vec![7; 80 << 20]).unwrap_err();
    assert_eq!(full.raw_os_error(), Some(libc::ENOSPC));
    fs::remove_file(rootfs.upper.join("big")).unwrap();
    let mut open = fs::File::create(rootfs.upper.join("file")).unwrap();
    std::io::Write::write_all(&mut open, b"kept").unwrap();

    // Grown while it is in use; never shrunk.
    assert_eq!(disks.grow(&uid, Bytes(300 * MI)).await.unwrap(), Bytes(300 * MI));
    assert_eq!(size_of(&fs_folder), 300 * MI);
    fs::write(rootfs.upper.join("big"), vec![7; 120 << 20]).unwrap();
    assert_eq!(disks.grow(&uid, Bytes(300 * MI)).await.unwrap(), Bytes(300 * MI));
    assert!(matches!(disks.grow(&uid, Bytes(299 * MI)).await, Err(Error::Shrink { .. })));
    // A start with a size that is smaller than what is there must not fail, and changes nothing.
    assert_eq!(disks.ensure(&uid, Some(Bytes(64 * MI))).await.unwrap(), rootfs);
    assert_eq!(disks.size(&uid).await.unwrap(), Some(Bytes(300 * MI)));
    drop(open);

    // Limits have to name the disk and the loop device on it.
    let devices = disks.devices(&uid, &[]).await.unwrap();
    assert_eq!(devices.len(), 2);
    assert!(devices.contains(&Device::under(&fs_folder).unwrap().unwrap()));

    // The host reboots, in the middle of a growth.
    home.unmount();
    let image = rootfs.disk.join("disk.img");
    let file = fs::OpenOptions::new().write(true).open(&image).unwrap();
    let length = file.metadata().unwrap().len();
    file.set_len(length + 100 * MI).unwrap();
    let disks = Disks::open(home.path()).await.unwrap();
    assert_eq!(disks.list().await.unwrap()[0].size, Some(Bytes(400 * MI)));
    assert_eq!(disks.ensure(&uid, Some(Bytes(400 * MI))).await.unwrap(), rootfs);
    assert_eq!(size_of(&fs_folder), 400 * MI);
    assert_eq!(fs::read_to_string(rootfs.upper.join("file")).unwrap(), "kept");

    disks.destroy(&uid).await.unwrap();
    disks.destroy(&uid).await.unwrap();
    assert!(home.mounts().is_empty());
    home.swept("disks").await;
    assert!(home.names("disks").is_empty());
    let held = Command::new("losetup").args(["-j"]).arg(&image).output().unwrap().stdout;
    assert!(held.is_empty(), "{}", String::from_utf8_lossy(&held));
}

#[tokio::test]
async fn grown_far_beyond_its_first_size() {
    let home = Home::new();
    let disks = Disks::open(home.path()).await.unwrap();
    let uid = Uid::random();
    let rootfs = disks.ensure(&uid, Some(Bytes(16 * MI))).await.unwrap();
    assert_eq!(size_of(&fs_of(&rootfs)), 16 * MI);
    for size in [100 * MI + 1, 1024 * MI, 20 * 1024 * MI] {
        assert_eq!(disks.grow(&uid, Bytes(size)).await.unwrap(), Bytes(size));
        assert_eq!(size_of(&fs_of(&rootfs)), size / 4096 * 4096);
    }
    disks.destroy(&uid).await.unwrap();
}

#[tokio::test]
async fn only_what_was_never_whole_is_discarded() {
    let home = Home::new();
    let disks = Disks::open(home.path()).await.unwrap();
    let (whole, half, other) = (Uid::random(), Uid::random(), Uid::random());
    let kept = disks.ensure(&whole, None).await.unwrap();
    fs::write(kept.upper.join("file"), "kept").unwrap();
    let folder = home.path().join("disks");
    for uid in [&half, &other] {
        fs::create_dir_all(folder.join(format!(".new-{uid}/upper"))).unwrap();
    }
    fs::create_dir_all(folder.join(".trash-x/deep")).unwrap();
    // Without a restart too.
    let made = disks.ensure(&half, Some(Bytes(32 * MI))).await.unwrap();
    assert!(made.upper.join("etc/machine-id").exists());
    let disks = Disks::open(home.path()).await.unwrap();
    home.swept("disks").await;
    let listed: Vec<Uid> = disks.list().await.unwrap().into_iter().map(|disk| disk.uid).collect();
    let mut expected = vec![whole.clone(), half.clone()];
    expected.sort();
    assert_eq!(listed, expected);
    assert_eq!(fs::read_to_string(kept.upper.join("file")).unwrap(), "kept");
    disks.destroy(&half).await.unwrap();
    home.swept("disks").await;
}

#[tokio::test]
async fn no_more_is_promised_than_there_is() {
    let home = Home::new();
    let disks = Disks::open(home.path()).await.unwrap();
    let seen = statvfs(home.path()).unwrap();
    let most = seen.blocks_available() * seen.fragment_size() / 5 * 3 / 4096 * 4096;
    let (first, second) = (Uid::random(), Uid::random());
    disks.ensure(&first, Some(Bytes(most))).await.unwrap();
    let refused = disks.ensure(&second, Some(Bytes(most))).await.unwrap_err();
    assert!(matches!(&refused, Error::NoRoom { promised, .. } if promised.0 > most / 2), "{refused}");
    assert!(matches!(disks.grow(&first, Bytes(1 << 50)).await, Err(Error::NoRoom { .. })));
    assert_eq!(disks.size(&first).await.unwrap(), Some(Bytes(most)));
    // What was given up is free again.
    disks.destroy(&first).await.unwrap();
    disks.ensure(&second, Some(Bytes(most))).await.unwrap();
    disks.destroy(&second).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn side_by_side() {
    let home = Home::new();
    let disks = Disks::open(home.path()).await.unwrap();
    let uids: Vec<Uid> = (0..6).map(|_| Uid::random()).collect();
    let tasks: Vec<_> = (0..24)
        .map(|at| {
            let (disks, uid) = (disks.clone(), uids[at % 6].clone());
            tokio::spawn(async move { disks.ensure(&uid, Some(Bytes(32 * MI))).await.unwrap() })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(home.mounts().len(), 6);
    let tasks: Vec<_> = uids
        .iter()
        .flat_map(|uid| [uid, uid])
        .map(|uid| {
            let (disks, uid) = (disks.clone(), uid.clone());
            tokio::spawn(async move { disks.destroy(&uid).await.unwrap() })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    home.swept("disks").await;
    assert!(home.mounts().is_empty() && home.names("disks").is_empty());
}

/// A process that lives in a container's mount namespace.
struct Tenant(Child);

impl Tenant {
    fn new(script: &str) -> Tenant {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-ec", script]);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut ready = [0];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut ready).unwrap();
        Tenant(child)
    }

    fn end(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[tokio::test]
async fn a_disk_in_use_stays() {
    let home = Home::new();
    let disks = Disks::open(home.path()).await.unwrap();
    let lower = home.path().join("lower");
    fs::create_dir_all(lower.join("bin")).unwrap();
    fs::copy("/bin/busybox", lower.join("bin/busybox")).unwrap();
    for size in [None, Some(Bytes(32 * MI))] {
        let uid = Uid::random();
        let rootfs = disks.ensure(&uid, size).await.unwrap();
        let script = format!(
            "mount -t overlay overlay -o lowerdir={},upperdir={},workdir={} {root}\n\
             exec chroot {root} /bin/busybox sh -c 'echo x; exec /bin/busybox sleep 1000'",
            lower.display(),
            rootfs.upper.display(),
            rootfs.work.display(),
            root = rootfs.mountpoint.display()
        );
        let tenant = Tenant::new(&script);
        let refused = disks.destroy(&uid).await;
        assert!(matches!(&refused, Err(Error::InUse(why)) if why.contains("process")), "{refused:?}");
        assert!(rootfs.upper.join("etc/machine-id").exists());
        tenant.end();

        // One that is on its way out is waited for.
        let last = disks.ensure(&Uid::random(), size).await.unwrap();
        let script = script.replace(&rootfs.disk.display().to_string(), &last.disk.display().to_string());
        let tenant = Tenant::new(&script);
        let uid_of_last = Uid::parse(last.disk.file_name().unwrap().to_str().unwrap()).unwrap();
        let (begun, going) = (Instant::now(), Duration::from_millis(200));
        let (destroyed, ()) = tokio::join!(disks.destroy(&uid_of_last), async {
            tokio::time::sleep(going).await;
            tenant.end();
        });
        destroyed.unwrap();
        assert!(
            begun.elapsed() >= going && begun.elapsed() < Duration::from_secs(1),
            "{:?}",
            begun.elapsed()
        );

        // What the wrapper left mounted when the host's daemons died is no use.
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            lower.display(),
            rootfs.upper.display(),
            rootfs.work.display()
        );
        nix::mount::mount(
            Some("overlay"),
            &rootfs.mountpoint,
            Some("overlay"),
            nix::mount::MsFlags::empty(),
            Some(options.as_str()),
        )
        .unwrap();
        // A start finds the container's root as it was.
        nix::sys::stat::fchmodat(
            nix::fcntl::AT_FDCWD,
            &rootfs.mountpoint,
            nix::sys::stat::Mode::from_bits_truncate(0o711),
            nix::sys::stat::FchmodatFlags::FollowSymlink,
        )
        .unwrap();
        disks.ensure(&uid, size).await.unwrap();
        assert_eq!(fs::metadata(&rootfs.mountpoint).unwrap().mode() & 0o7777, 0o711);
        disks.destroy(&uid).await.unwrap();
    }
    assert!(home.mounts().is_empty());
    home.swept("disks").await;
}

#[tokio::test]
async fn volumes() {
    let home = Home::new();
    let disks = Disks::open(home.path()).await.unwrap();
    let uid = Uid::random();
    let data = disks.volume(&uid).await.unwrap();
    assert_eq!(data, home.path().join("volumes").join(uid.as_str()).join("data"));
    assert_eq!(fs::metadata(&data).unwrap().mode() & 0o7777, 0o755);
    fs::write(data.join("file"), "kept").unwrap();
    // Its owner inside may have changed its mode: that is its own affair.
    fs::set_permissions(&data, std::os::unix::fs::PermissionsExt::from_mode(0o1777)).unwrap();
    assert_eq!(disks.volume(&uid).await.unwrap(), data);
    assert_eq!(fs::metadata(&data).unwrap().mode() & 0o7777, 0o1777);
    assert_eq!(disks.list_volumes().await.unwrap(), std::slice::from_ref(&uid));
    let point = home.path().join("point");
    fs::create_dir(&point).unwrap();
    let script = format!("mount --bind {} {}; echo x; exec sleep 1000", data.display(), point.display());
    let tenant = Tenant::new(&script);
    assert!(matches!(disks.destroy_volume(&uid).await, Err(Error::InUse(_))));
    assert_eq!(fs::read_to_string(data.join("file")).unwrap(), "kept");
    tenant.end();
    disks.destroy_volume(&uid).await.unwrap();
    disks.destroy_volume(&uid).await.unwrap();
    home.swept("volumes").await;
    assert!(home.names("volumes").is_empty());
}

#[tokio::test]
async fn the_first_image_stays_written_down() {
    let home = Home::new();
    let disks = Disks::open(home.path()).await.unwrap();
    let uid = Uid::random();
    let pinned = |id: &str| Pinned { id: id.to_owned(), name: "enoki/debian:12".to_owned(), digest: None };
    assert_eq!(disks.pinned(&uid).await.unwrap(), None);
    assert!(matches!(disks.pin(&uid, pinned("sha256:a")).await, Err(Error::Missing(_))));
    disks.ensure(&uid, None).await.unwrap();
    assert_eq!(disks.pin(&uid, pinned("sha256:a")).await.unwrap(), pinned("sha256:a"));
    assert_eq!(disks.pin(&uid, pinned("sha256:b")).await.unwrap(), pinned("sha256:a"));
    let disks = Disks::open(home.path()).await.unwrap();
    assert_eq!(disks.pinned(&uid).await.unwrap(), Some(pinned("sha256:a")));
    assert_eq!(disks.list().await.unwrap()[0].image, Some(pinned("sha256:a")));
    // As it was written before archives were remembered; then the same image's archive is added, and stays.
    let file = home.path().join("disks").join(uid.as_str()).join("image");
    fs::write(&file, r#"{"id":"sha256:a","name":"enoki/debian:12"}"#).unwrap();
    assert_eq!(disks.pinned(&uid).await.unwrap(), Some(pinned("sha256:a")));
    let with = |id: &str, digest: &str| Pinned { digest: Some(digest.to_owned()), ..pinned(id) };
    assert_eq!(disks.pin(&uid, with("sha256:b", "1")).await.unwrap(), pinned("sha256:a"));
    assert_eq!(disks.pin(&uid, with("sha256:a", "2")).await.unwrap(), with("sha256:a", "2"));
    assert_eq!(disks.pin(&uid, with("sha256:a", "3")).await.unwrap(), with("sha256:a", "2"));
    assert_eq!(disks.pinned(&uid).await.unwrap(), Some(with("sha256:a", "2")));
}
