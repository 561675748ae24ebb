"""Parses the text of an optimized HLO module: its computations, instructions and trip counts.

It reads what `jax.stages.Compiled.as_text` gives for CPUs, GPUs and TPUs, and only as much as is
needed to follow a program: shapes, operands, attributes and calls.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod

ITEM_BITS = {"pred": 8, "token": 0, "opaque": 0, "c64": 64, "c128": 128}
"""Bits of the types whose name does not end in them."""
ARRAY = re.compile(r"([a-z]\w*)\[([\d,<=]*)\]")
NAME = re.compile(r"%([\w.\-]+)")
HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
MOVED = ("bitcast", "copy", "convert", "reshape", "transpose")
"""Opcodes whose result is their operand in another form."""


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
      name: unique in its module.
      shape: the text of its result's shape, with layouts.
      opcode: such as "all-gather".
      inside: the text between the parentheses after the opcode.
      operands: names of the instructions that it reads.
      attributes: the text behind its operands.
      is_root: True where it is its computation's result.
    """

    name: str
    shape: str
    opcode: str
    inside: str
    operands: tuple[str, ...]
    attributes: str
    is_root: bool

    @property
    def num_bytes(self) -> int:
        """Bytes of its result; of a tuple, of all members."""
        return bytes_of(self.shape)

    def called(self, key: str) -> str | None:
        """The computation that an attribute such as `calls` or `body` names."""
        found = re.search(rf"\b{key}=%?([\w.\-]+)", self.attributes)
        return found and found[1]

    @property
    def channel(self) -> int | None:
        """The channel of a collective, which is its own in a module."""
        found = re.search(r"\bchannel_id=(\d+)", self.attributes)
        return int(found[1]) if found else None


@dataclass(frozen=True)
class Computation:
    """A computation: its instructions by name, in their order."""

    name: str
    instructions: Mapping[str, Instruction]

    def __iter__(self) -> Iterator[Instruction]:
        return iter(self.instructions.values())

    @property
    def root(self) -> Instruction:
        """The instruction that is its result."""
        return next(found for found in self if found.is_root)

    def source(self, name: str) -> Instruction | None:
        """The instruction of a name, or what it was copied or converted from."""
        found = self.instructions.get(name)
        while found is not None and found.opcode in MOVED and found.operands:
            found = self.instructions.get(found.operands[0])
        return found

    def users(self, name: str) -> list[Instruction]:
        """The instructions that read a result, behind those that only give it another form."""
        users = []
        for other in self:
            if name in other.operands:
                users += self.users(other.name) if other.opcode in MOVED else [other]
        return users


@dataclass(frozen=True)
class Trips:
    """The number of times that the body of a loop runs.

    Attributes:
      count: of runs, or the most of them.
      exact: False where a loop may end before, as decoding does once every row has ended.
    """

    count: int
    exact: bool = True


@dataclass(frozen=True)
class Module:
    """A parsed module; `entry` is the name of the computation that it begins with."""

    computations: Mapping[str, Computation]
    entry: str

    @cached_property
    def fused(self) -> frozenset[str]:
        """Names of the computations that are bodies of fusions."""
        return frozenset(
            name
            for computation in self.computations.values()
            for instruction in computation
            if instruction.opcode == "fusion" and (name := instruction.called("calls"))
        )

    def trips(self, computation: Computation, loop: Instruction) -> Trips | None:
        """The runs of a `while`: XLA's own count, or the bound that its condition compares with.

        The condition has to hold a counter, a member of the loop's tuple, below a constant. The
        counter is taken to begin at the constant that the loop is given, or at 0, and to go by the
        constant that the body adds, or by 1. An upper bound is given where the condition asks for
        more than that, and where the counter is added to members that are not negative.

        Args:
          computation: has the loop.
          loop: an instruction of opcode `while`.

        Returns:
          None where neither is known.
        """
        if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes):
            return Trips(int(known[1]))
        condition = self.computations[loop.called("condition") or ""]
        body = self.computations[loop.called("body") or ""]
        counts = []
        for less in self._bounds(condition):
            start = sum(_start(computation, loop, index) for index in less.counters)
            steps = [_step(body, index) for index in less.counters]
            counts.append(max(0, -(-(less.offset - start) // max(*steps, 1))))
        if not counts:
            return None
        result = condition.root
        while result.opcode == "fusion" and (called := result.called("calls")):
            result = self.computations[called].root
        alone = all(len(less.counters) == 1 for less in self._bounds(condition))
        return Trips(min(counts), exact=alone and result.opcode == "compare")

    def _bounds(self, condition: Computation) -> Iterator["_Linear"]:
        """Counters, as members of the loop's tuple, and the numbers that they stay below."""
        for inside, fusion in self._bodies(condition):
            for compare in inside:
                found = re.search(r"direction=(LT|LE|GT|GE)", compare.attributes)
                if compare.opcode != "compare" or not found:
                    continue
                sides = [_linear(inside, name, condition, fusion) for name in compare.operands]
                less, more = reversed(sides) if found[1] in ("GT", "GE") else sides
                if less and more and less.counters and not more.counters:
                    bound = more.offset - less.offset + (found[1] in ("LE", "GE"))
                    yield _Linear(less.counters, bound)

    def _bodies(self, condition: Computation) -> list[tuple[Computation, Instruction | None]]:
        """A condition, and the bodies of its fusions with the fusion."""
        fusions = [found for found in condition if found.opcode == "fusion"]
        bodies = [(self.computations[found.called("calls") or ""], found) for found in fusions]
        return [(condition, None), *bodies]


@dataclass(frozen=True)
class _Linear:
    """A sum of counters of a loop, as members of its tuple, and of a number."""

    counters: tuple[int, ...]
    offset: int


def _linear(
    inside: Computation, name: str, condition: Computation, fusion: Instruction | None
) -> _Linear | None:
    """Reads an operand of a comparison as a sum of counters and a number; None where it is none."""
    found = inside.source(name)
    if found is not None and found.opcode == "parameter" and fusion is not None:
        return _linear(condition, fusion.operands[int(found.inside)], condition, None)
    if found is None:
        return None
    if found.opcode == "constant":
        whole = re.fullmatch(r"-?\d+", found.inside)
        return _Linear((), int(found.inside)) if whole else None
    if found.opcode == "get-tuple-element":
        index = re.search(r"\bindex=(\d+)", found.attributes)
        return _Linear((int(index[1]),), 0) if index else None
    if found.opcode == "add":
        terms = [_linear(inside, operand, condition, fusion) for operand in found.operands]
        known = [term for term in terms if term is not None]
        if len(known) == len(terms):
            counters = tuple(index for term in known for index in term.counters)
            return _Linear(counters, sum(term.offset for term in known))
    return None


def _start(computation: Computation, loop: Instruction, index: int) -> int:
    given = computation.source(loop.operands[0])
    if given is None or given.opcode != "tuple":
        return 0
    first = computation.source(given.operands[index])
    return _constant(first) or 0


def _step(body: Computation, index: int) -> int:
    """The number that a loop's body adds to a member of its tuple: 0 where it hands the member on,
    and 1 where that is not known.
    """
    root = body.root
    added = body.source(root.operands[index]) if root.opcode == "tuple" else None
    if added is None:
        return 1
    if added.opcode == "get-tuple-element" and re.search(rf"\bindex={index}\b", added.attributes):
        return 0
    if added.opcode != "add":
        return 1
    steps = [_constant(body.source(name)) for name in added.operands]
    return next((step for step in steps if step and step > 0), 1)


def _constant(found: Instruction | None) -> int | None:
    """The number that an instruction is, where it is a whole constant."""
    known = found is not None and found.opcode == "constant" and found.inside.isdecimal()
    return int(found.inside) if found is not None and known else None


def arrays(shape: str) -> list[tuple[str, tuple[int, ...]]]:
    """Types and sizes of the arrays of a shape, members of tuples in their order."""
    return [
        (kind, tuple(int(size.lstrip("<=")) for size in sizes.split(",") if size))
        for kind, sizes in ARRAY.findall(shape)
    ]


def bytes_of(shape: str) -> int:
    """Bytes of all arrays of a shape; tiles and padding of layouts are not counted."""
    return sum(prod(sizes) * _bits(kind) // 8 for kind, sizes in arrays(shape))


def _bits(kind: str) -> int:
    if kind in ITEM_BITS:
        return ITEM_BITS[kind]
    found = re.match(r"[a-z]+?(\d+)", kind)  # f32, bf16, f8e4m3fn
    return int(found[1]) if found else 0


def parse(text: str) -> Module:
    """Parses the text of a module.

    Raises ValueError where it has no entry computation.
    """
    computations: dict[str, Computation] = {}
    entry, name, instructions = "", "", {}
    for line in text.splitlines():
        if header := HEADER.match(line):
            name, instructions = header[2], {}
            computations[name] = Computation(name, instructions)
            entry = name if header[1] else entry
        elif name and (found := INSTRUCTION.match(line)):
            instructions[found[2]] = _instruction(found[2], found[3], bool(found[1]))
    if not entry:
        raise ValueError("the text has no ENTRY computation: it is no HLO module")
    return Module(computations, entry)


def _instruction(name: str, text: str, is_root: bool) -> Instruction:
    end = _closing(text) if text.startswith("(") else text.index(" ")
    shape, rest = text[:end], text[end:].lstrip()
    opcode, _, _ = rest.partition("(")
    close = _closing(rest[len(opcode) :]) + len(opcode)
    inside = rest[len(opcode) + 1 : close - 1]
    operands = () if opcode == "constant" else tuple(NAME.findall(inside))
    return Instruction(name, shape, opcode.strip(), inside, operands, rest[close:], is_root)


def _closing(text: str) -> int:
    """Index behind the parenthesis that closes the one at the text's beginning."""
    depth = 0
    for index, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if not depth:
            return index + 1
    return len(text)
