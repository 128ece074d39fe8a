//! GGUF twins of fixtures, which lie beside their folders as what they take from there (`fixtures/scripts/twin.py` says how), put together
//! again in cargo's folder for tests. Knows no GGUF.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use serde_json::{Map, Value};

use crate::fixtures::root;

/// The twin of a fixture's folder.
pub struct Twin {
    /// The file, whole.
    pub path: PathBuf,
    /// What it says otherwise than the folder's config, or cannot say.
    pub said: Map<String, Value>,
}

/// The twin of `folder`, if it has one.
pub fn of(folder: &Path) -> Option<Twin> {
    let plain = folder.join("model.gguf");
    if plain.exists() {
        return Some(Twin { path: plain, said: Map::new() });
    }
    let packed = std::fs::read(folder.join("model.gguf.twin")).ok()?;
    let line = packed.iter().position(|b| *b == b'\n').expect("a line of JSON");
    let head: Value = serde_json::from_slice(&packed[..line]).expect("JSON");
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("twins").join(folder.file_name().expect("name"));
    let path = path.with_extension("gguf");
    // Once a process; other processes may be reading the same file.
    static WRITTEN: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
    let mut written = WRITTEN.lock().expect("lock");
    if written.insert(path.clone()) {
        let whole = unpack(&packed[line + 1..], folder);
        let told = (head["bytes"].as_u64(), head["crc32"].as_u64());
        assert_eq!(told, (Some(whole.len() as u64), Some(crc32(&whole).into())), "{}", folder.display());
        std::fs::create_dir_all(path.parent().expect("twins/")).expect("twins/");
        let own = path.with_extension(std::process::id().to_string());
        std::fs::write(&own, whole).expect("write");
        std::fs::rename(&own, &path).expect("rename");
    }
    Some(Twin { path, said: head["as"].as_object().expect("as").clone() })
}

fn unpack(steps: &[u8], folder: &Path) -> Vec<u8> {
    let weights = std::fs::read(folder.join("model.safetensors")).expect("model.safetensors");
    let shared = std::fs::read(root().join("llama/model.gguf")).expect("llama/model.gguf");
    let (mut out, mut at) = (Vec::new(), 0);
    let number = |at: &mut usize| {
        let mut n = 0;
        for shift in (0..).step_by(7) {
            let byte = steps[*at];
            *at += 1;
            n |= usize::from(byte & 127) << shift;
            if byte < 128 {
                break;
            }
        }
        n
    };
    while at < steps.len() {
        let kind = steps[at];
        at += 1;
        let first = number(&mut at);
        match kind {
            0 => {
                out.extend(&steps[at..at + first]);
                at += first;
            }
            1 => out.extend(&weights[first..first + number(&mut at)]),
            2 => {
                let halves = &weights[first..first + 2 * number(&mut at)];
                out.extend(halves.chunks(2).flat_map(|half| [0, 0, half[0], half[1]]));
            }
            3 => out.extend(&shared[first..first + number(&mut at)]),
            4 => out.resize(out.len() + first, 0),
            other => panic!("{}: step {other}", folder.display()),
        }
    }
    out
}

/// The checksum of zip files.
fn crc32(bytes: &[u8]) -> u32 {
    let fold = |crc: u32, byte: &u8| {
        (0..8).fold(crc ^ u32::from(*byte), |c, _| if c & 1 == 1 { c >> 1 ^ 0xEDB8_8320 } else { c >> 1 })
    };
    !bytes.iter().fold(!0, fold)
}
