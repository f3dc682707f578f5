"""The play page without a browser: what is in it, which models it takes, what the command says."""

import base64
import html
import json
import re

import numpy as np
import pytest
import torch

from jepa_fast.config import (
    CustomConfig,
    GatedConvNeXtConfig,
    GatedFeaturesConfig,
    GatedPixelsConfig,
    Group,
    JEPAConfig,
)
from jepa_fast.errors import InputError
from jepa_fast.models.registry import build_model
from jepa_fast.play.__main__ import Arguments, main
from jepa_fast.play.page import build
from jepa_fast.play.playable import SHIPPED, check, folders_of, packed, playable, shipped
from jepa_fast.weights import WEIGHTS, save_weights


def test_the_models_that_come_along_are_small_and_have_their_record():
    for folder in shipped():
        assert (folder / WEIGHTS).stat().st_size < 100_000
        origin = json.loads((folder / "config.json").read_text())["origin"]
        assert {"preset", "seed", "steps", "batch_size", "jepa_fast", "data", "errors_px2"} <= origin.keys()
        assert set(origin["errors_px2"]) == {f"probe_{name}/val" for name in ("normal", "wall", "wall_other", "expert")}
        assert max(origin["errors_px2"].values()) < 1
        assert "Mean squared errors" in playable(folder)["record"]
    assert [folder.name for folder in shipped()] == ["gated_features", "gated_pixels"]


def test_the_page_is_one_file_that_asks_for_nothing(tmp_path, capsys):
    main(Arguments(out=tmp_path / "play.html"))
    assert capsys.readouterr().out == f"{tmp_path / 'play.html'}\n"
    text = html.unescape((tmp_path / "play.html").read_text())
    assert re.findall(r"https?://|src=|@import|url\(|fetch\(|XMLHttpRequest|WebSocket", text) == []
    assert "default-src 'none'" in text
    assert len(text) < 300_000


def test_weights_come_through_bit_for_bit():
    model = build_model(GatedFeaturesConfig(dim=8))
    tensors = model.state_dict()
    table, text = packed(tensors)
    values = np.frombuffer(base64.b64decode(text), "<f4")
    for name, shape in table:
        part, values = np.split(values, [int(np.prod(shape))])
        np.testing.assert_array_equal(part.reshape(shape), tensors[name])
    assert len(values) == 0


def test_names_of_runs_are_no_markup(tmp_path):
    torch.manual_seed(0)
    save_weights(build_model(GatedFeaturesConfig(dim=8)), tmp_path / "run", {})
    name = "</script><script>alert(1)</script>"
    text = build([playable(tmp_path / "run", name)])
    assert text.count("<script>") == 1
    assert json.dumps(name).replace("<", "\\u003c") in text


def test_a_model_that_the_page_does_not_know_is_refused_by_name():
    for config in (JEPAConfig(), GatedFeaturesConfig(), GatedPixelsConfig(), GatedConvNeXtConfig()):
        check(config, "run")
    with pytest.raises(InputError, match="its model is a custom, the page knows"):
        check(CustomConfig(), "run")
    with pytest.raises(InputError, match="its frames are not those of the two-room world"):
        check(JEPAConfig(groups=(Group("rgb", 3),)), "run")
    with pytest.raises(InputError, match=r"model\.head is 'spatial'"):
        check(JEPAConfig(head="spatial", dim=72), "run")
    with pytest.raises(InputError, match=r"model\.stride is 4"):
        check(JEPAConfig(stride=4), "run")
    with pytest.raises(InputError, match="its actions are not those"):
        check(JEPAConfig(action_size=7), "run")
    with pytest.raises(InputError, match="its frames are not those"):
        check(GatedFeaturesConfig(frame=33), "run")


def test_folders_of_runs_are_found(tmp_path):
    with pytest.raises(InputError, match="neither a run nor a folder of runs"):
        folders_of([tmp_path])
    assert folders_of([SHIPPED]) != []
    assert folders_of([SHIPPED / "gated_features"]) == [SHIPPED / "gated_features"]


def test_what_the_command_cannot_do_is_one_line(tmp_path):
    with pytest.raises(InputError, match="cannot be written"):
        main(Arguments(out=tmp_path / "no" / "play.html"))
    with pytest.raises(InputError, match="--port"):
        main(Arguments(port=70_000))
