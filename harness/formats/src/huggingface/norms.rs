//! The parameters of norms in files: weights under one name, biases under another.

use aqlm_vocabulary::NormSpec;
use ndarray::{Array1, Axis, concatenate};

use super::linear::read_vector;
use super::names::bias_name;
use crate::Result;
use crate::tensors::TensorSource;

/// Reads a norm of `width` weights: these, then its biases if it has some. `name` is that of the weights.
pub(crate) fn read_norm(
    tensors: &dyn TensorSource,
    name: &str,
    spec: NormSpec,
    width: usize,
) -> Result<Array1<f32>> {
    let weights = read_vector(tensors, name, width)?;
    if !spec.biased {
        return Ok(weights);
    }
    let biases = read_vector(tensors, &bias_name(name), width)?;
    Ok(concatenate![Axis(0), weights, biases])
}

/// A norm's parameters as tensors, by their names. `name` is that of the weights.
pub(crate) fn norm_tensors(name: &str, spec: NormSpec, parameters: &Array1<f32>) -> Vec<(String, Vec<f32>)> {
    let parameters = parameters.to_vec();
    let (weights, biases) = parameters.split_at(spec.width(parameters.len()));
    let mut tensors = vec![(name.to_string(), weights.to_vec())];
    if spec.biased {
        tensors.push((bias_name(name), biases.to_vec()));
    }
    tensors
}
