"""Draws what a plan is expected to do, a lane for the devices that do the same, and prints it as a
table.
"""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from rlhf_jax.devices.placement import ranges
from rlhf_jax.planner.simulation.simulate import Node, Simulation
from rlhf_jax.report.plots import style

COLORS = {
    "generate": style.HELDOUT,
    "train_policy": style.SECOND,
    "train_critic": style.TRAINING,
    "reference": style.THIRD,
    "value": "#d55e00",
    "reward": "#56b4e9",
    "proximal": "#7f6bb0",
    "gradient_energy": "#b07f6b",
}
REALLOCATION = "reallocation"
SHOWN_ROUNDS = 3
LANE_INCHES = 0.42
NUMBERED = 0.018
"""Share of the picture's width from which a bar has room for its round's number."""


def draw(simulation: Simulation, title: str = "") -> Figure:
    """Some rounds in the steady state, from the end of a training on.

    Bars by call with the number of their round, reallocation hatched.
    """
    lanes = lanes_of(simulation)
    nodes = [node for node in simulation.nodes if node.kind != "transfer"]
    begin, end = _window(nodes)
    height = LANE_INCHES * len(lanes) + 1.15
    figure, (ax,) = style.panels(1, 1, height)
    figure.subplots_adjust(left=0.085, right=0.99, bottom=0.5 / height, top=1 - 0.62 / height)
    style.axes(ax, title or f"{simulation.seconds_per_round:.3g} s a round", "seconds", "devices")
    for node in nodes:
        if node.end > begin and node.start < end:
            _draw_node(ax, node, lanes, begin, end)
    shown = any(
        node.kind == "reallocate" and node.end > begin and node.start < end for node in nodes
    )
    ax.set_yticks(range(len(lanes)), [_label(devices) for devices in lanes])
    ax.set_ylim(len(lanes) - 0.45, -0.55)
    ax.set_xlim(0, end - begin)
    ax.grid(visible=False, axis="y")
    _legend(ax, [row.call for row in simulation.rows], shown)
    return figure


def lanes_of(simulation: Simulation) -> list[tuple[int, ...]]:
    """Devices that the same calls and reallocations occupy, the first ones first."""
    occupied: dict[int, set[str]] = {
        device: set() for device in range(len(simulation.memory_bytes))
    }
    for node in simulation.nodes:
        for device in node.devices if node.kind != "transfer" else ():
            occupied[device].add(node.name)
    groups: dict[frozenset[str], list[int]] = {}
    for device, names in occupied.items():
        groups.setdefault(frozenset(names), []).append(device)
    return sorted(tuple(devices) for devices in groups.values())


def table(simulation: Simulation) -> str:
    """The calls as rows of text: where, how, seconds, GB of a device, and how much of a round its
    devices are idle.
    """
    head = (
        "call",
        "devices",
        "data×fsdp×tensor",
        "micro",
        "remat",
        "seconds",
        "+ moving",
        "GB",
        "idle",
    )
    rows: list[Sequence[str]] = [head]
    for row in simulation.rows:
        placement = row.placement
        remat = {None: "-", True: "yes", False: "no"}[placement.remat]
        moving = f"{row.reallocate_seconds:.3g}" if row.reallocate_seconds else "-"
        rows.append((
            row.call, _label(placement.devices), "×".join(map(str, placement.mesh_shape)),
            str(placement.num_micro_batches), remat, f"{row.seconds:.3g}", moving,
            f"{row.memory_bytes / 1e9:.3g}", f"{100 * row.idle_share:.0f} %",
        ))  # fmt: skip
    widths = [max(len(cells[column]) for cells in rows) for column in range(len(head))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
        for cells in rows
    ]
    idle = sum(simulation.idle_share) / len(simulation.idle_share)
    lines.append(
        f"{simulation.seconds_per_round:.3g} s a round; devices hold up to "
        f"{max(simulation.memory_bytes) / 1e9:.3g} GB and "
        f"are idle for {100 * idle:.0f} % of it"
    )
    return "\n".join(lines)


def _window(nodes: Sequence[Node]) -> tuple[float, float]:
    """From the end of a round's training to that of the last one, some rounds later."""
    ends: dict[int, float] = {}
    for node in nodes:
        if node.kind == "train":
            ends[node.round_index] = max(ends.get(node.round_index, 0.0), node.end)
    rounds = sorted(ends)
    first = max(0, len(rounds) - 1 - SHOWN_ROUNDS)
    return (ends[rounds[first]] if len(rounds) > 1 else 0.0), ends[rounds[-1]]


def _draw_node(
    ax: Axes, node: Node, lanes: Sequence[tuple[int, ...]], begin: float, end: float
) -> None:
    left, right = max(node.start, begin), min(node.end, end)
    moves = node.kind == "reallocate"
    for lane, devices in enumerate(lanes):
        if devices[0] not in node.devices:
            continue
        color = "white" if moves else color_of(node.name)
        edge, hatch = (style.MUTED, "//////") if moves else ("white", None)
        ax.barh(
            lane,
            right - left,
            left=left - begin,
            height=0.82,
            color=color,
            edgecolor=edge,
            linewidth=0.5,
            hatch=hatch,
        )
        if not moves and right - left > NUMBERED * (end - begin):
            middle = (left + right) / 2
            ax.text(
                middle - begin,
                lane,
                str(node.round_index),
                ha="center",
                va="center",
                fontsize=7.5,
                color="white",
            )


def color_of(call: str) -> str:
    """The colour of a call's bars."""
    return COLORS.get(call, style.REST)


def _label(devices: tuple[int, ...]) -> str:
    return ranges(sorted(devices), ", ")


def _legend(ax: Axes, calls: Sequence[str], moves: bool) -> None:
    handles = [Patch(color=color_of(call), label=call) for call in calls]
    if moves:
        handles.append(
            Patch(facecolor="white", edgecolor=style.MUTED, hatch="//////", label=REALLOCATION)
        )
    ax.legend(
        handles=handles, ncols=len(handles), fontsize=7.5, frameon=False, loc="lower right",
        bbox_to_anchor=(1.0, 1.0), labelcolor=style.MUTED,
    )  # fmt: skip
