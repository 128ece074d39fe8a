//! Names of states and labels of tags, and the words that point at a commit: `name`, `name~2`, `name@3`, a tag, a hash.
//! A name is also a path below the store's `refs/`; what it may hold is what keeps it there.

use crate::error::{Error, Result, excerpt};

/// Longest name, in characters.
pub const MAX_NAME: usize = 100;

/// Checks a name: 1 to 100 characters of `[A-Za-z0-9._-]`, parts separated by `/`, no part empty or opening with a dot.
pub fn check_name(name: &str) -> Result<()> {
    let expected = "1 to 100 of A-Z a-z 0-9 . _ - with / between parts, no part opening with a dot";
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let good = |part: &str| !part.is_empty() && !part.starts_with('.') && part.chars().all(allowed);
    if name.len() > MAX_NAME || !name.split('/').all(good) {
        return Err(Error::refused("a name of a state", format!("'{}'", excerpt(name)), expected));
    }
    Ok(())
}

/// A parsed pointer at a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Spec<'a> {
    /// Name, tag or hash.
    pub(crate) base: &'a str,
    /// Commits back from there.
    pub(crate) back: usize,
    /// End of this turn (from 1) rather than of the whole.
    pub(crate) turn: Option<usize>,
}

impl<'a> Spec<'a> {
    pub(crate) fn parse(text: &'a str) -> Result<Spec<'a>> {
        let refuse = |what: &str| {
            let found = format!("'{}' ({what})", excerpt(text));
            Error::refused("a state", found, "name, name~COMMITS_BACK, name@TURN, a tag, or 8 or more digits of a hash")
        };
        let (rest, turn) = match text.split_once('@') {
            Some((rest, n)) => (rest, Some(n.parse().map_err(|_| refuse("the turn is no number"))?)),
            None => (text, None),
        };
        if turn == Some(0) {
            return Err(refuse("turns count from 1"));
        }
        let (base, back) = match rest.split_once('~') {
            Some((base, n)) => (base, n.parse().map_err(|_| refuse("the number of commits back is no number"))?),
            None => (rest, 0),
        };
        check_name(base)?;
        Ok(Spec { base, back, turn })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_leave_the_store() {
        for good in ["a", "trip", "a/b.c/d_e-f", "0", "A..b", &"x".repeat(100)] {
            check_name(good).unwrap_or_else(|e| panic!("{good}: {e}"));
        }
        for bad in [
            "",
            "/",
            "a/",
            "/a",
            "a//b",
            ".",
            "..",
            "a/..",
            "../a",
            ".hidden",
            "a/.b",
            "a b",
            "a\\b",
            "a\0",
            "ü",
            "a~1",
            "a@1",
            "C:",
            &"x".repeat(101),
        ] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn specs_are_parsed() {
        assert_eq!(Spec::parse("trip").unwrap(), Spec { base: "trip", back: 0, turn: None });
        assert_eq!(Spec::parse("a/b~2@3").unwrap(), Spec { base: "a/b", back: 2, turn: Some(3) });
        for bad in ["trip@", "trip@0", "trip@x", "trip~", "trip~-1", "@1", "~1", "a@1~2", "a@1@2"] {
            assert!(Spec::parse(bad).is_err(), "{bad}");
        }
    }
}
