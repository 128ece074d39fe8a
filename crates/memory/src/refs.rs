//! Files of refs and tags: three or four lines of text with a seal that covers the name too, so that no byte of them can change or
//! move to another name unnoticed. Where they lie is the store's business.

use crate::error::{Error, Result, excerpt};
use crate::hash::{Hash, seal};
use crate::history::TagInfo;

/// Most bytes of a ref or tag file; what is longer is not read.
pub(crate) const MAX_REF_BYTES: usize = 512;

/// What a tag points at: a fixed moment of a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TagTarget {
    pub(crate) manifest: Hash,
    pub(crate) tokens: usize,
}

impl TagTarget {
    /// Under its label.
    pub(crate) fn of(self, label: String) -> TagInfo {
        TagInfo { label, manifest: self.manifest, tokens: self.tokens }
    }
}

/// The file of the ref `name`.
pub(crate) fn render_ref(name: &str, head: &Hash) -> String {
    sealed(name, &format!("reverie-ref 1\nhead {head}\n"))
}

/// The head in the file of the ref `name`.
pub(crate) fn parse_ref(name: &str, bytes: &[u8]) -> Result<Hash> {
    let [head] = fields(name, bytes, "reverie-ref 1", ["head"])?;
    let head = head.parse().map_err(|_| broken(name, bytes, "the hash of a manifest"))?;
    whole(name, bytes, &render_ref(name, &head))?;
    Ok(head)
}

/// The file of the tag `label`.
pub(crate) fn render_tag(label: &str, target: &TagTarget) -> String {
    sealed(label, &format!("reverie-tag 1\nmanifest {}\ntokens {}\n", target.manifest, target.tokens))
}

/// What the file of the tag `label` points at.
pub(crate) fn parse_tag(label: &str, bytes: &[u8]) -> Result<TagTarget> {
    let [manifest, tokens] = fields(label, bytes, "reverie-tag 1", ["manifest", "tokens"])?;
    let tokens = tokens.parse().map_err(|_| broken(label, bytes, "a number of tokens"))?;
    let manifest = manifest.parse().map_err(|_| broken(label, bytes, "the hash of a manifest"))?;
    let target = TagTarget { manifest, tokens };
    whole(label, bytes, &render_tag(label, &target))?;
    Ok(target)
}

fn sealed(name: &str, lines: &str) -> String {
    let digits: String = seal(&[name.as_bytes(), b"\n", lines.as_bytes()]).iter().map(|b| format!("{b:02x}")).collect();
    format!("{lines}seal {digits}\n")
}

/// A file has one spelling: what does not render to the same bytes is damaged.
fn whole(name: &str, bytes: &[u8], expected: &str) -> Result<()> {
    if bytes == expected.as_bytes() { Ok(()) } else { Err(broken(name, bytes, "lines that agree with their seal")) }
}

fn fields<'a, const N: usize>(name: &str, bytes: &'a [u8], first: &str, keys: [&str; N]) -> Result<[&'a str; N]> {
    let text = std::str::from_utf8(bytes).map_err(|_| broken(name, bytes, "text"))?;
    let mut lines = text.lines();
    if lines.next() != Some(first) {
        return Err(broken(name, bytes, first));
    }
    let mut out = [""; N];
    for (slot, key) in out.iter_mut().zip(keys) {
        let value = lines.next().and_then(|line| line.strip_prefix(key)?.strip_prefix(' '));
        *slot = value.ok_or_else(|| broken(name, bytes, key))?;
    }
    Ok(out)
}

fn broken(name: &str, bytes: &[u8], expected: &str) -> Error {
    let found = format!("'{}'", excerpt(&String::from_utf8_lossy(bytes)));
    Error::damaged(format!("the ref '{name}'"), found, expected)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_other_byte_is_noticed() {
        let head = Hash::of(b"x");
        let reference = render_ref("a/b", &head).into_bytes();
        assert_eq!(parse_ref("a/b", &reference).unwrap(), head);
        assert!(parse_ref("a/c", &reference).is_err(), "another name");
        let target = TagTarget { manifest: head, tokens: 70 };
        let tag = render_tag("t", &target).into_bytes();
        assert_eq!(parse_tag("t", &tag).unwrap(), target);
        for i in 0..reference.len() {
            for bit in 0..8 {
                let mut bad = reference.clone();
                bad[i] ^= 1 << bit;
                assert!(parse_ref("a/b", &bad).is_err(), "byte {i} bit {bit}");
            }
        }
        for i in 0..tag.len() {
            for bit in 0..8 {
                let mut bad = tag.clone();
                bad[i] ^= 1 << bit;
                assert!(parse_tag("t", &bad).is_err(), "byte {i} bit {bit}");
            }
        }
        for cut in 0..reference.len() {
            assert!(parse_ref("a/b", &reference[..cut]).is_err());
        }
    }
}
