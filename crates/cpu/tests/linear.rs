//! Matrix products: the largest sums of every form, the workspace that was foretold, refusals. `operations` holds the rest against
//! the scalar reference. The weights are synthetic; no format is known here.

mod synthetic;

use reverie_cpu::{Cpu, CpuSpec, Isa};
use reverie_tensor::{
    Act, Backend, Class, DType, Form, Group, Grouped, Input, Levels, Numerics, Scales, Tensor, Weight, reference,
};
use synthetic::{Random, Synthetic, all_forms};

fn cpu(isa: Isa, threads: usize, numerics: Numerics) -> Cpu {
    Cpu::new(CpuSpec { threads: Some(threads), numerics, isa: Some(isa) }).unwrap()
}

fn tensor(cpu: &Cpu, values: &[f32], shape: &[usize]) -> Tensor {
    cpu.upload(values, shape, DType::F32, Class::Scratch).unwrap()
}

/// The bits, with all NaN alike.
fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| if v.is_nan() { f32::NAN.to_bits() } else { v.to_bits() }).collect()
}

fn expected(numerics: Numerics, x: &[f32], t: usize, source: &Synthetic) -> Vec<f32> {
    match (&source.form, numerics) {
        (Form::Grouped(_), Numerics::Int8) => reference::linear::int8(x, t, source).unwrap(),
        _ => reference::linear::exact(x, t, source),
    }
}

fn product(cpu: &Cpu, x: &[f32], t: usize, weight: &Weight) -> Vec<f32> {
    let x = tensor(cpu, x, &[t, weight.k]);
    let y = cpu.linear(Input::Plain(&x), &[weight]).unwrap().remove(0);
    assert_eq!(y.dims(), [t, weight.n]);
    cpu.read(&y).unwrap()
}

#[test]
fn the_largest_sums_fit() {
    let mut random = Random::new(9);
    for form in all_forms() {
        let Form::Grouped(g) = &form else { continue };
        let (n, k) = (16, 256);
        let mut source = Synthetic::new(n, k, form.clone(), &mut random);
        let largest = ((1u32 << g.bits) - 1) as u8;
        for (row, codes) in source.values.chunks_mut(k).enumerate() {
            // All largest, all least, and both by turns.
            let code = |i: usize| if row % 3 == 0 || (row % 3 == 2 && i.is_multiple_of(2)) { largest } else { 0 };
            codes.iter_mut().enumerate().for_each(|(i, c)| *c = code(i));
        }
        let x: Vec<f32> = [1.0, -1.0, 0.0, 0.0]
            .into_iter()
            .enumerate()
            .flat_map(|(row, v)| (0..k).map(move |i| if row < 2 { v } else { 1.0 - 2.0 * ((i + row) % 2) as f32 }))
            .collect();
        let want = bits(&expected(Numerics::Int8, &x, 4, &source));
        for isa in Isa::available() {
            let cpu = cpu(isa, 1, Numerics::Int8);
            let weight = cpu.pack(&source, None, Class::Weights).unwrap();
            for t in [1, 2, 4] {
                assert_eq!(bits(&product(&cpu, &x[..t * k], t, &weight)), want[..t * n], "{form:?} {}", isa.name());
            }
        }
    }
}

/// Two weights of different forms with one input, both with a bias.
fn pair(cpu: &Cpu, k: usize) -> [Weight; 2] {
    let mut random = Random::new(5);
    let four = Grouped { bits: 4, levels: Levels::Offset(8), block: 32, scales: Scales::Float(DType::F16) };
    let a = Synthetic::new(50, k, Form::Grouped(four), &mut random);
    let b = Synthetic::new(35, k, Form::Dense(DType::F16), &mut random);
    let (bias_a, bias_b) = (random.activations(50), random.activations(35));
    [cpu.pack(&a, Some(&bias_a), Class::Weights).unwrap(), cpu.pack(&b, Some(&bias_b), Class::Weights).unwrap()]
}

#[test]
fn the_workspace_is_what_was_foretold() {
    for threads in [1, 2] {
        for t in [1, 2, 3, 40] {
            let cpu = cpu(Isa::detect(), threads, Numerics::Int8);
            let weights = pair(&cpu, 320);
            let weights = [&weights[0], &weights[1]];
            let x = tensor(&cpu, &vec![1.0; t * 320], &[t, 320]);
            let before = cpu.memory().usage().of(Class::Scratch);
            let out = cpu.linear(Input::Plain(&x), &weights).unwrap();
            let took = cpu.memory().usage().of(Class::Scratch) - before;
            let other = Cpu::new(CpuSpec { threads: Some(threads), ..CpuSpec::default() }).unwrap();
            let mut want = Vec::new();
            for y in &out {
                want.push(other.alloc(y.dims(), DType::F32, Class::Scratch).unwrap());
            }
            drop(other.memory().take(cpu.linear_workspace(t, &weights), Class::Scratch).unwrap());
            assert_eq!(took, other.memory().usage().of(Class::Scratch), "T={t}, {threads} threads");
        }
    }
}

#[test]
fn inputs_that_do_not_fit_are_refused() {
    let cpu = cpu(Isa::detect(), 1, Numerics::Int8);
    let [a, b] = pair(&cpu, 320);
    let x = tensor(&cpu, &[0.0; 64], &[2, 32]);
    assert!(cpu.linear(Input::Plain(&x), &[&a]).unwrap_err().to_string().contains("320"));
    let x = tensor(&cpu, &[0.0; 320], &[1, 320]);
    let [c, _] = pair(&cpu, 96);
    assert!(cpu.linear(Input::Plain(&x), &[&a, &c]).is_err());
    assert!(cpu.linear(Input::Glu(&x, &tensor(&cpu, &[0.0; 32], &[1, 32]), Act::Silu), &[&a]).is_err());
    assert!(cpu.linear_add(Input::Plain(&x), &b, tensor(&cpu, &[0.0; 3], &[1, 3])).is_err());
    let foreign = Weight { packed: std::sync::Arc::new(0u8), ..a.clone() };
    assert!(cpu.linear(Input::Plain(&x), &[&foreign]).unwrap_err().to_string().contains("pack it again"));
    assert!(cpu.linear(Input::Plain(&x), &[]).unwrap().is_empty());
    let none = cpu.linear(Input::Plain(&tensor(&cpu, &[], &[0, 320])), &[&a]).unwrap();
    assert_eq!(none[0].dims(), [0, 50]);
}

#[test]
fn the_workspace_of_groups_is_what_was_foretold() {
    let mut random = Random::new(23);
    let k = 256;
    let shapes = [40, 16 * 9 + 3];
    for form in all_forms().into_iter().step_by(19) {
        for (t, threads) in [(1, 1), (2, 3), (3, 1), (70, 3), (300, 1)] {
            for numerics in [Numerics::Int8, Numerics::Exact] {
                let cpu = cpu(Isa::detect(), threads, numerics);
                let mut one =
                    |n| cpu.pack(&Synthetic::new(n, k, form.clone(), &mut random), None, Class::Weights).unwrap();
                let weights: Vec<[Weight; 2]> = (0..4).map(|_| shapes.map(&mut one)).collect();
                let all = |g: usize| (0..t as u32).filter(|r| g != 3 && !(*r as usize + g).is_multiple_of(3)).collect();
                let groups = weights.iter().enumerate();
                let groups: Vec<Group<'_>> =
                    groups.map(|(g, w)| Group { weights: w.iter().collect(), rows: all(g) }).collect();
                let (gate, up) = (random.activations(t * k), random.activations(t * k));
                let (g, u) = (tensor(&cpu, &gate, &[t, k]), tensor(&cpu, &up, &[t, k]));
                for input in [Input::Plain(&g), Input::Glu(&g, &u, Act::Silu), Input::Activated(&g, Act::Relu)] {
                    cpu.memory().trim();
                    let before = cpu.memory().usage().of(Class::Scratch);
                    cpu.memory().reset_peak();
                    let found = cpu.linear_groups(input, &groups).unwrap();
                    let picked = groups.iter().map(|g| g.rows.len()).sum();
                    let results: usize = shapes.iter().map(|n| n * picked * 4).sum();
                    let room = cpu.linear_groups_workspace((t, picked), &groups[0].weights);
                    let peak = cpu.memory().usage().peak - cpu.memory().usage().of(Class::Weights);
                    let most = before + (room + results) as u64;
                    assert!((most..most + most / 16 + 1024).contains(&peak), "T={t}: {peak}, not {most}");
                    drop(found);
                }
            }
        }
    }
}
