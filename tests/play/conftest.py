from tests.browsing import browser, visit

__all__ = ["browser", "visit"]
