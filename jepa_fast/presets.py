"""Named recipes, as plain functions."""

from collections.abc import Callable
from dataclasses import replace

from jepa_fast.config import (
    DynamicsConfig,
    GatedConvNeXtConfig,
    GatedFeaturesConfig,
    GatedPixelsConfig,
    GlimpseConfig,
    InfoNCEConfig,
    JEPAConfig,
    MixtureConfig,
    OptimizerConfig,
    Recipe,
    Stage,
    VICRegConfig,
)
from jepa_fast.errors import InputError


def explorejepa_writeup() -> Recipe:
    """The recipe of the original report: 30 + 5 epochs, residual on the normalised state alone.

    The report gives the stages' purpose, not their weights: first the variance term above the invariance term, then
    the invariance raised. The figures below are ours.
    """
    return Recipe(
        model=JEPAConfig(residual="state"),
        objective=VICRegConfig(invariance=15.0),
        stages=(Stage(30), Stage(5, {"invariance": 30.0})),
    )


def explorejepa_repo() -> Recipe:
    """The recipe of the original code: 50 + 50 epochs, residual on normalised state plus normalised action."""
    return Recipe(stages=(Stage(50), Stage(50, {"invariance": 30.0})))


def baseline() -> Recipe:
    """The 293,344-parameter model, with the recipe that every idea is measured against: one epoch in short steps.

    The rate is six times the published one and the targets take no gradient, which finds the agent within hundreds of
    steps, where the published recipes first collapse and need thousands to recover.
    """
    return Recipe(
        objective=VICRegConfig(targets="stop_gradient", sides="both"),
        optimizer=OptimizerConfig(learning_rate=3e-3),
        batch_size=32,
        stages=(Stage(1),),
    )


def generic() -> Recipe:
    """Frames of any channels and size, actions of any size: where to start with data of your own.

    The baseline with a stem of patches that goes by the size of the frame, 16 to 31 of them along its shorter side, and
    pixels that go by the data's largest value. What a branch reads is standardised over the batch: of most frames most
    pixels never change, and latents would be the same but for little. No dropout.
    """
    return Recipe(
        model=JEPAConfig(channels=32, dropout=0.0, stride=None, white=None, batch_norm=True),
        objective=VICRegConfig(targets="stop_gradient", sides="both"),
        optimizer=OptimizerConfig(learning_rate=1e-3, weight_decay=0.0, clip_norm=1.0),
        batch_size=32,
        stages=(Stage(20),),
    )


def larger() -> Recipe:
    """The baseline with twice the blocks and twice the channels, 507,968 parameters. States stay 128 long."""
    return replace(baseline(), model=JEPAConfig(channels=32, blocks=4))


def no_bias() -> Recipe:
    """The baseline without a bias anywhere, which leaves weights no constant to collapse to."""
    return replace(baseline(), model=JEPAConfig(bias=False))


def no_norm_before_add() -> Recipe:
    """The baseline with its branches' states added as they are: the first norm is that of the sum, in the predictor."""
    return replace(baseline(), model=JEPAConfig(norm_before_add=False))


def norm_after_add() -> Recipe:
    """The baseline with one norm of the branches' sum in place of one of each branch."""
    return replace(baseline(), model=JEPAConfig(norm_before_add=False, norm_after_add=True))


def dense_predictor() -> Recipe:
    """The baseline whose predictor also reads the four states before, halved for every step of age."""
    return replace(baseline(), model=JEPAConfig(history=4, history_decay=0.5))


def softargmax() -> Recipe:
    """The baseline with branches that read off where things are, not how much there is in 6 x 6 cells."""
    return replace(baseline(), model=JEPAConfig(head="softargmax"))


def fusion() -> Recipe:
    """The baseline with a third branch that reads both channels at once, 373,216 parameters."""
    return replace(baseline(), model=JEPAConfig(fusion=True))


def short_rollouts() -> Recipe:
    """The baseline's model on rollouts of four steps: states that are nearly linear, then prediction alone.

    A covariance term at full weight spreads two coordinates over 128 decorrelated dimensions, which no predictor
    follows far; here it only tells dimensions apart. Once states are spread, the norms of both branches hold them: what
    is left of the variance term is a guard, without which one of two seeds collapsed in a single step. Dropout is off,
    its noise is as large as a step.
    """
    return replace(
        baseline(),
        model=JEPAConfig(dropout=0.0),
        objective=VICRegConfig(variance=0.2, covariance=0.0, targets="stop_gradient", sides="both", horizon=4),
        stages=(
            Stage(0.25, {"variance": 25.0, "covariance": 0.002}),
            Stage(0.5),
            Stage(0.25, frozen=("encoder.agent",)),
        ),
    )


def gated_convnext() -> Recipe:
    """The wall beside the state: carried, read by the predictor, not predicted (docs/models.md).

    2.4 epochs of the full set of 147,008 trajectories are meant, 2,755 steps: a sixth of them with a constant gate, the
    others, at half the price, with states that stand still.
    """
    return Recipe(
        model=GatedConvNeXtConfig(),
        objective=MixtureConfig(first_sigma=0.5, last_sigma=0.2),
        optimizer=OptimizerConfig(learning_rate=3e-3, weight_decay=0.0, clip_norm=1.0),
        batch_size=128,
        # Mirrored, walls stand where no wall of the data does: what a wall means is learned, not which walls there are.
        flips=True,
        # First where the agent is, then its collisions. Nothing can collapse that follows moves of one length.
        stages=(
            Stage(0.4, frozen=("encoder.wall", "predictor.gate")),
            Stage(2.0, frozen=("encoder.agent", "predictor.action"), restarts=True),
        ),
    )


def gated_features() -> Recipe:
    """5,056 parameters on features read from pixels, one step at a time (docs/models.md).

    Four epochs of the full set of 147,008 trajectories are meant, 4,592 steps.
    """
    return Recipe(
        model=GatedFeaturesConfig(),
        objective=MixtureConfig(),
        optimizer=OptimizerConfig(learning_rate=1e-2, weight_decay=0.0, clip_norm=1.0),
        batch_size=128,
        stages=(Stage(4),),
    )


def gated_pixels() -> Recipe:
    """24,082 parameters that learn from pixels where the agent is and what it collides with (docs/models.md).

    Four epochs of the full set of 147,008 trajectories are meant, 4,592 steps, an eighth of them to find the agent.
    """
    return Recipe(
        model=GatedPixelsConfig(),
        objective=MixtureConfig(variance=10.0, covariance=1.0, first_sigma=0.5),
        optimizer=OptimizerConfig(learning_rate=5e-3, weight_decay=0.0, clip_norm=1.0),
        batch_size=128,
        # First the agent is found, then what it does: a gate that learns while nothing moves closes and may stay so.
        stages=(Stage(0.5, {"nll": 0.0}), Stage(3.5)),
    )


def planner() -> Recipe:
    """Latents to plan with: a predictor that looks at the first frame where the latent says (docs/planning.md).

    1.3 epochs of the full set of 147,008 trajectories are meant, 3,000 steps.
    """
    return Recipe(
        model=GlimpseConfig(),
        objective=DynamicsConfig(),
        optimizer=OptimizerConfig(learning_rate=3e-3, weight_decay=0.0, clip_norm=1.0),
        batch_size=64,
        flips=True,
        stages=(Stage(1.306),),
    )


def flips() -> Recipe:
    """The baseline on trajectories mirrored at random, left-right and upside down, with their actions."""
    return replace(baseline(), flips=True)


def infonce() -> Recipe:
    """The baseline with a contrastive energy, InfoNCE, in place of VICReg's three terms."""
    return replace(baseline(), objective=InfoNCEConfig())


def staged() -> Recipe:
    """The baseline in three stages: states are spread, then predicted, then predicted with the agent's encoder frozen.

    The order is that of the best public run on this task; shares are ours.
    """
    return replace(
        baseline(),
        objective=VICRegConfig(variance=0.0, covariance=0.0, targets="stop_gradient", sides="both"),
        stages=(
            Stage(0.125, {"invariance": 0.0, "variance": 25.0, "covariance": 1.0}),
            Stage(0.625),
            Stage(0.25, frozen=("encoder.agent",)),
        ),
    )


PRESETS: dict[str, Callable[[], Recipe]] = {
    "explorejepa_writeup": explorejepa_writeup,
    "explorejepa_repo": explorejepa_repo,
    "baseline": baseline,
    "generic": generic,
    "larger": larger,
    "no_bias": no_bias,
    "no_norm_before_add": no_norm_before_add,
    "norm_after_add": norm_after_add,
    "dense_predictor": dense_predictor,
    "softargmax": softargmax,
    "fusion": fusion,
    "short_rollouts": short_rollouts,
    "gated_convnext": gated_convnext,
    "gated_features": gated_features,
    "gated_pixels": gated_pixels,
    "planner": planner,
    "flips": flips,
    "infonce": infonce,
    "staged": staged,
}
# What trains where no preset is named: on the default set 400 steps, minutes on two cores, and nothing collapses.
DEFAULT_PRESET = "baseline"
# Names that presets had once, which stored runs and records go on using, or have beside their own.
ALIASES = {
    "demo": DEFAULT_PRESET,
    "wall_apart": "gated_convnext",
    "features20k": "gated_features",
    "pixels300k": "gated_pixels",
}


def canonical(name: str) -> str:
    """The name that the preset called `name` goes by now; `name` itself where there is none."""
    return ALIASES.get(name, name)


def preset(name: str) -> Recipe:
    """The recipe called `name`, or called so once.

    Raises:
        InputError: there is none of that name.
    """
    if canonical(name) not in PRESETS:
        raise InputError(f"--preset: got {name!r}, expected one of {', '.join(sorted(PRESETS))}", listing())
    return PRESETS[canonical(name)]()


def listing() -> str:
    """All presets, a line each: the name, and what its recipe is."""
    width = max(map(len, PRESETS))
    lines = []
    for name, recipe in PRESETS.items():
        summary = (recipe.__doc__ or "").strip().splitlines()[0]
        others = [alias for alias, meant in ALIASES.items() if meant == name]
        lines.append(f"  {name:<{width}}  {summary}" + (f" (also {', '.join(others)})" if others else ""))
    return "\n".join(lines)
