/// Number of rows of a window of `length` tokens whose predictions are kept from position `first`. The last
/// position predicts a token beyond the window.
pub fn rows_of(length: usize, first: usize) -> usize {
    length.saturating_sub(first.saturating_add(1))
}
