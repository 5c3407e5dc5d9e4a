//! Walking a tar that anybody may have sent: header by header, with everything bounded and nothing unpacked.
//!
//! What is looked for are names and where their bytes lie in the file, so that a layer can be sent on from there. The
//! `tar` crate reads a name of any length into memory, which an upload must not be able to ask for; so the walk is
//! ours and the header is the crate's.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use tar::{EntryType, GnuExtSparseHeader, Header};

/// Names and the records of POSIX headers are short.
const RECORDS_MAX: u64 = 1 << 20;
const BLOCK: u64 = 512;

/// Where bytes lie in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub offset: u64,
    pub length: u64,
}

/// What an entry is, as far as images need it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    File(Span),
    /// Symbolic or hard, with what stands in it.
    Link(String),
    /// Folders, devices, sparse files: never part of a `docker save` archive.
    Other,
}

/// Calls `each` for every entry in turn, with its name as it stands there. The error is a sentence's end: why it is not
/// a tar.
pub fn walk(file: &File, mut each: impl FnMut(&str, Entry)) -> Result<(), String> {
    let end = file.metadata().map_err(|error| error.to_string())?.len();
    let mut reader = BufReader::new(file);
    let mut position = 0;
    let mut told = Told::default();
    loop {
        reader.seek(SeekFrom::Start(position)).map_err(text)?;
        let mut block = [0; BLOCK as usize];
        match reader.read_exact(&mut block) {
            Ok(()) => {}
            // Some programs leave out the blocks of zeros at the end.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof && position == end => return Ok(()),
            Err(_) => return Err(format!("it breaks off at byte {end}")),
        }
        if block.iter().all(|byte| *byte == 0) {
            return Ok(());
        }
        let header = Header::from_byte_slice(&block);
        let sum = block.iter().enumerate().map(|(at, byte)| match at {
            // The sum is taken with spaces in its own place.
            148..156 => u32::from(b' '),
            _ => u32::from(*byte),
        });
        if header.cksum().ok() != Some(sum.sum()) {
            return Err(format!("at byte {position} there is no header of one"));
        }
        position += BLOCK;
        let kind = header.entry_type();
        if kind.is_gnu_sparse() {
            position = past_sparse_map(&mut reader, header, position)?;
        }
        let size = told.size.take().map_or_else(|| header.entry_size().map_err(text), Ok)?;
        let next = size.checked_next_multiple_of(BLOCK).and_then(|size| position.checked_add(size));
        let next = next.filter(|_| position + size <= end).ok_or(format!("it breaks off at byte {end}"))?;
        match kind {
            EntryType::XHeader | EntryType::GNULongName | EntryType::GNULongLink => {
                let mut records = Vec::new();
                if size > RECORDS_MAX {
                    return Err(format!("a name in it has {size} bytes"));
                }
                reader.by_ref().take(size).read_to_end(&mut records).map_err(text)?;
                told.learn(kind, &records);
            }
            EntryType::XGlobalHeader => {}
            kind => {
                let own = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                let name = told.name.take().unwrap_or_else(|| own(&header.path_bytes()));
                let link = told.link.take().or_else(|| header.link_name_bytes().map(|link| own(&link)));
                let entry = match (kind, link) {
                    (EntryType::Regular | EntryType::Continuous, _) => {
                        Entry::File(Span { offset: position, length: size })
                    }
                    (EntryType::Symlink | EntryType::Link, Some(link)) => Entry::Link(link),
                    _ => Entry::Other,
                };
                each(&name, entry);
            }
        }
        position = next;
    }
}

fn text(error: io::Error) -> String {
    error.to_string()
}

/// What the headers before an entry have told of it.
#[derive(Default)]
struct Told {
    name: Option<String>,
    link: Option<String>,
    size: Option<u64>,
}

impl Told {
    fn learn(&mut self, kind: EntryType, records: &[u8]) {
        let own = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned();
        match kind {
            EntryType::GNULongName => self.name = Some(own(records)),
            EntryType::GNULongLink => self.link = Some(own(records)),
            _ => {
                for record in tar::PaxExtensions::new(records).flatten() {
                    match record.key() {
                        Ok("path") => self.name = Some(own(record.value_bytes())),
                        Ok("linkpath") => self.link = Some(own(record.value_bytes())),
                        Ok("size") => self.size = record.value().ok().and_then(|size| size.parse().ok()),
                        _ => {}
                    }
                }
            }
        }
    }
}

/// A sparse file's map may go on in blocks of its own before the bytes.
fn past_sparse_map(reader: &mut impl Read, header: &Header, mut position: u64) -> Result<u64, String> {
    let mut more = header.as_gnu().is_some_and(|gnu| gnu.is_extended());
    while more {
        let mut block = GnuExtSparseHeader::new();
        reader.read_exact(block.as_mut_bytes()).map_err(|_| "it breaks off in a sparse file".to_owned())?;
        position += BLOCK;
        more = block.is_extended();
    }
    Ok(position)
}
