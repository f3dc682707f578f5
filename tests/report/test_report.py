"""Reports made from run folders alone: complete, self-contained, and true to the numbers in the folder."""

import base64
import hashlib
import io
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread

import jepa_fast
from jepa_fast.config import Group, JEPAConfig, Recipe, RunConfig, Stage, VICRegConfig
from jepa_fast.engine.loop import train
from jepa_fast.engine.record import Record, write_environment
from jepa_fast.errors import InputError
from jepa_fast.evaluate import Arguments as EvaluateArguments
from jepa_fast.evaluate import main as evaluate
from jepa_fast.probing.results import Evaluation
from jepa_fast.probing.target_results import TARGETS, TargetEvaluation
from jepa_fast.report import __main__ as report
from jepa_fast.report.words import number
from jepa_fast.runs import create_run
from tests.forked import finished

ROOT = Path(jepa_fast.__file__).parents[1]
SETS = ["normal", "wall", "wall_other", "expert"]
VOID = {"img", "meta", "rect", "circle", "polyline", "path", "use", "link", "br", "line"}


class Page(HTMLParser):
    """A page's text and elements; refuses one whose elements are not closed in order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.source = path.read_text()
        self.feed(self.source)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())

    def captions(self):
        return re.findall(r"<h3>(.*?)</h3>.*?<figcaption>(.*?)</figcaption>", self.source, flags=re.DOTALL)


def make_run(folder, data, **changes):
    recipe = Recipe(
        model=JEPAConfig(channels=2, blocks=1, dim=8),
        objective=VICRegConfig(gamma=0.5),
        stages=(Stage(1), Stage(1, {"invariance": 30.0})),
    )
    config = RunConfig(
        preset="test", recipe=recipe, seed=3, steps=30, batch_size=8, amp="off", compile=False,
        device="cpu", data=str(data), loader="host", kernels="reference", sparse=True,
    )  # fmt: skip
    config = replace(config, **changes)
    create_run(folder, config)
    write_environment(folder, torch.device("cpu"))
    train(config, folder)
    return folder


def leaves(settings):
    """How many values a configuration holds; lists of plain values count as one."""
    if isinstance(settings, dict):
        return sum(map(leaves, settings.values()))
    if isinstance(settings, list) and settings and isinstance(settings[0], dict):
        return sum(map(leaves, settings))
    return 1


@pytest.fixture(scope="module")
def runs(two_rooms, tmp_path_factory):
    """A run that was evaluated, and another that was not."""
    folder = tmp_path_factory.mktemp("runs")
    first, second = make_run(folder / "first", two_rooms), make_run(folder / "second", two_rooms, seed=4, steps=20)
    evaluate(EvaluateArguments(run=first))
    return first, second


@pytest.fixture(scope="module")
def page(runs):
    report.main(report.Arguments((runs[0],)))
    return Page(runs[0] / "report.html")


def test_every_figure_has_a_title_and_a_sentence(page):
    titles = [title for title, _ in page.captions()]
    assert titles == [
        *SETS, "Distance to the nearest solid pixel", *SETS, *SETS,
        "Standard deviation per dimension", "Singular values", "Effective rank",
        "Loss terms", "Learning rate", "Gradient norm", "Throughput",
    ]  # fmt: skip
    for _, caption in page.captions():
        assert re.search(r"\d", caption)
        assert caption.endswith(".")
    assert page.source.count("<figure") == len(titles)


def test_the_page_needs_nothing_from_elsewhere_and_is_small(page):
    for tag, attributes in page.elements:
        assert tag not in {"link", "iframe", "object"}
        if tag == "img":
            assert attributes["src"].startswith("data:image/png;base64,")
            continue
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith("#"), attributes
    assert "@import" not in page.source
    assert "url(http" not in page.source
    assert len(page.source) < 1e6


def test_a_content_security_policy_forbids_what_is_not_the_pages_own(page):
    (policy,) = [one["content"] for tag, one in page.elements if one.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    # One script, ours, known by its hash.
    (script,) = re.findall(r"<script>(.*?)</script>", page.source, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert rules["script-src"] == f"'sha256-{digest}'"
    assert page.source.count("<script") == 1
    # It holds from where it stands on.
    before = page.source[: page.source.index("Content-Security-Policy")]
    assert "<style" not in before
    assert "<title" not in before


SCRIPT = "</svg></p><script>alert(1)</script>\"' onload=alert(1) <b>"


def test_words_of_a_strangers_evaluation_and_environment_are_text(runs, tmp_path):
    """Everywhere in the page where a stored string can stand."""
    folder = tmp_path / "stranger"
    shutil.copytree(runs[0], folder)
    evaluation = json.loads((folder / "evaluation.json").read_text())
    for result in evaluation["probe_sets"]:
        result["name"] = SCRIPT
    evaluation["data"] = SCRIPT
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    environment = dict.fromkeys(json.loads((folder / "environment.json").read_text()), SCRIPT)
    (folder / "environment.json").write_text(json.dumps(environment | {SCRIPT: [SCRIPT]}))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"preset": SCRIPT, "data": SCRIPT}))
    for pages in ((folder,), (folder, runs[1])):
        report.main(report.Arguments(pages, out=tmp_path / "page.html"))
        page = Page(tmp_path / "page.html")
        assert SCRIPT.replace(" ", "")[:20] in page.text.replace(" ", "")
        assert page.source.count("<script") == 1
        assert "alert" not in page.source.split("<script>")[1]
        assert not any("onload" in attributes for _, attributes in page.elements)


def test_references_inside_the_page_have_exactly_one_target(page):
    targets = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    used = set(re.findall(r"(?:href=\"#|url\(#)([\w-]+)", page.source))
    assert used <= set(targets)
    assert len(set(targets)) == len(targets)


def test_colors_are_variables_of_both_themes(page):
    style, body = page.source.split("</style>", 1)
    assert "prefers-color-scheme: dark" in style
    variables = set(re.findall(r"var\((--[\w-]+)\)", page.source))
    light, dark = style.split("prefers-color-scheme: dark")
    assert all(f"{variable}:" in light and f"{variable}:" in dark for variable in variables)
    assert re.findall(r"#[0-9a-fA-F]{6}\b", body) == []


def test_scores_and_sentences_are_those_of_the_evaluation(page, runs):
    evaluation = Evaluation.load(runs[0] / "evaluation.json")
    captions = page.captions()
    for index, result in enumerate(evaluation.probe_sets):
        for value in (result.trained, result.untrained):
            assert f"<td>{value.official:.3f}</td>" in page.source
            assert f"<td>{value.converged:.3f}</td>" in page.source
        worse = sum(
            ours >= theirs
            for ours, theirs in zip(result.trained.converged_by_step, result.untrained.converged_by_step, strict=True)
        )
        said = f"No better than the untrained encoder at {worse} of " if worse else "Better than the untrained encoder"
        assert said in captions[index][1]
        worst = max(result.by_distance, key=lambda one: one.converged)
        said = f"{result.name.removeprefix('probe_').removesuffix('/val')} {number(worst.converged)} px² from"
        assert f"{said} {number(worst.low_px)} px on" in dict(captions)["Distance to the nearest solid pixel"]
    errors = [example.error for result in evaluation.probe_sets for example in result.examples]
    rooms = [attributes for tag, attributes in page.elements if attributes.get("class") == "room"]
    assert len(rooms) == len(errors) == 24
    assert {attributes["viewbox"] for attributes in rooms} == {"0 0 65 65"}


def test_the_report_tells_the_wall_to_agent_ratio_and_does_without_the_floor(page, runs, tmp_path):
    evaluation = Evaluation.load(runs[0] / "evaluation.json")
    said = f"on wall over that on normal: {number(evaluation.wall_to_agent['converged'])} with the converged probe"
    assert said in page.text
    folder = tmp_path / "first"
    shutil.copytree(runs[0], folder)
    results = [replace(result, untrained=None) for result in evaluation.probe_sets]
    replace(evaluation, probe_sets=results).save(folder / "evaluation.json")
    report.main(report.Arguments((folder,)))
    without = Page(folder / "report.html")
    assert said in without.text
    assert "with an untrained encoder" in page.text
    assert "untrained encoder" not in without.text


def test_a_sentence_names_what_the_spectrum_says(page, runs):
    last = [json.loads(line) for line in (runs[0] / "spectra.jsonl").read_text().splitlines()][-1]
    below = sum(value < 0.5 for value in last["std"])
    captions = dict(page.captions())
    assert f"{below} dimensions are below 0.5" in captions["Standard deviation per dimension"]
    variances = torch.tensor(last["singular_values"]).double().square().cumsum(0)
    half = int((variances < variances[-1] / 2).sum()) + 1
    assert re.search(rf"{half} (axis holds|axes hold) half of the variance", captions["Singular values"])


def test_configuration_and_environment_are_there(page):
    for text in ("recipe.stages.1.weights.invariance", "recipe.objective.gamma", torch.__version__, "30 of 30 steps"):
        assert text in page.text
    assert "25 invariance + 25 variance + 1 covariance up to step 15, then 30 invariance" in page.text


def test_a_run_without_evaluation_says_so_and_how_to_get_one(runs):
    report.main(report.Arguments((runs[1],)))
    page = Page(runs[1] / "report.html")
    assert f"This run has not been evaluated. Run: python -m jepa_fast.evaluate {runs[1]}" in page.text
    assert next(title for title, _ in page.captions()) == "Standard deviation per dimension"


def test_a_run_that_ended_at_once_still_has_a_report(tmp_path, two_rooms):
    config = RunConfig.load(make_run(tmp_path / "whole", two_rooms, steps=1) / "config.json")
    create_run(tmp_path / "cut", config)
    Record(tmp_path / "cut", 0).close()
    (tmp_path / "cut" / "evaluation.json").write_text("{}")
    report.main(report.Arguments((tmp_path / "cut",)))
    text = Page(tmp_path / "cut" / "report.html").text
    assert "Nothing was logged yet" in text
    assert "This run recorded no spectra" in text
    assert "evaluation.json is damaged or was written by another version." in text
    # One step is one log step, which has no throughput.
    report.main(report.Arguments((tmp_path / "whole",)))
    assert "Too few steps were done to measure a throughput." in Page(tmp_path / "whole" / "report.html").text


def test_names_are_text_not_markup(tmp_path, two_rooms):
    run = make_run(tmp_path / "<b>&run", two_rooms, steps=1)
    report.main(report.Arguments((run,)))
    page = Page(run / "report.html")
    assert "Run <b>&run" in page.text
    assert "<b>&run" not in page.source


def test_comparison_lists_what_differs_and_overlays_every_curve(runs, tmp_path, capsys):
    report.main(report.Arguments(runs, out=tmp_path / "both.html"))
    assert capsys.readouterr().out == f"{tmp_path / 'both.html'}\n"
    page = Page(tmp_path / "both.html")
    settings = leaves(json.loads((runs[0] / "config.json").read_text()))
    assert f"2 of {settings} settings differ." in page.text
    assert "<tr><td>steps</td><td>30</td><td>20</td></tr>" in page.source
    assert "<tr><td>seed</td><td>3</td><td>4</td></tr>" in page.source
    assert "second: This run has not been evaluated." in page.text
    captions = dict(page.captions())
    assert list(captions) == [
        *SETS, "Invariance term", "Variance term", "Covariance term", "Learning rate",
        "Throughput, trajectories / s", "Effective rank", "Singular values",
    ]  # fmt: skip
    last = [json.loads((run / "metrics.jsonl").read_text().splitlines()[-1]) for run in runs]
    shown = re.fullmatch(r"At the last log step: first (\S+) and second (\S+)\.", captions["Variance term"])
    for text, metrics in zip(shown.groups(), last, strict=True):
        assert float(text) == pytest.approx(metrics["variance"], rel=5e-3)


@pytest.mark.posix
def test_runs_of_one_name_are_told_apart_by_their_paths(runs, tmp_path):
    (tmp_path / "first").symlink_to(runs[1])
    copied = tmp_path / "copy" / "first"
    copied.parent.mkdir()
    copied.mkdir()
    for name in ("config.json", "metrics.jsonl"):
        (copied / name).write_text((runs[1] / name).read_text())
    report.main(report.Arguments((runs[0], copied), out=tmp_path / "both.html"))
    assert f"{runs[0]} and {copied}" in Page(tmp_path / "both.html").text


def test_bad_input_is_one_line(tmp_path, runs):
    with pytest.raises(InputError, match="RUN: got 'none'"):
        report.main(report.Arguments(()))
    with pytest.raises(InputError, match=r"--out: .* cannot be written"):
        report.main(report.Arguments((runs[0],), out=tmp_path / "no" / "where.html"))
    done = finished("-m", "jepa_fast.report", tmp_path / "absent")
    assert done.returncode == 2
    assert (
        done.stderr == f"error: {tmp_path}/absent/config.json: no such file; expected a run folder with config.json\n"
    )


def test_a_report_says_where_stages_ended_and_what_they_froze(tmp_path, two_rooms):
    stages = (
        Stage(1, {"invariance": 0.0}),
        Stage(1, {"variance": 0.0, "covariance": 0.0}, ("encoder.agent", "encoder.wall")),
    )
    recipe = Recipe(model=JEPAConfig(channels=2, blocks=1, dim=8), stages=stages)
    config = RunConfig(
        preset="test", recipe=recipe, seed=0, steps=20, batch_size=8, amp="off", compile=False, device="cpu",
        data=str(two_rooms), loader="host", kernels="reference", sparse=True,
    )  # fmt: skip
    create_run(tmp_path / "run", config)
    train(config, tmp_path / "run")
    report.main(report.Arguments((tmp_path / "run",)))
    text = Page(tmp_path / "run" / "report.html").text
    assert "by VICReg: 0 invariance + 25 variance + 1 covariance up to step 10, then 25 invariance + 0 variance" in text
    assert "+ 0 covariance with encoder.agent and encoder.wall frozen up to step 20." in text


def test_other_data_than_two_rooms_come_with_their_targets_and_frames(tmp_path):
    random = np.random.default_rng(0)

    def episodes():
        for _ in range(24):
            frames = np.full((4, 3, 12, 18), 60, np.uint8)
            at = random.integers(0, 14, 4)
            for frame, column in zip(frames, at, strict=True):
                frame[:, 3:7, column : column + 4] = 250
            yield frames, random.normal(size=(3, 2)).astype(np.float32), {"column": at.astype(np.float32)}

    jepa_fast.pack(episodes(), tmp_path / "d/train", workers=1)
    run = tmp_path / "run"
    make_run(run, tmp_path / "d", recipe=Recipe(JEPAConfig(channels=4, blocks=1, dim=8, groups=(Group("frames", 3),))))
    evaluate(EvaluateArguments(run=run))
    report.main(report.Arguments((run,)))
    page = Page(run / "report.html")
    found = TargetEvaluation.load(run / TARGETS)
    assert found.words()[0] in page.text
    assert {"column", "Predicted latents", *(f"Trajectory {one.trajectory}" for one in found.retrievals)} <= {
        title for title, _ in page.captions()
    }
    pictures = [
        base64.b64decode(attributes["src"].partition(",")[2]) for tag, attributes in page.elements if tag == "img"
    ]
    assert len(pictures) == sum(2 * len(one.steps) for one in found.retrievals)
    image = imread(io.BytesIO(pictures[0]))
    assert image.shape[:2] == (12, 18)
    assert image[..., :3].min() == pytest.approx(60 / 255)
    assert image[..., :3].max() == pytest.approx(250 / 255)
    (run / TARGETS).write_text("{}")
    report.main(report.Arguments((run,)))
    assert "targets.json is damaged or was written by another version." in Page(run / "report.html").text
