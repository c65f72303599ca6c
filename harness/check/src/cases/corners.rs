use super::{Case, Operation};
use aqlm_formats::Result;

/// Cases that are always checked: each is an edge that some implementation has or could have, and the schemes
/// that have fast paths of their own.
///
/// # Errors
/// `Argument` for an id that does not parse, which this module's tests rule out.
pub fn corners(operation: Operation) -> Result<Vec<Case>> {
    ids(operation)
        .iter()
        .map(|id| format!("{operation}-{id}").parse())
        .collect()
}

fn ids(operation: Operation) -> &'static [&'static str] {
    match operation {
        Operation::Decode | Operation::Matvec | Operation::Matmul => &PRODUCT,
        Operation::Hessian => &HESSIAN,
        Operation::Kmeans => &KMEANS,
        Operation::ResidualInit => &RESIDUAL_INIT,
        Operation::EmInit => &EM_INIT,
        Operation::BeamSearch => &BEAM_SEARCH,
        Operation::CodebookUpdate => &CODEBOOK_UPDATE,
        Operation::LayerQuantize => &LAYER_QUANTIZE,
        Operation::BlockForward
        | Operation::BlockBackward
        | Operation::BlockFinetune
        | Operation::ModelForward
        | Operation::Perplexity => &LLAMA,
    }
}

const PRODUCT: [&str; 14] = [
    // the paper's schemes, around the tile of 64 rows and the direct form's four
    "2x8g8-64x64-b1-dyadic-s1",
    "2x8g8-65x72-b3-outliers-s2",
    "1x8g8-129x136-b2-dyadic-s3",
    "4x8g8-63x56-b1-outliers-s4",
    "3x8g8-5x136-b5-repeated-s5",
    "1x16g8-70x24-b1-dyadic-s6",
    "1x16g16-9x48-b2-outliers-s7",
    "1x15g8-4x40-b1-zerorows-s8",
    "1x12g8-66x40-b2-dyadic-s9",
    "2x12g8-3x40-b6-equalrows-s10",
    // one element of everything; numbers below the smallest normal one; groups over several rows
    "1x1g4-1x4-b1-outliers-s11",
    "2x8g8-64x64-b2-denormal-s12",
    "2x5g20o3-390x40-b1-dyadic-s13",
    // more decoded rows than matmul's tile of 1 MiB
    "2x6g8-530x512-b5-outliers-s14",
];

const HESSIAN: [&str; 5] = [
    "1x3-k1-dyadic-s1",
    // more samples than are summed in f32, more inputs than a tile of 192
    "2500x33-k2-outliers-s2",
    "300x400-k3-dyadic-s3",
    "70x40-k4-denormal-s4",
    "60x1-k1-equalrows-s5",
];

const KMEANS: [&str; 6] = [
    "400x8-k16-outliers-s1",
    // fewer points than clusters
    "5x8-k32-outliers-s2",
    "300x3-k10-dyadic-s3",
    "200x8-k16-repeated-s4",
    "50x4-k4-equalrows-s5",
    "1x1-k1-dyadic-s6",
];

const RESIDUAL_INIT: [&str; 4] = [
    "2x5g8-96x64-outliers-s1",
    "1x6g4-64x48-zerorows-s2",
    "2x4g4o2-64x32-equalrows-s3",
    "1x1g4-1x4-dyadic-s4",
];

const EM_INIT: [&str; 5] = [
    "2x5g8-96x64-outliers-correlated-s1",
    "1x6g4-64x48-zerorows-deficient-s2",
    "2x4g4o2-64x32-outliers-dead-s3",
    "2x3g8-40x32-outliers-ill-s4",
    "1x1g4-1x4-dyadic-white-s5",
];

const BEAM_SEARCH: [&str; 10] = [
    // several blocks of lazy updates, more output groups than a task
    "2x4g4-70x600-outliers-correlated-b1-s1",
    "2x4g4-20x300-outliers-correlated-b3-s2",
    "2x8g8-66x144-outliers-correlated-b1-s3",
    "3x3g4o2-20x24-outliers-ill-b2-s4",
    "2x3g4-9x16-dyadic-white-b1-s5",
    "2x3g4-9x16-dyadic-white-b4-s6",
    "2x4g8-30x32-repeated-deficient-b1-s7",
    "2x4g8-30x32-repeated-deficient-b3-s8",
    // small enough for the exhaustive optimum
    "2x2g4-3x8-outliers-correlated-b16-s9",
    "1x1g4-1x4-dyadic-white-b1-s10",
];

const CODEBOOK_UPDATE: [&str; 12] = [
    "2x4g4-64x48-outliers-correlated-closed-s1",
    "1x5g8-96x64-outliers-correlated-gradients-s2",
    "2x3g4o2-40x32-outliers-correlated-adam-s3",
    "3x6g8-100x64-outliers-correlated-closed-s4",
    "2x4g4-64x48-outliers-deficient-closed-s5",
    "2x4g4-64x48-repeated-dead-gradients-s6",
    "2x3g8-20x48-zerorows-ill-closed-s7",
    "1x1g4-1x4-dyadic-white-closed-s8",
    // fits that f32 cannot follow: a rank-deficient H that rounding makes indefinite, many digits below the
    // start, ill-conditioned, all but exact at the first step
    "2x5g11-27x11-outliers-deficient-closed-s887",
    "4x4g4o3-15x32-denormal-correlated-closed-s240",
    "2x5g16-30x64-zerorows-ill-closed-s836",
    "1x3g8-33x8-equalrows-white-closed-s966",
];

const LAYER_QUANTIZE: [&str; 6] = [
    "2x5g8-96x64-outliers-correlated-b1-closed-residual-s1",
    "2x5g8-96x64-outliers-correlated-b3-closed-em-s2",
    "1x6g8-96x64-outliers-correlated-b2-gradients-em-s3",
    "2x4g4o2-64x48-outliers-correlated-b1-adam-residual-s4",
    "2x3g8-40x40-zerorows-dead-b2-closed-em-s5",
    "1x1g4-1x4-dyadic-white-b1-closed-residual-s6",
];

const LLAMA: [&str; 5] = [
    // longer than a span of queries; a window shorter than the sequence; more heads than keys; single tokens
    // and heads
    "40x72-k4-q1-d12-n3-t70-w0-nobias-plain-2x3g4o2-s1",
    "40x72-k2-q2-d12-n2-t70-w9-bias-linear-2x3g4o2-s2",
    "40x72-k1-q6-d12-n1-t37-w75-nobias-llama3-1x4g4-s3",
    "4x2-k1-q1-d4-n1-t2-w0-nobias-plain-1x1g4-s4",
    "36x22-k2-q1-d8-n4-t5-w1-bias-plain-3x2g4-s5",
];
