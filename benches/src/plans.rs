use aqlm_optimized::cpu::{CodebookPrecision, Form, Plan, SimdLevel, TablePrecision};
use aqlm_vocabulary::Scheme;

/// The name of a plan in a bench's output.
pub type PlanName = String;

/// Every form of a product that this machine supports for a scheme, level by level, with the chosen plan of
/// each level first.
pub fn plans(scheme: Scheme, out_features: usize, in_features: usize) -> Vec<(PlanName, Plan)> {
    SimdLevel::available()
        .into_iter()
        .flat_map(|level| plans_at(level, scheme, out_features, in_features))
        .collect()
}

/// [`plans`] of one level.
pub fn plans_at(
    level: SimdLevel,
    scheme: Scheme,
    out_features: usize,
    in_features: usize,
) -> Vec<(PlanName, Plan)> {
    let chosen = Plan::choose_at(level, scheme, out_features, in_features);
    let mut plans = vec![(format!("{level} chosen"), chosen)];
    for codebooks in [CodebookPrecision::F32, CodebookPrecision::F16] {
        let form = Form::Direct;
        let name = format!("{level} direct {codebooks:?}").to_lowercase();
        plans.push((
            name,
            Plan {
                form,
                codebooks,
                ..chosen
            },
        ));
    }
    if scheme.nbits <= 8 {
        use TablePrecision::{F32, I8, I16, I24};
        for precision in [F32, I24, I16, I8] {
            let form = Form::Table(precision);
            let name = format!("{level} table {precision:?}").to_lowercase();
            plans.push((name, Plan { form, ..chosen }));
        }
    }
    plans
}
