//! What `quantize` writes is what mlx_lm writes, byte for byte, and what it refuses it leaves untouched.

use reverie::rooms::files::{Checkpoint, Rule};
use reverie::rooms::pack::{Override, QuantizeSpec, quantize};
use reverie::rooms::tensor::quant::QUANTS;

use crate::fixtures::root;

#[test]
fn quantising_gives_the_bytes_of_mlx_lm() {
    let open = |name: &str| Checkpoint::open(&root().join(name), QUANTS).expect(name);
    let (source, want) = (open("qwen3_sharded"), open("qwen3_mlx"));
    let rules = want.weights.quantisation();
    let general = rules.general().expect("general");
    let modules: Vec<&str> =
        source.weights.iter().filter(|v| v.shape.len() == 2).filter_map(|v| v.name.strip_suffix(".weight")).collect();
    let overrides = modules
        .iter()
        .filter_map(|module| {
            let choice = match rules.of(module) {
                _ if !want.weights.contains(&format!("{module}.scales")) => None,
                Rule::Own(own) => Some((own.bits, own.group)),
                _ => return None,
            };
            Some(Override { pattern: (*module).to_owned(), choice })
        })
        .collect();
    let spec = QuantizeSpec { bits: general.bits, group: general.group, overrides, shard_bytes: u64::MAX };
    let target = tempfile::tempdir().expect("tempdir");
    let plan = quantize(&source, target.path(), &spec, &mut |_| {}).expect("quantize");
    assert!(plan.quantised > 10 && plan.kept > 0, "{plan:?}");
    let got = Checkpoint::open(target.path(), QUANTS).expect("reopen");
    let names: Vec<&str> = want.weights.names().collect();
    assert_eq!(got.weights.names().collect::<Vec<_>>(), names);
    for name in names {
        let (g, w) = (got.weights.view(name).expect(name), want.weights.view(name).expect(name));
        assert_eq!((g.shape, g.storage.name()), (w.shape, w.storage.name()), "{name}");
        assert_eq!(g.bytes, w.bytes, "{name}");
    }
    let again = quantize(&source, target.path(), &spec, &mut |_| {}).expect_err("not empty").to_string();
    assert!(again.contains("empty"), "{again}");
    let twice = quantize(&want, &target.path().join("x"), &spec, &mut |_| {}).expect_err("twice").to_string();
    assert!(twice.contains("quantised folder"), "{twice}");
}
