//! On a device with guard bytes, a kernel that writes outside a buffer causes an error that names the buffer.
//! Needs a GPU. kernels_on_cpu.rs has the same kernels on the CPU.

use aqlm_optimized::cuda::pack::pack;
use aqlm_optimized::cuda::{CudaError, Device, DeviceMatrix};
use aqlm_vocabulary::{QuantizedMatrix, Scheme};
use half::f16;
use ndarray::{Array1, Array3, Array4};

#[test]
fn a_write_outside_a_buffer_is_an_error_that_names_it() {
    let device = match Device::open_guarded(0, None) {
        Ok(device) => device,
        Err(CudaError::Absent(reason)) => {
            println!("waived: {reason}");
            return;
        }
        Err(error) => panic!("{error}"),
    };
    let scheme: Scheme = "2x8g8".parse().unwrap();
    let matrix = QuantizedMatrix::new(
        scheme,
        Array3::zeros((13, 33, 2)),
        Array4::zeros((2, 256, 1, 8)),
        Array1::ones(13),
    )
    .unwrap();
    let packed = pack("matvec/k1_naive", &matrix, device.target(), 1).unwrap();
    let right = aqlm_kernels::kernel(packed.kernel).unwrap().source(None).unwrap();
    let store = "if (lane == 0) y[row] =";
    assert!(
        right.contains(store),
        "the kernel is written in another way: change this test"
    );
    for (wrong, expected) in [
        (
            "if (row == 0) y[out_features] = 1; if (lane == 0) y[row] =",
            Some(("y", "after")),
        ),
        (
            "if (row == 0) y[-1] = 1; if (lane == 0) y[row] =",
            Some(("y", "before")),
        ),
        (
            "if (row == 0) const_cast<u16*>(scales)[-1] = 1; if (lane == 0) y[row] =",
            Some(("scales of matvec/k1_naive", "before")),
        ),
        (store, None),
    ] {
        let source = right.replace(store, wrong);
        let matrix = DeviceMatrix::with_source(&device, &packed, "wrong.cu", &source).unwrap();
        let x = device.upload(&vec![f16::ONE; packed.x_len()]).unwrap().named("x");
        let mut y = device.upload(&vec![f16::NAN; packed.y_len()]).unwrap().named("y");
        matrix.start(&device, Some(&x), &mut y, false).unwrap();
        let found = match device.download(&y) {
            Ok(_) => None,
            Err(CudaError::Outside {
                buffer,
                side,
                started,
            }) => {
                assert_eq!(started, packed.kernel);
                Some((buffer, side))
            }
            Err(error) => panic!("{error}"),
        };
        assert_eq!(
            found.as_ref().map(|(buffer, side)| (buffer.as_str(), *side)),
            expected,
            "{wrong}"
        );
        // The error is reported once.
        assert!(device.download(&y).is_ok());
    }
}
