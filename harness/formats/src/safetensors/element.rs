//! Number types, and arrays prepared for writing.

use ::safetensors::Dtype;
use half::{bf16, f16};
use ndarray::{ArrayBase, Data, Dimension};

/// A number type of safetensors files.
pub trait Element: Copy {
    /// its type in a file's header
    const DTYPE: Dtype;

    /// Appends the number's little-endian bytes.
    fn append(self, bytes: &mut Vec<u8>);

    /// Numbers from little-endian bytes; an incomplete last number is ignored.
    fn read(bytes: &[u8]) -> Vec<Self>;
}

macro_rules! elements {
    ($($number:ty => $dtype:ident),* $(,)?) => {$(
        impl Element for $number {
            const DTYPE: Dtype = Dtype::$dtype;

            fn append(self, bytes: &mut Vec<u8>) {
                bytes.extend(self.to_le_bytes());
            }

            fn read(bytes: &[u8]) -> Vec<Self> {
                let (chunks, _) = bytes.as_chunks();
                chunks.iter().map(|&chunk| Self::from_le_bytes(chunk)).collect()
            }
        }
    )*};
}

elements! {
    f64 => F64, f32 => F32, f16 => F16, bf16 => BF16,
    u8 => U8, u16 => U16, u32 => U32, u64 => U64,
    i8 => I8, i16 => I16, i32 => I32, i64 => I64,
}

/// A named array prepared for writing.
#[derive(Debug, Clone, PartialEq)]
pub struct NewTensor {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    /// little-endian, row-major
    pub(crate) bytes: Vec<u8>,
}

impl NewTensor {
    /// An array with this shape and these row-major numbers.
    ///
    /// # Panics
    /// When the number of values does not match the shape.
    pub fn new<T: Element>(
        name: impl Into<String>,
        shape: &[usize],
        values: impl IntoIterator<Item = T>,
    ) -> Self {
        let name = name.into();
        let places: usize = shape.iter().product();
        let mut bytes = Vec::with_capacity(places * size_of::<T>());
        for value in values {
            value.append(&mut bytes);
        }
        assert_eq!(
            bytes.len(),
            places * size_of::<T>(),
            "bytes of tensor `{name}` of shape {shape:?}"
        );
        Self {
            name,
            dtype: T::DTYPE,
            shape: shape.to_vec(),
            bytes,
        }
    }

    /// An array's numbers, with its shape.
    pub fn of<T: Element, S: Data<Elem = T>, D: Dimension>(
        name: impl Into<String>,
        array: &ArrayBase<S, D>,
    ) -> Self {
        Self::new(name, array.shape(), array.iter().copied())
    }
}
