//! The CUDA sources of the project, embedded, and a manifest of what each kernel can do.
//!
//! One folder per operation, in it a ladder from `k1_naive.cu` upward; a number is never reused. The head of
//! each file says what the kernel parallelises over, why it should be faster than the one before, the layout
//! of its operands and its limits. `docs/kernels.md` has the measurements.

mod dispatch;
mod embedded;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde::Deserialize;
use thiserror::Error;

pub use dispatch::{Case, Choice, MEASURED_SHAPE, choose, dispatch};
pub use embedded::{constants, embedded, has_embedded};

/// Why a kernel's source cannot be had.
#[derive(Debug, Error)]
pub enum SourceError {
    /// No kernel of that name is in the manifest.
    #[error("no kernel `{0}`; known: {1}")]
    Unknown(String, String),
    /// An overriding folder was given and a file of it cannot be read.
    #[error("{}: {error}", path.display())]
    Read {
        /// the file
        path: PathBuf,
        /// what the system said
        error: std::io::Error,
    },
}

/// What a kernel can do. Ranges are inclusive.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Kernel {
    /// operation and file name, for example `matvec/k1_naive`
    pub id: String,
    /// the operation (design.md 4)
    pub op: String,
    /// path inside the `kernels` folder
    pub file: String,
    /// one line for listings
    pub summary: String,
    /// numbers of codebooks
    pub codebooks: [usize; 2],
    /// bits of a code
    pub nbits: [u32; 2],
    /// input group sizes; empty when any will do
    pub in_groups: Vec<usize>,
    /// whether output groups must be of one row
    pub out_group_one: bool,
    /// lowest compute capability, times ten
    pub min_compute: u32,
    /// highest compute capability, times ten, where instructions exist on some architectures only
    #[serde(default)]
    pub max_compute: Option<u32>,
    /// rows of x
    pub batch: [usize; 2],
    /// what a compiler may keep of a thread in local memory; nothing where absent
    #[serde(default)]
    pub local: Option<Local>,
    /// whether x and y may be bf16 (AQLM_BF16)
    #[serde(default)]
    pub bf16: bool,
    /// which operand is codebooks in the format of x, where they are not always f16
    #[serde(default)]
    pub typed_codebooks: Option<usize>,
    /// which operand is codebooks, of a kernel whose matrices can share a launch where they read the same x
    #[serde(default)]
    pub joins: Option<usize>,
    /// whether blocks wait for others of their launch, so that all must run at once
    #[serde(default)]
    pub meets: bool,
    /// which operand, of zeros at first, is memory that matrices of one stream share
    #[serde(default)]
    pub scratch: Option<usize>,
}

/// Local memory that a kernel may take.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Local {
    /// numbers of codebooks for which it may
    pub codebooks: [usize; 2],
    /// bytes of a thread
    pub bytes: u32,
}

impl Kernel {
    /// Bytes of a thread that a compiler may keep in local memory with so many codebooks.
    pub fn local_bytes(&self, codebooks: usize) -> u32 {
        self.local
            .as_ref()
            .filter(|local| (local.codebooks[0]..=local.codebooks[1]).contains(&codebooks))
            .map_or(0, |local| local.bytes)
    }

    /// Whether the manifest claims a scheme of `codebooks` x `nbits`, groups of `out_group` x `in_group`.
    pub fn claims(&self, codebooks: usize, nbits: u32, in_group: usize, out_group: usize) -> bool {
        (self.codebooks[0]..=self.codebooks[1]).contains(&codebooks)
            && (self.nbits[0]..=self.nbits[1]).contains(&nbits)
            && (self.in_groups.is_empty() || self.in_groups.contains(&in_group))
            && (!self.out_group_one || out_group == 1)
    }

    /// Whether it exists for that compute capability, times ten.
    pub fn runs_on(&self, compute: u32) -> bool {
        compute >= self.min_compute && self.max_compute.is_none_or(|most| compute <= most)
    }

    /// The source with the project's own includes pasted in, ready for a compiler that sees no files.
    ///
    /// `folder` overrides the embedded sources.
    ///
    /// # Errors
    /// `Read` when a file of `folder` cannot be read; `Unknown` when a kernel is in the manifest but not
    /// embedded (a mistake in this crate that its tests catch).
    pub fn source(&self, folder: Option<&Path>) -> Result<String, SourceError> {
        let common = file("common.cuh", folder)?;
        let text = file(&self.file, folder)?;
        Ok(expand(&text, &common, &self.file))
    }
}

/// A user's own source with the project's include pasted in where the text includes `common.cuh`, from
/// whatever folder.
///
/// # Errors
/// `Read` when `folder` is given and its common.cuh cannot be read.
pub fn user_source(text: &str, name: &str, folder: Option<&Path>) -> Result<String, SourceError> {
    Ok(expand(text, &file("common.cuh", folder)?, name))
}

const FILES: [(&str, &str); 22] = [
    ("common.cuh", include_str!("../common.cuh")),
    ("matvec/k1_naive.cu", include_str!("../matvec/k1_naive.cu")),
    (
        "matvec/k2_shared_codebook.cu",
        include_str!("../matvec/k2_shared_codebook.cu"),
    ),
    (
        "matvec/k3_lookup_table.cu",
        include_str!("../matvec/k3_lookup_table.cu"),
    ),
    (
        "matvec/k4_sliced_codebook.cu",
        include_str!("../matvec/k4_sliced_codebook.cu"),
    ),
    (
        "matvec/k5_staged_codes.cu",
        include_str!("../matvec/k5_staged_codes.cu"),
    ),
    (
        "matvec/k6_product_tables.cu",
        include_str!("../matvec/k6_product_tables.cu"),
    ),
    (
        "matvec/k7_lane_inputs.cu",
        include_str!("../matvec/k7_lane_inputs.cu"),
    ),
    ("matmul/k1_naive.cu", include_str!("../matmul/k1_naive.cu")),
    (
        "matmul/k2_fused_tensor.cu",
        include_str!("../matmul/k2_fused_tensor.cu"),
    ),
    (
        "matmul/k3_warpgroup.cu",
        include_str!("../matmul/k3_warpgroup.cu"),
    ),
    (
        "matmul/k4_hot_codewords.cu",
        include_str!("../matmul/k4_hot_codewords.cu"),
    ),
    ("decode/k1_naive.cu", include_str!("../decode/k1_naive.cu")),
    ("decode/k2_tiles.cu", include_str!("../decode/k2_tiles.cu")),
    ("embed/k1_rows.cu", include_str!("../embed/k1_rows.cu")),
    (
        "rms_norm/k1_block_a_row.cu",
        include_str!("../rms_norm/k1_block_a_row.cu"),
    ),
    ("rope/k1_pairs.cu", include_str!("../rope/k1_pairs.cu")),
    (
        "attention/k1_warp_a_query.cu",
        include_str!("../attention/k1_warp_a_query.cu"),
    ),
    (
        "attention_step/k1_split_context.cu",
        include_str!("../attention_step/k1_split_context.cu"),
    ),
    (
        "swiglu/k1_elementwise.cu",
        include_str!("../swiglu/k1_elementwise.cu"),
    ),
    (
        "dense/k1_warp_a_row.cu",
        include_str!("../dense/k1_warp_a_row.cu"),
    ),
    (
        "argmax/k1_one_block.cu",
        include_str!("../argmax/k1_one_block.cu"),
    ),
];

fn file(name: &str, folder: Option<&Path>) -> Result<String, SourceError> {
    if let Some(folder) = folder {
        let path = folder.join(name);
        return std::fs::read_to_string(&path).map_err(|error| SourceError::Read { path, error });
    }
    FILES
        .iter()
        .find(|(path, _)| *path == name)
        .map(|(_, text)| (*text).to_owned())
        .ok_or_else(|| SourceError::Unknown(name.to_owned(), FILES.map(|(path, _)| path).join(", ")))
}

/// Puts `common` in the place of the include line, with line markers so that compiler errors name the right
/// file and line.
fn expand(text: &str, common: &str, name: &str) -> String {
    let mut out = String::with_capacity(text.len() + common.len() + 128);
    for (number, line) in text.lines().enumerate() {
        if includes_common(line) {
            out.push_str("#line 1 \"common.cuh\"\n");
            out.push_str(&common.replace("#pragma once", ""));
            let back = format!("\n#line {} \"{name}\"\n", number + 2);
            out.push_str(&back);
        } else {
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}

/// Whether a line includes common.cuh, wherever its author says that it lies; a comment may follow.
fn includes_common(line: &str) -> bool {
    let file = || {
        let (_, quoted) = line
            .trim_start()
            .strip_prefix('#')?
            .trim_start()
            .strip_prefix("include")?
            .split_once('"')?;
        let (path, _) = quoted.split_once('"')?;
        path.rsplit('/').next()
    };
    file() == Some("common.cuh")
}

/// Every kernel, by operation and then number.
///
/// # Panics
/// Never: the manifest is part of the program and its reading is tested.
pub fn kernels() -> &'static [Kernel] {
    static KERNELS: OnceLock<Vec<Kernel>> = OnceLock::new();
    KERNELS.get_or_init(|| {
        serde_json::from_str(include_str!("../manifest.json"))
            .expect("the manifest is checked by this crate's tests")
    })
}

/// The kernel of that id.
///
/// # Errors
/// `Unknown` with the known ids.
pub fn kernel(id: &str) -> Result<&'static Kernel, SourceError> {
    kernels().iter().find(|kernel| kernel.id == id).ok_or_else(|| {
        let known: Vec<&str> = kernels().iter().map(|kernel| kernel.id.as_str()).collect();
        SourceError::Unknown(id.to_owned(), known.join(", "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kernel_of_the_manifest_is_embedded_and_on_disk() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        assert!(!kernels().is_empty());
        for kernel in kernels() {
            let embedded = kernel.source(None).unwrap();
            assert_eq!(embedded, kernel.source(Some(root)).unwrap());
            assert!(embedded.contains(&format!("{}(", kernel.op)), "{}", kernel.id);
            assert!(!embedded.contains("#include"), "{}", kernel.id);
            assert!(kernel.id.starts_with(&kernel.op) && kernel.file == format!("{}.cu", kernel.id));
        }
    }

    #[test]
    fn every_source_on_disk_is_in_the_manifest() {
        let ops: std::collections::BTreeSet<&str> =
            kernels().iter().map(|kernel| kernel.op.as_str()).collect();
        for op in ops {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(op);
            for entry in std::fs::read_dir(folder).unwrap() {
                let name = format!("{op}/{}", entry.unwrap().file_name().to_string_lossy());
                assert!(kernels().iter().any(|kernel| kernel.file == name), "{name}");
            }
        }
    }

    #[test]
    fn line_markers_point_into_the_kernels_own_file() {
        let text = "#include \"../common.cuh\"\nint a;\n";
        assert_eq!(
            expand(text, "int b;", "x.cu"),
            "#line 1 \"common.cuh\"\nint b;\n#line 2 \"x.cu\"\nint a;\n"
        );
    }

    #[test]
    fn an_include_is_found_however_it_is_written() {
        for line in [
            "#include \"common.cuh\"",
            "  # include  \"../common.cuh\"  // optional",
            "#include \"/my/kernels/common.cuh\"",
        ] {
            assert!(includes_common(line), "{line}");
        }
        for line in [
            "#include \"uncommon.cuh\"",
            "#include <common.cuh>",
            "// #include \"common.cuh\"",
            "#",
        ] {
            assert!(!includes_common(line), "{line}");
        }
    }

    #[test]
    fn examples_need_no_file_beside_them() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let text = std::fs::read_to_string(&path).unwrap();
            let source = user_source(&text, "example.cu", None).unwrap();
            assert!(
                !source.contains("#include") && source.contains("fma_f16x2"),
                "{}",
                path.display()
            );
        }
    }

    #[test]
    fn unknown_kernels_and_folders_are_refused() {
        assert!(matches!(kernel("matvec/k0"), Err(SourceError::Unknown(name, _)) if name == "matvec/k0"));
        let missing = Path::new("no such folder");
        assert!(matches!(
            kernels()[0].source(Some(missing)),
            Err(SourceError::Read { .. })
        ));
    }
}
