#!/usr/bin/env bash
# Dictionaries of several sites can be trained side by side on a CPU: a pool of Python threads, in each of which torch computes on
# one thread, set by torch.set_num_threads(1) when the thread of the pool begins, so that operations do not crowd each other out.
# The thread that runs the language model keeps all cores, set by torch.set_num_threads(n) afterwards.
#
# One would guess: the last number that a thread sets is the number it computes with.
#
# What happens: a thread that sets its number before it has asked for it, or computed anything, loses it: at its first operation
# it takes the number that any other thread set last, and from then on has that. So each thread of the pool computes on n threads.
# A thread that has called torch.get_num_threads() once keeps what it sets.
#
#     set to 1, then another thread sets 2: computes on 2; asked before it was set: computes on 1
#
# Seen with torch 2.13.0, Python 3.11, Linux on x86-64 (OpenMP). Fails if that changes.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy
"$folder/venv/bin/python" -W ignore - <<'PY'
import threading

import torch


def computes_on(*, asks_first: bool) -> int:
    """How many threads a thread computes on that sets 1 for itself, before the main thread sets 2."""
    begun, go_on, found = threading.Event(), threading.Event(), []

    def work():
        if asks_first:
            torch.get_num_threads()
        torch.set_num_threads(1)
        begun.set()
        go_on.wait()
        torch.ones(1 << 20).add(1)
        found.append(torch.get_num_threads())

    thread = threading.Thread(target=work)
    thread.start()
    begun.wait()
    torch.set_num_threads(2)
    go_on.set()
    thread.join()
    return found[0]


first, second = computes_on(asks_first=False), computes_on(asks_first=True)
print(f"set to 1, then another thread sets 2: computes on {first}; asked before it was set: computes on {second}")
assert (first, second) == (2, 1)
PY
