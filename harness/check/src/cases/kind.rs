/// The kind of case of an operation: it decides the fields of the id and the data drawn from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// a quantized matrix and rows of x
    Product,
    /// rows of numbers
    Samples,
    /// a weight, a Hessian and a quantized matrix; in the id these fields follow the values
    Layer(&'static [Field]),
    /// a small Llama
    Llama,
}

/// A field that only some operations use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// the kind of Hessian
    Inputs,
    /// number of hypotheses kept
    Beam,
    /// what a step of beam search chooses
    Search,
    /// the method of codebook update
    Update,
    /// origin of the first codes
    Start,
}
