use std::path::PathBuf;

use aqlm_engine::backends::BackendKind;

/// Options of `aqlm check --vectors`.
#[derive(Debug, Clone)]
pub struct VectorOptions {
    /// backend that runs whole models and steps of PV-Tuning
    pub backend: BackendKind,
    /// only cases of this operation
    pub op: Option<String>,
    /// only the case with this name
    pub case: Option<String>,
    /// model folders or files for the `models` layout, or folders of several models
    pub models: Vec<PathBuf>,
}

impl VectorOptions {
    pub(super) fn wants(&self, op: &str, case: &str) -> bool {
        self.op.as_deref().is_none_or(|wanted| wanted == op)
            && self.case.as_deref().is_none_or(|wanted| wanted == case)
    }
}
