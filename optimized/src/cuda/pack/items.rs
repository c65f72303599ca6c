//! Items of large codebooks, sorted by slice: 24 bits each, which kernels unpack by byte permutes.

/// Bits of an item: a code within its slice, and its row or its position in the window.
pub(super) const ITEM_BITS: usize = 24;

/// The items of one chunk, [step][lane], as three loads a lane: [3][lane] of 8 bytes for eight steps, of 4
/// bytes for four.
pub(super) fn append_chunk(words: &mut Vec<u32>, items: &[u32]) {
    let (base, steps) = (words.len(), items.len() / 32);
    let load_words = steps / 4;
    words.resize(base + 3 * 32 * load_words, 0);
    for lane in 0..32 {
        for step in 0..steps {
            let (bit, item) = (step * ITEM_BITS, u64::from(items[step * 32 + lane]));
            let shifted = item << (bit % 32);
            let mut put = |word: usize, bits: u32| {
                words[base + (word / load_words * 32 + lane) * load_words + word % load_words] |= bits;
            };
            put(bit / 32, shifted as u32);
            if shifted >> 32 != 0 {
                put(bit / 32 + 1, (shifted >> 32) as u32);
            }
        }
    }
}
