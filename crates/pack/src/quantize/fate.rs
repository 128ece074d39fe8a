//! What becomes of each tensor: quantised, written as MLX has it, or kept, and then why. Knows names and shapes, and no file.

use std::collections::{BTreeMap, BTreeSet};

use reverie_files::{Choice, Element, Matrix, Storage, TensorSpec, View, Weights};
use reverie_model::ffn::moe::Stack;
use reverie_tensor::DType;
use reverie_tensor::quant::{PlaneSpec, Planes, mxfp4};

use super::{Left, Plan, QuantizeSpec, choice};
use crate::error::{Error, Result};

/// What happens to a tensor.
pub(super) enum Fate<'a> {
    /// It is written as it lies.
    Copy(View<'a>),
    /// The rows of a stack are written as they lie, without the others.
    Pick { view: View<'a>, stack: &'a Stack, row_bytes: usize },
    /// It is written matrix by matrix.
    Matrices { from: Matrices<'a>, form: Form },
}

/// What a matrix is written as.
#[derive(Clone, Copy)]
pub(super) enum Form {
    Planes(PlaneSpec),
    Dense(DType),
}

impl Form {
    /// Bytes of a weight in the source; its type is that of the scales.
    pub(super) fn source_size(self) -> usize {
        match self {
            Form::Planes(PlaneSpec { dtype, .. }) | Form::Dense(dtype) => dtype.size(),
        }
    }
}

/// One matrix, or those of all experts.
pub(super) enum Matrices<'a> {
    One { name: &'a str, shape: (usize, usize) },
    Stack(&'a Stack),
}

impl Matrices<'_> {
    pub(super) fn len(&self) -> usize {
        match self {
            Matrices::One { .. } => 1,
            Matrices::Stack(stack) => stack.n_experts,
        }
    }

    pub(super) fn get<'w>(&self, weights: &'w Weights, e: usize) -> Result<Matrix<'w>> {
        match self {
            Matrices::One { name, shape } => Ok(weights.matrix_shaped(name, *shape)?),
            Matrices::Stack(stack) => Ok(stack.matrix(weights, e)?),
        }
    }
}

/// A tensor and what is written for it.
pub(super) struct Planned<'a> {
    /// For people.
    pub(super) name: &'a str,
    pub(super) source_bytes: u64,
    pub(super) fate: Fate<'a>,
    /// In the order in which they are filled.
    pub(super) specs: Vec<TensorSpec>,
}

/// All of them.
pub(super) struct Fates<'a> {
    pub(super) fates: Vec<Planned<'a>>,
    /// Modules that are not quantised as most are.
    pub(super) modules: BTreeMap<String, Option<Choice>>,
    pub(super) plan: Plan,
}

/// A module that may be quantised.
struct Module<'a> {
    name: &'a str,
    /// Extents before the last, as they are written.
    rows: Vec<usize>,
    k: usize,
    from: Matrices<'a>,
    element: Element,
}

impl<'a> Fates<'a> {
    pub(super) fn of(weights: &'a Weights, stacks: &'a [Stack], how: (&QuantizeSpec, &Planes)) -> Result<Fates<'a>> {
        let mut all = Fates { fates: Vec::new(), modules: BTreeMap::new(), plan: Plan::default() };
        let (mut stacked, mut names) = (BTreeSet::new(), BTreeSet::new());
        for stack in stacks {
            stacked.extend([
                stack.tensor.clone(),
                format!("{}_blocks", stack.tensor),
                format!("{}_scales", stack.tensor),
            ]);
            stacked.extend(stack.bias.clone());
            names.insert(stack.module.as_str());
            all.stack(weights, stack, how)?;
        }
        for view in weights.iter() {
            all.plan.source_bytes += view.bytes.len() as u64;
            if stacked.contains(view.name) {
                continue;
            }
            names.extend(view.name.strip_suffix(".weight"));
            all.tensor(view, how)?;
        }
        if let Some(idle) = how.0.overrides.iter().find(|o| !names.iter().any(|m| o.matches(m))) {
            return Err(Error::Value {
                what: "override".into(),
                found: format!("'{}', which no module's name matches", idle.pattern),
                expected: "a whole name such as model.layers.0.mlp.down_proj, with * for any text".into(),
            });
        }
        Ok(all)
    }

    fn tensor(&mut self, view: View<'a>, how: (&QuantizeSpec, &Planes)) -> Result<()> {
        let element = element_of(&view)?;
        let why = match (view.name.strip_suffix(".weight"), view.shape) {
            (Some(name), &[n, k]) if element.dtype().is_some_and(DType::is_float) => {
                let from = Matrices::One { name: view.name, shape: (n, k) };
                match self.module(Module { name, rows: vec![n], k, from, element }, how)? {
                    Ok(()) => return Ok(()),
                    Err(why) => why,
                }
            }
            // A vector, or one with extents that say nothing.
            (_, shape) if shape.iter().filter(|extent| **extent > 1).count() < 2 => None,
            (Some(_), [_, _]) => Some(format!("elements of type {}", element.name())),
            (Some(_), shape) => Some(format!("{} extents, and not known as a stack of matrices", shape.len())),
            (None, _) => Some("a name that does not end in .weight".to_owned()),
        };
        self.plan.left.extend(why.map(|why| Left { name: view.name.into(), why }));
        self.keep(Planned {
            name: view.name,
            source_bytes: view.bytes.len() as u64,
            fate: Fate::Copy(view),
            specs: vec![TensorSpec { name: view.name.into(), element, shape: view.shape.to_vec() }],
        });
        Ok(())
    }

    fn keep(&mut self, planned: Planned<'a>) {
        self.plan.kept += 1;
        self.fates.push(planned);
    }

    /// The module quantised, or why it is not; none where an override says so.
    fn module(
        &mut self,
        module: Module<'a>,
        (spec, planes): (&QuantizeSpec, &Planes),
    ) -> Result<Result<(), Option<String>>> {
        let Module { name, rows, k, from, element } = module;
        let own = spec.overrides.iter().find(|o| o.matches(name)).map(|o| o.choice);
        let Some((bits, group)) = own.unwrap_or(Some((spec.bits, spec.group))) else { return Ok(Err(None)) };
        let plane = PlaneSpec { bits, group, dtype: element.dtype().unwrap_or(DType::F32) };
        planes.check(name, plane)?;
        if !k.is_multiple_of(group) || rows.contains(&0) {
            return Ok(Err(Some(format!("rows of {k} weights, which are no whole groups of {group}"))));
        }
        if (bits, group) != (spec.bits, spec.group) {
            self.modules.insert(name.to_owned(), Some(Choice { bits, group, ..choice(spec) }));
        }
        let tensor = |leaf: &str, element: Element, last: usize| TensorSpec {
            name: format!("{name}.{leaf}"),
            element,
            shape: [rows.as_slice(), &[last]].concat(),
        };
        self.plan.quantised += 1;
        self.fates.push(Planned {
            name,
            source_bytes: (rows.iter().product::<usize>() * k * element.size()) as u64,
            specs: vec![
                tensor("weight", Element::U32, k * usize::from(bits) / 32),
                tensor("scales", element, k / group),
                tensor("biases", element, k / group),
            ],
            fate: Fate::Matrices { from, form: Form::Planes(plane) },
        });
        Ok(Ok(()))
    }

    /// One projection of all experts, under MLX's name: `[E, N, K]`, with biases `[E, N]`.
    fn stack(&mut self, weights: &'a Weights, stack: &'a Stack, how: (&QuantizeSpec, &Planes)) -> Result<()> {
        let (e, (n, k)) = (stack.n_experts, stack.shape);
        // Extents and type are held against the plan here, before anything is written.
        drop(stack.matrix(weights, 0)?);
        let written = |leaf: &str, element, shape: &[usize]| {
            vec![TensorSpec { name: format!("{}.{leaf}", stack.module), element, shape: shape.to_vec() }]
        };
        if let Some(bias) = &stack.bias {
            let (view, element) = plain(weights, bias)?;
            weights.vector_shaped(bias, view.shape.iter().product())?;
            let (row_bytes, specs) = (element.size(), written("bias", element, &[e, n]));
            self.pick(Fate::Pick { view, stack, row_bytes }, specs, &stack.module);
        }
        if !weights.contains(&stack.tensor) {
            // Blocks of four-bit floats: MLX has the same codes and scales.
            let (codes, _) = plain(weights, &format!("{}_blocks", stack.tensor))?;
            let (scales, _) = plain(weights, &format!("{}_scales", stack.tensor))?;
            let specs = written("weight", Element::U32, &[e, n, k / 8]);
            self.pick(Fate::Pick { view: codes, stack, row_bytes: k / 2 }, specs, &stack.module);
            let specs = written("scales", Element::U8, &[e, n, k / 32]);
            self.pick(Fate::Pick { view: scales, stack, row_bytes: k / 32 }, specs, &stack.module);
            let format = Choice { bits: 4, group: 32, mode: mxfp4::ENTRY.name.into() };
            self.modules.insert(stack.module.clone(), Some(format));
            let why = format!("four-bit floats already, which MLX reads as {}", mxfp4::ENTRY.name);
            self.plan.left.push(Left { name: format!("{}.weight", stack.module), why });
            return Ok(());
        }
        let (_, element) = plain(weights, &stack.tensor)?;
        let from = || Matrices::Stack(stack);
        let module = Module { name: &stack.module, rows: vec![e, n], k, from: from(), element };
        let Err(why) = self.module(module, how)? else { return Ok(()) };
        let specs = written("weight", element, &[e, n, k]);
        self.plan.left.extend(why.map(|why| Left { name: format!("{}.weight", stack.module), why }));
        let form = Form::Dense(element.dtype().unwrap_or(DType::F32));
        self.pick(Fate::Matrices { from: from(), form }, specs, &stack.module);
        Ok(())
    }

    fn pick(&mut self, fate: Fate<'a>, specs: Vec<TensorSpec>, name: &'a str) {
        let source_bytes = specs.iter().filter_map(TensorSpec::bytes).sum();
        self.keep(Planned { name, source_bytes, fate, specs });
    }
}

/// A tensor of plain elements.
fn plain<'a>(weights: &'a Weights, name: &str) -> Result<(View<'a>, Element)> {
    let view = weights.view(name)?;
    let element = element_of(&view)?;
    Ok((view, element))
}

fn element_of(view: &View<'_>) -> Result<Element> {
    match view.storage {
        Storage::Plain(element) => Ok(element),
        Storage::Blocks(..) => {
            Err(Error::Value { what: view.name.into(), found: "packed blocks".into(), expected: "plain floats".into() })
        }
    }
}
