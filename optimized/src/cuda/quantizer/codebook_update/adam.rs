use aqlm_vocabulary::AdamSettings;

use crate::cpu::adam::Moments;
use crate::cuda::Result;
use crate::cuda::quantizer::codes::{Codebooks, Decoding, Places, Summed};
use crate::cuda::quantizer::machine::Machine;
use crate::cuda::quantizer::problem::{Problem, Trial};

/// `steps` steps of full-batch Adam on codebooks and scales for fixed codes, from a fresh state. Losses and
/// gradients come from the device; Adam itself moves the few parameters on the host, in f64.
///
/// # Errors
/// `NotFinite` when the parameters overflow.
pub(super) fn descend(
    machine: &Machine,
    problem: &Problem,
    trial: &Trial,
    places: &Places,
    adam: &AdamSettings,
    steps: usize,
) -> Result<Trial> {
    let form = trial.form();
    let decoding = Decoding::of(&form);
    let factor = -2.0 / problem.rows as f64;
    let mut host = machine.download_matrix(&trial.matrix)?;
    let mut codebook_moments = Moments::new(host.codebooks().len());
    let mut scale_moments = Moments::new(host.scales().len());
    let mut matrix = trial.matrix.clone();
    let mut plain = machine.fresh::<f32>(problem.rows * problem.width, "the unscaled weight")?;
    for _ in 0..steps {
        let current = Trial::new(machine, problem, matrix.clone())?;
        let of_codebooks = machine.scatter(
            &current.image,
            Some(&matrix.scales),
            places,
            &Summed {
                width: form.width(),
                inputs: form.in_groups,
                group: decoding.group,
                power: 1,
                of_input: false,
            },
        )?;
        // The gradient of a scale: with Q = s U, <dL/dQ, U>. U, because a scale of zero erases Q.
        machine.decode(
            &decoding,
            None,
            &matrix.codes,
            Codebooks::Wide(&matrix.codebooks),
            None,
            &mut plain,
        )?;
        let band = form.scheme.out_group_size * form.width();
        let scaled = |values: Vec<f64>| -> Vec<f64> { values.iter().map(|x| factor * x).collect() };
        let of_codebooks = scaled(machine.download(&of_codebooks)?);
        let of_scales = scaled(machine.part_products(&current.image, &plain, band)?);
        host.tune(|mut codebooks, mut scales| {
            codebook_moments.step(adam, codebooks.iter_mut(), of_codebooks.iter());
            scale_moments.step(adam, scales.iter_mut(), of_scales.iter());
        });
        host.check_finite()?;
        let codebooks: Vec<f64> = host.codebooks().iter().copied().collect();
        matrix.codebooks = machine.upload(&codebooks, "codebooks")?.into();
        matrix.scales = machine.upload(&host.scales().to_vec(), "scales")?.into();
    }
    Trial::new(machine, problem, matrix)
}
