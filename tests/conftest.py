import os

from hypothesis import settings

# No deadline: the first call of an op may compile or load a library. The same examples on every machine of the CI.
settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")
