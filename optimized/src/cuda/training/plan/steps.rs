//! Launch plans of an optimizer's step.

use aqlm_kernels::defines::lamb_moments::k1_tiles::TILE;
use aqlm_vocabulary::{Optimizer, StepRule};

use super::{Plan, THREADS, elementwise, plan, words};

/// Threads of the block that adds up the squares of all tiles.
const RATIO_THREADS: usize = 512;

/// How parameters and moments are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// in f64 instead of f32
    pub wide: bool,
    /// without first moments, for they are the gradient
    pub lean: bool,
}

impl Kept {
    fn defines(self) -> Vec<(&'static str, usize)> {
        vec![
            ("AQLM_WIDE", usize::from(self.wide)),
            ("AQLM_LEAN", usize::from(self.lean)),
        ]
    }
}

/// The kernels of one step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Pointers: values, gradient, first, second.
    Adam(Plan),
    /// in this order
    Lamb {
        /// Pointers: values, gradient, first, second, squares.
        moments: Plan,
        /// Pointers: squares, ratio.
        ratio: Plan,
        /// Pointers: values, gradient, first, second, ratio.
        update: Plan,
        /// the numbers of squares
        squares: usize,
    },
}

/// The `step`th step, from 1, of `count` parameters with learning rate `lr`.
///
/// Every rule has the form p -= c m / (sqrt(a v) + eps): PyTorch's Adam with a = 1 / (1 - beta2^t) and c = lr
/// / (1 - beta1^t), the official one with a = 1 and c as [`StepRule`] says.
pub fn step(count: usize, optimizer: &Optimizer, lr: f64, step: u32, kept: Kept) -> Step {
    // Past this many steps a decay's power is 0, and more steps change nothing.
    let step = i32::try_from(step).unwrap_or(i32::MAX);
    let decay = &optimizer.decay;
    let [rest1, rest2] = [decay.beta1, decay.beta2].map(|beta| 1.0 - beta.powi(step));
    let (correction, rate, lamb) = match optimizer.rule {
        StepRule::Adam => (1.0 / rest2, lr / rest1, false),
        StepRule::Official { lamb, debias } => {
            (1.0, if debias { lr * rest2.sqrt() / rest1 } else { lr }, lamb)
        }
    };
    let with = |mut plan: Plan, values: &[f64]| {
        plan.defines = kept.defines();
        plan.integers
            .extend(values.iter().flat_map(|&value| words(value)));
        plan
    };
    if !lamb {
        return Step::Adam(with(
            elementwise("adam_step/k1_elementwise", count, &[count]),
            &[rate, correction, decay.beta1, decay.beta2, decay.eps],
        ));
    }
    let tiles = count.div_ceil(TILE);
    let mut moments = with(
        plan("lamb_moments/k1_tiles", tiles, &[count]),
        &[decay.beta1, decay.beta2, decay.eps],
    );
    moments.shared_bytes = THREADS * size_of::<f64>();
    let ratio = Plan {
        block: RATIO_THREADS as u32,
        shared_bytes: RATIO_THREADS * size_of::<f64>(),
        ..plan("lamb_ratio/k1_one_block", 1, &[tiles])
    };
    Step::Lamb {
        moments,
        ratio,
        update: with(
            elementwise("lamb_move/k1_elementwise", count, &[count]),
            &[rate, decay.eps],
        ),
        squares: 2 * tiles,
    }
}
