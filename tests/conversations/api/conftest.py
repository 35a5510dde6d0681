"""Async tests of the calls that wait for a model run on loops of their own."""

from tests.conversations.generation.conftest import people, pytest_pyfunc_call

__all__ = ["people", "pytest_pyfunc_call"]
