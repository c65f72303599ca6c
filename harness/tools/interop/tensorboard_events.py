"""The event files of `aqlm report --tensorboard`, read by TensorBoard's own reader and compared with metrics.jsonl.

    aqlm report RUN --tensorboard EVENTS
    python tensorboard_events.py RUN EVENTS/NAME

Needs tensorboard (requirements-tensorboard.txt). Exit code 0 when tags, steps, times and values are equal (values in
f32, as the format has them), and 1 otherwise.
"""

import json
import struct
import sys
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def f32(value):
    return struct.unpack("f", struct.pack("f", value))[0]


def expected(run):
    """(tag, step, time, value) of every scalar."""
    layers = steps = 0
    for folder in [run, run / "end-to-end"]:
        path = folder / "metrics.jsonl"
        for line in path.read_text().splitlines() if path.exists() else []:
            event = json.loads(line)
            kind = event["event"]
            if kind == "layer":
                step, layers = layers, layers + 1
                summary = event["summary"]
                scalars = {
                    "layer/relative_error": summary["relative_layer_error"],
                    "layer/seconds": summary["seconds"],
                    "layer/limit_db": summary["limit_db"],
                }
            elif kind == "block":
                report = event["report"]
                step = report["block"]
                tuning = report["finetune"] or {}
                scalars = {
                    "block/relative_output_error": report["relative_output_error"],
                    "block/seconds": report["seconds"],
                    "block/loss_before": tuning.get("loss_before"),
                    "block/loss_after": tuning.get("loss_after"),
                }
            elif kind == "step":
                step, steps = steps, steps + 1
                scalars = {"end_to_end/loss": event["loss"], "end_to_end/lr": event["lr"]}
            elif kind == "epoch":
                step = event["epoch"]
                scalars = {"end_to_end/train_loss": event["train_loss"], "end_to_end/validation_loss": event["loss"]}
            else:
                continue
            scalars["memory/resident_bytes"] = event.get("resident_bytes")
            for tag, value in scalars.items():
                if value is not None:
                    yield tag, step, event["unix_seconds"], f32(value)


def main():
    run, events = Path(sys.argv[1]), sys.argv[2]
    wanted = sorted(expected(run))
    reader = EventAccumulator(events, size_guidance={"scalars": 0})
    reader.Reload()
    tags = reader.Tags()["scalars"]
    # The reader drops what it takes for a restart: steps of the same tag that fall. Only a resumed run has them.
    found = sorted((tag, one.step, one.wall_time, one.value) for tag in tags for one in reader.Scalars(tag))
    print(f"{len(wanted)} scalars of {len(tags)} tags")
    if not wanted or wanted != found:
        missing = [one for one in wanted if one not in found]
        print(f"FAIL: {len(found)} found; missing or different: {missing[:5]}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
