"""Compares tokens from tokenizer.model with those of the Python package `sentencepiece`.

    python sentence_piece.py --aqlm target/release/aqlm --text FILE.txt [--text FILE.txt ...] [--model FILE.model ...]

Trains SentencePiece models of both types, with and without byte fallback, extra spaces, dummy prefix and
normalization, on the first text. For each of them, and each given model: the lines of the texts are documents of a
model folder with tokenizer.model, and the program's ids must be BOS, SentencePiece's ids, EOS for each line.
Needs numpy, safetensors and sentencepiece. Exit code 1 when a token differs.
"""

import argparse
import io
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import sentencepiece
from safetensors.numpy import load_file, save_file

HIDDEN, CONTEXT = 8, 32
LONGEST = 300
LAYERS = {
    "self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.k_proj": (HIDDEN, HIDDEN), "self_attn.v_proj": (HIDDEN, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN), "mlp.gate_proj": (HIDDEN, HIDDEN), "mlp.up_proj": (HIDDEN, HIDDEN),
    "mlp.down_proj": (HIDDEN, HIDDEN),
}


def trained(lines):
    for kind in ["bpe", "unigram"]:
        for name, options in {
            "llama": dict(byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
                          split_digits=True, allow_whitespace_only_pieces=True),
            "defaults": {},
            "no prefix": dict(add_dummy_prefix=False, byte_fallback=True, user_defined_symbols=["<user>"]),
        }.items():
            out = io.BytesIO()
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(lines), model_writer=out, vocab_size=600, model_type=kind,
                character_coverage=0.99, minloglevel=2, hard_vocab_limit=False, **options)
            yield f"{kind}, {name}", out.getvalue()


def write_folder(folder, model, rows):
    folder.mkdir()
    (folder / "tokenizer.model").write_bytes(model)
    (folder / "config.json").write_text(json.dumps({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": rows, "hidden_size": HIDDEN,
        "intermediate_size": HIDDEN, "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1,
        "max_position_embeddings": CONTEXT, "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": True,
        "bos_token_id": 1, "eos_token_id": 2,
    }))
    tensors = {f"model.layers.0.{name}.weight": np.zeros(shape, np.float16) for name, shape in LAYERS.items()}
    for name in ["layers.0.input_layernorm", "layers.0.post_attention_layernorm", "norm"]:
        tensors[f"model.{name}.weight"] = np.ones(HIDDEN, np.float16)
    tensors["model.embed_tokens.weight"] = np.zeros((rows, HIDDEN), np.float16)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--aqlm", default="aqlm", help="the program")
    arguments.add_argument("--text", type=Path, action="append", required=True)
    arguments.add_argument("--model", type=Path, action="append", default=[])
    arguments.add_argument("--lines", type=int, default=1500, help="lines of each text")
    options = arguments.parse_args()
    # SentencePiece adds scores up over a whole line in f32, and a long line's rounding outweighs near ties
    cut = lambda line: [line[begin:begin + LONGEST] for begin in range(0, len(line), LONGEST)]
    texts = [path.read_text(encoding="utf-8").split("\n")[:options.lines] for path in options.text]
    texts = [[part for line in text for part in cut(line)] for text in texts]
    # the characters that normalization, byte fallback and spaces treat apart
    extra = ["  two  spaces ", "\ttab", "caf\u00e9 \ufb01ne \u2460 \u3000 wide", "\u4f60\u597d, \U0001f600!", "x\u0301\u0308 y",
             "1234567890", "<0x41> \u2581 under", "a<user>b"]
    lines = [line for text in texts for line in text if line.strip()] + extra
    models = list(trained([line for line in texts[0] if line.strip()]))
    models += [(str(path), path.read_bytes()) for path in options.model]
    failed = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = folder / "lines.jsonl"
        data.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines), encoding="utf-8")
        for number, (title, model) in enumerate(models):
            processor = sentencepiece.SentencePieceProcessor(model_proto=model)
            write_folder(folder / str(number), model, processor.vocab_size())
            out = folder / "logits.safetensors"
            command = [options.aqlm, "eval", folder / str(number), "--data", data, "--ctx", str(CONTEXT),
                       "--dump-logits", out]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            ours = load_file(out)["input_ids"].reshape(-1)
            ids = [[1, *processor.encode(line), 2] for line in lines]
            theirs = np.concatenate([np.array(line) for line in ids])[:len(ours)]
            differing = np.flatnonzero(ours != theirs)
            print(f"{title}: {len(ours)} tokens, {'equal' if not len(differing) else 'DIFFER'}", flush=True)
            if len(differing):
                failed += 1
                at = differing[0]
                line = int(np.searchsorted(np.cumsum([len(line) for line in ids]), at, side="right"))
                print(f"  first in line {line}: {lines[line]!r}")
                for source, tokens in [("ours", ours), ("theirs", theirs)]:
                    window = tokens[max(at - 4, 0):at + 8].tolist()
                    print(f"  {source}: {[processor.id_to_piece(int(token)) for token in window]}")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
