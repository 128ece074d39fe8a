//! The inner loops of matrix products: one panel of sixteen rows times a tile of columns, each output one chain along K. The
//! width of a tile, the instruction set and where a chain was cut in between change no bit. Knows no tensors.

#![allow(unsafe_op_in_unsafe_fn)] // every unsafe function states its contract once
#![allow(clippy::needless_range_loop)] // lanes of several arrays go by one index

use std::marker::PhantomData;

use crate::isa::{Caches, LINE_BYTES, ReadAhead};
use crate::ops::panel::{UNIT, Width, each_quad, fetch_ahead, whole_scales};
use crate::simd::{Dot, Kernel, LANES, Lanes};

/// Int8 columns as a tile reads them: per unit of 32 k, one column beside the other.
#[derive(Clone, Copy)]
pub(crate) struct Columns {
    /// `[units][C][32]`.
    pub(crate) q: *mut i8,
    /// Scale of a unit: `[units][C]`.
    pub(crate) scale: *mut f32,
    /// Σq of a unit: `[units][C]`.
    pub(crate) sum: *mut i32,
    /// Σq of its halves: `[units][2][C]`.
    pub(crate) half_sum: *mut i32,
    /// scale · Σq: `[units][C]`.
    pub(crate) scaled: *mut f32,
    /// Σq of both halves, 16 bits each: `[units][C]`.
    pub(crate) halves: *mut i32,
}

impl Columns {
    /// The same columns from unit `u` on, in a tile of `c` columns.
    pub(crate) fn at_unit(self, u: usize, c: usize) -> Columns {
        Columns {
            q: self.q.wrapping_add(u * c * UNIT),
            scale: self.scale.wrapping_add(u * c),
            sum: self.sum.wrapping_add(u * c),
            half_sum: self.half_sum.wrapping_add(2 * u * c),
            scaled: self.scaled.wrapping_add(u * c),
            halves: self.halves.wrapping_add(u * c),
        }
    }

    /// The columns from number `c` on, `units` units each.
    pub(crate) fn at_column(self, c: usize, units: usize) -> Columns {
        Columns { q: self.q.wrapping_add(c * units * UNIT), ..self.at_unit(c * units, 1) }
    }
}

/// A slice of K of one panel.
#[derive(Clone, Copy)]
pub(crate) struct Slice {
    pub(crate) codes: *const u8,
    /// Sixteen bytes; read for table levels only.
    pub(crate) table: *const u8,
    /// Code byte minus this is the level.
    pub(crate) zero: i32,
    /// `[blocks][16]`; where halves are joined as `whole_scales` says.
    pub(crate) scales: *const f32,
    /// As `scales`, or null.
    pub(crate) biases: *const f32,
    /// Units that share a scale, as a power of two. Not read where a scale serves half a unit.
    pub(crate) units_per_scale_log2: u32,
    pub(crate) units: usize,
    /// How far ahead to ask for codes.
    pub(crate) ahead: Option<ReadAhead>,
}

/// `Grain`, where kernels are compiled for each.
pub(crate) trait Share {
    /// A scale serves 16 k and not a multiple of 32.
    const HALVES: bool;
    /// The integers of both halves become one number.
    const JOINED: bool;
}

/// `Grain::Units`.
pub(crate) struct Units;
/// `Grain::Halves`.
pub(crate) struct Halves;
/// `Grain::Joined`.
pub(crate) struct Joined;

impl Share for Units {
    const HALVES: bool = false;
    const JOINED: bool = false;
}
impl Share for Halves {
    const HALVES: bool = true;
    const JOINED: bool = false;
}
impl Share for Joined {
    const HALVES: bool = true;
    const JOINED: bool = true;
}

/// `P` panels times `C` int8 columns over a slice of K.
pub(crate) struct IntTile<W, G, const P: usize, const C: usize> {
    /// The same slice of each panel.
    pub(crate) slices: [Slice; P],
    pub(crate) x: Columns,
    /// The chains, `[C][16]` of each panel: read, continued, written.
    pub(crate) acc: [*mut f32; P],
    pub(crate) codes: PhantomData<(W, G)>,
}

impl<W: Width, G: Share, const P: usize, const C: usize> IntTile<W, G, P, C> {
    /// What the sums of a block start from: the zero of the codes, taken out for all its activations at once.
    #[inline(always)]
    unsafe fn start<S: Dot>(sums: *const i32, lift: i32) -> [S::I; C] {
        let mut acc = [S::izero(); C];
        for c in 0..C {
            acc[c] = S::isplat(*sums.add(c) * lift);
        }
        acc
    }

    /// Continues the chains of all panels by one block.
    #[inline(always)]
    unsafe fn chain<S: Dot>(&self, f: &mut [[S::F; C]; P], sums: &[[S::I; C]; P], block: usize, x: Columns) {
        for p in 0..P {
            let slice = &self.slices[p];
            let scale = S::load(slice.scales.add(block * LANES));
            for c in 0..C {
                f[p][c] = S::fma(S::to_f(sums[p][c]), S::mul(scale, S::splat(*x.scale.add(c))), f[p][c]);
            }
            if !G::HALVES && !slice.biases.is_null() {
                let bias = S::load(slice.biases.add(block * LANES));
                for c in 0..C {
                    f[p][c] = S::fma(bias, S::splat(*x.scaled.add(c)), f[p][c]);
                }
            }
        }
    }

    /// Continues the chains of all panels by unit `u`, whose halves have these sums, low and high.
    #[inline(always)]
    unsafe fn join<S: Dot>(&self, f: &mut [[S::F; C]; P], sums: [&[[S::I; C]; P]; 2], u: usize, x: Columns) {
        let (at, of_many) = whole_scales(u);
        for p in 0..P {
            let Slice { scales, biases, .. } = self.slices[p];
            let (scale, d) = (S::iload(scales.add(at * LANES).cast()), S::load(scales.add(of_many * LANES)));
            let (least, minus) = (S::iload(biases.add(at * LANES).cast()), S::load(biases.add(of_many * LANES)));
            for c in 0..C {
                let sum = S::to_f(S::dot_halves(S::halves(sums[0][p][c], sums[1][p][c]), scale));
                let total = S::to_f(S::dot_halves(S::isplat(*x.halves.add(c)), least));
                f[p][c] = S::fma(S::splat(*x.scale.add(c)), S::fma(minus, total, S::mul(d, sum)), f[p][c]);
            }
        }
    }

    /// As `units`, whose loop is shorter where nothing is to be taken out.
    #[inline(always)]
    unsafe fn lifted<S: Dot>(&self, ahead: Option<ReadAhead>, lift: i32) {
        if lift == 0 { self.units::<S>(ahead, 0) } else { self.units::<S>(ahead, lift) }
    }

    /// Continues the chains by all units. `ahead` and `lift`, what is added for each unit of activation, are constants where
    /// that makes the loop shorter.
    #[inline(always)]
    unsafe fn units<S: Dot>(&self, ahead: Option<ReadAhead>, lift: i32) {
        let s = &self.slices[0];
        let late = S::NARROW && W::RUN > 1; // The start is added when a run closes.
        let mut f = [[S::splat(0.0); C]; P];
        for p in 0..P {
            for c in 0..C {
                f[p][c] = S::load(self.acc[p].add(c * LANES));
            }
        }
        for u in 0..s.units {
            fetch_ahead::<S>(s.codes.add(u * W::BYTES), W::BYTES, ahead);
            let x = self.x.at_unit(u, C);
            let sums = if G::HALVES { x.half_sum } else { x.sum };
            let block = if G::HALVES { 2 * u } else { u >> s.units_per_scale_log2 };
            let mut low = [[S::izero(); C]; P];
            let mut acc = if late { [[S::izero(); C]; P] } else { [Self::start::<S>(sums, lift); P] };
            let mut run = [[S::open(S::izero()); C]; P];
            for p in 0..P {
                for c in 0..C {
                    run[p][c] = S::open(acc[p][c]);
                }
            }
            each_quad!(|AT| {
                let mut w = [W::quad::<S, AT>(s.codes.add(u * W::BYTES), s.table); P];
                for p in 1..P {
                    w[p] = W::quad::<S, AT>(self.slices[p].codes.add(u * W::BYTES), self.slices[p].table);
                }
                for c in 0..C {
                    let x = x.q.add(c * UNIT + 4 * AT);
                    for p in 0..P {
                        if W::RUN == 1 {
                            acc[p][c] = S::step_wide(acc[p][c], w[p], x);
                        } else {
                            run[p][c] = S::step(run[p][c], w[p], x);
                        }
                    }
                }
                let (done, half) = (AT + 1, G::HALVES && AT == 3);
                if W::RUN > 1 && (half || done == 8 || (S::NARROW && done % W::RUN == 0)) {
                    if late && (done == W::RUN || (G::HALVES && (done == 4 + W::RUN || (W::RUN >= 4 && done % 4 == 0))))
                    {
                        acc = [Self::start::<S>(if G::HALVES && done > 4 { sums.add(C) } else { sums }, lift); P];
                    }
                    for p in 0..P {
                        for c in 0..C {
                            acc[p][c] = S::close(acc[p][c], run[p][c]);
                            run[p][c] = S::open(acc[p][c]);
                        }
                    }
                }
                if half {
                    if G::JOINED {
                        low = acc;
                    } else {
                        self.chain::<S>(&mut f, &acc, block, x);
                    }
                    if !late {
                        acc = [Self::start::<S>(sums.add(C), lift); P];
                        for p in 0..P {
                            for c in 0..C {
                                run[p][c] = S::open(acc[p][c]);
                            }
                        }
                    }
                }
            });
            if G::JOINED {
                self.join::<S>(&mut f, [&low, &acc], u, x);
            } else {
                self.chain::<S>(&mut f, &acc, block + usize::from(G::HALVES), x);
            }
        }
        for p in 0..P {
            for c in 0..C {
                S::store(self.acc[p].add(c * LANES), f[p][c]);
            }
        }
    }
}

impl<W: Width, G: Share, const P: usize, const C: usize> Kernel for IntTile<W, G, P, C> {
    #[inline(always)]
    unsafe fn run<S: Dot>(self) {
        let own_zero = if W::RUN == 1 { S::WIDE_ZERO } else { 0 };
        let lift = own_zero - self.slices[0].zero;
        // Columns side by side read each weight for many products: nothing is gained by asking ahead.
        let ahead = self.slices[0].ahead.filter(|_| C == 1);
        match ahead {
            None => self.lifted::<S>(None, lift),
            Some(ReadAhead { bytes, caches: Caches::Fill }) => {
                self.lifted::<S>(Some(ReadAhead { bytes, caches: Caches::Fill }), lift)
            }
            Some(ReadAhead { bytes, caches: Caches::Pass }) => {
                self.lifted::<S>(Some(ReadAhead { bytes, caches: Caches::Pass }), lift)
            }
        }
    }
}

/// An element type of dense panels.
pub(crate) trait Element {
    const SIZE: usize;
    /// # Safety
    /// As for `Lanes`; `p` is valid for sixteen elements.
    unsafe fn load<S: Lanes>(p: *const u8) -> S::F;
}

/// f32.
pub(crate) struct Single;
/// f16.
pub(crate) struct Half;
/// bf16.
pub(crate) struct Brain;

impl Element for Single {
    const SIZE: usize = 4;
    #[inline(always)]
    unsafe fn load<S: Lanes>(p: *const u8) -> S::F {
        S::load(p.cast())
    }
}
impl Element for Half {
    const SIZE: usize = 2;
    #[inline(always)]
    unsafe fn load<S: Lanes>(p: *const u8) -> S::F {
        S::load_f16(p.cast())
    }
}
impl Element for Brain {
    const SIZE: usize = 2;
    #[inline(always)]
    unsafe fn load<S: Lanes>(p: *const u8) -> S::F {
        S::load_bf16(p.cast())
    }
}

/// `P` dense panels times `C` f32 columns over `k` steps.
pub(crate) struct FloatTile<E, const P: usize, const C: usize> {
    /// `[k][16]` of the first panel.
    pub(crate) weights: *const u8,
    /// Bytes from panel to panel.
    pub(crate) stride: usize,
    /// `[k][C]`.
    pub(crate) x: *const f32,
    pub(crate) k: usize,
    /// The chains, `[P][C][16]`: read, continued, written.
    pub(crate) acc: *mut f32,
    /// How far ahead to ask for weights; a lone column does.
    pub(crate) ahead: Option<ReadAhead>,
    pub(crate) element: PhantomData<E>,
}

impl<E: Element, const P: usize, const C: usize> Kernel for FloatTile<E, P, C> {
    #[inline(always)]
    unsafe fn run<S: Dot>(self) {
        let mut f = [[S::splat(0.0); C]; P];
        for p in 0..P {
            for c in 0..C {
                f[p][c] = S::load(self.acc.add((p * C + c) * LANES));
            }
        }
        let steps = LINE_BYTES / (LANES * E::SIZE);
        for k in 0..self.k {
            for p in 0..P {
                let at = self.weights.wrapping_add(p * self.stride + k * LANES * E::SIZE);
                if C == 1 && k % steps == 0 {
                    fetch_ahead::<S>(at, LINE_BYTES, self.ahead);
                }
                let w = E::load::<S>(at);
                for c in 0..C {
                    f[p][c] = S::fma(w, S::splat(*self.x.add(k * C + c)), f[p][c]);
                }
            }
        }
        for p in 0..P {
            for c in 0..C {
                S::store(self.acc.add((p * C + c) * LANES), f[p][c]);
            }
        }
    }
}

/// Widens `count` vectors of sixteen elements to f32.
pub(crate) struct Widen<E> {
    pub(crate) from: *const u8,
    pub(crate) to: *mut f32,
    pub(crate) count: usize,
    pub(crate) element: PhantomData<E>,
}

impl<E: Element> Kernel for Widen<E> {
    #[inline(always)]
    unsafe fn run<S: Dot>(self) {
        for i in 0..self.count {
            S::store(self.to.add(i * LANES), E::load::<S>(self.from.add(i * LANES * E::SIZE)));
        }
    }
}

/// Moves finished chains of panels side by side to the results: + bias, then residual +.
pub(crate) struct Finish {
    /// `[panels][columns][16]`.
    pub(crate) acc: *const f32,
    pub(crate) columns: usize,
    /// Rows of the panels that exist; only the last panel may have less than sixteen.
    pub(crate) rows: usize,
    /// Biases of the rows, or null.
    pub(crate) bias: *const f32,
    /// Where the first column's results lie in the residual, or null.
    pub(crate) residual: *const f32,
    /// And in the result; it may be the same place.
    pub(crate) y: *mut f32,
    /// From column to column, in elements.
    pub(crate) stride: usize,
}

impl Kernel for Finish {
    #[inline(always)]
    unsafe fn run<S: Dot>(self) {
        for first in (0..self.rows).step_by(LANES) {
            let rows = self.rows - first;
            let bias = if self.bias.is_null() { S::splat(0.0) } else { S::load_n(self.bias.add(first), rows) };
            for c in 0..self.columns {
                let mut v = S::load(self.acc.add(first * self.columns + c * LANES));
                if !self.bias.is_null() {
                    v = S::add(v, bias);
                }
                let at = c * self.stride + first;
                if !self.residual.is_null() {
                    v = S::add(S::load_n(self.residual.add(at), rows), v);
                }
                S::store_n(self.y.add(at), rows, v);
            }
        }
    }
}
