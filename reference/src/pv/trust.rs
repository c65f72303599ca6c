/// How many of the changes are kept, from the front: those before which the norm of all changes so far is
/// below `bound`, so one change more than stays below it, and at least one.
///
/// `changes` are the squared norms of the groups' changes, in the order of priority. The last one kept may
/// exceed the bound, so that a step always changes something (`code_trust_ratio` of the official code).
pub fn trusted(changes: &[f64], bound: f64) -> usize {
    let mut squares = 0.0;
    let below = changes.iter().take_while(|&&change| {
        squares += change;
        f64::sqrt(squares) < bound
    });
    (below.count() + 1).min(changes.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_change_more_than_the_bound_allows_is_kept() {
        let changes = [9.0, 16.0, 11.0, 0.0];
        // norms so far: 3, 5, 6, 6
        assert_eq!(trusted(&changes, 1.0), 1);
        assert_eq!(trusted(&changes, 3.0), 1);
        assert_eq!(trusted(&changes, 3.5), 2);
        assert_eq!(trusted(&changes, 5.5), 3);
        assert_eq!(trusted(&changes, 7.0), 4);
        assert_eq!(trusted(&[], 1.0), 0);
    }
}
