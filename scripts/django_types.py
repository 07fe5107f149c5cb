"""Settings that mypy's plugin for Django reads (pyproject.toml): those of a datasite whose home is not kept."""

import os
import tempfile
from pathlib import Path

with tempfile.TemporaryDirectory() as folder:
    os.environ["DATASITES_HOME"] = folder
    (Path(folder) / "datasite.toml").write_text(
        'organisation = "A"\nemail = "datasite@a.example.org"\nstore = "store"\n'
    )
    from datasites.hospital.settings import *  # noqa: F403
