//! SentencePiece BPE: characters are joined, highest score first, as long as the joined piece is in the vocabulary.
//! Rules after google/sentencepiece, `src/bpe_model.cc`; merge lists cannot express them, because equal scores are joined
//! from the left. It refuses to know where the vocabulary came from.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

use aho_corasick::{AhoCorasick, MatchKind};

use super::Specials;
use super::pipeline::Ends;

/// What a piece may be used for; the numbers are those of SentencePiece's `ModelProto`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PieceKind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte(u8),
}

pub(crate) struct Piece {
    pub(crate) text: String,
    pub(crate) score: f32,
    pub(crate) kind: PieceKind,
}

/// Whether a space is put before the first word, so that it looks like every other word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WordStart {
    AddSpace,
    AsWritten,
}

pub(crate) struct SentencePiece {
    names: HashMap<String, u32>,
    /// Pieces that text may be made of.
    joinable: HashMap<String, Joinable>,
    bytes: [Option<u32>; 256],
    unknown: Option<u32>,
    parsing: Matcher,
    plain: Matcher,
    word_start: WordStart,
    ends: Ends,
}

#[derive(Clone, Copy)]
struct Joinable {
    id: u32,
    score: f32,
    unused: bool,
}

/// Finds the tokens that are taken whole before anything is joined.
struct Matcher {
    automaton: Option<AhoCorasick>,
    ids: Vec<u32>,
}

impl Matcher {
    fn new<'p>(tokens: impl Iterator<Item = (u32, &'p str)>) -> Result<Self, String> {
        let (ids, texts): (Vec<u32>, Vec<&str>) = tokens.filter(|(_, text)| !text.is_empty()).unzip();
        if ids.is_empty() {
            return Ok(Self { automaton: None, ids });
        }
        let automaton =
            AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(texts).map_err(|e| e.to_string())?;
        Ok(Self { automaton: Some(automaton), ids })
    }

    /// Calls `f` with every stretch of text and every token, in order.
    fn cut<'t>(&self, text: &'t str, mut f: impl FnMut(Cut<'t>)) {
        let mut end = 0;
        for found in self.automaton.iter().flat_map(|a| a.find_iter(text)) {
            if found.start() > end {
                f(Cut::Text(&text[end..found.start()]));
            }
            if let Some(id) = self.ids.get(found.pattern().as_usize()) {
                f(Cut::Token(*id));
            }
            end = found.end();
        }
        if end < text.len() {
            f(Cut::Text(&text[end..]));
        }
    }
}

enum Cut<'t> {
    Text(&'t str),
    Token(u32),
}

impl SentencePiece {
    /// `pieces[id]`; scores must be numbers.
    pub(crate) fn new(pieces: &[Piece], word_start: WordStart, ends: Ends) -> Result<Self, String> {
        let mut names = HashMap::with_capacity(pieces.len());
        let mut joinable = HashMap::with_capacity(pieces.len());
        let mut bytes = [None; 256];
        let mut unknown = None;
        for (piece, id) in pieces.iter().zip(0_u32..) {
            if piece.score.is_nan() {
                return Err(format!("token {id} has a score that is not a number"));
            }
            if let Some(other) = names.insert(piece.text.clone(), id) {
                return Err(format!("tokens {other} and {id} are both {:?}", crate::error::excerpt(&piece.text)));
            }
            match piece.kind {
                PieceKind::Normal | PieceKind::UserDefined | PieceKind::Unused => {
                    let unused = piece.kind == PieceKind::Unused;
                    joinable.insert(piece.text.clone(), Joinable { id, score: piece.score, unused });
                }
                PieceKind::Byte(byte) => bytes[usize::from(byte)] = Some(id),
                PieceKind::Unknown => unknown = unknown.or(Some(id)),
                PieceKind::Control => {}
            }
        }
        let whole = |kinds: &'static [PieceKind]| {
            let numbered = pieces.iter().zip(0_u32..);
            numbered.filter(|(piece, _)| kinds.contains(&piece.kind)).map(|(piece, id)| (id, piece.text.as_str()))
        };
        let parsing = Matcher::new(whole(&[PieceKind::Control, PieceKind::Unknown, PieceKind::UserDefined]))?;
        let plain = Matcher::new(whole(&[PieceKind::UserDefined]))?;
        Ok(Self { names, joinable, bytes, unknown, parsing, plain, word_start, ends })
    }

    pub(crate) fn id_of(&self, token: &str) -> Option<u32> {
        self.names.get(token).copied()
    }

    pub(crate) fn encode(&self, text: &str, specials: Specials) -> Vec<u32> {
        let mut ids = Vec::new();
        if specials == Specials::ParseAndFrame {
            ids.extend(self.ends.open);
        }
        let matcher = if specials == Specials::Plain { &self.plain } else { &self.parsing };
        let mut after_token = true;
        matcher.cut(text, |cut| match cut {
            Cut::Token(id) => {
                ids.push(id);
                after_token = true;
            }
            Cut::Text(text) => {
                let space = if after_token && self.word_start == WordStart::AddSpace { "\u{2581}" } else { "" };
                self.join(&format!("{space}{}", text.replace(' ', "\u{2581}")), &mut ids);
                after_token = false;
            }
        });
        if specials == Specials::ParseAndFrame {
            ids.extend(self.ends.close);
        }
        ids
    }

    fn join(&self, text: &str, ids: &mut Vec<u32>) {
        let mut word = Word::new(text);
        let mut queue = BinaryHeap::new();
        for left in 0..word.symbols.len().saturating_sub(1) {
            queue.extend(self.candidate(&word, left));
        }
        // How a piece that must not be used was joined: start and length → length of its left part.
        let mut unused: HashMap<(usize, usize), usize> = HashMap::new();
        while let Some(candidate) = queue.pop() {
            let Some((left, right)) = word.pair(candidate.left).filter(|(l, r)| l.len + r.len == candidate.len) else {
                continue;
            };
            if left.start + left.len != right.start || left.len != candidate.left_len {
                continue;
            }
            if candidate.unused {
                unused.insert((left.start, candidate.len), left.len);
            }
            word.join(candidate.left);
            queue.extend(self.candidate(&word, candidate.left));
            if let Some(previous) = word.previous(candidate.left) {
                queue.extend(self.candidate(&word, previous));
            }
        }

        let mut after_unknown = false;
        let mut todo = Vec::new();
        for symbol in word.symbols.iter().filter(|s| s.len > 0) {
            todo.push((symbol.start, symbol.len));
            while let Some((start, len)) = todo.pop() {
                if let Some(&left) = unused.get(&(start, len)) {
                    todo.push((start + left, len - left));
                    todo.push((start, left));
                    continue;
                }
                let piece = &text[start..start + len];
                if let Some(found) = self.joinable.get(piece) {
                    ids.push(found.id);
                    after_unknown = false;
                } else if let Some(bytes) = self.byte_tokens(piece) {
                    ids.extend(bytes);
                    after_unknown = false;
                } else if !after_unknown {
                    // One unknown token stands for a whole run.
                    ids.extend(self.unknown);
                    after_unknown = true;
                }
            }
        }
    }

    /// The byte tokens of a character outside the vocabulary, if the vocabulary has them all.
    fn byte_tokens(&self, piece: &str) -> Option<Vec<u32>> {
        piece.bytes().map(|b| self.bytes[usize::from(b)]).collect()
    }

    fn candidate(&self, word: &Word<'_>, left: usize) -> Option<Candidate> {
        let (a, b) = word.pair(left)?;
        let joined = word.text.get(a.start..a.start + a.len + b.len)?;
        let found = self.joinable.get(joined)?;
        Some(Candidate { score: found.score, left, left_len: a.len, len: joined.len(), unused: found.unused })
    }
}

#[derive(Clone, Copy)]
struct Symbol {
    start: usize,
    /// Bytes; 0 once the symbol has been joined to its left neighbour.
    len: usize,
    previous: Option<usize>,
    next: Option<usize>,
}

struct Word<'t> {
    text: &'t str,
    symbols: Vec<Symbol>,
}

impl<'t> Word<'t> {
    fn new(text: &'t str) -> Self {
        let n_chars = text.chars().count();
        let symbols = text
            .char_indices()
            .enumerate()
            .map(|(i, (start, c))| Symbol {
                start,
                len: c.len_utf8(),
                previous: i.checked_sub(1),
                next: Some(i + 1).filter(|next| *next < n_chars),
            })
            .collect();
        Self { text, symbols }
    }

    fn pair(&self, left: usize) -> Option<(Symbol, Symbol)> {
        let a = self.symbols.get(left).filter(|s| s.len > 0)?;
        Some((*a, *self.symbols.get(a.next?)?))
    }

    fn previous(&self, index: usize) -> Option<usize> {
        self.symbols.get(index)?.previous
    }

    /// Joins a symbol with its right neighbour.
    fn join(&mut self, left: usize) {
        let Some(right) = self.symbols.get(left).and_then(|s| s.next) else { return };
        let Some(gone) = self.symbols.get_mut(right) else { return };
        let (len, next) = (gone.len, gone.next);
        gone.len = 0;
        if let Some(symbol) = self.symbols.get_mut(left) {
            symbol.len += len;
            symbol.next = next;
        }
        if let Some(next) = next.and_then(|next| self.symbols.get_mut(next)) {
            next.previous = Some(left);
        }
    }
}

struct Candidate {
    score: f32,
    left: usize,
    left_len: usize,
    len: usize,
    unused: bool,
}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.partial_cmp(&other.score).unwrap_or(Ordering::Equal).then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Candidate {}

#[cfg(test)]
mod tests;
