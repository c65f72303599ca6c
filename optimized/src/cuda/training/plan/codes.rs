//! Launch plans of steps that change codes, and of the sort of groups by their codes.

use aqlm_kernels::defines::layer_count::k1_tiles::{DIGITS, EACH as SORTED_EACH, THREADS as SORT_THREADS};
use aqlm_kernels::defines::select_count::k1_tiles::TILE;
use aqlm_vocabulary::{AqlmError, Residuals, Result, Scheme};

use super::{Plan, THREADS, WIDE_THREADS, elementwise, groups, plan, words};

/// Rows that share each load of a codeword in [`search`].
const ROWS: usize = 16;
/// Rows that a block of [`search`] holds if its beam allows.
const MANY_ROWS: usize = 64;
/// Groups that a block of [`search`] holds at most.
const MOST_OWNERS: usize = 32;
/// Buckets of each row of [`search`].
const BUCKETS: usize = 256;
/// The widest beam of [`search`].
const WIDEST: usize = 128;
/// Threads of the block that adds up counts, and of the one that finds where trust ends.
const ONE_BLOCK: usize = 1024;

/// Blocks of [`norms`]: the numbers of squares that it writes.
pub fn norm_blocks(groups: usize) -> usize {
    groups.div_ceil(THREADS)
}

/// Tiles in which [`count`], [`tiles`] and [`gather`] read numbers.
pub fn number_tiles(count: usize) -> usize {
    count.div_ceil(TILE)
}

/// Counters of a sort of `count` numbers by a digit.
pub fn counters(count: usize) -> usize {
    DIGITS * count.div_ceil(SORT_THREADS * SORTED_EACH)
}

/// Adds f32 numbers to f32 sums. Pointers: from, to.
pub fn add(count: usize) -> Plan {
    elementwise("add_rows/k1_elementwise", count, &[count])
}

/// The integers of a shape: `count`, then those of the groups.
fn of_groups(count: usize, scheme: Scheme, in_features: usize) -> [usize; 6] {
    let [in_groups, books, states, go, gi] = groups(scheme, in_features);
    [count, in_groups, books, states, go, gi]
}

/// How a buffer differs from each group of its matrix. Pointers: buffer, codes, codebooks, scales, norms,
/// squares.
pub fn norms(scheme: Scheme, out_features: usize, in_features: usize) -> Plan {
    let count = out_features * in_features / scheme.group_len();
    Plan {
        shared_bytes: THREADS * size_of::<f64>(),
        ..elementwise(
            "code_norms/k1_thread_a_group",
            count,
            &of_groups(count, scheme, in_features),
        )
    }
}

/// Counts digit number `digit` from the highest. Pointers: values, state, counts.
pub fn count(count: usize, digit: usize) -> Plan {
    Plan {
        shared_bytes: DIGITS * size_of::<u32>(),
        ..plan(
            "select_count/k1_tiles",
            number_tiles(count),
            &[count, 56 - 8 * digit],
        )
    }
}

/// The next digit of the `first`th largest number, or after the first digit, of the same. Pointers: counts,
/// state.
pub fn digit(first: Option<usize>) -> Plan {
    Plan {
        block: DIGITS as u32,
        shared_bytes: DIGITS * size_of::<u32>(),
        ..plan("select_digit/k1_one_block", 1, &[first.unwrap_or(0)])
    }
}

/// Numbers of each tile above the k-th largest, and equal to it. Pointers: values, state, above, equal.
pub fn tiles(count: usize) -> Plan {
    Plan {
        shared_bytes: THREADS * size_of::<u32>(),
        ..plan("select_tiles/k1_tiles", number_tiles(count), &[count])
    }
}

/// The places of the largest numbers; with `keys` what sorts them. `equals` is how many of the numbers equal
/// to the k-th largest are among them, if not as many as the state says. Pointers: values, state, above,
/// equal, chosen, keys.
pub fn gather(count: usize, equals: Option<usize>, keys: bool) -> Plan {
    let mut plan = Plan {
        defines: vec![("AQLM_KEYS", usize::from(keys))],
        shared_bytes: THREADS * size_of::<u32>(),
        ..plan("select_gather/k1_tiles", number_tiles(count), &[count])
    };
    plan.integers.push(equals.map_or(-1, |equals| equals as i32));
    plan
}

/// Exclusive prefix sums in place. Pointers: counts.
pub fn scan(count: usize) -> Plan {
    Plan {
        block: ONE_BLOCK as u32,
        shared_bytes: ONE_BLOCK * size_of::<u32>(),
        ..plan("layer_scan/k1_one_block", 1, &[count])
    }
}

/// A pass of a stable sort by eight bits of 16-bit numbers that are `stride` apart: the counters, then, after
/// [`scan`], the order. Pointers: numbers, the order so far, counters; the same and the new order.
pub fn sort(count: usize, shift: usize, stride: usize, first: bool) -> [Plan; 2] {
    ["layer_count/k1_tiles", "layer_place/k1_tiles"].map(|kernel| Plan {
        defines: vec![("AQLM_FIRST", usize::from(first))],
        block: SORT_THREADS as u32,
        shared_bytes: DIGITS * SORT_THREADS * size_of::<u16>() + SORT_THREADS * SORTED_EACH,
        ..plan(
            kernel,
            count.div_ceil(SORT_THREADS * SORTED_EACH),
            &[count, shift, stride],
        )
    })
}

/// Where the places of each code begin. Pointers: codes, sorted, starts.
pub fn starts(count: usize, states: usize, stride: usize) -> Plan {
    elementwise("layer_starts/k1_thread_a_place", count, &[count, states, stride])
}

/// Squared lengths of all codewords. Pointers: codewords, none, forms.
pub fn forms(scheme: Scheme) -> Plan {
    let codewords = scheme.num_codebooks * scheme.codebook_size();
    Plan {
        defines: vec![("AQLM_METRIC", 0)],
        ..elementwise(
            "layer_forms/k1_thread_a_codeword",
            codewords,
            &[codewords, scheme.out_group_size, scheme.in_group_size, 0, 0, 0],
        )
    }
}

/// The codes nearest to a buffer for `count` groups. Pointers: buffer, scales, codebooks, forms, codes,
/// chosen, visits, found.
///
/// # Errors
/// `Unsupported` for a beam that is too wide, or does not fit the shared memory of a block.
pub fn search(
    scheme: Scheme,
    in_features: usize,
    count: usize,
    beam: usize,
    residuals: Residuals,
    shared_bytes: usize,
) -> Result<Plan> {
    let [in_groups, books, states, go, gi] = groups(scheme, in_features);
    let bytes = |owners: usize| {
        let rows = (owners * beam).next_multiple_of(ROWS);
        rows * ((BUCKETS + 3 * go * gi + 4) * size_of::<f32>() + 2 * books * size_of::<u16>())
    };
    let most = (MANY_ROWS / beam.max(1)).clamp(1, MOST_OWNERS);
    let fits = |owners: &usize| bytes(*owners) <= shared_bytes;
    let owners = (1..=most).rev().find(fits).filter(|_| beam <= WIDEST);
    let owners = owners.ok_or_else(|| {
        AqlmError::Unsupported(format!(
            "a beam of {beam} over codes on a GPU: at most {WIDEST}, and what the shared memory of a block holds"
        ))
    })?;
    let place = residuals == Residuals::Place;
    Ok(Plan {
        defines: vec![
            ("AQLM_GO", go),
            ("AQLM_GI", gi),
            ("AQLM_PLACE", usize::from(place)),
        ],
        shared_bytes: bytes(owners),
        ..plan(
            "code_search/k1_buckets",
            count.div_ceil(owners),
            &[count, in_groups, books, states, beam, owners],
        )
    })
}

/// How far each chosen group would move. Pointers: codes, found, chosen, codebooks, scales, changes.
pub fn changes(scheme: Scheme, in_features: usize, count: usize) -> Plan {
    let [in_groups, books, states, go, gi] = groups(scheme, in_features);
    elementwise(
        "trust_changes/k1_thread_a_group",
        count,
        &[count, in_groups, books, states, go * gi],
    )
}

/// How many changes are kept, given `parts` squares of the weight. Pointers: changes, order, squares, kept.
pub fn trust(count: usize, parts: usize, ratio: f64) -> Plan {
    let mut plan = Plan {
        block: ONE_BLOCK as u32,
        shared_bytes: ONE_BLOCK * (size_of::<f64>() + size_of::<u32>()),
        ..plan("trust_cut/k1_one_block", 1, &[count, parts])
    };
    plan.integers.extend(words(ratio));
    plan
}

/// Gives groups their new codes. Pointers: codes, found, chosen, order, kept, changed.
pub fn adopt(count: usize, books: usize, ordered: bool) -> Plan {
    Plan {
        defines: vec![("AQLM_ORDERED", usize::from(ordered))],
        block: WIDE_THREADS as u32,
        shared_bytes: WIDE_THREADS * size_of::<u32>(),
        ..plan(
            "code_adopt/k1_thread_a_group",
            count.div_ceil(WIDE_THREADS),
            &[count, books],
        )
    }
}

/// What remains of a buffer. Pointers: buffer, codes, codebooks, scales.
pub fn decay(scheme: Scheme, out_features: usize, in_features: usize, d: f64) -> Plan {
    let count = out_features * in_features;
    let mut plan = elementwise(
        "code_decay/k1_elementwise",
        count,
        &of_groups(count, scheme, in_features),
    );
    plan.integers.extend(words(d));
    plan
}
