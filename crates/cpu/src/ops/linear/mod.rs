//! Matrix products: the input is prepared once for all weights of a call, then panels of all of them form one list of tasks.
//! Which thread takes which task, and how columns are cut into tiles, changes no bit. Knows no formats and no models.

mod plan;
mod prepare;
mod product;
mod tile;

use reverie_tensor::{Class, Error, Group, Input, Result, Tensor, Weight};

use super::host;
use super::panel::{Layout, Panels, Whole};
use super::split::Stretches;
use crate::Cpu;
use crate::isa::{Caches, Isa, ReadAhead};
use crate::simd::{Dot, LANES, Portable};
use plan::{Plan, is_int, tiles};
use prepare::{Prepare, RowInput};
use product::{
    BLOCK_COLUMNS, DensePanels, GroupedPanels, Scratch, dense_panels, exact_panel, int_panels, int_panels_at_once,
    most_int_panels, panels_at_once,
};
use tile::Finish;

/// Bytes of weights that a task takes at least, where there are enough of them: what a lane may have left when others are done.
const TASK_BYTES: usize = 16 * 1024;

/// See `Backend::linear_workspace`.
pub(crate) fn workspace(cpu: &Cpu, rows: usize, weights: &[&Weight]) -> usize {
    Plan::new(cpu, rows, weights).bytes()
}

/// See `Backend::linear`.
pub(crate) fn run(cpu: &Cpu, input: Input<'_>, weights: &[&Weight]) -> Result<Vec<Tensor>> {
    let Some(first) = weights.first() else { return Ok(Vec::new()) };
    if let Some(other) = weights.iter().find(|w| w.k != first.k) {
        return Err(Error::shape("weights that share an input", (other.n, other.k), ("N", first.k)));
    }
    let (rows, input) = RowInput::new(input, first.k)?;
    let mut out = weights.iter().map(|w| cpu.out(&[rows, w.n])).collect::<Result<Vec<_>>>()?;
    let targets = weights
        .iter()
        .zip(&mut out)
        .map(|(w, y)| {
            let y = host::f32s_mut("linear", y)?.as_mut_ptr();
            Target::new(cpu, w, std::ptr::null(), y)
        })
        .collect::<Result<Vec<_>>>()?;
    let plan = Plan::new(cpu, rows, weights);
    multiply(cpu, input, plan.bytes(), &[Job { plan, rows: None, targets }])?;
    Ok(out)
}

/// See `Backend::linear_add`.
pub(crate) fn run_add(cpu: &Cpu, input: Input<'_>, weight: &Weight, mut residual: Tensor) -> Result<Tensor> {
    let (rows, input) = RowInput::new(input, weight.k)?;
    if residual.shape().elements() != rows * weight.n {
        return Err(Error::shape("linear_add", residual.shape(), [rows, weight.n]));
    }
    let mut fresh = if residual.is_unique() { None } else { Some(cpu.out(residual.dims())?) };
    let (from, to) = match &mut fresh {
        Some(y) => (host::f32s("linear_add", &residual)?.as_ptr(), host::f32s_mut("linear_add", y)?.as_mut_ptr()),
        None => {
            let y = host::f32s_mut("linear_add", &mut residual)?.as_mut_ptr();
            (y.cast_const(), y)
        }
    };
    let target = Target::new(cpu, weight, from, to)?;
    let plan = Plan::new(cpu, rows, &[weight]);
    multiply(cpu, input, plan.bytes(), &[Job { plan, rows: None, targets: vec![target] }])?;
    Ok(fresh.unwrap_or(residual))
}

/// See `Backend::linear_groups_workspace`.
pub(crate) fn groups_workspace(cpu: &Cpu, rows: (usize, usize), weights: &[&Weight]) -> usize {
    Plan::of_groups(cpu, rows, weights).bytes_of_groups()
}

/// See `Backend::linear_groups`.
pub(crate) fn run_groups(cpu: &Cpu, input: Input<'_>, groups: &[Group<'_>]) -> Result<Vec<Tensor>> {
    let Some(first) = groups.first() else { return Ok(Vec::new()) };
    let shapes = |g: &Group<'_>| g.weights.iter().map(|w| (w.n, w.k)).collect::<Vec<_>>();
    let expected = shapes(first);
    let k = expected.first().map_or(0, |(_, k)| *k);
    if let Some(other) = groups.iter().map(shapes).find(|s| *s != expected || s.iter().any(|(_, own)| *own != k)) {
        return Err(Error::shape("weights of a group", other, expected));
    }
    let (rows, input) = RowInput::new(input, k)?;
    if let Some(row) = groups.iter().flat_map(|g| &g.rows).find(|r| **r as usize >= rows) {
        return Err(Error::shape("row of a group", row, rows));
    }
    let picked = groups.iter().map(|g| g.rows.len()).sum();
    let mut out = first.weights.iter().map(|w| cpu.out(&[picked, w.n])).collect::<Result<Vec<_>>>()?;
    let starts = out.iter_mut().map(|y| Ok(host::f32s_mut("linear_groups", y)?.as_mut_ptr()));
    let starts = starts.collect::<Result<Vec<_>>>()?;
    let whole = Plan::of_groups(cpu, (rows, picked), &first.weights);
    let whole = groups.iter().fold(whole, |plan, g| plan.serving(cpu, &g.weights));
    let mut jobs = Vec::with_capacity(groups.len());
    let (mut at, mut before) = (whole.first_column(), 0);
    for group in groups {
        let targets = group
            .weights
            .iter()
            .zip(&starts)
            .map(|(w, y)| Target::new(cpu, w, std::ptr::null(), y.wrapping_add(before * w.n)));
        let plan = whole.group(group.rows.len(), at);
        jobs.push(Job { plan, rows: Some(&group.rows), targets: targets.collect::<Result<_>>()? });
        (at, before) = (plan.end(), before + group.rows.len());
    }
    multiply(cpu, input, whole.bytes_of_groups().max(at), &jobs)?;
    Ok(out)
}

/// One weight of a call and where its results go.
struct Target<'a> {
    panels: &'a Panels,
    int: bool,
    bias: Option<&'a [f32]>,
    /// `[T, N]`, or null.
    residual: *const f32,
    /// `[T, N]`; may be the residual.
    y: *mut f32,
}

// SAFETY: tasks write disjoint elements of `y` and read the residual only where they write.
unsafe impl Sync for Target<'_> {}

impl<'a> Target<'a> {
    fn new(cpu: &Cpu, weight: &'a Weight, residual: *const f32, y: *mut f32) -> Result<Target<'a>> {
        let panels = Panels::of(weight)?;
        let bias = weight.bias.as_ref().map(|b| host::f32s_of("bias of a weight", b, weight.n)).transpose()?;
        Ok(Target { panels, int: is_int(cpu.numerics, &panels.form), bias, residual, y })
    }

    /// Asks for the cache lines that panels `p..p + count` will be moved to, while they are computed: they lie far apart.
    unsafe fn fetch<S: Dot>(&self, p: usize, count: usize, (from, to): (usize, usize)) {
        let n = self.panels.n;
        for column in from..to {
            for panel in p..p + count {
                // SAFETY: any address will do.
                unsafe { S::fetch(self.y.wrapping_add(column * n + panel * LANES).cast()) };
            }
        }
    }

    /// Moves the chains of panels `p..p + count` for columns `from..to` to the results.
    ///
    /// # Safety
    /// As for `Lanes`; `acc` holds the chains, and no other task has these panels and these columns.
    unsafe fn finish<S: Dot>(&self, acc: *const f32, (p, count): (usize, usize), (from, to): (usize, usize)) {
        let (n, first) = (self.panels.n, p * LANES);
        let at = from * n + first;
        let residual = if self.residual.is_null() { self.residual } else { self.residual.wrapping_add(at) };
        let finish = Finish {
            acc,
            columns: to - from,
            rows: (n - first).min(count * LANES),
            bias: self.bias.map_or(std::ptr::null(), |b| b[first..].as_ptr()),
            residual,
            y: self.y.wrapping_add(at),
            stride: n,
        };
        // SAFETY: the panels' rows and the columns exist; the set is the caller's.
        unsafe { S::enter(finish) }
    }
}

/// The address of the workspace, which lanes share.
#[derive(Clone, Copy)]
struct Base(*mut u8);

// SAFETY: lanes write disjoint parts of the workspace: their own row and copy, or the tile that they took.
unsafe impl Sync for Base {}

impl Base {
    fn get(&self) -> *mut u8 {
        self.0
    }
}

/// Rows of the input that meet the same weights.
struct Job<'a> {
    plan: Plan,
    /// The input's row of each column; none where they are the same.
    rows: Option<&'a [u32]>,
    targets: Vec<Target<'a>>,
}

impl Job<'_> {
    fn panels(&self) -> usize {
        self.targets.iter().map(|t| t.panels.count()).sum()
    }

    fn blocks(&self) -> usize {
        self.plan.rows.div_ceil(BLOCK_COLUMNS)
    }
}

/// Tasks of several jobs, counted through.
struct Tasks {
    /// First task after each job.
    ends: Vec<usize>,
}

impl Tasks {
    fn new(counts: impl Iterator<Item = usize>) -> Tasks {
        let ends = counts.scan(0, |end, n| {
            *end += n;
            Some(*end)
        });
        Tasks { ends: ends.collect() }
    }

    fn count(&self) -> usize {
        self.ends.last().copied().unwrap_or(0)
    }

    /// The job of task `i`, and which of its tasks that is.
    fn find(&self, i: usize) -> (usize, usize) {
        let job = self.ends.partition_point(|end| *end <= i);
        (job, i - if job == 0 { 0 } else { self.ends[job - 1] })
    }
}

/// One call on its way.
struct Call<'a> {
    cpu: &'a Cpu,
    /// Lanes and copies of every job.
    plan: Plan,
    input: RowInput<'a>,
    jobs: &'a [Job<'a>],
    base: Base,
}

/// Runs jobs whose plans share one workspace of `bytes`.
fn multiply(cpu: &Cpu, input: RowInput<'_>, bytes: usize, jobs: &[Job<'_>]) -> Result<()> {
    let mut workspace = cpu.memory.take(bytes, Class::Scratch)?;
    let base = Base(workspace.bytes_mut().ok_or_else(|| host::elsewhere("linear"))?.as_mut_ptr());
    let Some(plan) = jobs.first().map(|j| j.plan).filter(|_| jobs.iter().any(|j| j.plan.rows > 0)) else {
        return Ok(());
    };
    let call = Call { cpu, plan, input, jobs, base };
    // SAFETY: `Isa` values beyond Portable come from `Isa::available`, which detected them.
    unsafe {
        match cpu.isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => call.go::<crate::simd::Avx512>(),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => call.go::<crate::simd::Avx2>(),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => call.go::<crate::simd::Neon<crate::simd::Widening>>(),
            #[cfg(target_arch = "aarch64")]
            Isa::NeonDot => call.go::<crate::simd::Neon<crate::simd::DotProduct>>(),
            _ => call.go::<Portable>(),
        }
    }
    Ok(())
}

impl Call<'_> {
    /// # Safety
    /// As for `Lanes`.
    unsafe fn go<S: Dot>(&self) {
        let plan = &self.plan;
        if !plan.own_copies {
            let widest = S::COLUMNS.max(S::FLOAT_COLUMNS);
            let spans = Tasks::new(self.jobs.iter().map(|j| j.plan.rows.div_ceil(widest)));
            let stretches = Stretches::new(spans.count(), plan.lanes);
            self.lanes(&|lane| {
                for i in stretches.each(lane) {
                    let (job, i) = spans.find(i);
                    let job = &self.jobs[job];
                    // SAFETY: every span of columns is taken by one task; the set is the caller's.
                    unsafe { self.prepare::<S>(lane, job, (i * widest, job.plan.rows.min((i + 1) * widest))) }
                }
            });
        }
        let panels: usize = self.jobs.iter().map(Job::panels).sum();
        // Panels of a task, and tasks that a job's panels make.
        let cut = |job: &Job<'_>| {
            let bytes = job.targets.iter().map(|t| t.panels.stride).max().unwrap_or(1);
            let by_bytes = if job.plan.rows <= 16 { (TASK_BYTES / bytes).max(1) } else { 1 };
            let at_once = panels_at_once(job.plan.rows).max(int_panels_at_once::<S>(job.plan.rows));
            let chunk = panels.div_ceil(8 * plan.lanes).min(by_bytes).next_multiple_of(at_once);
            // Where there are few, a lane each comes first.
            let chunk = chunk.min(panels.div_ceil(plan.lanes));
            (chunk, job.panels().div_ceil(chunk))
        };
        let cuts: Vec<(usize, usize)> = self.jobs.iter().map(cut).collect();
        let tasks = Tasks::new(self.jobs.iter().zip(&cuts).map(|(j, (_, chunks))| chunks * j.blocks()));
        let stretches = Stretches::new(tasks.count(), plan.lanes);
        self.lanes(&|lane| {
            let mut scratch = Scratch::new();
            let mut prepared = None;
            while let Some(mut run) = stretches.take(lane) {
                while !run.is_empty() {
                    let (own, i) = tasks.find(run.start);
                    let (job, (chunk, chunks)) = (&self.jobs[own], cuts[own]);
                    // As many as are of the same job and block of columns.
                    let (block, first) = (i / chunks, i % chunks);
                    let count = run.len().min(chunks - first);
                    run.start += count;
                    let panels = (first * chunk, job.panels().min((first + count) * chunk));
                    let span = (block * BLOCK_COLUMNS, job.plan.rows.min((block + 1) * BLOCK_COLUMNS));
                    // SAFETY: a lane's own copy is written by that lane alone; every panel and block of columns is taken by
                    // one task; the set is the caller's.
                    unsafe {
                        if plan.own_copies && prepared != Some(own) {
                            self.prepare::<S>(lane, job, (0, job.plan.rows));
                            prepared = Some(own);
                        }
                        self.chunk::<S>(lane, job, panels, (span, &mut scratch));
                    }
                }
            }
        });
    }

    /// Runs `body` once a lane, at the same time.
    fn lanes(&self, body: &(dyn Fn(usize) + Sync)) {
        self.cpu.pool.run(self.plan.lanes, body);
    }

    /// Prepares columns `from..to`, which begin at a tile's edge.
    ///
    /// # Safety
    /// As for `Lanes`; no other task prepares these columns of this lane's copy.
    unsafe fn prepare<S: Dot>(&self, lane: usize, job: &Job<'_>, (from, to): (usize, usize)) {
        let (plan, base) = (&job.plan, self.base.get());
        let (k, row) = (plan.k, plan.row(base, lane));
        let prepare = |first, columns, int, float| {
            let (input, rows) = (self.input, job.rows);
            Prepare { input, k, rows, first, columns, row, int, float }
        };
        // SAFETY: the workspace holds all columns; the set is the caller's.
        unsafe {
            if let Some(x) = plan.int_columns(base, lane) {
                for (first, width) in tiles(from, to, S::COLUMNS) {
                    S::enter(prepare(first, width, Some(x.at_column(first, k / super::panel::UNIT)), None));
                }
            }
            if let Some(x) = plan.float_columns(base, lane) {
                for (first, width) in tiles(from, to, S::FLOAT_COLUMNS) {
                    S::enter(prepare(first, width, None, Some(x.wrapping_add(first * k))));
                }
            }
        }
    }

    /// Panels `from..to`, counted through all targets, times the columns of `span`.
    ///
    /// # Safety
    /// As for `Lanes`; the columns are prepared, and no other task has these panels and columns.
    unsafe fn chunk<S: Dot>(
        &self,
        lane: usize,
        job: &Job<'_>,
        (mut from, to): (usize, usize),
        (span, scratch): ((usize, usize), &mut Scratch),
    ) {
        let mut before = 0;
        for target in &job.targets {
            let count = target.panels.count();
            while from < to && from < before + count {
                let p = from - before;
                // SAFETY: the caller's contract.
                from +=
                    unsafe { self.panels::<S>(lane, (job, target), (p, (to - before).min(count)), (span, scratch)) };
            }
            before += count;
        }
    }

    /// The first of panels `p..end` of one target, or the first few; gives how many.
    ///
    /// # Safety
    /// As for `chunk`.
    unsafe fn panels<S: Dot>(
        &self,
        lane: usize,
        (job, target): (&Job<'_>, &Target<'_>),
        (p, end): (usize, usize),
        (span, scratch): ((usize, usize), &mut Scratch),
    ) -> usize {
        let (panels, base, columns) = (target.panels, self.base.get(), span.1 - span.0);
        let float = job.plan.float_columns(base, lane).unwrap_or(std::ptr::null_mut());
        // SAFETY: the plan made the columns that the weight's form asks for; the rest is the caller's contract.
        unsafe {
            match &panels.layout {
                Layout::Grouped(layout) => {
                    let int = job.plan.int_columns(base, lane).filter(|_| target.int);
                    let count = int.map_or(1, |_| most_int_panels::<S>(columns)).min(end - p);
                    let (bytes, stride) = (panels.panels(p, count), panels.stride);
                    let slice = ReadAhead { bytes: layout.slice_bytes, caches: Caches::Fill };
                    let ahead = if columns == 1 { self.cpu.read_ahead } else { Some(slice) };
                    let whole = if int.is_some() { Whole::Stay } else { Whole::Convert };
                    let group = GroupedPanels { layout, k: panels.k, bytes, stride, count, ahead, whole };
                    if columns > 1 {
                        target.fetch::<S>(p, count, span);
                    }
                    let acc = match int {
                        Some(x) => int_panels::<S>(group, x, span, scratch),
                        None => exact_panel::<S>(group, float, span, scratch),
                    };
                    target.finish::<S>(acc, (p, count), span);
                    count
                }
                Layout::Dense(dtype) => {
                    let count = 1 << panels_at_once(columns).min(end - p).ilog2();
                    let bytes = panels.panels(p, count);
                    let ahead = self.cpu.read_ahead;
                    let group = DensePanels { dtype: *dtype, bytes, stride: panels.stride, count, ahead };
                    let acc = dense_panels::<S>(group, float, span, scratch);
                    target.finish::<S>(acc, (p, count), span);
                    count
                }
            }
        }
    }
}
