use serde_json::{Value, json};

use super::container::Container;
use super::fields::{Fields, decimal};
use crate::{Error, Result};

/// The tensor in which llama.cpp's converter stores Llama 3's divisors of RoPE's frequencies.
pub(super) const ROPE_FACTORS: &str = "rope_freqs.weight";

/// LongRoPE's divisors, for contexts within the original one and beyond it.
pub(super) const LONG_FACTORS: [&str; 2] = ["rope_factors_short.weight", "rope_factors_long.weight"];

/// The file's RoPE scaling in the format of config.json.
pub(super) fn rope_scaling(
    container: &Container,
    fields: &Fields<'_>,
    theta: f64,
    head_dim: usize,
) -> Result<Value> {
    if LONG_FACTORS
        .iter()
        .any(|name| container.tensors.contains_key(*name))
    {
        return longrope(container, fields);
    }
    let factor = match fields.number("rope.scaling.factor")? {
        Some(factor) => Some(factor),
        // the older spelling
        None => fields.number("rope.scale_linear")?,
    };
    let kind = fields.optional_text("rope.scaling.type")?;
    if kind == Some("yarn") {
        return yarn(container, fields, factor);
    }
    // A negative number stands for llama.cpp's own choice, which is 0 without YaRN.
    let blend = fields.number(BLEND)?.unwrap_or(0.0);
    if blend > 0.0 {
        return Err(fields.unsupported(BLEND, "0 without YaRN", blend.to_string()));
    }
    let linear = match (kind, factor) {
        (Some("none"), _) | (None, None) => None,
        // llama.cpp takes 0 for no scaling
        (Some("linear") | None, Some(factor)) => (factor != 1.0 && factor != 0.0).then_some(factor),
        (Some("linear"), None) => {
            return Err(fields.wrong("rope.scaling.factor", "a number for linear scaling"));
        }
        (Some(other), _) => {
            return Err(fields.unsupported(
                "rope.scaling.type",
                "none, linear or yarn",
                format!("{other:?}"),
            ));
        }
    };
    let (key, multiplier) = multiplier(fields)?;
    if multiplier != 1.0 {
        if linear.is_some() || container.tensors.contains_key(ROPE_FACTORS) {
            return Err(fields.unsupported(key, "1 with scaled frequencies", multiplier.to_string()));
        }
        // YaRN by a factor of 1 keeps all frequencies and multiplies cosines and sines.
        return yarn_of(fields, 1.0, multiplier);
    }
    let Some(place) = container.tensors.get(ROPE_FACTORS) else {
        return Ok(linear.map_or(
            Value::Null,
            |factor| json!({"rope_type": "linear", "factor": factor}),
        ));
    };
    let factors = place.kind.decode(&container.read(place)?);
    match llama3_factor(&factors, theta, head_dim) {
        Some(factor) if linear.is_none() => Ok(json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": LLAMA3_LOW,
            "high_freq_factor": LLAMA3_HIGH,
            "original_max_position_embeddings": LLAMA3_CONTEXT,
        })),
        _ => Err(Error::UnexpectedTensor {
            path: container.path_of(place).into(),
            tensor: ROPE_FACTORS.into(),
            reason: "unless its factors are those of Llama 3.1 and nothing else scales RoPE".into(),
        }),
    }
}

/// LongRoPE, whose lists are tensors.
fn longrope(container: &Container, fields: &Fields<'_>) -> Result<Value> {
    let field = "rope.scaling.type";
    if let Some(kind) = fields.optional_text(field)?
        && kind != "longrope"
    {
        let expected = "longrope, as there are tensors with its factors";
        return Err(fields.unsupported(field, expected, format!("{kind:?}")));
    }
    let list = |name: &str| {
        let place = container.tensors.get(name).ok_or_else(|| Error::MissingTensor {
            path: fields.path.into(),
            tensor: name.into(),
        })?;
        let values = place.kind.decode(&container.read(place)?);
        let decimals = values.iter().map(|&value| decimal(value));
        Ok::<_, Error>(json!(decimals.collect::<Vec<f64>>()))
    };
    let [short, long] = LONG_FACTORS;
    let mut scaling = json!({
        "rope_type": "longrope",
        "short_factor": list(short)?,
        "long_factor": list(long)?,
    });
    // Without the key, transformers derives the factor from the contexts, more exactly than the file's f32.
    let multiplier = multiplier(fields)?.1;
    let context = fields.size("context_length")? as f64;
    let original = fields.optional_size("rope.scaling.original_context_length")?;
    let derived = original.map(|original| {
        let original = original as f64;
        let ratio = context / original;
        if ratio <= 1.0 {
            1.0
        } else {
            (1.0 + ratio.ln() / original.ln()).sqrt()
        }
    });
    if derived.is_none_or(|derived| derived as f32 != multiplier as f32) {
        scaling["attention_factor"] = json!(multiplier);
    }
    Ok(scaling)
}

/// How much of YaRN's blend of frequencies is applied.
const BLEND: &str = "rope.scaling.yarn_ext_factor";

/// The factor of cosines and sines, whatever the type of scaling, and the key that names it.
fn multiplier(fields: &Fields<'_>) -> Result<(&'static str, f64)> {
    let keys = ["rope.scaling.attn_factor", "rope.scaling.yarn_attn_factor"];
    for key in keys {
        match fields.number(key)? {
            Some(factor) if factor > 0.0 => return Ok((key, factor)),
            Some(_) => return Err(fields.wrong(key, "a positive number")),
            None => {}
        }
    }
    Ok((keys[0], 1.0))
}

/// YaRN as llama.cpp computes it: cosines and sines are multiplied by 1 + ln(factor) / 10 too.
fn yarn(container: &Container, fields: &Fields<'_>, factor: Option<f64>) -> Result<Value> {
    let factor = match factor {
        Some(factor) if factor >= 1.0 => factor,
        _ => return Err(fields.wrong("rope.scaling.factor", "a number of at least 1 for YaRN")),
    };
    let blend = fields.number(BLEND)?.unwrap_or(1.0);
    if blend >= 0.0 && blend != 1.0 {
        return Err(fields.unsupported(BLEND, "1 for YaRN", blend.to_string()));
    }
    if let Some(place) = container.tensors.get(ROPE_FACTORS) {
        return Err(Error::UnexpectedTensor {
            path: container.path_of(place).into(),
            tensor: ROPE_FACTORS.into(),
            reason: "beside YaRN".into(),
        });
    }
    let multiplier = multiplier(fields)?.1;
    yarn_of(fields, factor, multiplier * (1.0 + 0.1 * factor.ln()))
}

fn yarn_of(fields: &Fields<'_>, factor: f64, attention_factor: f64) -> Result<Value> {
    let context = "rope.scaling.original_context_length";
    let original = match fields.number(context)? {
        Some(tokens) => Some(tokens),
        None => fields.number("context_length")?,
    };
    let Some(original) = original.filter(|tokens| *tokens >= 1.0) else {
        return Err(fields.wrong(context, "a number of tokens"));
    };
    let or = |key: &str, usual: f64| Ok::<_, Error>(fields.number(key)?.unwrap_or(usual));
    Ok(json!({
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": original as u64,
        "attention_factor": attention_factor,
        "beta_fast": or("rope.scaling.yarn_beta_fast", 32.0)?,
        "beta_slow": or("rope.scaling.yarn_beta_slow", 1.0)?,
    }))
}

/// Llama 3.1 to 3.3 all use these values and differ only in the factor.
const LLAMA3_LOW: f64 = 1.0;
const LLAMA3_HIGH: f64 = 4.0;
const LLAMA3_CONTEXT: usize = 8192;

/// The factor for which Llama 3's rule gives these divisors of the frequencies, if one exists.
pub(super) fn llama3_factor(found: &[f32], theta: f64, head_dim: usize) -> Option<f64> {
    if found.len() != head_dim / 2 {
        return None;
    }
    let factor = f64::from(found.iter().copied().fold(1.0, f32::max));
    let context = LLAMA3_CONTEXT as f64;
    // The converter computes in f32. Rounding the exponent gives the frequency a relative error of ln(theta)
    // / 2 epsilons, and two more roundings follow. `smooth` amplifies the error by at most high / (high -
    // low). Where `smooth` is near zero, the reciprocal of 1 / factor amplifies it by the factor.
    let frequency_error = (theta.ln().abs() / 2.0 + 2.0) * f64::from(f32::EPSILON);
    let tolerance = frequency_error * LLAMA3_HIGH / (LLAMA3_HIGH - LLAMA3_LOW) * factor;
    let matches = found.iter().enumerate().all(|(pair, &found)| {
        let frequency = theta.powf(-2.0 * pair as f64 / head_dim as f64);
        let wavelength = std::f64::consts::TAU / frequency;
        let expected = if wavelength < context / LLAMA3_HIGH {
            1.0
        } else if wavelength > context / LLAMA3_LOW {
            factor
        } else {
            let smooth = (context / wavelength - LLAMA3_LOW) / (LLAMA3_HIGH - LLAMA3_LOW);
            1.0 / ((1.0 - smooth) / factor + smooth)
        };
        (f64::from(found) - expected).abs() <= tolerance * expected
    });
    (matches && factor > 1.0).then_some(factor)
}
