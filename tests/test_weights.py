"""Weights out of a run and into an evaluation: the same function on both sides, and no file that can run code."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import jepa_fast
from jepa_fast import evaluate, export
from jepa_fast.backends import choose_kernels
from jepa_fast.config import JEPAConfig, Recipe, RunConfig
from jepa_fast.engine.checkpoint import save_checkpoint
from jepa_fast.errors import InputError
from jepa_fast.models.jepa import JEPA, build_jepa
from jepa_fast.probing.results import Evaluation
from jepa_fast.runs import create_run
from jepa_fast.weights import load_weights, read_tensors, save_weights
from tests.models.test_explorejepa import draw

SMALL = JEPAConfig(channels=2, blocks=1, dim=6, residual="state", activation="before_norm")


def make_run(folder, data="nowhere"):
    config = RunConfig(
        preset="test", recipe=Recipe(model=SMALL), seed=4, steps=9, batch_size=8, amp="off", compile=False,
        device="cpu", data=str(data), loader="host", kernels="reference", sparse=True,
    )  # fmt: skip
    create_run(folder, config)
    torch.manual_seed(1)
    save_checkpoint(folder, 7, {"step": 7, "model": build_jepa(SMALL).state_dict()})
    return folder


def test_an_exported_run_is_the_same_world(tmp_path):
    run = make_run(tmp_path / "run")
    export.main(export.Arguments(run))
    ours, theirs = jepa_fast.load(run), jepa_fast.load(run / "export")
    assert theirs.config == ours.config == SMALL
    assert theirs.kernels == ours.kernels == choose_kernels("auto", "cpu", SMALL.dim)
    assert jepa_fast.load(run, "reference").kernels == "reference"
    assert not theirs.training
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert all(torch.equal(ours.state_dict()[name], tensor) for name, tensor in theirs.state_dict().items())
    files = sorted(path.name for path in (run / "export").iterdir())
    assert files == ["config.json", "model.safetensors"]
    origin = json.loads((run / "export" / "config.json").read_text())["origin"]
    assert origin == {"jepa_fast": jepa_fast.__version__, "preset": "test", "seed": 4, "steps": 7, "batch_size": 8}


def test_an_export_never_overwrites_a_run(tmp_path):
    run = make_run(tmp_path / "run")
    before = (run / "config.json").read_text()
    with pytest.raises(InputError, match=r"--out: got .* expected a folder that is not a run"):
        export.main(export.Arguments(run, out=run))
    assert (run / "config.json").read_text() == before


def test_exports_that_do_not_fit_are_refused_by_name(tmp_path):
    save_weights(build_jepa(SMALL), tmp_path, {})
    config = tmp_path / "config.json"
    text = config.read_text()
    config.write_text(text.replace('"dim": 6', '"dim": 7'))
    with pytest.raises(InputError, match=r"model\.safetensors: not of the model in config\.json"):
        load_weights(tmp_path)
    for damaged in ("{", "[]", "{}", '{"model": {"size": 3}}'):
        config.write_text(damaged)
        with pytest.raises(InputError, match=r"config\.json: not the configuration of exported weights"):
            load_weights(tmp_path)
    config.write_text(text)
    (tmp_path / "model.safetensors").write_bytes(b"not tensors")
    with pytest.raises(InputError, match=r"model\.safetensors: not a file of plain tensors"):
        load_weights(tmp_path)


class Payload:
    """What an attacker would pickle: unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_pickled_code_is_not_run(tmp_path):
    value = {"weight": Payload(tmp_path / "touched")}
    torch.save(value, tmp_path / "torch.pt")
    # Protocol 2, the one that torch.save writes: of any other, torch warns.
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(value, protocol=2))
    for name in ("torch.pt", "plain.pt"):
        with pytest.raises(InputError, match=f"{name}: not a file of plain tensors") as raised:
            read_tensors(tmp_path / name)
        assert "\n" not in str(raised.value)
    assert not (tmp_path / "touched").exists()


def test_files_without_named_tensors_are_refused(tmp_path):
    torch.save([torch.zeros(2)], tmp_path / "list.pt")
    with pytest.raises(InputError, match="found a list, expected a dict"):
        read_tensors(tmp_path / "list.pt")
    with pytest.raises(InputError, match="no such file"):
        read_tensors(tmp_path / "absent.pt")


@pytest.mark.posix
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_published_weights_are_evaluated_as_the_world_they_describe(tmp_path, two_rooms, capsys, suffix):
    published = draw()[0]
    path = tmp_path / f"published.{suffix}"
    save_file(published, path) if suffix == "safetensors" else torch.save(published, path)
    data = tmp_path / "data"
    (data / "probe_wall").mkdir(parents=True)
    (data / "probe_normal").mkdir()
    (data / "probe_wall" / "val").symlink_to(two_rooms / "probe_wall" / "val")
    (data / "probe_normal" / "train").symlink_to(two_rooms / "probe_normal" / "train")
    evaluate.main(evaluate.Arguments(weights=path, format="explorejepa_gelu_first", data=data))
    evaluation = Evaluation.load(tmp_path / "published.evaluation.json")
    assert f"{evaluation.probe_sets[0].trained.official:.3f}" in capsys.readouterr().out
    assert evaluation.parameters == sum(tensor.numel() for tensor in published.values())

    save_weights(JEPA.from_explorejepa(published, gelu_first=True), tmp_path / "ours", {})
    evaluate.main(evaluate.Arguments(run=tmp_path / "ours", data=data))
    assert Evaluation.load(tmp_path / "ours" / "evaluation.json") == evaluation


def test_what_to_evaluate_is_asked_for_exactly_once(tmp_path):
    for arguments, found in ((evaluate.Arguments(), "neither"), (evaluate.Arguments(tmp_path, tmp_path), "both")):
        with pytest.raises(InputError, match=f"RUN, --weights: got {found}, expected one of them"):
            evaluate.main(arguments)
    torch.save(draw()[0], tmp_path / "published.pt")
    with pytest.raises(InputError, match="--data: not given"):
        evaluate.main(evaluate.Arguments(weights=tmp_path / "published.pt"))
