//! Files made here byte by byte, whole and damaged.

use std::path::PathBuf;

use ::safetensors::tensor::TensorView;
use half::{bf16, f16};
use ndarray::{Ix0, Ix1, Ix2, Ix3, IxDyn};

use super::*;
use crate::tensors::TensorSource;
use crate::{Error, Result, durable};

/// A safetensors file of a JSON header and this many bytes of data.
fn file(header: &str, data: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    raw(&bytes)
}

fn raw(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    std::fs::write(&path, bytes).unwrap();
    (folder, path)
}

fn open(header: &str, data: &[u8]) -> Result<SafetensorFiles> {
    let (_folder, path) = file(header, data);
    SafetensorFiles::open_file(&path)
}

const TWO: &str = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},
    "b":{"dtype":"I8","shape":[2,2],"data_offsets":[8,12]},"__metadata__":{"format":"pt"}}"#;

#[test]
fn each_type_of_numbers_is_read_exactly() {
    let header = r#"{"f16":{"dtype":"F16","shape":[2],"data_offsets":[0,4]},
        "bf16":{"dtype":"BF16","shape":[2],"data_offsets":[4,8]},
        "f32":{"dtype":"F32","shape":[1],"data_offsets":[8,12]},
        "f64":{"dtype":"F64","shape":[1],"data_offsets":[12,20]},
        "i8":{"dtype":"I8","shape":[2],"data_offsets":[20,22]},
        "i16":{"dtype":"I16","shape":[2],"data_offsets":[22,26]},
        "i32":{"dtype":"I32","shape":[],"data_offsets":[26,30]},
        "u8":{"dtype":"U8","shape":[1],"data_offsets":[30,31]},
        "empty":{"dtype":"F32","shape":[0],"data_offsets":[31,31]}}"#;
    let mut data = Vec::new();
    data.extend(
        [f16::from_f32(-1.5), f16::from_f32(6.1e-5)]
            .map(f16::to_le_bytes)
            .concat(),
    );
    data.extend(
        [bf16::from_f32(-1.5), bf16::from_f32(3e38)]
            .map(bf16::to_le_bytes)
            .concat(),
    );
    data.extend(0.1_f32.to_le_bytes());
    data.extend(0.1_f64.to_le_bytes());
    data.extend([0xff, 0x80]);
    data.extend([-2_i16, 300].map(i16::to_le_bytes).concat());
    data.extend((-70_000_i32).to_le_bytes());
    data.push(0xff);
    let (_folder, path) = file(header, &data);
    let tensors = SafetensorFiles::open_file(&path).unwrap();
    assert_eq!(
        tensors.read_floats("f16").unwrap(),
        [-1.5, f16::from_f32(6.1e-5).to_f32()]
    );
    assert_eq!(
        tensors.read_floats("bf16").unwrap(),
        [-1.5, bf16::from_f32(3e38).to_f32()]
    );
    assert_eq!(tensors.read_floats("f32").unwrap(), [0.1]);
    assert_eq!(tensors.read_floats("f64").unwrap(), [0.1]);
    assert_eq!(tensors.read_integers("i8").unwrap(), [-1, -128]);
    assert_eq!(tensors.read_integers("i16").unwrap(), [-2, 300]);
    assert_eq!(tensors.read_integers("i32").unwrap(), [-70_000]);
    assert_eq!(tensors.read_integers("u8").unwrap(), [255]);
    assert_eq!(tensors.info("i32").unwrap().shape, [] as [usize; 0]);
    assert!(tensors.read_floats("empty").unwrap().is_empty());
    assert!(matches!(tensors.read_floats("i8"), Err(Error::TensorType { tensor, .. }) if tensor == "i8"));
    assert!(matches!(
        tensors.read_integers("f16"),
        Err(Error::TensorType { .. })
    ));
    assert!(matches!(
        tensors.read_floats("none"),
        Err(Error::MissingTensor { .. })
    ));
}

#[test]
fn shapes_are_compared_before_anything_is_read() {
    let tensors = open(TWO, &[0; 12]).unwrap();
    assert_eq!(tensors.names(), ["a", "b"]);
    assert!(tensors.expect("b", &[2, 2]).is_ok());
    let result = tensors.expect("b", &[4]);
    assert!(matches!(result, Err(Error::TensorShape { found, .. }) if found == [2, 2]));
}

#[test]
fn a_file_shorter_than_its_header_length_is_truncated() {
    for bytes in [&[][..], &[1, 2, 3]] {
        let (_folder, path) = raw(bytes);
        let result = SafetensorFiles::open_file(&path);
        assert!(matches!(result, Err(Error::Truncated { expected: 8, .. })));
    }
}

#[test]
fn a_file_shorter_than_its_header_is_truncated() {
    let (_folder, path) = raw(&[100, 0, 0, 0, 0, 0, 0, 0, b'{', b'}']);
    let result = SafetensorFiles::open_file(&path);
    assert!(matches!(
        result,
        Err(Error::Truncated {
            expected: 108,
            found: 10,
            ..
        })
    ));
}

#[test]
fn a_header_beyond_the_formats_limit_is_refused_without_allocating_it() {
    let (_folder, path) = raw(&[0xff; 16]);
    assert!(matches!(
        SafetensorFiles::open_file(&path),
        Err(Error::Header { .. })
    ));
}

#[test]
fn a_file_shorter_than_its_tensors_is_truncated() {
    assert!(matches!(open(TWO, &[0; 11]), Err(Error::Truncated { what, .. }) if what == "the tensors"));
}

#[test]
fn bytes_after_the_last_tensor_are_refused() {
    assert!(matches!(open(TWO, &[0; 13]), Err(Error::Header { .. })));
}

#[test]
fn overlapping_tensors_are_refused() {
    let header = r#"{"a":{"dtype":"I8","shape":[4],"data_offsets":[0,4]},
        "b":{"dtype":"I8","shape":[4],"data_offsets":[2,6]}}"#;
    let result = open(header, &[0; 6]);
    assert!(
        matches!(result, Err(Error::Offsets { tensor, expected, begin: 2, end: 6, .. })
            if tensor == "b" && expected.contains("overlaps"))
    );
}

#[test]
fn gaps_between_tensors_are_refused() {
    let header = r#"{"a":{"dtype":"I8","shape":[4],"data_offsets":[0,4]},
        "b":{"dtype":"I8","shape":[4],"data_offsets":[6,10]}}"#;
    let result = open(header, &[0; 10]);
    assert!(matches!(result, Err(Error::Offsets { tensor, expected, .. })
        if tensor == "b" && expected.contains("gap")));
}

#[test]
fn bytes_that_do_not_fit_the_shape_are_refused() {
    for offsets in ["[0,7]", "[0,9]", "[8,0]"] {
        let header = format!(r#"{{"a":{{"dtype":"F32","shape":[2],"data_offsets":{offsets}}}}}"#);
        assert!(
            matches!(open(&header, &[0; 8]), Err(Error::Offsets { .. })),
            "{offsets}"
        );
    }
}

#[test]
fn a_shape_that_overflows_is_refused() {
    let header = r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}"#;
    assert!(matches!(open(header, &[]), Err(Error::Offsets { .. })));
}

#[test]
fn headers_that_are_no_safetensors_json_are_refused() {
    for header in [
        "{",
        "[]",
        r#"{"a":{"dtype":"F32"}}"#,
        r#"{"a":{"dtype":"X9","shape":[],"data_offsets":[0,0]}}"#,
    ] {
        assert!(matches!(open(header, &[]), Err(Error::Header { .. })), "{header}");
    }
}

#[test]
fn infinite_weights_are_named() {
    for (bad, is_nan) in [
        (f32::NAN, true),
        (f32::INFINITY, false),
        (f32::NEG_INFINITY, false),
    ] {
        let data = [1.0_f32, bad].map(f32::to_le_bytes).concat();
        let header = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
        let (_folder, path) = file(header, &data);
        let result = SafetensorFiles::open_file(&path).unwrap().read_floats("a");
        assert!(
            matches!(result, Err(Error::NotFinite { tensor, element: 1, value, .. })
            if tensor == "a" && value.is_nan() == is_nan)
        );
    }
}

/// One array of every type that is written.
fn every_type() -> Vec<NewTensor> {
    let halves = ndarray::array![[1.0, -0.5, 3.0], [0.25, 2.0, -7.0]];
    vec![
        NewTensor::new("u8", &[2], [0_u8, u8::MAX]),
        NewTensor::new("u16", &[2], [0, u16::MAX]),
        NewTensor::new("u32", &[2], [0, u32::MAX]),
        NewTensor::new("u64", &[2], [0, u64::MAX]),
        NewTensor::new("i8", &[3], [i8::MIN, -1, i8::MAX]),
        NewTensor::new("i16", &[2], [i16::MIN, i16::MAX]),
        NewTensor::new("i32", &[2], [i32::MIN, i32::MAX]),
        NewTensor::new("i64", &[2], [i64::MIN, i64::MAX]),
        NewTensor::of("f16", &halves.mapv(f16::from_f32)),
        // a view against the order of memory is written in the order of its own shape
        NewTensor::of("bf16", &halves.mapv(bf16::from_f32).t()),
        NewTensor::new("f32", &[1, 3, 1], [f32::NAN, -0.0, f32::MIN_POSITIVE / 2.0]),
        NewTensor::new("f64", &[], [0.1_f64]),
        NewTensor::new("empty", &[2, 0], [] as [f32; 0]),
    ]
}

#[test]
fn each_type_comes_back_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("all.safetensors");
    let sha256 = write(&path, every_type()).unwrap();
    let file = SafetensorFiles::open_checked(&path, &sha256).unwrap();
    assert_eq!(file.read::<u8, Ix1>("u8").unwrap().to_vec(), [0, u8::MAX]);
    assert_eq!(file.read::<u16, Ix1>("u16").unwrap().to_vec(), [0, u16::MAX]);
    assert_eq!(file.read::<u32, Ix1>("u32").unwrap().to_vec(), [0, u32::MAX]);
    assert_eq!(file.read::<u64, Ix1>("u64").unwrap().to_vec(), [0, u64::MAX]);
    assert_eq!(
        file.read::<i8, Ix1>("i8").unwrap().to_vec(),
        [i8::MIN, -1, i8::MAX]
    );
    assert_eq!(
        file.read::<i16, Ix1>("i16").unwrap().to_vec(),
        [i16::MIN, i16::MAX]
    );
    assert_eq!(
        file.read::<i32, Ix1>("i32").unwrap().to_vec(),
        [i32::MIN, i32::MAX]
    );
    assert_eq!(
        file.read::<i64, Ix1>("i64").unwrap().to_vec(),
        [i64::MIN, i64::MAX]
    );
    let halves = ndarray::array![[1.0, -0.5, 3.0], [0.25, 2.0, -7.0]];
    assert_eq!(file.read::<f16, Ix2>("f16").unwrap().mapv(f16::to_f64), halves);
    assert_eq!(
        file.read::<bf16, Ix2>("bf16").unwrap().mapv(bf16::to_f64),
        halves.t()
    );
    let singles = file.read::<f32, Ix3>("f32").unwrap();
    assert_eq!(singles.dim(), (1, 3, 1));
    let bits: Vec<u32> = singles.iter().map(|value| value.to_bits()).collect();
    assert_eq!(bits, [f32::NAN, -0.0, f32::MIN_POSITIVE / 2.0].map(f32::to_bits));
    assert_eq!(file.read::<f64, Ix0>("f64").unwrap().into_scalar(), 0.1);
    assert_eq!(file.read::<f32, IxDyn>("empty").unwrap().shape(), [2, 0]);
}

#[test]
fn every_type_is_widened_to_f64() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("all.safetensors");
    write(&path, every_type()).unwrap();
    let file = SafetensorFiles::open_file(&path).unwrap();
    for (name, last) in [
        ("u8", 255.0),
        ("u16", 65_535.0),
        ("u32", 4_294_967_295.0),
        ("u64", 2_f64.powi(64)),
        ("i8", 127.0),
        ("i16", 32_767.0),
        ("i32", 2_147_483_647.0),
        ("i64", 2_f64.powi(63)),
        ("f16", -7.0),
        ("bf16", -7.0),
        ("f32", f64::from(f32::MIN_POSITIVE) / 2.0),
        ("f64", 0.1),
    ] {
        let found = file.read_as_f64::<IxDyn>(name).unwrap();
        assert_eq!(found.iter().last(), Some(&last), "{name}");
    }
}

/// Files of the `safetensors` crate's own writer are read, and its reader reads ours.
#[test]
fn the_crates_own_reader_and_writer_agree() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("all.safetensors");
    let tensors = every_type();
    write(&path, tensors.clone()).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let theirs = ::safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(theirs.len(), tensors.len());
    for tensor in &tensors {
        let view = theirs.tensor(&tensor.name).unwrap();
        assert_eq!(view.dtype(), tensor.dtype, "{}", tensor.name);
        assert_eq!(view.shape(), tensor.shape, "{}", tensor.name);
        assert_eq!(view.data(), tensor.bytes, "{}", tensor.name);
    }
    let views = tensors.iter().map(|tensor| {
        let view = TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.bytes).unwrap();
        (&tensor.name, view)
    });
    std::fs::write(&path, ::safetensors::serialize(views, None).unwrap()).unwrap();
    let ours = SafetensorFiles::open_file(&path).unwrap();
    assert_eq!(ours.names().len(), tensors.len());
    for tensor in &tensors {
        let (dtype, bytes) = ours.read_bytes(&tensor.name).unwrap();
        assert_eq!((dtype, &bytes), (tensor.dtype, &tensor.bytes), "{}", tensor.name);
        assert_eq!(ours.info(&tensor.name).unwrap().shape, tensor.shape);
    }
}

#[test]
fn the_same_tensors_give_the_same_bytes_in_any_order() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("all.safetensors");
    let forwards = write(&path, every_type()).unwrap();
    assert_eq!(durable::sha256_of_file(&path).unwrap(), forwards);
    let mut reversed = every_type();
    reversed.reverse();
    assert_eq!(write(&path, reversed).unwrap(), forwards);
}

#[test]
fn other_types_and_other_axes_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("all.safetensors");
    write(&path, every_type()).unwrap();
    let file = SafetensorFiles::open_file(&path).unwrap();
    let result = file.read::<f32, Ix1>("f64");
    assert!(
        matches!(result, Err(Error::TensorType { tensor, expected, found, .. })
            if tensor == "f64" && expected == "F32" && found == "F64")
    );
    let result = file.read::<f16, Ix1>("f16");
    assert!(matches!(result, Err(Error::Field { field, expected, found, .. })
            if field == "f16" && expected == "1 axes" && found == "shape [2, 3]"));
    let result = file.read_as_f64::<Ix1>("absent");
    assert!(matches!(result, Err(Error::MissingTensor { tensor, .. }) if tensor == "absent"));
}

#[test]
fn a_file_of_another_checksum_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("all.safetensors");
    let sha256 = write(&path, every_type()).unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let result = SafetensorFiles::open_checked(&path, &sha256);
    assert!(matches!(result, Err(Error::Digest { expected, .. }) if expected == sha256));
}

#[test]
#[should_panic(expected = "bytes of tensor `a` of shape [2, 2]")]
fn numbers_that_do_not_fill_the_shape_are_a_mistake_of_the_caller() {
    NewTensor::new("a", &[2, 2], [1_u8; 3]);
}

/// A side of 2^62 beside one of 0 passes the header's check, for the tensor has no bytes.
#[test]
fn an_empty_tensor_with_sides_beyond_memory_is_refused_when_read() {
    let header = r#"{"a":{"dtype":"F32","shape":[0,4611686018427387904,4611686018427387904],
        "data_offsets":[0,0]}}"#;
    let file = open(header, &[]).unwrap();
    assert!(matches!(file.read::<f32, IxDyn>("a"), Err(Error::Field { field, .. }) if field == "a"));
}
