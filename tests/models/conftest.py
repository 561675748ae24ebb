"""One family at a time, compiled once for all tests of a file."""

import pytest

from .families import SUBJECTS, Family, make_family


@pytest.fixture(scope="package", params=SUBJECTS)
def family(request: pytest.FixtureRequest) -> Family:
    return make_family(request.param)
