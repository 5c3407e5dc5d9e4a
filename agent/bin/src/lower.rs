//! Which image layers does the container's root, as the engine prepared it, consist of?
//!
//! With Docker's overlay2 or containerd's overlay snapshotter the bundle's root is an overlay mount; its read-only layers stand in
//! `/proc/self/mountinfo`. They become the lower layers of the instance's own overlay, so that what Docker's writable layer holds is
//! left out and overlays do not nest. With any other storage driver the root itself is the lower layer.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use crate::Refusal;

/// One line of mountinfo, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    pub at: PathBuf,
    pub fstype: String,
    /// The superblock's options, unescaped.
    pub options: Vec<String>,
}

/// All mounts that this process sees, oldest first.
pub fn mounts() -> Result<Vec<Mount>, Refusal> {
    let text = fs::read("/proc/self/mountinfo")
        .map_err(|e| Refusal::new(format!("cannot read /proc/self/mountinfo: {e}")))?;
    Ok(text.split(|b| *b == b'\n').filter_map(parse_line).collect())
}

/// Is anything mounted exactly there? The path must be free of symbolic links.
pub fn is_mounted(path: &Path) -> Result<bool, Refusal> {
    Ok(mounts()?.iter().any(|m| m.at == path))
}

/// The lower layers for a root at `root` (absolute, no symbolic links), topmost first, all existing.
pub fn layers(root: &Path) -> Result<Vec<PathBuf>, Refusal> {
    let layers = choose(&mounts()?, root, &|p| p.is_dir())?;
    if layers == [root] && fs::read_dir(root).is_ok_and(|mut entries| entries.next().is_none()) {
        return Err(Refusal::new(format!(
            "the image's root {} is empty: its mount is missing",
            root.display()
        )));
    }
    Ok(layers)
}

fn choose(mounts: &[Mount], root: &Path, exists: &dyn Fn(&Path) -> bool) -> Result<Vec<PathBuf>, Refusal> {
    // The last mount on a path is the one that is seen there.
    let Some(mount) = mounts.iter().rev().find(|m| m.at == root).filter(|m| m.fstype == "overlay") else {
        return Ok(vec![root.to_owned()]);
    };
    let refuse = |why: &str| Refusal::new(format!("the overlay at {} {why}", root.display()));
    let mut named: Vec<PathBuf> = Vec::new();
    for option in &mount.options {
        if let Some(list) = option.strip_prefix("lowerdir=") {
            if list.contains('\\') || list.contains("::") {
                return Err(refuse(
                    "has layers with escaped names or data-only layers, which are not supported",
                ));
            }
            named.extend(list.split(':').map(PathBuf::from));
        } else if let Some(one) = option.strip_prefix("lowerdir+=") {
            named.push(one.into());
        }
    }
    if named.is_empty() {
        return Err(refuse("names no lower layers"));
    }
    if named.iter().all(|p| p.is_absolute()) {
        return match named.iter().find(|p| !exists(p)) {
            Some(gone) => Err(refuse(&format!("names the layer {}, which is not there", gone.display()))),
            None => Ok(named),
        };
    }
    // The engine shortened a long list by mounting from a working directory that mountinfo does not tell: Docker from the folder
    // two above `merged`, containerd from the one two above the upper layer.
    let upper = mount.options.iter().find_map(|o| o.strip_prefix("upperdir=")).map(Path::new);
    let two_above = |p: &Path| p.ancestors().nth(2).map(Path::to_owned);
    for base in [two_above(root), upper.filter(|u| u.is_absolute()).and_then(two_above)].into_iter().flatten()
    {
        let found: Vec<PathBuf> = named.iter().map(|p| base.join(p)).collect();
        if found.iter().all(|p| exists(p)) {
            return Ok(found);
        }
    }
    Err(refuse("names its layers relative to a folder that cannot be told"))
}

/// `36 35 98:0 /root /at opts [optional...] - fstype source superoptions`
fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|b| *b == b' ');
    let at = unescape(fields.nth(4)?);
    let mut fields = fields.skip_while(|f| *f != b"-").skip(1);
    let fstype = String::from_utf8(fields.next()?.to_vec()).ok()?;
    let options = fields.nth(1).unwrap_or_default();
    let options = String::from_utf8(unescape(options)).ok()?.split(',').map(str::to_owned).collect();
    Some(Mount { at: OsString::from_vec(at).into(), fstype, options })
}

/// The kernel writes blank, tab, newline and backslash as `\ooo`.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, others)) = rest.split_first() {
        let octal = (*first == b'\\')
            .then(|| others.get(..3))
            .flatten()
            .and_then(|d| std::str::from_utf8(d).ok())
            .and_then(|d| u8::from_str_radix(d, 8).ok());
        match octal {
            Some(byte) => {
                out.push(byte);
                rest = &others[3..];
            }
            None => {
                out.push(*first);
                rest = others;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(line: &str) -> Mount {
        parse_line(line.as_bytes()).expect("a mount")
    }

    #[test]
    fn reads_a_line_with_escapes_and_optional_fields() {
        let m = mount(
            r"1 2 0:3 / /a\040b rw shared:1 master:2 - overlay overlay rw,lowerdir=/x\040y:/z,upperdir=/u",
        );
        assert_eq!(m.at, Path::new("/a b"));
        assert_eq!(m.options[1], "lowerdir=/x y:/z");
        assert_eq!(mount("1 2 0:3 / /p rw - proc proc rw").fstype, "proc");
        assert_eq!(parse_line(b""), None);
        assert_eq!(parse_line(b"1 2 0:3 / /p rw"), None);
    }

    fn chosen(line: &str, there: &[&str]) -> Result<Vec<PathBuf>, Refusal> {
        choose(&[mount(line)], Path::new("/d/overlay2/ID/merged"), &|p| {
            there.iter().any(|t| Path::new(t) == p)
        })
    }

    #[test]
    fn layers_of_docker_and_containerd() {
        let docker = "1 2 0:3 / /d/overlay2/ID/merged rw - overlay overlay rw,lowerdir=/d/overlay2/l/A:/d/overlay2/l/B,upperdir=/d/overlay2/ID/diff,workdir=/d/overlay2/ID/work";
        let here = ["/d/overlay2/l/A", "/d/overlay2/l/B"];
        let want: Vec<PathBuf> = here.iter().map(PathBuf::from).collect();
        assert_eq!(chosen(docker, &here), Ok(want.clone()));
        assert!(
            chosen(docker, &here[..1])
                .expect_err("refused")
                .0
                .contains("/d/overlay2/l/B, which is not there")
        );
        let shortened =
            "1 2 0:3 / /d/overlay2/ID/merged rw - overlay overlay rw,lowerdir=l/A:l/B,upperdir=ID/diff";
        assert_eq!(chosen(shortened, &here), Ok(want.clone()));
        let containerd = "1 2 0:3 / /d/overlay2/ID/merged rw - overlay overlay rw,lowerdir=2/fs:1/fs,upperdir=/c/snapshots/3/fs";
        assert_eq!(
            chosen(containerd, &["/c/snapshots/2/fs", "/c/snapshots/1/fs"]),
            Ok(vec!["/c/snapshots/2/fs".into(), "/c/snapshots/1/fs".into()])
        );
        assert!(chosen(containerd, &[]).expect_err("refused").0.contains("cannot be told"));
        let one_by_one = "1 2 0:3 / /d/overlay2/ID/merged rw - overlay overlay rw,lowerdir+=/d/overlay2/l/A,lowerdir+=/d/overlay2/l/B";
        assert_eq!(chosen(one_by_one, &here), Ok(want));
        assert!(
            chosen("1 2 0:3 / /d/overlay2/ID/merged rw - overlay overlay rw,lowerdir=/a::/b", &[]).is_err()
        );
        assert!(chosen("1 2 0:3 / /d/overlay2/ID/merged rw - overlay overlay rw", &[]).is_err());
    }

    #[test]
    fn anything_else_is_its_own_lower_layer() {
        let root = Path::new("/d/merged");
        let btrfs = [
            mount("1 2 0:3 / /d/merged rw - overlay overlay rw,lowerdir=/a"),
            mount("1 2 0:3 / /d/merged rw - btrfs /dev/x rw"),
        ];
        assert_eq!(choose(&btrfs, root, &|_| true), Ok(vec![root.to_owned()]));
        assert_eq!(choose(&[], root, &|_| true), Ok(vec![root.to_owned()]));
    }
}
