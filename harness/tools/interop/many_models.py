#!/usr/bin/env python3
"""Do tiny models of many families and spellings mean the same here and to transformers, in both directions?

    python3 harness/tools/interop/many_models.py                      makes the environments of run.py if need be
    python3 harness/tools/interop/many_models.py --aqlm BIN --python5 PY --python4 PY [--out DIR] [--only WORD]

Makes the models of tiny_models.py with transformers 5. Then, for each case:
- a model that is to be refused must be refused with exit code 2 and a message that names the field;
- every other model is evaluated here, and each token's loss is compared with transformers 5 and 4.5x, as far as
  these read the case alike;
- some are quantized here, and the result is compared in both generations with aqlm;
- models of families with parts that a Llama lacks are compared with transformers 5 alone: evaluated by both the
  cpu and the reference backend, and a text written token by token with the cache must be the one that transformers
  finds likeliest when it runs the whole text at once.

Exit code 0: as it should be; 1: some cases are not; 2: something could not be run.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from run import GOLDEN, HERE, ROOT, CannotRun, environment, execute

# Losses of both sides are computed in f32 in another order of sums; real disagreements are far larger.
LIMIT = 1e-4
# Longer than the windows of some cases and than the context of others.
CTX = 72
WINDOWS = 2
# A text longer than the windows of the cases.
PROMPT = "Once upon a time there was a little dog who"
NEW_TOKENS = 24  # as in tiny_models.py, which cannot be imported here: it needs transformers
# Compared with both generations of transformers.
FAMILIES_OF_BOTH = ("llama", "mistral", "qwen2")
# Transformers 5 holds all experts of a block in one tensor, for which it has no quantized form: quantized models of
# these families are compared with 4.5x alone.
FAMILIES_OF_EXPERTS = ("mixtral", "qwen2_moe", "qwen3_moe")
# In turn, the first one for families of transformers 5 alone: codes of 8 bits have a kernel of their own in aqlm.
SCHEMES = ("2x4g8", "1x6g4", "1x4g8", "1x8g8")


class Program:
    """The program aqlm, built or given."""

    def __init__(self, binary):
        self.command = [binary] if binary else ["cargo", "run", "--release", "--quiet", "--package", "aqlm",
                                                "--bin", "aqlm", "--"]  # fmt: skip

    def run(self, *arguments):
        return subprocess.run([*self.command, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, check=False)

    def dump(self, folder, to, backend="cpu"):
        """(exit code, standard error) of an evaluation that writes its logits."""
        done = self.run("eval", folder, "--data", GOLDEN / "eval.jsonl", "--ctx", CTX, "--windows", WINDOWS,
                        "--dump-logits", to, "--backend", backend)  # fmt: skip
        return done.returncode, done.stderr.strip()

    def text(self, folder, backend):
        """(exit code, standard error, the likeliest continuation of the prompt)."""
        done = self.run("generate", folder, "--prompt", PROMPT, "--tokens", NEW_TOKENS, "--backend", backend, "--json")
        return done.returncode, done.stderr.strip(), done.stdout

    def quantize(self, folder, to, scheme):
        # Quality does not matter here, only that both sides compute the same from the result.
        done = self.run("quantize", folder, "--scheme", scheme, "--calib", GOLDEN / "calibration.jsonl", "--out", to,
                        "--seqlen", 16, "--sequences", 8, "--finetune", "none", "--max-rounds", 1, "--beam", 1,
                        "--allow-degenerate")  # fmt: skip
        return done.returncode, done.stderr.strip()


def judge(python, scratch, command, jobs):
    """Results of tiny_models.py for (folder, file) pairs, in order."""
    file = scratch / "jobs.json"
    file.write_text(json.dumps([[str(folder), str(dump)] for folder, dump in jobs]))
    done = subprocess.run([python, HERE / "tiny_models.py", command, file], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CannotRun(f"{python} tiny_models.py {command}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--aqlm", type=Path, help="the program (default: cargo run --release)")
    parser.add_argument("--python5", type=Path, help="a Python with the packages of requirements-transformers5.txt")
    parser.add_argument("--python4", type=Path, help="the same for requirements-transformers4.txt")
    parser.add_argument("--out", type=Path, help="folder for the models, kept (default: a temporary one)")
    parser.add_argument("--only", help="cases whose name has this word")
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")
    arguments = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory(prefix="aqlm-many-") as folder:
            rows = compare(arguments, Path(folder))
    except CannotRun as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    wrong = [row for row in rows if row["problem"]]
    if arguments.json:
        print(json.dumps(rows))
    else:
        for row in rows:
            numbers = ", ".join(f"{peer}: {value:.1e}" for peer, value in row["differences"].items())
            print(f"{'FAIL' if row['problem'] else 'ok  '} {row['kind']:9} {row['name']:36} {numbers or row['found']}")
            if row["problem"]:
                print(f"     {row['problem']}")
        for kind in ("accepted", "reference", "generated", "refused", "quantized"):
            of_kind = [row for row in rows if row["kind"] == kind]
            bad = sum(bool(row["problem"]) for row in of_kind)
            worst = max((value for row in of_kind for value in row["differences"].values()), default=0.0)
            print(f"{kind}: {len(of_kind)}, of which {bad} wrong; largest difference of a token's loss {worst:.2e}")
    return 1 if wrong else 0


def compare(arguments, scratch):
    python5 = arguments.python5 or environment("transformers5")
    program = Program(arguments.aqlm and arguments.aqlm.resolve())
    out = (arguments.out or scratch / "models").resolve()
    out.mkdir(parents=True, exist_ok=True)
    execute([python5, HERE / "tiny_models.py", "make", out, GOLDEN], "making the models")
    cases = json.loads((out / "cases.json").read_text())
    cases = [case for case in cases if not arguments.only or arguments.only in case["name"]]
    # what each generation is to judge: rows, folders, files
    rows, jobs, texts = [], {"5": [], "4": []}, []
    for case in cases:
        row = {"name": case["name"], "kind": "refused" if case["refused"] else "accepted", "found": "",
               "problem": "", "differences": {}}  # fmt: skip
        rows.append(row)
        dump = out / f"{case['name']}.dump"
        code, message = program.dump(case["folder"], dump)
        row["found"] = message.splitlines()[-1] if message else ""
        if case["refused"]:
            if code != 2 or case["refused"] not in message:
                row["problem"] = f"expected a refusal that names {case['refused']}, found code {code}: {message}"
            continue
        if code != 0:
            row["problem"] = f"expected an evaluation, found code {code}: {message}"
            continue
        for peer in case["peers"]:
            jobs[peer].append((row, case["reference"], dump))
        if case["family"] not in FAMILIES_OF_BOTH:
            rows.extend(more_ways(program, case, out, jobs, texts))
        if case["quantize"]:
            turn = sum(row["kind"] == "quantized" for row in rows) if case["family"] in FAMILIES_OF_BOTH else 0
            scheme = SCHEMES[turn % len(SCHEMES)]
            rows.append(quantized(program, case, out, jobs, scheme))
    # the environment of transformers 4 is made only if it has something to do
    pythons = {"5": python5, "4": jobs["4"] and (arguments.python4 or environment("transformers4"))}
    for peer, command, of_peer in [("5", "losses", jobs["5"]), ("4", "losses", jobs["4"]), ("5", "greedy", texts)]:
        if not of_peer:
            continue
        judged = judge(pythons[peer], scratch, command, [(folder, file) for _, folder, file in of_peer])
        for (row, folder, _), result in zip(of_peer, judged["results"], strict=True):
            name = judged["transformers"]
            if "error" in result:
                row["problem"] = f"transformers {name} on {folder}: {result['error']}"
                continue
            row["differences"][name] = result["difference"]
            if not result["difference"] <= LIMIT:
                what = "a token's loss differs" if command == "losses" else "a generated token is behind the likeliest"
                row["problem"] = f"transformers {name}: {what} by {result['difference']:.3g} nats"
    return rows


def more_ways(program, case, out, jobs, texts):
    """The rows of the case evaluated by the reference backend, and of texts that both backends write."""
    dump = out / f"{case['name']}.reference.dump"
    row = {"name": case["name"], "kind": "reference", "found": "", "problem": "", "differences": {}}
    code, message = program.dump(case["folder"], dump, "reference")
    if code == 0:
        jobs["5"].append((row, case["reference"], dump))
    else:
        row["problem"] = f"expected an evaluation, found code {code}: {message}"
    rows = [row]
    for backend in ("cpu", "reference"):
        row = {"name": f"{case['name']} ({backend})", "kind": "generated", "found": "", "problem": "", "differences": {}}
        rows.append(row)
        code, message, result = program.text(case["folder"], backend)
        if code != 0:
            row["problem"] = f"expected a text, found code {code}: {message}"
            continue
        file = out / f"{case['name']}.{backend}.json"
        file.write_text(result)
        texts.append((row, case["reference"], file))
    return rows


def quantized(program, case, out, jobs, scheme):
    """The row of the case's quantized model, which all that can load it must read alike."""
    row = {"name": case["name"], "kind": "quantized", "found": "", "problem": "", "differences": {}}
    folder, dump = out / f"{case['name']}.quantized", out / f"{case['name']}.quantized.dump"
    for code, message in (program.quantize(case["folder"], folder, scheme), program.dump(folder, dump)):
        if code != 0:
            row["problem"] = f"expected exit code 0, found {code}: {message}"
            return row
    peers = ("4",) if case["family"] in FAMILIES_OF_EXPERTS else ("5",)
    for peer in jobs if case["family"] in FAMILIES_OF_BOTH else peers:
        jobs[peer].append((row, folder, dump))
    return row


if __name__ == "__main__":
    sys.exit(main())
