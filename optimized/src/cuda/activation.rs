use cudarc::driver::{DeviceRepr, ValidAsZeroBits};
use half::{bf16, f16};

/// Formats of x and y.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Activations {
    /// IEEE half precision
    #[default]
    F16,
    /// the upper half of an f32
    Bf16,
}

/// A number of x or y.
pub trait Activation: DeviceRepr + ValidAsZeroBits + Copy + PartialEq + Send + Sync + 'static {
    /// Which format it is.
    const FORMAT: Activations;
    /// NaN, which poisons outputs before they are checked.
    const NAN: Self;

    /// Its bytes, for comparisons in which NaN equals itself.
    fn bits(self) -> u16;
}

macro_rules! activation {
    ($number:ty, $format:ident) => {
        impl Activation for $number {
            const FORMAT: Activations = Activations::$format;
            const NAN: Self = Self::NAN;

            fn bits(self) -> u16 {
                self.to_bits()
            }
        }
    };
}

activation!(f16, F16);
activation!(bf16, Bf16);
