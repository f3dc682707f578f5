"""`evaluate --quick`: a first look on few trajectories, under a name of its own."""

import pytest

from jepa_fast import evaluate
from jepa_fast.config import GatedFeaturesConfig
from jepa_fast.data.shards import open_split
from jepa_fast.errors import InputError
from jepa_fast.models.registry import build_model
from jepa_fast.probing.results import Evaluation
from jepa_fast.probing.rollouts import all_locations
from jepa_fast.weights import save_weights


def test_a_split_can_end_early(two_rooms):
    split = open_split(two_rooms / "probe_normal" / "val")
    few = split.first(7)
    assert (few.count, split.count, split.first(10_000).count) == (7, 80, 80)
    assert all_locations(few).equal(all_locations(split)[:7])
    with pytest.raises(IndexError):
        few.pieces(few.starts[-1:] * 0 + 7)


def test_a_quick_look_takes_few_trajectories_no_floor_and_another_name(tmp_path, two_rooms, monkeypatch, capsys):
    monkeypatch.setattr(evaluate, "QUICK", 72)
    save_weights(build_model(GatedFeaturesConfig(dim=8)), tmp_path / "run", {})
    evaluate.main(evaluate.Arguments(tmp_path / "run", data=two_rooms, quick=True))
    assert not (tmp_path / "run" / "evaluation.json").exists()
    found = Evaluation.load(tmp_path / "run" / "quick-evaluation.json")
    assert {(one.trajectories, one.probe_trajectories, one.untrained) for one in found.probe_sets} == {(72, 72, None)}
    assert "probe_expert/val" in capsys.readouterr().out


def test_other_data_have_no_quick_look(tmp_path, walks):
    save_weights(build_model(GatedFeaturesConfig(dim=8)), tmp_path / "run", {})
    with pytest.raises(InputError, match="--quick"):
        evaluate.main(evaluate.Arguments(tmp_path / "run", data=walks / "train", quick=True))
