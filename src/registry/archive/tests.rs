//! Archives that are what they should be, and those that somebody made up.

use super::*;
use flate2::Compression;
use flate2::write::GzEncoder;

type Files<'a> = Vec<(&'a str, Vec<u8>)>;

fn tar(files: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut builder = ::tar::Builder::new(Vec::new());
    for (path, bytes) in files {
        let mut header = ::tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o755);
        builder.append_data(&mut header, path, bytes.as_slice()).unwrap();
    }
    builder.into_inner().unwrap()
}

fn rootfs() -> Vec<u8> {
    tar(&[("bin/sh", b"hello".to_vec()), (&"long/".repeat(60), b"".to_vec())])
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn open(bytes: &[u8]) -> Result<Found, Error> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    read(file, || Ok(Room::new(tempfile::tempfile()?)))
}

fn saved(config: &str, layers: &[&str]) -> Vec<u8> {
    json!([{"Config": config, "RepoTags": ["a:1"], "Layers": layers}]).to_string().into_bytes()
}

fn config(diff_ids: &[String]) -> Vec<u8> {
    json!({"os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}}).to_string().into_bytes()
}

/// A good archive of two layers, the second in gzip.
fn two_layers() -> Files<'static> {
    let (one, two) = (rootfs(), tar(&[("etc/motd", b"two".to_vec())]));
    let config = config(&[digest_of(&one), digest_of(&two)]);
    vec![
        ("c.json", config),
        ("one/layer.tar", one),
        ("two/layer.tar", gzip(&two)),
        ("manifest.json", saved("c.json", &["one/layer.tar", "two/layer.tar"])),
    ]
}

#[test]
fn a_root_file_system_becomes_the_same_image_every_time() {
    let first = open(&rootfs()).unwrap();
    for again in [rootfs(), gzip(&rootfs())] {
        let again = open(&again).unwrap();
        assert_eq!(again.manifest(), first.manifest());
        assert_eq!(again.image_id(), first.image_id());
    }
    assert_eq!(first.layers[0].digest, digest_of(&rootfs()));
    assert_eq!(first.size(), (rootfs().len() + first.config.len()) as u64);
    assert_eq!(format!("sha256:{}", first.source), digest_of(&rootfs()));
    // As Docker would call it, on this day as on every other: what hosts had before stays what they have.
    let text = String::from_utf8(first.config.clone()).unwrap();
    assert!(text.contains("1970-01-01T00:00:00Z") && !text.contains("202"), "{text}");
}

#[test]
fn a_saved_image_keeps_its_id_and_its_layers() {
    let files = two_layers();
    let found = open(&tar(&files)).unwrap();
    assert_eq!(found.config, files[0].1);
    let digests: Vec<_> = found.layers.iter().map(|layer| layer.digest.clone()).collect();
    assert_eq!(digests, [digest_of(&files[1].1), digest_of(&files[2].1)]);
    for (layer, (_, bytes)) in found.layers.iter().zip(&files[1..]) {
        let mut read = vec![0; layer.span.length as usize];
        found.file.read_exact_at(&mut read, layer.span.offset).unwrap();
        assert_eq!(&read, bytes, "the layer lies where it is said to");
    }
    let manifest: Value = serde_json::from_slice(&found.manifest()).unwrap();
    let kinds: Vec<_> =
        manifest["layers"].as_array().unwrap().iter().map(|l| l["mediaType"].clone()).collect();
    assert_eq!(kinds, [LAYER_TYPE, GZIP_TYPE]);
    assert_eq!(manifest["config"]["digest"], found.image_id());
    // The order in which they lie, and how they are called, is not what they are.
    let mut other = two_layers();
    other.rotate_left(2);
    assert_eq!(open(&tar(&other)).unwrap().manifest(), found.manifest());
}

#[test]
fn a_layer_that_is_a_link_is_the_one_it_leads_to() {
    let layer = rootfs();
    let mut builder = ::tar::Builder::new(Vec::new());
    let ids = [digest_of(&layer), digest_of(&layer)];
    for (path, bytes) in [
        ("one/layer.tar", layer.clone()),
        ("c.json", config(&ids)),
        ("manifest.json", saved("c.json", &["one/layer.tar", "two/layer.tar"])),
    ] {
        let mut header = ::tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        builder.append_data(&mut header, path, bytes.as_slice()).unwrap();
    }
    let link = |to: &str| {
        let mut builder = ::tar::Builder::new(builder.get_ref().clone());
        let mut header = ::tar::Header::new_gnu();
        header.set_entry_type(::tar::EntryType::Symlink);
        header.set_size(0);
        builder.append_link(&mut header, "two/layer.tar", to).unwrap();
        open(&builder.into_inner().unwrap())
    };
    let found = link("../one/layer.tar").unwrap();
    assert_eq!(found.layers[0], found.layers[1]);
    for out in ["/etc/shadow", "../../../etc/shadow", "two/layer.tar"] {
        let refused = link(out).unwrap_err().to_string();
        assert!(refused.contains("does not hold it"), "{out}: {refused}");
    }
}

#[test]
fn what_is_no_image_is_refused_with_a_reason() {
    let whole = tar(&two_layers());
    let with = |name: &str, bytes: Vec<u8>| {
        let mut files = two_layers();
        files.iter_mut().find(|(path, _)| *path == name).unwrap().1 = bytes;
        tar(&files)
    };
    let mut flipped = two_layers()[1].1.clone();
    flipped[600] ^= 1;
    let mut torn = gzip(&rootfs());
    torn.truncate(torn.len() / 2);
    let twice = json!([{"Config": "c.json", "Layers": []}, {"Config": "c.json", "Layers": []}]);
    for (bytes, words) in [
        (b"".to_vec(), "empty"),
        (b"hello world".to_vec(), "not a tar"),
        (b"x".repeat(2048), "not a tar"),
        (vec![0; 1024], "no files"),
        (b"\xfd7zXZ\0rest".to_vec(), "xz -d"),
        (b"\x28\xb5\x2f\xfdrest".to_vec(), "zstd -d"),
        (b"BZh9rest".to_vec(), "bzip2 -d"),
        (b"\x1f\x8bnot gzip".to_vec(), "damaged"),
        (torn.clone(), "damaged"),
        (whole[..whole.len() / 2].to_vec(), "breaks off"),
        (with("one/layer.tar", flipped), "is not what the configuration says"),
        (with("two/layer.tar", torn), "damaged"),
        (with("c.json", b"{}".to_vec()), "not an image's"),
        (with("c.json", config(&[])), "names 0 layers"),
        (with("manifest.json", saved("c.json", &["one/layer.tar"])), "names 2 layers"),
        (with("manifest.json", saved("c.json", &["none/layer.tar", "one/layer.tar"])), "does not hold it"),
        (with("manifest.json", saved("d.json", &[])), "configuration d.json"),
        (with("manifest.json", saved("c.json", &["../one/layer.tar", "/etc/passwd"])), "does not hold it"),
        (with("manifest.json", saved("c.json", &["one/layer.tar"; 128])), "at most 127"),
        (with("manifest.json", twice.to_string().into_bytes()), "2 images"),
        (with("c.json", b" ".repeat(5 << 20)), "larger than 4 MiB"),
    ] {
        match open(&bytes) {
            Err(Error::NotAnImage(why)) => assert!(why.contains(words), "{words}: {why}"),
            other => panic!("{words}: {other:?}"),
        }
    }
}

/// Sizes and names that would have to be believed.
#[test]
fn nothing_is_taken_into_memory_because_a_header_says_so() {
    let header = |kind: ::tar::EntryType, size: u64| {
        let mut header = ::tar::Header::new_gnu();
        header.set_path("name").unwrap();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_cksum();
        header.as_bytes().to_vec()
    };
    for (kind, size, words) in [
        (::tar::EntryType::Regular, 1 << 60, "breaks off"),
        (::tar::EntryType::Regular, u64::MAX, "breaks off"),
        (::tar::EntryType::GNULongName, 1 << 40, "breaks off"),
        (::tar::EntryType::XHeader, u64::MAX - 1, "breaks off"),
    ] {
        let refused = open(&[header(kind, size), vec![b'x'; 4096]].concat()).unwrap_err().to_string();
        assert!(refused.contains(words), "{kind:?} {size}: {refused}");
    }
    // A name that is there in full, and far too long.
    let long = 2 << 20;
    let bytes = [header(::tar::EntryType::GNULongName, long), vec![b'x'; long as usize], rootfs()].concat();
    let refused = open(&bytes).unwrap_err().to_string();
    assert!(refused.contains("a name in it has"), "{refused}");
    // The size of a POSIX header counts, not the one of the entry.
    let record = b"21 size=999999999999\n";
    let mut block = record.to_vec();
    block.resize(512, 0);
    let bytes = [
        header(::tar::EntryType::XHeader, record.len() as u64),
        block,
        header(::tar::EntryType::Regular, 1),
        vec![0; 4096],
    ];
    let refused = open(&bytes.concat()).unwrap_err().to_string();
    assert!(refused.contains("breaks off"), "{refused}");
}
