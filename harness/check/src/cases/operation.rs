use super::words::words;

words! {
    /// The operations of the project (design: one id each, in tests, benches, command line and documentation
    /// alike).
    Operation, "operation" {
        /// codes, codebooks and scales to the dense weight
        Decode = "decode",
        /// decode fused with a product with one x
        Matvec = "matvec",
        /// the same for several rows of x
        Matmul = "matmul",
        /// mean of x xT over samples
        Hessian = "hessian",
        /// Lloyd's iterations from given centroids
        Kmeans = "kmeans",
        /// first codes and codebooks by residual k-means
        ResidualInit = "residual_init",
        /// the same, refined under the H-metric
        EmInit = "em_init",
        /// codes for fixed codebooks
        BeamSearch = "beam_search",
        /// codebooks and scales for fixed codes
        CodebookUpdate = "codebook_update",
        /// the alternation for one layer
        LayerQuantize = "layer_quantize",
        /// a transformer block over sequences
        BlockForward = "block_forward",
        /// its gradients
        BlockBackward = "block_backward",
        /// codebooks, scales and norms tuned on a block's outputs
        BlockFinetune = "block_finetune",
        /// tokens to logits
        ModelForward = "model_forward",
        /// tokens to losses
        Perplexity = "perplexity",
    }
}
