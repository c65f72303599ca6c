use std::path::{Path, PathBuf};

use aqlm_check::cases::Operation;
use aqlm_formats::{Error, Result};

/// A user-defined kernel: a CUDA source with an entry named after the operation, and its launch parameters.
///
/// A comment line in the file states the parameters, for example
///
/// `// aqlm: like=matvec/k1_naive block=256 rows_per_block=8 shared=0`
///
/// `like` names a shipped kernel whose operands, compile-time constants and launch are used (default:
/// k1_naive of the operation). The other settings change that launch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct UserKernel {
    pub(super) path: PathBuf,
    pub(super) source: String,
    pub(super) like: String,
    /// threads per block
    pub(super) block: Option<u32>,
    /// output rows per block; the grid covers all rows
    pub(super) rows_per_block: Option<u32>,
    /// bytes of dynamic shared memory
    pub(super) shared: Option<usize>,
}

impl UserKernel {
    pub(super) fn read(path: &Path, op: Operation) -> Result<Self> {
        let source = std::fs::read_to_string(path).map_err(Error::io(path, "read"))?;
        let mut kernel = Self {
            path: path.to_owned(),
            like: format!("{}/k1_naive", op.word()),
            block: None,
            rows_per_block: None,
            shared: None,
            source: String::new(),
        };
        for (number, line) in source.lines().enumerate() {
            let Some(settings) = line.trim().strip_prefix("// aqlm:") else {
                continue;
            };
            for setting in settings.split_whitespace() {
                kernel.set(setting, op).map_err(|expected| Error::Line {
                    path: path.to_owned(),
                    line: number + 1,
                    expected,
                    found: format!("`{setting}`"),
                })?;
            }
        }
        kernel.source = source;
        Ok(kernel)
    }

    /// Applies one `key=value`; the error names what was expected.
    fn set(&mut self, setting: &str, op: Operation) -> std::result::Result<(), String> {
        let (key, value) = setting
            .split_once('=')
            .ok_or("key=value, keys being like, block, rows_per_block, shared")?;
        let number = || value.parse::<u32>().map_err(|_| format!("a number for {key}"));
        match key {
            "like"
                if value.starts_with(&format!("{}/", op.word())) && aqlm_kernels::kernel(value).is_ok() =>
            {
                value.clone_into(&mut self.like);
            }
            "like" => {
                let known: Vec<&str> = aqlm_kernels::kernels()
                    .iter()
                    .filter(|kernel| kernel.op == op.word())
                    .map(|kernel| kernel.id.as_str())
                    .collect();
                return Err(format!("one of {} for like", known.join(", ")));
            }
            "block" => match number()? {
                threads if (32..=1024).contains(&threads) && threads % 32 == 0 => self.block = Some(threads),
                _ => return Err("a multiple of 32 in 32..=1024 for block".into()),
            },
            "rows_per_block" => match number()? {
                0 => return Err("at least 1 for rows_per_block".into()),
                rows => self.rows_per_block = Some(rows),
            },
            "shared" => self.shared = Some(number()? as usize),
            _ => return Err("one of like, block, rows_per_block, shared".into()),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<UserKernel> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("my.cu");
        std::fs::write(&path, text).unwrap();
        UserKernel::read(&path, Operation::Matvec)
    }

    #[test]
    fn settings_come_from_the_file() {
        let kernel =
            read("// aqlm: like=matvec/k2_shared_codebook block=128\n// aqlm: rows_per_block=4 shared=64\n")
                .unwrap();
        assert_eq!(kernel.like, "matvec/k2_shared_codebook");
        assert_eq!(
            (kernel.block, kernel.rows_per_block, kernel.shared),
            (Some(128), Some(4), Some(64))
        );
        assert_eq!(read("int a;\n").unwrap().like, "matvec/k1_naive");
    }

    /// The settings are in a comment line, which a tool that wraps comments may break.
    #[test]
    fn the_example_has_its_settings() {
        let kernel = read(include_str!("../../../../kernels/examples/my_matvec.cu")).unwrap();
        assert_eq!((kernel.block, kernel.rows_per_block), (Some(128), Some(4)));
    }

    #[test]
    fn bad_settings_are_refused_with_their_line() {
        for text in [
            "like=matmul/k1_naive",
            "like=matvec/none",
            "block=33",
            "block=0",
            "rows_per_block=0",
            "shared=-1",
            "speed=9",
            "fast",
        ] {
            let error = read(&format!("\n// aqlm: {text}\n")).unwrap_err().to_string();
            assert!(error.contains("line 2") && error.contains(text), "{error}");
        }
    }
}
