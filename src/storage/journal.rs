//! What a journal must look like before it may be replayed.
//!
//! The engine stops replaying a journal at the first byte it does not understand and cuts the rest off. That is right for
//! a write that the end of the process tore apart, and wrong for damage to older bytes: everything after it, all of it
//! acknowledged, would silently vanish. So the journals are read here first.
//!
//! Every write carries its round number and the last round that was on disk before it ([`super::keys`]). Where reading
//! stops, this decides:
//! - Nothing intact follows: a torn write. It was never acknowledged, and is cut off with a warning.
//! - Intact rounds follow that were written before the damaged one was synced: a power failure kept some blocks and lost
//!   others. Nothing in there was promised; it is cut off with a warning.
//! - Anything else: acknowledged data would be lost, and the store does not open.
//!
//! Layout of a journal file (fjall 3, integers little endian): writes, one after the other, each
//! `1, items u32, sequence u64`, then its items, then `3, xxh3-64 of the items u64, "FJL" 3`. An item is
//! `2, type u8, compression u8, table u64, key length u16, value length u32, stored length u32, key, value` or, for an
//! emptied table, `4, table u64`. The newest file may end in zeros.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::Read;
use std::path::{Path, PathBuf};

use rustix::fs::SeekFrom;
use xxhash_rust::xxh3::xxh3_64;

use super::Error;
use super::keys::{self, Round};

const START: u8 = 1;
const ITEM: u8 = 2;
const END: u8 = 3;
const CLEAR: u8 = 4;
const TRAILER: &[u8] = b"FJL\x03";
const VERSION_MARKER: &str = "version";
const TABLES: &str = "keyspaces";
/// The engine's list of its tables, which it has from the beginning.
const FIRST_TABLE: &str = "0/current";

/// Checks every journal in the engine's directory, and cuts off a torn tail.
///
/// # Errors
/// [`Error::CorruptJournal`] if replay would lose acknowledged data, [`Error::Path`] if the tables are gone,
/// [`Error::Storage`] if a file cannot be read or cut.
pub fn check(directory: &Path) -> Result<(), Error> {
    let reading = |source| Error::path("read the journals in", directory, source);
    if !directory.try_exists().map_err(reading)? {
        return Ok(());
    }
    let files = journal_files(directory).map_err(reading)?;
    if !is_complete(directory).map_err(reading)? {
        return discard_unfinished(directory, &files);
    }
    // The engine would make new ones, and then its journals say something else than before.
    let tables = directory.join(TABLES);
    if !tables.join(FIRST_TABLE).try_exists().map_err(reading)? {
        let gone = std::io::Error::other(
            "they are gone; nothing was changed: put them back, or empty the data directory, which then is one of a new broker",
        );
        return Err(Error::path("open the tables in", &tables, gone));
    }
    let mut last_round = None;
    for (at, file) in files.iter().enumerate() {
        let bytes = read_data(file).map_err(reading)?;
        let damage = walk(&bytes, file, &mut last_round)?;
        let Some(damage) = damage else { continue };
        let next = files[at + 1..].iter().find_map(|later| first_round(later).transpose()).transpose();
        judge(file, &bytes, &damage, last_round, next.map_err(reading)?)?;
        cut(file, &damage).map_err(|source| Error::storage("cut a torn journal", source))?;
    }
    Ok(())
}

/// For the fuzz targets: follows a file with these bytes, and checks that what is left without the damage is intact.
#[cfg(feature = "fuzzing")]
pub fn follow(bytes: &[u8]) {
    let (file, mut last_round) = (Path::new("0.jnl"), None);
    let Ok(Some(damage)) = walk(bytes, file, &mut last_round) else { return };
    // Whether it is cut off or refused, it is judged without a panic.
    let _ = judge(file, bytes, &damage, last_round, None);
    let mut again = None;
    let left = walk(&bytes[..damage.position], file, &mut again);
    assert!(matches!(left, Ok(None)), "damage is left after the cut");
    assert_eq!(again, last_round);
}

/// Where a file stops making sense.
struct Damage {
    position: usize,
    what: &'static str,
}

/// One intact write.
struct Write {
    end: usize,
    round: Option<Round>,
}

/// Follows intact writes from the start of a file. Rounds must follow each other without a gap.
fn walk(bytes: &[u8], file: &Path, last_round: &mut Option<u64>) -> Result<Option<Damage>, Error> {
    let mut position = 0;
    while position < bytes.len() {
        let write = match parse(bytes, position) {
            Ok(write) => write,
            Err(_) if bytes[position..].iter().all(|byte| *byte == 0) => return Ok(None),
            Err(what) => return Ok(Some(Damage { position, what })),
        };
        if let Some(round) = write.round {
            if last_round.is_some_and(|last| round.number != last + 1) {
                return Err(corrupt(file, position, "writes before it are missing"));
            }
            *last_round = Some(round.number);
        }
        position = write.end;
    }
    Ok(None)
}

/// Whether the damage may be cut off. `next` is the first round of the files after this one.
fn judge(
    file: &Path,
    bytes: &[u8],
    damage: &Damage,
    last_round: Option<u64>,
    next: Option<Round>,
) -> Result<(), Error> {
    let error = || Err(corrupt(file, damage.position, damage.what));
    match (next, last_round) {
        (Some(next), Some(last)) if next.number == last + 1 => {}
        (Some(_), _) => return error(),
        (None, _) => {}
    }
    let Some((first, synced)) = intact_after(bytes, damage.position + 1, last_round) else { return Ok(()) };
    let lost = last_round.map_or(first.saturating_sub(1), |last| last + 1);
    if first == lost || synced >= lost { error() } else { Ok(()) }
}

/// The first intact round after a position, and the highest round that it or a later one knows to be synced.
fn intact_after(bytes: &[u8], from: usize, last_round: Option<u64>) -> Option<(u64, u64)> {
    let mut found: Option<(u64, u64)> = None;
    let mut position = from;
    while position < bytes.len() {
        let Some(skipped) = bytes[position..].iter().position(|byte| *byte == START) else { break };
        position += skipped;
        match parse(bytes, position) {
            Ok(write) => {
                // A write that is older than the damage is a stray copy, not evidence.
                if let Some(round) =
                    write.round.filter(|round| last_round.is_none_or(|last| round.number > last))
                {
                    let (first, synced) = found.unwrap_or((round.number, round.synced));
                    found = Some((first, synced.max(round.synced)));
                }
                position = write.end;
            }
            Err(_) => position += 1,
        }
    }
    found
}

/// Reads the write that starts at a position.
fn parse(bytes: &[u8], position: usize) -> Result<Write, &'static str> {
    const TORN: &str = "a write is not complete";
    let mut cursor = Cursor { bytes, at: position };
    if cursor.byte().ok_or(TORN)? != START {
        return Err("a write does not start where one should");
    }
    let items = u32::from_le_bytes(cursor.array().ok_or(TORN)?);
    let _sequence = cursor.array::<8>().ok_or(TORN)?;
    let start = cursor.at;
    let mut round = None;
    for _ in 0..items {
        match cursor.byte().ok_or(TORN)? {
            ITEM => {
                let _type_and_compression = cursor.array::<2>().ok_or(TORN)?;
                let _table = cursor.array::<8>().ok_or(TORN)?;
                let key_bytes = u16::from_le_bytes(cursor.array().ok_or(TORN)?);
                let _value_bytes = cursor.array::<4>().ok_or(TORN)?;
                let stored_bytes = u32::from_le_bytes(cursor.array().ok_or(TORN)?);
                let key = cursor.slice(usize::from(key_bytes)).ok_or(TORN)?;
                let value = cursor.slice(stored_bytes as usize).ok_or(TORN)?;
                if key == keys::ROUND {
                    round = Round::decode(value);
                }
            }
            CLEAR => {
                cursor.array::<8>().ok_or(TORN)?;
            }
            _ => return Err("a write contains something that is not a row"),
        }
    }
    let content = &bytes[start..cursor.at];
    if cursor.byte().ok_or(TORN)? != END {
        return Err("a write does not end where it should");
    }
    let checksum = u64::from_le_bytes(cursor.array().ok_or(TORN)?);
    if cursor.slice(TRAILER.len()).ok_or(TORN)? != TRAILER {
        return Err("a write does not end as it should");
    }
    if xxh3_64(content) != checksum {
        return Err("the checksum of a write does not match");
    }
    Ok(Write { end: cursor.at, round })
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn slice(&mut self, length: usize) -> Option<&'a [u8]> {
        let end = self.at.checked_add(length)?;
        let slice = self.bytes.get(self.at..end)?;
        self.at = end;
        Some(slice)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.slice(N)?.try_into().ok()
    }

    fn byte(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }
}

fn first_round(file: &Path) -> std::io::Result<Option<Round>> {
    let bytes = read_data(file)?;
    let mut position = 0;
    while let Ok(write) = parse(&bytes, position) {
        if write.round.is_some() {
            return Ok(write.round);
        }
        position = write.end;
    }
    Ok(None)
}

fn cut(file: &Path, damage: &Damage) -> std::io::Result<()> {
    tracing::warn!(
        file = %file.display(),
        position = damage.position,
        reason = damage.what,
        "cut off the end of a journal; what it held was never synced"
    );
    let file = OpenOptions::new().write(true).open(file)?;
    file.set_len(damage.position as u64)?;
    file.sync_all()
}

fn corrupt(file: &Path, position: usize, what: &'static str) -> Error {
    Error::CorruptJournal { file: file.to_owned(), position: position as u64, what }
}

/// Journals in the order in which they were written.
fn journal_files(directory: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension() == Some(OsStr::new("jnl"))
            && let Some(number) =
                path.file_stem().and_then(OsStr::to_str).and_then(|stem| stem.parse::<u64>().ok())
        {
            files.push((number, path));
        }
    }
    files.sort_unstable();
    Ok(files.into_iter().map(|(_, path)| path).collect())
}

/// A file's bytes up to where only a hole follows: journals are created at their full length, without blocks.
pub fn read_data(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let mut end = 0;
    while let Ok(data) = rustix::fs::seek(&file, SeekFrom::Data(end)) {
        end = rustix::fs::seek(&file, SeekFrom::Hole(data))?;
    }
    if end == 0 {
        return Ok(Vec::new());
    }
    rustix::fs::seek(&file, SeekFrom::Start(0))?;
    let mut bytes = Vec::with_capacity(usize::try_from(end).unwrap_or(0));
    file.by_ref().take(end).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The engine writes its version marker last when it is created.
fn is_complete(directory: &Path) -> std::io::Result<bool> {
    match std::fs::metadata(directory.join(VERSION_MARKER)) {
        Ok(found) => Ok(found.len() > 0),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Removes an engine whose creation was interrupted, so that it can be created again. One that holds anything stays.
fn discard_unfinished(directory: &Path, journals: &[PathBuf]) -> Result<(), Error> {
    let reading = |source| Error::storage("read an unfinished store", source);
    for journal in journals {
        if read_data(journal).map_err(reading)?.iter().any(|byte| *byte != 0) {
            return Err(corrupt(journal, 0, "it holds data, but the version marker beside it is missing"));
        }
    }
    let tables = directory.join(TABLES);
    if tables.try_exists().map_err(reading)? && tables.read_dir().map_err(reading)?.next().is_some() {
        let missing = std::io::Error::other("it holds tables, but its version marker is missing");
        return Err(reading(missing));
    }
    std::fs::remove_dir_all(directory).map_err(|source| Error::storage("remove an unfinished store", source))
}
