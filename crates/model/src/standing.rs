//! Where a state can stand: after any token, where its recurrent slots were kept, where the window of its windowed layers is whole.
//! One answer for the whole model, since layers stand together or not at all. Knows no page and no slot, only their numbers.

use std::ops::Range;

use reverie_tensor::Reach;
use reverie_tensor::backend::PAGE_TOKENS;

use crate::state::StateSpec;

/// A drafter's row stands at the last token that was read and may see one key more than its target's window.
const DRAFTER_TOKENS: usize = 2;

/// Tokens behind the window that a state holds on to: what was read last can be taken back without reading again.
const SPARE_TOKENS: usize = PAGE_TOKENS;

/// What the layers of a model need in order to stand somewhere.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    recurrent: bool,
    /// Each reach of a windowed layer once.
    reaches: Vec<Reach>,
}

impl Standing {
    /// Of layers that keep this.
    pub fn of(specs: &[StateSpec]) -> Standing {
        let mut reaches: Vec<Reach> = Vec::new();
        for reach in specs.iter().filter_map(|s| s.kv).map(|kv| kv.reach).filter(|&r| r != Reach::All) {
            if !reaches.contains(&reach) {
                reaches.push(reach);
            }
        }
        Standing { recurrent: specs.iter().any(|s| !s.slots.is_empty()), reaches }
    }

    /// True if it stands after any token.
    pub fn anywhere(&self) -> bool {
        !self.recurrent && !self.windowed()
    }

    /// True if some layer can stand only where its slots were kept.
    pub fn recurrent(&self) -> bool {
        self.recurrent
    }

    /// True if some layer sees a window only and gives back what lies behind it.
    pub fn windowed(&self) -> bool {
        !self.reaches.is_empty()
    }

    /// The pages of windowed layers without which a state of `len` tokens cannot go on; the last may be partial.
    pub fn needed(&self, len: usize) -> Range<usize> {
        self.pages(len, DRAFTER_TOKENS)
    }

    /// The pages of windowed layers that a state of `len` tokens holds on to.
    pub fn held(&self, len: usize) -> Range<usize> {
        self.pages(len, SPARE_TOKENS)
    }

    /// Tokens that windowed layers hold on to at most, beside those of a step.
    pub fn window_tokens(&self) -> usize {
        let of = |reach: &Reach| match *reach {
            Reach::All => 0,
            Reach::Window(n) | Reach::Chunk(n) => n,
        };
        self.reaches.iter().map(of).max().map_or(0, |n| n.saturating_add(SPARE_TOKENS))
    }

    /// From the page that the row `behind` before `len` reaches.
    fn pages(&self, len: usize, behind: usize) -> Range<usize> {
        let end = len.div_ceil(PAGE_TOKENS);
        let first = self.reaches.iter().map(|r| r.first(len.saturating_sub(behind)) / PAGE_TOKENS).min();
        first.unwrap_or(end).min(end)..end
    }
}
