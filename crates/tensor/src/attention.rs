//! What attention is told: pages of keys and values, how far a row sees, which of those keys it keeps. Values alone; the operations are
//! methods of `Backend`.

use std::ops::Range;
use std::sync::Arc;

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// Tokens of a page. Tiles of the online softmax are pages, so this number is part of the numerics.
pub const PAGE_TOKENS: usize = 64;

/// Tiles that one chain of the online softmax covers; longer contexts merge chains in order. Part of the numerics.
pub const SPAN_PAGES: usize = 8;

/// The keys and values of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvSpec {
    /// G.
    pub n_heads: usize,
    /// Dk.
    pub k_dim: usize,
    /// Dv.
    pub v_dim: usize,
    /// Element type of a page.
    pub dtype: DType,
}

impl KvSpec {
    /// Elements of a page: per head a key block `[Dk, P]` (lanes are tokens) and a value block `[P, Dv]`.
    pub fn page_elements(&self) -> usize {
        self.n_heads * self.head_elements()
    }

    /// Elements of one head's part of a page.
    pub fn head_elements(&self) -> usize {
        (self.k_dim + self.v_dim) * PAGE_TOKENS
    }

    /// Adds a page's first `filled` tokens alone to `rows`, laid out like a page of that many: what an earlier text left behind them
    /// is nobody's business.
    pub fn gather(&self, filled: usize, page: &[u8], rows: &mut Vec<u8>) {
        let size = self.dtype.size();
        let filled = filled.min(PAGE_TOKENS);
        for head in page.chunks(self.head_elements().max(1) * size) {
            let (keys, values) = head.split_at(self.k_dim * PAGE_TOKENS * size);
            keys.chunks(PAGE_TOKENS * size).for_each(|lane| rows.extend_from_slice(&lane[..filled * size]));
            rows.extend_from_slice(&values[..filled * self.v_dim * size]);
        }
    }

    /// Makes a `page` of what [`gather`](KvSpec::gather) took of one, zero beyond its tokens. `rows` are [`row_bytes`](KvSpec::row_bytes)
    /// for each of `filled` tokens.
    pub fn scatter(&self, filled: usize, mut rows: &[u8], page: &mut [u8]) {
        let size = self.dtype.size();
        let mut put = |into: &mut [u8], n: usize| {
            let (now, later) = rows.split_at(n);
            let (there, beyond) = into.split_at_mut(n);
            there.copy_from_slice(now);
            beyond.fill(0);
            rows = later;
        };
        for head in page.chunks_mut(self.head_elements().max(1) * size) {
            let (keys, values) = head.split_at_mut(self.k_dim * PAGE_TOKENS * size);
            keys.chunks_mut(PAGE_TOKENS * size).for_each(|lane| put(lane, filled * size));
            put(values, filled * self.v_dim * size);
        }
    }

    /// Bytes of one token in a page.
    pub fn row_bytes(&self) -> usize {
        self.n_heads * (self.k_dim + self.v_dim) * self.dtype.size()
    }

    /// Bytes of a page.
    pub fn page_bytes(&self) -> usize {
        self.page_elements() * self.dtype.size()
    }
}

/// Rows of one sequence that are written to its pages.
pub struct KvTarget<'a> {
    /// Rows of the batch.
    pub rows: Range<usize>,
    /// Absolute position of the first of them.
    pub start: usize,
    /// The pages of the sequence, from position 0; those written to must be there and unshared.
    pub pages: &'a mut [Tensor],
}

impl KvTarget<'_> {
    /// The pages that rows are written to. Refused where one is missing or was given back.
    pub fn reached(&self, op: &'static str) -> Result<Range<usize>> {
        if self.rows.is_empty() {
            return Ok(0..0);
        }
        let end = self.start.saturating_add(self.rows.len()).div_ceil(PAGE_TOKENS);
        whole(op, self.pages, self.start / PAGE_TOKENS..end)
    }
}

/// Rows of one sequence that attend to its pages. Row i of the range stands at `start + i` and sees the keys up to itself.
pub struct KvSegment<'a> {
    /// Rows of the batch.
    pub rows: Range<usize>,
    /// Absolute position of the first of them.
    pub start: usize,
    /// The pages of the sequence, from position 0. Those that no row reaches may be holes.
    pub pages: &'a [Tensor],
}

impl KvSegment<'_> {
    /// The pages that some row of the segment reaches. Refused where one is missing or was given back.
    pub fn reached(&self, op: &'static str, reach: Reach) -> Result<Range<usize>> {
        let end = self.start.saturating_add(self.rows.len()).div_ceil(PAGE_TOKENS);
        let first = if self.rows.is_empty() { end } else { reach.first(self.start) / PAGE_TOKENS };
        whole(op, self.pages, first..end)
    }
}

/// That range of pages, if all are there and none is a hole.
fn whole(op: &'static str, pages: &[Tensor], range: Range<usize>) -> Result<Range<usize>> {
    if pages.len() < range.end {
        return Err(Error::shape(op, pages.len(), range.end));
    }
    match range.clone().find(|&p| pages[p].is_hole()) {
        Some(page) => {
            let expected = "its keys and values: go back to a place whose window is kept, or read the tokens again";
            Err(Error::value(format!("{op}: page {page}"), "a page that was given back", expected))
        }
        None => Ok(range),
    }
}

/// How far back a row sees; its own position it always sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reach {
    /// To position 0.
    #[default]
    All,
    /// This many positions, its own included.
    Window(usize),
    /// To the beginning of its chunk of so many positions, the first of which begins at position 0 (Llama 4).
    Chunk(usize),
}

impl Reach {
    /// The first position that the row at `position` sees; grows with the position.
    pub fn first(self, position: usize) -> usize {
        match self {
            Reach::All => 0,
            Reach::Window(n) => (position + 1).saturating_sub(n),
            Reach::Chunk(n) => position / n.max(1) * n,
        }
    }

    /// The smallest reach that covers both, or all where chunks meet another reach.
    pub fn or(self, other: Reach) -> Reach {
        match (self, other) {
            (Reach::Window(a), Reach::Window(b)) => Reach::Window(a.max(b)),
            (a, b) if a == b => a,
            _ => Reach::All,
        }
    }

    /// A window of one position less; any other reach as it is.
    pub fn less_one(self) -> Reach {
        match self {
            Reach::Window(n) => Reach::Window(n.saturating_sub(1)),
            other => other,
        }
    }

    /// That window, or all.
    pub fn window(tokens: Option<usize>) -> Reach {
        tokens.map_or(Reach::All, Reach::Window)
    }
}

/// How attention is computed.
#[derive(Clone, Debug)]
pub struct AttendSpec {
    /// H, a multiple of the key/value heads.
    pub n_heads: usize,
    /// The cache it reads.
    pub kv: KvSpec,
    /// Multiplies q·k.
    pub scale: f32,
    /// Scores become cap · tanh(score / cap).
    pub softcap: Option<f32>,
    /// The earlier keys that a row sees.
    pub reach: Reach,
    /// One logit per head that joins the softmax and carries no value: f32 `[H]`.
    pub sinks: Option<Tensor>,
    /// Keys that hold their values.
    pub latent: Option<Latent>,
    /// Of the keys that a row would see, those that it does see.
    pub keep: Option<Keep>,
}

/// How the keys that a row sees are chosen.
#[derive(Clone, Debug)]
pub struct ChooseSpec {
    /// Query heads of the choice.
    pub n_heads: usize,
    /// The cache it reads.
    pub kv: KvSpec,
    /// Neighbouring tokens that are chosen together, from position 0.
    pub block: usize,
    /// Blocks of a row, those that it must see among them.
    pub n_kept: usize,
    /// Multiplies q·k where shares are taken.
    pub scale: f32,
    /// By what.
    pub choice: Choice,
}

/// By what the keys of a row are chosen.
#[derive(Clone, Debug)]
pub enum Choice {
    /// One choice for all heads: Σ over heads of weight · max(q·k, 0), k being the elements of a key from `first` on
    /// (DeepSeek-V3.2's lightning indexer). `weights` is f32 `[T, H]`.
    Index {
        /// First element.
        first: usize,
        /// By row and head.
        weights: Tensor,
    },
    /// A choice for every query head, by q times the mean key of a block; the row's own block always (MoBA,
    /// arXiv 2502.13189).
    Mean,
    /// A choice for every key head, by the mean share that the block's mean key takes of its heads' attention to whole blocks;
    /// the row's own block, the first and the one before always. The attention itself comes with it (NSA, arXiv 2502.11089).
    Share,
}

/// Keys that hold their values (multi-head latent attention): the pages have no values of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Latent {
    /// First elements of a key that a query meets.
    pub query: usize,
    /// First elements of a key that are its value.
    pub value: usize,
}

/// A choice of keys for every row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keep {
    /// Choices of a row, each for as many neighbouring query heads.
    pub n_groups: usize,
    /// Pages that a choice covers.
    pub n_pages: usize,
    /// `[T, n_groups, n_pages]`: bit s of a page's word is its slot s.
    pub bits: Arc<[u64]>,
}

impl Keep {
    /// The slots of page `page` that query head `head` of `n_heads` sees in row `row`.
    pub fn page(&self, row: usize, (head, n_heads): (usize, usize), page: usize) -> u64 {
        let group = head * self.n_groups / n_heads.max(1);
        self.bits.get((row * self.n_groups + group) * self.n_pages + page).copied().unwrap_or(0)
    }
}

impl AttendSpec {
    /// Elements of a query.
    pub fn q_dim(&self) -> usize {
        self.latent.map_or(self.kv.k_dim, |l| l.query)
    }

    /// Elements of a value.
    pub fn v_dim(&self) -> usize {
        self.latent.map_or(self.kv.v_dim, |l| l.value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rows_of_a_page_make_it_again_and_nothing_behind_them() {
        for (n_heads, k_dim, v_dim, dtype) in [(2, 3, 5, DType::F16), (1, 4, 0, DType::F32), (3, 1, 2, DType::BF16)] {
            let spec = KvSpec { n_heads, k_dim, v_dim, dtype };
            let size = dtype.size();
            let page: Vec<u8> = (0..spec.page_bytes()).map(|i| (i % 251) as u8 + 1).collect();
            for filled in [0, 1, 36, PAGE_TOKENS] {
                let mut rows = Vec::new();
                spec.gather(filled, &page, &mut rows);
                assert_eq!(rows.len(), filled * spec.row_bytes());
                let mut again = vec![0xff; page.len()];
                spec.scatter(filled, &rows, &mut again);
                for (i, (&was, &is)) in page.iter().zip(&again).enumerate() {
                    let (head, at) = (i / size % spec.head_elements(), k_dim * PAGE_TOKENS);
                    let slot = if head < at { head % PAGE_TOKENS } else { (head - at) / v_dim };
                    assert_eq!(is, if slot < filled { was } else { 0 }, "byte {i} of {spec:?}, {filled} tokens");
                }
            }
        }
    }
}
