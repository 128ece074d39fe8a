//! The tokens that may still be drawn. Until a step needs a list there is none: the first truncation reads the model's
//! logits where they lie, so a vocabulary of 150,000 is scanned once and never sorted. Knows no step by name.

use std::cmp::Ordering;

use super::SampleError;

/// A token that may be drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    /// Token id.
    pub id: u32,
    /// Its logit, finite.
    pub logit: f32,
    /// Its probability among the candidates; meaningful only in what [`Candidates::probabilities`] returns.
    pub p: f32,
}

/// The remaining candidates. All logits are finite; the most probable one is `max_logit`.
#[derive(Debug)]
pub struct Candidates<'a> {
    logits: &'a [f32], // [V], read until `items` is made
    items: Vec<Candidate>,
    listed: bool,
    weighed: bool,
    max_logit: f32,
}

impl<'a> Candidates<'a> {
    /// All tokens of `logits` \[V\] above -inf. `buffer` is memory to reuse, given back by
    /// [`Candidates::into_buffer`]. An error if a logit is NaN or +inf, or if none is above -inf.
    pub fn new(logits: &'a [f32], buffer: Vec<Candidate>) -> Result<Self, SampleError> {
        let peak = peak(logits)?;
        Ok(Self::with_peak(logits, peak, buffer))
    }

    pub(super) fn with_peak(logits: &'a [f32], peak: Peak, mut buffer: Vec<Candidate>) -> Self {
        buffer.clear();
        Self { logits, items: buffer, listed: false, weighed: false, max_logit: peak.logit }
    }

    /// Gives the memory back.
    pub fn into_buffer(self) -> Vec<Candidate> {
        self.items
    }

    /// The highest logit that is left.
    pub fn max_logit(&self) -> f32 {
        self.max_logit
    }

    /// The candidates, in an order that depends on the logits and the steps alone.
    pub fn items(&mut self) -> &[Candidate] {
        self.list();
        &self.items
    }

    /// The candidates with their probabilities, which sum to 1.
    pub fn probabilities(&mut self) -> &[Candidate] {
        self.list();
        if !self.weighed {
            let mut sum = 0.0f64;
            for c in &mut self.items {
                c.p = (c.logit - self.max_logit).exp();
                sum += f64::from(c.p);
            }
            for c in &mut self.items {
                c.p = (f64::from(c.p) / sum) as f32;
            }
            self.weighed = true;
        }
        &self.items
    }

    /// Standard deviation of the logits that are left (of the population: divided by n).
    pub fn logit_deviation(&self) -> f64 {
        let moments = |logits: &mut dyn Iterator<Item = f32>| {
            // Taken from the maximum, so that two equal logits differ by exactly nothing.
            let (mut n, mut sum, mut squares) = (0.0f64, 0.0f64, 0.0f64);
            for x in logits {
                let d = f64::from(x) - f64::from(self.max_logit);
                n += 1.0;
                sum += d;
                squares += d * d;
            }
            (squares / n - (sum / n) * (sum / n)).max(0.0).sqrt()
        };
        if self.listed {
            moments(&mut self.items.iter().map(|c| c.logit))
        } else {
            moments(&mut self.logits.iter().copied().filter(|&x| x > f32::NEG_INFINITY))
        }
    }

    /// Keeps the `k` highest logits, at least one, sorted; among equals those of lower id.
    pub fn keep_top(&mut self, k: usize) {
        let k = k.max(1);
        let mut best = Best { k, worst: None };
        if self.listed {
            let mut kept = 0;
            for i in 0..self.items.len() {
                let c = self.items[i];
                if best.wants(&c) {
                    self.items[kept] = c;
                    kept = best.shrink(&mut self.items[..=kept]);
                }
            }
            self.items.truncate(kept);
        } else {
            // Ids ascend here, so an equal logit never ranks higher: one comparison decides. It also skips -inf.
            let mut floor = f32::NEG_INFINITY;
            for (id, &logit) in (0..).zip(self.logits) {
                if logit > floor {
                    self.items.push(Candidate { id, logit, p: 0.0 });
                    let kept = best.shrink(&mut self.items);
                    self.items.truncate(kept);
                    floor = best.worst.map_or(f32::NEG_INFINITY, |worst| worst.logit);
                }
            }
            self.listed = true;
        }
        self.items.sort_unstable_by(by_rank);
        self.items.truncate(k);
        self.weighed = false;
    }

    /// Keeps logits of at least `floor`, and the highest in any case.
    pub fn keep_from(&mut self, floor: f32) {
        let floor = floor.min(self.max_logit);
        if self.listed {
            self.items.retain(|c| c.logit >= floor);
        } else {
            // A floor of -inf keeps everything that may be drawn at all.
            let kept = (0..).zip(self.logits).filter(|&(_, &x)| x >= floor && x > f32::NEG_INFINITY);
            self.items.extend(kept.map(|(id, &logit)| Candidate { id, logit, p: 0.0 }));
            self.listed = true;
        }
        self.weighed = false;
    }

    /// Keeps the fewest most probable candidates that together reach `mass`, sorted.
    pub fn keep_mass(&mut self, mass: f32) {
        self.probabilities();
        let kept = shortest_prefix(&mut self.items, by_rank, |c| c.p, mass);
        self.items.truncate(kept);
        self.weighed = false;
    }

    /// Keeps the fewest candidates of lowest `score` that together reach `mass`; equal scores go by rank.
    pub fn keep_mass_by(&mut self, mass: f32, score: impl Fn(&Candidate) -> f32) {
        self.probabilities();
        let mut scored: Vec<(f32, Candidate)> = self.items.iter().map(|c| (score(c), *c)).collect();
        let order = |a: &(f32, Candidate), b: &(f32, Candidate)| a.0.total_cmp(&b.0).then(by_rank(&a.1, &b.1));
        let kept = shortest_prefix(&mut scored, order, |(_, c)| c.p, mass);
        self.items.clear();
        self.items.extend(scored.iter().take(kept).map(|(_, c)| *c));
        self.refresh();
    }

    /// Keeps what `keep` says; the order stays.
    pub fn retain(&mut self, keep: impl FnMut(&Candidate) -> bool) {
        self.list();
        self.items.retain(keep);
        self.refresh();
    }

    /// Divides the logits by `divisor` > 0, measured from the highest, which becomes 0: so no small divisor can
    /// overflow. Tokens that fall to -inf are dropped.
    pub fn divide(&mut self, divisor: f32) {
        self.list();
        for c in &mut self.items {
            c.logit = (c.logit - self.max_logit) / divisor;
        }
        self.items.retain(|c| c.logit > f32::NEG_INFINITY);
        self.max_logit = 0.0;
        self.weighed = false;
    }

    /// Draws by inversion: the first candidate at which the running sum of probabilities passes `unit` (in [0, 1))
    /// times their sum. Returns its index in [`Candidates::items`]; `None` if nothing is left.
    pub fn draw(&mut self, unit: f64) -> Option<usize> {
        self.probabilities();
        let target = unit * self.items.iter().map(|c| f64::from(c.p)).sum::<f64>();
        let mut sum = 0.0f64;
        let passed = self.items.iter().position(|c| {
            sum += f64::from(c.p);
            sum > target
        });
        passed.or_else(|| self.items.iter().rposition(|c| c.p > 0.0))
    }

    fn list(&mut self) {
        if !self.listed {
            self.keep_from(f32::NEG_INFINITY);
        }
    }

    fn refresh(&mut self) {
        self.max_logit = self.items.iter().map(|c| c.logit).fold(f32::NEG_INFINITY, f32::max);
        self.weighed = false;
    }
}

/// Order of rank: higher logit first, then lower id. Adding zero makes -0 and +0 equal.
pub(super) fn by_rank(a: &Candidate, b: &Candidate) -> Ordering {
    (b.logit + 0.0).total_cmp(&(a.logit + 0.0)).then(a.id.cmp(&b.id))
}

/// Selects the best k of a stream in a buffer of 2k: linear in the stream, without a heap.
struct Best {
    k: usize,
    worst: Option<Candidate>,
}

impl Best {
    fn wants(&self, c: &Candidate) -> bool {
        self.worst.is_none_or(|worst| by_rank(c, &worst).is_lt())
    }

    /// Cuts a full buffer back to its best k; returns how many items at its front count.
    fn shrink(&mut self, buffer: &mut [Candidate]) -> usize {
        if buffer.len() < self.k.saturating_mul(2) {
            return buffer.len();
        }
        let (_, worst, _) = buffer.select_nth_unstable_by(self.k - 1, by_rank);
        self.worst = Some(*worst);
        self.k
    }
}

/// Number of leading items, in `order`, whose probabilities reach `mass` (at least one; all if they never do). Sorts
/// only as far as it has to look.
fn shortest_prefix<T>(
    items: &mut [T],
    order: impl Fn(&T, &T) -> Ordering + Copy,
    p: impl Fn(&T) -> f32,
    mass: f32,
) -> usize {
    let (mut done, mut block, mut sum) = (0, 64, 0.0f64);
    while done < items.len() {
        let rest = &mut items[done..];
        let block_len = block.min(rest.len());
        if block_len < rest.len() {
            rest.select_nth_unstable_by(block_len - 1, order);
        }
        rest[..block_len].sort_unstable_by(order);
        for (i, item) in rest[..block_len].iter().enumerate() {
            sum += f64::from(p(item));
            if sum >= f64::from(mass) {
                return done + i + 1;
            }
        }
        done += block_len;
        block *= 4;
    }
    items.len()
}

/// The highest logit and its id, the lowest one among equals.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Peak {
    /// Token id.
    pub id: u32,
    /// Its logit, finite.
    pub logit: f32,
}

/// Greedy choice over `logits` \[V\] in one pass, which also refuses NaN and +inf.
pub fn peak(logits: &[f32]) -> Result<Peak, SampleError> {
    const BLOCK: usize = 1024;
    let mut best = (f32::NEG_INFINITY, 0); // and the block in which it stands first
    for (at, block) in logits.chunks(BLOCK).enumerate() {
        let max = block_max(block);
        if max.is_nan() || max == f32::INFINITY {
            let bad = |x: &f32| x.is_nan() || *x == f32::INFINITY;
            if let Some(i) = block.iter().position(bad) {
                return Err(SampleError::BadLogit { id: (at * BLOCK + i) as u32, value: block[i] });
            }
        }
        if max > best.0 {
            best = (max, at);
        }
    }
    let (logit, at) = best;
    let winner = (0..).zip(logits).skip(at * BLOCK).find(|&(_, &x)| x == logit);
    match winner {
        Some((id, _)) if logit > f32::NEG_INFINITY => Ok(Peak { id, logit }),
        Some(_) => Err(SampleError::NothingAllowed { n_vocab: logits.len() }),
        None => Err(SampleError::NoLogits),
    }
}

/// The maximum, or NaN if there is one. Sixteen running maxima leave no value waiting for the one before it.
fn block_max(block: &[f32]) -> f32 {
    const LANES: usize = 16;
    let mut max = [f32::NEG_INFINITY; LANES];
    let mut unordered = [0u32; LANES];
    let (chunks, tail) = block.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            max[lane] = if chunk[lane] > max[lane] { chunk[lane] } else { max[lane] };
            unordered[lane] |= u32::from(chunk[lane].is_nan());
        }
    }
    let whole = max.into_iter().chain(tail.iter().copied()).fold(f32::NEG_INFINITY, f32::max);
    let nan = unordered.iter().any(|&u| u != 0) || tail.iter().any(|x| x.is_nan());
    if nan { f32::NAN } else { whole }
}

#[cfg(test)]
mod tests;
