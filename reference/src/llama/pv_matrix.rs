use aqlm_vocabulary::{AqlmError, CodeSettings, ModelTuning, QuantizedMatrix, Rates, Result, Tuned};
use ndarray::Array2;

use super::quantized_gradients;
use crate::optimizer::Stepper;
use crate::pv::{Recoded, TunedCodes, allowances};

/// One matrix under PV-Tuning: the step of [`ModelTuner`](super::ModelTuner) for a model of a single matrix,
/// in the order of the official code (Vahe1994/AQLM at e79a896, `src/pv_optimizer.py`).
#[derive(Debug, Clone)]
pub struct PvMatrix {
    tuned: Tuned,
    settings: CodeSettings,
    matrix: QuantizedMatrix,
    codebooks: Stepper,
    scales: Stepper,
    codes: TunedCodes,
}

impl PvMatrix {
    /// The matrix before the first step.
    ///
    /// # Errors
    /// `Argument` when the settings tune no codes or are out of their range.
    pub fn new(matrix: QuantizedMatrix, tuning: ModelTuning) -> Result<Self> {
        let settings = tuning
            .codes
            .ok_or_else(|| AqlmError::argument("settings of codes", "some", "none"))?;
        tuning.check_codes()?;
        Ok(Self {
            codebooks: Stepper::new(tuning.optimizer, matrix.codebooks().len()),
            scales: Stepper::new(tuning.optimizer, matrix.scales().len()),
            codes: TunedCodes::new(&matrix, settings),
            tuned: tuning.tuned,
            settings,
            matrix,
        })
    }

    /// The matrix as it is now.
    pub fn matrix(&self) -> &QuantizedMatrix {
        &self.matrix
    }

    /// Its buffer, [out_features, in_features].
    pub fn buffer(&self) -> &Array2<f64> {
        self.codes.buffer()
    }

    /// One step, given the gradient with respect to the decoded weight, [out_features, in_features].
    ///
    /// Codebooks, scales and the buffer move at the same time, all along gradients at the old point. Then the
    /// codes are chosen, under the new codebooks and scales, visiting codebooks in `order`.
    ///
    /// # Errors
    /// Those of [`QuantizedMatrix::with_codes`], which the choice of codes does not cause.
    pub fn step(&mut self, gradient: &Array2<f64>, rates: Rates, order: &[usize]) -> Result<Recoded> {
        let (of_codebooks, of_scales) = quantized_gradients(&self.matrix, gradient);
        let tuned = self.tuned;
        let (codebooks, scales) = (&mut self.codebooks, &mut self.scales);
        self.matrix.tune(|to_codebooks, to_scales| {
            if tuned.codebooks {
                codebooks.step(rates.lr, to_codebooks, &of_codebooks);
            }
            if tuned.scales {
                scales.step(rates.lr, to_scales, &of_scales);
            }
        });
        self.codes.gradient_mut().assign(gradient);
        self.codes.move_buffer(rates.code_lr);
        let settings = self.settings;
        let norms = self.codes.differences(&self.matrix);
        let count = allowances(&[norms], settings.max_change, settings.budget)[0];
        let recoded = self.codes.recode(&self.matrix, count, order);
        let matrix = self.matrix.clone().with_codes(recoded.codes.clone())?;
        self.matrix = self.codes.refitted(matrix)?;
        self.codes.decay(&self.matrix);
        Ok(recoded)
    }
}

#[cfg(test)]
mod tests {
    use ndarray::{Array1, Array3, Array4, Axis};
    use rand::RngExt;

    use super::*;
    use crate::kmeans::{KMeansSettings, kmeans};
    use crate::llama::test_data::{normal, random};
    use crate::{decode, starting_points};
    use aqlm_vocabulary::{AdamDecay, ChangeBudget, Optimizer, Purpose, Residuals, Scheme, StepRule, stream};

    /// Plain gradient descent: eps is so large that it alone divides.
    fn descent(eps: f64) -> Optimizer {
        Optimizer {
            decay: AdamDecay {
                beta1: 0.0,
                beta2: 0.0,
                eps,
            },
            rule: StepRule::Official {
                lamb: false,
                debias: false,
            },
        }
    }

    /// The loss |W - Q|^2 / 2 has the gradient Q - W. One step of gradient descent with rate 1 moves the
    /// buffer from Q to W, so codes become those of the nearest codewords: the assignment of k-means. A step
    /// with rate 1 / (size of cluster) moves each codeword to its cluster's mean.
    #[test]
    fn with_one_codebook_and_the_identity_loss_steps_are_those_of_k_means() {
        let mut rng = random(7);
        let points = normal(&mut rng, (120, 4));
        let weight = points.to_shape((30, 16)).unwrap().to_owned();
        let scheme = Scheme::new(1, 3, 4).unwrap();
        let init = starting_points(points.view(), 8, &mut stream(7, 0, None, Purpose::Initialization));
        let codes = Array3::from_shape_simple_fn((30, 4, 1), || rng.random_range(0..8));
        let codebooks = Array4::from_shape_vec((1, 8, 1, 4), init.iter().copied().collect()).unwrap();
        let start = QuantizedMatrix::new(scheme, codes, codebooks, Array1::ones(30)).unwrap();
        let eps = 1e12;
        let settings = CodeSettings {
            lr: eps,
            optimizer: descent(eps),
            max_change: 1.0,
            budget: ChangeBudget::Matrix,
            trust_ratio: None,
            beam: 1,
            residuals: Residuals::Own,
            delta_decay: 1.0,
            ..CodeSettings::README
        };
        let tuning = ModelTuning {
            tuned: Tuned::NONE,
            optimizer: descent(eps),
            codes: Some(settings),
            seed: 0,
        };
        let mut pv = PvMatrix::new(start, tuning).unwrap();
        for iterations in 0..4 {
            let expected = kmeans(points.view(), init.clone(), &KMeansSettings::new(iterations));
            let gradient = decode(pv.matrix()) - &weight;
            let rates = Rates {
                lr: 0.0,
                code_lr: eps,
            };
            pv.step(&gradient, rates, &[0]).unwrap();
            let codes: Vec<usize> = pv
                .matrix()
                .codes()
                .iter()
                .map(|&code| usize::from(code))
                .collect();
            assert_eq!(codes, expected.assignments, "{iterations} iterations");
            let inertia = (decode(pv.matrix()) - &weight).mapv(|e| e * e).sum() / 120.0;
            assert!(
                (inertia - expected.inertia).abs() < 1e-8,
                "{inertia} {}",
                expected.inertia
            );
            // the P step of k-means: gradient descent on each codeword with the rate of its own curvature
            let gradient = decode(pv.matrix()) - &weight;
            let (of_codebooks, _) = quantized_gradients(pv.matrix(), &gradient);
            let mut moved = pv.matrix().codebooks().clone();
            for (k, (mut codeword, slope)) in moved
                .index_axis_mut(Axis(0), 0)
                .outer_iter_mut()
                .zip(of_codebooks.index_axis(Axis(0), 0).outer_iter())
                .enumerate()
            {
                let size = codes.iter().filter(|&&code| code == k).count().max(1);
                codeword.scaled_add(-1.0 / size as f64, &slope);
            }
            // a new buffer, which starts as the decoded weight
            let matrix = pv.matrix().clone().with_codebooks(moved).unwrap();
            pv = PvMatrix::new(matrix, tuning).unwrap();
        }
    }

    #[test]
    fn without_a_budget_only_continuous_parameters_move() {
        let mut rng = random(8);
        let matrix = crate::llama::test_data::quantized(&mut rng, 6, 8);
        let gradient = normal(&mut rng, (6, 8));
        for settings in [CodeSettings::README, CodeSettings::BRANCH] {
            let tuning = ModelTuning {
                tuned: Tuned::ALL,
                optimizer: settings.optimizer,
                codes: Some(CodeSettings {
                    max_change: 0.0,
                    ..settings
                }),
                seed: 0,
            };
            let mut pv = PvMatrix::new(matrix.clone(), tuning).unwrap();
            let rates = Rates {
                lr: 0.1,
                code_lr: 0.5,
            };
            let recoded = pv.step(&gradient, rates, &[1, 0]).unwrap();
            assert_eq!(recoded.changed, 0);
            assert_eq!(pv.matrix().codes(), matrix.codes());
            assert_ne!(pv.matrix().codebooks(), matrix.codebooks());
            assert_ne!(pv.buffer(), &decode(&matrix));
        }
    }

    /// With every group allowed, a beam that keeps every tuple gives every group the tuple nearest to the
    /// buffer; with a smaller budget exactly the groups with the largest differences, found by brute force.
    #[test]
    fn a_step_of_a_small_matrix_is_what_brute_force_finds() {
        let mut rng = random(9);
        for round in 0..20 {
            let matrix = crate::llama::test_data::quantized(&mut rng, 4, 6);
            let gradient = normal(&mut rng, (4, 6));
            let share = [1.0, 0.25][round % 2];
            let settings = CodeSettings {
                max_change: share,
                beam: 4,
                ..CodeSettings::README
            };
            let tuning = ModelTuning {
                tuned: Tuned::NONE,
                optimizer: settings.optimizer,
                codes: Some(settings),
                seed: 0,
            };
            let mut pv = PvMatrix::new(matrix.clone(), tuning).unwrap();
            let rates = Rates {
                lr: 0.0,
                code_lr: 1.0,
            };
            pv.step(&gradient, rates, &[1, 0]).unwrap();
            let off = |weight: &Array2<f64>, o: usize, j: usize| -> f64 {
                let at = ndarray::s![o, 2 * j..2 * j + 2];
                (&weight.slice(at) - &pv.buffer().slice(at)).mapv(|e| e * e).sum()
            };
            let (old, new) = (decode(&matrix), decode(pv.matrix()));
            let mut groups: Vec<(usize, usize)> = (0..12).map(|group| (group / 3, group % 3)).collect();
            groups.sort_by(|a, b| off(&old, b.0, b.1).total_cmp(&off(&old, a.0, a.1)));
            let count = (share * 12.0) as usize;
            for (place, &(o, j)) in groups.iter().enumerate() {
                let best = (0..16u16)
                    .map(|tuple| {
                        let mut codes = matrix.codes().clone();
                        (codes[[o, j, 0]], codes[[o, j, 1]]) = (tuple / 4, tuple % 4);
                        off(&decode(&matrix.clone().with_codes(codes).unwrap()), o, j)
                    })
                    .fold(f64::INFINITY, f64::min);
                let expected = if place < count { best } else { off(&old, o, j) };
                assert!((off(&new, o, j) - expected).abs() < 1e-12, "place {place}");
            }
        }
    }
}
