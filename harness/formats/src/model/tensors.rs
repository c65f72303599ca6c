//! Named tensors in safetensors files, read one at a time: opening a file reads its header only.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use safetensors::Dtype;
use serde::Deserialize;
use serde_json::Value;

use crate::{Error, Result};

/// The longest header that the safetensors format allows, in bytes.
const LONGEST_HEADER: u64 = 100_000_000;

/// What is known of a tensor without reading it.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorInfo {
    /// the type as its format spells it, for example "F16" or "Q4_1"
    pub dtype: String,
    /// row-major
    pub shape: Vec<usize>,
    /// bytes it takes in the file
    pub bytes: u64,
    /// the file it is in
    pub path: PathBuf,
}

/// Tensors under their Hugging Face names, wherever they are stored.
pub trait TensorSource: Send + Sync + std::fmt::Debug {
    /// The file or folder, for errors.
    fn path(&self) -> &Path;

    /// All names, sorted.
    fn names(&self) -> Vec<String>;

    /// What is known of a tensor, when it is there.
    fn info(&self, name: &str) -> Option<TensorInfo>;

    /// A tensor's numbers in f32, row-major. Every one of f16, bf16 and f32 is kept exactly; f64 is rounded.
    ///
    /// # Errors
    /// `MissingTensor`; `TensorType` when it is no tensor of floats; `NotFinite`; `Io`.
    fn read_floats(&self, name: &str) -> Result<Vec<f32>>;

    /// A tensor of whole numbers, row-major.
    ///
    /// # Errors
    /// `MissingTensor`; `TensorType` when it is no tensor of integers; `Io`.
    fn read_integers(&self, name: &str) -> Result<Vec<i64>>;

    /// Checks a tensor's presence and shape without reading it.
    ///
    /// # Errors
    /// `MissingTensor`, `TensorShape`.
    fn expect(&self, name: &str, shape: &[usize]) -> Result<TensorInfo> {
        let info = self.info(name).ok_or_else(|| Error::MissingTensor {
            path: self.path().into(),
            tensor: name.into(),
        })?;
        if info.shape == shape {
            Ok(info)
        } else {
            Err(Error::TensorShape {
                path: info.path,
                tensor: name.into(),
                expected: shape.to_vec(),
                found: info.shape,
            })
        }
    }
}

/// Where a safetensors file's bytes are.
#[derive(Debug)]
enum Bytes {
    File(File),
    Static(&'static [u8]),
}

#[derive(Debug)]
struct Shard {
    path: PathBuf,
    bytes: Bytes,
    /// position of the first tensor's first byte
    data_start: u64,
}

/// One header entry of the safetensors format.
#[derive(Debug, Deserialize)]
struct Entry {
    dtype: Dtype,
    shape: Vec<usize>,
    data_offsets: (u64, u64),
}

/// The tensors of one or several safetensors files.
#[derive(Debug)]
pub struct SafetensorFiles {
    path: PathBuf,
    shards: Vec<Shard>,
    /// name -> (shard, entry)
    tensors: BTreeMap<String, (usize, Entry)>,
}

impl SafetensorFiles {
    /// One file.
    ///
    /// # Errors
    /// `Io`, `Truncated`, `Header`, `Offsets`.
    pub fn open_file(path: &Path) -> Result<Self> {
        let (shard, entries) = open_shard(path)?;
        Ok(Self {
            path: path.into(),
            shards: vec![shard],
            tensors: entries
                .into_iter()
                .map(|(name, entry)| (name, (0, entry)))
                .collect(),
        })
    }

    /// Bytes that are part of the program; `path` names them in errors.
    ///
    /// # Errors
    /// `Truncated`, `Header`, `Offsets`.
    pub fn from_static(path: &Path, bytes: &'static [u8]) -> Result<Self> {
        let mut rest = bytes;
        let (data_start, entries) = read_header(path, &mut rest, bytes.len() as u64)?;
        Ok(Self {
            path: path.into(),
            shards: vec![Shard {
                path: path.into(),
                bytes: Bytes::Static(bytes),
                data_start,
            }],
            tensors: entries
                .into_iter()
                .map(|(name, entry)| (name, (0, entry)))
                .collect(),
        })
    }

    /// A model folder: `model.safetensors`, or the shards that `model.safetensors.index.json` lists.
    ///
    /// # Errors
    /// Those of one file; `Kind` when the folder has neither; `Field` and `Shard` for a bad index;
    /// `MissingTensor` when a shard lacks a tensor that the index promises.
    pub fn open_folder(folder: &Path) -> Result<Self> {
        let single = folder.join("model.safetensors");
        if single.is_file() {
            return Self::open_file(&single);
        }
        let index = folder.join("model.safetensors.index.json");
        if index.is_file() {
            return Self::open_index(folder, &index);
        }
        let other = std::fs::read_dir(folder)
            .map_err(Error::io(folder, "read"))?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .find(|name| {
                [".bin", ".pt", ".pth"]
                    .iter()
                    .any(|ending| name.ends_with(ending))
            });
        Err(Error::Kind {
            path: folder.into(),
            expected: "model.safetensors or model.safetensors.index.json".into(),
            found: other.map_or_else(
                || "neither".into(),
                |name| format!("{name} (PyTorch's own format is not read: convert it to safetensors)"),
            ),
        })
    }

    fn open_index(folder: &Path, index: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(index).map_err(Error::io(index, "read"))?;
        let value: Value = serde_json::from_str(&text).map_err(Error::json(index, 1))?;
        let map = value.get("weight_map").and_then(Value::as_object);
        let map = map.ok_or_else(|| Error::Field {
            path: index.into(),
            field: "weight_map".into(),
            expected: "an object of tensor names and file names".into(),
            found: "nothing of the kind".into(),
        })?;
        let mut by_shard: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (tensor, file) in map {
            let file = file.as_str().filter(|file| is_plain_file_name(file));
            let file = file.ok_or_else(|| Error::Field {
                path: index.into(),
                field: format!("weight_map.{tensor}"),
                expected: "a file name without folders".into(),
                found: map[tensor].to_string(),
            })?;
            by_shard.entry(file).or_default().push(tensor);
        }
        refuse_unlisted_shards(folder, index, &by_shard.keys().copied().collect())?;

        let mut files = Self {
            path: folder.into(),
            shards: Vec::new(),
            tensors: BTreeMap::new(),
        };
        for (file, tensors) in by_shard {
            let path = folder.join(file);
            if !path.is_file() {
                return Err(Error::Shard {
                    index: index.into(),
                    shard: file.into(),
                    reason: format!("listed, but expected file {} is not there", path.display()),
                });
            }
            let (shard, mut entries) = open_shard(&path)?;
            for tensor in tensors {
                let entry = entries.remove(tensor).ok_or_else(|| Error::MissingTensor {
                    path: path.clone(),
                    tensor: tensor.into(),
                })?;
                files.tensors.insert(tensor.into(), (files.shards.len(), entry));
            }
            files.shards.push(shard);
        }
        Ok(files)
    }

    fn entry(&self, name: &str) -> Result<(&Shard, &Entry)> {
        let (shard, entry) = self.tensors.get(name).ok_or_else(|| Error::MissingTensor {
            path: self.path.clone(),
            tensor: name.into(),
        })?;
        Ok((&self.shards[*shard], entry))
    }

    /// A tensor's bytes as they are in the file, with its type.
    ///
    /// # Errors
    /// `MissingTensor`, `Io`.
    pub fn read_bytes(&self, name: &str) -> Result<(Dtype, Vec<u8>)> {
        let (shard, entry) = self.entry(name)?;
        let (begin, end) = entry.data_offsets;
        let start = shard.data_start + begin;
        let length = (end - begin) as usize;
        let bytes = match &shard.bytes {
            Bytes::Static(all) => all[start as usize..start as usize + length].to_vec(),
            Bytes::File(file) => {
                let mut bytes = vec![0; length];
                file.read_exact_at(&mut bytes, start)
                    .map_err(Error::io(&shard.path, "read"))?;
                bytes
            }
        };
        Ok((entry.dtype, bytes))
    }
}

impl TensorSource for SafetensorFiles {
    fn path(&self) -> &Path {
        &self.path
    }

    fn names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        let (shard, entry) = self.tensors.get(name)?;
        Some(TensorInfo {
            dtype: format!("{:?}", entry.dtype),
            shape: entry.shape.clone(),
            bytes: entry.data_offsets.1 - entry.data_offsets.0,
            path: self.shards[*shard].path.clone(),
        })
    }

    fn read_floats(&self, name: &str) -> Result<Vec<f32>> {
        let (dtype, bytes) = self.read_bytes(name)?;
        let path = &self.entry(name)?.0.path;
        let values: Vec<f32> = match dtype {
            Dtype::F16 => numbers(&bytes, f16::from_le_bytes)
                .collect::<Vec<_>>()
                .to_f32_vec(),
            Dtype::BF16 => numbers(&bytes, bf16::from_le_bytes)
                .collect::<Vec<_>>()
                .to_f32_vec(),
            Dtype::F32 => numbers(&bytes, f32::from_le_bytes).collect(),
            Dtype::F64 => numbers(&bytes, f64::from_le_bytes).map(|x| x as f32).collect(),
            other => {
                return Err(Error::TensorType {
                    path: path.clone(),
                    tensor: name.into(),
                    expected: "F16, BF16, F32 or F64".into(),
                    found: format!("{other:?}"),
                });
            }
        };
        refuse_not_finite(path, name, &values)?;
        Ok(values)
    }

    fn read_integers(&self, name: &str) -> Result<Vec<i64>> {
        let (dtype, bytes) = self.read_bytes(name)?;
        Ok(match dtype {
            Dtype::I8 => numbers(&bytes, i8::from_le_bytes).map(i64::from).collect(),
            Dtype::U8 => numbers(&bytes, u8::from_le_bytes).map(i64::from).collect(),
            Dtype::I16 => numbers(&bytes, i16::from_le_bytes).map(i64::from).collect(),
            Dtype::U16 => numbers(&bytes, u16::from_le_bytes).map(i64::from).collect(),
            Dtype::I32 => numbers(&bytes, i32::from_le_bytes).map(i64::from).collect(),
            Dtype::I64 => numbers(&bytes, i64::from_le_bytes).collect(),
            other => {
                return Err(Error::TensorType {
                    path: self.entry(name)?.0.path.clone(),
                    tensor: name.into(),
                    expected: "I8, U8, I16, U16, I32 or I64".into(),
                    found: format!("{other:?}"),
                });
            }
        })
    }
}

/// Names the first NaN or infinity.
pub(crate) fn refuse_not_finite(path: &Path, tensor: &str, values: &[f32]) -> Result<()> {
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(()),
        Some(element) => Err(Error::NotFinite {
            path: path.into(),
            tensor: tensor.into(),
            element,
            value: f64::from(values[element]),
        }),
    }
}

/// Little-endian numbers of N bytes each.
fn numbers<const N: usize, T>(bytes: &[u8], read: impl Fn([u8; N]) -> T) -> impl Iterator<Item = T> {
    bytes.as_chunks::<N>().0.iter().map(move |&chunk| read(chunk))
}

fn is_plain_file_name(name: &str) -> bool {
    !name.is_empty() && name != ".." && name != "." && !name.contains(['/', '\\', '\0'])
}

/// Shards of the same set (`NAME-00001-of-00003.safetensors`) that lie in the folder but not in the index.
fn refuse_unlisted_shards(folder: &Path, index: &Path, listed: &BTreeSet<&str>) -> Result<()> {
    let set_of = |name: &str| -> Option<(String, String)> {
        let stem = name.strip_suffix(".safetensors")?;
        let (front, total) = stem.rsplit_once("-of-")?;
        let (set, number) = front.rsplit_once('-')?;
        number.parse::<u32>().ok()?;
        Some((set.into(), total.into()))
    };
    let sets: BTreeSet<_> = listed.iter().filter_map(|name| set_of(name)).collect();
    for entry in std::fs::read_dir(folder).map_err(Error::io(folder, "read"))? {
        let name = entry.map_err(Error::io(folder, "read"))?.file_name();
        let Some(name) = name.to_str() else { continue };
        if !listed.contains(name) && set_of(name).is_some_and(|set| sets.contains(&set)) {
            return Err(Error::Shard {
                index: index.into(),
                shard: name.into(),
                reason: "is in the folder, but expected tensors of it in weight_map, found none".into(),
            });
        }
    }
    Ok(())
}

fn open_shard(path: &Path) -> Result<(Shard, BTreeMap<String, Entry>)> {
    let mut file = File::open(path).map_err(Error::io(path, "open"))?;
    let length = file.metadata().map_err(Error::io(path, "read"))?.len();
    let (data_start, entries) = read_header(path, &mut file, length)?;
    let shard = Shard {
        path: path.into(),
        bytes: Bytes::File(file),
        data_start,
    };
    Ok((shard, entries))
}

/// Reads and checks a header: the tensors' bytes must tile the rest of the file.
fn read_header(path: &Path, reader: &mut impl Read, length: u64) -> Result<(u64, BTreeMap<String, Entry>)> {
    let truncated = |what: &str, expected: u64| Error::Truncated {
        path: path.into(),
        what: what.into(),
        expected,
        found: length,
    };
    if length < 8 {
        return Err(truncated("the header's length", 8));
    }
    let mut header_length = [0; 8];
    reader
        .read_exact(&mut header_length)
        .map_err(Error::io(path, "read"))?;
    let header_length = u64::from_le_bytes(header_length);
    if header_length > LONGEST_HEADER {
        return Err(Error::Header {
            path: path.into(),
            expected: format!("a safetensors header of at most {LONGEST_HEADER} bytes"),
            found: format!("a length of {header_length}"),
        });
    }
    let data_start = 8 + header_length;
    if length < data_start {
        return Err(truncated("the header", data_start));
    }
    let mut header = vec![0; header_length as usize];
    reader.read_exact(&mut header).map_err(Error::io(path, "read"))?;
    let bad_header = |found: String| Error::Header {
        path: path.into(),
        expected: "safetensors' JSON of names, types, shapes and offsets".into(),
        found,
    };
    let values: BTreeMap<String, Value> =
        serde_json::from_slice(&header).map_err(|error| bad_header(error.to_string()))?;
    let mut entries = BTreeMap::new();
    for (name, value) in values {
        if name == "__metadata__" {
            continue;
        }
        let entry: Entry =
            serde_json::from_value(value).map_err(|error| bad_header(format!("tensor `{name}`: {error}")))?;
        entries.insert(name, entry);
    }
    check_offsets(path, &entries, length, data_start)?;
    Ok((data_start, entries))
}

fn check_offsets(path: &Path, entries: &BTreeMap<String, Entry>, length: u64, data_start: u64) -> Result<()> {
    let mut order: Vec<(&String, &Entry)> = entries.iter().collect();
    order.sort_by_key(|(name, entry)| (entry.data_offsets, *name));
    let mut next = 0;
    for (name, entry) in order {
        let (begin, end) = entry.data_offsets;
        let wrong = |expected: String| Error::Offsets {
            path: path.into(),
            tensor: name.clone(),
            expected,
            begin,
            end,
        };
        if begin != next {
            let problem = if begin < next {
                "it overlaps"
            } else {
                "there is a gap after"
            };
            return Err(wrong(format!(
                "to begin at byte {next} ({problem} the tensor before)"
            )));
        }
        let bits = entry
            .shape
            .iter()
            .try_fold(entry.dtype.bitsize() as u64, |product, &side| {
                product.checked_mul(side as u64)
            });
        match bits {
            Some(bits) if bits % 8 == 0 && end.checked_sub(begin) == Some(bits / 8) => {}
            Some(bits) => {
                let shape = &entry.shape;
                return Err(wrong(format!(
                    "{} bytes for {:?} {shape:?}",
                    bits / 8,
                    entry.dtype
                )));
            }
            None => {
                return Err(wrong(format!(
                    "a shape that fits in memory, not {:?}",
                    entry.shape
                )));
            }
        }
        next = end;
    }
    let needed = data_start.saturating_add(next);
    match length.cmp(&needed) {
        std::cmp::Ordering::Less => Err(Error::Truncated {
            path: path.into(),
            what: "the tensors".into(),
            expected: needed,
            found: length,
        }),
        std::cmp::Ordering::Greater => Err(Error::Header {
            path: path.into(),
            expected: format!("tensors that fill the file's {length} bytes"),
            found: format!("tensors that end at byte {needed}"),
        }),
        std::cmp::Ordering::Equal => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

    /// A folder with one shard of tensors a and b, and an index of this text.
    fn indexed(index: &str) -> (tempfile::TempDir, Result<SafetensorFiles>) {
        let (folder, path) = file(TWO, &[0; 12]);
        std::fs::rename(path, folder.path().join("model-00001-of-00002.safetensors")).unwrap();
        std::fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
        let result = SafetensorFiles::open_folder(folder.path());
        (folder, result)
    }

    #[test]
    fn an_index_says_which_shard_has_a_tensor() {
        let index = r#"{"weight_map":{"a":"model-00001-of-00002.safetensors"}}"#;
        let (_folder, tensors) = indexed(index);
        assert_eq!(tensors.unwrap().names(), ["a"]);
    }

    #[test]
    fn a_listed_shard_that_is_absent_is_named() {
        let index = r#"{"weight_map":{"a":"model-00001-of-00002.safetensors","c":"model-00002-of-00002.safetensors"}}"#;
        let (_folder, result) = indexed(index);
        assert!(
            matches!(result, Err(Error::Shard { shard, .. }) if shard == "model-00002-of-00002.safetensors")
        );
    }

    #[test]
    fn a_shard_that_the_index_forgets_is_named() {
        let (folder, result) = indexed(r#"{"weight_map":{"a":"model-00001-of-00002.safetensors"}}"#);
        assert!(result.is_ok());
        let forgotten = folder.path().join("model-00002-of-00002.safetensors");
        std::fs::write(forgotten, b"").unwrap();
        let result = SafetensorFiles::open_folder(folder.path());
        assert!(
            matches!(result, Err(Error::Shard { shard, .. }) if shard == "model-00002-of-00002.safetensors")
        );
    }

    #[test]
    fn a_tensor_that_its_shard_lacks_is_named() {
        let (_folder, result) = indexed(r#"{"weight_map":{"c":"model-00001-of-00002.safetensors"}}"#);
        assert!(matches!(result, Err(Error::MissingTensor { tensor, path })
            if tensor == "c" && path.ends_with("model-00001-of-00002.safetensors")));
    }

    #[test]
    fn an_index_cannot_point_out_of_its_folder() {
        for target in ["\"../model.safetensors\"", "\"/etc/passwd\"", "3", "\"\""] {
            let (_folder, result) = indexed(&format!(r#"{{"weight_map":{{"a":{target}}}}}"#));
            assert!(
                matches!(result, Err(Error::Field { field, .. }) if field == "weight_map.a"),
                "{target}"
            );
        }
        let (_folder, result) = indexed("{}");
        assert!(matches!(result, Err(Error::Field { field, .. }) if field == "weight_map"));
    }

    #[test]
    fn a_folder_without_weights_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(
            SafetensorFiles::open_folder(folder.path()),
            Err(Error::Kind { .. })
        ));
        std::fs::write(folder.path().join("pytorch_model.bin"), b"").unwrap();
        let result = SafetensorFiles::open_folder(folder.path());
        assert!(matches!(result, Err(Error::Kind { found, .. }) if found.contains("pytorch_model.bin")));
    }
}
