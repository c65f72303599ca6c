//! Which part of a block gave a number that is not finite.

use aqlm_vocabulary::NormPlace;

use super::super::{Buffer, Result};
use super::block::Block;
use super::forward::Trace;
use super::machine::Machine;
use super::pass::Rows;

impl Machine {
    /// The first layer or norm of a block whose output is not finite, by its name in the checkpoint.
    pub(super) fn broken_part(
        &self,
        block: &Block,
        index: usize,
        trace: &Trace,
        y: &Buffer<f32>,
    ) -> Result<Option<String>> {
        let spec = block.spec();
        let attention = &spec.attention;
        let name = |layer| spec.linear(layer).name.as_str();
        let last = |place, layer| spec.last_part(place, name(layer));
        let (first, second) = (NormPlace::BeforeAttention, NormPlace::BeforeMlp);
        let of_mlp = trace.mlp.inside.parts(spec, trace.rows);
        let first_of_mlp = of_mlp.first().map_or("mlp", |(name, ..)| name);
        let whole = |values: &'_ Buffer<f32>| values.len() / trace.rows.max(1);
        let of = |name, values| (name, Buffer::slice(values, ..), whole(values));
        // in the order of computation
        let mut parts: Vec<(&str, Rows<'_>, usize)> =
            vec![of(last(first, attention.query), trace.attention_input())];
        let [raw_q, raw_k] = &trace.raw;
        parts.extend(raw_q.iter().map(|raw| of(name(attention.query), &raw.x)));
        parts.push(of(last(NormPlace::Query, attention.query), &trace.q));
        parts.extend(raw_k.iter().map(|raw| of(name(attention.key), &raw.x)));
        parts.push(of(last(NormPlace::Key, attention.key), &trace.k));
        parts.push(of(name(attention.value), &trace.v));
        parts.push(of(spec.linear(attention.output).module(), &trace.attended));
        let output = attention.output;
        parts.extend(trace.mixed.iter().map(|raw| of(name(output), &raw.x)));
        parts.push(of(last(NormPlace::AfterAttention, output), &trace.middle));
        parts.push(of(spec.last_part(second, first_of_mlp), trace.mlp_input()));
        parts.extend(of_mlp);
        let added = spec.mlp_output();
        parts.extend(trace.out.iter().map(|raw| of(added, &raw.x)));
        parts.push(of(spec.last_part(NormPlace::AfterMlp, added), y));
        for (part, values, width) in parts {
            if self.first_not_finite(&values, width)?.is_some() {
                return Ok(Some(format!("model.layers.{index}.{part}")));
            }
        }
        Ok(None)
    }
}
