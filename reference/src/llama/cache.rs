use ndarray::{Array1, Array2, ArrayView1, Axis, s};

use super::attention::attention;
use super::forward::{NormedMlp, Projected};
use super::fused::apply;
use super::model::{Model, embed, logits};
use super::norm::normed;
use super::{Block, Rotary};
use aqlm_vocabulary::{AqlmError, ArchSpec, AttentionSpec, NormPlace, Result};

/// Keys and values of one block for the positions computed so far.
#[derive(Debug, Clone)]
pub struct KvCacheLayer {
    /// after rotation, [capacity, kv_heads x head_dim]
    keys: Array2<f64>,
    /// [capacity, kv_heads x head_dim]
    values: Array2<f64>,
}

impl KvCacheLayer {
    /// An empty cache with room for `capacity` positions.
    pub fn new(spec: &AttentionSpec, capacity: usize) -> Self {
        let shape = (capacity, spec.key_width());
        Self {
            keys: Array2::zeros(shape),
            values: Array2::zeros(shape),
        }
    }
}

/// Keys and values of a whole model, so that generation computes each position only once.
#[derive(Debug, Clone)]
pub struct KvCache {
    layers: Vec<KvCacheLayer>,
    rotary: Rotary,
    len: usize,
}

impl KvCache {
    /// An empty cache with room for `capacity` positions of a model.
    pub fn new(arch: &ArchSpec, capacity: usize) -> Self {
        Self {
            layers: arch
                .blocks
                .iter()
                .map(|block| KvCacheLayer::new(&block.attention, capacity))
                .collect(),
            rotary: Rotary::of_model(arch, capacity),
            len: 0,
        }
    }

    /// Number of positions computed; also the position of the next token.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no position has been computed.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Maximum number of positions.
    pub fn capacity(&self) -> usize {
        self.rotary.positions()
    }
}

/// [`block_forward`](super::block_forward) for one more position: from its input row `[hidden]` to its output
/// row.
///
/// Positions are computed in order. The cache must hold all positions before `position`, and afterwards also
/// holds this one.
///
/// # Panics
/// When the position is beyond the cache's capacity or the rotary tables, or shapes do not fit together.
pub fn block_decode_step(
    block: &Block,
    rotary: &Rotary,
    cache: &mut KvCacheLayer,
    x: ArrayView1<f64>,
    position: usize,
) -> Array1<f64> {
    let spec = block.spec();
    let x = x.insert_axis(Axis(0));
    let normed_x = normed(block, NormPlace::BeforeAttention, x);
    let Projected { q, k, v, .. } = Projected::of(block, rotary, normed_x.view(), position);
    cache.keys.row_mut(position).assign(&k.row(0));
    cache.values.row_mut(position).assign(&v.row(0));
    let [keys, values] = [&cache.keys, &cache.values].map(|all| all.slice(s![..=position, ..]));
    let attended = attention(&spec.attention, q.view(), keys, values, position);
    let mixed = apply(block, spec.attention.output, attended.view());
    let added = normed(block, NormPlace::AfterAttention, mixed.view());
    let middle = &x + &(spec.residual_scale * added);

    let mlp = NormedMlp::of(block, middle.view());
    let y = middle + spec.residual_scale * normed(block, NormPlace::AfterMlp, mlp.inside.out().view());
    y.index_axis_move(Axis(0), 0)
}

/// [`model_forward`](super::model_forward) for one more token: returns the logits of its position, `[vocab]`.
///
/// # Errors
/// `TokenOutOfRange` when the token has no embedding, `Shape` when the cache belongs to a model with another
/// number of blocks, `Argument` when the cache is full.
pub fn decode_step(model: &Model, cache: &mut KvCache, token: u32) -> Result<Array1<f64>> {
    if cache.layers.len() != model.blocks.len() {
        return Err(AqlmError::Shape {
            what: "layers of the key and value cache".into(),
            expected: vec![model.blocks.len()],
            found: vec![cache.layers.len()],
        });
    }
    let position = cache.len;
    if position == cache.capacity() {
        return Err(AqlmError::argument(
            "tokens in the cache",
            format!("at most its {position} positions"),
            position + 1,
        ));
    }
    let scale = model.arch.embedding_scale;
    let mut x = embed(model.embedding.view(), &[token], scale)?.index_axis_move(Axis(0), 0);
    for (block, layer) in model.blocks.iter().zip(&mut cache.layers) {
        x = block_decode_step(block, &cache.rotary, layer, x.view(), position);
    }
    cache.len += 1;
    let x = x.insert_axis(Axis(0));
    let row = logits(&model.arch, &model.norm, model.lm_head.view(), x.view());
    Ok(row.index_axis_move(Axis(0), 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llama::model_forward;
    use crate::llama::test_data::{every_part, model, random, with_blocks};

    #[test]
    fn cached_decoding_equals_the_full_forward() {
        let plain = [(4, None), (2, None), (1, Some(4))]
            .map(|(kv_heads, window)| model(&mut random(3), kv_heads, window));
        let others = every_part()
            .into_iter()
            .map(|block| with_blocks(&mut random(3), block));
        for (number, model) in plain.into_iter().chain(others).enumerate() {
            let tokens: Vec<u32> = (0..12).map(|t| t * t % 11).collect();
            let full = model_forward(&model, &tokens).unwrap();
            let mut cache = KvCache::new(&model.arch, tokens.len());
            for (&token, expected) in tokens.iter().zip(full.rows()) {
                let found = decode_step(&model, &mut cache, token).unwrap();
                // Products of other shapes may sum in another order. 2 blocks of 7 layers and a head, with
                // sums of up to 16 terms, give about 1e3 eps; the limit is the 1e-12.
                let difference = &found - &expected;
                let relative = (difference.dot(&difference) / expected.dot(&expected)).sqrt();
                assert!(relative <= 1e-12, "model {number}: {relative:e}");
            }
            assert!(matches!(
                decode_step(&model, &mut cache, 0),
                Err(AqlmError::Argument { .. })
            ));
        }
    }

    #[test]
    fn a_refused_token_leaves_the_cache_as_it_was() {
        let model = model(&mut random(4), 2, None);
        let mut cache = KvCache::new(&model.arch, 3);
        assert!(cache.is_empty());
        assert!(matches!(
            decode_step(&model, &mut cache, 99),
            Err(AqlmError::TokenOutOfRange { .. })
        ));
        let first = decode_step(&model, &mut cache, 5).unwrap();
        assert_eq!(cache.len(), 1);
        assert_eq!(
            first,
            decode_step(&model, &mut KvCache::new(&model.arch, 1), 5).unwrap()
        );
    }
}
