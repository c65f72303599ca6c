/// How one token is computed: each rung of the ladder adds something to the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rung {
    /// the first kernel of every operation's ladder, one launch after the other
    Plain,
    /// the kernels that the table of measurements chooses, and the context split over clusters
    Dispatched,
    /// a kernel runs its set-up while the previous one ends
    Overlapped,
    /// layers that read the same input share a launch
    Joined,
}
