//! Every row against golden blocks of other implementations, and the laws that all rows obey.

use std::path::{Path, PathBuf};

use super::*;
use crate::form::{Form, WeightSource};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/golden").join(name)
}

fn bytes(name: &str) -> Vec<u8> {
    std::fs::read(golden(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

fn words(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect()
}

/// The golden files spell types as ggml does.
fn golden_name(row: &QuantEntry) -> String {
    row.name.to_uppercase()
}

fn block_rows() -> impl Iterator<Item = (&'static QuantEntry, &'static Blocks)> {
    QUANTS.iter().filter_map(|row| row.blocks.map(|b| (row, b)))
}

#[test]
fn rows_are_alphabetical_and_named_as_their_files() {
    assert!(QUANTS.is_sorted_by(|a, b| a.name < b.name));
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/quant");
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "rs"))
        .map(|p| p.file_stem().unwrap().to_str().unwrap().to_owned())
        .filter(|stem| stem != "mod" && stem != "tests")
        .collect();
    files.sort();
    assert_eq!(files, QUANTS.iter().map(|row| row.name).collect::<Vec<_>>());
}

#[test]
fn values_equal_the_golden_bits() {
    let mut checked = 0;
    for (row, blocks) in block_rows() {
        let name = golden_name(row);
        let (raw, want) = (bytes(&format!("{name}.bin")), words(&bytes(&format!("{name}.f32.bin"))));
        assert_eq!(raw.len() / blocks.bytes * blocks.weights, want.len(), "{name}");
        let mut got = vec![0.0; want.len()];
        blocks.dequantise(&raw, &mut got);
        for (i, (got, want)) in got.iter().zip(&want).enumerate() {
            assert_eq!(got.to_bits(), *want, "{name} value {i}: {got} is not {}", f32::from_bits(*want));
        }
        checked += 1;
    }
    assert_eq!(checked, 12);
}

/// Dense dtypes have no row here; their goldens still must come out.
#[test]
fn plain_floats_equal_the_golden_bits() {
    for (name, dtype) in [("F32", DType::F32), ("F16", DType::F16), ("BF16", DType::BF16)] {
        let (raw, want) = (bytes(&format!("{name}.bin")), words(&bytes(&format!("{name}.f32.bin"))));
        let matrix = DenseMatrix::new(dtype, &raw, (2, want.len() / 2)).unwrap();
        let mut got = vec![0.0; want.len() / 2];
        for (row, want) in want.chunks(want.len() / 2).enumerate() {
            matrix.row_f32(row, &mut got);
            assert_eq!(got.iter().map(|v| v.to_bits()).collect::<Vec<_>>(), want, "{name}");
        }
    }
}

#[test]
fn codes_and_scales_reproduce_the_values() {
    for (row, blocks) in block_rows() {
        let raw = bytes(&format!("{}.bin", golden_name(row)));
        let k = raw.len() / blocks.bytes * blocks.weights / 2;
        assert_source(row.name, &BlockMatrix::new(blocks, &raw, (2, k)).unwrap());
    }
}

/// `row_f32` against `row_codes`, `row_scales` and `Grouped` alone.
fn assert_source(name: &str, source: &dyn WeightSource) {
    let Form::Grouped(form) = source.form() else { panic!("{name} is not grouped") };
    let (n, k) = source.shape();
    for row in 0..n {
        let (mut codes, mut raw, mut want) = (vec![0; k], vec![0; form.row_scale_bytes(k)], vec![0.0; k]);
        let (mut scales, mut biases) = (vec![0.0; k / form.block], vec![0.0; k / form.block]);
        source.row_f32(row, &mut want);
        source.row_codes(row, &mut codes);
        source.row_scales(row, &mut raw);
        form.decode_scales(&raw, &mut scales, &mut biases);
        for i in 0..k {
            assert!(u32::from(codes[i]) < 1 << form.bits, "{name} code {i}");
            let mut value = form.level(codes[i]) as f32 * scales[i / form.block];
            if form.scales.has_bias() {
                value += biases[i / form.block];
            }
            assert_eq!(value.to_bits(), want[i].to_bits(), "{name} row {row} weight {i}");
        }
    }
}

#[test]
fn blocks_hold_their_form_and_nothing_else() {
    for (row, blocks) in block_rows() {
        assert_eq!(blocks.form.row_bytes(blocks.weights), blocks.bytes, "{}", row.name);
        assert!(blocks.weights <= MAX_BLOCK && blocks.form.row_scale_bytes(blocks.weights) <= MAX_BLOCK_SCALES);
        let (found, _) = find_ggml(QUANTS, blocks.ggml_type).unwrap();
        assert_eq!(found.name, row.name);
    }
}

/// The second half of a golden file was quantised from noise by the other implementation; quantising what it decodes to must
/// reach the same codes, and the error against any source stays within the format's bound.
#[test]
fn written_blocks_round_trip() {
    for (row, blocks) in block_rows().filter(|(_, b)| b.quantise.is_some()) {
        let raw = bytes(&format!("{}.bin", golden_name(row)));
        let real = &raw[raw.len() / 2..];
        let mut values = vec![0.0; real.len() / blocks.bytes * blocks.weights];
        blocks.dequantise(real, &mut values);
        let mut again = vec![0; real.len()];
        blocks.quantise(row.name, &values, &mut again).unwrap();
        let mut back = vec![0.0; values.len()];
        blocks.dequantise(&again, &mut back);
        for (values, back) in values.chunks(blocks.weights).zip(back.chunks(blocks.weights)) {
            let amax = values.iter().fold(0.0f32, |m, v| m.max(v.abs()));
            let step = if row.name == "q4_0" { amax / 8.0 } else { amax / 127.0 };
            for (v, b) in values.iter().zip(back) {
                assert!((v - b).abs() <= step * 0.51, "{} {v} became {b}", row.name);
            }
        }
    }
}

/// Bytes that the gguf package's quantiser makes of `noise(64)` with a zero at 40.
#[test]
fn written_blocks_equal_the_other_implementations_bytes() {
    let mut weights = noise(64);
    weights[40] = 0.0;
    for (name, want) in [
        ("q4_0", "adaf997866da2308776fa23d74f7032bcc64f12f05397954ad03a0f568fadf1649a543d9"),
        (
            "q8_0",
            "bc1fec0227e14e000e8d5ab041094bd0bc42ec1320b1617f0d20e24c188a7b67c7250120d20c0ac04daf85ce00237ddc15cab00f83aff5ca\
             23811979db705693c823bd57",
        ),
    ] {
        let blocks = find(QUANTS, name).and_then(|row| row.blocks).unwrap();
        let mut out = vec![0; want.len() / 2];
        blocks.quantise(name, &weights, &mut out).unwrap();
        let hex: String = out.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, want, "{name}");
    }
}

#[test]
fn what_cannot_be_written_is_refused() {
    let (row, blocks) = block_rows().find(|(row, _)| row.name == "q6_k").unwrap();
    let error = blocks.quantise(row.name, &[0.0; 256], &mut [0; 210]).unwrap_err().to_string();
    assert!(error.contains("q6_k"), "{error}");
    let (row, blocks) = block_rows().find(|(row, _)| row.name == "q8_0").unwrap();
    let mut weights = [1.0; 32];
    weights[7] = f32::NAN;
    let error = blocks.quantise(row.name, &weights, &mut [0; 34]).unwrap_err().to_string();
    assert!(error.contains("weight 7"), "{error}");
}

fn affine() -> &'static Planes {
    find(QUANTS, "affine").and_then(|row| row.planes).unwrap()
}

/// A cheap source of varied weights.
fn noise(n: usize) -> Vec<f32> {
    let mut x = 1u64;
    std::iter::repeat_with(|| {
        x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (x >> 40) as f32 / (1 << 23) as f32 - 1.0
    })
    .take(n)
    .collect()
}

/// One row of affine planes at a spec, as owned bytes: codes, scales, biases.
fn affine_row(spec: PlaneSpec, row: &[f32]) -> [Vec<u8>; 3] {
    let scale_bytes = row.len() / spec.group * spec.dtype.size();
    let mut out = [vec![0; row.len() * usize::from(spec.bits) / 8], vec![0; scale_bytes], vec![0; scale_bytes]];
    let [codes, scales, biases] = &mut out;
    affine().quantise("affine", spec, row, PlaneRow { codes, scales, biases }).unwrap();
    out
}

fn every_affine_spec() -> impl Iterator<Item = PlaneSpec> {
    affine().bits.iter().flat_map(|&bits| {
        let groups = affine().groups.iter();
        groups.flat_map(move |&group| affine().dtypes.iter().map(move |&dtype| PlaneSpec { bits, group, dtype }))
    })
}

#[test]
fn affine_keeps_every_weight_within_a_step() {
    let row = noise(256);
    for spec in every_affine_spec() {
        let [codes, scales, biases] = affine_row(spec, &row);
        let bytes = PlaneBytes { codes: &codes, scales: &scales, biases: &biases };
        let matrix = PlaneMatrix::new(affine(), spec, bytes, (1, 256)).unwrap();
        assert_source("affine", &matrix);
        let mut back = vec![0.0; 256];
        matrix.row_f32(0, &mut back);
        // Zero must fall on a code, which costs up to half a step at the far end; the scale's own rounding adds the rest.
        let step = 2.0 / ((1u32 << spec.bits) - 1) as f32;
        let rounding = if spec.dtype == DType::BF16 { 2.0 / 128.0 } else { 1e-3 };
        for (v, b) in row.iter().zip(&back) {
            assert!((v - b).abs() <= 1.01 * step + rounding, "{spec:?}: {v} became {b}");
        }
    }
}

#[test]
fn affine_of_constant_rows_is_exact() {
    for value in [0.0, 0.5, -0.25] {
        let spec = PlaneSpec { bits: 4, group: 32, dtype: DType::F16 };
        let [codes, scales, biases] = affine_row(spec, &[value; 64]);
        let bytes = PlaneBytes { codes: &codes, scales: &scales, biases: &biases };
        let mut back = vec![9.0; 64];
        PlaneMatrix::new(affine(), spec, bytes, (1, 64)).unwrap().row_f32(0, &mut back);
        assert!(back.iter().all(|b| (b - value).abs() < 1e-6), "{value} became {back:?}");
    }
}

#[test]
fn lengths_that_contradict_the_shape_are_refused() {
    let spec = PlaneSpec { bits: 4, group: 64, dtype: DType::F16 };
    let [codes, scales, biases] = affine_row(spec, &noise(128));
    let good = PlaneBytes { codes: &codes, scales: &scales, biases: &biases };
    assert!(PlaneMatrix::new(affine(), spec, good, (1, 128)).is_ok());
    for bad in [
        PlaneBytes { codes: &codes[1..], ..good },
        PlaneBytes { scales: &scales[2..], ..good },
        PlaneBytes { biases: &[], ..good },
    ] {
        let error = PlaneMatrix::new(affine(), spec, bad, (1, 128)).unwrap_err().to_string();
        assert!(error.contains("expected") && error.contains("[1, 128]"), "{error}");
    }
    for spec in [PlaneSpec { bits: 7, ..spec }, PlaneSpec { group: 16, ..spec }, PlaneSpec { dtype: DType::U8, ..spec }]
    {
        assert!(PlaneMatrix::new(affine(), spec, good, (1, 128)).is_err(), "{spec:?}");
    }
    let (_, q4_0) = block_rows().find(|(row, _)| row.name == "q4_0").unwrap();
    assert!(BlockMatrix::new(q4_0, &[0; 18], (1, 32)).is_ok());
    assert!(BlockMatrix::new(q4_0, &[0; 18], (1, 33)).is_err());
    assert!(BlockMatrix::new(q4_0, &[0; 17], (1, 32)).is_err());
    assert!(BlockMatrix::new(q4_0, &[0; 18], (usize::MAX, 32)).is_err());
    assert!(DenseMatrix::new(DType::F32, &[0; 18], (usize::MAX, usize::MAX)).is_err());
    assert!(DenseMatrix::new(DType::U8, &[0; 4], (1, 4)).is_err());
}

#[test]
fn views_show_the_rows_of_their_sources() {
    let floats: Vec<u8> = (0..12u8).flat_map(|i| f32::from(i).to_le_bytes()).collect();
    let matrix = || Box::new(DenseMatrix::new(DType::F32, &floats, (4, 3)).unwrap());
    let first = |source: &dyn WeightSource| {
        let mut row = vec![0.0; 3];
        (0..source.shape().0)
            .map(|r| {
                source.row_f32(r, &mut row);
                row[0]
            })
            .collect::<Vec<_>>()
    };
    let range = Rows::range(matrix(), 1..3).unwrap();
    assert_eq!(first(&range), [3.0, 6.0]);
    let picked = Rows::pick(matrix(), vec![3, 0, 0]).unwrap();
    assert_eq!(first(&picked), [9.0, 0.0, 0.0]);
    let empty = Rows::range(matrix(), 2..2).unwrap();
    let joined = Joined::new(vec![Box::new(range), Box::new(empty), Box::new(picked)]).unwrap();
    assert_eq!(joined.shape(), (5, 3));
    assert_eq!(first(&joined), [3.0, 6.0, 9.0, 0.0, 0.0]);

    assert!(Rows::range(matrix(), 2..5).is_err());
    assert!(Rows::pick(matrix(), vec![4]).is_err());
    assert!(Joined::new(vec![]).is_err());
    let half = Box::new(DenseMatrix::new(DType::F16, &floats, (8, 3)).unwrap());
    assert!(Joined::new(vec![matrix(), half]).is_err());
}

/// Bytes of codes a second for each format on one thread; run with `--ignored --nocapture`.
#[test]
#[ignore = "a measurement, not a test"]
fn measure_codes() {
    let k = 4096;
    let mut out = vec![0; k];
    let mut time = |name: String, source: &dyn WeightSource| {
        let start = std::time::Instant::now();
        let mut rows = 0u64;
        while start.elapsed().as_millis() < 150 {
            for row in 0..source.shape().0 {
                source.row_codes(row, &mut out);
                std::hint::black_box(&out);
            }
            rows += source.shape().0 as u64;
        }
        println!("{name}: {:.2} GB/s of codes", (rows * k as u64) as f64 / start.elapsed().as_secs_f64() / 1e9);
    };
    for (row, blocks) in block_rows() {
        let raw = vec![0x5a; 64 * blocks.row_bytes(k)];
        time(row.name.to_owned(), &BlockMatrix::new(blocks, &raw, (64, k)).unwrap());
    }
    for &bits in affine().bits {
        let spec = PlaneSpec { bits, group: 64, dtype: DType::F16 };
        let (codes, scales) = (vec![0x5a; 64 * k * usize::from(bits) / 8], vec![0; 64 * k / 64 * 2]);
        let bytes = PlaneBytes { codes: &codes, scales: &scales, biases: &scales };
        time(format!("affine {bits}"), &PlaneMatrix::new(affine(), spec, bytes, (64, k)).unwrap());
        let row = noise(k);
        let start = std::time::Instant::now();
        let mut rows = 0u64;
        while start.elapsed().as_millis() < 150 {
            std::hint::black_box(affine_row(spec, std::hint::black_box(&row)));
            rows += 1;
        }
        println!("  writes {:.3} G weights/s", (rows * k as u64) as f64 / start.elapsed().as_secs_f64() / 1e9);
    }
}
