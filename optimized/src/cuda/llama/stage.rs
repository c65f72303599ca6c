/// The stages of one token, in order; those from `Norm` to `Down` run once a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    /// the token's row of the embedding
    Embed,
    /// the residual stream and its norms
    Norm,
    /// queries, keys and values
    Qkv,
    /// rotation, cache and attention
    Attention,
    /// attention's output layer
    Output,
    /// the router's scores and the choice of experts
    Router,
    /// gate and up
    GateUp,
    /// SwiGLU or another gate
    Swiglu,
    /// down
    Down,
    /// the logits
    Head,
    /// the choice of the next token
    Argmax,
}

impl Stage {
    /// All stages, in order.
    pub const ALL: [Self; 11] = [
        Self::Embed,
        Self::Norm,
        Self::Qkv,
        Self::Attention,
        Self::Output,
        Self::Router,
        Self::GateUp,
        Self::Swiglu,
        Self::Down,
        Self::Head,
        Self::Argmax,
    ];
}
