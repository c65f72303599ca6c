"""Compares every quantized type of GGUF with the dequantizer of the Python package `gguf`.

    python gguf_types.py --aqlm target/release/aqlm

For each type: a model of one block whose weights are random blocks of that type, and the same model with the
weights that the package computes from those blocks, stored in F32. Both must give the same logits, bit for
bit. Needs numpy, gguf and safetensors. Exit code 1 when a type differs.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter, dequantize
from safetensors.numpy import load_file

HIDDEN, FFN, HEADS, CONTEXT = 256, 512, 4, 64
TOKENS = ["<unk>", "<s>", "</s>", "▁"] + [chr(letter) for letter in range(ord("a"), ord("z") + 1)]
SHAPES = {
    "attn_q": (HIDDEN, HIDDEN), "attn_k": (HIDDEN, HIDDEN), "attn_v": (HIDDEN, HIDDEN),
    "attn_output": (HIDDEN, HIDDEN), "ffn_gate": (FFN, HIDDEN), "ffn_up": (FFN, HIDDEN), "ffn_down": (HIDDEN, FFN),
}
# Where the f16 numbers of a block lie: its scale, and the scale of its minima where it has one.
HALVES = {
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q2_K": [80, 82], "Q3_K": [108],
    "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "Q8_K": [],
}


def random_blocks(rng, name, rows, columns):
    """Rows of blocks whose numbers stay below 1 or so: random bytes with small scales."""
    length, size = GGML_QUANT_SIZES[GGMLQuantizationType[name]]
    blocks = rng.integers(0, 256, (rows, columns // length, size), dtype=np.uint8)
    largest = {"Q2_K": 45, "Q3_K": 128, "Q4_K": 945, "Q5_K": 1953, "Q6_K": 4096}.get(name, 128)
    for offset in HALVES[name]:
        scale = rng.uniform(-0.2, 0.2, blocks.shape[:2]).astype(np.float32) / largest
        blocks[..., offset:offset + 2] = scale.astype(np.float16)[..., None].view(np.uint8)
    if name == "Q8_K":
        scale = rng.uniform(-0.2, 0.2, blocks.shape[:2]).astype(np.float32) / largest
        blocks[..., :4] = scale[..., None].view(np.uint8)
    return blocks.reshape(rows, -1)


def values(name, rows):
    if name == "Q8_K":  # the package has its size but no dequantizer
        blocks = rows.reshape(rows.shape[0], -1, 292)
        scale = blocks[..., :4].copy().view(np.float32)
        return (scale * blocks[..., 4:260].view(np.int8).astype(np.float32)).reshape(rows.shape[0], -1)
    return dequantize(rows, GGMLQuantizationType[name])


def write(path, seed, weights):
    rng = np.random.default_rng(seed)
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(1)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(TOKENS)
    writer.add_token_scores([0.0] * len(TOKENS))
    writer.add_token_types([2, 3, 3] + [1] * (len(TOKENS) - 3))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_tensor("token_embd.weight", rng.standard_normal((len(TOKENS), HIDDEN), dtype=np.float32))
    writer.add_tensor("output.weight", rng.standard_normal((len(TOKENS), HIDDEN), dtype=np.float32) / 16)
    for name in ["output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"]:
        writer.add_tensor(f"{name}.weight", np.ones(HIDDEN, dtype=np.float32))
    for part, (data, kind) in weights.items():
        writer.add_tensor(f"blk.0.{part}.weight", data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def logits(aqlm, model, text, folder):
    out = folder / "logits.safetensors"
    command = [aqlm, "eval", model, "--data", text, "--ctx", str(CONTEXT), "--dump-logits", out]
    subprocess.run(command, check=True, capture_output=True)
    return load_file(out)["logits"]


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--aqlm", default="aqlm", help="the program")
    arguments.add_argument("--seed", type=int, default=1)
    options = arguments.parse_args()
    rng = np.random.default_rng(options.seed)
    differing = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = folder / "text.txt"
        text.write_text("".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz "), 4 * CONTEXT)))
        for kind in HALVES:
            blocks = {part: random_blocks(rng, kind, *shape) for part, shape in SHAPES.items()}
            dense = {part: (values(kind, rows).astype(np.float32), None) for part, rows in blocks.items()}
            write(folder / "a.gguf", 7, {part: (rows, GGMLQuantizationType[kind]) for part, rows in blocks.items()})
            write(folder / "b.gguf", 7, dense)
            ours = logits(options.aqlm, folder / "a.gguf", text, folder)
            theirs = logits(options.aqlm, folder / "b.gguf", text, folder)
            same = np.isfinite(theirs).all() and np.array_equal(ours, theirs)
            spread = float(theirs.std())
            print(f"{kind}: {'equal' if same else 'DIFFERS'} ({ours.size} logits, standard deviation {spread:.3f})")
            differing += not same
    sys.exit(differing > 0)


if __name__ == "__main__":
    main()
