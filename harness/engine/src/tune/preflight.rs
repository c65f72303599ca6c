use aqlm_vocabulary::{ArchSpec, LinearWeight};
use serde::{Deserialize, Serialize};

use aqlm_formats::model::Model;
use aqlm_formats::{Error, Result};

/// Rejects a teacher whose shape or vocabulary differs from the student's.
///
/// # Errors
/// `Field` naming the first number of the teacher's configuration that differs. `Kind` for a student without
/// a quantized layer, or a teacher with one.
pub fn check_teacher(student: &Model, teacher: &Model) -> Result<()> {
    let fields = |arch: &ArchSpec| {
        let mut fields = vec![
            ("vocab_size", arch.vocab_size),
            ("hidden_size", arch.hidden_size),
            ("num_hidden_layers", arch.blocks.len()),
        ];
        for block in &arch.blocks {
            fields.extend([
                ("intermediate_size", block.intermediate_size()),
                ("num_attention_heads", block.attention.heads),
                ("num_key_value_heads", block.attention.kv_heads),
                ("head_dim", block.attention.head_dim),
            ]);
        }
        fields
    };
    for ((field, expected), (_, found)) in fields(student.config()).into_iter().zip(fields(teacher.config()))
    {
        if expected != found {
            return Err(Error::Field {
                path: teacher.source().into(),
                field: field.into(),
                expected: format!("{expected} as in {}", student.source().display()),
                found: found.to_string(),
            });
        }
    }
    if teacher.is_quantized() {
        return Err(Error::Kind {
            path: teacher.source().into(),
            expected: "a dense model as the teacher".into(),
            found: "AQLM-quantized layers".into(),
        });
    }
    Ok(())
}

/// Rejects a model without quantized layers, because it has no codebooks to train.
///
/// # Errors
/// `Kind`.
pub fn check_student(student: &Model) -> Result<()> {
    if student.is_quantized() {
        return Ok(());
    }
    Err(Error::Kind {
        path: student.source().into(),
        expected: "an AQLM-quantized checkpoint".into(),
        found: "only dense layers".into(),
    })
}

/// A non-quantized weight that differs from the teacher's by more than rounding to f16 explains.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    /// its name in the checkpoint
    pub tensor: String,
    /// the largest absolute difference between corresponding values
    pub largest: f64,
}

/// Embeddings, norms, biases, dense layers and head that differ from the teacher's beyond rounding to f16.
/// Norms differ after block fine-tuning. Any other difference suggests that the teacher is not the model that
/// was quantized.
///
/// # Errors
/// Unreadable weights.
pub fn differences(student: &Model, teacher: &Model) -> Result<Vec<Difference>> {
    let mut found = Vec::new();
    let mut compare =
        |tensor: String, a: &mut dyn Iterator<Item = &f32>, b: &mut dyn Iterator<Item = &f32>| {
            let mut largest = None;
            for (&a, &b) in a.zip(b) {
                let off = (f64::from(a) - f64::from(b)).abs();
                // half a unit in the last place of f16, subnormal numbers included
                if off > 2f64.powi(-11) * f64::from(b.abs()) + 2f64.powi(-25) {
                    largest = Some(largest.map_or(off, |largest: f64| largest.max(off)));
                }
            }
            found.extend(largest.map(|largest| Difference { tensor, largest }));
        };
    compare(
        "model.embed_tokens.weight".into(),
        &mut student.embedding()?.iter(),
        &mut teacher.embedding()?.iter(),
    );
    let arch = student.config();
    for (index, spec) in arch.blocks.iter().enumerate() {
        let (ours, theirs) = (student.block(index)?, teacher.block(index)?);
        for (name, (ours, theirs)) in arch
            .norm_names(index)
            .into_iter()
            .zip(ours.norms.iter().zip(&theirs.norms))
        {
            compare(name, &mut ours.iter(), &mut theirs.iter());
        }
        for layer in spec.layers() {
            let (ours, theirs) = (ours.layer(layer), theirs.layer(layer));
            if let (LinearWeight::Dense(ours), LinearWeight::Dense(theirs)) = (&ours.weight, &theirs.weight) {
                let name = format!("{}.weight", arch.layer_name(index, layer));
                compare(name, &mut ours.iter(), &mut theirs.iter());
            }
            if let (Some(ours), Some(theirs)) = (&ours.bias, &theirs.bias) {
                let name = format!("{}.bias", arch.layer_name(index, layer));
                compare(name, &mut ours.iter(), &mut theirs.iter());
            }
        }
    }
    compare(
        "model.norm.weight".into(),
        &mut student.final_norm()?.iter(),
        &mut teacher.final_norm()?.iter(),
    );
    if !arch.tied {
        compare(
            "lm_head.weight".into(),
            &mut student.lm_head()?.iter(),
            &mut teacher.lm_head()?.iter(),
        );
    }
    Ok(found)
}
