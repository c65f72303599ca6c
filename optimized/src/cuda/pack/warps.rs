/// The fewest warps, at most `most`, that finish `tasks` in as few rounds as `most` warps would.
pub(super) fn even_warps(tasks: usize, most: usize) -> usize {
    let rounds = tasks.div_ceil(most).max(1);
    tasks.div_ceil(rounds).max(1)
}
