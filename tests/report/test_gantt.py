"""The picture of a plan has a lane for devices that do the same, a bar for what happens in it, and
a table with its numbers.
"""

from rlhf_jax.planner.simulation.simulate import Node, Row, Simulation
from rlhf_jax.report.plots import gantt, style
from rlhf_jax.types import Placement

ALL, HALF = Placement((0, 1, 2, 3), (2, 1, 2), 4), Placement((2, 3), (1, 2, 1), 1, True)


def simulation():
    nodes = []
    for r in range(5):
        begin = 10.0 * r
        nodes += [
            Node("publish", "reallocate", r, (0, 1, 2, 3), begin, begin + 1),
            Node("generate", "generate", r, (0, 1, 2, 3), begin + 1, begin + 5),
            Node("generate to train_policy", "transfer", r, (2, 3), begin + 5, begin + 5.5),
            Node("train_policy", "train", r, (2, 3), begin + 5.5, begin + 10),
        ]
    rows = (
        Row("generate", "generate", ALL, 4.0, 1.0, 12.3e9, 0.25),
        Row("train_policy", "train", HALF, 4.5, 0.0, 34.5e9, 0.05),
    )
    return Simulation(
        tuple(nodes), rows, 10.0, (12.3e9, 12.3e9, 46.8e9, 46.8e9), (0.5, 0.5, 0.05, 0.05)
    )


def test_devices_that_do_the_same_share_a_lane():
    assert gantt.lanes_of(simulation()) == [(0, 1), (2, 3)]


def test_bars_and_hatches():
    figure = gantt.draw(simulation())
    (ax,) = figure.axes
    assert [label.get_text() for label in ax.get_yticklabels()] == ["0-1", "2-3"]
    # three rounds from the end of round 1: publishing and sampling in two lanes, training in one
    assert len(ax.patches) == 3 * (2 + 2 + 1)
    assert sum(bool(patch.get_hatch()) for patch in ax.patches) == 3 * 2
    assert {text.get_text() for text in ax.texts} == {"2", "3", "4"}
    assert ax.get_xlim() == (0, 30)
    legend = ax.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == [
        "generate",
        "train_policy",
        "reallocation",
    ]


def test_colours_tell_calls_apart():
    assert len({gantt.color_of(name) for name in gantt.COLORS}) == len(gantt.COLORS)
    assert gantt.color_of("another") == style.REST


def test_the_table_has_the_numbers():
    lines = gantt.table(simulation()).splitlines()
    assert lines[0].split() == [
        "call",
        "devices",
        "data×fsdp×tensor",
        "micro",
        "remat",
        "seconds",
        "+",
        "moving",
        "GB",
        "idle",
    ]
    assert lines[1].split() == ["generate", "0-3", "2×1×2", "4", "-", "4", "1", "12.3", "25", "%"]
    assert lines[2].split() == [
        "train_policy",
        "2-3",
        "1×2×1",
        "1",
        "yes",
        "4.5",
        "-",
        "34.5",
        "5",
        "%",
    ]
    assert lines[3] == "10 s a round; devices hold up to 46.8 GB and are idle for 28 % of it"
