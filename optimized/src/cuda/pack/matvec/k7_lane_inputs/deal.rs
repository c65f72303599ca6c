//! Deals the items of a block to its warps so that all have equal work.

use super::plan::Plan;
use crate::cuda::pack::items::append_chunk;
use aqlm_kernels::defines::matvec::k7_lane_inputs::{CHUNK_BYTES, WARPS};

/// Items of a lane in a chunk.
pub(super) const CHUNK: usize = CHUNK_BYTES / 96;

/// The work of one warp of a block.
#[derive(Default)]
pub(super) struct Warp {
    /// chunks of items
    pub(super) words: Vec<u32>,
    /// items of a lane in each round
    pub(super) steps: Vec<u32>,
    /// input group of each lane in each round
    pub(super) groups: Vec<u16>,
}

/// Items of an input group that are dealt out together.
struct Share {
    group: usize,
    items: Vec<u32>,
}

/// Items that a warp handles in a round, before they are ordered.
pub(super) struct Task {
    groups: Vec<u16>,
    /// items of each lane
    pub(super) lists: Vec<Vec<u32>>,
    /// number of items in each bank of rows
    pub(super) banks: [u32; 32],
}

impl Task {
    pub(super) fn steps(&self) -> usize {
        self.lists.iter().map(Vec::len).max().unwrap_or(0)
    }
}

pub(super) struct Arranger<'a> {
    pub(super) plan: &'a Plan,
    pub(super) g: usize,
}

impl Arranger<'_> {
    /// Number of bank groups of codewords among lanes that are served together.
    pub(super) fn classes(&self) -> usize {
        if self.g == 8 { 8 } else { 4 }
    }

    pub(super) fn class(&self, item: u32) -> usize {
        item as usize & (self.classes() - 1)
    }

    pub(super) fn bank(&self, item: u32) -> usize {
        item as usize >> self.plan.slice_bits & 31
    }

    /// Deals the items of a block, given for each input group, to its warps and orders them.
    ///
    /// Groups differ in their number of items, and a warp takes as long as its longest list. So lists are cut
    /// off at a length, and a last round deals the remaining items to all lanes.
    pub(super) fn arrange(&self, lists: &[Vec<u32>]) -> Vec<Warp> {
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
            let warp = warps
                .iter_mut()
                .filter(|warp| warp.steps.len() <= self.plan.rounds)
                .min_by_key(|warp| warp.steps.iter().sum::<u32>())
                .expect("the plan has a place for every task");
            let placed = self.schedule(task);
            for chunk in placed.chunks(CHUNK * 32) {
                append_chunk(&mut warp.words, chunk);
            }
            warp.steps.push(task.steps() as u32);
            warp.groups
                .extend((0..32).map(|lane| task.groups.get(lane).copied().unwrap_or(0)));
        }
        for warp in &mut warps {
            // Items are processed two at a time. Two words hold the first two of a chunk.
            if warp.steps.last().is_some_and(|&steps| matches!(steps % 4, 1 | 2)) {
                warp.words.truncate(warp.words.len() - 32);
            }
            warp.steps.resize(self.plan.rounds + 1, 0);
            warp.groups.resize((self.plan.rounds + 1) * 32, 0);
        }
        warps
    }

    /// The longest list of a lane, in all rounds but the last and in the last, that gives a warp the fewest
    /// steps.
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
            // Two items are processed at once.
            let fewest = left.iter().sum::<usize>().div_ceil(lanes).next_multiple_of(2);
            let Some(cut) = (fewest.max(2)..=longest + 1).step_by(2).find(|&cut| fits(cut)) else {
                continue;
            };
            let steps = self.plan.rounds * most + cut;
            if steps < best.2 {
                best = (most, cut, steps);
            }
            // Shorter lists only leave more items over.
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

    /// Orders up to 32 shares so that those that are served together use every class of codewords about
    /// equally often.
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
        // Swaps to even out the squares. Each swap makes their sum smaller, so the loop ends.
        loop {
            let mut swapped = false;
            for a in 0..shares.len() {
                for b in (a / classes + 1) * classes..shares.len() {
                    let (table_a, table_b) = (a / classes, b / classes);
                    // How much more often b uses each class than a: the change of a's table.
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

    /// Deals each of up to 32 shares to `pieces` tasks evenly. Keeps the codewords of lanes that are served
    /// together from crowding in a bank group, and a task's rows from crowding in a bank.
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
                    .expect("`most` in each piece is room for all");
                classes[piece][class] += 1;
                tasks[piece].banks[bank] += 1;
                tasks[piece].lists[lane].push(item);
            }
        }
        tasks
    }
}

#[cfg(test)]
mod tests {
    use super::super::CHUNK_WORDS;
    use super::*;
    use crate::cuda::pack::items::ITEM_BITS;

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
        // Without any conflict these would be eight and one.
        assert!(
            passes < 9 * all && sums < 2 * all,
            "{all} steps, {passes} and {sums} passes"
        );
    }
}
