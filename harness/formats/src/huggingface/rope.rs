use aqlm_vocabulary::{Rope, RopeScaling};
use serde_json::Value;

use super::fields::{Fields, brief};
use crate::Result;

/// Reads `rope_theta` and `rope_scaling` (transformers 4), or `rope_parameters` (transformers 5), which
/// combines both.
pub(super) fn rope(fields: &Fields<'_>) -> Result<Rope> {
    let outer_theta = fields.positive("rope_theta")?;
    let mut rope = Rope {
        theta: outer_theta.unwrap_or(10_000.0),
        scaling: RopeScaling::None,
    };
    let mut seen = None;
    for key in ["rope_parameters", "rope_scaling"] {
        let Some(value) = fields.get(key) else { continue };
        let Value::Object(map) = value else {
            return Err(fields.wrong(key, "an object or null"));
        };
        let inner = Fields {
            path: fields.path,
            prefix: key,
            map,
        };
        if let Some(theta) = inner.positive("rope_theta")? {
            if outer_theta.is_some_and(|outer| outer != theta) {
                return Err(inner.wrong(
                    "rope_theta",
                    format!("the same value as rope_theta = {}", rope.theta),
                ));
            }
            rope.theta = theta;
        }
        let scaling = rope_scaling(&inner)?;
        if let Some(other) = &seen
            && *other != scaling
        {
            return Err(fields.wrong(key, "the same scaling as rope_parameters"));
        }
        seen = Some(scaling.clone());
        rope.scaling = scaling;
    }
    Ok(rope)
}

fn rope_scaling(fields: &Fields<'_>) -> Result<RopeScaling> {
    // "type" is the older spelling; files often carry both
    let kinds = [fields.optional_str("rope_type")?, fields.optional_str("type")?];
    let kind = match kinds {
        [Some(new), Some(old)] if new != old => {
            return Err(fields.wrong("type", format!("the same as rope_type = {new:?}")));
        }
        [Some(kind), _] | [None, Some(kind)] => kind,
        // without scaling, transformers 5 writes only rope_theta
        [None, None] if fields.get("factor").is_none() => "default",
        [None, None] => return Err(fields.wrong("rope_type", "default, linear or llama3")),
    };
    let used: &[&str] = match kind {
        "default" => &[],
        "linear" => &["factor"],
        "llama3" => &[
            "factor",
            "low_freq_factor",
            "high_freq_factor",
            "original_max_position_embeddings",
        ],
        other => {
            let key = if kinds[0].is_some() { "rope_type" } else { "type" };
            return Err(fields.unsupported(key, "default, linear or llama3", format!("{other:?}")));
        }
    };
    if let Some(factor) = fields.number("partial_rotary_factor")?
        && factor != 1.0
    {
        return Err(fields.unsupported("partial_rotary_factor", "1 or nothing", factor.to_string()));
    }
    for (key, value) in fields.map {
        let known = ["type", "rope_type", "rope_theta", "partial_rotary_factor"];
        if !value.is_null() && !used.contains(&key.as_str()) && !known.contains(&key.as_str()) {
            return Err(fields.unsupported(key, &format!("no such field for type {kind:?}"), brief(value)));
        }
    }
    match kind {
        "default" => Ok(RopeScaling::None),
        "linear" => Ok(RopeScaling::Linear {
            factor: fields.required_positive("factor")?,
        }),
        _ => {
            let scaling = RopeScaling::Llama3 {
                factor: fields.required_positive("factor")?,
                low_freq_factor: fields.required_positive("low_freq_factor")?,
                high_freq_factor: fields.required_positive("high_freq_factor")?,
                original_max_position_embeddings: fields.size("original_max_position_embeddings")?,
            };
            // the blend divides by high - low
            if fields.number("high_freq_factor")? <= fields.number("low_freq_factor")? {
                return Err(fields.wrong("high_freq_factor", "a value above low_freq_factor"));
            }
            Ok(scaling)
        }
    }
}
