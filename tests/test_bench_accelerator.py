"""What the benchmark of a device counts as needed, by hand, and that it runs."""

import json

import pytest

from experiments.bench import accelerator, roofline
from rlhf_jax.models import gpt_neox

# Width 4, one head, feed-forward 8, 11 tokens. A layer: norms 2 * 8, query_key_value 48 + 12, dense
# 16 + 4, up 32 + 8, down 32 + 4: 172; the last norm 8: with two layers 352. Embedding 44, head 44.
CONFIG = gpt_neox.Config(11, 4, 2, 1, 8, dtype="bfloat16", rotary_fraction=0.5)


def test_sizes_by_hand():
    assert roofline.sizes(gpt_neox.make(CONFIG)) == (352, 44, 44)


def test_bytes_of_a_step_by_hand():
    """3 rows, prompt 5, 3 new: the two steps see 6 and 7 columns, 6.5 in the mean, of 2 layers'
    keys and values of width 4.

    352 + 44 params and 3 * 6.5 * 2 * 2 * 4 = 312 cached numbers, of 2 bytes.
    """
    assert roofline.step_bytes(gpt_neox.make(CONFIG), 3, 5, 3) == 2 * (352 + 44 + 312)


def test_flops_of_an_update_by_hand():
    """2 rows of one prompt of 3, 2 new: 3 + 2 * 1 tokens in the layers and 2 * 2 in the head.

    6 * 352 * 5 + 6 * 44 * 4 = 11616. Columns seen: 1 + 2 + 3 by the prompt, 4 by each row's token:
    14. Two products of width 4, 2 FLOPs each, forward and twice backward, in 2 layers: 2 * 2 * 3 *
    4 * 2 = 96 a pair, 1344 in all.
    """
    assert roofline.update_flops(gpt_neox.make(CONFIG), rows=2, prompt=3, new=2) == 11616 + 1344


def test_shares_are_of_the_peak_or_null():
    assert roofline.share(1e12, roofline.peaks("NVIDIA H200")[1], 0.5) == pytest.approx(
        1 / 2.4, abs=1e-4
    )
    assert roofline.share(1e12, roofline.peaks("cpu")[1], 0.5) is None


def test_every_case_has_a_name_and_cudnn_is_for_a_gpu():
    shape = accelerator.Shape()
    names = {
        platform: set(accelerator.cases(shape, "x", platform, False, 1))
        for platform in ("gpu", "cpu")
    }
    assert {
        "decode x 64",
        "decode x 256",
        "update, xla",
        "update, cudnn, remat",
        "online_dpo round",
    } <= names["gpu"]
    assert names["gpu"] - names["cpu"] == {"update, cudnn", "update, cudnn, remat"}


def test_a_case_that_does_not_fit_says_so():
    def fails(message: str) -> dict:
        raise accelerator.jax.errors.JaxRuntimeError(message)

    found = accelerator.fitting("large", lambda: fails("RESOURCE_EXHAUSTED: 99 GiB"))
    assert found == {"case": "large", "out_of_memory": "RESOURCE_EXHAUSTED: 99 GiB"}
    with pytest.raises(accelerator.jax.errors.JaxRuntimeError, match="INTERNAL"):
        accelerator.fitting("broken", lambda: fails("INTERNAL: a fault"))


def test_decoding_is_measured_and_its_shares_are_null_here(capsys, tmp_path):
    path = tmp_path / "line.json"
    accelerator.main(["--preset=quickstart", "--smoke", "--only=decode", f"--output={path}"])
    line = json.loads(path.read_text())
    assert capsys.readouterr().out.strip() == path.read_text().strip()
    assert line["benchmark"] == "accelerator"
    (case,) = line["cases"]
    assert (case["case"], case["rows"], case["platform"]) == ("decode x 2", 2, "cpu")
    assert (case["share_of_bandwidth"], case["bound_seconds"], case["peak_bfloat16_flops"]) == (
        None,
        None,
        None,
    )
    assert case["prefill_seconds"] > 0
    assert case["step_megabytes"] > 0
