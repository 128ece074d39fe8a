//! Matrix products against the scalar reference, bit for bit: every form, every instruction set of this processor, any number
//! of rows and threads. The weights are synthetic; no format is known here.

mod synthetic;

use reverie_cpu::{Cpu, CpuSpec, Isa};
use reverie_tensor::{
    Act, Backend, Class, DType, Form, Group, Grouped, Input, Levels, Norm, NormKind, Numerics, Scales, Tensor, Weight,
    reference,
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
fn every_form_equals_the_reference_on_every_instruction_set() {
    let mut random = Random::new(1);
    for form in all_forms() {
        let (n, k) = (16 * random.below(3) + 1 + random.below(16), 256 * (1 + random.below(3)));
        let source = Synthetic::new(n, k, form.clone(), &mut random);
        let rows = [1, 2, 3, 4, 9];
        let x = random.activations(9 * k);
        for numerics in [Numerics::Int8, Numerics::Exact] {
            let want = bits(&expected(numerics, &x, 9, &source));
            for isa in Isa::available() {
                let cpu = cpu(isa, 2, numerics);
                let weight = cpu.pack(&source, None, Class::Weights).unwrap();
                for t in rows {
                    let got = bits(&product(&cpu, &x[..t * k], t, &weight));
                    assert_eq!(got, want[..t * n], "{form:?} {numerics:?} {} [{n}, {k}] T={t}", isa.name());
                }
            }
        }
    }
}

#[test]
fn shapes_rows_and_threads_change_no_bit() {
    let mut random = Random::new(2);
    let forms = [
        Form::Grouped(Grouped {
            bits: 4,
            levels: Levels::Offset(0),
            block: 64,
            scales: Scales::FloatBias(DType::BF16),
        }),
        Form::Grouped(Grouped { bits: 8, levels: Levels::Offset(128), block: 32, scales: Scales::Float(DType::F16) }),
        Form::Grouped(Grouped { bits: 6, levels: Levels::Offset(32), block: 16, scales: Scales::Byte16 }),
        Form::Dense(DType::BF16),
        Form::Dense(DType::F32),
    ];
    for form in forms {
        for (n, k, t) in [(1, 256, 1), (8, 512, 5), (272, 768, 3), (129, 1024, 17), (40, 256, 131), (700, 256, 2)] {
            let source = Synthetic::new(n, k, form.clone(), &mut random);
            let x = random.activations(t * k);
            for numerics in [Numerics::Int8, Numerics::Exact] {
                let want = bits(&expected(numerics, &x, t, &source));
                for isa in Isa::available() {
                    for threads in [1, 2, 3, 4] {
                        let cpu = cpu(isa, threads, numerics);
                        let weight = cpu.pack(&source, None, Class::Weights).unwrap();
                        let got = bits(&product(&cpu, &x, t, &weight));
                        assert_eq!(
                            got,
                            want,
                            "{form:?} {numerics:?} {} [{n}, {k}] T={t} threads={threads}",
                            isa.name()
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn dense_rows_may_have_any_length() {
    let mut random = Random::new(3);
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        for (n, k) in [(5, 1), (33, 7), (64, 129), (70, 300)] {
            let source = Synthetic::new(n, k, Form::Dense(dtype), &mut random);
            let x = random.activations(11 * k);
            let want = bits(&reference::linear::exact(&x, 11, &source));
            for isa in Isa::available() {
                let cpu = cpu(isa, 2, Numerics::Int8);
                let weight = cpu.pack(&source, None, Class::Weights).unwrap();
                for t in [1, 2, 4, 8, 11] {
                    assert_eq!(
                        bits(&product(&cpu, &x[..t * k], t, &weight)),
                        want[..t * n],
                        "{dtype} [{n}, {k}] T={t}"
                    );
                }
            }
        }
    }
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

#[test]
fn what_is_not_finite_stays_visible_and_equal() {
    let mut random = Random::new(4);
    for form in all_forms() {
        let (n, k, t) = (21, 512, 6);
        let mut source = Synthetic::new(n, k, form.clone(), &mut random);
        source.spoil(&mut random);
        let mut x = random.activations(t * k);
        (x[3], x[k + 40], x[2 * k + 100]) = (f32::NAN, f32::INFINITY, f32::NEG_INFINITY);
        x[3 * k..4 * k].fill(0.0);
        x[4 * k..5 * k].fill(-0.0);
        for numerics in [Numerics::Int8, Numerics::Exact] {
            let want = bits(&expected(numerics, &x, t, &source));
            for isa in Isa::available() {
                let cpu = cpu(isa, 1, numerics);
                let weight = cpu.pack(&source, None, Class::Weights).unwrap();
                assert_eq!(bits(&product(&cpu, &x, t, &weight)), want, "{form:?} {numerics:?} {}", isa.name());
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
fn inputs_are_prepared_alike_for_one_row_and_many_on_every_instruction_set() {
    let (k, t) = (320, 19);
    let mut random = Random::new(6);
    let (x, other) = (random.activations(t * k), random.activations(t * k));
    let (weight, bias) = (random.activations(k), random.activations(k));
    let mut first: Option<Vec<Vec<u32>>> = None;
    for isa in Isa::available() {
        for threads in [1, 3] {
            let cpu = cpu(isa, threads, Numerics::Int8);
            let weights = pair(&cpu, k);
            let weights = [&weights[0], &weights[1]];
            let vector = |v: &[f32]| Some(tensor(&cpu, v, &[k]));
            let norms = [
                Norm { kind: NormKind::Rms, weight: vector(&weight), bias: None, eps: 1e-6 },
                Norm { kind: NormKind::Layer, weight: vector(&weight), bias: vector(&bias), eps: 1e-5 },
            ];
            let all = |rows: std::ops::Range<usize>| -> Vec<Vec<u32>> {
                let span = rows.start * k..rows.end * k;
                let (a, b) =
                    (tensor(&cpu, &x[span.clone()], &[rows.len(), k]), tensor(&cpu, &other[span], &[rows.len(), k]));
                let inputs = [
                    Input::Plain(&a),
                    Input::Normed(&a, &norms[0]),
                    Input::Normed(&a, &norms[1]),
                    Input::Glu(&a, &b, Act::Silu),
                    Input::Glu(&a, &b, Act::GeluTanh),
                    Input::SigmoidGated(&a, &b),
                ];
                let run = |input| cpu.linear(input, &weights).unwrap();
                inputs.into_iter().flat_map(run).map(|y| bits(&cpu.read(&y).unwrap())).collect()
            };
            let whole = all(0..t);
            for row in [0, 7, 18] {
                for (one, many) in all(row..row + 1).iter().zip(&whole) {
                    assert_eq!(one[..], many[row * one.len()..(row + 1) * one.len()], "row {row} {}", isa.name());
                }
            }
            match &first {
                None => first = Some(whole),
                Some(first) => assert!(*first == whole, "{} with {threads} threads", isa.name()),
            }
        }
    }
}

#[test]
fn a_norm_on_the_way_in_is_the_norm_and_then_the_product() {
    let (k, t) = (96, 3);
    let mut random = Random::new(7);
    let x = random.activations(t * k);
    for isa in Isa::available() {
        let cpu = cpu(isa, 1, Numerics::Int8);
        let weights = pair(&cpu, k);
        let norm = Norm {
            kind: NormKind::Rms,
            weight: Some(tensor(&cpu, &random.activations(k), &[k])),
            bias: None,
            eps: 1e-6,
        };
        let x = tensor(&cpu, &x, &[t, k]);
        let normed = cpu.norm(&x, &norm).unwrap();
        for weight in &weights {
            let fused = cpu.linear(Input::Normed(&x, &norm), &[weight]).unwrap().remove(0);
            let plain = cpu.linear(Input::Plain(&normed), &[weight]).unwrap().remove(0);
            assert_eq!(bits(&cpu.read(&fused).unwrap()), bits(&cpu.read(&plain).unwrap()));
        }
    }
}

#[test]
fn a_residual_is_added_last_and_its_storage_kept_if_it_is_free() {
    let (k, t) = (320, 5);
    let mut random = Random::new(8);
    for isa in Isa::available() {
        let cpu = cpu(isa, 2, Numerics::Int8);
        for weight in pair(&cpu, k) {
            let x = tensor(&cpu, &random.activations(t * k), &[t, k]);
            let residual = random.activations(t * weight.n);
            let y = cpu.read(&cpu.linear(Input::Plain(&x), &[&weight]).unwrap()[0]).unwrap();
            let want: Vec<f32> = residual.iter().zip(&y).map(|(r, y)| r + y).collect();
            let r = tensor(&cpu, &residual, &[t, weight.n]);
            let shared = r.clone();
            let out = cpu.linear_add(Input::Plain(&x), &weight, r).unwrap();
            assert!(!out.same_storage(&shared), "a shared residual was overwritten");
            assert_eq!(bits(&cpu.read(&out).unwrap()), bits(&want));
            assert_eq!(bits(&cpu.read(&shared).unwrap()), bits(&residual));
            let before = shared.storage().host().unwrap().bytes().unwrap().as_ptr();
            let out = cpu.linear_add(Input::Plain(&x), &weight, shared).unwrap();
            assert_eq!(out.storage().host().unwrap().bytes().unwrap().as_ptr(), before);
            assert_eq!(bits(&cpu.read(&out).unwrap()), bits(&want));
        }
    }
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
fn groups_of_rows_give_the_bits_of_their_rows_alone() {
    let mut random = Random::new(23);
    for form in all_forms().into_iter().step_by(7) {
        let k = 256;
        let shapes = [(40, k), (16 * 9 + 3, k)];
        let sources: Vec<Vec<Synthetic>> = (0..5)
            .map(|_| shapes.iter().map(|(n, k)| Synthetic::new(*n, *k, form.clone(), &mut random)).collect())
            .collect();
        for t in [1, 2, 3, 70, 300] {
            let (gate, up) = (random.activations(t * k), random.activations(t * k));
            let groups: Vec<Vec<u32>> = (0..5)
                .map(|g| (0..t as u32).filter(|_| g != 3 && random.below(3) > 0).collect::<Vec<u32>>())
                .map(|mut rows| {
                    rows.reverse();
                    rows
                })
                .collect();
            for numerics in [Numerics::Int8, Numerics::Exact] {
                for (isa, threads) in Isa::available().into_iter().flat_map(|isa| [(isa, 1), (isa, 3)]) {
                    let cpu = cpu(isa, threads, numerics);
                    let (g, u) = (tensor(&cpu, &gate, &[t, k]), tensor(&cpu, &up, &[t, k]));
                    let weights: Vec<Vec<Weight>> = sources
                        .iter()
                        .map(|s| s.iter().map(|s| cpu.pack(s, None, Class::Weights).unwrap()).collect())
                        .collect();
                    let calls: Vec<Group<'_>> = weights
                        .iter()
                        .zip(&groups)
                        .map(|(w, rows)| Group { weights: w.iter().collect(), rows: rows.clone() })
                        .collect();
                    for input in [Input::Plain(&g), Input::Glu(&g, &u, Act::Silu), Input::Activated(&g, Act::Relu)] {
                        cpu.memory().trim();
                        let before = cpu.memory().usage().of(Class::Scratch);
                        cpu.memory().reset_peak();
                        let got = cpu.linear_groups(input, &calls).unwrap();
                        let picked = groups.iter().map(Vec::len).sum();
                        let results: usize = shapes.iter().map(|(n, _)| n * picked * 4).sum();
                        let room = cpu.linear_groups_workspace((t, picked), &calls[0].weights);
                        let peak = cpu.memory().usage().peak - cpu.memory().usage().of(Class::Weights);
                        let most = before + (room + results) as u64;
                        assert!((most..most + most / 16 + 1024).contains(&peak), "T={t}: {peak}, not {most}");
                        for (place, got) in got.iter().enumerate() {
                            let whole: Vec<f32> = calls
                                .iter()
                                .flat_map(|c| {
                                    let all = cpu.linear(input, &[c.weights[place]]).unwrap().remove(0);
                                    let rows: Vec<usize> = c.rows.iter().map(|r| *r as usize).collect();
                                    cpu.read(&cpu.rows(&all, &rows).unwrap()).unwrap()
                                })
                                .collect();
                            assert_eq!(got.dims(), [picked, shapes[place].0]);
                            assert_eq!(bits(&cpu.read(got).unwrap()), bits(&whole), "{form:?} T={t} {}", isa.name());
                        }
                    }
                }
            }
        }
    }
}
