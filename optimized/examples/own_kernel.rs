//! A user's own CUDA kernel in a user's own program: compiled at run time, launched on a quantized matrix,
//! and compared with the shipped kernel.
//!
//! ```text
//! cargo run --release -p aqlm-optimized --example own_kernel [-- MY.cu]
//! ```
//!
//! The file's entry takes the operands of `matvec/k1_naive`, as kernels/examples/my_matvec.cu explains.
//! `aqlm bench --kernel MY.cu` does the same with the whole check and times it.

use std::error::Error;
use std::path::PathBuf;

use aqlm_optimized::cuda::pack::pack;
use aqlm_optimized::cuda::{CudaError, Device, DeviceMatrix};
use aqlm_vocabulary::QuantizedMatrix;
use half::f16;
use ndarray::{Array1, Array3, Array4};

/// The shipped kernel whose operands and constants the file takes.
const LIKE: &str = "matvec/k1_naive";

/// Output rows of a block of the example.
const ROWS_PER_BLOCK: usize = 4;

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args_os().nth(1).map_or_else(
        || {
            PathBuf::from(concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/../kernels/examples/my_matvec.cu"
            ))
        },
        PathBuf::from,
    );
    let device = match Device::open(0, None) {
        Err(CudaError::Absent(reason)) => {
            println!("waived: {reason}");
            return Ok(());
        }
        device => device?,
    };
    // A matrix of [256, 512] whose codes and codewords follow a pattern.
    let matrix = QuantizedMatrix::new(
        "2x8g8".parse()?,
        Array3::from_shape_fn((256, 64, 2), |(o, j, m)| {
            ((o * 31 + j * 7 + m * 101) % 256) as u16
        }),
        Array4::from_shape_fn((2, 256, 1, 8), |(m, k, _, i)| {
            ((m + k + 3 * i) % 17) as f64 / 8.0 - 1.0
        }),
        Array1::from_elem(256, 0.125),
    )?;
    let x: Vec<f16> = (0..512).map(|i| f16::from_f32((i % 5) as f32 - 2.0)).collect();
    let x = device.upload(&x)?;

    let shipped = pack(LIKE, &matrix, device.target(), 1)?;
    let mut own = shipped.clone();
    own.block = 32 * ROWS_PER_BLOCK as u32;
    own.grid[0] = own.out_features.div_ceil(ROWS_PER_BLOCK) as u32;
    let name = path.display().to_string();
    let source = aqlm_kernels::user_source(&std::fs::read_to_string(&path)?, &name, None)?;
    let run = |on: &DeviceMatrix| -> Result<Vec<f16>, CudaError> {
        let mut y = device.upload(&vec![f16::NAN; matrix.out_features()])?;
        on.start(&device, Some(&x), &mut y, false)?;
        device.download(&y)
    };
    let expected = run(&DeviceMatrix::new(&device, &shipped)?)?;
    let found = run(&DeviceMatrix::with_source(&device, &own, &name, &source)?)?;
    let same = found
        .iter()
        .zip(&expected)
        .filter(|(found, expected)| found == expected);
    println!(
        "{name}: {} of {} outputs are {LIKE}'s",
        same.count(),
        expected.len()
    );
    Ok(())
}
