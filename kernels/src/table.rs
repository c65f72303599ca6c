//! `dispatch.json`: the fastest kernels as measured, and what resident models take where those are
//! unavailable. `optimized/src/cuda/dispatch.rs` chooses by it.

use std::sync::OnceLock;

use serde::Deserialize;

/// Shape (out_features, in_features) of the weight on which the table's configurations were measured.
pub const MEASURED_SHAPE: [usize; 2] = [11008, 4096];

/// A row of the first list: the kernel to launch for a case. Rows are tried in order. The first row whose
/// kernel can handle the case wins.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Choice {
    /// compute capability, times ten; any when absent
    #[serde(default)]
    pub compute: Option<u32>,
    /// the operation
    pub op: String,
    /// for example `2x8g8`; any that the kernel claims when absent
    #[serde(default)]
    pub scheme: Option<String>,
    /// rows of x, both inclusive
    pub batch: [usize; 2],
    /// the kernel's id. For a matmul, a kernel that decodes means: decode, then multiply by the vendor's
    /// library
    pub kernel: String,
    /// how the fastest launch on [`MEASURED_SHAPE`] divides its work, as `aqlm bench` prints it
    #[serde(default)]
    pub config: Option<String>,
    /// its time there in microseconds, at the last measured batch of the range; absent when the row was not
    /// measured
    #[serde(default)]
    pub us: Option<f64>,
}

/// A row of the second list: the kernel for a layer of a resident model that cannot have the fastest.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resident {
    /// the operation
    pub op: String,
    /// the kernel that this one replaces. When absent, this one is tried after the fastest, which did not
    /// hold the matrix
    #[serde(default)]
    pub instead_of: Option<String>,
    /// the kernel's id
    pub kernel: String,
    /// the reason, for readers
    pub why: String,
}

/// The whole file.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Table {
    /// in the order in which rows are tried
    pub fastest: Vec<Choice>,
    /// in the order in which rows are tried
    pub resident: Vec<Resident>,
}

/// The table.
///
/// # Panics
/// Never: the table is part of the program and its reading is tested.
pub fn table() -> &'static Table {
    static TABLE: OnceLock<Table> = OnceLock::new();
    TABLE.get_or_init(|| {
        serde_json::from_str(include_str!("../dispatch.json"))
            .expect("the table is part of the program, and this crate's tests read it")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel;

    #[test]
    fn every_row_names_a_kernel_that_can_do_it() {
        assert!(!table().fastest.is_empty());
        for choice in &table().fastest {
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
            // A time belongs to one scheme on one architecture.
            assert_eq!(choice.us.is_some(), choice.compute.is_some(), "{choice:?}");
            assert_eq!(choice.us.is_some(), choice.scheme.is_some(), "{choice:?}");
        }
    }

    #[test]
    fn every_resident_row_names_kernels_that_exist() {
        assert!(!table().resident.is_empty());
        for row in &table().resident {
            assert_eq!(kernel(&row.kernel).unwrap().op, row.op, "{row:?}");
            if let Some(replaced) = &row.instead_of {
                let rows = table().fastest.iter();
                assert!(
                    rows.filter(|choice| choice.op == row.op)
                        .any(|choice| choice.kernel == *replaced),
                    "{row:?}"
                );
            }
        }
    }
}
