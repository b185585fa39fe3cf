"""Fixtures of the tests that need a hub."""

from remote_release import hub, planted, release  # noqa: F401
