use aqlm_vocabulary::{LayerId, NormSpec};

use super::Model;
use crate::huggingface::linear::{code_type, codebook_shape};
use crate::huggingface::names::{EMBEDDING, FINAL_NORM, LM_HEAD, bias_name, needed_tensors};
use crate::tensors::TensorInfo;
use crate::{Error, Result};

/// How many names a warning lists.
const LISTED: usize = 4;

impl Model {
    /// Decides whether the head is the embedding. A tied model's files may hold a head of their own: as in
    /// transformers 5, it is used where it differs. transformers 4 uses the embedding.
    ///
    /// # Errors
    /// Those of reading both tensors.
    pub(super) fn settle_head(&mut self) -> Result<()> {
        let Some(head) = self.tensors.info(LM_HEAD).filter(|_| self.config.arch.tied) else {
            return Ok(());
        };
        let config = self.config();
        let embedding = self
            .tensors
            .expect(EMBEDDING, &[config.vocab_size, config.hidden_size])?;
        let same = head.shape == embedding.shape
            && self.tensors.read_floats(LM_HEAD)? == self.tensors.read_floats(EMBEDDING)?;
        if !same {
            self.config.arch.tied = false;
            self.config.warnings.push(format!(
                "{}: field `tie_word_embeddings` is true, but tensor `{LM_HEAD}` differs from `{EMBEDDING}`: the \
                 head is used, as in transformers 5; transformers 4 uses the embedding",
                self.config.path.display()
            ));
        }
        Ok(())
    }

    /// A warning when there are tensors that the configuration does not need.
    pub(super) fn unread_tensors(&self) -> Option<String> {
        let config = self.config();
        let mut needed = needed_tensors(config);
        for (block, spec) in config.blocks.iter().enumerate() {
            for layer in spec.layers() {
                let name = config.layer_name(block, layer);
                // a bias that must not be there is an error of its own
                let parts = ["bias", "codes", "codebooks", "scales"];
                needed.extend(parts.map(|part| format!("{name}.{part}")));
            }
        }
        // early releases of transformers stored the frequencies that follow from config.json
        let buffer = |name: &String| name.ends_with("rotary_emb.inv_freq");
        let names = self.tensors.names().into_iter();
        let unread: Vec<String> = names
            .filter(|name| !needed.contains(name) && !buffer(name))
            .collect();
        if unread.is_empty() {
            return None;
        }
        let rest = unread.len().saturating_sub(LISTED);
        let named: Vec<String> = unread
            .iter()
            .take(LISTED)
            .map(|name| format!("`{name}`"))
            .collect();
        let more = if rest > 0 {
            format!(" and {rest} more")
        } else {
            String::new()
        };
        Some(format!(
            "{}: tensors that a {} model of config.json's shape does not have, and that are not read: {}{more}",
            self.source.display(),
            self.config.family.name,
            named.join(", ")
        ))
    }

    /// Checks presence and shape of all tensors that the accessors read.
    pub(super) fn check_tensors(&self) -> Result<()> {
        let config = self.config();
        let vocabulary = [config.vocab_size, config.hidden_size];
        self.tensors.expect(EMBEDDING, &vocabulary)?;
        self.check_norm(FINAL_NORM, config.final_norm, config.hidden_size)?;
        if !config.tied {
            self.tensors.expect(LM_HEAD, &vocabulary)?;
        }
        for (block, spec) in config.blocks.iter().enumerate() {
            for (name, norm) in config.norm_names(block).iter().zip(&spec.norms) {
                self.check_norm(name, norm.norm, norm.width)?;
            }
            for layer in spec.layers() {
                self.check_layer(block, layer)?;
            }
        }
        Ok(())
    }

    fn check_norm(&self, name: &str, spec: NormSpec, width: usize) -> Result<()> {
        self.tensors.expect(name, &[width])?;
        if spec.biased {
            self.tensors.expect(&bias_name(name), &[width])?;
        }
        Ok(())
    }

    fn check_layer(&self, block: usize, layer: LayerId) -> Result<()> {
        let name = self.config().layer_name(block, layer);
        let linear = self.config().blocks[block].linear(layer);
        let (out_features, in_features) = linear.shape;
        let unexpected = |info: TensorInfo, tensor: String, reason: &str| Error::UnexpectedTensor {
            path: info.path,
            tensor,
            reason: reason.into(),
        };
        let bias = format!("{name}.bias");
        match self.tensors.info(&bias) {
            Some(info) if !linear.bias => {
                return Err(unexpected(
                    info,
                    bias,
                    "as config.json announces no bias for this layer",
                ));
            }
            None if !linear.bias => {}
            _ => _ = self.tensors.expect(&bias, &[out_features])?,
        }
        let weight = format!("{name}.weight");
        let codes = format!("{name}.codes");
        let Some(info) = self.tensors.info(&codes) else {
            return self
                .tensors
                .expect(&weight, &[out_features, in_features])
                .map(|_| ());
        };
        let Some(scheme) = self.config.quantization else {
            return Err(unexpected(
                info,
                codes,
                "as config.json has no quantization_config",
            ));
        };
        if let Some(info) = self.tensors.info(&weight) {
            return Err(unexpected(info, weight, "as the layer has codes too"));
        }
        let (out_groups, in_groups) =
            scheme
                .groups(out_features, in_features)
                .map_err(|source| Error::Layer {
                    layer: format!("{}: {name}", self.source.display()),
                    source,
                })?;
        let found = self
            .tensors
            .expect(&codes, &[out_groups, in_groups, scheme.num_codebooks])?;
        let expected = format!("{:?}", code_type(scheme.nbits));
        if found.dtype != expected {
            return Err(Error::TensorType {
                path: found.path,
                tensor: codes,
                expected: format!("{expected} for codes of {} bits", scheme.nbits),
                found: found.dtype,
            });
        }
        self.tensors
            .expect(&format!("{name}.codebooks"), &codebook_shape(scheme))?;
        self.tensors
            .expect(&format!("{name}.scales"), &[out_groups, 1, 1, 1])?;
        Ok(())
    }
}
