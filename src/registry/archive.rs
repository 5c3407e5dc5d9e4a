//! What was uploaded becomes an image: its configuration, its layers where they lie in the file, and the manifest that
//! names them.
//!
//! It is a `docker save` archive of one image, or the tar of a root file system, which becomes the one layer of an
//! image. The ids are Docker's own and known before any Docker has seen it; nothing in them depends on when or where,
//! so the same bytes give the same image on every day. Every layer is checked against the configuration here: what
//! hosts would refuse is refused at the door.

use super::tar::{Entry, Span, walk};
use flate2::read::{GzDecoder, MultiGzDecoder};
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;

pub const MANIFEST_TYPE: &str = "application/vnd.docker.distribution.manifest.v2+json";
const CONFIG_TYPE: &str = "application/vnd.docker.container.image.v1+json";
const LAYER_TYPE: &str = "application/vnd.docker.image.rootfs.diff.tar";
const GZIP_TYPE: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
/// Manifests and configurations are a few kilobytes.
const SMALL: u64 = 4 << 20;
/// Docker mounts no more than that.
const LAYERS_MAX: usize = 127;

/// Why an upload is not an image, or could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The bytes are at fault; the sentence says how.
    #[error("{0}")]
    NotAnImage(String),
    /// The disk is at fault.
    #[error("the upload could not be read: {0}")]
    Io(#[from] io::Error),
}

fn not(why: impl Into<String>) -> Error {
    Error::NotAnImage(why.into())
}

/// An image that was found in a file.
#[derive(Debug)]
pub struct Found {
    /// Plain, whatever was sent.
    pub file: File,
    pub config: Vec<u8>,
    pub layers: Vec<Layer>,
    /// SHA-256 of what was sent.
    pub source: String,
}

/// One layer as the registry keeps it: a tar, or one in gzip.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    pub span: Span,
    /// `sha256:...` of these bytes.
    pub digest: String,
    gzip: bool,
}

impl Found {
    /// `sha256:...`, as Docker names the image.
    pub fn image_id(&self) -> String {
        digest_of(&self.config)
    }

    /// Of the configuration and the layers.
    pub fn size(&self) -> u64 {
        self.layers.iter().map(|layer| layer.span.length).sum::<u64>() + self.config.len() as u64
    }

    /// What the registry names the image by: always the same bytes for the same image.
    pub fn manifest(&self) -> Vec<u8> {
        let layer = |layer: &Layer| {
            let kind = if layer.gzip { GZIP_TYPE } else { LAYER_TYPE };
            json!({"mediaType": kind, "size": layer.span.length, "digest": layer.digest})
        };
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": {"mediaType": CONFIG_TYPE, "size": self.config.len(), "digest": self.image_id()},
            "layers": self.layers.iter().map(layer).collect::<Vec<_>>(),
        });
        manifest.to_string().into_bytes()
    }
}

/// `sha256:...`
pub fn digest_of(bytes: &[u8]) -> String {
    named(Sha256::digest(bytes))
}

fn named(hash: impl AsRef<[u8]>) -> String {
    let hex: String = hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// Looks what was uploaded. `plain` makes a file for what has to be unpacked. Reads all of it, some of it twice: call it
/// where blocking is fine.
pub fn read(upload: File, plain: impl FnOnce() -> io::Result<Room>) -> Result<Found, Error> {
    let source = digest(&mut at(&upload, None)?)?;
    let (file, packed) = unpacked(upload, plain)?;
    let mut names = BTreeMap::new();
    let mut entries = 0u64;
    let broken = |why: String| not(format!("the file is not a tar archive: {why}"));
    walk(&file, |name, entry| {
        entries += 1;
        if cleaned(name) == "manifest.json" {
            names.insert("manifest.json".to_owned(), entry);
        }
    })
    .map_err(broken)?;
    if entries == 0 {
        return Err(not("the archive holds no files"));
    }
    let manifest = match names.get("manifest.json") {
        Some(Entry::File(span)) => serde_json::from_slice::<Vec<Saved>>(&small(&file, *span)?).ok(),
        _ => None,
    };
    let (config, layers) = match manifest {
        Some(saved) => from_archive(&file, &saved)?,
        None if packed => from_root_file_system(&file, digest(&mut at(&file, None)?)?)?,
        None => from_root_file_system(&file, source.clone())?,
    };
    Ok(Found { file, config, layers, source: source.trim_start_matches("sha256:").to_owned() })
}

/// One image of `docker save`'s manifest.json.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    layers: Vec<String>,
}

/// What of an image's configuration says which layers it has.
#[derive(Deserialize)]
struct Config {
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<String>,
}

fn from_archive(file: &File, saved: &[Saved]) -> Result<(Vec<u8>, Vec<Layer>), Error> {
    let [image] = saved else {
        return Err(not(format!("the archive holds {} images: save one at a time", saved.len())));
    };
    if image.layers.len() > LAYERS_MAX {
        return Err(not(format!("the image has {} layers; at most {LAYERS_MAX}", image.layers.len())));
    }
    // Older Dockers save a layer that is there twice as a link to the first: links are kept, too.
    let wanted: BTreeSet<String> = image.layers.iter().chain([&image.config]).map(|n| cleaned(n)).collect();
    let mut entries = BTreeMap::new();
    walk(file, |name, entry| {
        let name = cleaned(name);
        if wanted.contains(&name) || name.ends_with("/layer.tar") || name.starts_with("blobs/") {
            entries.insert(name, entry);
        }
    })
    .map_err(not)?;
    let find = |what: &str, name: &str| {
        located(&entries, name)
            .ok_or_else(|| not(format!("the archive names the {what} {name} and does not hold it")))
    };
    let config = small(file, find("configuration", &image.config)?)?;
    let named: Config = serde_json::from_slice(&config)
        .map_err(|error| not(format!("the configuration {} is not an image's: {error}", image.config)))?;
    let ids = named.rootfs.diff_ids;
    if ids.len() != image.layers.len() {
        return Err(not(format!(
            "the configuration names {} layers, the manifest {}",
            ids.len(),
            image.layers.len()
        )));
    }
    let mut layers = Vec::new();
    for (name, id) in image.layers.iter().zip(&ids) {
        layers.push(layer(file, name, find("layer", name)?, id)?);
    }
    Ok((config, layers))
}

/// A path without what changes nothing in it. One that leaves the archive leads nowhere, as it stays as it is.
fn cleaned(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/').filter(|part| !matches!(*part, "" | ".")) {
        match (part, parts.last()) {
            ("..", Some(last)) if *last != ".." => drop(parts.pop()),
            _ => parts.push(part),
        }
    }
    parts.join("/")
}

/// The file of this name, through at most one link.
fn located(entries: &BTreeMap<String, Entry>, name: &str) -> Option<Span> {
    let name = cleaned(name);
    match entries.get(&name)? {
        Entry::File(span) => Some(*span),
        Entry::Link(to) => {
            let folder = name.rsplit_once('/').map_or("", |(folder, _)| folder);
            // A symbolic link counts from its folder, a hard one from the top.
            let places = [cleaned(&format!("{folder}/{to}")), cleaned(to)];
            places.iter().find_map(|place| match entries.get(place) {
                Some(Entry::File(span)) => Some(*span),
                _ => None,
            })
        }
        Entry::Other => None,
    }
}

/// Checks a layer against what the configuration says of it.
fn layer(file: &File, name: &str, span: Span, diff_id: &str) -> Result<Layer, Error> {
    let mut magic = [0; 4];
    let _ = at(file, Some(span))?.read(&mut magic)?;
    let gzip = magic.starts_with(&[0x1f, 0x8b]);
    let stored = digest(&mut at(file, Some(span))?)?;
    let holds = if gzip {
        let mut plain = MultiGzDecoder::new(at(file, Some(span))?);
        digest(&mut plain)
            .map_err(|error| not(format!("the gzip data of layer {name} is damaged: {error}")))?
    } else {
        stored.clone()
    };
    if holds != diff_id {
        return Err(not(format!(
            "the layer {name} is not what the configuration says: it is {holds}, not {diff_id}"
        )));
    }
    Ok(Layer { span, digest: stored, gzip })
}

/// A root file system as the one layer of an image.
fn from_root_file_system(file: &File, digest: String) -> Result<(Vec<u8>, Vec<Layer>), Error> {
    let span = Span { offset: 0, length: file.metadata()?.len() };
    let config: Value = json!({
        "architecture": architecture(),
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": {"Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [digest]},
        "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "enoki image import"}],
    });
    Ok((config.to_string().into_bytes(), vec![Layer { span, digest, gzip: false }]))
}

/// The upload without compression, and whether it had one.
fn unpacked(upload: File, plain: impl FnOnce() -> io::Result<Room>) -> Result<(File, bool), Error> {
    let mut magic = [0; 6];
    let read = upload.read_at(&mut magic, 0)?;
    let compressed = |with: &str| {
        not(format!("the file is compressed: send it plain or with gzip (`{with}` makes it plain)"))
    };
    match &magic[..read] {
        [0x1f, 0x8b, ..] => {}
        [0xfd, b'7', b'z', b'X', b'Z', ..] => return Err(compressed("xz -d")),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => return Err(compressed("zstd -d")),
        [b'B', b'Z', b'h', ..] => return Err(compressed("bzip2 -d")),
        [] => return Err(not("the file is empty")),
        _ => return Ok((upload, false)),
    }
    let mut room = plain()?;
    let mut packed = GzDecoder::new(at(&upload, None)?);
    let mut chunk = vec![0; 256 << 10];
    loop {
        let length =
            packed.read(&mut chunk).map_err(|error| not(format!("the gzip data is damaged: {error}")))?;
        if length == 0 {
            return Ok((room.file, true));
        }
        room.write_all(&chunk[..length])?;
    }
}

/// A file that is written to as long as the disk below it keeps some room: an upload, and what small uploads unpack to,
/// must not take the last of it.
#[derive(Debug)]
pub struct Room {
    pub file: File,
    unchecked: u64,
}

/// Left free for everybody else.
const SPARE: u64 = 512 << 20;
/// The disk is asked this often.
const STRIDE: u64 = 32 << 20;

impl Room {
    pub fn new(file: File) -> Self {
        Room { file, unchecked: STRIDE }
    }

    /// To be called before so many more bytes are written.
    pub fn take(&mut self, bytes: u64) -> io::Result<()> {
        self.unchecked += bytes;
        if self.unchecked >= STRIDE {
            self.unchecked = 0;
            let disk = nix::sys::statvfs::fstatvfs(&self.file)?;
            // In the registry it takes its room once more.
            let taken = self.file.metadata()?.len();
            if disk.blocks_available() as u64 * disk.fragment_size() as u64 <= SPARE + STRIDE + taken {
                return Err(io::Error::new(
                    io::ErrorKind::StorageFull,
                    format!("the server's disk would be full after {} MiB of it", taken >> 20),
                ));
            }
        }
        Ok(())
    }
}

impl Write for Room {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.take(bytes.len() as u64)?;
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// A part of a file from its beginning; all of it without a span.
fn at(file: &File, span: Option<Span>) -> io::Result<impl Read> {
    let span = span.unwrap_or(Span { offset: 0, length: u64::MAX });
    let mut file = file.try_clone()?;
    file.seek(SeekFrom::Start(span.offset))?;
    Ok(BufReader::with_capacity(256 << 10, file).take(span.length))
}

fn small(file: &File, span: Span) -> Result<Vec<u8>, Error> {
    if span.length > SMALL {
        return Err(not(format!(
            "the archive's manifest or configuration is larger than {} MiB",
            SMALL >> 20
        )));
    }
    let mut text = Vec::new();
    at(file, Some(span))?.read_to_end(&mut text)?;
    Ok(text)
}

/// `sha256:...` of all that there is to read.
pub fn digest(reader: &mut impl Read) -> io::Result<String> {
    let mut hasher = Sha256::new();
    let mut chunk = vec![0; 256 << 10];
    loop {
        match reader.read(&mut chunk)? {
            0 => return Ok(named(hasher.finalize())),
            length => hasher.update(&chunk[..length]),
        }
    }
}

/// The machine's architecture in Docker's words.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests;
