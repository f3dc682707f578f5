"""The commands and Python blocks that pages and docstrings show, and how each is run small."""

import ast
import re
import textwrap
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md")])
SOURCES = [
    path
    for folder in ("jepa_fast", "kernels", "research", "scripts", "bench", "examples")
    for path in sorted((ROOT / folder).rglob("*.py"))
]
STARTS = ("python ", "make ", "torchrun ", "pip ", "pytest ", "nsys ", "scripts/", "bash ")


# What the examples of docstrings take for granted.
OPEN_NAMES = """
import numpy as np
import torch
from torch import nn
from jepa_fast.models.convnext import Branch
from jepa_fast.models.jepa import JEPA
from jepa_fast.models.predictor import MLPPredictor
from jepa_fast.models.window_encoder import WindowEncoder
from jepa_fast.objectives.vicreg import VICReg

class MyEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(3 * 24 * 24, 128))

    def forward(self, frames):
        return self.layers(frames)

episodes = [(np.zeros((17, 3, 24, 24), np.uint8), np.zeros((16, 7), np.float32))] * 64
branch, base_images = Branch(channels=4, blocks=1, dim=8), torch.zeros(1, 1, 65, 65)
windows, corners, groups = torch.rand(2, 1, 10, 10), torch.tensor([[0, 0], [20, 30]]), torch.zeros(2, dtype=torch.long)
first_frame, goal_frame = torch.rand(2, 3, 24, 24)
"""


class Shown(NamedTuple):
    """A command, or a Python block, and the places that show it."""

    text: str
    places: tuple[str, ...]


class Rule(NamedTuple):
    """How commands that match `pattern` are run: flags that make them small, or why they are not."""

    pattern: str
    add: str = ""
    instead: str | None = None  # what runs in their place
    skip: str | None = None


# Words that stand for something, and what they stand for here.
STAND_INS = {
    r"\[[^]]*\]": "",  # flags that may be left out
    r"\.\.\.$": "",
    r"\bRUN\b|runs/[\w-]+": "runs/first",
    r"--check DIR\b": "--check bench/results/amd-epyc-avx-512-2-threads",
    r"\bDIR\b": "data/full",
    r"\bPRESET\b": "gated_features",
    r"--nproc-per-node \w+": "--nproc-per-node 2",
    r" --benchmark-json=\S+": "",
}
MEASURES = "measures for minutes"
DATA = "--data data/full --data.batch-size 4"
NARROW = "--model.channels 4 --model.blocks 1"
# The first rule that matches is taken. OUT is a folder of the command's own that does not exist yet. A flag that is
# added takes the place of the same flag in the command.
RULES = (
    Rule(r"pip (install|download)", skip="installs; tests/test_build.py builds and installs the package"),
    Rule(r"nsys ", skip="needs Nsight Systems and a GPU"),
    Rule(r"scripts/gpu_check\.sh", skip="needs a GPU; tests/test_gpu_check.py runs it on a stand-in"),
    Rule(
        r"python -m (scripts\.gpu_steps|tests\.fake_cuda)", skip="tests/fake_cuda/test_gpu_check.py runs what they run"
    ),
    Rule(r"python scripts/extras\.py"),
    Rule(r"python scripts/torture\.py", skip="kills a run 20 times: minutes"),
    Rule(r"python -m (MODULE|jepa_fast\.NAME)", skip="stands for any command"),
    Rule(r"python -m bench\.bench_(captured|loop)", skip=MEASURES),
    Rule(r"python -m research\.speedrun .*--rescore", skip="probes stored weights on the full data set"),
    Rule(r"python -m research\.planner_ablation", skip="trains for minutes"),
    Rule(r"python -m research\.peer_protocol", skip="plans for minutes"),
    Rule(r"python -m research\.planning_table", add="--help"),
    Rule(r"python -m research\.preset_records .*--curve", skip="trains for minutes"),
    Rule(r"python -m research\.same_loss_curve", skip="trains for minutes"),
    Rule(r"python -m research\.stream_million", skip="writes 6.2 GB"),
    Rule(r"python -m research\.world_statistics", skip="simulates for minutes"),
    Rule(r"make ", add="--dry-run"),
    Rule(r".*--help"),
    # Named without what they need.
    Rule(
        r"python -m (jepa_fast\.(generate|convert|evaluate|plan|report|export|verify)|research\.(speedrun|study))$",
        add="--help",
    ),
    Rule(
        r"python -m scripts\.triton_gates", skip="compiles every Triton kernel; tests/test_triton_gates.py runs parts"
    ),
    Rule(r"python -m scripts\.triton_floors"),
    Rule(r"python -m jepa_fast\.export .*--onnx", skip="needs an extra; tests/test_inputs.py writes and compares them"),
    Rule(r"python -m jepa_fast\.generate", add="--trajectories 4 --workers 1 --out OUT"),
    Rule(r"python -m jepa_fast\.convert", add="--out OUT"),
    Rule(r"python -m jepa_fast\.export .*", add="--out OUT"),
    Rule(r"python -m jepa_fast\.play", add="--out play.html"),
    Rule(r"python -m jepa_fast\.(verify|report|doctor)"),
    Rule(r"python -m jepa_fast\.evaluate", add="--no-floor"),
    Rule(
        r"python -m jepa_fast\.plan",
        add="--episodes 1 --settings.first-samples 20 --settings.samples 20 --settings.first-iterations 1"
        " --settings.horizon 4 --out OUT",
    ),
    Rule(r"scripts/profile\.sh", add=f"{DATA} {NARROW} --steps 4 --profile-window 2 4"),
    Rule(r"python -m jepa_fast\.train .*--resume"),
    Rule(r"python -m jepa_fast\.train .*--minutes", add=f"{DATA} --preset gated_features --minutes 0.06 --out OUT"),
    Rule(
        r"python -m jepa_fast\.train .*--profile torch", add=f"{DATA} {NARROW} --steps 3 --profile-window 1 2 --out OUT"
    ),
    Rule(r"python -m jepa_fast\.train .*--preset gated_(features|pixels)", add=f"{DATA} --steps 2 --out OUT"),
    Rule(r"python -m jepa_fast\.train", add=f"{DATA} {NARROW} --steps 2 --out OUT"),
    Rule(r"torchrun .*jepa_fast\.train", add=f"{DATA} {NARROW} --steps 2 --out OUT"),
    Rule(r"python examples/", skip="tests/test_examples.py runs them, small"),
    Rule(r"python -m bench\.bench_vicreg", instead="python -m bench.bench_vicreg 32 8"),
    Rule(r"python -m bench\.loader_contenders", skip="bench/bench_loader.py starts it and speaks to it"),
    Rule(r"(\w+=\S+ )?(python -m )?pytest ", add="--collect-only --quiet"),
    Rule(r"python -m scripts\.bench_table"),
    Rule(r"python -m research\.speedrun --check$", add="research/records/speedrun/r1.jsonl"),
    Rule(r"python -m research\.speedrun --check"),
    Rule(
        r"(\w+=\S+ )?python -m research\.speedrun --target",
        add="--steps 3 --checks 1 --seeds 0 --data.batch-size 4 --name tiny --out OUT",
    ),
    Rule(r"python -m research\.study (ideas|NAME)", instead="python -m research.study ideas --draw"),
    Rule(r"python -m research\.preset_records"),
    Rule(r"python -m research\.(draw_docs|draw_sparse_encoding|loader_table|model_tables|speedrun_page)$"),
)


def commands() -> list[Shown]:
    """Every command that a page or a docstring shows, once."""
    found: dict[str, list[str]] = {}
    for place, text in texts():
        for command in commands_in(text):
            found.setdefault(command, []).append(place)
    return [Shown(command, tuple(dict.fromkeys(places))) for command, places in sorted(found.items())]


def blocks() -> list[Shown]:
    """Every fenced Python block of a page, and the indented ones of docstrings behind names that they leave open."""
    found = []
    for page in PAGES:
        for number, block in enumerate(re.findall(r"^```python\n(.*?)^```$", page.read_text(), flags=re.M | re.S)):
            found.append(Shown(block, (f"{page.relative_to(ROOT)}, block {number + 1}",)))
    for place, text in docstrings():
        for number, block in enumerate(re.findall(r"(?:^    .*\n?|^\n)+", f"{text}\n", flags=re.M)):
            if is_python(code := textwrap.dedent(block)):
                found.append(Shown(OPEN_NAMES + code, (f"{place}, block {number + 1}",)))
    return found


def is_python(code: str) -> bool:
    """Whether it is Python that calls something; formulas, commands and tables are not."""
    try:
        return any(isinstance(node, ast.Call) for node in ast.walk(ast.parse(code)))
    except SyntaxError:
        return False


def texts() -> list[tuple[str, str]]:
    """Pages without their Python blocks, and docstrings, each with its place."""
    pages = [
        (str(page.relative_to(ROOT)), re.sub(r"^```python\n.*?^```$", "", page.read_text(), flags=re.M | re.S))
        for page in PAGES
    ]
    return pages + docstrings()


def docstrings() -> list[tuple[str, str]]:
    """Every docstring, with the place of its file."""
    return [
        (str(path.relative_to(ROOT)), ast.get_docstring(node) or "")
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
    ]


def commands_in(text: str) -> list[str]:
    """The commands in a text: indented or fenced lines, and code between backquotes."""
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    fenced = False
    shown = []
    for line in lines:
        if line.startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            shown.append(line.strip())
    shown += re.findall(r"(?<!`)`([^`]+)`(?!`)", text)
    found = []
    for line in shown:
        command = " ".join(re.sub(r"(^|\s+)#\s.*$", "", line).split())
        bare = re.sub(r"^[A-Z_]+=\S+ ", "", command)
        # A name alone, such as a script's in a sentence, is no command.
        if bare.startswith(STARTS) and " " in bare and "<" not in bare:
            found.append(command)
    return found


def small(command: str) -> str | Rule | None:
    """The command to run for one that is shown; the rule where it is not to be run; None where no rule matches."""
    rule = next((rule for rule in RULES if re.match(rule.pattern, command)), None)
    if rule is None or rule.skip is not None:
        return rule
    shown = command if rule.instead is None else rule.instead
    for pattern, stand_in in STAND_INS.items():
        shown = re.sub(pattern, stand_in, shown)
    for flag in re.findall(r"(?:^| )--([\w.-]+)", rule.add):
        shown = re.sub(rf" --{re.escape(flag)} [^-\s]\S*", "", shown)
    return " ".join([*shown.split(), *rule.add.split()])
