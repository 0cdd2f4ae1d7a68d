"""The project's configuration, ready to be composed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hydra import initialize_config_dir

from conf import identity, schema
from tests.conf.composing import CONF


@pytest.fixture
def registered() -> Iterator[None]:
    schema.register()
    identity.register()
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        yield
