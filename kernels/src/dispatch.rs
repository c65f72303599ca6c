use std::sync::OnceLock;

use serde::Deserialize;

use crate::{Kernel, kernel};

/// Shape (out_features, in_features) of the weight on which the table's configurations were measured.
pub const MEASURED_SHAPE: [usize; 2] = [11008, 4096];

/// A row of `dispatch.json`: which kernel to launch for a case. Rows are tried in order; the first whose
/// kernel can do the case wins.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Choice {
    /// compute capability, times ten; any when absent
    #[serde(default)]
    pub compute: Option<u32>,
    /// the operation
    pub op: String,
    /// as design.md writes schemes; any that the kernel claims when absent
    #[serde(default)]
    pub scheme: Option<String>,
    /// rows of x, both inclusive
    pub batch: [usize; 2],
    /// id in the manifest. A kernel that decodes, for a matmul, stands for decoding and then multiplying by
    /// the vendor's library
    pub kernel: String,
    /// how the fastest launch on [`MEASURED_SHAPE`] divides its work, as `aqlm bench` prints it
    #[serde(default)]
    pub config: Option<String>,
    /// what it took there at the last batch of the range that was measured, microseconds; absent when the row
    /// was not measured
    #[serde(default)]
    pub us: Option<f64>,
}

/// What a kernel is to be chosen for.
#[derive(Debug, Clone, Copy)]
pub struct Case<'a> {
    /// compute capability, times ten
    pub compute: u32,
    /// the operation
    pub op: &'a str,
    /// as design.md writes it
    pub scheme: &'a str,
    /// its numbers of codebooks, bits, inputs and outputs of a group
    pub sizes: (usize, u32, usize, usize),
    /// rows of x
    pub batch: usize,
}

impl Choice {
    fn kernel(&self) -> Option<&'static Kernel> {
        kernel(&self.kernel).ok()
    }

    fn is_for(&self, case: Case) -> bool {
        let (codebooks, nbits, in_group, out_group) = case.sizes;
        self.op == case.op
            && self.compute.is_none_or(|compute| compute == case.compute)
            && self.scheme.as_ref().is_none_or(|scheme| scheme == case.scheme)
            && (self.batch[0]..=self.batch[1]).contains(&case.batch)
            && self.kernel().is_some_and(|kernel| {
                kernel.claims(codebooks, nbits, in_group, out_group) && kernel.runs_on(case.compute)
            })
    }
}

/// The table, in the order in which rows are tried.
///
/// # Panics
/// Never: the table is part of the program and its reading is tested.
pub fn dispatch() -> &'static [Choice] {
    static CHOICES: OnceLock<Vec<Choice>> = OnceLock::new();
    CHOICES.get_or_init(|| {
        serde_json::from_str(include_str!("../dispatch.json"))
            .expect("the table is checked by this crate's tests")
    })
}

/// The row for `case`; `None` where no kernel can do it.
pub fn choose(case: Case) -> Option<&'static Choice> {
    dispatch().iter().find(|choice| choice.is_for(case))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_names_a_kernel_that_can_do_it() {
        assert!(!dispatch().is_empty());
        for choice in dispatch() {
            let kernel = kernel(&choice.kernel).unwrap();
            let decodes = choice.op == "matmul" && kernel.op == "decode";
            assert!(kernel.op == choice.op || decodes, "{choice:?}");
            assert!(choice.batch[0] <= choice.batch[1], "{choice:?}");
            assert!(
                decodes || kernel.batch[0] <= choice.batch[0] && choice.batch[1] <= kernel.batch[1],
                "{choice:?}"
            );
            assert!(
                choice.compute.is_none_or(|compute| kernel.runs_on(compute)),
                "{choice:?}"
            );
            // A time is of one scheme on one architecture.
            assert_eq!(choice.us.is_some(), choice.compute.is_some(), "{choice:?}");
            assert_eq!(choice.us.is_some(), choice.scheme.is_some(), "{choice:?}");
        }
    }

    fn chosen(
        compute: u32,
        op: &str,
        scheme: &str,
        sizes: (usize, u32, usize, usize),
        batch: usize,
    ) -> &'static str {
        let case = Case {
            compute,
            op,
            scheme,
            sizes,
            batch,
        };
        choose(case).map_or("", |choice| &choice.kernel)
    }

    #[test]
    fn every_case_has_a_kernel_and_no_other_architecture_gets_hoppers() {
        for compute in [80, 86, 89, 90, 100, 120] {
            for batch in [1, 2, 16, 64, 65, 128, 256, 257, 512, 2048, 100_000] {
                for (scheme, sizes) in [
                    ("2x8g8", (2, 8, 8, 1)),
                    ("1x16g8", (1, 16, 8, 1)),
                    ("2x5g4o2", (2, 5, 4, 2)),
                    ("16x2g8", (16, 2, 8, 1)),
                ] {
                    let id = chosen(compute, "matmul", scheme, sizes, batch);
                    assert!(kernel(id).unwrap().runs_on(compute), "{id} {compute}");
                    assert_eq!(
                        id == "matmul/k1_naive",
                        sizes.2 == 4 || sizes.0 == 16,
                        "{id} {scheme}"
                    );
                    for op in ["matvec", "decode"] {
                        assert!(chosen(compute, op, scheme, sizes, 1).starts_with(op));
                    }
                }
            }
        }
        assert_eq!(
            chosen(90, "matmul", "2x8g8", (2, 8, 8, 1), 128),
            "matmul/k3_warpgroup"
        );
        assert_eq!(
            chosen(80, "matmul", "2x8g8", (2, 8, 8, 1), 128),
            "matmul/k2_fused_tensor"
        );
        assert_eq!(chosen(70, "matmul", "2x8g8", (2, 8, 8, 1), 128), "");
    }
}
