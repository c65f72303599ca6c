/// Rows of the lower triangle of a square matrix of `size`, diagonal included, with room for `more` numbers.
pub(crate) fn lower_triangle(square: &[f64], size: usize, more: usize) -> Vec<f64> {
    let mut rows = Vec::with_capacity(size * (size + 1) / 2 + more);
    for (row, numbers) in square.chunks_exact(size.max(1)).enumerate() {
        rows.extend_from_slice(&numbers[..=row]);
    }
    rows
}

/// The rows of a lower triangle of `size`, as pairs of the row in a square matrix and the numbers.
///
/// # Panics
/// When there are fewer numbers than a triangle has.
pub(crate) fn triangle_rows(triangle: &[f64], size: usize) -> impl Iterator<Item = (usize, &[f64])> {
    (0..size).map(move |row| (row, &triangle[row * (row + 1) / 2..(row + 1) * (row + 2) / 2]))
}

/// Numbers in a lower triangle of `size`.
pub(crate) fn triangle_length(size: usize) -> usize {
    size * (size + 1) / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_triangle_is_half_of_a_square_and_comes_back() {
        for size in 0..5 {
            let square: Vec<f64> = (0..size * size).map(|place| place as f64).collect();
            let triangle = lower_triangle(&square, size, 1);
            assert_eq!(triangle.len(), triangle_length(size));
            let mut count = 0;
            for (row, numbers) in triangle_rows(&triangle, size) {
                assert_eq!(numbers, &square[row * size..][..=row]);
                count += 1;
            }
            assert_eq!(count, size);
        }
    }
}
