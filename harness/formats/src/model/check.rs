use aqlm_vocabulary::LayerKind;

use super::Model;
use crate::huggingface::linear::{code_type, codebook_shape};
use crate::huggingface::names::{EMBEDDING, FINAL_NORM, LM_HEAD, layer_name, norm_names};
use crate::tensors::TensorInfo;
use crate::{Error, Result};

impl Model {
    /// Presence and shape of everything that the accessors will read.
    pub(super) fn check_tensors(&self) -> Result<()> {
        let config = self.config();
        let vocabulary = [config.vocab_size, config.hidden_size];
        self.tensors.expect(EMBEDDING, &vocabulary)?;
        self.tensors.expect(FINAL_NORM, &[config.hidden_size])?;
        if !config.tie_word_embeddings {
            self.tensors.expect(LM_HEAD, &vocabulary)?;
        }
        for block in 0..config.num_hidden_layers {
            for norm in norm_names(block) {
                self.tensors.expect(&norm, &[config.hidden_size])?;
            }
            for kind in LayerKind::ALL {
                self.check_layer(block, kind)?;
            }
        }
        Ok(())
    }

    fn check_layer(&self, block: usize, kind: LayerKind) -> Result<()> {
        let name = layer_name(block, kind);
        let (out_features, in_features) = self.config().layer_shape(kind);
        let unexpected = |info: TensorInfo, tensor: String, reason: &str| Error::UnexpectedTensor {
            path: info.path,
            tensor,
            reason: reason.into(),
        };
        let bias = format!("{name}.bias");
        match self.tensors.info(&bias) {
            Some(info) if !self.config.has_bias(kind) => {
                return Err(unexpected(
                    info,
                    bias,
                    "as config.json announces no bias for this layer",
                ));
            }
            None if !self.config.has_bias(kind) => {}
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
