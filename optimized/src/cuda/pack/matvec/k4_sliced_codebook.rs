use aqlm_kernels::defines::matvec::k4_sliced_codebook as source;
use aqlm_vocabulary::Result;
use rayon::prelude::*;

use super::super::Packed;
use super::super::items::{ITEM_BITS, append_chunk};
use super::super::job::Job;
use super::super::operand::{bytes_of_u16, bytes_of_u32, codebook_bytes, operand, scale_bytes};
use super::super::warps::even_warps;
use source::SLICE_BYTES;

/// The items of one (slab, rank, pass).
struct Part {
    /// chunks of items
    words: Vec<u32>,
    /// (first chunk within this part, chunks) of each task
    tasks: Vec<[u32; 2]>,
    /// row within the slab, for each lane of each task
    rows: Vec<u16>,
}

/// k4: codes sorted by slice of the codebook, each with its input group.
pub(in super::super) fn pack(job: &Job<'_>) -> Result<Packed> {
    let &Job { matrix, target, .. } = job;
    let scheme = matrix.scheme();
    let g = scheme.in_group_size;
    let (out_groups, in_groups) = matrix.groups();
    // Constants of the kernel for groups of 8 and of 16; `phase` is the number of lanes whose 16-byte reads
    // are served together.
    let (slice_bits, chunk, most_threads, phase) = if g == 8 {
        (
            source::SLICE_BITS_G8,
            source::CHUNK_G8,
            source::MOST_THREADS_G8,
            8,
        )
    } else {
        (
            source::SLICE_BITS_G16,
            source::CHUNK_G16,
            source::MOST_THREADS_G16,
            4,
        )
    };
    let window = source::WINDOW_INPUTS / g;
    let slices = (scheme.codebook_size() >> slice_bits).max(1);
    // Not every device of an architecture can place clusters of sixteen. With fewer ranks, each holds several
    // slices in turn.
    let ranks = target.cluster_up_to(slices);
    let slices_per_block = slices / ranks;
    let windows = in_groups.div_ceil(window);
    let passes = slices_per_block * windows;
    let rows = out_groups
        .div_ceil(target.clusters_of(ranks as u32) as usize)
        .next_multiple_of(32);
    let slabs = out_groups.div_ceil(rows);

    let parts: Vec<Part> = (0..slabs * ranks * passes)
        .into_par_iter()
        .map(|part| {
            let (slab, rank, pass) = (part / passes / ranks, part / passes % ranks, part % passes);
            let slice = rank * slices_per_block + pass / windows;
            let first_group = pass % windows * window;
            let lists: Vec<Vec<u32>> = (slab * rows..(slab + 1) * rows)
                .map(|row| {
                    if row >= out_groups {
                        return Vec::new();
                    }
                    (first_group..in_groups.min(first_group + window))
                        .filter_map(|group| {
                            let code = u32::from(matrix.codes()[[row, group, 0]]);
                            let local = code & ((1 << slice_bits) - 1);
                            (code as usize >> slice_bits == slice)
                                .then_some(local | ((group - first_group) as u32) << slice_bits)
                        })
                        .collect()
                })
                .collect();
            arrange(&lists, slice_bits as u32, window, phase, chunk)
        })
        .collect();

    let (mut words, mut tasks, mut row_map) = (Vec::new(), Vec::new(), Vec::new());
    for part in &parts {
        let first = (words.len() / (chunk * ITEM_BITS)) as u32;
        tasks.extend(
            part.tasks
                .iter()
                .flat_map(|&[start, count]| [first + start, count]),
        );
        words.extend_from_slice(&part.words);
        row_map.extend_from_slice(&part.rows);
    }

    let warps = even_warps(rows / 32, most_threads / 32);
    let mut codebook = codebook_bytes(matrix);
    codebook.resize(codebook.len().next_multiple_of(SLICE_BYTES), 0);
    Ok(Packed {
        defines: vec![("AQLM_B", scheme.nbits as usize), ("AQLM_G", g)],
        operands: vec![
            operand("items", bytes_of_u32(&words)),
            operand("tasks", bytes_of_u32(&tasks)),
            operand("rows", bytes_of_u16(row_map.into_iter())),
            operand("codebook", codebook),
            operand("scales", scale_bytes(matrix)),
        ],
        sizes: vec![rows as i32, slices_per_block as i32, windows as i32],
        grid: [ranks as u32, slabs as u32],
        block: warps as u32 * 32,
        cluster: ranks as u32,
        shared_bytes: SLICE_BYTES + (window + 1) * 16 * g + rows * 8,
        ..job.unplanned()
    })
}

/// Deals rows to lanes and orders each lane's items.
///
/// Rows of similar length share a warp, which keeps padding small. The hardware serves the 16-byte reads of
/// `phase` lanes together. Those lanes should read codewords from different bank groups, that is, with
/// different codes modulo `phase`.
fn arrange(lists: &[Vec<u32>], slice_bits: u32, window: usize, phase: usize, chunk: usize) -> Part {
    let mut order: Vec<usize> = (0..lists.len()).collect();
    order.sort_by_key(|&row| std::cmp::Reverse(lists[row].len()));
    let padding = (window as u32) << slice_bits;

    let mut part = Part {
        words: Vec::new(),
        tasks: Vec::new(),
        rows: order.iter().map(|&row| row as u16).collect(),
    };
    for rows in order.chunks(32) {
        let steps = rows.iter().map(|&row| lists[row].len()).max().unwrap_or(0);
        let chunks = steps.div_ceil(chunk);
        let mut items = vec![padding; chunks * chunk * 32];
        for (first_lane, lanes) in rows
            .chunks(phase)
            .enumerate()
            .map(|(i, lanes)| (i * phase, lanes))
        {
            let mut queues: Vec<Queue> = lanes.iter().map(|&row| Queue::new(&lists[row], phase)).collect();
            for step in 0..steps {
                let mut taken = 0_u32;
                for turn in 0..queues.len() {
                    let lane = (turn + step) % queues.len();
                    if let Some((class, item)) = queues[lane].take(taken) {
                        taken |= 1 << class;
                        items[step * 32 + first_lane + lane] = item;
                    }
                }
            }
        }
        part.tasks
            .push([(part.words.len() / (chunk * ITEM_BITS)) as u32, chunks as u32]);
        for items in items.chunks(chunk * 32) {
            append_chunk(&mut part.words, items);
        }
    }
    part
}

/// One lane's items by the bank group of their codeword.
struct Queue {
    /// items, grouped by class
    items: Vec<u32>,
    /// next and end of each class in `items`
    spans: [(u32, u32); 8],
    classes: usize,
}

impl Queue {
    fn new(list: &[u32], classes: usize) -> Self {
        let mut spans = [(0, 0); 8];
        let class_of = |item: u32| item as usize & (classes - 1);
        for &item in list {
            spans[class_of(item)].1 += 1;
        }
        let mut start = 0;
        for span in &mut spans[..classes] {
            *span = (start, start + span.1);
            start = span.1;
        }
        let mut items = vec![0; list.len()];
        let mut cursor = spans;
        for &item in list {
            let at = &mut cursor[class_of(item)].0;
            items[*at as usize] = item;
            *at += 1;
        }
        Self {
            items,
            spans,
            classes,
        }
    }

    /// An item of the fullest class that is not in `taken`. If every remaining class is taken, an item of the
    /// fullest class: a bank conflict costs one pass, an idle lane costs a step.
    fn take(&mut self, taken: u32) -> Option<(usize, u32)> {
        let fullest = |skip: u32| {
            let mut best = None;
            let mut most = 0;
            for class in 0..self.classes {
                let left = self.spans[class].1 - self.spans[class].0;
                if left > most && skip & (1 << class) == 0 {
                    (best, most) = (Some(class), left);
                }
            }
            best
        };
        let class = fullest(taken).or_else(|| fullest(0))?;
        let item = self.items[self.spans[class].0 as usize];
        self.spans[class].0 += 1;
        Some((class, item))
    }
}
