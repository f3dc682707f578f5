"""The two-room world as a Gymnasium environment, alone and vectorised: the generator's physics, bit for bit."""

from typing import Any, Literal

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from jepa_fast.data.two_rooms.world import WORLD, Float32, step
from jepa_fast.errors import require
from jepa_fast.planning.protocol import (
    LONGEST_ACTION_PX,
    PROTOCOLS,
    draw_episodes,
    frames_of,
    limited,
    rgb_frames,
)

Observation = Literal["channels", "rgb"]
Actions = NDArray[np.floating[Any]]


def observation_space(observation: Observation) -> gymnasium.spaces.Box:
    """Of one frame: "channels" float32 [2, 65, 65] in the data's range, "rgb" uint8 [65, 65, 3]."""
    side = WORLD.size
    if observation == "channels":
        return gymnasium.spaces.Box(0.0, 255 * np.float32(WORLD.scale), (2, side, side), np.float32)
    return gymnasium.spaces.Box(0, 255, (side, side, 3), np.uint8)


class _Rooms:
    """N agents, each in rooms of its own: what both environments do."""

    def __init__(self, protocol: str, observation: Observation, held_out: bool, count: int) -> None:
        require(protocol in PROTOCOLS, "protocol", protocol, f"one of {', '.join(PROTOCOLS)}")
        require(observation in ("channels", "rgb"), "observation", observation, "'channels' or 'rgb'")
        self.protocol, self.observation, self.held_out = PROTOCOLS[protocol], observation, held_out
        self.episodes = draw_episodes(1).rows(np.zeros(count, np.int64))
        self.locations = self.episodes.starts.copy()
        self.taken = np.zeros(count, np.int64)

    def begin(self, row: int, seed: int, number: int) -> None:
        """Put a row at the start of an episode."""
        drawn = draw_episodes(1, seed, self.held_out, number)
        for name, part in self.episodes._asdict().items():
            part[row] = getattr(drawn, name)[0]
        self.locations[row], self.taken[row] = self.episodes.starts[row], 0

    def move(self, actions: Actions, rows: NDArray[np.bool_]) -> None:
        """One action of each of these rows, shortened where it is too long."""
        moved = step(self.locations, limited(actions.astype(np.float32)), self.episodes.wall_x, self.episodes.door_y)
        self.locations[rows], self.taken[rows] = moved[rows], self.taken[rows] + 1

    def frames(self, locations: Float32) -> NDArray[Any]:
        """What is seen of agents at these locations."""
        draw = frames_of if self.observation == "channels" else rgb_frames
        return draw(locations, self.episodes.wall_x, self.episodes.door_y)

    def distances(self) -> Float32:
        """To the goals, in pixels."""
        gap = self.locations.astype(np.float64) - self.episodes.goals
        distances: Float32 = np.sqrt((gap**2).sum(axis=-1)).astype(np.float32)
        return distances

    def info(self) -> dict[str, NDArray[Any]]:
        """What an agent is not shown, and the goal's frame, which it is."""
        distances = self.distances()
        return {
            "location": self.locations.copy(),
            "goal": self.episodes.goals.copy(),
            "goal_frame": self.frames(self.episodes.goals),
            "wall_x": self.episodes.wall_x.copy(),
            "door_y": self.episodes.door_y.copy(),
            "distance": distances,
            "is_success": distances < self.protocol.success_px,
            "episode_number": self.episodes.numbers.copy(),
        }

    def rewards(self) -> NDArray[np.float64]:
        """1 within the protocol's distance of the goal, else 0."""
        return (self.distances() < self.protocol.success_px).astype(np.float64)


class TwoRooms(gymnasium.Env[NDArray[Any], Actions]):
    """An agent that has to get from one room to the other: `gymnasium.make("jepa_fast/TwoRooms-v0")`.

    Actions are (x, y) in pixels, shortened to LONGEST_ACTION_PX: the physics is that of
    `jepa_fast.data.two_rooms.step`. The goal is a frame, `info["goal_frame"]`. The reward is 1 within the protocol's
    distance of the goal and 0 elsewhere; an episode is truncated when its budget is spent and never ends before.

    `reset(seed=s)` starts episode 0 of seed s, every further `reset()` the next one of it;
    `reset(options={"episode": n})` starts episode n. They are the episodes of `jepa_fast.planning.protocol`.
    """

    # Gymnasium declares it as an instance's.
    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(
        self,
        protocol: str = "cross_room",
        observation: Observation = "channels",
        held_out: bool = False,
        render_mode: str | None = None,
    ) -> None:
        """Make the environment.

        Args:
            protocol: "cross_room" or "strict": the budget and when an episode has succeeded.
            observation: "channels", what models are trained on, or "rgb".
            held_out: put the wall where it never stands in training.
            render_mode: None or "rgb_array".

        Raises:
            InputError: an argument that there is not.
        """
        require(render_mode in (None, "rgb_array"), "render_mode", render_mode, "None or 'rgb_array'")
        self._rooms = _Rooms(protocol, observation, held_out, 1)
        self.render_mode = render_mode
        self.observation_space = observation_space(observation)
        self.action_space = gymnasium.spaces.Box(-LONGEST_ACTION_PX, LONGEST_ACTION_PX, (2,), np.float32)
        self._seed, self._number = 0, -1

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        """The first frame of the next episode; see the class."""
        super().reset(seed=seed)
        self._number += 1
        if seed is not None:
            self._seed, self._number = seed, 0
        self._number = (options or {}).get("episode", self._number)
        self._rooms.begin(0, self._seed, self._number)
        return self._frame(), self._info()

    def step(self, action: Actions) -> tuple[NDArray[Any], float, bool, bool, dict[str, Any]]:
        """The frame after an action [2], the reward, False, whether the budget is spent, and `info`."""
        self._rooms.move(np.asarray(action)[None], np.ones(1, np.bool_))
        truncated = bool(self._rooms.taken[0] >= self._rooms.protocol.budget)
        return self._frame(), float(self._rooms.rewards()[0]), False, truncated, self._info()

    def render(self) -> NDArray[Any] | None:
        """The present frame for people, uint8 [65, 65, 3]; None without a render mode."""
        if self.render_mode is None:
            return None
        episodes = self._rooms.episodes
        frame: NDArray[Any] = rgb_frames(self._rooms.locations, episodes.wall_x, episodes.door_y)[0]
        return frame

    def _frame(self) -> NDArray[Any]:
        frame: NDArray[Any] = self._rooms.frames(self._rooms.locations)[0]
        return frame

    def _info(self) -> dict[str, Any]:
        return {name: value[0] for name, value in self._rooms.info().items()}


class TwoRoomsVector(gymnasium.vector.VectorEnv[NDArray[Any], Actions, NDArray[Any]]):
    """Many of `TwoRooms` in one array: `gymnasium.make_vec("jepa_fast/TwoRooms-v0", num_envs=n)`.

    Row i walks the episodes i, i + n, i + 2 n, ... of the seed. A row whose budget is spent starts its next episode
    with the next step, whose action it ignores, as Gymnasium's own vector environments do.
    """

    metadata = {**TwoRooms.metadata, "autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012

    def __init__(
        self,
        num_envs: int = 1,
        protocol: str = "cross_room",
        observation: Observation = "channels",
        held_out: bool = False,
        render_mode: str | None = None,
    ) -> None:
        """Arguments as those of `TwoRooms`.

        Raises:
            InputError: an argument that there is not.
        """
        require(num_envs >= 1, "num_envs", num_envs, "at least 1")
        require(render_mode in (None, "rgb_array"), "render_mode", render_mode, "None or 'rgb_array'")
        self._rooms = _Rooms(protocol, observation, held_out, num_envs)
        self.num_envs, self.render_mode = num_envs, render_mode
        self.single_observation_space = observation_space(observation)
        self.single_action_space = gymnasium.spaces.Box(-LONGEST_ACTION_PX, LONGEST_ACTION_PX, (2,), np.float32)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._seed, self._numbers = 0, np.arange(num_envs)
        self._is_over = np.zeros(num_envs, np.bool_)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        """The first frames [N, ...] of episodes 0 to N - 1 of the seed, or of those in options["episode"] [N]."""
        super().reset(seed=seed)
        self._seed = self._seed if seed is None else seed
        self._numbers = np.array((options or {}).get("episode", np.arange(self.num_envs)))
        for row, number in enumerate(self._numbers):
            self._rooms.begin(row, self._seed, int(number))
        self._is_over[:] = False
        return self._rooms.frames(self._rooms.locations), self._rooms.info()

    def step(
        self, actions: Actions
    ) -> tuple[NDArray[Any], NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Frames, rewards, no terminations, truncations and `info` after one action [2] of each row."""
        rewarded = ~self._is_over
        self._rooms.move(np.asarray(actions), rewarded)
        for row in np.flatnonzero(self._is_over).tolist():
            self._numbers[row] += self.num_envs
            self._rooms.begin(row, self._seed, int(self._numbers[row]))
        self._is_over = self._rooms.taken >= self._rooms.protocol.budget
        frames, rewards = self._rooms.frames(self._rooms.locations), self._rooms.rewards() * rewarded
        return frames, rewards, np.zeros(self.num_envs, np.bool_), self._is_over.copy(), self._rooms.info()

    def render(self) -> tuple[NDArray[Any], ...] | None:
        """The present frames for people."""
        if self.render_mode is None:
            return None
        episodes = self._rooms.episodes
        return tuple(rgb_frames(self._rooms.locations, episodes.wall_x, episodes.door_y))
