use std::ops::Range;
use std::path::{Path, PathBuf};

use aqlm_vocabulary::{Target, TopTokens};
use ndarray::{ArcArray2, Array2};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::top_tokens::top_tokens;
use super::{EndToEndEvent, EndToEndSettings, TeacherUse};
use crate::ops::BlockOps;
use crate::ranks::{Ranks, gather, share};
use crate::runs::json_lines::JsonLines;
use aqlm_formats::durable;
use aqlm_formats::model::Model;
use aqlm_formats::safetensors::{NewTensor, SafetensorFiles, write};
use aqlm_formats::{Error, Result};

/// Maximum size of the hidden states that pass through the teacher together, in numbers: 1 GiB of f32.
const TOGETHER: usize = 1 << 28;

/// One stored sequence. It counts only if its file has this checksum.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct StoredSequence {
    sequence: usize,
    sha256: String,
    /// mean probability of the tokens that were not stored
    rest: f64,
}

/// Source of the targets of every sequence.
pub(super) enum Teacher<M: BlockOps> {
    /// the text itself
    Text,
    /// files in the run folder, one per sequence
    Stored {
        folder: PathBuf,
        sequences: Vec<StoredSequence>,
        /// its output layer, [vocab, hidden]
        lm_head: ArcArray2<f32>,
        top: bool,
    },
    /// the teacher itself
    Resident {
        embedding: Array2<f32>,
        blocks: Vec<M::Block>,
        head: M::Head,
        lm_head: Array2<f32>,
    },
}

/// The teacher's output for one sequence.
pub(super) enum Said {
    /// nothing
    Nothing,
    /// hidden states after the teacher's final norm, [tokens, hidden]
    States(Array2<f32>),
    /// the most likely tokens
    Top(TopTokens),
}

impl<M: BlockOps> Teacher<M> {
    /// Prepares the teacher: computes and stores outputs that are not stored yet, or loads the teacher. Ranks
    /// store what they compute; rank 0 keeps the index.
    ///
    /// # Errors
    /// Errors of the machine, unreadable weights, a run folder that can't be written.
    pub(super) fn prepare(
        machine: &M,
        teacher: Option<&Model>,
        sequences: &[&[u32]],
        settings: &EndToEndSettings,
        run: &Path,
        ranks: &dyn Ranks,
        observe: &mut dyn FnMut(EndToEndEvent),
    ) -> Result<Self> {
        if !settings.objective.needs_teacher() {
            return Ok(Self::Text);
        }
        let model = teacher.ok_or_else(|| Error::argument("teacher", "the dense model", "nothing"))?;
        let top = match settings.teacher {
            TeacherUse::OnTheFly => {
                let lm_head = model.lm_head()?;
                let blocks = (0..model.config().blocks.len())
                    .map(|index| machine.load_block(index, &model.block(index)?))
                    .collect::<Result<_>>()?;
                return Ok(Self::Resident {
                    embedding: model.embedding()?,
                    blocks,
                    head: machine.load_head(&model.final_norm()?, &lm_head)?,
                    lm_head,
                });
            }
            TeacherUse::States => None,
            TeacherUse::Top(k) => Some(k),
        };
        Self::stored(
            machine,
            model,
            sequences,
            top,
            run.join("teacher"),
            ranks,
            observe,
        )
    }

    /// The teacher's hidden states on the windows of an evaluation, stored in a folder of the run that is
    /// named by their tokens.
    ///
    /// # Errors
    /// As [`Teacher::prepare`].
    pub(super) fn of_evaluation(
        machine: &M,
        model: &Model,
        windows: &[&[u32]],
        run: &Path,
        ranks: &dyn Ranks,
    ) -> Result<Self> {
        let lengths = windows.iter().map(|window| window.len() as u32);
        let numbers = lengths.chain(windows.iter().copied().flatten().copied());
        let bytes: Vec<u8> = numbers.flat_map(u32::to_le_bytes).collect();
        let folder = run
            .join("teacher-evaluation")
            .join(&durable::sha256(&bytes)[..16]);
        Self::stored(machine, model, windows, None, folder, ranks, &mut |_| ())
    }

    /// Computes and stores outputs that are not in the folder yet: hidden states, or the `top` likeliest
    /// tokens.
    fn stored(
        machine: &M,
        model: &Model,
        sequences: &[&[u32]],
        top: Option<usize>,
        folder: PathBuf,
        ranks: &dyn Ranks,
        observe: &mut dyn FnMut(EndToEndEvent),
    ) -> Result<Self> {
        let lm_head = model.lm_head()?;
        let mut index = if ranks.is_first() {
            Some(whole_index(&folder)?)
        } else {
            None
        };
        let records = |index: &Option<JsonLines<StoredSequence>>| {
            index
                .as_ref()
                .map_or(Vec::new(), |index| index.records().to_vec())
        };
        let done = share(ranks, 0, || Ok(records(&index).len()))?;
        let lengths: Vec<usize> = sequences.iter().map(|tokens| tokens.len()).collect();
        let hidden = (lengths.first().copied().unwrap_or(1) * model.config().hidden_size).max(1);
        let together = (TOGETHER / hidden).max(1);
        let parts = machine.parts(&lengths[done..]);
        let head = machine.load_head(&model.final_norm()?, &lm_head)?;
        let embedding = model.embedding()?;
        let store = |chunk: Range<usize>| -> Result<Vec<StoredSequence>> {
            let mut states = machine.embed(&embedding, &sequences[chunk.clone()])?;
            for block in 0..model.config().blocks.len() {
                states = machine.block_forward(&machine.load_block(block, &model.block(block)?)?, &states)?;
            }
            let of = |(offset, sequence)| {
                let path = sequence_path(&folder, sequence);
                let (sha256, rest) = match top {
                    None => store_states(&path, &machine.head_input(&head, &states, offset)?)?,
                    Some(k) => store_top(&path, &top_tokens(&machine.logits(&head, &states, offset)?, k))?,
                };
                Ok(StoredSequence {
                    sequence,
                    sha256,
                    rest,
                })
            };
            chunk.enumerate().map(of).collect()
        };
        for round in chunks(&parts, together, ranks.size()).chunks(ranks.size()) {
            let own = match round.get(ranks.rank()) {
                Some(chunk) => store(done + chunk.start..done + chunk.end)?,
                None => Vec::new(),
            };
            for stored in gather(ranks, own)?.into_iter().flatten() {
                let Some(index) = &mut index else { continue };
                index.append(stored)?;
                observe(EndToEndEvent::TeacherStored {
                    done: index.records().len(),
                    sequences: sequences.len(),
                });
            }
        }
        Ok(Self::Stored {
            sequences: share(ranks, 0, || Ok(records(&index)))?,
            folder,
            lm_head: lm_head.into_shared(),
            top: top.is_some(),
        })
    }

    /// Whether the teacher computes every text anew and so knows any.
    pub(super) fn is_resident(&self) -> bool {
        matches!(self, Self::Resident { .. })
    }

    /// Number of positions with a loss in texts of these numbers of tokens.
    pub(super) fn positions(&self, tokens: impl Iterator<Item = usize>) -> f64 {
        let of_text = |tokens| match self {
            Self::Text => Target::NextTokens.positions(tokens),
            Self::Stored { .. } | Self::Resident { .. } => tokens,
        };
        tokens.map(of_text).sum::<usize>() as f64
    }

    /// Mean probability of the tokens that were not stored; `None` if every token is included.
    pub(super) fn rest(&self) -> Option<f64> {
        match self {
            Self::Stored {
                sequences, top: true, ..
            } => {
                let sum: f64 = sequences.iter().map(|stored| stored.rest).sum();
                Some(sum / sequences.len().max(1) as f64)
            }
            _ => None,
        }
    }

    /// The teacher's outputs for these sequences; `indices` are their positions among all sequences.
    pub(super) fn says(&self, machine: &M, indices: &[usize], sequences: &[&[u32]]) -> Result<Vec<Said>> {
        match self {
            Self::Text => Ok(indices.iter().map(|_| Said::Nothing).collect()),
            Self::Stored {
                folder,
                sequences,
                top,
                ..
            } => indices
                .par_iter()
                .map(|&index| {
                    let path = sequence_path(folder, index);
                    let file = SafetensorFiles::open_checked(&path, &sequences[index].sha256)?;
                    if *top {
                        load_top(&file).map(Said::Top)
                    } else {
                        file.read("states").map(Said::States)
                    }
                })
                .collect(),
            Self::Resident {
                embedding,
                blocks,
                head,
                ..
            } => {
                let mut states = machine.embed(embedding, sequences)?;
                for block in blocks {
                    states = machine.block_forward(block, &states)?;
                }
                (0..sequences.len())
                    .map(|offset| Ok(Said::States(machine.head_input(head, &states, offset)?)))
                    .collect()
            }
        }
    }

    /// The training target for a teacher's output.
    pub(super) fn target<'a>(&'a self, said: &'a Said) -> Target<'a> {
        match (said, self) {
            (Said::States(states), Self::Stored { lm_head, .. }) => Target::Teacher {
                states: states.view(),
                head: lm_head.view(),
            },
            (Said::States(states), Self::Resident { lm_head, .. }) => Target::Teacher {
                states: states.view(),
                head: lm_head.view(),
            },
            (Said::Top(top), _) => Target::Top(top),
            (Said::Nothing | Said::States(_), _) => Target::NextTokens,
        }
    }
}

/// The index of stored sequences in a folder, up to the first whose file is not whole.
fn whole_index(folder: &Path) -> Result<JsonLines<StoredSequence>> {
    std::fs::create_dir_all(folder).map_err(Error::io(folder, "make"))?;
    let mut index: JsonLines<StoredSequence> =
        JsonLines::open(&folder.join("index.jsonl"), "the record of a stored sequence")?;
    let whole = index
        .records()
        .iter()
        .enumerate()
        .take_while(|(number, stored)| {
            let path = sequence_path(folder, *number);
            stored.sequence == *number
                && durable::sha256_of_file(&path).is_ok_and(|found| found == stored.sha256)
        })
        .count();
    if whole < index.records().len() {
        index.truncate(whole)?;
    }
    Ok(index)
}

/// Consecutive sequences that pass through the teacher together: whole parts, of at most `most` sequences
/// unless one part has more, and few enough that every rank has some.
fn chunks(parts: &[Range<usize>], most: usize, ranks: usize) -> Vec<Range<usize>> {
    let parts_of_rank = parts.len().div_ceil(ranks);
    let mut chunks: Vec<Range<usize>> = Vec::new();
    let mut parts_of_last = 0;
    for part in parts {
        match chunks.last_mut() {
            Some(last) if part.end - last.start <= most && parts_of_last < parts_of_rank => {
                last.end = part.end;
                parts_of_last += 1;
            }
            _ => {
                chunks.push(part.clone());
                parts_of_last = 1;
            }
        }
    }
    chunks
}

fn sequence_path(folder: &Path, sequence: usize) -> PathBuf {
    folder.join(format!("sequence_{sequence:06}.safetensors"))
}

fn store_states(path: &Path, states: &Array2<f32>) -> Result<(String, f64)> {
    Ok((write(path, vec![NewTensor::of("states", states)])?, 0.0))
}

fn store_top(path: &Path, top: &TopTokens) -> Result<(String, f64)> {
    let tensors = vec![
        NewTensor::of("tokens", &top.tokens),
        NewTensor::of("log_probabilities", &top.log_probabilities),
        NewTensor::of("rest", &top.rest),
    ];
    let rest = top.rest.iter().map(|&rest| f64::from(rest)).sum::<f64>() / top.rest.len().max(1) as f64;
    Ok((write(path, tensors)?, rest))
}

fn load_top(file: &SafetensorFiles) -> Result<TopTokens> {
    Ok(TopTokens {
        tokens: file.read("tokens")?,
        log_probabilities: file.read("log_probabilities")?,
        rest: file.read("rest")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_whole_parts_and_enough_for_all_ranks() {
        let parts = [0..4, 4..8, 8..12, 12..16, 16..18];
        let whole = Range { start: 0, end: 18 };
        assert_eq!(chunks(&parts, 100, 1), [whole]);
        assert_eq!(chunks(&parts, 9, 1), [0..8, 8..16, 16..18]);
        assert_eq!(chunks(&parts, 1, 1), parts);
        assert_eq!(chunks(&parts, 100, 2), [0..12, 12..18]);
        assert_eq!(chunks(&parts, 100, 8), parts);
        assert_eq!(chunks(&[], 9, 2), Vec::<Range<usize>>::new());
    }
}
