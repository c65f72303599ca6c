//! The CUDA sources of the project, embedded, each with a description of what it can do.
//!
//! Each operation has a folder with a ladder of kernels from `k1_naive.cu` upward. A number is never reused.
//! The head of each file says what the kernel parallelises over, why it should be faster than the previous
//! one, the layout of its operands, and its limits. `kN_name.json` beside it says what it can do
//! ([`Kernel`]). The build script walks the folders, so a kernel is found once its file is there.
//! `docs/kernels.md` has the measurements.

mod embedded;
mod kernel;
mod table;

/// The integers that sources define, by operation and kernel. Constants that a kernel and its packer must
/// agree on are written in the kernel alone.
pub mod defines {
    include!(concat!(env!("OUT_DIR"), "/defines.rs"));
}

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use thiserror::Error;

pub use embedded::{constants, embedded, has_embedded};
pub use kernel::{Kernel, Local};
pub use table::{Choice, MEASURED_SHAPE, Resident, Table, table};

/// Why a kernel's source is unavailable.
#[derive(Debug, Error)]
pub enum SourceError {
    /// There is no kernel of that name.
    #[error("no kernel `{0}`; known: {1}")]
    Unknown(String, String),
    /// A file of the overriding folder cannot be read.
    #[error("{}: {error}", path.display())]
    Read {
        /// the file
        path: PathBuf,
        /// the system's error
        error: std::io::Error,
    },
}

impl Kernel {
    /// The source with the project's own includes pasted in, ready for a compiler without access to files.
    ///
    /// `folder` overrides the embedded sources.
    ///
    /// # Errors
    /// `Read` when a file of `folder` cannot be read; `Unknown` when a kernel is described but not embedded
    /// (a mistake in this crate that its tests catch).
    pub fn source(&self, folder: Option<&Path>) -> Result<String, SourceError> {
        expand(&file(&self.file, folder)?, &self.file, folder)
    }
}

/// A user's own source. The project's headers are pasted in where the text includes them, from whatever
/// folder.
///
/// # Errors
/// `Read` when `folder` is given and a header of it cannot be read.
pub fn user_source(text: &str, name: &str, folder: Option<&Path>) -> Result<String, SourceError> {
    expand(text, name, folder)
}

/// (path inside the folder, text) of every source: the build script finds them.
static FILES: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/sources.rs"));

fn file(name: &str, folder: Option<&Path>) -> Result<String, SourceError> {
    if let Some(folder) = folder {
        let path = folder.join(name);
        return std::fs::read_to_string(&path).map_err(|error| SourceError::Read { path, error });
    }
    FILES
        .iter()
        .find(|(path, _)| *path == name)
        .map(|(_, text)| (*text).to_owned())
        .ok_or_else(|| SourceError::Unknown(name.to_owned(), all_files()))
}

fn all_files() -> String {
    let paths: Vec<&str> = FILES.iter().map(|(path, _)| *path).collect();
    paths.join(", ")
}

/// Replaces the lines that include headers by the headers' text. Line markers make compiler errors name the
/// right file and line.
fn expand(text: &str, name: &str, folder: Option<&Path>) -> Result<String, SourceError> {
    let mut out = String::new();
    for (number, line) in text.lines().enumerate() {
        if let Some(header) = included(line) {
            let header_text = file(header, folder)?.replace("#pragma once", "");
            // Writing to a string does not fail.
            let _ = writeln!(
                out,
                "#line 1 \"{header}\"\n{header_text}\n#line {} \"{name}\"",
                number + 2
            );
        } else {
            out.push_str(line);
            out.push('\n');
        }
    }
    Ok(out)
}

/// The project's header that a line includes, whatever folder the line gives; a comment may follow.
fn included(line: &str) -> Option<&'static str> {
    let (_, quoted) = line
        .trim_start()
        .strip_prefix('#')?
        .trim_start()
        .strip_prefix("include")?
        .split_once('"')?;
    let (path, _) = quoted.split_once('"')?;
    let name = path.rsplit('/').next()?;
    let headers = FILES.iter().map(|(path, _)| *path);
    headers
        .filter(|path| path.strip_suffix(".cuh").is_some())
        .find(|path| *path == name)
}

/// All kernels, by operation and then number.
///
/// # Panics
/// Never: the build script has read the same descriptions.
pub fn kernels() -> &'static [Kernel] {
    static KERNELS: OnceLock<Vec<Kernel>> = OnceLock::new();
    KERNELS.get_or_init(|| {
        serde_json::from_str(include_str!(concat!(env!("OUT_DIR"), "/kernels.json")))
            .expect("the build script has read the same text as the same type")
    })
}

/// The kernel with this id.
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
    fn every_kernel_is_embedded_and_on_disk() {
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

    /// Cross-checks the build script's walk: every file that has an entry is a kernel.
    #[test]
    fn every_entry_on_disk_is_found_and_listed_by_number() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut entries = 0;
        for folder in std::fs::read_dir(root)
            .unwrap()
            .map(|entry| entry.unwrap().path())
        {
            let name = folder.file_name().unwrap().to_string_lossy().into_owned();
            if !folder.is_dir() || ["examples", "shim"].contains(&name.as_str()) {
                continue;
            }
            for path in std::fs::read_dir(&folder)
                .unwrap()
                .map(|entry| entry.unwrap().path())
            {
                if path.is_file()
                    && std::fs::read_to_string(&path)
                        .unwrap()
                        .contains("extern \"C\" __global__")
                {
                    let file = format!("{name}/{}", path.file_name().unwrap().to_string_lossy());
                    let kernel = file.strip_suffix(".cu").is_some();
                    entries += usize::from(kernel);
                    assert!(
                        !kernel || kernels().iter().any(|kernel| kernel.file == file),
                        "{file}"
                    );
                }
            }
        }
        assert_eq!(entries, kernels().len());
        let number = |kernel: &Kernel| -> u32 {
            let name = kernel.id.rsplit("/k").next().unwrap();
            name.split('_').next().unwrap().parse().unwrap()
        };
        for pair in kernels().windows(2).filter(|pair| pair[0].op == pair[1].op) {
            assert!(number(&pair[0]) < number(&pair[1]), "{}", pair[1].id);
        }
    }

    #[test]
    fn operands_are_named_as_the_entry_names_them() {
        let operands = |id| kernel(id).unwrap().operands.join(" ");
        assert_eq!(operands("decode/k2_tiles"), "codes codebooks scales y");
        // A condition among the parameters, and integers after the pointers.
        assert_eq!(
            operands("matvec/k4_sliced_codebook"),
            "items tasks rows codebook scales x y"
        );
        assert_eq!(operands("argmax/k1_one_block"), "logits chosen state");
    }

    #[test]
    fn defined_integers_are_those_of_the_source() {
        assert_eq!(defines::matvec::k7_lane_inputs::WARPS, 24);
        assert_eq!(defines::matvec::k6_product_tables::NONE, 0xffff_ffff);
        assert_eq!(defines::tiles::TILE_ROWS, 8);
    }

    #[test]
    fn line_markers_point_into_the_kernels_own_file() {
        let text = "int before;\n#include \"../tiles.cuh\"\nint a;\n";
        let expanded = expand(text, "x.cu", None).unwrap();
        assert!(expanded.starts_with("int before;\n#line 1 \"tiles.cuh\"\n"));
        assert!(expanded.ends_with("\n#line 3 \"x.cu\"\nint a;\n"));
        assert!(expanded.contains("#define TILE_ROWS") && !expanded.contains("#pragma once"));
    }

    #[test]
    fn an_include_is_found_however_it_is_written() {
        for line in [
            "#include \"common.cuh\"",
            "  # include  \"../common.cuh\"  // optional",
            "#include \"/my/kernels/common.cuh\"",
        ] {
            assert_eq!(included(line), Some("common.cuh"), "{line}");
        }
        for line in [
            "#include \"uncommon.cuh\"",
            "#include <common.cuh>",
            "// #include \"common.cuh\"",
            "#",
        ] {
            assert_eq!(included(line), None, "{line}");
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
