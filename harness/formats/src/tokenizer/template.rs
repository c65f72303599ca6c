use serde_json::{Map, Value, json};

/// A post-processor that puts `bos` before and `eos` after every text, each an id with its token; null for
/// neither.
pub(crate) fn template(bos: Option<(usize, &str)>, eos: Option<(usize, &str)>) -> Value {
    if bos.is_none() && eos.is_none() {
        return Value::Null;
    }
    let mut special = Map::new();
    for (id, token) in bos.iter().chain(&eos) {
        special.insert(
            (*token).into(),
            json!({"id": token, "ids": [id], "tokens": [token]}),
        );
    }
    let template = |sequences: &[(&str, u32)]| -> Value {
        let mut parts = Vec::new();
        for (sequence, type_id) in sequences {
            let marker =
                |(_, token): (usize, &str)| json!({"SpecialToken": {"id": token, "type_id": type_id}});
            parts.extend(bos.map(marker));
            parts.push(json!({"Sequence": {"id": sequence, "type_id": type_id}}));
            parts.extend(eos.map(marker));
        }
        Value::Array(parts)
    };
    json!({
        "type": "TemplateProcessing", "single": template(&[("A", 0)]), "pair": template(&[("A", 0), ("B", 1)]),
        "special_tokens": special,
    })
}
