//! Decodes codes to a dense f32 weight, with the reference and every SIMD level, beside a fill of the same
//! array.
//!
//! `cargo bench -p aqlm-benches --bench decode [-- FILTER]`

use aqlm_benches::{case, plans, print_roofline};
use aqlm_optimized::cpu::PackedMatrix;
use aqlm_vocabulary::{Result, Scheme};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use rayon::prelude::*;

const SCHEMES: [&str; 3] = ["2x8g8", "4x8g8", "1x16g8"];
const SHAPE: (usize, usize) = (4096, 4096);

fn bench(criterion: &mut Criterion) -> Result<()> {
    let (out_features, in_features) = SHAPE;
    for text in SCHEMES {
        let scheme: Scheme = text.parse()?;
        let case = case(scheme, out_features, in_features, 1)?;
        let mut group = criterion.benchmark_group(format!("decode {text} {out_features}x{in_features}"));
        group.sample_size(10);
        let bytes = size_of::<f32>() * out_features * in_features;
        print_roofline("the decoded weight", bytes);
        group.throughput(Throughput::Bytes(bytes as u64));
        for (name, plan) in plans(scheme, out_features, in_features) {
            // The precision of look-up tables does not affect decoding.
            if name.contains("table") && !name.ends_with("f32") {
                continue;
            }
            let packed = PackedMatrix::new(&case.matrix, &plan)?;
            group.bench_function(format!("cpu {name}"), |b| b.iter(|| packed.decode()));
        }
        group.bench_function("reference", |b| b.iter(|| aqlm_reference::decode(&case.matrix)));
        group.bench_function("fill", |b| {
            b.iter(|| {
                let mut weight = vec![0.0f32; out_features * in_features];
                weight.par_chunks_mut(1 << 18).for_each(|part| part.fill(1.0));
                weight
            });
        });
        group.finish();
    }
    Ok(())
}

fn decode(criterion: &mut Criterion) {
    if let Err(error) = bench(criterion) {
        eprintln!("decode: {error}");
    }
}

criterion_group!(benches, decode);
criterion_main!(benches);
