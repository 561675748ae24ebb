"""Checkpoints: a damaged one is told and passed over, whatever file it is, and nothing is lost
before it is replaced.
"""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.records.checkpoints import FILES, Checkpoints, Damaged, restore_params
from rlhf_jax.refusal import MissingInput, Refusal


def tree(version: int):
    """A policy's state, of arrays small and large enough to be stored in files of their own."""
    params = {"a": jnp.arange(5000.0).reshape(50, 100) + version, "b": jnp.ones(7) * version}
    return {"policy": {"step": jnp.int32(version), "params": params}}


ABSTRACT = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree(0)
)


def equal(one, other) -> bool:
    return all(
        np.array_equal(x, y)
        for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A stage with versions 8 and 12."""
    place = tmp_path_factory.mktemp("run") / "checkpoints" / "rlhf"
    checkpoints = Checkpoints(place, keep=4)
    for version in (8, 12):
        checkpoints.save(version, tree(version))
    checkpoints.wait()
    checkpoints.close()
    return place


@pytest.fixture
def place(saved, tmp_path):
    """A copy of it, to be damaged."""
    return shutil.copytree(saved, tmp_path / "run" / "checkpoints" / "rlhf")


def newest(place):
    checkpoints = Checkpoints(place, keep=4)
    return checkpoints, checkpoints.newest(lambda step: checkpoints.restore(step, ABSTRACT))


def files_of(place):
    return sorted(path.relative_to(place) for path in (place / "12").rglob("*") if path.is_file())


def test_the_newest_is_taken_where_all_are_whole(place, capfd):
    _, found = newest(place)
    assert found is not None
    assert found[0] == 12
    assert equal(found[1], tree(12))
    assert not capfd.readouterr().err


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(bytes(data))


DAMAGES = {
    "deleted": lambda path: path.unlink(),
    "emptied": lambda path: path.write_bytes(b""),
    "cut": cut,
    "flip": flip,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_any_damaged_file_is_named_and_the_older_version_taken(place, saved, damage, capfd):
    """File by file, each restored before the next."""
    listed = files_of(place)
    assert len(listed) > 8
    for name in listed:
        DAMAGES[damage](place / name)
        if (place / name).exists() and (place / name).read_bytes() == (saved / name).read_bytes():
            continue  # an empty file cannot be cut
        _, found = newest(place)
        assert found is not None
        assert found[0] == 8, name
        assert equal(found[1], tree(8))
        err = capfd.readouterr().err
        assert err.count("\n") == 1, err
        assert f"checkpoint 12 of {place} cannot be used" in err
        assert str(name) in err
        assert err.endswith("going on from 8\n")
        shutil.copy(saved / name, place / name)


@pytest.mark.parametrize("lost", ["default", "default/d", "default/ocdbt.process_0"])
def test_damage_shows_without_the_list_of_files(place, lost, capfd):
    """An older version of the code has not written one."""
    (place / FILES).unlink()
    shutil.rmtree(place / "12" / lost)
    _, found = newest(place)
    assert found is not None
    assert found[0] == 8
    assert equal(found[1], tree(8))
    assert "checkpoint 12 of" in capfd.readouterr().err


def test_no_lost_file_gives_other_numbers(place, saved):
    """Without the list either: what orbax can do without is read as it was, all else is passed
    over.
    """
    (place / FILES).unlink()
    taken = set()
    for name in files_of(place):
        (place / name).unlink()
        _, found = newest(place)
        assert found is not None
        assert equal(found[1], tree(found[0])), name
        taken.add(found[0])
        shutil.copy(saved / name, place / name)
    assert taken == {8, 12}


def test_where_none_can_be_used_nothing_is_touched(place):
    for version in (8, 12):
        (place / str(version) / "default" / "manifest.ocdbt").unlink()
    before = sorted(path for path in place.rglob("*"))
    with pytest.raises(
        Refusal,
        match=r"no checkpoint of .+ can be gone on from \(8: .+manifest.ocdbt is missing; 12: .+",
    ):
        newest(place)
    assert sorted(path for path in place.rglob("*")) == before


def test_something_else_may_be_missing_from_a_version(place, capfd):
    checkpoints = Checkpoints(place, keep=4)

    def read(step):
        if step == 12:
            raise Damaged("rounds/00000012.npz is missing")
        return checkpoints.restore(step, ABSTRACT)

    found = checkpoints.newest(read)
    assert found is not None
    assert found[0] == 8
    assert (
        "cannot be used (rounds/00000012.npz is missing): going on from 8" in capfd.readouterr().err
    )


def test_no_checkpoint_is_none(tmp_path):
    assert Checkpoints(tmp_path / "checkpoints" / "sft").newest(lambda step: step) is None


def test_what_is_passed_over_is_kept_until_it_is_replaced(place):
    """Version 12 is moved aside, and goes when version 12 has been saved again, not when 10 has."""
    checkpoints = Checkpoints(place, keep=4)
    aside = place.parents[1] / "set_aside" / "rlhf"
    checkpoints.set_aside_after(8)
    (aside / "14.lines").mkdir()
    assert checkpoints.steps() == [8]
    assert equal(Checkpoints(aside, only_read=True).restore(12, ABSTRACT), tree(12))
    checkpoints.save(10, tree(10))
    checkpoints.wait()
    assert (aside / "12").exists()
    checkpoints.save(12, tree(13))
    checkpoints.wait()
    assert not (aside / "12").exists()
    assert (aside / "14.lines").exists()
    checkpoints.save(16, tree(16))
    checkpoints.wait()
    assert not aside.exists()
    assert checkpoints.steps() == [8, 10, 12, 16]
    assert equal(checkpoints.restore(12, ABSTRACT), tree(13))
    assert all(not checkpoints.problem(step) for step in checkpoints.steps())


def test_a_version_that_is_saved_again_is_not_taken_for_damaged(place):
    """The list is of the files that are there, and of nothing while they are being written."""
    checkpoints = Checkpoints(place, keep=4)
    checkpoints.set_aside_after(8)
    checkpoints.save(12, tree(13))
    assert "12" not in json.loads((place / FILES).read_text())
    checkpoints.wait()
    assert "12" in json.loads((place / FILES).read_text())
    assert not checkpoints.problem(12)


def test_the_list_is_of_the_checkpoints_that_are_kept(place):
    checkpoints = Checkpoints(place, keep=2)
    for version in (16, 20):
        checkpoints.save(version, tree(version))
    checkpoints.wait()
    assert (
        sorted(map(int, json.loads((place / FILES).read_text()))) == checkpoints.steps() == [16, 20]
    )


def test_a_reader_names_what_is_damaged_and_makes_nothing(place, tmp_path):
    params = ABSTRACT["policy"]["params"]
    found, step = restore_params(place, params, "policy")
    assert step == 12
    assert equal(found, tree(12)["policy"]["params"])
    (place / "12" / "default" / "manifest.ocdbt").unlink()
    with pytest.raises(
        Refusal,
        match=r"checkpoint 12 of .+ is damaged .+manifest\.ocdbt is missing.+whole are: .*8; run "
        r"the",
    ):
        restore_params(place, params, "policy")
    assert restore_params(place, params, "policy", 8)[1] == 8
    with pytest.raises(MissingInput):
        restore_params(tmp_path / "nowhere", params)
    assert not (tmp_path / "nowhere").exists()


def test_a_step_that_is_being_replaced_is_held_as_long_as_its_files_are(place, monkeypatch):
    """Orbax no longer counts it once a save has begun, and a kill may come before that has ended."""
    checkpoints = Checkpoints(place, keep=1)
    monkeypatch.setattr(checkpoints._manager, "all_steps", lambda: [12, 16])
    assert checkpoints.steps() == [12, 16]
    assert checkpoints.held() == [8, 12, 16]
    shutil.rmtree(place / "8")
    assert checkpoints.held() == [12, 16]
    monkeypatch.undo()
    checkpoints.close()
