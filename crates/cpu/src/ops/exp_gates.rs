//! Exponential gates kept from overflowing: lanes are heads, tokens go one after another. A few values a token, so one task does it.

use std::ops::Range;

use reverie_tensor::{Error, Result, StateSegment, Tensor};

use super::{host, split};
use crate::simd::{LANES, Lanes, math};
use crate::{Cpu, dispatch};

/// Where the three results go.
struct Results<'a> {
    kept: &'a mut [f32],
    written: &'a mut [f32],
    top: &'a mut [f32],
}

/// See `Backend::exp_gates`.
pub(crate) fn run(
    cpu: &Cpu,
    input: &Tensor,
    forget: &Tensor,
    segments: &mut [StateSegment<'_>],
) -> Result<[Tensor; 3]> {
    if input.shape() != forget.shape() {
        return Err(Error::shape("exp_gates", forget.shape(), input.shape()));
    }
    let (i, f) = (host::f32s("exp_gates", input)?, host::f32s("exp_gates", forget)?);
    let whole = split::covers("exp_gates", segments.iter().map(|s| s.rows.clone()), input.rows())?;
    let mut out = [cpu.out(input.dims())?, cpu.out(input.dims())?, cpu.out(input.dims())?];
    let [kept, written, top] = &mut out;
    let mut results = Results {
        kept: host::f32s_mut("exp_gates", kept)?,
        written: host::f32s_mut("exp_gates", written)?,
        top: host::f32s_mut("exp_gates", top)?,
    };
    if !whole {
        [&mut results.kept, &mut results.written, &mut results.top].into_iter().for_each(|r| r.fill(0.0));
    }
    for segment in segments {
        let m = host::f32s_mut("exp_gates state", segment.state)?;
        if m.len() != input.width() {
            return Err(Error::shape("exp_gates state", m.len(), [input.width()]));
        }
        let (rows, results) = (segment.rows.clone(), &mut results);
        dispatch!(
            cpu.isa,
            gates(i: &[f32], f: &[f32], rows: Range<usize>, m: &mut [f32], results: &mut Results<'_>)
        );
    }
    Ok(out)
}

#[inline(always)]
unsafe fn gates<S: Lanes>(i: &[f32], f: &[f32], rows: Range<usize>, m: &mut [f32], out: &mut Results<'_>) {
    let h = m.len();
    // SAFETY: every access is within a row of `h` values of slices of one length; the set is the caller's.
    unsafe {
        for at in (0..h).step_by(LANES) {
            let n = (h - at).min(LANES);
            let mut top = S::load_n(m.as_ptr().add(at), n);
            for row in rows.clone() {
                let place = row * h + at;
                let (input, forget) = (S::load_n(i.as_ptr().add(place), n), S::load_n(f.as_ptr().add(place), n));
                let faded = S::add(forget, top);
                top = S::max(faded, input);
                S::store_n(out.kept.as_mut_ptr().add(place), n, math::exp::<S>(S::sub(faded, top)));
                S::store_n(out.written.as_mut_ptr().add(place), n, math::exp::<S>(S::sub(input, top)));
                S::store_n(out.top.as_mut_ptr().add(place), n, top);
            }
            S::store_n(m.as_mut_ptr().add(at), n, top);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::trial::{Seeded, close, cpus, reference, same, tensor};
    use reverie_tensor::{Backend, StateSegment};

    #[test]
    fn as_the_reference_whole_and_in_pieces() {
        let cpus = cpus();
        for (seed, (t, h)) in [(1, 1), (9, 4), (30, 16), (12, 21)].into_iter().enumerate() {
            let mut s = Seeded::new(seed as u64);
            let (i, f) = (s.values(t * h, 15.0), s.values(t * h, 3.0));
            let run = |b: &dyn Backend, cut: usize| {
                let mut state = tensor(b, &vec![0.0; h], &[h]);
                let mut y = vec![Vec::new(); 3];
                for from in (0..t).step_by(cut) {
                    let n = cut.min(t - from);
                    let part = |x: &[f32]| tensor(b, &x[from * h..(from + n) * h], &[n, h]);
                    let mut segments = [StateSegment { rows: 0..n, state: &mut state }];
                    let out = b.exp_gates(&part(&i), &part(&f), &mut segments).unwrap();
                    y.iter_mut().zip(&out).for_each(|(y, x)| y.extend(b.read(x).unwrap()));
                }
                y.push(b.read(&state).unwrap());
                y.concat()
            };
            let first = run(&cpus[0], t);
            close("exp_gates", &first, &run(&reference(), t), 1e-5);
            for cpu in &cpus {
                [t, 1, 7].into_iter().for_each(|cut| same("exp_gates", &run(cpu, cut), &first));
            }
        }
    }
}
