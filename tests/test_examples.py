"""The examples run as they stand, made small, and do what they say."""

import importlib.util
from pathlib import Path

import pytest

from jepa_fast.engine.record import read_spectra

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def example(name):
    specification = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_an_encoder_of_ones_own_trains_and_does_not_collapse(tmp_path, capsys):
    run = example("own_encoder").main(tmp_path, trajectories=256, steps=60, dim=32)
    first, last = run.metrics[0], run.metrics[-1]
    assert last["total"] < first["total"] / 2
    assert read_spectra(run.folder)[-1]["rankme"] > 5
    assert capsys.readouterr().out == f"loss {first['total']:.2f} at step 10, {last['total']:.2f} at step 60\n"


def test_data_of_ones_own_are_packed_trained_on_and_known_from_predicted_latents(tmp_path, capsys):
    found = example("own_data").main(tmp_path, count=256, steps=100, dim=32)
    assert found["place"] > 0.5
    assert capsys.readouterr().out == f"R^2 of place: {found['place']:.2f}, R^2 of colour: {found['colour']:.2f}\n"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_is_short_and_says_how_it_is_run(path):
    text = path.read_text()
    assert f"`python examples/{path.name}`" in text.splitlines()[0]
    assert len(text.splitlines()) <= 80
