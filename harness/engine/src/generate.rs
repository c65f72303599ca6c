//! Text generation, token by token.

use std::time::Instant;

use aqlm_vocabulary::Stream;
use ndarray::Array1;
use rand::RngExt;

use crate::ops::Session;
use aqlm_formats::{Error, Result};

/// How the next token is chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Sampling {
    /// the most likely one
    Greedy,
    /// drawn from the softmax of logits / temperature, cut to the smallest set of tokens that holds `top_p`
    Nucleus {
        /// above 0
        temperature: f64,
        /// in (0, 1]
        top_p: f64,
    },
}

impl Sampling {
    /// Greedy at temperature 0, else nucleus sampling.
    ///
    /// # Errors
    /// `Error::Argument` for a negative or infinite temperature or a top-p outside (0, 1].
    pub fn new(temperature: f64, top_p: f64) -> Result<Self> {
        if !(temperature.is_finite() && temperature >= 0.0) {
            return Err(Error::argument(
                "temperature",
                "a finite number of at least 0",
                temperature.to_string(),
            ));
        }
        if !(top_p > 0.0 && top_p <= 1.0) {
            return Err(Error::argument(
                "top_p",
                "a number above 0 and at most 1",
                top_p.to_string(),
            ));
        }
        Ok(if temperature == 0.0 {
            Self::Greedy
        } else {
            Self::Nucleus { temperature, top_p }
        })
    }

    /// Chooses a token; the lowest id wins a tie.
    pub fn choose(self, logits: &Array1<f64>, rng: &mut Stream) -> u32 {
        let argmax = || (0..logits.len()).fold(0, |best, i| if logits[i] > logits[best] { i } else { best });
        match self {
            Self::Greedy => argmax() as u32,
            Self::Nucleus { temperature, top_p } => {
                let top = logits[argmax()];
                let mut weights: Vec<(usize, f64)> = logits
                    .iter()
                    .map(|&logit| ((logit - top) / temperature).exp())
                    .enumerate()
                    .collect();
                // A stable sort keeps equal weights in order of id, which makes the draw reproducible.
                weights.sort_by(|a, b| b.1.total_cmp(&a.1));
                let total: f64 = weights.iter().map(|(_, weight)| weight).sum();
                let mut kept = 0.0;
                let mut count = 0;
                for (_, weight) in &weights {
                    kept += weight;
                    count += 1;
                    if kept >= top_p * total {
                        break;
                    }
                }
                let mut draw = rng.random::<f64>() * kept;
                for &(token, weight) in &weights[..count] {
                    draw -= weight;
                    if draw < 0.0 {
                        return token as u32;
                    }
                }
                weights[count - 1].0 as u32
            }
        }
    }
}

/// What was generated, and how fast.
#[derive(Debug, Clone, PartialEq)]
pub struct Generated {
    /// new token ids; the last may be a stop token, as in what transformers generates
    pub tokens: Vec<u32>,
    /// seconds spent on the prompt
    pub prompt_seconds: f64,
    /// seconds spent on the new tokens
    pub seconds: f64,
}

/// Continues `prompt` by at most `count` tokens and stops early after a token of `stop`. `each` receives
/// every new token as it is generated, and returns whether to go on.
///
/// # Errors
/// `Error::Argument` for an empty prompt or a token beyond the embedding; errors of the machine.
pub fn generate(
    session: &mut dyn Session,
    prompt: &[u32],
    count: usize,
    stop: &[u32],
    sampling: Sampling,
    rng: &mut Stream,
    each: &mut dyn FnMut(u32) -> bool,
) -> Result<Generated> {
    if prompt.is_empty() {
        return Err(Error::argument("prompt", "at least one token", "none"));
    }
    let started = Instant::now();
    let mut logits = session.prompt(prompt)?;
    let prompt_seconds = started.elapsed().as_secs_f64();
    let started = Instant::now();
    let mut tokens = Vec::new();
    while tokens.len() < count {
        let token = sampling.choose(&logits, rng);
        let goes_on = each(token) && !stop.contains(&token);
        tokens.push(token);
        let left = count - tokens.len();
        if left == 0 || !goes_on {
            break;
        }
        if sampling == Sampling::Greedy {
            let done = session.greedy(token, left, &mut |token| {
                tokens.push(token);
                each(token) && !stop.contains(&token)
            })?;
            if done {
                break;
            }
        }
        logits = session.next(token)?;
    }
    Ok(Generated {
        tokens,
        prompt_seconds,
        seconds: started.elapsed().as_secs_f64(),
    })
}

#[cfg(test)]
mod tests {
    use aqlm_vocabulary::{Purpose, stream};
    use ndarray::array;

    use super::*;

    #[test]
    fn greedy_takes_the_first_of_equal_maxima() {
        let mut rng = stream(0, 0, None, Purpose::Generation);
        assert_eq!(Sampling::Greedy.choose(&array![0.0, 2.0, 2.0, 1.0], &mut rng), 1);
    }

    #[test]
    fn nucleus_never_leaves_its_set_and_follows_the_probabilities() {
        let mut rng = stream(0, 0, None, Purpose::Generation);
        let probabilities = [0.5, 0.3, 0.15, 0.05];
        let logits = Array1::from_iter(probabilities.iter().map(|p: &f64| p.ln()));
        // just under 0.5 + 0.3, so that rounding does not change the set
        let sampling = Sampling::new(1.0, 0.79).unwrap();
        let draws = 4000;
        let mut counts = [0usize; 4];
        for _ in 0..draws {
            counts[sampling.choose(&logits, &mut rng) as usize] += 1;
        }
        assert_eq!(counts[2] + counts[3], 0);
        // Binomial with p = 0.5 / 0.8. The limit is five standard deviations: a false failure in one of two
        // million seeds.
        let p = 0.625f64;
        let deviation = (counts[0] as f64 - draws as f64 * p).abs() / (draws as f64 * p * (1.0 - p)).sqrt();
        assert!(deviation < 5.0, "{counts:?}");
    }

    #[test]
    fn bad_sampling_settings_are_refused() {
        for (temperature, top_p) in [(-1.0, 0.9), (f64::NAN, 0.9), (1.0, 0.0), (1.0, 1.5)] {
            assert!(Sampling::new(temperature, top_p).is_err());
        }
        assert_eq!(Sampling::new(0.0, 0.9).unwrap(), Sampling::Greedy);
    }
}
