"""Writes a model of Llama-2-7B's shapes with random weights and few blocks, and random words for it.

    python3 benches/random_llama.py FOLDER [BLOCKS [TOKENS]]

FOLDER becomes a Hugging Face folder with BLOCKS (2) blocks in f16, 32,000 words w0 to w31999, and words.txt
with TOKENS (4,194,304) of them. Weights are N(0, 0.02), embeddings N(0, 1), norms 1. Needs torch.
"""

import json
import os
import random
import struct
import sys

import torch

HIDDEN, INNER, HEADS, VOCAB = 4096, 11008, 32, 32000


def tensors(blocks):
    yield "model.embed_tokens.weight", (VOCAB, HIDDEN), 1.0
    for block in range(blocks):
        at = f"model.layers.{block}."
        for name in "qkvo":
            yield f"{at}self_attn.{name}_proj.weight", (HIDDEN, HIDDEN), 0.02
        for name, shape in (("gate", (INNER, HIDDEN)), ("up", (INNER, HIDDEN)), ("down", (HIDDEN, INNER))):
            yield f"{at}mlp.{name}_proj.weight", shape, 0.02
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"{at}{name}.weight", (HIDDEN,), None
    yield "model.norm.weight", (HIDDEN,), None
    yield "lm_head.weight", (VOCAB, HIDDEN), 0.02


def main():
    folder = sys.argv[1]
    blocks = int(sys.argv[2]) if len(sys.argv) > 2 else 2
    tokens = int(sys.argv[3]) if len(sys.argv) > 3 else 1024 * 4096
    os.makedirs(folder, exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "hidden_size": HIDDEN, "intermediate_size": INNER, "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS, "num_hidden_layers": blocks, "vocab_size": VOCAB,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "tie_word_embeddings": False, "torch_dtype": "float16",
    }
    words = {f"w{word}": word for word in range(VOCAB)}
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "w0"},
    }
    for name, value in (("config.json", config), ("tokenizer.json", tokenizer)):
        with open(os.path.join(folder, name), "w") as file:
            json.dump(value, file)
    header, end = {}, 0
    for name, shape, _ in tensors(blocks):
        size = 2 * int(torch.Size(shape).numel())
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    header = json.dumps(header).encode()
    header += b" " * (-len(header) % 8)
    generator = torch.Generator().manual_seed(0)
    with open(os.path.join(folder, "model.safetensors"), "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for _, shape, deviation in tensors(blocks):
            values = torch.ones(shape)
            if deviation is not None:
                values.normal_(0.0, deviation, generator=generator)
            file.write(values.half().numpy().tobytes())
    drawn = random.Random(0).choices(range(VOCAB), k=tokens)
    with open(os.path.join(folder, "words.txt"), "w") as file:
        for first in range(0, tokens, 1024):
            file.write(" ".join(f"w{word}" for word in drawn[first : first + 1024]) + "\n")


main()
