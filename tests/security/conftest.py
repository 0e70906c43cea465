"""The command inside the test's own process, as in tests/integration."""

from tests.integration.conftest import Call, call

__all__ = ["Call", "call"]
