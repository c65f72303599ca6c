//! Sequences that begin alike, cut so that a beginning is read once.

/// Shortest beginning that is worth a piece of its own.
const LEAST: usize = 4;

/// Sequences cut into pieces.
#[derive(Debug, PartialEq)]
pub(super) struct Pieces<'a> {
    /// the pieces; a shared beginning stands before those that continue it
    pub(super) tokens: Vec<&'a [u32]>,
    /// for each piece the piece that it continues
    pub(super) stems: Vec<Option<usize>>,
    /// for each sequence the piece that ends it
    pub(super) ends: Vec<usize>,
}

/// Cuts sequences at beginnings that neighbours share: one cut a sequence at most, and none in its last
/// `kept` tokens, which have results of their own.
///
/// A group grows while that saves tokens. It shares the beginning that all its members have in common.
pub(super) fn pieces<'a>(sequences: &[&'a [u32]], kept: &[usize]) -> Pieces<'a> {
    let mut pieces = Pieces {
        tokens: Vec::new(),
        stems: Vec::new(),
        ends: Vec::new(),
    };
    let room = |index: usize| sequences[index].len().saturating_sub(kept[index]);
    let mut first = 0;
    while first < sequences.len() {
        let mut common = room(first);
        let mut end = first + 1;
        while end < sequences.len() {
            let (a, b) = (sequences[first], sequences[end]);
            let equal = a.iter().zip(b).take_while(|(a, b)| a == b).count();
            let shorter = common.min(equal).min(room(end));
            let (members, saved) = (end - first, (end - first - 1) * common);
            if shorter < LEAST || members * shorter < saved {
                break;
            }
            common = shorter;
            end += 1;
        }
        let shared = end - first > 1;
        let stem = shared.then_some(pieces.tokens.len());
        if shared {
            pieces.tokens.push(&sequences[first][..common]);
            pieces.stems.push(None);
        }
        for sequence in &sequences[first..end] {
            pieces.ends.push(pieces.tokens.len());
            pieces.tokens.push(&sequence[if shared { common } else { 0 }..]);
            pieces.stems.push(stem);
        }
        first = end;
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_share_their_beginning() {
        let sequences: [&[u32]; 6] = [
            &[1, 2, 3, 4, 5, 6],
            &[1, 2, 3, 4, 5, 7, 8],
            &[1, 2, 3, 4, 5],
            &[9, 9],
            &[3, 3, 3, 3, 3, 3],
            &[3, 3, 3, 4],
        ];
        let cut = pieces(&sequences, &[1; 6]);
        let tokens: [&[u32]; 7] = [
            &[1, 2, 3, 4],
            &[5, 6],
            &[5, 7, 8],
            &[5],
            &[9, 9],
            &[3, 3, 3, 3, 3, 3],
            &[3, 3, 3, 4],
        ];
        assert_eq!(cut.tokens, tokens);
        assert_eq!(cut.stems, [None, Some(0), Some(0), Some(0), None, None, None]);
        assert_eq!(cut.ends, [1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn what_has_results_of_its_own_is_not_shared() {
        let sequences: [&[u32]; 2] = [&[1, 2, 3, 4, 5, 6], &[1, 2, 3, 4, 5, 6]];
        let cut = pieces(&sequences, &[2, 1]);
        assert_eq!(cut.tokens, [&[1, 2, 3, 4][..], &[5, 6], &[5, 6]]);
        assert_eq!(pieces(&sequences, &[3, 1]).tokens, sequences);
        assert_eq!(pieces(&[], &[]).tokens, [&[0u32; 0][..]; 0]);
    }

    #[test]
    fn a_short_neighbour_does_not_shorten_a_good_group() {
        let long: Vec<u32> = (0..40).collect();
        let mut other = long.clone();
        other[39] = 99;
        let mut short = long[..12].to_vec();
        short[11] = 99;
        // With the third, 2 x 11 tokens are saved instead of 39.
        let cut = pieces(&[&long, &other, &short], &[1; 3]);
        assert_eq!(cut.stems, [None, Some(0), Some(0), None]);
        assert_eq!(cut.tokens[0].len(), 39);
    }
}
