"""Runs hostile models with the verifier off, each in a process of its own, and says what each of them got.

A program: `hostile_run.py FOLDER BAIT LIMITS NAME...`, run inside the sandbox by `test_hostile_models`. Each model is
given `BAIT` (what there is to steal) and an empty list `LOOT`, to which it appends when an attack worked. LIMITS may be
"none": then nothing is confined, to show that an attack is a real one.
"""

import json
import os
import signal
import sys

import torch

from datasites.enclave.confine import WorkerLimits, confine


def attack(source, name, bait):
    """What the model got: entries of LOOT after loading, building and one forward pass."""
    namespace = {"__name__": name, "BAIT": bait, "LOOT": []}
    error = ""
    try:
        exec(compile(source, name, "exec"), namespace)
        module = namespace["build_model"](4)
        if isinstance(module, torch.nn.Module):
            module(torch.randn(8, 4))
    except BaseException as caught:
        error = repr(caught)[:200]
    return [str(entry)[:80] for entry in namespace["LOOT"]], error


def in_child(source, name, bait, limits):
    """Run one attack in a child process; returns its result, or the signal that ended it."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        signal.alarm(20)
        if limits is not None:
            confine(limits)
        result = attack(source, name, bait)
        os.write(write, json.dumps(result).encode())
        os._exit(0)
    os.close(write)
    received = b""
    while chunk := os.read(read, 65536):
        received += chunk
    os.close(read)
    _, status = os.waitpid(child, 0)
    if not received:
        return [], f"ended with status {status}"
    return tuple(json.loads(received))


def main():
    """One JSON line for each model."""
    folder, bait, limits, *names = sys.argv[1:]
    bait = json.loads(bait)
    confined = None if limits == "none" else WorkerLimits.model_validate_json(limits)
    sys.path.insert(0, folder)
    for name in names:
        with open(os.path.join(folder, name), encoding="utf-8") as file:
            source = file.read()
        loot, error = in_child(source, name, bait, confined)
        sys.stdout.write(json.dumps({"name": name, "loot": loot, "error": error}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
