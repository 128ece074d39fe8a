//! Every operation of `Backend` against its scalar reference, by random shapes and values, on every instruction set of this
//! processor. An operation says which shapes and values it takes (one function each); `trial` does the rest.

mod attention;
mod elementwise;
mod products;
mod recurrent;
#[path = "../synthetic/mod.rs"]
mod synthetic;
mod trial;

macro_rules! trials {
    ($($file:ident: $($operation:ident)+;)+) => {
        $($(#[test]
        fn $operation() {
            $file::$operation();
        })+)+

        const TRIED: &[&str] = &[$($(stringify!($operation)),+),+];
    };
}

trials! {
    attention: attend choose kv_write;
    elementwise: add combine concat dot gated_norm glu map norm pointwise rope rows softmax;
    products: add_weighted embed linear linear_add linear_groups route;
    recurrent: conv exp_gates recurrence rg_lru selective_scan wkv;
}

#[test]
fn every_operation_of_the_trait_is_tried() {
    let text = include_str!("../../../tensor/src/backend.rs");
    let operations = text.split("// ---- operations").nth(1).expect("the operations of the trait");
    let names = operations.lines().filter_map(|l| l.strip_prefix("    fn ")?.split(['(', '<']).next());
    // These tell an observer something and give nothing.
    let missing: Vec<&str> = names.filter(|n| !["note", "event"].contains(n) && !TRIED.contains(n)).collect();
    assert!(missing.is_empty(), "no trial of {missing:?}");
}
