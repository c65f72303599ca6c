use std::sync::Arc;

use aqlm_vocabulary::{
    AqlmError, FeedbackSettings, GroupOrder, LayerSettings, Purpose, QuantizedMatrix, StreamKey,
    sample_distinct,
};
use ndarray::{Array1, Array2, Array3};

use super::codebook_update::{Stop, update_trial};
use super::codes::{Codebooks, Decoding, Form, Quantized, Summed};
use super::factor::Factor;
use super::kmeans::Metrics;
use super::machine::{Block, Machine, Product, THREADS, further};
use super::problem::{Problem, Trial};
use crate::cuda::{Buffer, Device, Result};

/// Rounds of (joint assignment, means) that fit the first codebooks to the weight's groups.
const FIT_ROUNDS: usize = 10;

/// Most groups that take part in a round.
const FIT_GROUPS: usize = 1 << 15;

/// Choices of a group's first codebooks that are kept while its other codebooks are undecided.
const PARTIAL: usize = aqlm_kernels::defines::layer_feedback::k1_panel::PARTIAL;

/// Columns of L in a panel of input groups. Inside a panel, feedback comes from the panel's own errors; one
/// product after it brings the feedback of all undecided groups up to date.
const PANEL_COLUMNS: usize = 128;

/// Rows that share each load of a codeword in the kernels.
pub(super) const ROWS: usize = aqlm_kernels::defines::choose::ROWS;

/// Most hypotheses of an output group: a candidate's rank among equals must be exact in f32.
pub(super) const MOST_HYPOTHESES: usize = 128;

/// Initial codes and codebooks by error feedback, on the device; as
/// [`cpu::quantizer::feedback_init`](crate::cpu::quantizer::feedback_init).
///
/// # Errors
/// `NotDivisible`, `Shape`, `NotPositiveDefinite`, `Argument` as there; `Unsupported` for more than 128
/// hypotheses or groups too large for the device's shared memory.
pub fn feedback_init(
    device: &Arc<Device>,
    weight: &Array2<f32>,
    hessian: &Array2<f64>,
    settings: &LayerSettings,
    feedback: &FeedbackSettings,
    key: StreamKey,
) -> Result<QuantizedMatrix> {
    let machine = Machine::new(Arc::clone(device))?;
    let (problem, factor) = prepared(
        &machine,
        weight,
        hessian,
        settings.scheme.in_group_size,
        feedback.order,
        || settings.scheme.groups(weight.nrows(), weight.ncols()).map(|_| ()),
    )?;
    let trial = initialize(&machine, &problem, &factor, settings, feedback, key)?;
    machine.download_matrix(&trial.matrix)
}

/// Codes for given codebooks and scales, and each output group's loss, on the device; as
/// [`cpu::quantizer::feedback_search`](crate::cpu::quantizer::feedback_search).
///
/// # Errors
/// As [`feedback_init`].
pub fn feedback_search(
    device: &Arc<Device>,
    weight: &Array2<f32>,
    hessian: &Array2<f64>,
    matrix: &QuantizedMatrix,
    hypotheses: usize,
    order: GroupOrder,
) -> Result<(Array3<u16>, Array1<f64>)> {
    check(hypotheses)?;
    let machine = Machine::new(Arc::clone(device))?;
    let gi = matrix.scheme().in_group_size;
    let (problem, factor) = prepared(&machine, weight, hessian, gi, order, || Ok(()))?;
    problem.check(matrix)?;
    let matrix = machine.upload_matrix(matrix)?;
    let (codes, losses) = searched(&machine, &problem, &factor, &matrix, hypotheses)?;
    Ok((
        machine.download_codes(&matrix.form, &codes)?,
        Array1::from(losses),
    ))
}

fn prepared(
    machine: &Machine,
    weight: &Array2<f32>,
    hessian: &Array2<f64>,
    gi: usize,
    order: GroupOrder,
    check: impl FnOnce() -> aqlm_vocabulary::Result<()>,
) -> Result<(Problem, Factor)> {
    let on_device = machine.upload_rows(hessian, "H in f64")?;
    let problem = Problem::with(machine, weight, hessian, &on_device)?;
    check()?;
    let factor = Factor::new(machine, hessian, &on_device, gi, order)?;
    Ok((problem, factor))
}

/// # Errors
/// `Argument` for no hypotheses, `Unsupported` for too many.
fn check(hypotheses: usize) -> Result<()> {
    match hypotheses {
        0 => Err(AqlmError::argument("hypotheses", "at least 1 hypothesis", 0).into()),
        1..=MOST_HYPOTHESES => Ok(()),
        _ => Err(AqlmError::Unsupported(format!(
            "the cuda backend searches with at most {MOST_HYPOTHESES} hypotheses, found {hypotheses}"
        ))
        .into()),
    }
}

/// [`feedback_init`] given the factor of H.
pub(super) fn initialize(
    machine: &Machine,
    problem: &Problem,
    factor: &Factor,
    settings: &LayerSettings,
    feedback: &FeedbackSettings,
    key: StreamKey,
) -> Result<Trial> {
    check(feedback.hypotheses)?;
    if feedback.passes == 0 {
        return Err(AqlmError::argument("passes", "at least 1 pass", 0).into());
    }
    let shape = (problem.rows, problem.width);
    let first = machine.initialize(&problem.weight, shape, settings, key, |_, _| Ok(()))?;
    let first = fit_jointly(machine, problem, first, key)?;
    let searched = |matrix: Quantized| -> Result<Trial> {
        let (codes, _) = searched(machine, problem, factor, &matrix, feedback.hypotheses)?;
        let matrix = Quantized {
            codes: codes.into(),
            ..matrix
        };
        Trial::new(machine, problem, matrix)
    };
    let mut trial = searched(first)?;
    let mut best = (trial.loss, trial.matrix.clone());
    for _ in 1..feedback.passes {
        trial = update_trial(machine, problem, trial, &settings.update, Stop::ALTERNATION)?;
        if trial.loss < best.0 {
            best = (trial.loss, trial.matrix.clone());
        }
        trial = searched(trial.matrix)?;
        if trial.loss < best.0 {
            best = (trial.loss, trial.matrix.clone());
        }
    }
    if trial.loss.to_bits() == best.0.to_bits() {
        return Ok(trial);
    }
    Trial::new(machine, problem, best.1)
}

fn searched(
    machine: &Machine,
    problem: &Problem,
    factor: &Factor,
    matrix: &Quantized,
    hypotheses: usize,
) -> Result<(Buffer<u16>, Vec<f64>)> {
    let weight = machine.permuted(&problem.weight, None, &factor.columns)?;
    Search {
        form: matrix.form,
        weight: &weight,
        lower: &factor.lower,
        order: &factor.order,
        codebooks: &machine.narrow(&matrix.codebooks)?,
        scales: &matrix.scales,
        hypotheses,
    }
    .run(machine)
}

/// A search over all input groups.
struct Search<'a> {
    form: Form,
    /// with columns in the order of the factor
    weight: &'a Buffer<f32>,
    lower: &'a Buffer<f32>,
    order: &'a [usize],
    codebooks: &'a Buffer<f32>,
    scales: &'a Buffer<f64>,
    hypotheses: usize,
}

/// How the kernel divides the output groups.
struct Division {
    /// whether pairs of codebooks are searched jointly
    joint: bool,
    /// whether a codebook is searched alone
    single: bool,
    /// rows of an owner, owners of a block
    cap: usize,
    owners: usize,
    places: usize,
    shared_bytes: usize,
}

impl Search<'_> {
    fn division(&self, most_bytes: usize) -> Result<Division> {
        let (states, count, len) = (self.form.states(), self.form.codebooks(), self.form.len());
        let (go, gi) = (self.form.scheme.out_group_size, self.form.scheme.in_group_size);
        let joint = self.form.scheme.has_pairs();
        let stages = if joint { count.div_ceil(2) } else { count };
        let cap = if stages > 1 {
            self.hypotheses.max(PARTIAL)
        } else {
            self.hypotheses
        };
        let owners = (ROWS / cap).max(1);
        let rows = (owners * cap).next_multiple_of(ROWS);
        let places = (PANEL_COLUMNS / gi).max(1).min(self.form.in_groups.max(1));
        let even = |n: usize| n.next_multiple_of(4);
        let table = if joint { states } else { 0 };
        let copies = if self.hypotheses > 1 { 2 } else { 1 };
        let floats = even(gi * gi)
            + 2 * even(table * len)
            + 2 * even(table)
            + table * ROWS
            + rows * (THREADS + 4 * len + 1)
            + copies * even(rows * go * places * gi);
        let shared_bytes =
            floats * 4 + 5 * rows * 8 + 4 * (2 * owners + 2 * rows) + 2 * (4 * rows + 2 * rows * count);
        if shared_bytes > most_bytes {
            return Err(AqlmError::Unsupported(format!(
                "a search of {} with {} hypotheses needs {shared_bytes} bytes of shared memory a block, the \
                 device has {most_bytes}",
                self.form.scheme, self.hypotheses
            ))
            .into());
        }
        Ok(Division {
            joint,
            single: !joint || count % 2 == 1,
            cap,
            owners,
            places,
            shared_bytes,
        })
    }

    /// Codes, planes of [M, groups], and the loss of each output group.
    fn run(&self, machine: &Machine) -> Result<(Buffer<u16>, Vec<f64>)> {
        let form = &self.form;
        let division = self.division(machine.device().target().shared_bytes)?;
        let (out_groups, in_groups, count) = (form.out_groups, form.in_groups, form.codebooks());
        let (go, gi) = (form.scheme.out_group_size, form.scheme.in_group_size);
        let (states, len, width, keep) = (form.states(), form.len(), form.width(), self.hypotheses);
        let slots = out_groups * keep;
        let lines = slots * go;
        let mut feedback = machine.zeros::<f32>(lines * width, "feedback")?;
        let mut other = machine.fresh::<f32>(if keep > 1 { lines * width } else { 1 }, "feedback")?;
        let losses = machine.zeros::<f64>(slots, "losses of hypotheses")?;
        let alive = machine.upload(&vec![1_i32; out_groups], "numbers of hypotheses")?;
        let parents = machine.fresh::<u16>(in_groups * slots, "parents")?;
        let chosen = machine.fresh::<u16>(in_groups * slots * count, "codes of hypotheses")?;
        let errors = machine.fresh::<f32>(lines * division.places * gi, "errors of a panel")?;
        let roots = machine.fresh::<u16>(slots, "ancestors")?;
        let forms = machine.fresh::<f32>(
            if division.single {
                division.places * count * states
            } else {
                1
            },
            "squared lengths of codewords",
        )?;
        let mut end = in_groups;
        while end > 0 {
            let start = (end - 1) / division.places * division.places;
            let places = end - start;
            if division.single {
                let alone = if division.joint {
                    count - 1..count
                } else {
                    0..count
                };
                for m in alone {
                    machine.forms_into(
                        further::<f32>(machine.address(self.codebooks), m * states * len),
                        states,
                        [go, gi],
                        Some(Metrics {
                            matrix: self.lower,
                            first: start * gi * (width + 1),
                            stride: width,
                            next: gi * (width + 1),
                            count: places,
                            lower: true,
                        }),
                        further::<f32>(machine.address(&forms), m * states),
                        count,
                    )?;
                }
            }
            machine.run(
                "layer_feedback/k1_panel",
                &[("AQLM_GO", go), ("AQLM_GI", gi)],
                [
                    out_groups.div_ceil(division.owners),
                    1,
                    THREADS,
                    division.shared_bytes,
                ],
                &[
                    machine.address(self.weight),
                    machine.address(self.lower),
                    machine.address(self.codebooks),
                    machine.address(self.scales),
                    machine.address(&forms),
                    machine.address(&feedback),
                    machine.address(&losses),
                    machine.address(&alive),
                    machine.address(&parents),
                    machine.address(&chosen),
                    machine.address(&errors),
                    machine.address(&roots),
                ],
                &[
                    out_groups,
                    width,
                    start,
                    places,
                    count,
                    states,
                    keep,
                    division.cap,
                    division.owners,
                    usize::from(division.joint),
                ],
            )?;
            let begin = start * gi;
            if begin > 0 {
                if keep > 1 {
                    machine.adopt(&feedback, &roots, &mut other, [keep, go, width], 0..begin)?;
                    std::mem::swap(&mut feedback, &mut other);
                }
                machine.product::<f32>(
                    &Product {
                        beta: 1.0,
                        ..Product::new(lines, begin, places * gi)
                    },
                    [
                        Block {
                            at: machine.address(&errors),
                            stride: places * gi,
                        },
                        Block {
                            at: further::<f32>(machine.address(self.lower), begin * width),
                            stride: width,
                        },
                        Block {
                            at: machine.address(&feedback),
                            stride: width,
                        },
                    ],
                )?;
            }
            end = start;
        }
        let places: Vec<(usize, usize)> = self
            .order
            .iter()
            .flat_map(|&j| (0..count).map(move |m| (j, m)))
            .collect();
        let codes = machine.fresh::<u16>(count * form.groups(), "codes")?;
        machine.trace(
            &parents,
            &chosen,
            &places,
            &codes,
            form,
            [keep, in_groups, count, 1],
        )?;
        let losses = machine.download(&losses)?;
        Ok((codes, losses.into_iter().step_by(keep).collect()))
    }
}

impl Machine {
    /// Every hypothesis takes its ancestor's rows, in these columns.
    pub(super) fn adopt(
        &self,
        from: &Buffer<f32>,
        roots: &Buffer<u16>,
        to: &mut Buffer<f32>,
        [hypotheses, go, width]: [usize; 3],
        columns: std::ops::Range<usize>,
    ) -> Result<()> {
        let rows = roots.len() * go;
        self.run(
            "layer_adopt/k1_thread_a_number",
            &[],
            [columns.len().div_ceil(THREADS), rows, THREADS, 0],
            &[self.address(from), self.address(roots), self.address(to)],
            &[rows, hypotheses, go, width, columns.start, columns.end],
        )
    }

    /// Writes the codes of every output group's best hypothesis. `places` are the (input group, codebook) of
    /// each code of the history, step after step.
    pub(super) fn trace(
        &self,
        parents: &Buffer<u16>,
        chosen: &Buffer<u16>,
        places: &[(usize, usize)],
        codes: &Buffer<u16>,
        form: &Form,
        [hypotheses, steps, each, backwards]: [usize; 4],
    ) -> Result<()> {
        let inputs: Vec<u32> = places.iter().map(|&(j, _)| j as u32).collect();
        let planes: Vec<u32> = places.iter().map(|&(_, m)| m as u32).collect();
        let inputs = self.upload(&inputs, "input groups of the history")?;
        let planes = self.upload(&planes, "codebooks of the history")?;
        self.run(
            "layer_trace/k1_thread_a_group",
            &[],
            [form.out_groups.div_ceil(64), 1, 64, 0],
            &[
                self.address(parents),
                self.address(chosen),
                self.address(&inputs),
                self.address(&planes),
                self.address(codes),
            ],
            &[
                form.out_groups,
                hypotheses,
                steps,
                each,
                form.in_groups,
                backwards,
            ],
        )
    }
}

/// Codebooks fitted to the weight's normalised groups together: rounds of assigning every group its nearest
/// sum and moving each codebook's codewords to the means of what the other codebooks leave. Codewords that no
/// group uses stay.
fn fit_jointly(machine: &Machine, problem: &Problem, matrix: Quantized, key: StreamKey) -> Result<Quantized> {
    let form = matrix.form;
    if form.codebooks() == 1 {
        return Ok(matrix);
    }
    let (go, gi, len, states) = (
        form.scheme.out_group_size,
        form.scheme.in_group_size,
        form.len(),
        form.states(),
    );
    let mut rng = key.stream(Purpose::Initialization);
    let sample: Vec<u32> = sample_distinct(&mut rng, form.groups(), FIT_GROUPS)
        .into_iter()
        .map(|group| group as u32)
        .collect();
    let count = sample.len();
    let normalised = machine.normalised(&problem.weight, &form, &matrix.scales)?;
    let groups = machine.rows_of(&normalised, len, &sample)?;
    drop(normalised);
    let mut codebooks = machine.narrow(&matrix.codebooks)?;
    let identity = Array2::<f32>::eye(gi);
    let identity = machine.upload_rows(&identity, "the identity")?;
    let ones = machine.upload(&vec![1.0_f64; count], "scales of one")?;
    let mut unused = machine.zeros::<i32>(1, "whether codewords moved")?;
    for _ in 0..FIT_ROUNDS {
        let (codes, _) = Search {
            form: Form {
                out_groups: count,
                in_groups: 1,
                ..form
            },
            weight: &groups,
            lower: &identity,
            order: &[0],
            codebooks: &codebooks,
            scales: &ones,
            hypotheses: 1,
        }
        .run(machine)?;
        let places = machine.places(&codes, count, states)?;
        for m in 0..form.codebooks() {
            let mut left = machine.fresh(groups.len(), "what other codebooks leave")?;
            machine.decode(
                &Decoding {
                    rows: count,
                    width: len,
                    groups: count,
                    codebooks: form.codebooks(),
                    states,
                    group: [1, len],
                    subtract: true,
                    skipped: Some(m),
                },
                Some(&groups),
                &codes,
                Codebooks::Narrow(&codebooks),
                None,
                &mut left,
            )?;
            let summed = Summed {
                width: len,
                inputs: 1,
                group: [1, len],
                power: 0,
                of_input: false,
            };
            let sums = machine.scatter_plane(m, &left, None, &places, &summed)?;
            machine.move_to_means(&sums, &places, &mut codebooks, m, &mut unused)?;
        }
        debug_assert_eq!(len, go * gi);
    }
    Ok(Quantized {
        codebooks: machine.widen(&codebooks)?.into(),
        ..matrix
    })
}
