"""Where optional sample data lies: slides, schemas and golden steps the repository does not carry."""

import os
from pathlib import Path

import pytest

_REPOSITORY = Path(__file__).resolve().parents[2]


def sample(*parts: str) -> Path:
    """A file or folder of the sample data; skips the test, with the reason, where it is absent."""
    root = Path(os.environ.get("EOSIN_SAMPLE_DATA") or _REPOSITORY.parent / "shared")
    path = root.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"sample data {'/'.join(parts)} is absent (EOSIN_SAMPLE_DATA={root})")
    return path
