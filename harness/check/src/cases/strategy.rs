//! Proptest strategies for problems of each kind; the operation passes the size limits.

use aqlm_vocabulary::Scheme;
use proptest::prelude::*;
use proptest::sample::select;

use super::layer::{Inputs, Searching, Starting, Updating};
use super::llama::{Biases, Positions};
use super::{Field, LayerCase, LlamaCase, Parts, Problem, ProductCase, SamplesCase, Values};

/// A scheme with at most `nbits` bits, reduced until the codebooks have fewer than 2^`budget` numbers. The
/// largest M, G and output group size with B = 16 would take gigabytes.
fn scheme(codebooks: usize, nbits: u32, in_group: usize, out_group: usize, budget: u32) -> Scheme {
    let others = (codebooks * in_group * out_group).next_power_of_two().ilog2();
    Scheme {
        num_codebooks: codebooks,
        nbits: nbits.min(budget.saturating_sub(others)).max(1),
        in_group_size: in_group,
        out_group_size: out_group,
    }
}

/// Quantized matrices and at most `batch` rows of x.
pub(crate) fn product(batch: usize) -> BoxedStrategy<Problem> {
    (
        (1..=8usize, 1..=16u32, 4..=64usize, 1..=4usize),
        (1..=140usize, 1..=20usize, 1..=batch),
        select(Values::ALL),
    )
        .prop_map(
            |((codebooks, nbits, in_group, out_group), (out_groups, in_groups, batch), values)| {
                Problem::Product(ProductCase {
                    scheme: scheme(codebooks, nbits, in_group, out_group, 20),
                    // ragged as drawn, but small enough for the time of a check
                    out_groups: out_groups.min(16_384 / (in_groups * in_group)).max(1),
                    in_groups,
                    batch,
                    values,
                })
            },
        )
        .boxed()
}

/// At most `rows` samples or points of at most `columns` numbers, in at most `count` parts or clusters.
pub(crate) fn samples(rows: usize, columns: usize, count: usize) -> BoxedStrategy<Problem> {
    (1..=rows, 1..=columns, 1..=count, select(Values::ALL))
        .prop_map(|(rows, columns, count, values)| {
            Problem::Samples(SamplesCase {
                rows,
                columns,
                count,
                values,
            })
        })
        .boxed()
}

/// Layers in which only the fields in `used` vary.
pub(crate) fn layer(used: &'static [Field]) -> BoxedStrategy<Problem> {
    (
        (1..=4usize, 1..=6u32, 4..=16usize, 1..=4usize),
        (1..=40usize, 1..=8usize, 1..=4usize),
        (select(Values::ALL), select(Inputs::ALL)),
        (
            select(Searching::ALL),
            select(Updating::ALL),
            select(Starting::ALL),
        ),
    )
        .prop_map(
            move |(
                (codebooks, nbits, in_group, out_group),
                (out_groups, in_groups, beam),
                (values, inputs),
                (search, update, start),
            )| {
                let scheme = scheme(codebooks, nbits, in_group, out_group, 10);
                let case = LayerCase {
                    scheme,
                    out_groups: out_groups.min(96 / out_group),
                    in_groups: in_groups.min(72 / in_group),
                    values,
                    inputs,
                    beam,
                    search,
                    update,
                    start,
                };
                Problem::Layer(case.with_only(used))
            },
        )
        .boxed()
}

/// Small Llamas and sequences of at most `tokens`.
pub(crate) fn llama(tokens: usize) -> BoxedStrategy<Problem> {
    (
        (1..=10usize, 1..=20usize, 1..=2usize, 1..=3usize, 1..=4usize),
        (1..=4usize, 2..=tokens, 0..=12usize),
        (select(Biases::ALL), select(Positions::ALL), select(Parts::ALL)),
        (1..=3usize, 1..=4u32, 1..=2usize),
    )
        .prop_map(
            |(
                (hidden, intermediate, kv_heads, heads_per_kv_head, quarter_head),
                (sequences, tokens, window),
                (biases, positions, parts),
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
                    parts,
                    scheme: scheme(codebooks, nbits, 4, out_group, 12),
                })
            },
        )
        .boxed()
}
