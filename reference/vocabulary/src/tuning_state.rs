use crate::{AqlmError, CodeState, LayerId, Parameter, ParameterState, Result};

/// Training state of all trained parameters of a model, and of its codes.
#[derive(Debug, Clone, PartialEq)]
pub struct TuningState {
    /// steps taken
    pub steps: u32,
    /// in the order of [`Parameter::selected`]
    pub parameters: Vec<ParameterState>,
    /// of every quantized matrix, block by block, if codes are tuned
    pub codes: Vec<CodeState>,
}

/// One part of a [`TuningState`]. A whole state is several times as large as the model, so large models are
/// saved and continued part by part.
#[derive(Debug, Clone, PartialEq)]
pub enum StatePart {
    /// one array of parameters
    Parameter(ParameterState),
    /// the codes of one matrix
    Codes(CodeState),
}

/// A [`StatePart`] without its numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PartOutline {
    /// one array of parameters
    Parameter {
        /// which parameter
        parameter: Parameter,
        /// its name in a Hugging Face checkpoint
        name: String,
        /// number of its values
        len: usize,
    },
    /// the codes of one matrix
    Codes {
        /// the block
        block: usize,
        /// the layer
        layer: LayerId,
        /// the layer's name in a Hugging Face checkpoint
        name: String,
        /// [out_groups, in_groups, M]
        shape: [usize; 3],
        /// number of weights
        len: usize,
        /// number of first moments
        first: usize,
        /// number of the gradients' products
        metric: usize,
    },
}

impl PartOutline {
    /// Rejects a part that is another one or has other lengths.
    ///
    /// # Errors
    /// `Shape` naming the parameter or the layer.
    pub fn check(&self, part: &StatePart) -> Result<()> {
        let shape = |what: String, expected: Vec<usize>, found: Vec<usize>| {
            if expected == found {
                Ok(())
            } else {
                Err(AqlmError::Shape {
                    what,
                    expected,
                    found,
                })
            }
        };
        match (self, part) {
            (Self::Parameter { parameter, name, len }, StatePart::Parameter(part))
                if *parameter == part.parameter =>
            {
                [&part.values, &part.first, &part.second]
                    .into_iter()
                    .try_for_each(|list| shape(name.clone(), vec![*len], vec![list.len()]))
            }
            (
                Self::Codes {
                    block,
                    layer,
                    name,
                    shape: codes,
                    len,
                    first,
                    metric,
                },
                StatePart::Codes(part),
            ) if (*block, *layer) == (part.block, part.layer) => {
                shape(name.clone(), codes.to_vec(), part.codes.shape().to_vec())?;
                [
                    ("buffer", *len, &part.buffer),
                    ("first moments of a buffer", *first, &part.first),
                    ("second moments of a buffer", *len, &part.second),
                    ("gradient products of a matrix", *metric, &part.metric),
                ]
                .into_iter()
                .try_for_each(|(what, expected, list)| {
                    shape(format!("{name}: {what}"), vec![expected], vec![list.len()])
                })
            }
            (Self::Parameter { name, .. } | Self::Codes { name, .. }, _) => {
                shape(format!("{name} of a training state"), vec![1], vec![0])
            }
        }
    }
}
