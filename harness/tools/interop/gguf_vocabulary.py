"""The vocabulary of a GGUF file, written from a tokenizer.json with byte-level BPE."""

import json


def write(writer, folder, size, bos, eos):
    """Writes tokens, their types and merges of the folder's tokenizer, filled up to `size` tokens."""
    # Whoever calls may have made a package of its own importable.
    from gguf import TokenType

    description = json.loads((folder / "tokenizer.json").read_text())
    special = {token["id"] for token in description["added_tokens"]}
    by_id = {id: token for token, id in description["model"]["vocab"].items()}
    by_id |= {token["id"]: token["content"] for token in description["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([by_id.get(id, f"[unused{id}]") for id in range(size)])
    writer.add_token_types([TokenType.CONTROL if id in special else TokenType.NORMAL for id in range(size)])
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in description["model"]["merges"]])
    writer.add_bos_token_id(bos)
    writer.add_eos_token_id(eos)
    writer.add_add_bos_token(False)
