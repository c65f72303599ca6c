"""Logits of an AQLM checkpoint by transformers + aqlm, beside the logits that `aqlm eval --dump-logits` wrote.

Runs inside one of the environments that run.py makes. Prints one JSON document; exit code 0 when the two agree,
1 when they do not, 2 when the input cannot be used.
"""

import argparse
import json
import logging
import math
import os
import sys
from importlib.metadata import version
from pathlib import Path

# In aqlm's CPU kernel for 8-bit codes, all threads add to one output vector without synchronization
# (github.com/Vahe1994/AQLM/issues/86). With more than one thread its results are wrong by several percent
# and differ from run to run. numba reads this variable when imported.
os.environ["NUMBA_NUM_THREADS"] = "1"
# The checkpoint is a local folder; no network access is allowed.
os.environ["HF_HUB_OFFLINE"] = "1"

import torch  # noqa: E402
import transformers  # noqa: E402
from aqlm import QuantizedLinear  # noqa: E402
from safetensors import SafetensorError, safe_open  # noqa: E402


class BadInput(Exception):
    """The files cannot be compared; the message names the file and what was expected."""


class Collector(logging.Handler):
    """Keeps what transformers logs while it loads, so that a checkpoint that loads with warnings is seen."""

    def __init__(self):
        super().__init__(level=logging.WARNING)
        self.messages = []

    def emit(self, record):
        self.messages.append(record.getMessage())


def open_dump(path):
    """The dump's handle and its (windows, ctx, vocab): input_ids [windows, ctx] and logits [windows, ctx, vocab]."""
    try:
        dump = safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise BadInput(f"{path}: {error}") from error
    missing = {"input_ids", "logits"} - set(dump.keys())
    if missing:
        raise BadInput(f"{path}: expected tensors input_ids and logits, {sorted(missing)} missing")
    ids_shape = dump.get_slice("input_ids").get_shape()
    logits_shape = dump.get_slice("logits").get_shape()
    if len(ids_shape) != 2 or logits_shape[:-1] != ids_shape or 0 in logits_shape:
        raise BadInput(
            f"{path}: expected input_ids [windows, ctx] and logits [windows, ctx, vocab], "
            f"found {ids_shape} and {logits_shape}"
        )
    return dump, tuple(logits_shape)


def stored_quantized_layers(folder):
    """Paths of the layers for which the checkpoint's files hold codes."""
    layers = set()
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            layers |= {key.removesuffix(".codes") for key in tensors.keys() if key.endswith(".codes")}
    return layers


def load(folder):
    """The model in f32, its tokenizer, what was logged while loading, and what is wrong with how it was loaded.

    A folder that transformers refuses is an answer, not bad input: model and tokenizer are None then.
    """
    if not (folder / "config.json").is_file():
        raise BadInput(f"{folder}: no config.json there, so not a checkpoint folder")
    stored = stored_quantized_layers(folder)
    if not stored:
        raise BadInput(f"{folder}: no tensor named *.codes, so not an AQLM checkpoint")
    collector = Collector()
    logger = logging.getLogger("transformers")
    logger.addHandler(collector)
    transformers.utils.logging.disable_progress_bar()
    try:
        # The argument is called `dtype` since transformers 4.56. aqlm's CPU kernels accept only f32.
        model, info = transformers.AutoModelForCausalLM.from_pretrained(
            folder, output_loading_info=True, dtype=torch.float32
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    except (OSError, SafetensorError) as error:
        raise BadInput(f"{folder}: {error}") from error
    except Exception as error:  # anything that transformers or aqlm may raise on contents they don't expect
        return None, None, collector.messages, [f"transformers can't load it: {type(error).__name__}: {error}"]
    finally:
        logger.removeHandler(collector)
    problems = [f"{kind}: {sorted(map(str, info[kind]))}" for kind in info if info[kind]]
    loaded = {name for name, module in model.named_modules() if isinstance(module, QuantizedLinear)}
    if loaded != stored:
        problems.append(f"quantized in only one of model and files: {sorted(loaded ^ stored)}")
    return model.eval(), tokenizer, collector.messages, problems


def token_stream(tokenizer, config, data):
    """The text as one stream of ids, as `aqlm eval` makes it: each document BOS + ids + EOS where defined."""

    def ids(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    if data.suffix != ".jsonl":
        return ids(data.read_text(encoding="utf-8"))
    stream = []
    with data.open(encoding="utf-8") as lines:
        for line in lines:
            if line.strip():
                bos = [] if config.bos_token_id is None else [config.bos_token_id]
                eos = [] if config.eos_token_id is None else [config.eos_token_id]
                stream += bos + ids(json.loads(line)["text"]) + eos
    return stream


def negative_log_likelihood(logits, ids):
    """Sum over positions 1.. of a window, in nats; logits [ctx, vocab] f64, ids [ctx]."""
    chosen = logits[:-1].gather(1, ids[1:, None]).squeeze(1)
    return (torch.logsumexp(logits[:-1], dim=1) - chosen).sum().item()


def compare(model, dump, shape):
    """NMSE of the dumped logits relative to transformers', and the perplexity that each of them gives."""
    windows, ctx, vocab = shape
    difference = reference = nll_here = nll_dumped = 0.0
    for window in range(windows):
        ids = dump.get_slice("input_ids")[window : window + 1].long()
        dumped = dump.get_slice("logits")[window].double()
        with torch.no_grad():
            here = model(input_ids=ids, use_cache=False).logits[0].double()
        if here.shape != dumped.shape:
            raise BadInput(f"the model's logits are {list(here.shape)}, the dump's [{ctx}, {vocab}]")
        difference += ((dumped - here) ** 2).sum().item()
        reference += (here**2).sum().item()
        nll_here += negative_log_likelihood(here, ids[0])
        nll_dumped += negative_log_likelihood(dumped, ids[0])
    tokens = windows * (ctx - 1)
    if not reference > 0.0:
        raise BadInput("the logits of transformers are zero or NaN: nothing to compare with")
    result = {"nmse": difference / reference, "windows": windows, "ctx": ctx}
    if tokens > 0:
        result["perplexity"] = math.exp(nll_here / tokens)
        result["perplexity_dumped"] = math.exp(nll_dumped / tokens)
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="checkpoint folder written by aqlm quantize")
    parser.add_argument("--logits", type=Path, required=True, help="file written by aqlm eval --dump-logits")
    parser.add_argument("--limit", type=float, required=True, help="largest NMSE that counts as the same")
    parser.add_argument("--data", type=Path, help="the text of that evaluation: its tokens are compared too")
    arguments = parser.parse_args()
    try:
        dump, shape = open_dump(arguments.logits)
        model, tokenizer, logged, problems = load(arguments.model)
        # Logits of a model with missing layers are not worth comparing.
        result = {"nmse": None} if problems else compare(model, dump, shape)
        if tokenizer is not None and arguments.data is not None:
            windows, ctx, _ = shape
            stream = token_stream(tokenizer, model.config, arguments.data)
            dumped = dump.get_tensor("input_ids").flatten().tolist()
            if stream[: windows * ctx] != dumped:
                problems.append(f"the tokenizer's ids of {arguments.data} differ from the dump's input_ids")
    except (BadInput, OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if result["nmse"] is not None and not result["nmse"] <= arguments.limit:  # written so that NaN fails
        problems.append(f"NMSE {result['nmse']:.3g} is above the limit {arguments.limit:.3g}")
    versions = {name: version(name) for name in ("transformers", "aqlm", "torch")}
    # JSON has no NaN and no infinity; the problem above names them.
    result = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in result.items()}
    print(json.dumps({**versions, **result, "limit": arguments.limit, "warnings": logged, "problems": problems}))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
