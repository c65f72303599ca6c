//! One input times a quantized weight, with the reference, every SIMD level and form, and dense f32 of the
//! same shape.
//!
//! `cargo bench -p aqlm-benches --bench matvec [-- FILTER]`

use aqlm_benches::{case, faer_matvec, ndarray_matvec, plans, print_roofline};
use aqlm_optimized::cpu::PackedMatrix;
use aqlm_vocabulary::{Result, Scheme};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ndarray::Array1;

const SCHEMES: [&str; 5] = ["2x8g8", "4x8g8", "1x16g8", "2x6g8", "4x8g16"];
const SHAPE: (usize, usize) = (11008, 4096);

fn bench(criterion: &mut Criterion) -> Result<()> {
    let (out_features, in_features) = SHAPE;
    for text in SCHEMES {
        let scheme: Scheme = text.parse()?;
        let case = case(scheme, out_features, in_features, 1)?;
        let mut group = criterion.benchmark_group(format!("matvec {text} {out_features}x{in_features}"));
        group.sample_size(10);
        let mut y = vec![0.0f32; out_features];

        let mut roofline = true;
        for (name, plan) in plans(scheme, out_features, in_features) {
            let packed = PackedMatrix::new(&case.matrix, &plan)?;
            packed.matvec(&case.x, &mut y)?;
            if std::mem::take(&mut roofline) {
                print_roofline(&format!("matvec {text}"), packed.bytes());
            }
            group.throughput(Throughput::Bytes(packed.bytes() as u64));
            group.bench_function(format!("cpu {name}"), |b| {
                b.iter(|| packed.matvec(&case.x, std::hint::black_box(&mut y)));
            });
        }

        let x = Array1::from(case.x.clone()).mapv(f64::from);
        group.bench_function("reference", |b| {
            b.iter(|| aqlm_reference::decode(&case.matrix).dot(&x));
        });

        let weight = PackedMatrix::with_best_plan(&case.matrix)?.decode();
        let bytes = size_of::<f32>() * weight.len();
        print_roofline("dense f32", bytes);
        group.throughput(Throughput::Bytes(bytes as u64));
        group.bench_function("dense f32 faer", |b| b.iter(|| faer_matvec(&weight, &case.x)));
        group.bench_function("dense f32 ndarray", |b| {
            b.iter(|| ndarray_matvec(&weight, &case.x, std::hint::black_box(&mut y)));
        });
        group.finish();
    }
    Ok(())
}

fn matvec(criterion: &mut Criterion) {
    if let Err(error) = bench(criterion) {
        eprintln!("matvec: {error}");
    }
}

criterion_group!(benches, matvec);
criterion_main!(benches);
