//! Causal attention over pages. Tiles are pages at absolute positions; `SPAN_PAGES` pages make one chain of the online
//! softmax, and chains are merged from left to right, whether one thread walked them or several. Which rows share a
//! block and which thread takes it changes no bit. Knows nothing of how keys came into their pages.

mod tile;

use std::ops::Range;

use half::{bf16, f16};
use reverie_tensor::backend::{PAGE_TOKENS, SPAN_PAGES};
use reverie_tensor::{AttendSpec, Class, DType, Error, KvSegment, Reach, Result, Tensor};

use super::{host, kv, split};
use crate::isa::Caches;
use crate::simd::{LANES, Lanes};
use crate::{Cpu, dispatch};
use kv::Element;
use tile::{Pair, Running, Tile};

/// Tokens of one chain of the online softmax.
const SPAN_TOKENS: usize = SPAN_PAGES * PAGE_TOKENS;

/// Pairs (position, query head) of one block at most, where one position has fewer heads per key head than this. Their
/// running values and queries stay in the second-level cache beside a page.
const BLOCK_PAIRS: usize = 64;

/// Bytes of pages that are in a cache when the next token comes, with those of all other layers: past so many they are read past
/// the caches, as weights are.
const PAGES_THAT_STAY: usize = 1 << 20;

/// How a call is cut, from its sizes alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cut {
    /// Query heads of one key head.
    per_head: usize,
    /// Positions of one block at most.
    block_rows: usize,
    /// f32 of one running softmax.
    state: usize,
    /// Chains that the longest context has.
    spans: usize,
    /// True if the chains of one block are tasks of their own, merged afterwards.
    by_span: bool,
    /// f32 of the running values of all tasks.
    body: usize,
    /// f32 that a lane takes to turn the values of a page that lie in its keys.
    turned: usize,
    /// f32 of the workspace.
    workspace: usize,
}

impl Cut {
    fn new(threads: usize, rows: usize, keys: usize, spec: &AttendSpec) -> Cut {
        // Fewer tasks than four a thread are too few to keep all threads busy.
        let heads = spec.kv.n_heads.max(1);
        let per_head = (spec.n_heads / heads).max(1);
        let most = (BLOCK_PAIRS / per_head).max(1);
        let state = Running::len(spec.v_dim());
        let turned = spec.latent.map_or(0, |l| l.value * PAGE_TOKENS);
        let spans = keys.div_ceil(SPAN_TOKENS).max(1);
        let by_span = spans > 1 && rows * heads < 4 * threads;
        let block_rows = if by_span { most } else { (rows * heads / (4 * threads)).clamp(1, most) };
        let body = if by_span {
            rows * spec.n_heads * spans * state
        } else {
            threads * block_rows * per_head * spans.min(2) * state
        };
        Cut { per_head, block_rows, state, spans, by_span, body, turned, workspace: body + threads * turned }
    }
}

/// See `Backend::attend_workspace`.
pub(crate) fn workspace(cpu: &Cpu, rows: usize, keys: usize, spec: &AttendSpec) -> usize {
    Cut::new(cpu.threads(), rows, keys, spec).workspace * size_of::<f32>()
}

/// Neighbouring positions of one sequence and the query heads of one key head.
#[derive(Clone)]
struct Block<'a> {
    pages: &'a [Tensor],
    /// Rows of the batch.
    rows: Range<usize>,
    /// Absolute position of the first.
    start: usize,
    head: usize,
}

impl Block<'_> {
    /// Keys that row `i` of the block sees.
    fn keys(&self, i: usize, reach: Reach) -> Range<usize> {
        let position = self.start + i;
        reach.first(position)..position + 1
    }

    /// Chains that row `i` of the block has.
    fn row_spans(&self, i: usize, reach: Reach) -> Range<usize> {
        let keys = self.keys(i, reach);
        keys.start / SPAN_TOKENS..keys.end.div_ceil(SPAN_TOKENS)
    }

    /// Chains that any row of the block has.
    fn spans(&self, reach: Reach) -> Range<usize> {
        self.row_spans(0, reach).start..self.row_spans(self.rows.len() - 1, reach).end
    }
}

/// What every task of a call reads.
struct Call<'a> {
    spec: &'a AttendSpec,
    cut: Cut,
    q: &'a [f32],
    sinks: Option<&'a [f32]>,
    caches: Caches,
}

/// See `Backend::attend`.
pub(crate) fn run(cpu: &Cpu, q: &Tensor, segments: &[KvSegment<'_>], spec: &AttendSpec) -> Result<Tensor> {
    kv::check("attend", &spec.kv)?;
    let (h, g) = (spec.n_heads, spec.kv.n_heads);
    if h == 0 || h % g != 0 {
        return Err(Error::shape("attend", (h, g), "query heads in a multiple of the key heads"));
    }
    if let Reach::Window(0) | Reach::Chunk(0) = spec.reach {
        return Err(Error::value("attend: reach", format!("{:?}", spec.reach), "at least 1: a token sees itself"));
    }
    let values = host::f32s("attend", q)?;
    let (dq, dv) = (spec.q_dim(), spec.v_dim());
    if dq == 0 || dv == 0 || spec.latent.is_some_and(|l| l.query > spec.kv.k_dim || l.value > spec.kv.k_dim) {
        return Err(Error::shape("attend", (dq, dv), "a query and a value, no wider than the key that holds them"));
    }
    let t = values.len() / (h * dq);
    if values.len() != t * h * dq {
        return Err(Error::shape("attend", q.shape(), ("T", h, dq)));
    }
    let sinks = spec.sinks.as_ref().map(|s| host::f32s_of("attend sinks", s, h)).transpose()?;
    let whole = split::covers("attend", segments.iter().map(|s| s.rows.clone()), t)?;
    let (mut keys, mut pages) = (0, 0);
    for segment in segments {
        for page in &segment.pages[segment.reached("attend", spec.reach)?] {
            pages += 1;
            kv::check_page("attend", page, &spec.kv)?;
            page.host_bytes().ok_or_else(|| host::elsewhere("attend"))?;
        }
        keys = keys.max(segment.start + segment.rows.len());
    }

    if let Some(keep) = &spec.keep
        && (keep.n_groups == 0 || h % keep.n_groups != 0 || keep.bits.len() != t * keep.n_groups * keep.n_pages)
    {
        return Err(Error::shape("attend: kept keys", (keep.n_groups, keep.bits.len()), (h, t)));
    }
    let mut y = cpu.out(&[t, h * dv])?;
    let out = host::f32s_mut("attend", &mut y)?;
    if !whole {
        out.fill(0.0);
    }
    let cut = Cut::new(cpu.threads(), t, keys, spec);
    let mut buffer = cpu.memory.take(cut.workspace * size_of::<f32>(), Class::Scratch)?;
    let work = split::Parts::new(buffer.cast_mut::<f32>().ok_or_else(|| host::elsewhere("attend"))?);
    // A page that one token sees is read once a token, and is gone by the next unless they are few; later rows read it again.
    let once = pages * spec.kv.page_bytes() > PAGES_THAT_STAY && segments.iter().all(|s| s.rows.len() <= 1);
    let caches = cpu.read_ahead.filter(|_| once).map_or(Caches::Fill, |a| a.caches);
    let (out, call) = (split::Parts::new(out), Call { spec, cut, q: values, sinks, caches });
    let blocks = blocks(segments, g, cut.block_rows);
    if cut.by_span {
        by_span(cpu, &call, &blocks, (&work, &out));
    } else {
        by_block(cpu, &call, &blocks, (&work, &out));
    }
    Ok(y)
}

/// All blocks of a call, those with the most keys of their sequence first: the last tasks to be taken are then small.
fn blocks<'a>(segments: &'a [KvSegment<'_>], heads: usize, block_rows: usize) -> Vec<Block<'a>> {
    let mut blocks = Vec::new();
    for segment in segments {
        let n = segment.rows.len();
        for head in 0..heads {
            for first in (0..n).step_by(block_rows).rev() {
                let rows = segment.rows.start + first..segment.rows.start + n.min(first + block_rows);
                blocks.push(Block { pages: segment.pages, rows, start: segment.start + first, head });
            }
        }
    }
    blocks
}

/// One task a thread, each taking block after block and walking its chains one after another in its own piece of the
/// workspace.
fn by_block(
    cpu: &Cpu,
    call: &Call<'_>,
    blocks: &[Block<'_>],
    (work, out): (&split::Parts<'_, f32>, &split::Parts<'_, f32>),
) {
    let (cut, lanes) = (call.cut, cpu.threads().min(blocks.len()));
    let (piece, stretches) = (cut.body / cpu.threads(), split::Stretches::new(blocks.len(), lanes));
    cpu.pool.run(lanes, &|slot| {
        // SAFETY: one piece a task.
        let state = unsafe { work.part(slot * piece..(slot + 1) * piece) }.as_mut_ptr();
        let turned = turned(cut, work, slot);
        for block in stretches.each(slot).map(|i| &blocks[i]) {
            let size = block.rows.len() * cut.per_head * cut.state;
            for (nth, span) in block.spans(call.spec.reach).enumerate() {
                // SAFETY: the piece holds two sets of running softmaxes, one if there is only one chain.
                let place = unsafe { state.add(size * nth.min(1)) };
                chain(cpu, call, block, (span, place, turned));
                if nth > 0 {
                    join(cpu, call, block, (span, state, place));
                }
            }
            finish(cpu, call, block, (state, out));
        }
    });
}

/// One task a chain, then the merges, in the order that `by_block` has.
fn by_span(
    cpu: &Cpu,
    call: &Call<'_>,
    blocks: &[Block<'_>],
    (work, out): (&split::Parts<'_, f32>, &split::Parts<'_, f32>),
) {
    let (cut, reach) = (call.cut, call.spec.reach);
    // Chain s of a block lies after its chains before s, and a block after the blocks before it.
    let (mut tasks, mut at) = (Vec::new(), 0);
    let mut places = Vec::with_capacity(blocks.len());
    for (b, block) in blocks.iter().enumerate() {
        places.push(at);
        let size = block.rows.len() * cut.per_head * cut.state;
        for span in block.spans(reach) {
            tasks.push((b, span, at..at + size));
            at += size;
        }
    }
    let lanes = cpu.threads().min(tasks.len());
    let stretches = split::Stretches::new(tasks.len(), lanes);
    cpu.pool.run(lanes, &|lane| {
        let turned = turned(cut, work, lane);
        for (b, span, place) in stretches.each(lane).map(|i| &tasks[i]) {
            let block = &blocks[*b];
            // SAFETY: one place a task.
            let state = unsafe { work.part(place.clone()) }.as_mut_ptr();
            chain(cpu, call, block, (*span, state, turned));
        }
    });
    let pairs = cut.per_head * cut.spans;
    split::ranges(cpu, blocks.len(), pairs * cut.state, &|range| {
        for b in range {
            let (block, size) = (&blocks[b], blocks[b].rows.len() * cut.per_head * cut.state);
            // SAFETY: the chains of one block are one task's now.
            let state = unsafe { work.part(places[b]..places[b] + size * block.spans(reach).len()) }.as_mut_ptr();
            for (nth, span) in block.spans(reach).enumerate().skip(1) {
                // SAFETY: the places of a block's chains follow one another.
                let later = unsafe { state.add(nth * size) };
                join(cpu, call, block, (span, state, later));
            }
            finish(cpu, call, block, (state, out));
        }
    });
}

/// Where lane `lane` turns values.
fn turned(cut: Cut, work: &split::Parts<'_, f32>, lane: usize) -> *mut f32 {
    let first = cut.body + lane * cut.turned;
    // SAFETY: one place a lane, after those of the running softmaxes.
    unsafe { work.part(first..first + cut.turned) }.as_mut_ptr()
}

/// A chain, where its running softmaxes are, where values are turned.
type Place = (usize, *mut f32, *mut f32);

/// A chain of every pair of a block.
fn chain(cpu: &Cpu, call: &Call<'_>, block: &Block<'_>, place: Place) {
    match call.spec.kv.dtype {
        DType::F16 => dispatch!(cpu.isa, chain_f16(call: &Call<'_>, block: &Block<'_>, place: Place)),
        DType::BF16 => dispatch!(cpu.isa, chain_bf16(call: &Call<'_>, block: &Block<'_>, place: Place)),
        _ => dispatch!(cpu.isa, chain_f32(call: &Call<'_>, block: &Block<'_>, place: Place)),
    }
}

#[inline(always)]
unsafe fn chain_f16<S: Lanes>(call: &Call<'_>, block: &Block<'_>, place: Place) {
    // SAFETY: the caller's.
    unsafe { chain_of::<S, f16>(call, block, place) }
}

#[inline(always)]
unsafe fn chain_bf16<S: Lanes>(call: &Call<'_>, block: &Block<'_>, place: Place) {
    // SAFETY: the caller's.
    unsafe { chain_of::<S, bf16>(call, block, place) }
}

#[inline(always)]
unsafe fn chain_f32<S: Lanes>(call: &Call<'_>, block: &Block<'_>, place: Place) {
    // SAFETY: the caller's.
    unsafe { chain_of::<S, f32>(call, block, place) }
}

/// Chain `span` of a block, at `later`, joins the chains before it, at `state`.
fn join(cpu: &Cpu, call: &Call<'_>, block: &Block<'_>, (span, state, later): (usize, *mut f32, *mut f32)) {
    dispatch!(cpu.isa, join_rows(call: &Call<'_>, block: &Block<'_>, span: usize, state: *mut f32, later: *mut f32));
}

#[inline(always)]
unsafe fn join_rows<S: Lanes>(call: &Call<'_>, block: &Block<'_>, span: usize, state: *mut f32, later: *mut f32) {
    let n = call.cut.per_head * call.cut.state;
    for i in 0..block.rows.len() {
        let of_row = block.row_spans(i, call.spec.reach);
        // SAFETY: both sets hold every pair of the block; the set is the caller's.
        unsafe {
            let (state, later) = (state.add(i * n), later.add(i * n));
            if of_row.start == span {
                // The row's first chain: nothing to merge with.
                std::ptr::copy_nonoverlapping(later, state, n);
            } else if of_row.contains(&span) {
                for at in (0..n).step_by(call.cut.state) {
                    let before = Running::at(state.add(at), call.spec.v_dim());
                    before.merge::<S>(Running::at(later.add(at), call.spec.v_dim()));
                }
            }
        }
    }
}

/// The results of a block whose chains are joined at `state`.
fn finish(cpu: &Cpu, call: &Call<'_>, block: &Block<'_>, (state, out): (*mut f32, &split::Parts<'_, f32>)) {
    dispatch!(cpu.isa, finish_rows(call: &Call<'_>, block: &Block<'_>, state: *mut f32, out: &split::Parts<'_, f32>));
}

#[inline(always)]
unsafe fn finish_rows<S: Lanes>(call: &Call<'_>, block: &Block<'_>, state: *mut f32, out: &split::Parts<'_, f32>) {
    let (h, dv, per_head) = (call.spec.n_heads, call.spec.v_dim(), call.cut.per_head);
    for (i, row) in block.rows.clone().enumerate() {
        for g in 0..per_head {
            let head = block.head * per_head + g;
            // SAFETY: every row and head is one block's; the set is the caller's.
            unsafe {
                let place = out.part((row * h + head) * dv..(row * h + head + 1) * dv);
                let running = Running::at(state.add((i * per_head + g) * call.cut.state), dv);
                running.finish::<S>(call.sinks.map(|s| s[head]), place);
            }
        }
    }
}

/// The values of a page `[Dv, P]`, as they lie in its keys, to `[P, Dv]`.
///
/// # Safety
/// Both are valid for Dv · P elements.
unsafe fn turn<E: Element>(keys: *const E, values: *mut E, v_dim: usize) {
    for first in (0..v_dim).step_by(LANES) {
        for slot in 0..PAGE_TOKENS {
            for d in first..v_dim.min(first + LANES) {
                // SAFETY: within both by contract.
                unsafe { *values.add(slot * v_dim + d) = *keys.add(d * PAGE_TOKENS + slot) };
            }
        }
    }
}

#[inline(always)]
unsafe fn chain_of<S: Lanes, E: Element>(call: &Call<'_>, block: &Block<'_>, (span, state, turned): Place) {
    let (spec, cut) = (call.spec, call.cut);
    let (kv, n, dq, dv) = (&spec.kv, block.rows.len(), spec.q_dim(), spec.v_dim());
    let running = |pair: usize| Running::at(state.wrapping_add(pair * cut.state), dv);
    let turned = turned.cast::<E>();
    // SAFETY: `state` holds every pair of the block; pages and queries were checked in `run`.
    unsafe {
        for pair in 0..n * cut.per_head {
            running(pair).open::<S>();
        }
        let pages =
            block.keys(0, spec.reach).start / PAGE_TOKENS..block.keys(n - 1, spec.reach).end.div_ceil(PAGE_TOKENS);
        let own = pages.start.max(span * SPAN_PAGES)..pages.end.min((span + 1) * SPAN_PAGES);
        // The next chain is this thread's too, unless chains are tasks.
        let walked = if cut.by_span { own.end } else { pages.end };
        for page in own {
            let Some(bytes) = block.pages[page].host_bytes() else { return };
            let next = block.pages[..walked].get(page + 1).and_then(Tensor::host_bytes).unwrap_or(bytes);
            let [keys, next] =
                [bytes, next].map(|b| b.as_ptr().cast::<E>().wrapping_add(block.head * kv.head_elements()));
            let values = match spec.latent {
                Some(_) => {
                    turn(keys, turned, dv);
                    turned.cast_const()
                }
                None => keys.add(kv.k_dim * PAGE_TOKENS),
            };
            let tile = Tile {
                keys,
                values,
                k_dim: dq,
                v_dim: dv,
                scale: spec.scale,
                softcap: spec.softcap,
                next_keys: next,
                next_values: next.wrapping_add(kv.k_dim * PAGE_TOKENS),
                caches: call.caches,
            };
            let first = page * PAGE_TOKENS;
            let none = Pair { query: call.q.as_ptr(), running: running(0), from: 0, to: 0, kept: !0 };
            let mut pairs = [none; tile::PAIRS];
            let mut held = 0;
            for pair in 0..n * cut.per_head {
                let (i, g) = (pair / cut.per_head, pair % cut.per_head);
                let seen = block.keys(i, spec.reach);
                let (from, to) = (seen.start.max(first), seen.end.min(first + PAGE_TOKENS));
                let (row, head) = (block.rows.start + i, block.head * cut.per_head + g);
                let kept = spec.keep.as_ref().map_or(!0, |k| k.page(row, (head, spec.n_heads), page));
                if from < to && kept != 0 {
                    let query = call.q.as_ptr().add((row * spec.n_heads + head) * dq);
                    pairs[held] = Pair { query, running: running(pair), from: from - first, to: to - first, kept };
                    held += 1;
                }
                if held == pairs.len() || (pair + 1 == n * cut.per_head && held > 0) {
                    tile::absorb::<S, E>(&tile, &pairs[..held]);
                    held = 0;
                }
            }
        }
        for pair in 0..n * cut.per_head {
            running(pair).close::<S>();
        }
    }
}
