//! Orders a task's items so that few lanes conflict in a bank.

use aqlm_kernels::defines::matvec::k7_lane_inputs::PADDING_ROWS;

use super::deal::{Arranger, CHUNK, Task};

impl Arranger<'_> {
    /// The items of a task as [step][lane], padded to a multiple of a chunk of steps.
    ///
    /// In each step, lanes that are served together should read codewords from different bank groups, and all
    /// lanes should add to rows in different banks. Where that is impossible, a lane with slack waits and the
    /// others take a conflict.
    pub(super) fn schedule(&self, task: &Task) -> Vec<u32> {
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
        // The steps that fill up a chunk run when two of its four steps do.
        let idle: Vec<u32> = (0..32_usize)
            .map(|lane| ((lane % classes) | ((self.plan.rows + lane) << self.plan.slice_bits)) as u32)
            .collect();
        while placed.len() % (CHUNK * 32) != 0 {
            placed.extend(&idle);
        }
        placed
    }

    /// An item that adds to no real row, in a free bank and bank group if there is any.
    fn padding(&self, used_banks: &mut u32, used_classes: &mut u32) -> u32 {
        let bank = (used_banks.trailing_ones() as usize).min(31);
        let class = (used_classes.trailing_ones() as usize).min(self.classes() - 1);
        *used_banks |= 1 << bank;
        *used_classes |= 1 << class;
        let row = (self.plan.rows..self.plan.rows + PADDING_ROWS)
            .find(|row| row % 32 == bank)
            .expect("there is a padding row for each of the 32 banks");
        (class | row << self.plan.slice_bits) as u32
    }

    /// A class of codewords for each lane, different among lanes that are served together wherever possible.
    /// Where it is not possible, a lane that is not urgent gets none.
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

    /// An item of the chosen class for each lane, (class, place), in different banks wherever possible.
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
        // Lanes with the fewest choices first.
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

/// Finds a partner for `left` among its `edges`, and moves others to other partners if necessary (augmenting
/// path). `seen` holds the partners already tried.
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
