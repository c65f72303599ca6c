//! Text that a model writes, token by token.

use std::time::Instant;

use aqlm_vocabulary::Stream;
use ndarray::{Array1, Array2};
use rand::RngExt;

use crate::backends::Backend;
use aqlm_formats::model::Model;
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

    /// Chooses a token; the lowest id wins ties.
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
                // A stable sort keeps ids in order among equals, so the draw is reproducible.
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

/// A resident model that can write texts token by token with a KV cache.
#[derive(Debug)]
pub struct Generator<'a, B: Backend> {
    backend: &'a B,
    embedding: Array2<f32>,
    blocks: Vec<B::Block>,
    head: B::Head,
}

/// What was generated, and how fast.
#[derive(Debug, Clone, PartialEq)]
pub struct Generated {
    /// new token ids, without the end-of-text token
    pub tokens: Vec<u32>,
    /// seconds spent on the prompt
    pub prompt_seconds: f64,
    /// seconds spent on the new tokens
    pub seconds: f64,
}

impl<'a, B: Backend> Generator<'a, B> {
    /// Makes all blocks of the model resident.
    ///
    /// # Errors
    /// Unreadable tensors and what the backend refuses.
    pub fn new(backend: &'a B, model: &Model) -> Result<Self> {
        let blocks = (0..model.config().blocks.len())
            .map(|index| backend.load_block(index, &model.block(index)?))
            .collect::<Result<Vec<_>>>()?;
        let head = backend.load_head(&model.final_norm()?, &model.lm_head()?)?;
        Ok(Self {
            backend,
            embedding: model.embedding()?,
            blocks,
            head,
        })
    }

    /// A text that this model writes.
    pub fn session(&self) -> Session<'_, 'a, B> {
        Session {
            generator: self,
            caches: self
                .blocks
                .iter()
                .map(|block| self.backend.new_cache(block))
                .collect(),
            position: 0,
        }
    }
}

/// A [`Generator`] and the text that it has read so far.
pub struct Session<'g, 'a, B: Backend> {
    generator: &'g Generator<'a, B>,
    caches: Vec<B::Cache>,
    position: usize,
}

impl<B: Backend> Writer for Session<'_, '_, B> {
    fn prompt(&mut self, tokens: &[u32]) -> Result<Array1<f64>> {
        let mut logits = Array1::zeros(0);
        for &token in tokens {
            logits = self.next(token)?;
        }
        Ok(logits)
    }

    fn next(&mut self, token: u32) -> Result<Array1<f64>> {
        let generator = self.generator;
        let vocab = generator.embedding.nrows();
        if token as usize >= vocab {
            return Err(Error::argument(
                "token id",
                &format!("below the vocabulary size {vocab}"),
                token.to_string(),
            ));
        }
        let row = generator.embedding.row(token as usize).to_owned();
        let logits = generator.backend.decode_step(
            &generator.blocks,
            &generator.head,
            &mut self.caches,
            &row,
            self.position,
        )?;
        self.position += 1;
        Ok(logits)
    }
}

/// Something that reads a text token by token and says what may come next.
#[expect(
    clippy::missing_errors_doc,
    reason = "what the backend refuses, for all methods"
)]
pub trait Writer {
    /// Reads the beginning of a text; the logits `[vocab]` of what follows it.
    fn prompt(&mut self, tokens: &[u32]) -> Result<Array1<f64>>;

    /// Reads one token more.
    fn next(&mut self, token: u32) -> Result<Array1<f64>>;

    /// Reads `token` and then its own likeliest continuations, `count` tokens in all; `each` gets the
    /// likeliest token after each of them and says whether to go on. `None` when it has no way of its own to
    /// do so, and has read nothing.
    fn likeliest(
        &mut self,
        _token: u32,
        _count: usize,
        _each: &mut dyn FnMut(u32) -> bool,
    ) -> Result<Option<()>> {
        Ok(None)
    }
}

/// Continues `prompt` by at most `count` tokens, stopping early at one of `stop`. Every new token is shown to
/// `each` as it comes.
///
/// # Errors
/// `Error::Argument` for an empty prompt or a token beyond the embedding; what the backend refuses.
pub fn generate(
    writer: &mut dyn Writer,
    prompt: &[u32],
    count: usize,
    stop: &[u32],
    sampling: Sampling,
    rng: &mut Stream,
    each: &mut dyn FnMut(u32),
) -> Result<Generated> {
    if prompt.is_empty() {
        return Err(Error::argument("prompt", "at least one token", "none"));
    }
    let started = Instant::now();
    let mut logits = writer.prompt(prompt)?;
    let prompt_seconds = started.elapsed().as_secs_f64();
    let started = Instant::now();
    let mut tokens = Vec::with_capacity(count);
    while tokens.len() < count {
        let token = sampling.choose(&logits, rng);
        if stop.contains(&token) {
            break;
        }
        each(token);
        tokens.push(token);
        let left = count - tokens.len();
        if left == 0 {
            break;
        }
        if sampling == Sampling::Greedy {
            let done = writer.likeliest(token, left, &mut |token| {
                let goes_on = !stop.contains(&token);
                if goes_on {
                    each(token);
                    tokens.push(token);
                }
                goes_on
            })?;
            if done.is_some() {
                break;
            }
        }
        logits = writer.next(token)?;
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
        // just under 0.5 + 0.3, so that rounding does not decide
        let sampling = Sampling::new(1.0, 0.79).unwrap();
        let draws = 4000;
        let mut counts = [0usize; 4];
        for _ in 0..draws {
            counts[sampling.choose(&logits, &mut rng) as usize] += 1;
        }
        assert_eq!(counts[2] + counts[3], 0);
        // Binomial with p = 0.5 / 0.8: five standard deviations, wrong once in two million seeds.
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
