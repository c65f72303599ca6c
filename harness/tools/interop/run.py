#!/usr/bin/env python3
"""Does a checkpoint of ours mean the same to transformers + aqlm? One command, for transformers 5 and for 4.5x.

    python3 harness/tools/interop/run.py                       the embedded model, quantized to 2x6g8 first
    python3 harness/tools/interop/run.py --model DIR           a checkpoint that `aqlm quantize` wrote
    python3 harness/tools/interop/run.py --model DIR --logits FILE   ... and logits that are there already

Makes an environment for each version of transformers from the pinned requirements beside this file (once; about
3 GB to download and 6 GB on disk each, since torch brings CUDA), under $AQLM_INTEROP_VENVS or the user's cache
folder. pip's own variables (PIP_INDEX_URL, PIP_FIND_LINKS) choose where packages come from.

Exit code 0: same logits everywhere; 1: some differ; 2: something could not be run.
Needs nothing but Python's standard library (3.11 or later), and cargo unless --logits is given.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent.parent
GOLDEN = ROOT / "golden" / "tiny-stories-4m"
# Checkpoints hold f16. If one side kept codebooks or scales in higher precision, the relative squared error
# would be eps^2 = (2^-11)^2 = 2.4e-7 per layer, or up to 1e-5 over a few dozen layers. A wrong layer gives
# 1e-2 and more.
LIMIT = 1e-5


class CannotRun(Exception):
    """A step before the comparison failed; the message says which."""


def environments_folder():
    given = os.environ.get("AQLM_INTEROP_VENVS")
    if given:
        return Path(given)
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "aqlm-interop"


def execute(command, what, **options):
    """Runs a step that must succeed; what it prints goes to standard error, so that --json stays one document."""
    print("+", " ".join(map(str, command)), file=sys.stderr, flush=True)
    try:
        status = subprocess.run(command, stdout=sys.stderr, check=False, **options).returncode
    except OSError as error:
        raise CannotRun(f"{what}: {error}") from error
    if status != 0:
        raise CannotRun(f"{what}: exit code {status}")


def environment(name):
    """The Python of the environment with requirements-NAME.txt, made unless it is there with the same pins."""
    requirements = HERE / f"requirements-{name}.txt"
    folder = environments_folder() / name
    python = folder / "bin" / "python"
    stamp = folder / "pins.sha256"
    pins = hashlib.sha256(requirements.read_bytes() + sys.version.encode()).hexdigest()
    if not (stamp.is_file() and stamp.read_text() == pins and python.exists()):
        print(f"making {folder}", file=sys.stderr, flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        try:
            venv.create(folder, with_pip=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise CannotRun(f"python -m venv {folder}: {error}") from error
        execute([python, "-m", "pip", "install", "--quiet", "-r", requirements], f"pip install -r {requirements}")
        # Written last, so that an interrupted installation is never mistaken for a finished one.
        stamp.write_text(pins)
    return python


def aqlm(*arguments):
    execute(
        ["cargo", "run", "--release", "--quiet", "--package", "aqlm", "--bin", "aqlm", "--", *arguments],
        f"aqlm {arguments[0]}",
        cwd=ROOT,
    )


def quantized_golden_model(folder):
    """The embedded model as the demo quantizes it, without the fine-tuning that only costs time here."""
    out = folder / "tiny-stories-4m-2x6g8"
    calibration = GOLDEN / "calibration.jsonl"
    aqlm("quantize", str(GOLDEN), "--scheme", "2x6g8", "--calib", str(calibration), "--out", str(out),
         "--sequences", "32", "--seqlen", "128", "--finetune-epochs", "0")  # fmt: skip
    return out


def compare(name, model, logits, data):
    """(exit code, document) of compare.py under one version of transformers."""
    command = [environment(name), HERE / "compare.py", "--model", model, "--logits", logits, "--limit", repr(LIMIT)]
    if data is not None:
        command += ["--data", data]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode not in (0, 1):
        raise CannotRun(f"{name}: comparison failed with exit code {done.returncode}")
    try:
        return done.returncode, json.loads(done.stdout)
    except json.JSONDecodeError as error:
        # An uncaught Python exception also exits with 1, but prints no document.
        raise CannotRun(f"{name}: comparison printed no result") from error


def show(document):
    where = f"transformers {document['transformers']} + aqlm {document['aqlm']} + torch {document['torch']}"
    print(f"{'FAIL' if document['problems'] else 'ok  '} {where}")
    if document["nmse"] is not None:
        line = f"     NMSE {document['nmse']:.3g} (limit {document['limit']:.3g})"
        line += f" over {document['windows']} windows of {document['ctx']} tokens"
        if None not in (document.get("perplexity"), document.get("perplexity_dumped")):
            line += f"; perplexity {document['perplexity']:.4f} there, {document['perplexity_dumped']:.4f} here"
        print(line)
    for problem in document["problems"]:
        print(f"     problem: {problem}")
    for warning in document["warnings"]:
        print(f"     warned while loading: {warning}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="checkpoint folder; without it the embedded model is quantized")
    parser.add_argument("--logits", type=Path, help="what `aqlm eval --dump-logits` wrote for that checkpoint")
    parser.add_argument("--data", type=Path, help="text to evaluate on (default: the embedded eval.jsonl)")
    parser.add_argument("--ctx", type=int, default=512, help="tokens in a window (default 512)")
    parser.add_argument("--windows", type=int, default=16, help="windows to compare (default 16)")
    parser.add_argument("--only", choices=["transformers5", "transformers4"], help="one version only")
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")
    arguments = parser.parse_args()
    if arguments.logits is not None and arguments.model is None:
        parser.error("--logits needs --model")
    names = [arguments.only] if arguments.only else ["transformers5", "transformers4"]
    try:
        with tempfile.TemporaryDirectory(prefix="aqlm-interop-") as scratch:
            # Absolute, because cargo runs in the repository's root.
            model = arguments.model.resolve() if arguments.model else quantized_golden_model(Path(scratch))
            logits, data = arguments.logits, arguments.data and arguments.data.resolve()
            if logits is None:
                logits, data = Path(scratch) / "logits.safetensors", data or GOLDEN / "eval.jsonl"
                aqlm("eval", str(model), "--data", str(data), "--ctx", str(arguments.ctx),
                     "--windows", str(arguments.windows), "--dump-logits", str(logits))  # fmt: skip
            results = [compare(name, model, logits, data) for name in names]
    except CannotRun as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if arguments.json:
        print(json.dumps([document for _, document in results]))
    else:
        for _, document in results:
            show(document)
    return max(code for code, _ in results)


if __name__ == "__main__":
    sys.exit(main())
