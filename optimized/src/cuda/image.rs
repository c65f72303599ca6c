//! Compiles a kernel's source with NVRTC to an image that the driver loads, and caches the image on disk.
//!
//! The cache key is a hash of everything that the image depends on: source, options, architecture, versions
//! of compiler and driver.

use std::ffi::CString;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use cudarc::nvrtc::result::{self as compiler, NvrtcError};
use cudarc::nvrtc::sys as nvrtc;
use sha2::{Digest, Sha256};

use super::{CudaError, Result};

/// Must change when the meaning of a cached file does.
const FORMAT: u32 = 1;
const DIGEST_BYTES: usize = 32;

/// The target of a compilation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Machine {
    /// compute capability
    pub(super) compute: (i32, i32),
    /// as the driver counts its versions
    pub(super) driver: i32,
}

/// A compiled kernel.
pub(super) struct Image {
    pub(super) bytes: Vec<u8>,
    /// where it was found; `None` if it was just compiled
    pub(super) found: Option<PathBuf>,
}

/// The image of `source`, from `cache`, or compiled and stored there. A cache that cannot be read or written
/// costs only time.
///
/// # Errors
/// `Compile` with the compiler's messages. They name `name`, or the files given by the source's line markers,
/// with line numbers.
pub(super) fn image(
    name: &str,
    source: &str,
    defines: &[(&str, usize)],
    machine: Machine,
    cache: Option<&Path>,
) -> Result<Image> {
    let architecture = architecture(machine.compute)?;
    let mut options = vec![format!("--gpu-architecture={architecture}"), "--std=c++17".into()];
    options.extend(
        defines
            .iter()
            .map(|(define, value)| format!("-D{define}={value}")),
    );
    let key = key(source, &options, machine.driver, version()?);
    let file = cache.map(|folder| folder.join(format!("{key}.image")));
    if let Some(bytes) = file.as_deref().and_then(read) {
        return Ok(Image { bytes, found: file });
    }
    let bytes = compile(name, source, &options, architecture.starts_with("sm_"))?;
    if let Some(file) = &file {
        // A failed write only means that the next start compiles again.
        let _ = write(file, &bytes);
    }
    Ok(Image { bytes, found: None })
}

/// Where images are kept: `AQLM_KERNEL_CACHE` (empty: nowhere), else `aqlm/kernels` in the user's cache
/// folder.
pub(super) fn cache_folder() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    if let Some(folder) = std::env::var_os("AQLM_KERNEL_CACHE") {
        return (!folder.is_empty()).then(|| PathBuf::from(folder));
    }
    let base = set("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| set("HOME").map(|home| PathBuf::from(home).join(".cache")))?;
    Some(base.join("aqlm/kernels"))
}

/// Machine code for the device if the compiler supports it, else the newest intermediate code that the
/// compiler supports, which the driver compiles.
fn architecture((major, minor): (i32, i32)) -> Result<String> {
    let mut count = 0;
    // SAFETY: the library is loaded (Device::open has checked) and `count` is a valid place.
    unsafe { nvrtc::nvrtcGetNumSupportedArchs(&raw mut count) }
        .result()
        .map_err(refused)?;
    let mut known = vec![0_i32; count.max(0) as usize];
    // SAFETY: `known` has the length that the previous call returned.
    unsafe { nvrtc::nvrtcGetSupportedArchs(known.as_mut_ptr()) }
        .result()
        .map_err(refused)?;
    choose_architecture(major * 10 + minor, &known).ok_or_else(|| CudaError::Library {
        library: "NVRTC",
        error: format!("knows no architecture up to compute capability {major}.{minor}"),
    })
}

fn choose_architecture(compute: i32, known: &[i32]) -> Option<String> {
    if known.contains(&compute) {
        // Instructions that only this architecture has (wgmma) require the name with an a.
        let suffix = if compute == 90 { "a" } else { "" };
        return Some(format!("sm_{compute}{suffix}"));
    }
    let newest = known.iter().filter(|known| **known < compute).max()?;
    Some(format!("compute_{newest}"))
}

fn version() -> Result<(i32, i32)> {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: both are valid places.
    unsafe { nvrtc::nvrtcVersion(&raw mut major, &raw mut minor) }
        .result()
        .map_err(refused)?;
    Ok((major, minor))
}

fn refused(error: NvrtcError) -> CudaError {
    CudaError::Library {
        library: "NVRTC",
        error: error.to_string(),
    }
}

fn key(source: &str, options: &[String], driver: i32, compiler: (i32, i32)) -> String {
    let mut hash = Sha256::new();
    hash.update(format!("{FORMAT} {driver} {compiler:?} {}\0", options.join("\0")));
    hash.update(source);
    hash.finalize().iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A cached image, if its digest is right.
fn read(file: &Path) -> Option<Vec<u8>> {
    let mut bytes = std::fs::read(file).ok()?;
    let body = bytes.get(DIGEST_BYTES..)?;
    if Sha256::digest(body)[..] != bytes[..DIGEST_BYTES] {
        return None;
    }
    bytes.drain(..DIGEST_BYTES);
    Some(bytes)
}

/// Writes under another name and renames, so that nobody reads a partial image.
fn write(file: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let folder = file.parent().ok_or_else(|| std::io::Error::other("no folder"))?;
    std::fs::create_dir_all(folder)?;
    let part = file.with_extension(format!("part-{}", std::process::id()));
    let mut output = std::fs::File::create(&part)?;
    output.write_all(&Sha256::digest(bytes))?;
    output.write_all(bytes)?;
    output.sync_all()?;
    std::fs::rename(part, file)
}

fn compile(name: &str, source: &str, options: &[String], machine_code: bool) -> Result<Vec<u8>> {
    let text = |what: &str, text: &str| {
        CString::new(text).map_err(|_| CudaError::Compile {
            kernel: name.to_owned(),
            log: format!("the {what} has a zero byte"),
        })
    };
    let (source, program_name) = (text("source", source)?, text("name", name)?);
    let program = Program(compiler::create_program(&source, Some(&program_name)).map_err(refused)?);
    // SAFETY: the program is alive until the end of this function.
    if let Err(error) = unsafe { compiler::compile_program(program.0, options) } {
        // SAFETY: as above.
        let log = unsafe { compiler::get_program_log(program.0) }.map_or_else(
            |_| error.to_string(),
            |log| {
                let bytes: Vec<u8> = log.iter().map(|&c| c as u8).take_while(|&c| c != 0).collect();
                String::from_utf8_lossy(&bytes).into_owned()
            },
        );
        return Err(CudaError::Compile {
            kernel: name.to_owned(),
            log,
        });
    }
    if !machine_code {
        // SAFETY: as above.
        let ptx = unsafe { compiler::get_ptx(program.0) }.map_err(refused)?;
        return Ok(ptx.iter().map(|&c| c as u8).collect());
    }
    let mut size = 0;
    // SAFETY: as above; `size` is a valid place.
    unsafe { nvrtc::nvrtcGetCUBINSize(program.0, &raw mut size) }
        .result()
        .map_err(refused)?;
    let mut image = vec![0_u8; size];
    // SAFETY: `image` has the length that the previous call returned.
    unsafe { nvrtc::nvrtcGetCUBIN(program.0, image.as_mut_ptr().cast()) }
        .result()
        .map_err(refused)?;
    Ok(image)
}

/// Destroys the compiler's program when dropped.
struct Program(nvrtc::nvrtcProgram);

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: the program was made by `create_program` and is destroyed once.
        let _ = unsafe { compiler::destroy_program(self.0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn architectures() {
        let known = [75, 80, 86, 90, 100];
        assert_eq!(choose_architecture(80, &known).as_deref(), Some("sm_80"));
        assert_eq!(choose_architecture(90, &known).as_deref(), Some("sm_90a"));
        assert_eq!(choose_architecture(103, &known).as_deref(), Some("compute_100"));
        assert_eq!(choose_architecture(70, &known), None);
    }

    #[test]
    fn everything_that_an_image_depends_on_is_in_its_key() {
        let options = ["-DA=1".to_owned(), "-DB=2".to_owned()];
        let base = key("int a;", &options, 13000, (13, 0));
        assert_eq!(base, key("int a;", &options, 13000, (13, 0)));
        let others = [
            key("int b;", &options, 13000, (13, 0)),
            key("int a;", &options[..1], 13000, (13, 0)),
            key("int a;", &["-DA=1-DB=2".to_owned()], 13000, (13, 0)),
            key("int a;", &options, 12090, (13, 0)),
            key("int a;", &options, 13000, (13, 1)),
        ];
        assert!(others.iter().all(|other| *other != base));
    }

    #[test]
    fn an_image_with_a_flipped_bit_is_not_used() {
        let folder = std::env::temp_dir().join(format!("aqlm-image-{}", std::process::id()));
        let file = folder.join("a.image");
        write(&file, b"machine code").unwrap();
        assert_eq!(read(&file).as_deref(), Some(&b"machine code"[..]));
        let mut bytes = std::fs::read(&file).unwrap();
        bytes[DIGEST_BYTES + 3] ^= 1;
        std::fs::write(&file, &bytes).unwrap();
        assert_eq!(read(&file), None);
        std::fs::write(&file, &bytes[..10]).unwrap();
        assert_eq!(read(&file), None);
        std::fs::remove_dir_all(folder).unwrap();
    }
}
