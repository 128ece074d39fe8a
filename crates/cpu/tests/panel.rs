//! Panels hold what was packed: every row, code and scale comes back, in as many bytes as foretold.

mod synthetic;

use reverie_cpu::{Cpu, CpuSpec};
use reverie_tensor::{Backend, Class, DType, Form, Grouped, Levels, Scales};
use synthetic::{Random, Synthetic, all_forms};

fn cpu(threads: usize) -> Cpu {
    Cpu::new(CpuSpec { threads: Some(threads), ..CpuSpec::default() }).unwrap()
}

#[test]
fn unpacking_gives_back_what_was_packed() {
    let mut random = Random::new(11);
    for form in all_forms() {
        let (n, k) = (1 + random.below(50), 256 * (1 + random.below(3)));
        let mut source = Synthetic::new(n, k, form.clone(), &mut random);
        source.spoil(&mut random);
        let cpu = cpu(1 + random.below(3));
        let before = cpu.memory().usage().of(Class::Weights);
        let weight = cpu.pack(&source, None, Class::Weights).unwrap();
        let took = cpu.memory().usage().of(Class::Weights) - before;
        assert_eq!(took as usize, cpu.packed_bytes(n, k, &form).next_multiple_of(64), "{form:?}");
        assert_eq!(cpu.packed_bytes(n, k, &form), n.next_multiple_of(16) * form.row_bytes(k), "nothing is inflated");
        assert_eq!(source.done.load(std::sync::atomic::Ordering::Relaxed), 1);
        let view = cpu.unpack(&weight).unwrap();
        assert_eq!((view.shape(), view.form()), ((n, k), form.clone()));
        use reverie_tensor::WeightSource;
        for r in 0..n {
            let (mut a, mut b) = (vec![0.0; k], vec![0.0; k]);
            source.row_f32(r, &mut a);
            view.row_f32(r, &mut b);
            let bits = |v: &[f32]| v.iter().map(|x| if x.is_nan() { 1 } else { x.to_bits() }).collect::<Vec<_>>();
            assert_eq!(bits(&a), bits(&b), "{form:?} row {r}");
            let (mut a, mut b) = (vec![1; form.row_bytes(k)], vec![2; form.row_bytes(k)]);
            match &form {
                Form::Dense(_) => {
                    source.row_dense(r, &mut a);
                    view.row_dense(r, &mut b);
                }
                Form::Grouped(g) => {
                    (a, b) = (vec![1; k], vec![2; k]);
                    source.row_codes(r, &mut a);
                    view.row_codes(r, &mut b);
                    assert_eq!(a, b, "{form:?} row {r}");
                    (a, b) = (vec![1; g.row_scale_bytes(k)], vec![2; g.row_scale_bytes(k)]);
                    source.row_scales(r, &mut a);
                    view.row_scales(r, &mut b);
                }
            }
            assert_eq!(a, b, "{form:?} row {r}");
        }
    }
}

#[test]
fn an_id_beyond_the_table_is_refused() {
    let cpu = cpu(1);
    let weight =
        cpu.pack(&Synthetic::new(4, 32, Form::Dense(DType::F32), &mut Random::new(12)), None, Class::Weights).unwrap();
    assert!(cpu.embed(&weight, &[4], 1.0).unwrap_err().to_string().contains("below 4"));
    assert_eq!(cpu.embed(&weight, &[], 1.0).unwrap().dims(), [0, 32]);
}

#[test]
fn forms_that_panels_cannot_hold_are_refused() {
    let cpu = cpu(1);
    let mut random = Random::new(13);
    let good = Grouped { bits: 4, levels: Levels::Offset(8), block: 32, scales: Scales::Float(DType::F16) };
    let refused = |n, k, form| {
        let source = Synthetic { n, k, form, values: Vec::new(), scales: Vec::new(), done: Default::default() };
        cpu.pack(&source, None, Class::Weights).is_err()
    };
    assert!(refused(0, 32, Form::Grouped(good.clone())));
    assert!(refused(3, 0, Form::Dense(DType::F32)));
    assert!(refused(usize::MAX / 2, 32, Form::Dense(DType::F32)));
    assert!(refused(3, 48, Form::Grouped(good.clone())));
    assert!(refused(3, 32, Form::Dense(DType::U8)));
    assert!(refused(3, 32, Form::Grouped(Grouped { bits: 7, ..good.clone() })));
    assert!(refused(3, 32, Form::Grouped(Grouped { block: 33, ..good.clone() })));
    assert!(refused(3, 32, Form::Grouped(Grouped { block: 64, ..good.clone() })));
    assert!(refused(3, 128, Form::Grouped(Grouped { scales: Scales::Six8, ..good.clone() })));
    assert!(refused(3, 32, Form::Grouped(Grouped { bits: 5, levels: Levels::Table([0; 16]), ..good.clone() })));
    assert!(refused(3, 32, Form::Grouped(Grouped { levels: Levels::Offset(i32::MAX), ..good.clone() })));
    let source = Synthetic::new(5, 32, Form::Grouped(good), &mut random);
    assert!(cpu.pack(&source, Some(&[0.0; 4]), Class::Weights).is_err());
    assert!(cpu.pack(&source, Some(&[0.0; 5]), Class::Weights).is_ok());
}
