//! One object as a file: a header of 64 bytes and a body, raw or compressed. The name is the hash of the raw bytes, so how they lie
//! on the disk is no part of it. Knows nothing of folders, and of content only whether it is a manifest.

use std::io::{self, Read, Write};

use crate::error::{Error, Result};
use crate::hash::{Hash, seal};
use crate::threads::together;

/// Most raw bytes of an object.
pub const MAX_OBJECT_BYTES: u64 = 1 << 30;
/// Bytes of the header: with these before it, a raw body is aligned for whoever maps the file.
pub const HEADER_BYTES: usize = 64;
/// Bytes of it that say something; the rest is zero.
const OPENING_BYTES: usize = 24;
/// zstd must leave at most this share of the bytes, on the sample and on the whole; else the body stays raw. A page that is stored
/// raw wakes at the speed of the disk, a compressed one at that of the decoder (docs/LOG.md has both).
pub const ZSTD_MOST_LEFT: f64 = 0.5;

const MAGIC: [u8; 4] = *b"RVOB";
const VERSION: u8 = 2;
/// Read and hashed at a time: half a second-level cache.
const STEP: usize = 256 << 10;
/// Content of a zstd frame at most: two windows of its level, so that cutting costs nothing and several cores find work in a page.
const FRAME_BYTES: usize = 1 << 20;
/// Bytes tried before a large object is compressed: three pieces of this size.
const SAMPLE: usize = 32 << 10;

/// How the body lies on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// As it is.
    Raw,
    /// One or more zstd frames (RFC 8878).
    Zstd,
    /// A zlib stream (RFC 1950).
    Deflate,
}

/// What an object is; a hint for those who walk all objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Bytes that mean something to the engine only.
    Payload,
    /// A manifest.
    Manifest,
}

/// The parsed header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// How the body lies.
    pub codec: Codec,
    /// What it is.
    pub kind: Kind,
    /// Length once decoded.
    pub raw_bytes: u64,
    seal: [u8; 8],
}

impl Header {
    /// Reads and checks the header at the start of an object's file. `what` names the object in messages.
    pub fn read(what: &str, source: &mut dyn Read) -> Result<Header> {
        let early = |e| Error::damaged(what, e, format!("a header of {HEADER_BYTES} bytes"));
        let mut opening = [0; OPENING_BYTES];
        source.read_exact(&mut opening).map_err(early)?;
        let header = Header::parse(what, &opening)?;
        let mut rest = [0; HEADER_BYTES - OPENING_BYTES];
        source.read_exact(&mut rest).map_err(early)?;
        if rest.iter().any(|&b| b != 0) {
            return Err(Error::damaged(what, "a header that ends in something", "zeros after its seal"));
        }
        Ok(header)
    }

    fn parse(what: &str, bytes: &[u8; OPENING_BYTES]) -> Result<Header> {
        let (fixed, rest) = bytes.split_at(8);
        let (length, sealed) = rest.split_at(8);
        let raw_bytes = length.iter().rev().fold(0u64, |n, &b| n << 8 | u64::from(b));
        let (codec, kind) = match *fixed {
            [m0, m1, m2, m3, VERSION, codec, kind, 0] if [m0, m1, m2, m3] == MAGIC => (codec, kind),
            _ => {
                return Err(Error::damaged(
                    what,
                    format!("a header opening with {fixed:02x?}"),
                    format!("{MAGIC:02x?} and version {VERSION}"),
                ));
            }
        };
        let codec = match codec {
            0 => Codec::Raw,
            1 => Codec::Zstd,
            2 => Codec::Deflate,
            n => return Err(Error::damaged(what, format!("codec {n}"), "0 (raw), 1 (zstd) or 2 (deflate)")),
        };
        let kind = match kind {
            0 => Kind::Payload,
            1 => Kind::Manifest,
            n => return Err(Error::damaged(what, format!("kind {n}"), "0 (payload) or 1 (manifest)")),
        };
        if kind == Kind::Manifest && codec != Codec::Deflate {
            return Err(Error::damaged(what, format!("a manifest that lies {codec:?}"), "codec 2 (deflate)"));
        }
        if raw_bytes > MAX_OBJECT_BYTES {
            return Err(Error::damaged(what, format!("{raw_bytes} raw bytes"), format!("at most {MAX_OBJECT_BYTES}")));
        }
        let mut seal = [0; 8];
        seal.copy_from_slice(sealed);
        let header = Header { codec, kind, raw_bytes, seal };
        // A raw body is covered by its name; the header has only the seal.
        if codec == Codec::Raw && header.sealed(&[]) != header.seal {
            return Err(Error::damaged(what, "a header that its seal contradicts", "the seal of its first 16 bytes"));
        }
        Ok(header)
    }

    fn open(&self) -> [u8; 16] {
        let mut out = [0; 16];
        out[..4].copy_from_slice(&MAGIC);
        out[4] = VERSION;
        out[5] = match self.codec {
            Codec::Raw => 0,
            Codec::Zstd => 1,
            Codec::Deflate => 2,
        };
        out[6] = match self.kind {
            Kind::Payload => 0,
            Kind::Manifest => 1,
        };
        out[8..].copy_from_slice(&self.raw_bytes.to_le_bytes());
        out
    }

    fn sealed(&self, compressed: &[u8]) -> [u8; 8] {
        seal(&[&self.open(), compressed])
    }

    fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[..16].copy_from_slice(&self.open());
        out[16..OPENING_BYTES].copy_from_slice(&self.seal);
        out
    }

    /// True where a file of `file_bytes` can hold this object at all. A raw one has exactly one length; a compressed one cannot be
    /// smaller than its decoder's best.
    pub fn fits(&self, file_bytes: u64) -> bool {
        let body = file_bytes.saturating_sub(HEADER_BYTES as u64);
        match self.codec {
            Codec::Raw => file_bytes == HEADER_BYTES as u64 + self.raw_bytes,
            Codec::Zstd => self.raw_bytes / (1 << 16) <= body,
            Codec::Deflate => self.raw_bytes / 1100 <= body,
        }
    }
}

/// An object ready to be written: header, and body where it is not the caller's own bytes.
pub(crate) struct Encoded {
    pub(crate) header: [u8; HEADER_BYTES],
    /// None: the parts as given.
    pub(crate) body: Option<Vec<u8>>,
}

/// Chooses the codec and encodes. A manifest is deflated: every language reads that.
pub(crate) fn encode(parts: &[&[u8]], kind: Kind) -> Result<Encoded> {
    let raw_bytes = parts.iter().map(|p| p.len() as u64).sum();
    let (codec, body) = match kind {
        Kind::Manifest => (Codec::Deflate, Some(deflate(parts).map_err(refused)?)),
        Kind::Payload => match zstd_where_it_pays(parts, raw_bytes)? {
            Some(body) => (Codec::Zstd, Some(body)),
            None => (Codec::Raw, None),
        },
    };
    let mut header = Header { codec, kind, raw_bytes, seal: [0; 8] };
    header.seal = header.sealed(body.as_deref().unwrap_or_default());
    Ok(Encoded { header: header.to_bytes(), body })
}

fn deflate(parts: &[&[u8]]) -> io::Result<Vec<u8>> {
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::new(6));
    parts.iter().try_for_each(|part| encoder.write_all(part))?;
    encoder.finish()
}

fn zstd_where_it_pays(parts: &[&[u8]], raw_bytes: u64) -> Result<Option<Vec<u8>>> {
    let pays = |left: usize, of: u64| (left as f64) <= of as f64 * ZSTD_MOST_LEFT;
    if raw_bytes < 512 {
        return Ok(None);
    }
    if raw_bytes > 4 * SAMPLE as u64 {
        let sample = sample(parts, raw_bytes);
        if !pays(squeeze(&[&sample])?.len(), sample.len() as u64) {
            return Ok(None);
        }
    }
    let body = squeeze(parts)?;
    Ok(pays(body.len(), raw_bytes).then_some(body))
}

/// Frames of at most [`FRAME_BYTES`], one after another, made on all cores.
fn squeeze(parts: &[&[u8]]) -> Result<Vec<u8>> {
    let frames = frames(parts);
    let mut out: Vec<Vec<u8>> = vec![Vec::new(); frames.len()];
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    together(cores, frames.iter().zip(&mut out).collect(), |(pieces, out)| {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).map_err(refused)?;
        pieces.iter().try_for_each(|piece| encoder.write_all(piece)).map_err(refused)?;
        *out = encoder.finish().map_err(refused)?;
        Ok(())
    })?;
    Ok(out.concat())
}

fn refused(e: io::Error) -> Error {
    Error::refused("an object to compress", e, "bytes and memory enough")
}

/// The bytes of `parts`, cut where a frame is full.
fn frames<'a>(parts: &[&'a [u8]]) -> Vec<Vec<&'a [u8]>> {
    let (mut frames, mut room) = (vec![Vec::new()], FRAME_BYTES);
    for part in parts {
        let mut rest = *part;
        while !rest.is_empty() {
            if room == 0 {
                frames.push(Vec::new());
                room = FRAME_BYTES;
            }
            let (now, later) = rest.split_at(rest.len().min(room));
            room -= now.len();
            rest = later;
            frames.last_mut().into_iter().for_each(|frame| frame.push(now));
        }
    }
    frames
}

/// A piece from the start, the middle and the end.
fn sample(parts: &[&[u8]], raw_bytes: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(3 * SAMPLE);
    for from in [0, (raw_bytes - SAMPLE as u64) / 2, raw_bytes - SAMPLE as u64] {
        let (mut from, mut want) = (usize::try_from(from).unwrap_or(usize::MAX), SAMPLE);
        for part in parts {
            let start = from.min(part.len());
            let end = (start + want).min(part.len());
            out.extend_from_slice(part.get(start..end).unwrap_or_default());
            want -= end - start;
            from -= start;
        }
    }
    out
}

/// The hash of `parts` in a row.
pub(crate) fn hash_parts(parts: &[&[u8]]) -> Hash {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(part);
    }
    hasher.finalize().into()
}

/// Decodes an object file from `source`, whose length is `file_bytes`, handing the raw bytes to `take` piece by piece, and proves
/// name, length, header and seal. Nothing handed out is trustworthy before this returns.
pub(crate) fn decode(
    name: &Hash,
    source: &mut dyn Read,
    file_bytes: u64,
    take: &mut dyn FnMut(&[u8]),
) -> Result<Header> {
    let what = format!("object {name}");
    let header = read_header(name, source, file_bytes)?;
    let mut buffer = vec![0; STEP.min(header.raw_bytes as usize + 1)];
    with_body(&what, header, source, &mut |body| {
        let mut hasher = blake3::Hasher::new();
        let mut total = 0u64;
        loop {
            let n = read_some(&what, body, &mut buffer)?;
            if n == 0 {
                break;
            }
            total += n as u64;
            if total > header.raw_bytes {
                return Err(Error::damaged(&what, "more bytes", format!("{} as the header says", header.raw_bytes)));
            }
            let piece = buffer.get(..n).unwrap_or_default();
            hasher.update(piece);
            take(piece);
        }
        prove(&what, name, total, header.raw_bytes, hasher.finalize().into())
    })?;
    Ok(header)
}

/// Decodes an object file straight into `into`, whose total length must be the object's.
pub(crate) fn decode_into(name: &Hash, source: &mut dyn Read, file_bytes: u64, into: &mut [&mut [u8]]) -> Result<()> {
    let what = format!("object {name}");
    let header = read_header(name, source, file_bytes)?;
    let wanted: u64 = into.iter().map(|part| part.len() as u64).sum();
    if wanted != header.raw_bytes {
        let found = format!("{} bytes", header.raw_bytes);
        return Err(Error::refused(what, found, format!("the {wanted} bytes that are to be filled")));
    }
    with_body(&what, header, source, &mut |body| {
        let mut hasher = blake3::Hasher::new();
        for part in into.iter_mut() {
            for piece in part.chunks_mut(STEP) {
                let mut filled = 0;
                while filled < piece.len() {
                    match read_some(&what, body, piece.get_mut(filled..).unwrap_or_default())? {
                        0 => return Err(Error::damaged(&what, "an early end", format!("{wanted} bytes"))),
                        n => filled += n,
                    }
                }
                hasher.update(piece);
            }
        }
        if read_some(&what, body, &mut [0])? != 0 {
            return Err(Error::damaged(&what, "more bytes", format!("{wanted} as the header says")));
        }
        prove(&what, name, wanted, wanted, hasher.finalize().into())
    })
}

fn prove(what: &str, name: &Hash, total: u64, raw_bytes: u64, found: Hash) -> Result<()> {
    if total != raw_bytes {
        return Err(Error::damaged(what, format!("{total} bytes"), format!("{raw_bytes} as the header says")));
    }
    if found != *name {
        return Err(Error::damaged(what, format!("content with the hash {found}"), format!("{name}")));
    }
    Ok(())
}

/// The header of the object `name`, whose file is `file_bytes` long.
pub(crate) fn read_header(name: &Hash, source: &mut dyn Read, file_bytes: u64) -> Result<Header> {
    let what = format!("object {name}");
    let what = what.as_str();
    let header = Header::read(what, source)?;
    if !header.fits(file_bytes) {
        let found = format!("a file of {file_bytes} bytes");
        return Err(Error::damaged(what, found, format!("{} bytes, {:?}", header.raw_bytes, header.codec)));
    }
    Ok(header)
}

fn read_some(what: &str, source: &mut dyn Read, into: &mut [u8]) -> Result<usize> {
    loop {
        match source.read(into) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Error::damaged(what, e, "a body that can be read")),
            Ok(n) => return Ok(n),
        }
    }
}

/// Runs `f` over the decoded body, then checks the seal of a compressed one and that nothing follows it.
fn with_body(
    what: &str,
    header: Header,
    source: &mut dyn Read,
    f: &mut dyn FnMut(&mut dyn Read) -> Result<()>,
) -> Result<()> {
    if header.codec == Codec::Raw {
        return f(source);
    }
    let mut sealed = Sealed { source, hasher: blake3::Hasher::new() };
    sealed.hasher.update(&header.open());
    match header.codec {
        Codec::Deflate => f(&mut flate2::read::ZlibDecoder::new(&mut sealed))?,
        _ => {
            let broken = |e| Error::damaged(what, e, "a zstd body");
            f(&mut zstd::stream::read::Decoder::new(&mut sealed).map_err(broken)?)?;
        }
    }
    io::copy(&mut sealed, &mut io::sink()).map_err(|e| Error::damaged(what, e, "a body that can be read"))?;
    match sealed.hasher.finalize().as_bytes().starts_with(&header.seal) {
        true => Ok(()),
        false => {
            Err(Error::damaged(what, "a compressed body that its seal contradicts", "the bytes that were written"))
        }
    }
}

/// Hashes what passes.
struct Sealed<'a> {
    source: &'a mut dyn Read,
    hasher: blake3::Hasher,
}

impl Read for Sealed<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let n = self.source.read(into)?;
        self.hasher.update(into.get(..n).unwrap_or_default());
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_lies_deflated_and_no_other_way() {
        let content = b"{}".as_slice();
        let name = hash_parts(&[content]);
        let mut file = encode(&[content], Kind::Manifest).unwrap();
        let deflated = [&file.header[..], file.body.as_deref().unwrap()].concat();
        decode(&name, &mut &*deflated, deflated.len() as u64, &mut |_| {}).unwrap();
        for (codec, body) in [(Codec::Raw, content.to_vec()), (Codec::Zstd, squeeze(&[content]).unwrap())] {
            for kind in [Kind::Payload, Kind::Manifest] {
                let mut header = Header { codec, kind, raw_bytes: content.len() as u64, seal: [0; 8] };
                header.seal = header.sealed(if codec == Codec::Raw { &[] } else { &body });
                file.header = header.to_bytes();
                let whole = [&file.header[..], &body].concat();
                let read = decode(&name, &mut &*whole, whole.len() as u64, &mut |_| {});
                assert_eq!(read.is_ok(), kind == Kind::Payload, "{codec:?} {kind:?}");
            }
        }
    }
}
