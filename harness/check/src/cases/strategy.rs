use aqlm_vocabulary::Scheme;
use proptest::prelude::*;
use proptest::sample::select;

use super::layer::{Inputs, Starting, Updating};
use super::llama::{Biases, Positions};
use super::{Case, LayerCase, LlamaCase, Operation, Problem, ProductCase, SamplesCase, Values};

/// Valid cases of an operation, over all of M 1..=8, B 1..=16, group sizes 4..=64, out_group_size 1..=4, with
/// ragged edges and single rows and columns. They simplify towards few small groups of dyadic numbers.
pub fn cases(operation: Operation) -> BoxedStrategy<Case> {
    let problem = match operation {
        Operation::Decode | Operation::Matvec | Operation::Matmul => product(operation).boxed(),
        Operation::Hessian => samples(200, 90, 4).boxed(),
        Operation::Kmeans => samples(400, 16, 32).boxed(),
        Operation::ResidualInit
        | Operation::EmInit
        | Operation::BeamSearch
        | Operation::CodebookUpdate
        | Operation::LayerQuantize => layer(operation).boxed(),
        Operation::BlockForward
        | Operation::BlockBackward
        | Operation::BlockFinetune
        | Operation::ModelForward
        | Operation::Perplexity => llama(operation).boxed(),
    };
    (problem, 0u64..1000)
        .prop_map(move |(problem, seed)| Case {
            operation,
            problem,
            seed,
        })
        .boxed()
}

/// The scheme of these numbers with as many bits as keep the codebooks below 2^`budget` numbers: all of M, G
/// and the output group size together with B = 16 would be gigabytes.
fn scheme(codebooks: usize, nbits: u32, in_group: usize, out_group: usize, budget: u32) -> Scheme {
    let others = (codebooks * in_group * out_group).next_power_of_two().ilog2();
    Scheme {
        num_codebooks: codebooks,
        nbits: nbits.min(budget.saturating_sub(others)).max(1),
        in_group_size: in_group,
        out_group_size: out_group,
    }
}

fn product(operation: Operation) -> impl Strategy<Value = Problem> {
    let batch = if operation == Operation::Matmul {
        12usize
    } else {
        3
    };
    (
        (1..=8usize, 1..=16u32, 4..=64usize, 1..=4usize),
        (1..=140usize, 1..=20usize, 1..=batch),
        select(Values::ALL),
    )
        .prop_map(
            |((codebooks, nbits, in_group, out_group), (out_groups, in_groups, batch), values)| {
                Problem::Product(ProductCase {
                    scheme: scheme(codebooks, nbits, in_group, out_group, 20),
                    // as ragged as it comes, but not larger than a check has time for
                    out_groups: out_groups.min(16_384 / (in_groups * in_group)).max(1),
                    in_groups,
                    batch,
                    values,
                })
            },
        )
}

fn samples(rows: usize, columns: usize, count: usize) -> impl Strategy<Value = Problem> {
    (1..=rows, 1..=columns, 1..=count, select(Values::ALL)).prop_map(|(rows, columns, count, values)| {
        Problem::Samples(SamplesCase {
            rows,
            columns,
            count,
            values,
        })
    })
}

fn layer(operation: Operation) -> impl Strategy<Value = Problem> {
    (
        (1..=4usize, 1..=6u32, 4..=16usize, 1..=4usize),
        (1..=40usize, 1..=8usize, 1..=4usize),
        (select(Values::ALL), select(Inputs::ALL)),
        (select(Updating::ALL), select(Starting::ALL)),
    )
        .prop_map(
            move |(
                (codebooks, nbits, in_group, out_group),
                (out_groups, in_groups, beam),
                (values, inputs),
                (update, start),
            )| {
                let scheme = scheme(codebooks, nbits, in_group, out_group, 10);
                let case = LayerCase {
                    scheme,
                    out_groups: out_groups.min(96 / out_group),
                    in_groups: in_groups.min(72 / in_group),
                    values,
                    inputs,
                    beam,
                    update,
                    start,
                };
                Problem::Layer(case.used_by(operation))
            },
        )
}

fn llama(operation: Operation) -> impl Strategy<Value = Problem> {
    // Fine-tuning is many passes.
    let tokens = if operation == Operation::BlockFinetune {
        12usize
    } else {
        70
    };
    (
        (1..=10usize, 1..=20usize, 1..=2usize, 1..=3usize, 1..=4usize),
        (1..=4usize, 2..=tokens, 0..=12usize),
        (select(Biases::ALL), select(Positions::ALL)),
        (1..=3usize, 1..=4u32, 1..=2usize),
    )
        .prop_map(
            |(
                (hidden, intermediate, kv_heads, heads_per_kv_head, quarter_head),
                (sequences, tokens, window),
                (biases, positions),
                (codebooks, nbits, out_group),
            )| {
                // Multiples of four and two, so that groups of 4 inputs and 1 or 2 outputs fit.
                Problem::Llama(LlamaCase {
                    hidden: 4 * hidden,
                    intermediate: 2 * intermediate,
                    kv_heads,
                    heads_per_kv_head,
                    half_head: 2 * quarter_head,
                    sequences,
                    tokens,
                    window,
                    biases,
                    positions,
                    scheme: scheme(codebooks, nbits, 4, out_group, 12),
                })
            },
        )
}
