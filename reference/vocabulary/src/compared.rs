/// Two next-token distributions at one position, compared. Losses and divergence are in nats.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ComparedPosition {
    /// KL(dense || model)
    pub kl: f64,
    /// negative log-likelihood of the text's token in the dense model
    pub dense_loss: f64,
    /// the same in the model
    pub loss: f64,
    /// largest probability of the dense model
    pub dense_top: f64,
    /// whether both models have the same most likely token; of equal ones the smallest id counts
    pub same_top: bool,
}
