//! The merges of SentencePiece's BPE. Its files do not list them; they follow from the scores: of all
//! neighbouring pairs, the pair whose union has the highest score is joined first.

use std::collections::HashMap;

/// All ways to join two tokens into one, best score first. `joined` says which tokens may result. Ties
/// follow the order of transformers' own conversion of SentencePiece files (longer parts first), so that both
/// give the same tokens.
pub(crate) fn merges<'a>(
    tokens: &[&'a str],
    ids: &HashMap<&str, usize>,
    scores: &[f64],
    joined: impl Fn(usize) -> bool,
) -> Vec<(&'a str, &'a str)> {
    let mut merges = Vec::new();
    for (id, token) in tokens.iter().enumerate() {
        if !joined(id) {
            continue;
        }
        let mut of_token: Vec<_> = token
            .char_indices()
            .skip(1)
            .filter_map(|(cut, _)| {
                let (left, right) = token.split_at(cut);
                let key = (*ids.get(left)?, *ids.get(right)?);
                Some((key, scores[id], left, right))
            })
            .collect();
        of_token.sort_by_key(|(key, ..)| *key);
        merges.extend(
            of_token
                .into_iter()
                .map(|(_, score, left, right)| (score, left, right)),
        );
    }
    let length = |text: &str| text.chars().count();
    merges.sort_by(|a, b| {
        let by_score = b.0.total_cmp(&a.0);
        by_score
            .then_with(|| length(b.1).cmp(&length(a.1)))
            .then_with(|| length(b.2).cmp(&length(a.2)))
    });
    merges.into_iter().map(|(_, left, right)| (left, right)).collect()
}
