//! Which kernel to launch for a case, by the table of measurements that `aqlm-kernels` holds for each
//! architecture.

use aqlm_kernels::{Case, MEASURED_SHAPE};
use aqlm_vocabulary::Scheme;

use super::pack::{LaunchConfig, Op, Target, launch_configs};

/// What the table says of a case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dispatched {
    /// id in the manifest of `aqlm-kernels`
    pub kernel: &'static str,
    /// how it divides its work: measured on the table's own shape, else the one expected to be fastest;
    /// `None` without a choice
    pub config: Option<LaunchConfig>,
    /// for a matmul that decodes first: rows of the weight that are decoded at a time
    /// ([`super::DecodedMatmul`])
    pub decoded_rows: Option<usize>,
}

/// The kernel for `batch` rows of x (1 for matvec and decode) on a device of `compute` (major, minor); `None`
/// where none can do it.
pub fn dispatched(
    op: Op,
    scheme: Scheme,
    [out_features, in_features]: [usize; 2],
    batch: usize,
    compute: (i32, i32),
    target: &Target,
) -> Option<Dispatched> {
    let choice = aqlm_kernels::choose(Case {
        compute: u32::try_from(compute.0 * 10 + compute.1).ok()?,
        op: op.name(),
        scheme: &scheme.to_string(),
        sizes: (
            scheme.num_codebooks,
            scheme.nbits,
            scheme.in_group_size,
            scheme.out_group_size,
        ),
        batch,
    })?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_configuration_of_the_table_exists() {
        for choice in aqlm_kernels::dispatch() {
            let Some(named) = &choice.config else { continue };
            let scheme: Scheme = choice.scheme.as_deref().unwrap_or("2x8g8").parse().unwrap();
            let op = match choice.op.as_str() {
                "matvec" => Op::Matvec,
                "matmul" => Op::Matmul,
                _ => Op::Decode,
            };
            // On the device that was measured 15 clusters of 8 fit.
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
}
