use aqlm_vocabulary::{ArchSpec, Rope, RopeScaling};
use serde_json::{Map, Value, json};

use super::fields::{Fields, brief};
use crate::{Result, json};

/// The kinds of scaling that are implemented, for errors.
const KINDS: &str = "default, linear, dynamic, llama3 or yarn";

/// Those of families with LongRoPE.
const LONG_KINDS: &str = "default or longrope";

/// What a family's rotary embedding is where config.json is silent, and what it may be.
pub(super) struct Rotation {
    /// base of the wavelengths
    pub(super) theta: f64,
    /// which part of each head is rotated if config.json does not say; `None` for families that rotate whole
    /// heads
    pub(super) part: Option<f64>,
    /// whether LongRoPE is the only scaling
    pub(super) long: bool,
    /// whether the rotary objects have one object for each type of layer; what is read is that of
    /// `full_attention`
    pub(super) by_type: bool,
}

impl Rotation {
    /// Llama's.
    pub(super) const PLAIN: Self = Self {
        theta: 10_000.0,
        part: None,
        long: false,
        by_type: false,
    };
}

/// Reads `rope_theta` and `rope_scaling` (transformers 4), or `rope_parameters` (transformers 5), which
/// combines both. `longest` is the model's `max_position_embeddings`. Also returns how many numbers of a head
/// are rotated.
///
/// Where both spellings occur, they must agree: transformers 5 would take one, transformers 4 the other.
pub(super) fn rope(
    fields: &Fields<'_>,
    rotation: &Rotation,
    head_dim: usize,
    longest: usize,
) -> Result<(Rope, usize)> {
    let outer_theta = fields.positive("rope_theta")?;
    let mut rope = Rope {
        theta: outer_theta.unwrap_or(rotation.theta),
        scaling: RopeScaling::None,
    };
    let rotated = rotated(fields, rotation, head_dim)?;
    let mut seen = None;
    for key in ["rope_parameters", "rope_scaling"] {
        let Some(outer) = scaling_object(fields, key)? else {
            continue;
        };
        // the older spelling has one rotation for blocks of all types
        let inner = if rotation.by_type && key == "rope_parameters" {
            let Some(inner) = object_of_type(&outer, "full_attention")? else {
                continue;
            };
            inner
        } else {
            outer
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
        let scaling = rope_scaling(fields, &inner, rotation, rotated, longest)?;
        if let Some(other) = &seen
            && *other != scaling
        {
            return Err(fields.wrong(key, "the same scaling as rope_parameters"));
        }
        seen = Some(scaling.clone());
        rope.scaling = scaling;
    }
    refuse_degenerate(fields, &rope, rotated)?;
    Ok((rope, rotated))
}

/// The rotation of layers of this type: that of its object in `rope_parameters`, or one without scaling whose
/// theta is `key`, `theta` if absent.
pub(super) fn rope_of_type(
    fields: &Fields<'_>,
    kind: &'static str,
    key: &str,
    theta: f64,
    arch: &ArchSpec,
) -> Result<Rope> {
    let outer = fields.positive(key)?;
    let mut rope = Rope {
        theta: outer.unwrap_or(theta),
        scaling: RopeScaling::None,
    };
    if let Some(object) = scaling_object(fields, "rope_parameters")?
        && let Some(inner) = object_of_type(&object, kind)?
    {
        if let Some(theta) = inner.positive("rope_theta")? {
            if outer.is_some_and(|outer| outer != theta) {
                return Err(inner.wrong("rope_theta", format!("the same value as {key} = {}", rope.theta)));
            }
            rope.theta = theta;
        }
        let head_dim = arch.attention().head_dim;
        let longest = arch.max_position_embeddings;
        rope.scaling = rope_scaling(fields, &inner, &Rotation::PLAIN, head_dim, longest)?;
        refuse_degenerate(fields, &rope, head_dim)?;
    }
    Ok(rope)
}

/// The object of one type of layer inside `rope_parameters`.
fn object_of_type<'a>(outer: &Fields<'a>, kind: &str) -> Result<Option<Fields<'a>>> {
    if let Some((key, _)) = outer
        .map
        .iter()
        .find(|(_, value)| !value.is_object() && !value.is_null())
    {
        return Err(outer.wrong(
            key,
            "an object for each type of layer: full_attention, sliding_attention",
        ));
    }
    let prefix = match kind {
        "full_attention" => "rope_parameters.full_attention",
        _ => "rope_parameters.sliding_attention",
    };
    Ok(outer.get(kind).and_then(Value::as_object).map(|map| Fields {
        path: outer.path,
        prefix,
        map,
    }))
}

/// How many numbers of a head are rotated: an even number, as these are pairs.
fn rotated(fields: &Fields<'_>, rotation: &Rotation, head_dim: usize) -> Result<usize> {
    let key = "partial_rotary_factor";
    let mut found = fields.number(key)?;
    let mut at = None;
    for object in ["rope_parameters", "rope_scaling"] {
        let Some(inner) = scaling_object(fields, object)? else {
            continue;
        };
        if let Some(factor) = inner.number(key)? {
            if found.is_some_and(|found| found != factor) {
                return Err(inner.wrong(key, "the same value as outside of this object"));
            }
            found = Some(factor);
            at = Some(inner);
        }
    }
    let factor = found.or(rotation.part).unwrap_or(1.0);
    let of = at.as_ref().unwrap_or(fields);
    if factor != 1.0 && rotation.part.is_none() {
        return Err(of.unsupported(key, "1 or nothing", factor.to_string()));
    }
    let rotated = (head_dim as f64 * factor) as usize;
    if !(factor.is_finite() && factor <= 1.0) || rotated == 0 || !rotated.is_multiple_of(2) {
        let expected = format!("a part of head_dim = {head_dim} that is an even number of at least 2");
        return Err(of.wrong(key, expected));
    }
    Ok(rotated)
}

/// Fields inside the rotary objects that are not read, as one warning for each object.
pub(super) fn unread(fields: &Fields<'_>) -> Result<Vec<String>> {
    let mut warnings = Vec::new();
    for key in ["rope_parameters", "rope_scaling"] {
        let Some(inner) = scaling_object(fields, key)? else {
            continue;
        };
        let kind = kind(&inner)?;
        let known = [
            "type",
            "rope_type",
            "rope_theta",
            "partial_rotary_factor",
            // objects of types of layers, where the family has these; refused elsewhere
            "full_attention",
            "sliding_attention",
        ];
        let read = |name: &str| known.contains(&name) || used(kind).contains(&name);
        let present = inner.map.iter().filter(|(_, value)| !value.is_null());
        let unread: Vec<String> = present
            .filter(|(name, _)| !read(name))
            .map(|(name, _)| format!("`{key}.{name}`"))
            .collect();
        if !unread.is_empty() {
            warnings.push(format!(
                "{}: fields that rotary embeddings of type {kind} do not have, and that are not read: {}",
                fields.path.display(),
                unread.join(", ")
            ));
        }
    }
    if fields.get("rope_theta").is_none()
        && let Some(inner) = scaling_object(fields, "rope_scaling")?
        && let Some(theta) = inner.positive("rope_theta")?
        && theta != 10_000.0
    {
        warnings.push(format!(
            "{}: field `rope_scaling.rope_theta` = {theta} is used as in transformers 5; transformers 4 takes \
             10000, as `rope_theta` is absent",
            fields.path.display()
        ));
    }
    Ok(warnings)
}

/// Writes the fields with which every release of transformers computes these rotations: releases before 5
/// read `rope_theta` and `rope_scaling`, later ones `rope_parameters`.
pub(super) fn write(config: &mut Map<String, Value>, rope: &Rope) {
    let scaling = match rope.scaling {
        RopeScaling::None => None,
        RopeScaling::Linear { factor } => Some(json!({"rope_type": "linear", "factor": factor})),
        RopeScaling::Dynamic { factor, .. } => Some(json!({"rope_type": "dynamic", "factor": factor})),
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings,
        } => Some(json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low_freq_factor,
            "high_freq_factor": high_freq_factor,
            "original_max_position_embeddings": original_max_position_embeddings,
        })),
        RopeScaling::Yarn {
            factor,
            original_max_position_embeddings,
            beta_fast,
            beta_slow,
            truncate,
            attention_factor,
        } => Some(json!({
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": original_max_position_embeddings,
            "beta_fast": beta_fast,
            "beta_slow": beta_slow,
            "truncate": truncate,
            "attention_factor": attention_factor,
        })),
        RopeScaling::Long {
            ref short,
            ref long,
            original_max_position_embeddings,
            attention_factor,
        } => Some(json!({
            "rope_type": "longrope",
            "short_factor": short,
            "long_factor": long,
            "original_max_position_embeddings": original_max_position_embeddings,
            "attention_factor": attention_factor,
        })),
    };
    let mut parameters = scaling.clone().unwrap_or_else(|| json!({"rope_type": "default"}));
    parameters["rope_theta"] = json!(rope.theta);
    config.insert("rope_theta".into(), json!(rope.theta));
    config.insert("rope_scaling".into(), scaling.unwrap_or(Value::Null));
    config.insert("rope_parameters".into(), parameters);
}

/// One of the two objects; `None` when it is absent, null or empty.
fn scaling_object<'a>(fields: &Fields<'a>, key: &'static str) -> Result<Option<Fields<'a>>> {
    match fields.get(key) {
        None => Ok(None),
        Some(Value::Object(map)) if map.is_empty() => Ok(None),
        Some(Value::Object(map)) => Ok(Some(Fields {
            path: fields.path,
            prefix: key,
            map,
        })),
        Some(_) => Err(fields.wrong(key, "an object or null")),
    }
}

/// The name of the scaling.
fn kind<'a>(fields: &Fields<'a>) -> Result<&'a str> {
    // "type" is the older spelling; files often carry both
    match [fields.optional_str("rope_type")?, fields.optional_str("type")?] {
        [Some(new), Some(old)] if new != old => {
            Err(fields.wrong("type", format!("the same as rope_type = {new:?}")))
        }
        [Some(kind), _] | [None, Some(kind)] => Ok(kind),
        // without scaling, transformers 5 writes only rope_theta
        [None, None] if fields.get("factor").is_none() => Ok("default"),
        [None, None] => Err(fields.wrong("rope_type", KINDS)),
    }
}

/// Fields that a kind of scaling reads, besides its name and theta.
fn used(kind: &str) -> &'static [&'static str] {
    match kind {
        "linear" | "dynamic" => &["factor"],
        "llama3" => &[
            "factor",
            "low_freq_factor",
            "high_freq_factor",
            "original_max_position_embeddings",
        ],
        "yarn" => &[
            "factor",
            "original_max_position_embeddings",
            "beta_fast",
            "beta_slow",
            "truncate",
            "attention_factor",
            "mscale",
            "mscale_all_dim",
        ],
        "longrope" | "su" => &[
            "factor",
            "short_factor",
            "long_factor",
            "original_max_position_embeddings",
            "attention_factor",
        ],
        _ => &[],
    }
}

fn rope_scaling(
    whole: &Fields<'_>,
    fields: &Fields<'_>,
    rotation: &Rotation,
    rotated: usize,
    longest: usize,
) -> Result<RopeScaling> {
    let kind = kind(fields)?;
    if let Some(factor) = fields.number("partial_rotary_factor")?
        && factor != 1.0
        && rotation.part.is_none()
    {
        return Err(fields.unsupported("partial_rotary_factor", "1 or nothing", factor.to_string()));
    }
    for (key, value) in fields.map {
        // an object for each type of layer; a number that is not finite is one, too (see `crate::json`)
        if value.is_object() && value.get(json::FLOAT).is_none() {
            let expected = "one rotary embedding for all blocks";
            return Err(fields.unsupported(key, expected, brief(value)));
        }
    }
    match kind {
        "default" => Ok(RopeScaling::None),
        // two older names
        "longrope" | "su" | "yarn" if rotation.long => longrope(whole, fields, rotated, longest),
        "linear" if !rotation.long => Ok(RopeScaling::Linear {
            factor: fields.required_positive("factor")?,
        }),
        "dynamic" if !rotation.long => Ok(RopeScaling::Dynamic {
            factor: at_least_one(fields, "factor")?,
            max_position_embeddings: longest,
        }),
        "llama3" if !rotation.long => {
            let scaling = RopeScaling::Llama3 {
                factor: fields.required_positive("factor")?,
                low_freq_factor: fields.required_positive("low_freq_factor")?,
                high_freq_factor: fields.required_positive("high_freq_factor")?,
                original_max_position_embeddings: original_context(whole, fields)?
                    .ok_or_else(|| fields.wrong("original_max_position_embeddings", "a whole number"))?,
            };
            // the blend divides by high - low
            if fields.number("high_freq_factor")? <= fields.number("low_freq_factor")? {
                return Err(fields.wrong("high_freq_factor", "a value above low_freq_factor"));
            }
            Ok(scaling)
        }
        "yarn" => yarn(whole, fields, longest),
        other => {
            let key = if fields.get("rope_type").is_some() {
                "rope_type"
            } else {
                "type"
            };
            let kinds = if rotation.long { LONG_KINDS } else { KINDS };
            Err(fields.unsupported(key, kinds, format!("{other:?}")))
        }
    }
}

fn yarn(whole: &Fields<'_>, fields: &Fields<'_>, longest: usize) -> Result<RopeScaling> {
    let factor = at_least_one(fields, "factor")?;
    let [mscale, mscale_all_dim] = [fields.number("mscale")?, fields.number("mscale_all_dim")?];
    // transformers takes 0 for absent
    let or = |value: Option<f64>, default: f64| value.filter(|&value| value != 0.0).unwrap_or(default);
    let attention_factor = match fields.number("attention_factor")? {
        Some(given) if given.is_finite() && given > 0.0 => given,
        Some(_) => return Err(fields.wrong("attention_factor", "a positive number")),
        None => {
            let attention = |scale: f64| 0.1 * scale * factor.ln() + 1.0;
            let derived = match (or(mscale, 0.0), or(mscale_all_dim, 0.0)) {
                (0.0, _) | (_, 0.0) => attention(1.0),
                (scale, all) => attention(scale) / attention(all),
            };
            if !(derived.is_finite() && derived > 0.0) {
                return Err(fields.wrong("mscale", "a value with a positive attention factor"));
            }
            derived
        }
    };
    let beta = |key: &str, default: f64| {
        let value = or(fields.number(key)?, default);
        if value.is_finite() && value > 0.0 {
            Ok(value)
        } else {
            Err(fields.wrong(key, "a positive number"))
        }
    };
    let (beta_fast, beta_slow) = (beta("beta_fast", 32.0)?, beta("beta_slow", 1.0)?);
    if beta_fast < beta_slow {
        return Err(fields.wrong("beta_fast", format!("at least beta_slow = {beta_slow}")));
    }
    Ok(RopeScaling::Yarn {
        factor,
        original_max_position_embeddings: original_context(whole, fields)?.unwrap_or(longest),
        beta_fast,
        beta_slow,
        truncate: fields.flag("truncate")?.unwrap_or(true),
        attention_factor,
    })
}

/// LongRoPE as Phi-3 has it: the original context stands outside of the rotary object, and is 4096 if absent.
fn longrope(whole: &Fields<'_>, fields: &Fields<'_>, rotated: usize, longest: usize) -> Result<RopeScaling> {
    let key = "original_max_position_embeddings";
    let original = whole.optional_size(key)?.unwrap_or(4096);
    if fields.optional_size(key)?.is_some_and(|inner| inner != original) {
        return Err(fields.wrong(key, format!("{original}, as outside of this object")));
    }
    let ratio = longest as f64 / original as f64;
    if fields.number("factor")?.is_some_and(|factor| factor != ratio) {
        let expected = format!("nothing or {ratio}, max_position_embeddings / {key}");
        return Err(fields.wrong("factor", expected));
    }
    let attention_factor = match fields.positive("attention_factor")? {
        Some(given) => given,
        None if ratio <= 1.0 => 1.0,
        None if original == 1 => return Err(fields.wrong(key, "at least 2")),
        None => (1.0 + ratio.ln() / (original as f64).ln()).sqrt(),
    };
    let divisors = |key: &str| {
        let list = fields.get(key).and_then(Value::as_array);
        let numbers: Option<Vec<f64>> = list.and_then(|list| {
            let numbers = list.iter().map(Value::as_f64);
            numbers
                .map(|number| number.filter(|number| *number > 0.0))
                .collect()
        });
        numbers
            .filter(|numbers| numbers.len() == rotated / 2)
            .ok_or_else(|| fields.wrong(key, format!("a list of {} positive numbers", rotated / 2)))
    };
    Ok(RopeScaling::Long {
        short: divisors("short_factor")?,
        long: divisors("long_factor")?,
        original_max_position_embeddings: original,
        attention_factor,
    })
}

/// The context before the extension. Only transformers 5 reads it outside of the rotary object, and prefers
/// it there.
fn original_context(whole: &Fields<'_>, fields: &Fields<'_>) -> Result<Option<usize>> {
    let key = "original_max_position_embeddings";
    let inner = fields.optional_size(key)?;
    if let Some(outer) = whole.optional_size(key)?
        && inner != Some(outer)
    {
        return Err(fields.wrong(key, format!("{outer}, as outside of this object")));
    }
    Ok(inner)
}

fn at_least_one(fields: &Fields<'_>, key: &str) -> Result<f64> {
    let value = fields.required_positive(key)?;
    if value < 1.0 {
        return Err(fields.wrong(key, "a number of at least 1"));
    }
    Ok(value)
}

/// Rejects rotations whose formula divides by zero.
fn refuse_degenerate(fields: &Fields<'_>, rope: &Rope, head_dim: usize) -> Result<()> {
    match rope.scaling {
        RopeScaling::Dynamic { .. } if head_dim <= 2 => {
            Err(fields.wrong("head_dim", "at least 4 for dynamic scaling"))
        }
        RopeScaling::Yarn { .. } if rope.theta <= 1.0 => {
            Err(fields.wrong("rope_theta", "a number above 1 for scaling of type yarn"))
        }
        _ => Ok(()),
    }
}
