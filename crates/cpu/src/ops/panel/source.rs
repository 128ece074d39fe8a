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

    fn row_f32(&self, row: usize, out: &mut [f32]) {
        match &self.0.form {
            Form::Dense(d) => {
                let panel = self.0.panel(row / LANES);
                out.iter_mut().enumerate().for_each(|(k, v)| *v = d.read(panel, k * LANES + row % LANES));
            }
            Form::Grouped(g) => {
                let blocks = self.0.k / g.block;
                let (mut codes, mut bytes) = (vec![0; self.0.k], vec![0; g.row_scale_bytes(self.0.k)]);
                let (mut scales, mut biases) = (vec![0.0; blocks], vec![0.0; blocks]);
                self.row_codes(row, &mut codes);
                self.row_scales(row, &mut bytes);
                g.decode_scales(&bytes, &mut scales, &mut biases);
                for (k, (v, &code)) in out.iter_mut().zip(&codes).enumerate() {
                    let w = g.level(code) as f32 * scales[k / g.block];
                    *v = if g.scales.has_bias() { w + biases[k / g.block] } else { w };
                }
            }
        }
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
