use serde::{Deserialize, Serialize};

/// A linear layer's index in [`BlockSpec::linears`](crate::BlockSpec::linears).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LayerId(pub u16);

impl LayerId {
    /// The index as a number.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}
