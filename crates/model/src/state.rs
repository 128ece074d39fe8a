//! What a sequence leaves behind in each layer: pages of keys and values, and recurrent slots. Forks share handles, writers
//! unshare first; nothing is copied in order to be held. Knows no mixer and no token.

use reverie_tensor::backend::PAGE_TOKENS;
use reverie_tensor::{Backend, Class, DType, KvSpec, Tensor};

use crate::error::{Error, Result};

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

    /// Bytes that each token adds, with keys and values of `dtype`.
    pub fn bytes_per_token(&self, dtype: DType) -> usize {
        self.kv.map_or(0, |kv| kv.n_heads * (kv.k_dim + kv.v_dim) * dtype.size())
    }

    /// Bytes that do not grow.
    pub fn fixed_bytes(&self) -> usize {
        self.slots.iter().map(|s| s.shape.iter().product::<usize>() * 4).sum()
    }
}

/// The pages of one layer, from position 0.
#[derive(Clone)]
pub struct Pages {
    /// Layout and dtype.
    pub spec: KvSpec,
    /// One tensor a page.
    pub pages: Vec<Tensor>,
}

impl Pages {
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
}

/// The state of one layer.
#[derive(Clone, Default)]
pub struct LayerState {
    /// Keys and values, if the mixer needs them.
    pub kv: Option<Pages>,
    /// Recurrent slots in the order of the mixer's `StateSpec`.
    pub slots: Vec<Tensor>,
}

/// Where the states of a model can stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// After any token.
    Anywhere,
    /// Where slots were kept: some layer is recurrent.
    AtMarks,
}

/// The state of one sequence.
#[derive(Clone)]
pub struct State {
    len: usize,
    half_done: bool,
    layers: Vec<LayerState>,
}

/// The recurrent slots of a sequence as they stood at one position. Empty for a model without recurrence.
#[derive(Clone)]
pub struct Checkpoint {
    len: usize,
    slots: Vec<Vec<Tensor>>,
}

impl Checkpoint {
    /// Where it stands.
    pub fn position(&self) -> usize {
        self.len
    }

    /// Bytes of the slots it holds.
    pub fn bytes(&self) -> usize {
        self.tensors().map(Tensor::len_bytes).sum()
    }

    /// The slots, layer by layer.
    pub fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        self.slots.iter().flatten()
    }

    /// The slots, for filling.
    pub fn tensors_mut(&mut self) -> impl Iterator<Item = &mut Tensor> {
        self.slots.iter_mut().flatten()
    }

    /// Slots for a state that stands at `len`, to be filled: what `specs` ask for, with any content.
    pub fn blank(len: usize, specs: &[StateSpec], backend: &dyn Backend) -> Result<Checkpoint> {
        let of = |spec: &StateSpec| -> Result<Vec<Tensor>> {
            spec.slots.iter().map(|s| Ok(backend.blank(&s.shape, DType::F32, Class::State)?)).collect()
        };
        Ok(Checkpoint { len, slots: specs.iter().map(of).collect::<Result<_>>()? })
    }
}

impl State {
    /// An empty state with these layers.
    pub(crate) fn new(layers: Vec<LayerState>) -> State {
        State { len: 0, half_done: false, layers }
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

    /// True if some layer can stand only where it was snapshotted.
    pub fn is_recurrent(&self) -> bool {
        self.layers.iter().any(|l| !l.slots.is_empty())
    }

    /// The layers.
    pub fn layers(&self) -> &[LayerState] {
        &self.layers
    }

    /// Handles of page `p`, one a layer with keys and values.
    pub fn page(&self, p: usize) -> Vec<Tensor> {
        self.layers.iter().filter_map(|l| l.kv.as_ref()?.pages.get(p).cloned()).collect()
    }

    /// Puts shared handles with the same content in place of its own page `p`.
    pub fn share_page(&mut self, p: usize, page: &[Tensor]) {
        let own = self.layers.iter_mut().filter_map(|l| l.kv.as_mut()?.pages.get_mut(p));
        for (own, shared) in own.zip(page) {
            own.clone_from(shared);
        }
    }

    /// Shape and type of one page of each layer with keys and values.
    pub fn page_specs(&self) -> Vec<KvSpec> {
        self.layers.iter().filter_map(|l| l.kv.as_ref().map(|kv| kv.spec)).collect()
    }

    /// A state of the same layers that stands at `len`, over shared pages (each as `page` gives them) and the slots of a
    /// checkpoint taken there. None if a page is missing, or the checkpoint where one is needed.
    pub fn standing<'a>(
        &self,
        len: usize,
        standing: Standing,
        pages: impl Iterator<Item = &'a [Tensor]>,
        point: Option<&Checkpoint>,
    ) -> Option<State> {
        let mut layers: Vec<LayerState> = self.layers.clone();
        layers.iter_mut().for_each(|l| {
            l.slots.clear();
            l.kv.iter_mut().for_each(|kv| kv.pages.clear());
        });
        let mut seen = 0;
        for page in pages {
            let kept: Vec<_> = layers.iter_mut().filter_map(|l| l.kv.as_mut()).collect();
            if kept.len() != page.len() {
                return None;
            }
            kept.into_iter().zip(page).for_each(|(kv, tensor)| kv.pages.push(tensor.clone()));
            seen += 1;
        }
        if seen != len.div_ceil(PAGE_TOKENS) {
            return None;
        }
        if standing == Standing::AtMarks && len > 0 {
            let point = point.filter(|c| c.len == len && c.slots.len() == layers.len())?;
            for (layer, slots) in layers.iter_mut().zip(&point.slots) {
                layer.slots.clone_from(slots);
            }
        }
        Some(State { len, half_done: false, layers })
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

    /// The recurrent slots as they stand now. Costs handles only; the next step copies what it overwrites.
    pub fn checkpoint(&self) -> Checkpoint {
        Checkpoint { len: self.len, slots: self.layers.iter().map(|l| l.slots.clone()).collect() }
    }

    /// Goes back to `to` tokens. A recurrent state needs a checkpoint that stands exactly there; attention alone needs none.
    /// False, and nothing changed, if the checkpoint is missing.
    pub fn rewind(&mut self, to: usize, checkpoint: Option<&Checkpoint>) -> bool {
        if to > self.len {
            return false;
        }
        if to == self.len && !self.half_done {
            return true;
        }
        if to == 0 {
            // Slots begin as zeros; `begin` makes them anew.
            self.layers.iter_mut().for_each(|l| l.slots.clear());
        } else if self.is_recurrent() {
            let Some(point) = checkpoint.filter(|c| c.len == to && c.slots.len() == self.layers.len()) else {
                return false;
            };
            for (layer, slots) in self.layers.iter_mut().zip(&point.slots) {
                layer.slots.clone_from(slots);
            }
        }
        for pages in self.layers.iter_mut().filter_map(|l| l.kv.as_mut()) {
            pages.pages.truncate(to.div_ceil(PAGE_TOKENS));
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

    /// After a step of `n` tokens.
    pub(crate) fn advance(&mut self, n: usize) {
        self.len += n;
        self.half_done = false;
    }

    /// The layers, writable: the forward's alone.
    pub(crate) fn layers_mut(&mut self) -> &mut [LayerState] {
        &mut self.layers
    }
}
