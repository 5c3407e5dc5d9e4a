//! Loop devices: a file as a block device.

use super::{Error, doing};
use crate::limits::device::Device;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

const CONTROL: &str = "/dev/loop-control";

/// Goes away by itself when it is unmounted.
const AUTOCLEAR: u32 = 4;
/// Past the host's page cache: the file system inside caches already, and what is written is written.
const DIRECT_IO: u32 = 16;

/// `struct loop_info64` of linux/loop.h.
#[repr(C)]
struct Info {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config` of linux/loop.h.
#[repr(C)]
struct Config {
    fd: u32,
    block_size: u32,
    info: Info,
    reserved: [u64; 8],
}

nix::ioctl_none_bad!(get_free, 0x4C82);
nix::ioctl_write_ptr_bad!(configure, 0x4C0A, Config);
nix::ioctl_none_bad!(set_capacity, 0x4C07);

/// Held until the device is mounted: without a user it would clear itself.
pub struct Attached {
    pub path: PathBuf,
    _file: File,
}

pub fn attach(image: &Path) -> Result<Attached, Error> {
    let backing = OpenOptions::new().read(true).write(true).open(image).map_err(doing("open", image))?;
    let control = OpenOptions::new().read(true).write(true).open(CONTROL).map_err(|why| Error::Io {
        what: format!("open {CONTROL} (the kernel needs loop devices)"),
        source: why,
    })?;
    let mut file_name = [0; 64];
    let name = image.as_os_str().as_encoded_bytes();
    let shown = name.len().min(63);
    file_name[..shown].copy_from_slice(&name[..shown]);
    let config = Config {
        // A file descriptor is never negative.
        fd: backing.as_raw_fd().unsigned_abs(),
        block_size: 0,
        info: Info {
            device: 0,
            inode: 0,
            rdevice: 0,
            offset: 0,
            size_limit: 0,
            number: 0,
            encrypt_type: 0,
            encrypt_key_size: 0,
            flags: AUTOCLEAR | DIRECT_IO,
            file_name,
            crypt_name: [0; 64],
            encrypt_key: [0; 32],
            init: [0; 2],
        },
        reserved: [0; 8],
    };
    // Somebody else may take the free one between the two calls.
    for _ in 0..64 {
        // SAFETY: LOOP_CTL_GET_FREE takes no argument and returns a number.
        let number = unsafe { get_free(control.as_raw_fd()) }.map_err(doing("find", Path::new(CONTROL)))?;
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let file = match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => file,
            Err(why) if why.kind() == io::ErrorKind::NotFound || why.raw_os_error() == Some(libc::ENXIO) => {
                return Err(doing("open", &path)(why));
            }
            Err(why) => return Err(doing("open", &path)(why)),
        };
        // SAFETY: LOOP_CONFIGURE reads a `loop_config`, which `Config` is, and keeps nothing of it.
        match unsafe { configure(file.as_raw_fd(), &raw const config) } {
            Ok(_) => return Ok(Attached { path, _file: file }),
            Err(nix::errno::Errno::EBUSY) => {}
            Err(why) => return Err(doing("attach", image)(why)),
        }
    }
    Err(doing("attach", image)(io::Error::other("every free loop device was taken by somebody else")))
}

/// Tells the device that its file has grown.
pub fn refresh(device: Device) -> Result<(), Error> {
    let path = PathBuf::from(format!("/dev/loop{}", device.minor));
    let file = File::open(&path).map_err(doing("open", &path))?;
    // SAFETY: LOOP_SET_CAPACITY takes no argument.
    unsafe { set_capacity(file.as_raw_fd()) }.map_err(doing("grow", &path))?;
    Ok(())
}

/// The file behind a loop device. None: it is none.
pub fn backing(device: Device) -> Option<PathBuf> {
    let path = format!("/sys/dev/block/{device}/loop/backing_file");
    std::fs::read_to_string(path).ok().map(|text| PathBuf::from(text.trim_end_matches('\n')))
}
