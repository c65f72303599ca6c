/// Minimum cost of an operation, for a roofline.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cost {
    /// bytes that must move: inputs read once and results written once, in f32, with codes at their own width
    pub bytes: usize,
    /// dense products of the same shapes, [rows, inputs, outputs] each
    pub products: Vec<[usize; 3]>,
}

impl Cost {
    /// Multiplications and additions of the products.
    pub fn operations(&self) -> usize {
        let of = |[rows, inputs, outputs]: &[usize; 3]| 2 * rows * inputs * outputs;
        self.products.iter().map(of).sum()
    }
}
