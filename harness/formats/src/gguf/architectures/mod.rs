//! One file per architecture of GGUF files. To add one whose family is read from Hugging Face folders: a file
//! here and an entry in `ARCHITECTURES`.

#![expect(
    clippy::unnecessary_wraps,
    reason = "all architectures have functions of one type, and some refuse nothing"
)]

mod architecture;
mod gemma;
mod gemma2;
mod gemma3;
mod glm4;
mod granite;
mod llama;
mod olmo2;
mod phi3;
mod qwen2;
mod qwen2moe;
mod qwen3;
mod qwen3moe;
mod smollm3;
mod stablelm;

use super::fields::Fields;
use crate::Result;

pub(super) use architecture::Architecture;

/// All architectures that can be read.
const ARCHITECTURES: [&Architecture; 14] = [
    &llama::ARCHITECTURE,
    &qwen2::ARCHITECTURE,
    &qwen3::ARCHITECTURE,
    &gemma::ARCHITECTURE,
    &gemma2::ARCHITECTURE,
    &gemma3::ARCHITECTURE,
    &phi3::ARCHITECTURE,
    &olmo2::ARCHITECTURE,
    &granite::ARCHITECTURE,
    &smollm3::ARCHITECTURE,
    &stablelm::ARCHITECTURE,
    &glm4::ARCHITECTURE,
    &qwen2moe::ARCHITECTURE,
    &qwen3moe::ARCHITECTURE,
];

impl Architecture {
    /// The architecture of a file.
    ///
    /// # Errors
    /// `Field` without a `general.architecture`, `Unsupported` when this list does not have it.
    pub(super) fn of(fields: &Fields<'_>) -> Result<&'static Self> {
        let key = "general.architecture";
        let name = fields.text(key)?;
        let known = ARCHITECTURES.into_iter().find(|other| other.name == name);
        known.ok_or_else(|| {
            let [others @ .., last] = ARCHITECTURES.map(|other| other.name);
            let expected = format!("{} or {last}", others.join(", "));
            fields.unsupported(key, &expected, format!("{name:?}"))
        })
    }
}
