"""Run a test on both packages: `pkg` is one of them."""

from typing import Any

import pytest

from models import PACKAGES, package


@pytest.fixture(params=PACKAGES)
def pkg(request: pytest.FixtureRequest) -> Any:
    return package(request.param)
