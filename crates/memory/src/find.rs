//! Looking up what is already known: the deepest stored prefix of some tokens, and the hash of a file that was hashed before. The
//! index proposes; what is handed out was compared with the manifest or the file's own attributes.

use std::fs::{File, Metadata};
use std::io::Read;
use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::error::{Error, Result};
use crate::hash::Hash;
use crate::index;
use crate::manifest::{Identity, Manifest};
use crate::store::Store;

/// Bytes hashed at a time.
const STEP: usize = 16 << 20;
/// A file that changed this recently may change again without its time showing it.
const SETTLED: Duration = Duration::from_secs(2);

/// A stored state that shares a prefix with some tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// The manifest's name.
    pub hash: Hash,
    /// The manifest.
    pub manifest: Manifest,
    /// Tokens that both have from the first.
    pub common: usize,
    /// The deepest position at or before `common` at which the state can stand; 0 if it can nowhere.
    pub stands: usize,
}

impl Store {
    /// The stored state of this identity that stands deepest along `tokens`; if none can stand, the one that shares most.
    pub fn find(&self, identity: &Identity, tokens: &[u32]) -> Result<Option<Found>> {
        for _ in 0..2 {
            let Some(point) = self.ask_index(&mut |t| index::deepest(t, identity, tokens))? else { return Ok(None) };
            match self.manifest(&point.manifest) {
                Ok(manifest) => {
                    let common = manifest.tokens.iter().zip(tokens).take_while(|(a, b)| a == b).count();
                    let stands = manifest.stands(common);
                    if manifest.identity == *identity && common >= point.common && stands >= point.stands {
                        return Ok(Some(Found { hash: point.manifest, manifest, common, stands }));
                    }
                    self.rebuild_index("it named a state with other tokens")?;
                }
                Err(e) if e.is_damage() => self.rebuild_index("it named a state that is gone")?,
                Err(e) => return Err(e),
            }
        }
        Ok(None)
    }

    /// The hash of a file's content, computed on all cores, remembered by path, size, time and inode. `progress` hears bytes done and
    /// bytes in all.
    pub fn file_hash(&self, path: &Path, progress: &mut dyn FnMut(u64, u64)) -> Result<Hash> {
        let path = std::fs::canonicalize(path).map_err(Error::io("find", path))?;
        let mut file = File::open(&path).map_err(Error::io("open", &path))?;
        let meta = file.metadata().map_err(Error::io("examine", &path))?;
        let (key, was) = (path.as_os_str().as_encoded_bytes(), was(&meta));
        if let Some(hash) = self.ask_index(&mut |t| index::remembered(t, key, &was))? {
            progress(meta.len(), meta.len());
            return Ok(hash);
        }
        let mut hasher = blake3::Hasher::new();
        let mut buffer = vec![0; STEP.min(meta.len() as usize + 1)];
        let mut done = 0u64;
        loop {
            let n = file.read(&mut buffer).map_err(Error::io("read", &path))?;
            if n == 0 {
                break;
            }
            hasher.update_rayon(buffer.get(..n).unwrap_or_default());
            done += n as u64;
            progress(done, meta.len());
        }
        let hash = hasher.finalize().into();
        let after = std::fs::metadata(&path).map_err(Error::io("examine", &path))?;
        if done != meta.len() || self::was(&after) != was {
            return Err(Error::refused(
                path.display().to_string(),
                "a file that changed while it was hashed",
                "a file at rest",
            ));
        }
        let settled =
            meta.modified().ok().and_then(|m| SystemTime::now().duration_since(m).ok()).is_some_and(|d| d > SETTLED);
        if settled {
            self.with_index(&mut |db| index::remember(db, key, &was, &hash))?;
        }
        Ok(hash)
    }
}

/// What a file was: if all of this is the same, so is its content.
fn was(meta: &Metadata) -> Vec<u8> {
    let nanos = |t: std::io::Result<SystemTime>| {
        t.ok().and_then(|t| t.duration_since(SystemTime::UNIX_EPOCH).ok()).map_or(0, |d| d.as_nanos())
    };
    let mut out = meta.len().to_le_bytes().to_vec();
    out.extend_from_slice(&nanos(meta.modified()).to_le_bytes());
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        for n in [meta.ino(), meta.dev(), meta.ctime() as u64, meta.ctime_nsec() as u64] {
            out.extend_from_slice(&n.to_le_bytes());
        }
    }
    out
}
