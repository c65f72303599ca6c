//! Benches one operation on the check's own cases (docs/checking.md). Every SIMD level of the CPU backend is
//! first checked against the reference. Then both are timed, beside dense f32 products of the same shapes by
//! faer.

use aqlm_benches::print_roofline;
use aqlm_check::cases::Case;
use aqlm_check::{CrossOptions, Machines, Subject, Work, cross_check};
use aqlm_engine::backends::BackendKind;
use aqlm_formats::{Error, Result};
use aqlm_optimized::cpu::product::linear;
use criterion::Criterion;
use faer::Par;
use ndarray::Array2;
use std::hint::black_box;
use std::time::Duration;

/// Times cases, and exits if one fails its check.
pub(crate) fn bench(criterion: &mut Criterion, ids: &[&str]) {
    for id in ids {
        if let Err(error) = bench_case(criterion, id) {
            eprintln!("{id}: {error}");
            std::process::exit(1);
        }
    }
}

fn bench_case(criterion: &mut Criterion, id: &str) -> Result<()> {
    let case: Case = id.parse()?;
    let cpu = Machines::of(BackendKind::Cpu);
    let checked = cross_check(&CrossOptions::of_case(case, vec![cpu.clone()]), &mut |_| ())?;
    if !checked.holds() {
        let reason = checked.summary.into_iter().find_map(|row| row.reason);
        return Err(Error::argument(
            &format!("case `{id}`"),
            "results that the reference has, too",
            reason.unwrap_or_else(|| "no reason given".to_owned()),
        ));
    }
    let work = Work::new(&case)?;
    let cost = work.cost();
    print_roofline(id, cost.bytes);
    let mut group = criterion.benchmark_group(id);
    group
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(2));
    let levels = cpu
        .subjects
        .map_err(|reason| Error::argument("the CPU", "a SIMD level", reason))?;
    for machine in std::iter::once(Subject::Reference).chain(levels) {
        for subject in work.ways(&machine) {
            work.run(&subject)?;
            let name = match subject {
                Subject::Reference => "reference".to_owned(),
                _ => format!("{} {}", subject.backend(), subject.variant()),
            };
            group.bench_function(name, |b| b.iter(|| work.run(&subject)));
        }
    }
    let products: Vec<(Array2<f32>, Array2<f32>)> = cost
        .products
        .into_iter()
        .map(|[rows, inputs, out]| (Array2::ones((rows, inputs)), Array2::ones((out, inputs))))
        .collect();
    group.bench_function("dense f32 products, faer", |b| {
        b.iter(|| {
            for (x, weight) in &products {
                black_box(linear(x.view(), weight.view(), Par::rayon(0)));
            }
        });
    });
    group.finish();
    Ok(())
}
