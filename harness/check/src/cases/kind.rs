/// Which kind of case an operation has: what its id says, and what is drawn from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// a quantized matrix and rows of x
    Product,
    /// rows of numbers
    Samples,
    /// a weight, a Hessian and a quantized matrix; the id has these fields behind the values
    Layer(&'static [Field]),
    /// a small Llama
    Llama,
}

/// A field that only some operations use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// what the Hessian is like
    Inputs,
    /// hypotheses kept
    Beam,
    /// how codebooks are updated
    Update,
    /// first codes
    Start,
}
