//! Runs one launch of a kernel on the CPU, through kernels/shim/shim.h. A write outside a buffer is an error.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use aqlm_optimized::cuda::llama::plan::Plan;

/// Exit status of the program when guard bytes have changed.
const OUTSIDE: i32 = 5;

/// One launch: pointers to `buffers`, then `integers`.
pub(crate) struct Launch<'a> {
    pub(crate) kernel: &'a str,
    pub(crate) defines: &'a [(&'static str, usize)],
    pub(crate) integers: &'a [i32],
    pub(crate) grid: [u32; 2],
    pub(crate) block: u32,
    pub(crate) cluster: u32,
    pub(crate) shared_bytes: usize,
}

impl<'a> From<&'a Plan> for Launch<'a> {
    fn from(plan: &'a Plan) -> Self {
        Self {
            kernel: plan.kernel,
            defines: &plan.defines,
            integers: &plan.integers,
            grid: plan.grid,
            block: plan.block,
            cluster: plan.cluster,
            shared_bytes: plan.shared_bytes,
        }
    }
}

/// The contents of buffer `output` after the launch, or the buffer outside which the kernel wrote; `None` if
/// there is no C++ compiler. `source` is the kernel's, or a modified one. `name` separates concurrent tests.
pub(crate) fn run(
    launch: &Launch<'_>,
    source: &str,
    buffers: &[&[u8]],
    output: usize,
    name: &str,
) -> Option<Result<Vec<u8>, String>> {
    let folder = std::env::temp_dir().join(format!("aqlm-shim-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let found = run_in(launch, source, buffers, output, &folder);
    std::fs::remove_dir_all(&folder).unwrap();
    found
}

fn run_in(
    launch: &Launch<'_>,
    source: &str,
    buffers: &[&[u8]],
    output: usize,
    folder: &Path,
) -> Option<Result<Vec<u8>, String>> {
    let kernel = aqlm_kernels::kernel(launch.kernel).unwrap();
    let shim = Path::new(env!("CARGO_MANIFEST_DIR")).join("../kernels/shim/shim.h");
    let source = format!(
        "#include \"{}\"\n{source}\nint main(int, char** a) {{ return run_file(a[1], a[2], [] {{ call({}); }}); }}\n",
        shim.display(),
        kernel.op
    );
    let program = compiled(&source, launch.defines, folder)?;
    let [input, result] = ["in", "out"].map(|name| folder.join(name));

    let mut words = vec![
        u64::from(launch.grid[0]),
        u64::from(launch.grid[1]),
        u64::from(launch.block),
        u64::from(launch.cluster),
        launch.shared_bytes as u64,
    ];
    words.extend([buffers.len(), launch.integers.len(), output].map(|n| n as u64));
    words.extend(buffers.iter().map(|bytes| bytes.len() as u64));
    words.extend(launch.integers.iter().map(|&n| n as u64));
    let mut file: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    for bytes in buffers {
        file.extend_from_slice(bytes);
    }
    std::fs::write(&input, file).unwrap();
    let ran = Command::new(&program).args([&input, &result]).output().unwrap();
    if ran.status.code() == Some(OUTSIDE) {
        let told = String::from_utf8_lossy(&ran.stderr);
        let (side, number) = told.trim().split_once(' ').unwrap();
        let operand = &kernel.operands[number.parse::<usize>().unwrap()];
        return Some(Err(format!("outside a buffer: {side} {operand}")));
    }
    assert!(
        ran.status.success(),
        "{} ended with {}",
        launch.kernel,
        ran.status
    );
    Some(Ok(std::fs::read(&result).unwrap()))
}

/// The program of a source with these constants. Programs are kept for later runs, by the hash of all that
/// decides them.
fn compiled(source: &str, defines: &[(&'static str, usize)], folder: &Path) -> Option<PathBuf> {
    let shim = include_str!("../../../kernels/shim/shim.h");
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    let mut hasher = DefaultHasher::new();
    (source, shim, defines, &compiler).hash(&mut hasher);
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join("shim");
    let program = kept.join(format!("{:016x}", hasher.finish()));
    if program.exists() {
        return Some(program);
    }
    std::fs::create_dir_all(&kept).unwrap();
    let cpp = folder.join("k.cpp");
    std::fs::write(&cpp, source).unwrap();
    // Another test may make the same program at the same time; a rename replaces it whole.
    let own = folder.file_name().unwrap_or_default().to_string_lossy();
    let fresh = program.with_extension(own.as_ref());
    let compiled = Command::new(compiler)
        .args(["-std=c++17", "-O1", "-w", "-o"])
        .args([&fresh, &cpp])
        .args(defines.iter().map(|(name, value)| format!("-D{name}={value}")))
        .output();
    let Ok(compiled) = compiled else {
        println!("waived: no C++ compiler");
        return None;
    };
    assert!(
        compiled.status.success(),
        "{}",
        String::from_utf8_lossy(&compiled.stderr)
    );
    std::fs::rename(&fresh, &program).unwrap();
    Some(program)
}
