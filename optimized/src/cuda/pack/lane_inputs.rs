use aqlm_vocabulary::{AqlmError, QuantizedMatrix, Result};
use half::f16;
use rayon::prelude::*;

use super::sliced::append_chunk;
use super::{Activations, Packed, Target, bytes_of_u16, bytes_of_u32, codebook_bytes, scale_bytes};

/// Warps of a block.
const WARPS: usize = 24;
/// Chunks of a warp that lie where it finds them without reading anything first, and that it has room for in
/// shared memory.
const HEAD: usize = 6;
const RING: usize = 8;
/// Items of a lane in a chunk, and words of a chunk.
const CHUNK: usize = 4;
const CHUNK_WORDS: usize = 96;
const ITEM_BITS: usize = 24;
/// Counters of slabs at the start of what blocks share.
const COUNTERS: usize = 256;
/// Rows after a slab's own that padding adds to, one for each bank.
const PADDING_ROWS: usize = 32;
/// Bits of a rounded product, and of the sums of a row.
const PRODUCT_BITS: u32 = 22;
const SUM_BITS: u32 = 31;

/// How blocks divide the matrix.
struct Plan {
    slice_bits: usize,
    slices: usize,
    slabs: usize,
    /// rows of a slab
    rows: usize,
    /// lists that an input group's items are dealt to
    pieces: usize,
    /// tasks of a warp, without the last, which is of what is left over
    rounds: usize,
}

impl Plan {
    fn new(matrix: &QuantizedMatrix, target: &Target) -> Result<Self> {
        let scheme = matrix.scheme();
        let (out_groups, in_groups) = matrix.groups();
        let slice_bits = if scheme.in_group_size == 8 { 12 } else { 11 };
        let slices = scheme.codebook_size() >> slice_bits;
        // Blocks wait for each other.
        let at_once = target.multiprocessors as usize / slices;
        if at_once == 0 {
            return Err(AqlmError::Unsupported(format!(
                "k7 needs {slices} multiprocessors for {scheme}, {} are there",
                target.multiprocessors
            )));
        }
        // A block scales the rows that it owns one a thread, and adds them up four at a time.
        let step = slices * 4;
        let rows = out_groups.div_ceil(at_once).next_multiple_of(step);
        let most = ((1 << (ITEM_BITS - slice_bits)) - PADDING_ROWS).min(slices * WARPS * 32) / step * step;
        if rows > most {
            return Err(AqlmError::Unsupported(format!(
                "k7 does at most {} rows of {scheme} here, not {out_groups}",
                most * at_once
            )));
        }
        if at_once > COUNTERS {
            return Err(AqlmError::Unsupported(format!(
                "k7 has counters for {COUNTERS} slabs, not {at_once}"
            )));
        }
        // As many pieces as keep all lanes of all rounds busy, and few rounds.
        let tasks = in_groups.div_ceil(32);
        let fewest = tasks.div_ceil(WARPS);
        let (mut rounds, mut pieces, mut best) = (fewest, 1, 0.0);
        for tried in fewest..fewest + 4 {
            let fitting = tried * WARPS / tasks;
            let filled = (fitting * tasks) as f64 / (tried * WARPS) as f64;
            if filled > best + 0.05 {
                (rounds, pieces, best) = (tried, fitting, filled);
            }
        }
        Ok(Self {
            slice_bits,
            slices,
            slabs: out_groups.div_ceil(rows),
            rows,
            pieces,
            rounds,
        })
    }
}

/// k7: codes sorted by slice of the codebook and input group, each with its row.
pub(super) fn pack(matrix: &QuantizedMatrix, target: &Target) -> Result<Packed> {
    let scheme = matrix.scheme();
    let g = scheme.in_group_size;
    let (out_groups, in_groups) = matrix.groups();
    let plan = Plan::new(matrix, target)?;

    // [slab][slice][group], items
    let lists: Vec<Vec<u32>> = (0..plan.slabs)
        .into_par_iter()
        .flat_map_iter(|slab| {
            let mut lists = vec![Vec::new(); plan.slices * in_groups];
            let first = slab * plan.rows;
            for row in first..out_groups.min(first + plan.rows) {
                for group in 0..in_groups {
                    let code = usize::from(matrix.codes()[[row, group, 0]]);
                    let local = code & ((1 << plan.slice_bits) - 1);
                    lists[(code >> plan.slice_bits) * in_groups + group]
                        .push((local | (row - first) << plan.slice_bits) as u32);
                }
            }
            lists
        })
        .collect();
    let blocks: Vec<Vec<Warp>> = lists
        .par_chunks(in_groups)
        .map(|lists| Arranger { plan: &plan, g }.arrange(lists))
        .collect();

    let warps = || blocks.iter().flatten();
    let (mut items, mut spans, mut groups) = (Vec::new(), Vec::new(), Vec::new());
    for warp in warps() {
        let head = warp.words.len().min(HEAD * CHUNK_WORDS);
        items.extend_from_slice(&warp.words[..head]);
        items.resize(items.len() + HEAD * CHUNK_WORDS - head, 0);
    }
    for warp in warps() {
        let words = warp.words.len() / 32;
        spans.extend([(items.len() / 32) as u32, words as u32]);
        spans.extend(&warp.steps);
        groups.extend_from_slice(&warp.groups);
        items.extend(warp.words.iter().skip(HEAD * CHUNK_WORDS));
    }
    let largest = matrix
        .codebooks()
        .iter()
        .fold(0.0_f64, |most, c| most.max(c.abs()));
    let product_bits = PRODUCT_BITS.min(SUM_BITS - (in_groups + 1).next_power_of_two().trailing_zeros());

    Ok(Packed {
        kernel: "matvec/k7_lane_inputs",
        defines: vec![("AQLM_G", g), ("AQLM_SLICE_BITS", plan.slice_bits)],
        buffers: vec![
            bytes_of_u32(&items),
            bytes_of_u32(&spans),
            bytes_of_u16(groups.into_iter()),
            codebook_bytes(matrix),
            vec![0; (COUNTERS + plan.slabs * plan.slices * plan.rows) * 4],
            scale_bytes(matrix),
        ],
        sizes: vec![
            plan.rows as i32,
            (plan.rounds + 1) as i32,
            i32::from(f16::from_f64(largest).to_bits()),
            product_bits as i32,
        ],
        grid: [plan.slices as u32, plan.slabs as u32],
        block: (WARPS * 32) as u32,
        cluster: 1,
        shared_bytes: ((2 * g) << plan.slice_bits)
            + WARPS * RING * CHUNK_WORDS * 4
            + matrix.in_features() * 2
            + (plan.rows + PADDING_ROWS + WARPS) * 4,
        out_features: matrix.out_features(),
        in_features: matrix.in_features(),
        batch: 1,
        rows: matrix.out_features(),
        activations: Activations::F16,
    })
}

/// What one warp of a block does.
#[derive(Default)]
struct Warp {
    /// chunks of items
    words: Vec<u32>,
    /// items of a lane in each round
    steps: Vec<u32>,
    /// input group of each lane in each round
    groups: Vec<u16>,
}

/// Items of an input group that are dealt out together.
struct Share {
    group: usize,
    items: Vec<u32>,
}

/// Items that a warp handles in a round, before they are in order.
struct Task {
    groups: Vec<u16>,
    /// of each lane
    lists: Vec<Vec<u32>>,
    /// items for each bank that rows lie in
    banks: [u32; 32],
}

impl Task {
    fn steps(&self) -> usize {
        self.lists.iter().map(Vec::len).max().unwrap_or(0)
    }
}

struct Arranger<'a> {
    plan: &'a Plan,
    g: usize,
}

impl Arranger<'_> {
    /// Bank groups that codewords lie in, as lanes see them that are served together.
    fn classes(&self) -> usize {
        if self.g == 8 { 8 } else { 4 }
    }

    fn class(&self, item: u32) -> usize {
        item as usize & (self.classes() - 1)
    }

    fn bank(&self, item: u32) -> usize {
        item as usize >> self.plan.slice_bits & 31
    }

    /// Deals the items of a block, given for each input group, to its warps and puts them in order.
    ///
    /// Groups have more or fewer items, and a warp takes as long as its longest list: lists are cut off at a
    /// length, and what is beyond it is dealt to all lanes in a last round.
    fn arrange(&self, lists: &[Vec<u32>]) -> Vec<Warp> {
        let (most, most_left) = self.cuts(lists);
        let (mut shares, mut rest) = (Vec::new(), Vec::new());
        for (group, list) in lists.iter().enumerate() {
            let (items, left) = list.split_at(list.len().min(most * self.plan.pieces));
            shares.push(Share {
                group,
                items: items.to_vec(),
            });
            rest.extend(left.chunks(most_left.max(1)).map(|items| Share {
                group,
                items: items.to_vec(),
            }));
        }
        let mut tasks = self.tasks(shares, self.plan.pieces);
        tasks.extend(self.tasks(rest, 1));
        tasks.sort_by_key(|task| std::cmp::Reverse(task.steps()));
        let mut warps: Vec<Warp> = (0..WARPS).map(|_| Warp::default()).collect();
        for task in &tasks {
            let least = warps
                .iter_mut()
                .filter(|warp| warp.steps.len() <= self.plan.rounds)
                .min_by_key(|warp| warp.steps.iter().sum::<u32>());
            // The plan has a place for every task.
            let Some(warp) = least else { break };
            let placed = self.schedule(task);
            for chunk in placed.chunks(CHUNK * 32) {
                append_chunk(&mut warp.words, chunk);
            }
            warp.steps.push(task.steps() as u32);
            warp.groups
                .extend((0..32).map(|lane| task.groups.get(lane).copied().unwrap_or(0)));
        }
        for warp in &mut warps {
            // Items are done two at a time: two words hold the first two of a chunk.
            if warp.steps.last().is_some_and(|&steps| matches!(steps % 4, 1 | 2)) {
                warp.words.truncate(warp.words.len() - 32);
            }
            warp.steps.resize(self.plan.rounds + 1, 0);
            warp.groups.resize((self.plan.rounds + 1) * 32, 0);
        }
        warps
    }

    /// The longest list of a lane, in all rounds but the last and in the last, for which a warp has the
    /// fewest steps.
    fn cuts(&self, lists: &[Vec<u32>]) -> (usize, usize) {
        let lanes = WARPS * 32;
        let longest = lists.iter().map(Vec::len).max().unwrap_or(0);
        let all = longest.div_ceil(self.plan.pieces);
        let mut best = (all, 0, self.plan.rounds * all);
        for most in (2..all).step_by(2).rev() {
            let left: Vec<usize> = lists
                .iter()
                .map(|list| list.len().saturating_sub(most * self.plan.pieces))
                .collect();
            let fits = |cut: usize| left.iter().map(|left| left.div_ceil(cut)).sum::<usize>() <= lanes;
            // Two items are done at once.
            let fewest = left.iter().sum::<usize>().div_ceil(lanes).next_multiple_of(2);
            let Some(cut) = (fewest.max(2)..=longest + 1).step_by(2).find(|&cut| fits(cut)) else {
                continue;
            };
            let steps = self.plan.rounds * most + cut;
            if steps < best.2 {
                best = (most, cut, steps);
            }
            // Shorter lists only leave more over.
            if fewest > best.2 {
                break;
            }
        }
        (best.0, best.1)
    }

    /// Tasks of shares of similar length, each dealt to `pieces` lanes.
    fn tasks(&self, mut shares: Vec<Share>, pieces: usize) -> Vec<Task> {
        shares.sort_by_key(|share| std::cmp::Reverse(share.items.len()));
        shares
            .chunks_mut(32)
            .flat_map(|shares| {
                self.seat(shares);
                self.deal(shares, pieces)
            })
            .collect()
    }

    /// Puts up to 32 shares in an order in which those that are served together want every class of codewords
    /// about equally often.
    fn seat(&self, shares: &mut [Share]) {
        let classes = self.classes();
        let mut wants: Vec<[i32; 8]> = shares
            .iter()
            .map(|share| {
                let mut wants = [0; 8];
                for &item in &share.items {
                    wants[self.class(item)] += 1;
                }
                wants
            })
            .collect();
        let mut sums = vec![[0_i32; 8]; shares.len().div_ceil(classes)];
        for (seat, wants) in wants.iter().enumerate() {
            for class in 0..classes {
                sums[seat / classes][class] += wants[class];
            }
        }
        // Swaps that even out the squares; each makes their sum smaller, so that this ends.
        loop {
            let mut swapped = false;
            for a in 0..shares.len() {
                for b in (a / classes + 1) * classes..shares.len() {
                    let (table_a, table_b) = (a / classes, b / classes);
                    // What b wants more than a moves from b's table to a's.
                    let more: [i32; 8] = std::array::from_fn(|class| wants[b][class] - wants[a][class]);
                    let change: i32 = (0..classes)
                        .map(|class| {
                            more[class] * (sums[table_a][class] - sums[table_b][class] + more[class])
                        })
                        .sum();
                    if change < 0 {
                        for class in 0..classes {
                            sums[table_a][class] += more[class];
                            sums[table_b][class] -= more[class];
                        }
                        shares.swap(a, b);
                        wants.swap(a, b);
                        swapped = true;
                    }
                }
            }
            if !swapped {
                break;
            }
        }
    }

    /// Deals each of up to 32 shares to `pieces` tasks: evenly, and so that neither the codewords of lanes
    /// that are served together crowd in a bank group nor a task's rows in a bank.
    fn deal(&self, shares: &[Share], pieces: usize) -> Vec<Task> {
        let mut tasks: Vec<Task> = (0..pieces)
            .map(|_| Task {
                groups: shares.iter().map(|share| share.group as u16).collect(),
                lists: vec![Vec::new(); 32],
                banks: [0; 32],
            })
            .collect();
        let mut classes = vec![[0_u32; 8]; pieces];
        for (lane, share) in shares.iter().enumerate() {
            if lane % self.classes() == 0 {
                classes.fill([0; 8]);
            }
            let most = share.items.len().div_ceil(pieces);
            for &item in &share.items {
                let (class, bank) = (self.class(item), self.bank(item));
                let piece = (0..pieces)
                    .filter(|&piece| tasks[piece].lists[lane].len() < most)
                    .min_by_key(|&piece| 2 * classes[piece][class] + tasks[piece].banks[bank])
                    .unwrap_or(0);
                classes[piece][class] += 1;
                tasks[piece].banks[bank] += 1;
                tasks[piece].lists[lane].push(item);
            }
        }
        tasks
    }

    /// The items of a task as [step][lane], a multiple of a chunk of steps.
    ///
    /// In each step the lanes that are served together should want codewords of different bank groups, and
    /// all lanes rows of different banks. A lane that has items to spare waits where that cannot be; the
    /// others take a conflict.
    fn schedule(&self, task: &Task) -> Vec<u32> {
        let (classes, steps) = (self.classes(), task.steps());
        let mut left: Vec<Vec<Vec<u32>>> = task
            .lists
            .iter()
            .map(|list| {
                let mut by_class = vec![Vec::new(); classes];
                for &item in list {
                    by_class[self.class(item)].push(item);
                }
                by_class
            })
            .collect();
        let mut counts: Vec<usize> = task.lists.iter().map(Vec::len).collect();
        let mut banks = task.banks;
        let mut placed = Vec::with_capacity(steps.next_multiple_of(CHUNK) * 32);
        for step in 0..steps {
            let urgent: Vec<bool> = counts.iter().map(|&count| count >= steps - step).collect();
            let wanted = self.match_classes(&left, &counts, &urgent);
            let taken = self.match_banks(&left, &wanted, &urgent, &banks);
            let mut row = [u32::MAX; 32];
            let (mut used_banks, mut used_classes) = (0_u32, [0_u32; 8]);
            for lane in 0..32 {
                let Some((class, at)) = taken[lane] else { continue };
                let item = left[lane][class].swap_remove(at);
                counts[lane] -= 1;
                banks[self.bank(item)] -= 1;
                used_banks |= 1 << self.bank(item);
                used_classes[lane / classes] |= 1 << class;
                row[lane] = item;
            }
            for lane in 0..32 {
                if row[lane] == u32::MAX {
                    row[lane] = self.padding(&mut used_banks, &mut used_classes[lane / classes]);
                }
            }
            placed.extend(row);
        }
        // Steps that fill up a chunk are done where two of the four are.
        let idle: Vec<u32> = (0..32_usize)
            .map(|lane| ((lane % classes) | ((self.plan.rows + lane) << self.plan.slice_bits)) as u32)
            .collect();
        while placed.len() % (CHUNK * 32) != 0 {
            placed.extend(&idle);
        }
        placed
    }

    /// An item that counts for no row, in a bank and a bank group that are free if any is.
    fn padding(&self, used_banks: &mut u32, used_classes: &mut u32) -> u32 {
        let bank = (used_banks.trailing_ones() as usize).min(31);
        let class = (used_classes.trailing_ones() as usize).min(self.classes() - 1);
        *used_banks |= 1 << bank;
        *used_classes |= 1 << class;
        let row = (self.plan.rows..self.plan.rows + PADDING_ROWS)
            .find(|row| row % 32 == bank)
            .unwrap_or(self.plan.rows);
        (class | row << self.plan.slice_bits) as u32
    }

    /// A class of codewords for each lane, all different among lanes that are served together wherever that
    /// can be. A lane that need not take one does without then.
    fn match_classes(&self, left: &[Vec<Vec<u32>>], counts: &[usize], urgent: &[bool]) -> Vec<Option<usize>> {
        let classes = self.classes();
        let mut wanted = vec![None; 32];
        for first in (0..32).step_by(classes) {
            let lanes = first..first + classes;
            let mut order: Vec<usize> = lanes.clone().filter(|&lane| counts[lane] > 0).collect();
            order.sort_by_key(|&lane| std::cmp::Reverse(counts[lane]));
            let edges: Vec<Vec<usize>> = lanes
                .clone()
                .map(|lane| {
                    let mut edges: Vec<usize> = (0..classes)
                        .filter(|&class| !left[lane][class].is_empty())
                        .collect();
                    edges.sort_by_key(|&class| std::cmp::Reverse(left[lane][class].len()));
                    edges
                })
                .collect();
            let mut owners = vec![None; classes];
            for &lane in &order {
                augment(lane - first, &edges, &mut owners, &mut 0);
            }
            for (class, owner) in owners.into_iter().enumerate() {
                if let Some(lane) = owner {
                    wanted[first + lane] = Some(class);
                }
            }
            for lane in lanes {
                if wanted[lane].is_none() && urgent[lane] {
                    wanted[lane] = edges[lane - first].first().copied();
                }
            }
        }
        wanted
    }

    /// An item of the wanted class for each lane, (class, place), in different banks wherever that can be.
    fn match_banks(
        &self,
        left: &[Vec<Vec<u32>>],
        wanted: &[Option<usize>],
        urgent: &[bool],
        banks: &[u32; 32],
    ) -> Vec<Option<(usize, usize)>> {
        let candidates = |lane: usize| wanted[lane].map_or(&[][..], |class| &left[lane][class][..]);
        let edges: Vec<Vec<usize>> = (0..32)
            .map(|lane| {
                let mut edges: Vec<usize> = candidates(lane).iter().map(|&item| self.bank(item)).collect();
                edges.sort_by_key(|&bank| (std::cmp::Reverse(banks[bank]), bank));
                edges.dedup();
                edges
            })
            .collect();
        // Those with least choice first.
        let mut order: Vec<usize> = (0..32).collect();
        order.sort_by_key(|&lane| edges[lane].len());
        let mut owners = vec![None; 32];
        for lane in order {
            augment(lane, &edges, &mut owners, &mut 0);
        }
        let mut chosen = vec![None; 32];
        let mut loads = [0_u32; 32];
        for (bank, owner) in owners.into_iter().enumerate() {
            if let Some(lane) = owner {
                chosen[lane] = Some(bank);
                loads[bank] += 1;
            }
        }
        (0..32)
            .map(|lane| {
                let class = wanted[lane]?;
                let bank = match chosen[lane] {
                    Some(bank) => bank,
                    None if !urgent[lane] => return None,
                    None => {
                        let bank = edges[lane].iter().copied().min_by_key(|&bank| loads[bank])?;
                        loads[bank] += 1;
                        bank
                    }
                };
                let at = candidates(lane)
                    .iter()
                    .position(|&item| self.bank(item) == bank)?;
                Some((class, at))
            })
            .collect()
    }
}

/// Finds `left` a partner among its `edges`, moving others to partners of their own where need be. `seen`
/// holds the partners already asked.
fn augment(left: usize, edges: &[Vec<usize>], owners: &mut [Option<usize>], seen: &mut u32) -> bool {
    for &right in &edges[left] {
        if *seen & 1 << right != 0 {
            continue;
        }
        *seen |= 1 << right;
        if owners[right].is_none_or(|owner| augment(owner, edges, owners, seen)) {
            owners[right] = Some(left);
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arranger(plan: &Plan) -> Arranger<'_> {
        Arranger { plan, g: 16 }
    }

    const PLAN: Plan = Plan {
        slice_bits: 11,
        slices: 32,
        slabs: 4,
        rows: 2816,
        pieces: 3,
        rounds: 1,
    };

    /// Items of a block, evenly over codes and rows, for 256 groups of 70 to 102 each.
    fn lists() -> Vec<Vec<u32>> {
        let mut state = 1_u32;
        let mut next = |below: u32| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) % below
        };
        (0..256)
            .map(|_| {
                let count = 70 + next(33);
                (0..count).map(|_| next(2048) | next(2752) << 11).collect()
            })
            .collect()
    }

    /// The items of a warp's chunk, [step][lane], without steps that are not stored.
    fn unpacked(chunk: &[u32]) -> Vec<[u32; 32]> {
        let steps = if chunk.len() == CHUNK_WORDS { 4 } else { 2 };
        (0..steps)
            .map(|step| {
                std::array::from_fn(|lane| {
                    let word = |i: usize| u128::from(chunk.get(i * 32 + lane).copied().unwrap_or(0));
                    let all = word(0) | word(1) << 32 | word(2) << 64;
                    (all >> (ITEM_BITS * step)) as u32 & 0xff_ffff
                })
            })
            .collect()
    }

    #[test]
    fn every_item_is_placed_once_with_its_group() {
        let lists = lists();
        let mut found: Vec<Vec<u32>> = vec![Vec::new(); lists.len()];
        for warp in arranger(&PLAN).arrange(&lists) {
            let mut chunks = warp.words.chunks(CHUNK_WORDS);
            for (round, &steps) in warp.steps.iter().enumerate() {
                let items = (0..steps.div_ceil(4)).flat_map(|_| unpacked(chunks.next().unwrap()));
                for items in items {
                    for (lane, item) in items.into_iter().enumerate() {
                        if (item >> 11) < PLAN.rows as u32 {
                            found[usize::from(warp.groups[round * 32 + lane])].push(item);
                        }
                    }
                }
            }
            assert!(chunks.next().is_none());
        }
        for (mut wanted, mut found) in lists.into_iter().zip(found) {
            wanted.sort_unstable();
            found.sort_unstable();
            assert_eq!(wanted, found);
        }
    }

    #[test]
    fn warps_have_equal_work_and_few_conflicts() {
        let lists = lists();
        let arranger = arranger(&PLAN);
        let warps = arranger.arrange(&lists);
        let steps: Vec<u32> = warps.iter().map(|warp| warp.steps.iter().sum()).collect();
        let even = lists.iter().map(Vec::len).sum::<usize>().div_ceil(WARPS * 32) as u32;
        assert!(steps.iter().all(|&steps| steps <= even + 4), "{even} {steps:?}");
        let (mut passes, mut sums, mut all) = (0, 0, 0);
        for items in warps
            .iter()
            .flat_map(|warp| warp.words.chunks(CHUNK_WORDS))
            .flat_map(unpacked)
        {
            let mut banks = [0; 32];
            for &item in &items {
                banks[arranger.bank(item)] += 1;
            }
            sums += banks.iter().max().unwrap();
            for eight in items.chunks(8) {
                let most = |four: &[u32]| {
                    (0..4)
                        .map(|class| four.iter().filter(|&&item| arranger.class(item) == class).count())
                        .max()
                        .unwrap()
                };
                passes += 2 * most(&eight[..4]).max(most(&eight[4..]));
            }
            all += 1;
        }
        // Eight and one if there were no conflict.
        assert!(
            passes < 9 * all && sums < 2 * all,
            "{all} steps, {passes} and {sums} passes"
        );
    }
}
