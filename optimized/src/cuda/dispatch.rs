//! Which kernel to launch for a case. All choices are made here, from the table of measurements in
//! `aqlm-kernels` (`kernels/dispatch.json`).

use aqlm_kernels::{Choice, Kernel, MEASURED_SHAPE, table};
use aqlm_vocabulary::{AqlmError, QuantizedMatrix, Result, Scheme};

use super::pack::{
    Joined, LaunchConfig, Op, Packed, PackedExperts, Slots, Target, launch_configs, pack, pack_experts,
    pack_joined, with_config,
};

/// The table's choice for a case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dispatched {
    /// the kernel's id
    pub kernel: &'static str,
    /// how it divides its work: as measured on the table's own shape, else the division expected to be
    /// fastest; `None` if the kernel has no choice
    pub config: Option<LaunchConfig>,
    /// for a matmul that decodes first: rows of the weight decoded at a time ([`super::DecodedMatmul`])
    pub decoded_rows: Option<usize>,
}

/// The kernel for `batch` rows of x (1 for matvec and decode) on a device of `compute` (major, minor); `None`
/// if no kernel can handle the case.
pub fn dispatched(
    op: Op,
    scheme: Scheme,
    [out_features, in_features]: [usize; 2],
    batch: usize,
    compute: (i32, i32),
    target: &Target,
) -> Option<Dispatched> {
    let choice = table()
        .fastest
        .iter()
        .find(|choice| is_for(choice, op, scheme, batch, compute))?;
    let named = choice.config.as_deref();
    let decoded_rows = named
        .filter(|_| choice.kernel.starts_with(Op::Decode.name()))
        .and_then(|config| config.strip_suffix(" rows")?.parse().ok());
    let configs = launch_configs(&choice.kernel, scheme, out_features, in_features, batch, target);
    let measured = configs.iter().find(|config| {
        [out_features, in_features] == MEASURED_SHAPE
            && named.is_some_and(|named| config.to_string() == named)
    });
    Some(Dispatched {
        kernel: &choice.kernel,
        config: measured.or(configs.first()).copied(),
        decoded_rows,
    })
}

/// Whether a row of the table matches this case, and its kernel can handle it.
fn is_for(choice: &Choice, op: Op, scheme: Scheme, batch: usize, compute: (i32, i32)) -> bool {
    choice.op == op.name()
        && choice
            .compute
            .is_none_or(|wanted| i64::from(wanted) == i64::from(compute.0 * 10 + compute.1))
        && choice
            .scheme
            .as_ref()
            .is_none_or(|wanted| *wanted == scheme.to_string())
        && (choice.batch[0]..=choice.batch[1]).contains(&batch)
        && claims(known(&choice.kernel), scheme)
        && runs_on(known(&choice.kernel), compute)
}

/// A kernel named by the table.
fn known(id: &str) -> &'static Kernel {
    aqlm_kernels::kernel(id).expect("the tests of aqlm-kernels look every kernel of the table up")
}

fn claims(kernel: &Kernel, scheme: Scheme) -> bool {
    kernel.claims(
        scheme.num_codebooks,
        scheme.nbits,
        scheme.in_group_size,
        scheme.out_group_size,
    )
}

fn runs_on(kernel: &Kernel, (major, minor): (i32, i32)) -> bool {
    u32::try_from(major * 10 + minor).is_ok_and(|compute| kernel.runs_on(compute))
}

/// Whether blocks can form clusters. The attention of a new token splits its context over them.
pub fn has_clusters(compute: (i32, i32)) -> bool {
    compute.0 >= 9
}

/// The first kernel of an operation's ladder, which handles every scheme.
fn first_of_ladder(op: Op) -> &'static str {
    aqlm_kernels::kernels()
        .iter()
        .find(|kernel| kernel.op == op.name())
        .map(|kernel| kernel.id.as_str())
        .expect("every operation has a ladder")
}

/// Kernels for a layer of a resident model, in the order in which they are tried, with the launch
/// configuration of those that have a choice.
///
/// The fastest comes first. If it decodes, for which a model has no room, a row of the table's second list
/// replaces it. The other rows of that list follow, for matrices that the fastest cannot hold, and the first
/// kernel of the ladder comes last.
pub fn resident(
    op: Op,
    scheme: Scheme,
    [out_features, in_features]: [usize; 2],
    rows: usize,
    compute: (i32, i32),
    target: &Target,
) -> Vec<(&'static str, Option<LaunchConfig>)> {
    let mut tried = Vec::new();
    let others = table().resident.iter().filter(|row| row.op == op.name());
    if let Some(fastest) = dispatched(op, scheme, [out_features, in_features], rows, compute, target) {
        let replaced = others
            .clone()
            .find(|row| row.instead_of.as_deref() == Some(fastest.kernel));
        tried.push(replaced.map_or((fastest.kernel, fastest.config), |row| {
            let configs = launch_configs(&row.kernel, scheme, out_features, in_features, rows, target);
            (row.kernel.as_str(), configs.first().copied())
        }));
    }
    tried.extend(
        others
            .filter(|row| row.instead_of.is_none() && runs_on(known(&row.kernel), compute))
            .map(|row| (row.kernel.as_str(), None)),
    );
    tried.push((first_of_ladder(op), None));
    tried
}

/// `matrix` packed for the first kernel of [`resident`] that can hold it, or with `plain` for the first of
/// the ladder.
///
/// # Errors
/// `Unsupported` with the last refusal, when no kernel can hold it.
pub fn pack_resident(
    op: Op,
    matrix: &QuantizedMatrix,
    rows: usize,
    compute: (i32, i32),
    target: &Target,
    plain: bool,
) -> Result<Packed> {
    let shape = [matrix.out_features(), matrix.in_features()];
    let tried = if plain {
        vec![(first_of_ladder(op), None)]
    } else {
        resident(op, matrix.scheme(), shape, rows, compute, target)
    };
    let mut refusal = AqlmError::Unsupported(format!("no {} kernel", op.name()));
    for (id, config) in tried {
        match pack(id, matrix, target, rows) {
            Ok(packed) => {
                return Ok(match config {
                    Some(config) => with_config(&packed, matrix.scheme(), target, config),
                    None => packed,
                });
            }
            Err(error @ AqlmError::Unsupported(_)) => refusal = error,
            Err(error) => return Err(error),
        }
    }
    Err(refusal)
}

/// From this many rows on, two matrices with groups of 16 get separate launches if the kernel that is fastest
/// for each cannot join them. On an H100, 22,016 rows of 4,096 columns of 1x16g16 take 30.9 us with k4
/// joined, and two times 11.7 us with k7 (docs/decoding.md). With groups of 8, two launches of k7 gain
/// nothing (1x16g8) or lose (1x15g8).
const FEWEST_ROWS_APART: usize = 16_384;

/// Matrices that read the same x, laid out for one launch of the first kernel that can join them: the fastest
/// for each, then the ladder's. `None` if no kernel can join them, or if separate launches of the fastest
/// beat a joined one.
///
/// # Errors
/// A packer's refusal for another reason than that its kernel cannot join these matrices.
pub fn join_resident(
    matrices: &[&QuantizedMatrix],
    compute: (i32, i32),
    target: &Target,
) -> Result<Option<Joined>> {
    let Some(first) = matrices.first() else {
        return Ok(None);
    };
    let scheme = first.scheme();
    let shape = [first.out_features(), first.in_features()];
    let Some(fastest) = dispatched(Op::Matvec, scheme, shape, 1, compute, target) else {
        return Ok(None);
    };
    let rows: usize = matrices.iter().map(|matrix| matrix.out_features()).sum();
    let joins = known(fastest.kernel).joins.is_some();
    if !joins && matrices.len() == 2 && scheme.in_group_size == 16 && rows >= FEWEST_ROWS_APART {
        return Ok(None);
    }
    let joining = aqlm_kernels::kernels()
        .iter()
        .filter(|kernel| kernel.op == Op::Matvec.name() && kernel.joins.is_some() && runs_on(kernel, compute))
        .map(|kernel| kernel.id.as_str());
    for id in std::iter::once(fastest.kernel).chain(joining) {
        match pack_joined(id, matrices, target) {
            Ok(joined) => return Ok(Some(joined)),
            Err(AqlmError::Unsupported(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// The matrices of experts, each expert's in one part of a launch, laid out for the first kernel of
/// [`resident`] that can take them, or with `plain` for the first of the ladder. `None` if no kernel can.
///
/// # Errors
/// Refusals for another reason than that a kernel cannot take these matrices.
pub fn experts_resident(
    experts: &[Vec<&QuantizedMatrix>],
    slots: Slots,
    compute: (i32, i32),
    target: &Target,
    plain: bool,
) -> Result<Option<PackedExperts>> {
    let Some(first) = experts.first().and_then(|expert| expert.first()) else {
        return Ok(None);
    };
    let shape = [first.out_features(), first.in_features()];
    let tried = if plain {
        vec![(first_of_ladder(Op::Matvec), None)]
    } else {
        resident(Op::Matvec, first.scheme(), shape, 1, compute, target)
    };
    for (id, _) in tried {
        match pack_experts(id, experts, slots, target) {
            Ok(packed) => return Ok(Some(packed)),
            Err(AqlmError::Unsupported(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_configuration_of_the_table_exists() {
        for choice in &table().fastest {
            let Some(named) = &choice.config else { continue };
            let scheme: Scheme = choice.scheme.as_deref().unwrap_or("2x8g8").parse().unwrap();
            let op = match choice.op.as_str() {
                "matvec" => Op::Matvec,
                "matmul" => Op::Matmul,
                _ => Op::Decode,
            };
            // On the measured device 15 clusters of 8 fit.
            let target = Target {
                clusters: [132, 66, 32, 15, 0],
                ..Target::h100()
            };
            for batch in choice.batch {
                let found = dispatched(op, scheme, MEASURED_SHAPE, batch, (9, 0), &target).unwrap();
                assert_eq!(found.kernel, choice.kernel);
                let config = found.config.map_or_else(
                    || format!("{} rows", found.decoded_rows.unwrap()),
                    |config| config.to_string(),
                );
                assert_eq!(&config, named);
            }
        }
    }

    #[test]
    fn another_shape_takes_the_configuration_expected_to_be_fastest() {
        let scheme: Scheme = "2x8g8".parse().unwrap();
        let target = Target::h100();
        let found = dispatched(Op::Matmul, scheme, [512, 4096], 16, (9, 0), &target).unwrap();
        let expected = launch_configs(found.kernel, scheme, 512, 4096, 16, &target)[0];
        assert_eq!(found.config, Some(expected));
        assert_ne!(expected.to_string(), "1x11 tiles, 8 slices, 1x16 rows");
    }

    #[test]
    fn every_case_has_a_kernel_and_no_other_architecture_gets_hoppers() {
        let target = Target::h100();
        let chosen = |compute, op, scheme: &str, batch| {
            dispatched(
                op,
                scheme.parse().unwrap(),
                MEASURED_SHAPE,
                batch,
                compute,
                &target,
            )
            .map_or("", |found| found.kernel)
        };
        for compute in [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)] {
            for batch in [1, 2, 16, 64, 65, 128, 256, 257, 512, 2048, 100_000] {
                for scheme in ["2x8g8", "1x16g8", "2x5g4o2", "16x2g8"] {
                    let id = chosen(compute, Op::Matmul, scheme, batch);
                    assert!(runs_on(known(id), compute), "{id} {compute:?}");
                    let only_naive = ["2x5g4o2", "16x2g8"].contains(&scheme);
                    assert_eq!(id == "matmul/k1_naive", only_naive, "{id} {scheme}");
                    for op in [Op::Matvec, Op::Decode] {
                        assert!(chosen(compute, op, scheme, 1).starts_with(op.name()));
                    }
                }
            }
        }
        assert_eq!(chosen((9, 0), Op::Matmul, "2x8g8", 128), "matmul/k3_warpgroup");
        assert_eq!(chosen((8, 0), Op::Matmul, "2x8g8", 128), "matmul/k2_fused_tensor");
        assert_eq!(chosen((7, 0), Op::Matmul, "2x8g8", 128), "");
    }
}
