//! Panels shown as a weight source again: what was packed, row for row. Plain code; speed lies elsewhere.

use reverie_tensor::{Form, WeightSource};

use super::{Layout, Panels, codes, scales};
use crate::simd::LANES;

/// A packed matrix as a source.
pub(super) struct View<'a>(pub(super) &'a Panels);

impl WeightSource for View<'_> {
    fn shape(&self) -> (usize, usize) {
        (self.0.n, self.0.k)
    }

    fn form(&self) -> Form {
        self.0.form.clone()
    }

    fn row_codes(&self, row: usize, out: &mut [u8]) {
        if let Layout::Grouped(layout) = &self.0.layout {
            for s in layout.slices(self.0.k, self.0.panel(row / LANES)) {
                codes::unpack_row(layout.bits, s.codes, row % LANES, &mut out[s.at..s.at + s.k]);
            }
        }
    }

    fn row_scales(&self, row: usize, out: &mut [u8]) {
        if let (Layout::Grouped(layout), Form::Grouped(g)) = (&self.0.layout, &self.0.form) {
            for s in layout.slices(self.0.k, self.0.panel(row / LANES)) {
                let span = g.row_scale_bytes(s.at)..g.row_scale_bytes(s.at + s.k);
                scales::unpack_row(g, s.scales, row % LANES, &mut out[span]);
            }
        }
    }

    fn row_dense(&self, row: usize, out: &mut [u8]) {
        if let Form::Dense(d) = &self.0.form {
            let (panel, size) = (self.0.panel(row / LANES), d.size());
            for (k, v) in out.chunks_exact_mut(size).enumerate() {
                v.copy_from_slice(&panel[(k * LANES + row % LANES) * size..][..size]);
            }
        }
    }
}
