use aqlm_vocabulary::{AqlmError, ArchSpec, BlockSpec, LinearSpec, Scheme};

use aqlm_formats::{Error, Result};

/// Rejects a scheme that does not fit one of the model's layers, before anything is computed or written.
///
/// # Errors
/// `Error::Scheme` naming the layer, with group sizes that fit all layers. `Error::Degenerate` for more
/// codewords than groups, unless `allow_degenerate`.
pub fn check_scheme(arch: &ArchSpec, scheme: Scheme, allow_degenerate: bool) -> Result<()> {
    let of_block = |block| BlockSpec::quantizable(block).map(|layer| block.linear(layer));
    let layers = || arch.blocks.iter().flat_map(of_block);
    for LinearSpec { name, shape, .. } in layers() {
        let &(out_features, in_features) = shape;
        let groups = scheme.groups(out_features, in_features).map_err(|error| {
            let fitting = match &error {
                AqlmError::NotDivisible { what, .. } if what == "in_features" => {
                    let sizes = (1..=scheme.in_group_size)
                        .rev()
                        .filter(|&size| layers().all(|layer| layer.shape.1.is_multiple_of(size)));
                    sizes
                        .take(2)
                        .map(|size| format!("g{size}"))
                        .collect::<Vec<_>>()
                        .join(" or ")
                }
                _ => "an out_group_size of 1".to_owned(),
            };
            Error::Scheme {
                layer: name.clone(),
                reason: format!(
                    "[{out_features}, {in_features}]: {error}; {fitting} fits every layer of this model"
                ),
            }
        })?;
        if groups.0 * groups.1 < scheme.codebook_size() && !allow_degenerate {
            return Err(Error::Degenerate {
                layer: name.clone(),
                out_features,
                in_features,
                source: AqlmError::Degenerate {
                    scheme: scheme.to_string(),
                    codebook_size: scheme.codebook_size(),
                    groups: groups.0 * groups.1,
                },
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use aqlm_vocabulary::llama::LlamaBlock;
    use aqlm_vocabulary::{Rope, RopeScaling};

    use super::*;

    fn config(hidden_size: usize, intermediate_size: usize) -> ArchSpec {
        let block = BlockSpec::llama(LlamaBlock {
            hidden_size,
            intermediate_size,
            heads: 4,
            kv_heads: 4,
            head_dim: hidden_size / 4,
            epsilon: 1e-5,
            rotary: Rope {
                theta: 1e4,
                scaling: RopeScaling::None,
            },
            window: None,
        });
        ArchSpec::llama(10, 64, 1, block)
    }

    #[test]
    fn a_width_that_does_not_divide_names_the_layer_and_a_group_that_fits() {
        let error = check_scheme(&config(64, 172), "1x4g8".parse().unwrap(), false)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("mlp.down_proj") && error.contains("172") && error.contains("g4"),
            "{error}"
        );
    }

    #[test]
    fn more_codewords_than_groups_need_permission() {
        let scheme = "1x10g8".parse().unwrap();
        let error = check_scheme(&config(64, 176), scheme, false).unwrap_err();
        assert!(
            matches!(&error, Error::Degenerate { layer, .. } if layer == "self_attn.q_proj"),
            "{error}"
        );
        assert!(check_scheme(&config(64, 176), scheme, true).is_ok());
        assert!(check_scheme(&config(64, 176), "1x9g8".parse().unwrap(), false).is_ok());
    }
}
