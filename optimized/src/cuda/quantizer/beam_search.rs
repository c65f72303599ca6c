//! Codes for fixed codebooks and scales by beam search (paper section 3.2, algorithm 1 line 9), on the
//! device, as the CPU does it: groups in the order of the sweep, blocks of them from shared memory, one
//! product after each block.

use std::sync::Arc;

use aqlm_vocabulary::{AqlmError, MAX_SUMS, Position, QuantizedMatrix};
use ndarray::{Array2, Array3};

use super::codes::{Form, Quantized};
use super::feedback_init::{MOST_HYPOTHESES, ROWS};
use super::kmeans::Metrics;
use super::machine::{Block, Machine, Product, THREADS, further};
use super::problem::{Problem, Trial};
use crate::cpu::quantizer::{Visit, sweeps};
use crate::cuda::{Buffer, Device, Result};

/// Columns of G in a panel of input groups.
const PANEL_COLUMNS: usize = 128;

/// What stands for a second codebook where a step has none.
const ALONE: u32 = u32::MAX;

/// One sweep of beam search from the current codes of `matrix`, on the device; as
/// [`cpu::quantizer::beam_search`](crate::cpu::quantizer::beam_search).
///
/// # Errors
/// `Shape` and `Argument` as there; `Unsupported` for a beam of more than 128 or groups too large for the
/// device's shared memory.
pub fn beam_search(
    device: &Arc<Device>,
    weight: &Array2<f32>,
    hessian: &Array2<f64>,
    matrix: &QuantizedMatrix,
    order: &[Position],
    beam: usize,
) -> Result<Array3<u16>> {
    let machine = Machine::new(Arc::clone(device))?;
    let problem = Problem::new(&machine, weight, hessian)?;
    problem.check(matrix)?;
    let trial = Trial::new(&machine, &problem, machine.upload_matrix(matrix)?)?;
    let found = search(&machine, &problem, trial, order, beam)?;
    machine.download_codes(&found.form, &found.codes)
}

/// [`beam_search`] on a trial: its matrix with the codes found.
pub(super) fn search(
    machine: &Machine,
    problem: &Problem,
    trial: Trial,
    order: &[Position],
    beam: usize,
) -> Result<Quantized> {
    let form = trial.form();
    if beam == 0 {
        return Err(AqlmError::argument("beam", "at least 1 hypothesis", 0).into());
    }
    if beam > MOST_HYPOTHESES {
        return Err(AqlmError::Unsupported(format!(
            "the cuda backend searches with a beam of at most {MOST_HYPOTHESES}, found {beam}"
        ))
        .into());
    }
    let (in_groups, codebooks) = (form.in_groups, form.codebooks());
    Position::check_order(order, in_groups, codebooks)?;
    let pairs = order.iter().any(|step| step.partner.is_some());
    if pairs && !form.scheme.sums_fit() {
        return Err(AqlmError::Unsupported(format!(
            "pairs of codes are searched among at most {MAX_SUMS} sums, {} has {}",
            form.scheme,
            form.scheme.codebook_size().pow(2)
        ))
        .into());
    }
    let codebooks = machine.narrow(&trial.matrix.codebooks)?;
    let Trial {
        mut matrix,
        mut image,
        ..
    } = trial;
    let mut sweeps = sweeps(order, in_groups).into_iter().peekable();
    while let Some(visits) = sweeps.next() {
        let codes = Sweep {
            problem,
            matrix: &matrix,
            codebooks: &codebooks,
            visits: &visits,
            beam,
            joint: visits
                .iter()
                .flat_map(|visit| &visit.steps)
                .any(|step| step.partner.is_some()),
        }
        .run(machine, &image)?;
        matrix.codes = codes.into();
        if sweeps.peek().is_none() {
            break;
        }
        image = Trial::new(machine, problem, matrix.clone())?.image;
    }
    Ok(matrix)
}

/// One sweep, which sees no group twice.
struct Sweep<'a> {
    problem: &'a Problem,
    matrix: &'a Quantized,
    codebooks: &'a Buffer<f32>,
    visits: &'a [Visit],
    beam: usize,
    /// whether a step chooses two codes together
    joint: bool,
}

impl Sweep<'_> {
    /// Codes, planes of [M, groups]; `image` is (W - Q) H.
    fn run(&self, machine: &Machine, image: &Buffer<f32>) -> Result<Buffer<u16>> {
        let form = &self.matrix.form;
        let (go, gi) = (form.scheme.out_group_size, form.scheme.in_group_size);
        let (states, len, width, count) = (form.states(), form.len(), form.width(), form.codebooks());
        let (out_groups, beam) = (form.out_groups, self.beam);
        let per_panel = (PANEL_COLUMNS / gi).max(1);
        let owners = (ROWS / beam).max(1);
        let shared_bytes = self.shared_bytes(form, owners, per_panel.min(self.visits.len().max(1)));
        let most_bytes = machine.device().target().shared_bytes;
        if shared_bytes > most_bytes {
            return Err(AqlmError::Unsupported(format!(
                "a beam of {beam} for {} needs {shared_bytes} bytes of shared memory a block, the device has \
                 {most_bytes}",
                form.scheme
            ))
            .into());
        }
        let columns = self.columns(form);
        let columns = machine.upload(&columns, "columns in the order of the sweep")?;
        let hessian = machine.permuted(&self.problem.hessian, Some(&columns), &columns)?;
        let lines = out_groups * beam * go;
        let source: Vec<u32> = (0..lines)
            .map(|line| (line / (beam * go) * go + line % go) as u32)
            .collect();
        let source = machine.upload(&source, "rows of hypotheses")?;
        let mut gradient = machine.permuted(image, Some(&source), &columns)?;
        let mut other = machine.fresh::<f32>(if beam > 1 { gradient.len() } else { 1 }, "gradients")?;
        let steps = || self.visits.iter().flat_map(|visit| &visit.steps);
        // The history holds as many codes for every step; a single one is there twice beside pairs.
        let each = if self.joint { 2 } else { 1 };
        let places: Vec<(usize, usize)> = steps()
            .flat_map(|step| {
                [step.codebook, step.partner.unwrap_or(step.codebook)][..each]
                    .to_vec()
                    .into_iter()
                    .map(|m| (step.group, m))
            })
            .collect();
        let positions = steps().count();
        let slots = out_groups * beam;
        let parents = machine.fresh::<u16>(positions.max(1) * slots, "parents")?;
        let chosen = machine.fresh::<u16>(positions.max(1) * slots * each, "codes of hypotheses")?;
        let losses = machine.zeros::<f64>(slots, "losses of hypotheses")?;
        let alive = machine.upload(&vec![1_i32; out_groups], "numbers of hypotheses")?;
        let roots = machine.fresh::<u16>(slots, "ancestors")?;
        let forms = machine.fresh::<f32>(per_panel * count * states, "squared lengths of codewords")?;
        let mut first_position = 0;
        for (panel, visits) in self.visits.chunks(per_panel).enumerate() {
            let first_column = panel * per_panel * gi;
            let wide = visits.len() * gi;
            let changes = machine.fresh::<f32>(lines * wide, "changes of a panel")?;
            for m in 0..count {
                machine.forms_into(
                    further::<f32>(machine.address(self.codebooks), m * states * len),
                    states,
                    [go, gi],
                    Some(Metrics {
                        matrix: &hessian,
                        first: first_column * (width + 1),
                        stride: width,
                        next: gi * (width + 1),
                        count: visits.len(),
                        lower: false,
                    }),
                    further::<f32>(machine.address(&forms), m * states),
                    count,
                )?;
            }
            let lists = Lists::new(machine, visits)?;
            let history = first_position * slots;
            machine.run(
                "layer_sweep/k1_panel",
                &[("AQLM_GO", go), ("AQLM_GI", gi)],
                [out_groups.div_ceil(owners), 1, THREADS, shared_bytes],
                &[
                    machine.address(&gradient),
                    machine.address(&hessian),
                    machine.address(self.codebooks),
                    machine.address(&self.matrix.scales),
                    machine.address(&self.matrix.codes),
                    machine.address(&forms),
                    machine.address(&lists.inputs),
                    machine.address(&lists.starts),
                    machine.address(&lists.planes),
                    machine.address(&lists.partners),
                    machine.address(&losses),
                    machine.address(&alive),
                    further::<u16>(machine.address(&parents), history),
                    further::<u16>(machine.address(&chosen), history * each),
                    machine.address(&changes),
                    machine.address(&roots),
                ],
                &[
                    out_groups,
                    width,
                    first_column,
                    visits.len(),
                    count,
                    states,
                    beam,
                    owners,
                    usize::from(self.joint),
                ],
            )?;
            first_position += lists.positions;
            let end = first_column + wide;
            if end < width {
                if beam > 1 {
                    machine.adopt(&gradient, &roots, &mut other, [beam, go, width], end..width)?;
                    std::mem::swap(&mut gradient, &mut other);
                }
                machine.product::<f32>(
                    &Product {
                        alpha: -1.0,
                        beta: 1.0,
                        ..Product::new(lines, width - end, wide)
                    },
                    [
                        Block {
                            at: machine.address(&changes),
                            stride: wide,
                        },
                        Block {
                            at: further::<f32>(machine.address(&hessian), first_column * width + end),
                            stride: width,
                        },
                        Block {
                            at: further::<f32>(machine.address(&gradient), end),
                            stride: width,
                        },
                    ],
                )?;
            }
        }
        let codes = self.matrix.codes.try_clone()?;
        if positions > 0 {
            machine.trace(
                &parents,
                &chosen,
                &places,
                &codes,
                form,
                [beam, positions, each, 0],
            )?;
        }
        Ok(codes)
    }

    /// Columns in the order of the sweep; those of unvisited groups come last.
    fn columns(&self, form: &Form) -> Vec<u32> {
        let gi = form.scheme.in_group_size;
        let mut visited = vec![false; form.in_groups];
        let mut groups = Vec::with_capacity(form.in_groups);
        for visit in self.visits {
            visited[visit.group] = true;
            groups.push(visit.group);
        }
        groups.extend((0..form.in_groups).filter(|&j| !visited[j]));
        groups
            .into_iter()
            .flat_map(|j| j * gi..(j + 1) * gi)
            .map(|column| column as u32)
            .collect()
    }

    /// Shared memory of a block, as the kernel lays it out.
    fn shared_bytes(&self, form: &Form, owners: usize, visits: usize) -> usize {
        let (go, gi, len) = (form.scheme.out_group_size, form.scheme.in_group_size, form.len());
        let rows = (owners * self.beam).next_multiple_of(ROWS);
        let even = |n: usize| n.next_multiple_of(4);
        let copies = if self.beam > 1 { 2 } else { 1 };
        let table = if self.joint { form.states() } else { 0 };
        let floats = even(gi * gi)
            + 2 * even(table * len)
            + table * ROWS
            + rows * THREADS
            + even(owners * self.beam)
            + rows * (6 * len + 2)
            + copies * even(rows * go * visits * gi);
        floats * 4 + 2 * rows * 8 + 4 * (2 * owners + 2 * rows) + 2 * 4 * rows
    }
}

/// The visits of a panel as the kernel takes them.
struct Lists {
    /// each visit's input group
    inputs: Buffer<u32>,
    /// each visit's first position
    starts: Buffer<u32>,
    /// each position's codebook
    planes: Buffer<u32>,
    /// the second codebook of a pair, else `ALONE`
    partners: Buffer<u32>,
    positions: usize,
}

impl Lists {
    fn new(machine: &Machine, visits: &[Visit]) -> Result<Self> {
        let inputs: Vec<u32> = visits.iter().map(|visit| visit.group as u32).collect();
        let mut starts = vec![0_u32];
        let (mut planes, mut partners) = (Vec::new(), Vec::new());
        for visit in visits {
            planes.extend(visit.steps.iter().map(|step| step.codebook as u32));
            partners.extend(
                visit
                    .steps
                    .iter()
                    .map(|step| step.partner.map_or(ALONE, |m| m as u32)),
            );
            starts.push(planes.len() as u32);
        }
        Ok(Self {
            inputs: machine.upload(&inputs, "input groups of visits")?,
            starts: machine.upload(&starts, "first positions of visits")?,
            positions: planes.len(),
            planes: machine.upload(&planes, "codebooks of positions")?,
            partners: machine.upload(&partners, "second codebooks of positions")?,
        })
    }
}
