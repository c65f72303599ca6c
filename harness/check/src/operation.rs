//! The operations: their names and words. Everything else that the check knows of an operation is in its file
//! in `ops/`.

use serde::{Serialize, Serializer};

use crate::cases::words;

/// The list of operations, passed to a macro: name, file and word, description.
// Drawn cases depend on an operation's position in this list, so new operations go to the end.
macro_rules! operations {
    ($macro:ident) => {
        $macro! {
            /// codes, codebooks and scales to the dense weight
            Decode: decode,
            /// decode fused with a product with one x
            Matvec: matvec,
            /// the same for several rows of x
            Matmul: matmul,
            /// mean of x xT over samples
            Hessian: hessian,
            /// Lloyd's iterations from given centroids
            Kmeans: kmeans,
            /// first codes and codebooks by residual k-means
            ResidualInit: residual_init,
            /// the same, refined under the H-metric
            EmInit: em_init,
            /// codes for fixed codebooks
            BeamSearch: beam_search,
            /// codebooks and scales for fixed codes
            CodebookUpdate: codebook_update,
            /// the alternation for one layer
            LayerQuantize: layer_quantize,
            /// a transformer block over sequences
            BlockForward: block_forward,
            /// its gradients
            BlockBackward: block_backward,
            /// codebooks, scales and norms tuned on a block's outputs
            BlockFinetune: block_finetune,
            /// tokens to logits
            ModelForward: model_forward,
            /// tokens to losses
            Perplexity: perplexity,
            /// losses, gradients of all parameters, and steps of Adam of a whole model
            ModelTune: model_tune,
            /// first codes and codebooks by error feedback: a tree search with exact partial losses
            FeedbackInit: feedback_init,
            /// the alternation for one layer under the two-sided objective
            TwoSided: two_sided,
            /// sums of G G^T and G^T G over gradients of sequences, for every layer of a model
            GradientSums: gradient_sums,
        }
    };
}
pub(crate) use operations;

macro_rules! names {
    ($($(#[$doc:meta])+ $name:ident: $word:ident,)+) => {
        words! {
            /// The operations of the project: one id each, in tests, benches, command line and documentation
            /// alike.
            Operation, "operation" {
                $($(#[$doc])+ $name = stringify!($word),)+
            }
        }
    };
}
operations!(names);

impl Serialize for Operation {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_str(self.word())
    }
}
