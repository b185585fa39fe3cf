"""A simulated cluster for simulate_scale.py: one driver sends units to the slots of nodes with shared storage."""

from __future__ import annotations

import heapq
import json
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
COSTS = ROOT / "benchmarks" / "results" / "scale.json"
ENGINES = ROOT / "benchmarks" / "results" / "engines.json"

SLOTS, GB = 16, 1e9


@dataclass(frozen=True)
class Machine:
    """Assumptions: bytes per second of the shared storage and of a node's link, and bytes of page cache per node."""

    storage: float = 10 * GB
    link: float = 1.25 * GB
    memory: float = 64 * GB


@dataclass(frozen=True)
class Costs:
    """Measured costs in seconds: per FLOP of matching, byte of rows, byte hashed, unit sent, file and byte written."""

    flop: float
    row_byte: float
    hash_byte: float
    send: float
    write: float
    write_byte: float

    @staticmethod
    def read() -> Costs:
        told = json.loads(COSTS.read_text())["costs"]
        rows = json.loads(ENGINES.read_text())["rows"]
        sent = [row["seconds"] for row in rows if row["method"].startswith("ray, 2") and "empty" in row["size"]]
        return Costs(send=sent[0], **told)


@dataclass(frozen=True)
class Piece:
    """Rows of a dictionary that a unit reads: their bytes in the file, and as float32 rows in memory."""

    name: str
    stored: float
    rows: float


@dataclass(frozen=True)
class Unit:
    """Two pieces to match, or one to hash; the seconds it takes besides preparing rows; the bytes of its result."""

    pieces: tuple[Piece, ...]
    seconds: float
    result: float


@dataclass
class Node:
    """A node: its page cache as {piece: (time it arrives, bytes)}, and the time when its link is free."""

    memory: float
    cache: OrderedDict[str, tuple[float, float]] = field(default_factory=OrderedDict)
    link: float = 0.0


class Simulation:
    """Runs phases one after the other: all units of a phase finish before the next begins."""

    def __init__(self, costs: Costs, machine: Machine, nodes: int) -> None:
        self.costs, self.machine = costs, machine
        self.nodes = [Node(machine.memory) for _ in range(nodes)]
        self.slots: list[OrderedDict[str, None]] = [OrderedDict() for _ in range(nodes * SLOTS)]
        self.now = self.storage = self.driver_busy = self.storage_busy = self.working = 0.0

    def run(self, units: list[Unit]) -> None:
        """Simulate all units of a phase."""
        free = deque(sorted(range(len(self.slots)), key=lambda slot: (slot // len(self.nodes), slot)))
        jobs, ready = deque[tuple[str, Unit]](), deque[Unit]()
        events: list[tuple[float, int, str, Any]] = []
        waiting, flying, number, busy = iter(units), 0, 0, False

        def put(at: float, kind: str, what: Any) -> None:
            nonlocal number
            number += 1
            heapq.heappush(events, (at, number, kind, what))

        def fill() -> None:
            nonlocal flying, busy
            while flying < 2 * len(self.slots) and (unit := next(waiting, None)) is not None:
                flying += 1
                jobs.append(("send", unit))
            if jobs and not busy:
                busy, (kind, unit) = True, jobs.popleft()
                taken = self.costs.send / 2
                if kind == "take":
                    taken += self.costs.write + unit.result * self.costs.write_byte
                self.driver_busy += taken
                put(self.now + taken, kind, unit)

        fill()
        while events:
            self.now, _, kind, what = heapq.heappop(events)
            if kind == "done":
                slot, unit = what
                free.append(slot)
                jobs.append(("take", unit))
            else:
                busy = False
                flying -= kind == "take"
                if kind == "send":
                    ready.append(what)
            while ready and free:
                slot, unit = free.popleft(), ready.popleft()
                put(self._end(slot, unit), "done", (slot, unit))
            fill()

    def _end(self, slot: int, unit: Unit) -> float:
        """The time at which a slot finishes a unit that it starts now."""
        node, held = self.nodes[slot % len(self.nodes)], self.slots[slot]
        arrived, computing = self.now, unit.seconds
        for piece in unit.pieces:
            if piece.name not in held:
                arrived = max(arrived, self._arrival(node, piece))
                computing += piece.rows * self.costs.row_byte
            held[piece.name] = None
            held.move_to_end(piece.name)
            while len(held) > 3:
                held.popitem(last=False)
        self.working += computing
        return arrived + computing

    def _arrival(self, node: Node, piece: Piece) -> float:
        if piece.name in node.cache:
            node.cache.move_to_end(piece.name)
            return node.cache[piece.name][0]
        self.storage = max(self.storage, self.now) + piece.stored / self.machine.storage
        self.storage_busy += piece.stored / self.machine.storage
        node.link = max(node.link, self.now) + piece.stored / self.machine.link
        at = max(self.storage, node.link)
        node.cache[piece.name] = (at, piece.stored)
        while sum(size for _, size in node.cache.values()) > node.memory and len(node.cache) > 1:
            node.cache.popitem(last=False)
        return at


@dataclass(frozen=True)
class Outcome:
    """A simulated run: its seconds, and how busy slots, driver and storage were, as fractions."""

    nodes: int
    seconds: float
    busy: float
    driver: float
    storage: float


def simulate(work: list[list[Unit]], costs: Costs, machine: Machine, nodes: int) -> Outcome:
    run = Simulation(costs, machine, nodes)
    for units in work:
        run.run(units)
    slots = nodes * SLOTS
    return Outcome(
        nodes, run.now, run.working / (run.now * slots), run.driver_busy / run.now, run.storage_busy / run.now
    )
