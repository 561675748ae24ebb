"""The dataflow under a plan: calls and reallocations with their seconds and devices, in the order
of dispatch.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from rlhf_jax.dataflow import Call, edges
from rlhf_jax.planner.api import CostModel, Workload
from rlhf_jax.planner.options import Option

TaskKind = Literal["generate", "infer", "train", "reallocate"]


class Round(NamedTuple):
    """The tasks of a round, in the order of dispatch: the calls, and before some of them the
    reallocation of params.

    `masks` have a bit for every device that a task occupies. `after` lists the indices of the tasks
    that it waits for, with the seconds of the transfer; a later index means the task of the round
    before. `queue` lists the tasks that share a device with it, itself included.
    """

    seconds: list[float]
    masks: list[int]
    after: list[list[tuple[int, float]]]
    queue: list[list[int]]


class Dataflow:
    """A round's calls, their dependencies, and the seconds to reshard or transfer between
    placements, each computed once.
    """

    def __init__(self, calls: Sequence[Call], costs: CostModel, work: Workload):
        self.calls, self.costs, self.work = tuple(calls), costs, work
        self.asynchronous = work.loop == "asynchronous"
        all_edges = edges(calls, work.lag, work.loop)
        index_of = {call.name: index for index, call in enumerate(self.calls)}
        self.trains = {
            call.role: index_of[call.name] for call in self.calls if call.kind == "train"
        }
        self.generate = next(
            index for index, call in enumerate(self.calls) if call.kind == "generate"
        )
        data = {(edge.source, edge.target): None for edge in all_edges if edge.what == "data"}
        self.data = [(index_of[source], index_of[target]) for source, target in data]
        self.resharded = [index_of[edge.target] for edge in all_edges if edge.what == "params"]
        self.order = self._order()
        self._index_of = {key: index for index, key in enumerate(self.order)}
        self.policy = self._index_of[("call", self.trains["policy"])]
        self.names = [self._name(*key) for key in self.order]
        self.kinds: list[TaskKind] = [
            "reallocate" if what == "move" else self.calls[i].kind for what, i in self.order
        ]
        self._template = [self._after(*key) for key in self.order]
        self._layouts: dict[tuple[tuple[int, ...], tuple[int, int, int]], int] = {}
        self._layout_of_option: dict[int, tuple[Option, int, int]] = {}
        self._moves: dict[tuple[int, int, int], float] = {}
        self._transfers: dict[tuple[int, int, int], float] = {}

    def _order(self) -> list[tuple[str, int]]:
        """Each call, its reallocation before it: the first two are the publishing of params and
        generation.
        """
        order = []
        for index in range(len(self.calls)):
            order += [("move", index)] * (index in self.resharded) + [("call", index)]
        return order

    def _name(self, what: str, index: int) -> str:
        call = self.calls[index]
        return (
            call.name
            if what == "call"
            else "publish"
            if call.kind == "generate"
            else f"move to {call.name}"
        )

    def _after(self, what: str, index: int) -> tuple[tuple[int, tuple[int, int] | None], ...]:
        """Indices of the tasks that a task waits for, with the calls between which data are moved."""
        call = self.calls[index]
        if what == "move":
            return ((self._index_of[("call", self.trains[call.role])], None),)
        waits: list[tuple[int, tuple[int, int] | None]] = [
            (self._index_of[("call", source)], (source, target))
            for source, target in self.data
            if target == index
        ]
        if index in self.resharded:
            waits.append((self._index_of[("move", index)], None))
        return tuple(waits)

    def layout_of(self, option: Option) -> tuple[int, int]:
        """A number for the option's devices and mesh shape, and the devices as bits."""
        entry = self._layout_of_option.get(id(option))
        if entry is None:
            placement = option.placement
            layout = self._layouts.setdefault(
                (placement.devices, placement.mesh_shape), len(self._layouts)
            )
            entry = option, layout, sum(1 << device for device in placement.devices)
            self._layout_of_option[id(option)] = (
                entry  # holds the option, so that its id stays its own
            )
        return entry[1], entry[2]

    def move_seconds(self, index: int, source: Option, target: Option) -> float:
        """Seconds to reshard the params of a call's role from the training mesh to the call's mesh."""
        key = index, self.layout_of(source)[0], self.layout_of(target)[0]
        if key not in self._moves:
            role = self.calls[index].role
            self._moves[key] = self.costs.reallocate_seconds(
                role, source.placement, target.placement
            )
        return self._moves[key]

    def transfer_seconds(self, index: int, source: Option, target: Option) -> float:
        """Seconds to transfer the output of call `index` to another call's devices."""
        key = index, self.layout_of(source)[0], self.layout_of(target)[0]
        if key not in self._transfers:
            seconds = self.costs.transfer_seconds(
                self.calls[index], source.placement, target.placement
            )
            self._transfers[key] = seconds
        return self._transfers[key]

    def round(self, chosen: Sequence[Option]) -> Round:
        """The tasks of a round for an option of every call.

        Resharding occupies its source and target devices. Publishing in the asynchronous loop
        occupies the source alone: the sampler receives new params while it samples with older
        ones. Resharding that takes no time is a dependency alone. Data between calls are small:
        they delay their reader and occupy no device.
        """
        return self.relaxed(chosen, ())

    def relaxed(self, chosen: Sequence[Option | None], least: Sequence[float]) -> Round:
        """The graph of `round` for a partial plan: a call that is not placed (None) takes its
        `least` seconds, waits for no device and has nothing moved to or from it: what every plan
        with these options must do at least.
        """
        bits = [0 if option is None else self.layout_of(option)[1] for option in chosen]
        seconds, masks = [], []
        for what, index in self.order:
            option, source = chosen[index], self.trains.get(self.calls[index].role, index)
            if what == "call":
                seconds.append(least[index] if option is None else option.seconds)
                masks.append(bits[index])
                continue
            trained = chosen[source]
            seconds.append(self.move_seconds(index, trained, option) if trained and option else 0.0)
            reached = 0 if self.asynchronous and index == self.generate else bits[index]
            masks.append(bits[source] | reached if seconds[-1] else 0)
        after = [
            [(task, 0.0 if pair is None else self._latency(pair, chosen)) for task, pair in waits]
            for waits in self._template
        ]
        queue = [
            [task_index for task_index, taken in enumerate(masks) if taken & mask] for mask in masks
        ]
        return Round(seconds, masks, after, queue)

    def _latency(self, pair: tuple[int, int], chosen: Sequence[Option | None]) -> float:
        source, target = chosen[pair[0]], chosen[pair[1]]
        return self.transfer_seconds(pair[0], source, target) if source and target else 0.0
