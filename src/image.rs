//! Imported images: a root file system or a `docker save` archive becomes one archive, kept under its digest.
//!
//! Whatever is sent, what is kept is a `docker save` archive with one image, and its id (the SHA-256 of its
//! configuration, as Docker computes it) is known before any Docker has seen it. The same bytes give the same id on
//! every host and every day, so a pruned image comes back as itself. Files here are never changed, only added.

use flate2::read::GzDecoder;
use serde::Deserialize;
use serde_json::json;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What an import found and kept.
#[derive(Clone, Debug, PartialEq)]
pub struct Imported {
    /// `sha256:...`, as Docker names the image.
    pub image_id: String,
    /// SHA-256 of the kept archive.
    pub archive: String,
    /// Bytes of the kept archive.
    pub size: u64,
    /// SHA-256 of what was sent.
    pub source: String,
}

/// Why an upload is not an image, or could not be kept.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The bytes are at fault; the sentence says how.
    #[error("{0}")]
    NotAnImage(String),
    /// The disk is at fault.
    #[error("the archive could not be kept: {0}")]
    Io(#[from] io::Error),
}

/// The folder of kept archives. Cheap to clone.
#[derive(Clone)]
pub struct Archives {
    folder: Arc<PathBuf>,
}

impl Archives {
    /// Opens (and makes) the folder, and removes what an interrupted import left.
    pub fn open_folder(folder: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(folder)?;
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(PARTIAL) {
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(Archives { folder: Arc::new(folder.to_owned()) })
    }

    /// A file to receive an upload in.
    pub fn receive(&self) -> io::Result<Upload> {
        let path = self.folder.join(format!("{PARTIAL}{}", uuid::Uuid::new_v4()));
        let file = File::options().read(true).write(true).create_new(true).open(&path)?;
        Ok(Upload { file, path: Discard(path) })
    }

    /// Turns what was received into a kept archive. Reads and writes all of it: call it where blocking is fine.
    pub fn keep(&self, mut upload: Upload) -> Result<Imported, Error> {
        upload.file.seek(SeekFrom::Start(0))?;
        let source = digest(&upload.file)?;
        let mut plain = self.unpacked(upload)?;
        let image = match find_manifest(&mut plain.file)? {
            Some(manifest) => checked(&mut plain.file, &manifest)?,
            None => {
                let (wrapped, image) = self.wrapped(plain)?;
                plain = wrapped;
                image
            }
        };
        plain.file.sync_all()?;
        plain.file.seek(SeekFrom::Start(0))?;
        let archive = digest(&plain.file)?;
        let size = plain.file.metadata()?.len();
        std::fs::rename(&plain.path.0, self.path(&archive))?;
        File::open(&*self.folder)?.sync_all()?;
        Ok(Imported { image_id: format!("sha256:{image}"), archive, size, source })
    }

    /// Opens a kept archive by its digest.
    pub async fn open(&self, digest: &str) -> io::Result<tokio::fs::File> {
        if digest.len() != 64 || !digest.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a digest has 64 hexadecimal digits"));
        }
        tokio::fs::File::open(self.path(digest)).await
    }

    /// Forgets an archive that no image names any more.
    pub fn discard(&self, digest: &str) -> io::Result<()> {
        match std::fs::remove_file(self.path(digest)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn path(&self, digest: &str) -> PathBuf {
        self.folder.join(format!("{digest}.tar"))
    }

    /// The upload without compression.
    fn unpacked(&self, mut upload: Upload) -> Result<Upload, Error> {
        let mut magic = [0; 6];
        upload.file.seek(SeekFrom::Start(0))?;
        let read = upload.file.read(&mut magic)?;
        upload.file.seek(SeekFrom::Start(0))?;
        match &magic[..read] {
            [0x1f, 0x8b, ..] => {}
            [0xfd, b'7', b'z', b'X', b'Z', ..] => return Err(compressed("xz -d")),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => return Err(compressed("zstd -d")),
            b"BZh" | [b'B', b'Z', b'h', ..] => return Err(compressed("bzip2 -d")),
            [] => return Err(Error::NotAnImage("the file is empty".into())),
            _ => return Ok(upload),
        }
        let mut plain = self.receive()?;
        let mut reader = GzDecoder::new(BufReader::new(&upload.file));
        io::copy(&mut reader, &mut plain.file)
            .map_err(|error| Error::NotAnImage(format!("the gzip data is damaged: {error}")))?;
        plain.file.seek(SeekFrom::Start(0))?;
        Ok(plain)
    }

    /// A root file system as the one layer of an image. Nothing in it depends on when or where.
    fn wrapped(&self, mut rootfs: Upload) -> Result<(Upload, String), Error> {
        rootfs.file.seek(SeekFrom::Start(0))?;
        let layer = digest(&rootfs.file)?;
        let config = json!({
            "architecture": architecture(),
            "os": "linux",
            "created": "1970-01-01T00:00:00Z",
            "config": {"Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{layer}")]},
            "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "enoki image import"}],
        })
        .to_string();
        let image = hex(&Sha256::digest(config.as_bytes()));
        let manifest = json!([{
            "Config": format!("{image}.json"),
            "RepoTags": null,
            "Layers": [format!("{layer}/layer.tar")],
        }])
        .to_string();

        let archive = self.receive()?;
        let mut builder = tar::Builder::new(BufWriter::new(&archive.file));
        let mut add = |name: &str, size: u64, content: &mut dyn Read| {
            let mut header = tar::Header::new_gnu();
            header.set_size(size);
            header.set_mode(0o644);
            builder.append_data(&mut header, name, content)
        };
        add(&format!("{image}.json"), config.len() as u64, &mut config.as_bytes())?;
        rootfs.file.seek(SeekFrom::Start(0))?;
        let size = rootfs.file.metadata()?.len();
        add(&format!("{layer}/layer.tar"), size, &mut BufReader::new(&rootfs.file))?;
        add("manifest.json", manifest.len() as u64, &mut manifest.as_bytes())?;
        builder.into_inner()?.flush()?;
        Ok((archive, image))
    }
}

const PARTIAL: &str = ".partial-";

/// A file that goes with its owner, unless it was renamed.
pub struct Upload {
    pub file: File,
    path: Discard,
}

struct Discard(PathBuf);

impl Drop for Discard {
    fn drop(&mut self) {
        // Absent: it was renamed and is kept.
        let _ = std::fs::remove_file(&self.0);
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Manifest {
    config: String,
    layers: Vec<String>,
}

fn compressed(with: &str) -> Error {
    Error::NotAnImage(format!("the file is compressed: send it plain or with gzip (`{with}` makes it plain)"))
}

/// The manifest of a `docker save` archive. None: a readable tar that is not one, so a root file system.
fn find_manifest(file: &mut File) -> Result<Option<Vec<Manifest>>, Error> {
    file.seek(SeekFrom::Start(0))?;
    let damaged = |error: io::Error| Error::NotAnImage(format!("the file is not a tar archive: {error}"));
    let mut archive = tar::Archive::new(BufReader::new(&*file));
    let (mut manifest, mut entries) = (None, 0u64);
    for entry in archive.entries_with_seek().map_err(damaged)? {
        let entry = entry.map_err(damaged)?;
        entries += 1;
        let path = entry.path().map_err(damaged)?;
        if path.as_ref() == Path::new("manifest.json") {
            let text = read_small(entry)?;
            manifest = serde_json::from_slice(&text).ok();
        }
    }
    if entries == 0 {
        return Err(Error::NotAnImage("the archive holds no files".into()));
    }
    Ok(manifest)
}

/// Checks a `docker save` archive and gives its image's id.
fn checked(file: &mut File, manifest: &[Manifest]) -> Result<String, Error> {
    let [image] = manifest else {
        return Err(Error::NotAnImage(format!(
            "the archive holds {} images: save one at a time",
            manifest.len()
        )));
    };
    file.seek(SeekFrom::Start(0))?;
    let mut archive = tar::Archive::new(BufReader::new(&*file));
    let mut config = None;
    let mut missing: Vec<&String> = image.layers.iter().collect();
    for entry in archive.entries_with_seek()? {
        let entry = entry?;
        let path = entry.path()?.to_string_lossy().into_owned();
        missing.retain(|layer| **layer != path);
        if path == image.config {
            config = Some(hex(&Sha256::digest(read_small(entry)?)));
        }
    }
    if let Some(layer) = missing.first() {
        return Err(Error::NotAnImage(format!("the archive names the layer {layer} and does not hold it")));
    }
    config.ok_or_else(|| {
        Error::NotAnImage(format!(
            "the archive names the configuration {} and does not hold it",
            image.config
        ))
    })
}

/// Manifests and configurations are a few kilobytes.
fn read_small(entry: impl Read) -> Result<Vec<u8>, Error> {
    const MOST: u64 = 8 << 20;
    let mut text = Vec::new();
    entry.take(MOST + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MOST {
        return Err(Error::NotAnImage("the archive's manifest or configuration is larger than 8 MiB".into()));
    }
    Ok(text)
}

fn digest(file: &File) -> io::Result<String> {
    let mut hasher = Sha256::new();
    let mut reader = BufReader::with_capacity(1 << 20, file);
    io::copy(&mut reader, &mut hasher)?;
    Ok(hex(&hasher.finalize()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
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
mod tests {
    use super::*;

    fn rootfs() -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(5);
        header.set_mode(0o755);
        builder.append_data(&mut header, "bin/sh", &b"hello"[..]).unwrap();
        builder.into_inner().unwrap()
    }

    fn import(archives: &Archives, bytes: &[u8]) -> Result<Imported, Error> {
        let mut upload = archives.receive().unwrap();
        upload.file.write_all(bytes).unwrap();
        archives.keep(upload)
    }

    #[test]
    fn a_root_file_system_becomes_the_same_image_every_time() {
        let folder = tempfile::tempdir().unwrap();
        let archives = Archives::open_folder(folder.path()).unwrap();
        let first = import(&archives, &rootfs()).unwrap();
        assert_eq!(import(&archives, &rootfs()).unwrap(), first);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&rootfs()).unwrap();
        let packed = import(&archives, &gzip.finish().unwrap()).unwrap();
        assert_eq!((&packed.image_id, &packed.archive), (&first.image_id, &first.archive));

        // What is kept is itself a docker save archive of the same image.
        let kept = std::fs::read(archives.path(&first.archive)).unwrap();
        assert_eq!(import(&archives, &kept).unwrap().image_id, first.image_id);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing half-done stays");
    }

    #[test]
    fn what_is_no_image_is_refused_with_a_reason() {
        let folder = tempfile::tempdir().unwrap();
        let archives = Archives::open_folder(folder.path()).unwrap();
        for (bytes, words) in [
            (&b""[..], "empty"),
            (b"hello world", "not a tar"),
            (b"\xfd7zXZ\0rest", "xz -d"),
            (b"\x1f\x8bnot gzip", "damaged"),
        ] {
            let error = import(&archives, bytes).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
