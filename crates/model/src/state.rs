//! What a sequence leaves behind in each layer: pages of keys and values, and recurrent slots. Forks share handles, writers
//! unshare first; nothing is copied in order to be held, and a layer with a window gives back the pages that no later token can
//! see. Knows no mixer and no token.

use std::sync::Arc;

use reverie_tensor::backend::PAGE_TOKENS;
use reverie_tensor::{Backend, Class, DType, KvSpec, Reach, Tensor};

use crate::error::{Error, Result};
use crate::standing::Standing;

/// The kinds of state there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum StateKind {
    /// Keys and values by token: can be cut at any token.
    Kv,
    /// Slots of fixed size: can stand only where they were snapshotted.
    Recurrent,
}

impl StateKind {
    /// The word used in messages.
    pub const fn name(self) -> &'static str {
        match self {
            StateKind::Kv => "key/value",
            StateKind::Recurrent => "recurrent",
        }
    }
}

/// Keys and values that a mixer needs kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvNeed {
    /// Key/value heads.
    pub n_heads: usize,
    /// Width of a key.
    pub k_dim: usize,
    /// Width of a value.
    pub v_dim: usize,
    /// How far back they are read; what lies behind may be given back.
    pub reach: Reach,
}

impl KvNeed {
    /// Bytes of a token's keys and values of `dtype`.
    pub fn token_bytes(&self, dtype: DType) -> usize {
        self.n_heads * (self.k_dim + self.v_dim) * dtype.size()
    }
}

/// One slot of fixed size, f32.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotNeed {
    /// What it holds.
    pub name: &'static str,
    /// Its extents.
    pub shape: Vec<usize>,
}

/// What a mixer needs kept between tokens. Empty for a mixer without memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StateSpec {
    /// Keys and values.
    pub kv: Option<KvNeed>,
    /// Recurrent slots.
    pub slots: Vec<SlotNeed>,
}

impl StateSpec {
    /// The kinds it is made of.
    pub fn kinds(&self) -> Vec<StateKind> {
        let mut kinds = Vec::new();
        kinds.extend(self.kv.map(|_| StateKind::Kv));
        kinds.extend((!self.slots.is_empty()).then_some(StateKind::Recurrent));
        kinds
    }

    /// Bytes that each token adds for good, with keys and values of `dtype`.
    pub fn bytes_per_token(&self, dtype: DType) -> usize {
        self.kv.filter(|kv| kv.reach == Reach::All).map_or(0, |kv| kv.token_bytes(dtype))
    }

    /// Bytes that each token takes as long as the window holds it, with keys and values of `dtype`.
    pub fn windowed_bytes(&self, dtype: DType) -> usize {
        self.kv.filter(|kv| kv.reach != Reach::All).map_or(0, |kv| kv.token_bytes(dtype))
    }

    /// Bytes of keys and values of `dtype` that a row at `position` may read.
    pub fn bytes_in_reach(&self, position: usize, dtype: DType) -> usize {
        self.kv.map_or(0, |kv| kv.token_bytes(dtype) * (position + 1 - kv.reach.first(position)))
    }

    /// Bytes of the slots, which do not grow.
    pub fn fixed_bytes(&self) -> usize {
        self.slots.iter().map(|s| s.shape.iter().product::<usize>() * 4).sum()
    }
}

/// The pages of one layer, from position 0.
#[derive(Clone)]
pub struct Pages {
    /// Layout and dtype.
    pub spec: KvSpec,
    /// How far back they are read.
    pub reach: Reach,
    /// One tensor a page; a hole where it was given back.
    pub pages: Vec<Tensor>,
}

impl Pages {
    /// True if it gives pages back.
    fn windowed(&self) -> bool {
        self.reach != Reach::All
    }

    /// Makes positions `from..to` writable: adds pages, and copies the partial page if another handle shares it.
    fn reserve(&mut self, backend: &dyn Backend, from: usize, to: usize) -> Result<()> {
        self.pages.truncate(from.div_ceil(PAGE_TOKENS));
        if let Some(page) = self.pages.get_mut(from / PAGE_TOKENS)
            && !page.is_unique()
        {
            *page = backend.copy(page, Class::State)?;
        }
        while self.pages.len() * PAGE_TOKENS < to {
            self.pages.push(backend.alloc(&[self.spec.page_elements()], self.spec.dtype, Class::State)?);
        }
        Ok(())
    }

    /// Gives back the pages before page `first`.
    fn give_back(&mut self, first: usize) {
        let n = first.min(self.pages.len());
        let held = self.pages[..n].iter().rposition(Tensor::is_hole).map_or(0, |p| p + 1);
        if held < n {
            let hole = Tensor::hole(self.spec.dtype);
            self.pages[held..n].fill(hole);
        }
    }
}

/// One page of every layer with keys and values, by handle.
#[derive(Clone, Default)]
pub struct Page {
    /// Of the layers that see every token, in their order.
    pub whole: Vec<Tensor>,
    /// Of the layers that see a window, in their order; empty where it was given back.
    pub windowed: Vec<Tensor>,
}

impl Page {
    /// Its tensors.
    pub fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        self.whole.iter().chain(&self.windowed)
    }
}

/// Layout of the pages of every layer with keys and values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PageSpecs {
    /// Of the layers that see every token, in their order.
    pub whole: Vec<KvSpec>,
    /// Of the layers that see a window, in their order.
    pub windowed: Vec<KvSpec>,
}

/// The state of one layer.
#[derive(Clone, Default)]
pub struct LayerState {
    /// Keys and values, if the mixer needs them.
    pub kv: Option<Pages>,
    /// Recurrent slots in the order of the mixer's `StateSpec`.
    pub slots: Vec<Tensor>,
}

/// The state of one sequence.
#[derive(Clone)]
pub struct State {
    len: usize,
    half_done: bool,
    standing: Arc<Standing>,
    layers: Vec<LayerState>,
}

/// What a sequence needs at one position beside the pages that it keeps for good: recurrent slots, and the pages of windowed layers.
#[derive(Clone)]
pub struct Checkpoint {
    len: usize,
    slots: Vec<Vec<Tensor>>,
    /// Layer by layer, for the pages that the state held there.
    windows: Vec<Vec<Tensor>>,
}

impl Checkpoint {
    /// Where it stands.
    pub fn position(&self) -> usize {
        self.len
    }

    /// The slots alone, for those who keep pages themselves.
    pub fn without_pages(self) -> Checkpoint {
        Checkpoint { windows: Vec::new(), ..self }
    }

    /// The slots, layer by layer.
    pub fn slots(&self) -> impl Iterator<Item = &Tensor> {
        self.slots.iter().flatten()
    }

    /// The slots, for filling.
    pub fn slots_mut(&mut self) -> impl Iterator<Item = &mut Tensor> {
        self.slots.iter_mut().flatten()
    }

    /// Slots for a state that stands at `len`, to be filled: what `specs` ask for, with any content.
    pub fn blank(len: usize, specs: &[StateSpec], backend: &dyn Backend) -> Result<Checkpoint> {
        let of = |spec: &StateSpec| -> Result<Vec<Tensor>> {
            spec.slots.iter().map(|s| Ok(backend.blank(&s.shape, DType::F32, Class::State)?)).collect()
        };
        Ok(Checkpoint { len, slots: specs.iter().map(of).collect::<Result<_>>()?, windows: Vec::new() })
    }
}

impl State {
    /// An empty state with these layers.
    pub(crate) fn new(standing: Arc<Standing>, layers: Vec<LayerState>) -> State {
        State { len: 0, half_done: false, standing, layers }
    }

    /// Tokens it has read.
    pub fn len(&self) -> usize {
        self.len
    }

    /// False after a step that failed half-way: only `rewind` helps then.
    pub fn is_whole(&self) -> bool {
        !self.half_done
    }

    /// True before the first token.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What its layers need in order to stand somewhere.
    pub fn standing(&self) -> &Standing {
        &self.standing
    }

    /// The layers.
    pub fn layers(&self) -> &[LayerState] {
        &self.layers
    }

    fn pages(&self) -> impl Iterator<Item = &Pages> {
        self.layers.iter().filter_map(|l| l.kv.as_ref())
    }

    fn pages_mut(&mut self) -> impl Iterator<Item = &mut Pages> {
        self.layers.iter_mut().filter_map(|l| l.kv.as_mut())
    }

    /// Handles of page `p`.
    pub fn page(&self, p: usize) -> Page {
        let mut page = Page::default();
        for pages in self.pages() {
            let Some(tensor) = pages.pages.get(p).filter(|t| !t.is_hole()) else { continue };
            if pages.windowed() { &mut page.windowed } else { &mut page.whole }.push(tensor.clone());
        }
        page
    }

    /// Puts shared handles with the same content in place of its own page `p`, of what it has and what `page` has.
    pub fn share_page(&mut self, p: usize, page: &Page) {
        for windowed in [false, true] {
            let own = self.pages_mut().filter(|l| l.windowed() == windowed);
            let own = own.filter_map(|l| l.pages.get_mut(p).filter(|t| !t.is_hole()));
            let shared = if windowed { &page.windowed } else { &page.whole };
            own.zip(shared).for_each(|(own, shared)| own.clone_from(shared));
        }
    }

    /// Shape and type of one page of each layer with keys and values.
    pub fn page_specs(&self) -> PageSpecs {
        let of = |windowed| self.pages().filter(|l| l.windowed() == windowed).map(|l| l.spec).collect();
        PageSpecs { whole: of(false), windowed: of(true) }
    }

    /// A state of the same layers that stands at `len`, over shared pages (each as `page` gives them) and the slots of a
    /// checkpoint taken there. None if a page that it needs is missing, or the checkpoint where one is needed.
    pub fn at<'a>(
        &self,
        len: usize,
        pages: impl Iterator<Item = &'a Page>,
        point: Option<&Checkpoint>,
    ) -> Option<State> {
        let mut state = State { len, half_done: false, ..self.clone() };
        state.layers.iter_mut().for_each(|l| {
            l.slots.clear();
            l.kv.iter_mut().for_each(|kv| kv.pages.clear());
        });
        let (needed, held) = (self.standing.needed(len), self.standing.held(len));
        let mut seen = 0;
        for page in pages {
            let (mut whole, mut windowed) = (page.whole.iter(), page.windowed.iter());
            for own in state.pages_mut() {
                let tensor = match own.windowed() {
                    false => whole.next()?.clone(),
                    true => match windowed.next().filter(|_| held.contains(&seen)) {
                        Some(tensor) => tensor.clone(),
                        None if needed.contains(&seen) => return None,
                        None => Tensor::hole(own.spec.dtype),
                    },
                };
                own.pages.push(tensor);
            }
            seen += 1;
        }
        if seen != len.div_ceil(PAGE_TOKENS) {
            return None;
        }
        if self.standing.recurrent() && len > 0 {
            let point = point.filter(|c| c.len == len && c.slots.len() == state.layers.len())?;
            for (layer, slots) in state.layers.iter_mut().zip(&point.slots) {
                layer.slots.clone_from(slots);
            }
        }
        Some(state)
    }

    /// Bytes it refers to; shared pages count in full.
    pub fn bytes(&self) -> usize {
        let of = |l: &LayerState| {
            l.kv.as_ref().map_or(0, |kv| kv.pages.iter().map(Tensor::len_bytes).sum::<usize>())
                + l.slots.iter().map(Tensor::len_bytes).sum::<usize>()
        };
        self.layers.iter().map(of).sum()
    }

    /// A second future: shares every page and slot until one side writes.
    pub fn fork(&self) -> State {
        self.clone()
    }

    /// What it takes to stand here again: recurrent slots and the pages of windowed layers. Costs handles only; the next step copies
    /// what it overwrites.
    pub fn checkpoint(&self) -> Checkpoint {
        let held = |l: &LayerState| match l.kv.as_ref().filter(|kv| kv.windowed()) {
            Some(kv) => kv.pages[self.standing.held(self.len).start.min(kv.pages.len())..].to_vec(),
            None => Vec::new(),
        };
        Checkpoint {
            len: self.len,
            slots: self.layers.iter().map(|l| l.slots.clone()).collect(),
            windows: self.layers.iter().map(held).collect(),
        }
    }

    /// Goes back to `to` tokens. Recurrent layers need a checkpoint that was taken exactly there; windowed ones need it where their pages
    /// were given back since; others need none. False, and nothing changed, if it is missing.
    pub fn rewind(&mut self, to: usize, checkpoint: Option<&Checkpoint>) -> bool {
        if to > self.len {
            return false;
        }
        if to == self.len && !self.half_done {
            return true;
        }
        let point = checkpoint.filter(|c| c.len == to && c.slots.len() == self.layers.len());
        if to > 0 && self.standing.recurrent() && point.is_none() {
            return false;
        }
        let needed = self.standing.needed(to);
        let there = |l: &Pages| l.pages.get(needed.clone()).is_some_and(|own| !own.iter().any(Tensor::is_hole));
        let kept = self.pages().filter(|l| l.windowed()).all(there);
        let windows = point.map_or(&[][..], |c| &c.windows);
        let given = |(l, window): (&LayerState, &Vec<Tensor>)| match l.kv.as_ref().filter(|kv| kv.windowed()) {
            Some(_) => {
                window.len() >= needed.len() && !window[window.len() - needed.len()..].iter().any(Tensor::is_hole)
            }
            None => true,
        };
        let given = windows.len() == self.layers.len() && self.layers.iter().zip(windows).all(given);
        if !kept && !given {
            return false;
        }
        let pages = to.div_ceil(PAGE_TOKENS);
        for (i, layer) in self.layers.iter_mut().enumerate() {
            // Slots begin as zeros; `begin` makes them anew.
            layer.slots = point.filter(|_| to > 0).map_or(Vec::new(), |c| c.slots[i].clone());
            let Some(kv) = &mut layer.kv else { continue };
            kv.pages.truncate(pages);
            if kv.windowed() && given && !kept {
                let from = pages - windows[i].len();
                kv.give_back(from);
                kv.pages[from..].clone_from_slice(&windows[i]);
            }
        }
        self.len = to;
        self.half_done = false;
        true
    }

    /// Bytes that a step of `n` tokens will take before it computes: new pages and slots, and copies of what others share.
    pub fn growth(&self, specs: &[StateSpec], n: usize) -> usize {
        let copied = |t: &Tensor| if t.shared_by() > 1 { t.len_bytes() } else { 0 };
        let of = |(layer, spec): (&LayerState, &StateSpec)| {
            let pages = layer.kv.as_ref().map_or(0, |kv| {
                let more = (self.len + n).div_ceil(PAGE_TOKENS).saturating_sub(kv.pages.len());
                more * kv.spec.page_bytes() + kv.pages.get(self.len / PAGE_TOKENS).map_or(0, copied)
            });
            let fresh = if layer.slots.is_empty() { spec.fixed_bytes() } else { 0 };
            pages + fresh + layer.slots.iter().map(copied).sum::<usize>()
        };
        self.layers.iter().zip(specs).map(of).sum()
    }

    /// Before a step of `n` tokens: everything it writes exists and is unshared.
    pub(crate) fn begin(&mut self, backend: &dyn Backend, specs: &[StateSpec], n: usize) -> Result<()> {
        if self.half_done {
            return Err(Error::Poisoned);
        }
        for (layer, spec) in self.layers.iter_mut().zip(specs) {
            if let Some(pages) = &mut layer.kv {
                pages.reserve(backend, self.len, self.len + n)?;
            }
            if layer.slots.is_empty() {
                for slot in &spec.slots {
                    layer.slots.push(backend.alloc(&slot.shape, DType::F32, Class::State)?);
                }
            }
            for slot in &mut layer.slots {
                if !slot.is_unique() {
                    *slot = backend.copy(slot, Class::State)?;
                }
            }
        }
        self.half_done = true;
        Ok(())
    }

    /// After a step of `n` tokens: pages that no later token can see are given back.
    pub(crate) fn advance(&mut self, n: usize) {
        self.len += n;
        self.half_done = false;
        let held = self.standing.held(self.len);
        self.pages_mut().filter(|l| l.windowed()).for_each(|l| l.give_back(held.start));
    }

    /// The layers, writable: the forward's alone.
    pub(crate) fn layers_mut(&mut self) -> &mut [LayerState] {
        &mut self.layers
    }
}
