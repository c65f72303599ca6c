use crate::{AqlmError, ArchSpec, BlockSpec, GatedMlp, Input, LayerId, Mlp, NormPlace, Result, RoutedMlp};

impl ArchSpec {
    /// Rejects, before anything is computed, a model whose parts do not fit together. Every backend calls
    /// this when it is created.
    ///
    /// # Errors
    /// `Argument` naming the part, what was expected and what was found.
    pub fn check(&self) -> Result<()> {
        if self.blocks.is_empty() {
            return Err(AqlmError::argument("blocks of a model", "at least 1", 0));
        }
        for block in &self.blocks {
            block.check()?;
            expect("width of a block", self.hidden_size, block.hidden_size())?;
        }
        Ok(())
    }
}

impl BlockSpec {
    /// [`ArchSpec::check`] for one block.
    ///
    /// # Errors
    /// `Argument` naming the part, what was expected and what was found.
    pub fn check(&self) -> Result<()> {
        let attention = &self.attention;
        let mut layers = vec![attention.query, attention.key, attention.value, attention.output];
        layers.extend(self.mlp.kept_dense());
        layers.extend(
            self.mlp
                .gated()
                .iter()
                .flat_map(|mlp| [mlp.gate, mlp.up, mlp.down]),
        );
        if let Some(layer) = layers.iter().find(|layer| layer.index() >= self.linears.len()) {
            let most = format!("one of {}", self.linears.len());
            return Err(AqlmError::argument("layer of a block", most, layer.index()));
        }
        if attention.kv_heads == 0 || !attention.heads.is_multiple_of(attention.kv_heads) {
            let expected = format!("a multiple of the {} heads of keys", attention.kv_heads);
            return Err(AqlmError::argument("heads of queries", expected, attention.heads));
        }
        if attention.rotated > attention.head_dim || !attention.rotated.is_multiple_of(2) {
            let expected = format!("an even number of at most {}", attention.head_dim);
            return Err(AqlmError::argument(
                "rotated part of a head",
                expected,
                attention.rotated,
            ));
        }
        let hidden = self.hidden_size();
        let (projections, widths) = attention.projections();
        self.parts(
            "queries, keys and values",
            &projections,
            &widths,
            Input::Attention,
            hidden,
        )?;
        let queries = attention.query_width();
        self.parts(
            "attention's output",
            &[attention.output],
            &[hidden],
            Input::Attended,
            queries,
        )?;
        match &self.mlp {
            Mlp::Dense(mlp) => self.gated(mlp, Input::Mlp, Input::Activated)?,
            Mlp::Routed(mlp) => self.routed(mlp)?,
        }
        for pair in self.norm_places().windows(2) {
            if pair[0] >= pair[1] {
                let expected = "each once, in the order of computation";
                return Err(AqlmError::argument(
                    "norms of a block",
                    expected,
                    format!("{pair:?}"),
                ));
            }
        }
        for norm in &self.norms {
            let fits = match norm.place {
                NormPlace::Query => [attention.head_dim, attention.query_width()],
                NormPlace::Key => [attention.head_dim, attention.key_width()],
                _ => [hidden; 2],
            };
            if !fits.contains(&norm.width) {
                return Err(AqlmError::argument(
                    format!("weights of {}", norm.name),
                    format!("{} or {}", fits[0], fits[1]),
                    norm.width,
                ));
            }
        }
        Ok(())
    }

    /// Rejects a gated MLP with layers of other inputs or shapes.
    fn gated(&self, mlp: &GatedMlp, reads: Input, activated: Input) -> Result<()> {
        let (hidden, inner) = (self.hidden_size(), self.shape(mlp.down).1);
        self.parts("gate and up", &[mlp.gate, mlp.up], &[inner; 2], reads, hidden)?;
        self.parts("the MLP's output", &[mlp.down], &[hidden], activated, inner)
    }

    /// Rejects experts that do not fit their router or each other.
    fn routed(&self, mlp: &RoutedMlp) -> Result<()> {
        let (hidden, count) = (self.hidden_size(), mlp.experts.len());
        self.parts("the router", &[mlp.router], &[count], Input::Mlp, hidden)?;
        if mlp.used == 0 || mlp.used > count {
            let expected = format!("1 to {count}");
            return Err(AqlmError::argument("experts of a token", expected, mlp.used));
        }
        for (index, expert) in mlp.experts.iter().enumerate() {
            let index = index as u16;
            self.gated(expert, Input::Expert(index), Input::ExpertActivated(index))?;
            let width = |mlp: &GatedMlp| self.shape(mlp.down).1;
            expect("width of an expert", width(&mlp.experts[0]), width(expert))?;
        }
        if let Some(shared) = &mlp.shared {
            self.parts(
                "the shared expert's gate",
                &[shared.gate],
                &[1],
                Input::Mlp,
                hidden,
            )?;
            self.gated(&shared.mlp, Input::Mlp, Input::Activated)?;
        }
        let mut layers = self.mlp.kept_dense();
        layers.extend(
            self.mlp
                .gated()
                .iter()
                .flat_map(|mlp| [mlp.gate, mlp.up, mlp.down]),
        );
        match layers.iter().find(|&&layer| self.linear(layer).bias) {
            Some(&layer) => Err(AqlmError::argument(
                format!("bias of {}", self.linear(layer).name),
                "none, as experts have none",
                "one",
            )),
            None => Ok(()),
        }
    }

    /// Rejects layers that do not have these outputs together: each its own, or all of them one layer.
    fn parts(
        &self,
        what: &str,
        layers: &[LayerId],
        widths: &[usize],
        reads: Input,
        inputs: usize,
    ) -> Result<()> {
        let fused = layers.len() > 1 && layers.iter().all(|layer| layer == &layers[0]);
        for (i, (&layer, &width)) in layers.iter().zip(widths).enumerate() {
            let outputs = if fused { widths.iter().sum() } else { width };
            let linear = self.linear(layer);
            if linear.shape != (outputs, inputs) || linear.reads != reads {
                return Err(AqlmError::argument(
                    format!("layer {} as {what}", linear.name),
                    format!("[{outputs}, {inputs}] of {reads:?}"),
                    format!("[{}, {}] of {:?}", linear.shape.0, linear.shape.1, linear.reads),
                ));
            }
            if !fused && layers[..i].contains(&layer) {
                let expected = "a layer for each, or one for all";
                return Err(AqlmError::argument(what, expected, &linear.name));
            }
        }
        Ok(())
    }
}

fn expect(what: &str, expected: usize, found: usize) -> Result<()> {
    if expected == found {
        return Ok(());
    }
    Err(AqlmError::argument(what, expected.to_string(), found))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llama::{self, DOWN, KEY, QUERY};
    use crate::{Activation, LinearSpec};

    fn arch() -> ArchSpec {
        ArchSpec::llama(10, 64, 2, llama::tests::block())
    }

    fn mlp(gate: u16, up: u16, down: u16) -> Mlp {
        Mlp::Dense(GatedMlp {
            activation: Activation::Silu,
            gate: LayerId(gate),
            up: LayerId(up),
            down: LayerId(down),
        })
    }

    #[test]
    fn one_layer_may_compute_queries_keys_and_values_and_another_gate_and_up() {
        let mut arch = arch();
        let block = &mut arch.blocks[1];
        let linear = |name: &str, shape, reads| LinearSpec {
            name: name.into(),
            shape,
            reads,
            bias: false,
        };
        block.linears = vec![
            linear("self_attn.qkv_proj", (16, 8), Input::Attention),
            linear("self_attn.o_proj", (8, 8), Input::Attended),
            linear("mlp.gate_up_proj", (24, 8), Input::Mlp),
            linear("mlp.down_proj", (8, 12), Input::Activated),
        ];
        let attention = &mut block.attention;
        [attention.query, attention.key, attention.value, attention.output] = [0, 0, 0, 1].map(LayerId);
        block.mlp = mlp(2, 2, 3);
        assert_eq!(arch.check(), Ok(()));
        assert_eq!(arch.blocks[1].intermediate_size(), 12);
        arch.blocks[1].attention.value = LayerId(1);
        assert!(arch.check().is_err());
    }

    #[test]
    fn parts_that_do_not_fit_are_named() {
        type Change = fn(&mut BlockSpec);
        assert_eq!(arch().check(), Ok(()));
        let changes: [(Change, &str); 10] = [
            (|block| block.attention.query = LayerId(9), "layer of a block"),
            (|block| block.attention.kv_heads = 0, "heads of queries"),
            (|block| block.attention.rotated = 6, "rotated"),
            (|block| block.attention.rotated = 3, "rotated"),
            (|block| block.attention.value = KEY, "queries, keys and values"),
            (|block| block.linears[QUERY.index()].shape = (4, 8), "q_proj"),
            (
                |block| block.linears[DOWN.index()].reads = Input::Mlp,
                "down_proj",
            ),
            (|block| block.norms.swap(0, 1), "norms of a block"),
            (|block| block.norms[1].width = 4, "post_attention_layernorm"),
            (|block| block.mlp = mlp(4, 4, 6), "gate"),
        ];
        for (change, named) in changes {
            let mut arch = arch();
            change(&mut arch.blocks[1]);
            let refused = arch.check();
            assert!(
                matches!(&refused, Err(AqlmError::Argument { what, .. }) if what.contains(named)),
                "{named}: {refused:?}"
            );
        }
        let mut wide = arch();
        wide.hidden_size = 9;
        assert!(wide.check().is_err());
        wide.blocks.clear();
        assert!(wide.check().is_err());
    }
}
