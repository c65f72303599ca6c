use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use ::safetensors::Dtype;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use ndarray::{Array, Array2, ArrayD, Dimension};

use super::Element;
use super::header::{Entry, Header, read_header};
use crate::tensors::{TensorInfo, TensorSource, refuse_not_finite};
use crate::{Error, Result, durable};

/// Location of a safetensors file's bytes.
#[derive(Debug)]
enum Bytes {
    File(File),
    Memory(Cow<'static, [u8]>),
}

#[derive(Debug)]
struct Shard {
    path: PathBuf,
    bytes: Bytes,
    /// offset of the first tensor's first byte
    data_start: u64,
    /// texts by name
    metadata: BTreeMap<String, String>,
}

impl Shard {
    /// A file with this header, and its entries by tensor name.
    fn new(path: &Path, bytes: Bytes, header: Header) -> (Self, BTreeMap<String, Entry>) {
        let shard = Self {
            path: path.into(),
            bytes,
            data_start: header.data_start,
            metadata: header.metadata,
        };
        (shard, header.entries)
    }

    /// `length` bytes from `start`.
    fn read(&self, start: u64, length: usize) -> Result<Vec<u8>> {
        match &self.bytes {
            Bytes::Memory(all) => Ok(all[start as usize..start as usize + length].to_vec()),
            Bytes::File(file) => {
                let mut bytes = vec![0; length];
                file.read_exact_at(&mut bytes, start)
                    .map_err(Error::io(&self.path, "read"))?;
                Ok(bytes)
            }
        }
    }
}

/// The tensors of one or several safetensors files. Opening reads headers only; tensors are read one at a
/// time.
#[derive(Debug)]
pub struct SafetensorFiles {
    path: PathBuf,
    shards: Vec<Shard>,
    /// name -> (shard, entry)
    tensors: BTreeMap<String, (usize, Entry)>,
    /// tensors of shards that an index lists and that are not there
    absent: BTreeMap<String, AbsentShard>,
}

/// A shard that is not there.
#[derive(Debug, Clone)]
struct AbsentShard {
    /// the index that lists it
    index: PathBuf,
    /// its file name
    shard: String,
}

impl SafetensorFiles {
    /// One file.
    ///
    /// # Errors
    /// `Io`, `Truncated`, `Header`, `Offsets`.
    pub fn open_file(path: &Path) -> Result<Self> {
        let (shard, entries) = open_shard(path)?;
        Ok(Self::of_one(shard, entries))
    }

    /// One file that must have this SHA-256, in lower-case hexadecimal. The file is read into memory, so that
    /// later reads use exactly the checked bytes.
    ///
    /// # Errors
    /// Those of [`SafetensorFiles::open_file`]; `Digest` when the SHA-256 differs.
    pub fn open_checked(path: &Path, sha256: &str) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(Error::io(path, "read"))?;
        let found = durable::sha256(&bytes);
        if found == sha256 {
            Self::from_memory(path, bytes.into())
        } else {
            Err(Error::Digest {
                path: path.into(),
                what: "sha256",
                expected: sha256.into(),
                found,
            })
        }
    }

    /// Bytes embedded in the program; `path` is their name in errors.
    ///
    /// # Errors
    /// `Truncated`, `Header`, `Offsets`.
    pub fn from_static(path: &Path, bytes: &'static [u8]) -> Result<Self> {
        Self::from_memory(path, bytes.into())
    }

    fn from_memory(path: &Path, bytes: Cow<'static, [u8]>) -> Result<Self> {
        let header = read_header(path, &mut &*bytes, bytes.len() as u64)?;
        let (shard, entries) = Shard::new(path, Bytes::Memory(bytes), header);
        Ok(Self::of_one(shard, entries))
    }

    fn of_one(shard: Shard, entries: BTreeMap<String, Entry>) -> Self {
        Self {
            path: shard.path.clone(),
            shards: vec![shard],
            tensors: entries
                .into_iter()
                .map(|(name, entry)| (name, (0, entry)))
                .collect(),
            absent: BTreeMap::new(),
        }
    }

    /// No files; `path` is the name in errors about missing tensors.
    pub(crate) fn none(path: &Path) -> Self {
        Self {
            path: path.into(),
            shards: Vec::new(),
            tensors: BTreeMap::new(),
            absent: BTreeMap::new(),
        }
    }

    /// Adds one file and makes these of its tensors available.
    ///
    /// # Errors
    /// Those of [`SafetensorFiles::open_file`]; `MissingTensor` when the file lacks one.
    pub(crate) fn add(&mut self, path: &Path, tensors: &[String]) -> Result<()> {
        let (shard, mut entries) = open_shard(path)?;
        for tensor in tensors {
            let entry = entries.remove(tensor).ok_or_else(|| Error::MissingTensor {
                path: path.into(),
                tensor: tensor.into(),
            })?;
            self.tensors.insert(tensor.clone(), (self.shards.len(), entry));
        }
        self.shards.push(shard);
        Ok(())
    }

    /// Notes a shard that an index lists and that is not there. An error names it when one of its tensors is
    /// needed.
    pub(crate) fn add_absent(&mut self, index: &Path, shard: &str, tensors: Vec<String>) {
        let absent = AbsentShard {
            index: index.into(),
            shard: shard.into(),
        };
        self.absent
            .extend(tensors.into_iter().map(|tensor| (tensor, absent.clone())));
    }

    fn entry(&self, name: &str) -> Result<(&Shard, &Entry)> {
        let (shard, entry) = self.tensors.get(name).ok_or_else(|| self.missing(name))?;
        Ok((&self.shards[*shard], entry))
    }

    /// A tensor's raw bytes and type.
    ///
    /// # Errors
    /// `MissingTensor`, `Io`.
    pub fn read_bytes(&self, name: &str) -> Result<(Dtype, Vec<u8>)> {
        let (shard, entry) = self.entry(name)?;
        let (begin, end) = entry.data_offsets;
        let bytes = shard.read(shard.data_start + begin, (end - begin) as usize)?;
        Ok((entry.dtype, bytes))
    }

    /// An array of exactly this number type and this number of axes.
    ///
    /// # Errors
    /// `MissingTensor`; `TensorType` for another number type; `Field` for another number of axes; `Io`.
    pub fn read<T: Element, D: Dimension>(&self, name: &str) -> Result<Array<T, D>> {
        let (dtype, bytes) = self.read_bytes(name)?;
        if dtype != T::DTYPE {
            return Err(self.wrong_type(name, format!("{:?}", T::DTYPE)));
        }
        self.shaped(name, T::read(&bytes))
    }

    /// Consecutive rows of a matrix of exactly this number type; the rest of the matrix is not read.
    ///
    /// # Errors
    /// Those of [`SafetensorFiles::read`]; `Field` when the matrix has fewer rows.
    #[expect(
        clippy::missing_panics_doc,
        reason = "the bytes that were read have this shape"
    )]
    pub fn read_rows<T: Element>(&self, name: &str, rows: Range<usize>) -> Result<Array2<T>> {
        let (shard, entry) = self.entry(name)?;
        let [all, columns] = entry.shape[..] else {
            return Err(self.wrong_shape(name, "2 axes".into()));
        };
        if entry.dtype != T::DTYPE {
            return Err(self.wrong_type(name, format!("{:?}", T::DTYPE)));
        }
        if rows.start > rows.end || rows.end > all {
            return Err(self.wrong_shape(name, format!("at least {} rows", rows.end)));
        }
        let row = columns * size_of::<T>();
        let start = shard.data_start + entry.data_offsets.0 + (rows.start * row) as u64;
        let values = T::read(&shard.read(start, rows.len() * row)?);
        Ok(Array2::from_shape_vec((rows.len(), columns), values).expect("so many bytes were read"))
    }

    /// A text of the metadata, by its name.
    pub fn metadata(&self, name: &str) -> Option<&str> {
        let mut texts = self.shards.iter().filter_map(|shard| shard.metadata.get(name));
        texts.next().map(String::as_str)
    }

    /// An array of any number type, with this number of axes. All types convert to f64 exactly, except whole
    /// numbers beyond 2^53, which are rounded.
    ///
    /// # Errors
    /// `MissingTensor`; `TensorType` for types other than numbers of 8 to 64 bits; `Field` for another number
    /// of axes; `Io`.
    pub fn read_as_f64<D: Dimension>(&self, name: &str) -> Result<Array<f64, D>> {
        fn widened<T: Element>(bytes: &[u8], widen: fn(T) -> f64) -> Vec<f64> {
            T::read(bytes).into_iter().map(widen).collect()
        }
        let (dtype, bytes) = self.read_bytes(name)?;
        let values = match dtype {
            Dtype::F64 => f64::read(&bytes),
            Dtype::F32 => widened::<f32>(&bytes, f64::from),
            Dtype::F16 => widened(&bytes, f16::to_f64),
            Dtype::BF16 => widened(&bytes, bf16::to_f64),
            Dtype::U8 => widened::<u8>(&bytes, f64::from),
            Dtype::U16 => widened::<u16>(&bytes, f64::from),
            Dtype::U32 => widened::<u32>(&bytes, f64::from),
            Dtype::U64 => widened::<u64>(&bytes, |value| value as f64),
            Dtype::I8 => widened::<i8>(&bytes, f64::from),
            Dtype::I16 => widened::<i16>(&bytes, f64::from),
            Dtype::I32 => widened::<i32>(&bytes, f64::from),
            Dtype::I64 => widened::<i64>(&bytes, |value| value as f64),
            _ => return Err(self.wrong_type(name, "a number of 8 to 64 bits".into())),
        };
        self.shaped(name, values)
    }

    /// A tensor's numbers in its shape.
    fn shaped<T, D: Dimension>(&self, name: &str, values: Vec<T>) -> Result<Array<T, D>> {
        let (_, entry) = self.entry(name)?;
        // an empty tensor may have sides too large for memory
        let array = ArrayD::from_shape_vec(entry.shape.as_slice(), values)
            .map_err(|_| self.wrong_shape(name, "a shape that fits in memory".into()))?;
        array.into_dimensionality().map_err(|_| {
            let axes = D::NDIM.map_or_else(|| "any number of axes".into(), |axes| format!("{axes} axes"));
            self.wrong_shape(name, axes)
        })
    }

    fn wrong_shape(&self, name: &str, expected: String) -> Error {
        match self.entry(name) {
            Ok((shard, entry)) => Error::Field {
                path: shard.path.clone(),
                field: name.into(),
                expected,
                found: format!("shape {:?}", entry.shape),
            },
            Err(missing) => missing,
        }
    }

    fn wrong_type(&self, name: &str, expected: String) -> Error {
        match self.entry(name) {
            Ok((shard, entry)) => Error::TensorType {
                path: shard.path.clone(),
                tensor: name.into(),
                expected,
                found: format!("{:?}", entry.dtype),
            },
            Err(missing) => missing,
        }
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

    fn missing(&self, name: &str) -> Error {
        match self.absent.get(name) {
            Some(AbsentShard { index, shard }) => Error::Shard {
                index: index.clone(),
                shard: shard.clone(),
                reason: format!("expected the file, which holds tensor `{name}`, found none of that name"),
            },
            None => Error::MissingTensor {
                path: self.path.clone(),
                tensor: name.into(),
            },
        }
    }

    fn read_floats(&self, name: &str) -> Result<Vec<f32>> {
        let (dtype, bytes) = self.read_bytes(name)?;
        let values: Vec<f32> = match dtype {
            Dtype::F16 => f16::read(&bytes).to_f32_vec(),
            Dtype::BF16 => bf16::read(&bytes).to_f32_vec(),
            Dtype::F32 => f32::read(&bytes),
            Dtype::F64 => f64::read(&bytes).into_iter().map(|x| x as f32).collect(),
            _ => return Err(self.wrong_type(name, "F16, BF16, F32 or F64".into())),
        };
        refuse_not_finite(&self.entry(name)?.0.path, name, &values)?;
        Ok(values)
    }

    fn read_integers(&self, name: &str) -> Result<Vec<i64>> {
        fn widened<T: Element + Into<i64>>(bytes: &[u8]) -> Vec<i64> {
            T::read(bytes).into_iter().map(Into::into).collect()
        }
        let (dtype, bytes) = self.read_bytes(name)?;
        Ok(match dtype {
            Dtype::I8 => widened::<i8>(&bytes),
            Dtype::U8 => widened::<u8>(&bytes),
            Dtype::I16 => widened::<i16>(&bytes),
            Dtype::U16 => widened::<u16>(&bytes),
            Dtype::I32 => widened::<i32>(&bytes),
            Dtype::I64 => i64::read(&bytes),
            _ => return Err(self.wrong_type(name, "I8, U8, I16, U16, I32 or I64".into())),
        })
    }
}

fn open_shard(path: &Path) -> Result<(Shard, BTreeMap<String, Entry>)> {
    let mut file = File::open(path).map_err(Error::io(path, "open"))?;
    let length = file.metadata().map_err(Error::io(path, "read"))?.len();
    let header = read_header(path, &mut file, length)?;
    Ok(Shard::new(path, Bytes::File(file), header))
}
