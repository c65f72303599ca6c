//! A batch of inputs times a quantized weight: one decode for the whole batch, compared with one fused
//! product a row, beside dense f32.
//!
//! `cargo bench -p aqlm-benches --bench matmul [-- FILTER]`

use aqlm_benches::{case, print_roofline};
use aqlm_optimized::cpu::product::linear;
use aqlm_optimized::cpu::{PackedMatrix, Plan, SimdLevel};
use aqlm_vocabulary::{Result, Scheme};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use faer::Par;
use ndarray::Array2;

const SCHEMES: [&str; 3] = ["2x8g8", "4x8g8", "1x16g8"];
const BATCHES: [usize; 6] = [2, 4, 8, 16, 64, 512];
const SHAPE: (usize, usize) = (4096, 4096);

fn bench(criterion: &mut Criterion) -> Result<()> {
    let (out_features, in_features) = SHAPE;
    for text in SCHEMES {
        let scheme: Scheme = text.parse()?;
        let case = case(scheme, out_features, in_features, 1)?;
        let weight = PackedMatrix::with_best_plan(&case.matrix)?.decode();
        for batch in BATCHES {
            let x = Array2::from_shape_fn((batch, in_features), |(b, i)| case.x[(i + 7 * b) % in_features]);
            let name = format!("matmul {text} {out_features}x{in_features} batch {batch}");
            let mut group = criterion.benchmark_group(&name);
            group.sample_size(10);
            // Two operations a weight and input; criterion prints elements per second.
            group.throughput(Throughput::Elements(
                (2 * batch * out_features * in_features) as u64,
            ));
            for level in SimdLevel::available() {
                let chosen = Plan::choose_at(level, scheme, out_features, in_features);
                for (way, largest_matvec_batch) in [("one decode", 0), ("fused", BATCHES[3])] {
                    if batch > BATCHES[3] && largest_matvec_batch != 0 {
                        continue;
                    }
                    let plan = Plan {
                        largest_matvec_batch,
                        ..chosen
                    };
                    let packed = PackedMatrix::new(&case.matrix, &plan)?;
                    group.bench_function(format!("cpu {level} {way}"), |b| {
                        b.iter(|| packed.matmul(x.view()));
                    });
                }
            }
            print_roofline("dense f32", size_of::<f32>() * weight.len());
            group.bench_function("dense f32 faer", |b| {
                b.iter(|| linear(x.view(), weight.view(), Par::rayon(0)));
            });
            group.bench_function("dense f32 ndarray", |b| b.iter(|| x.dot(&weight.t())));
            group.finish();
        }
    }
    Ok(())
}

fn matmul(criterion: &mut Criterion) {
    if let Err(error) = bench(criterion) {
        eprintln!("matmul: {error}");
    }
}

criterion_group!(benches, matmul);
criterion_main!(benches);
