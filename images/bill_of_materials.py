"""Bill of materials of an image in CycloneDX: every Python and Debian package in it. Run while it is built.

python images/bill_of_materials.py [FILE]
"""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

PLACE = Path("/usr/share/sbom/eosin.cdx.json")
"""Where it lies in every image."""


def bill() -> dict[str, Any]:
    """A CycloneDX 1.5 document of this interpreter's packages and the system's."""
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": {"type": "application", "name": "eosin", **_version("eosin")}},
        "components": [*_python_packages(), *_debian_packages()],
    }


def _python_packages() -> list[dict[str, Any]]:
    found = {}
    for package in importlib.metadata.distributions():
        name = package.metadata["Name"].lower().replace("_", "-")
        licence = package.metadata.get("License-Expression") or ""
        entry = {"type": "library", "name": name, "version": package.version}
        entry["purl"] = f"pkg:pypi/{name}@{package.version}"
        found[name] = {**entry, **({"licenses": [{"expression": licence}]} if licence else {})}
    return [found[name] for name in sorted(found)]


def _debian_packages() -> list[dict[str, Any]]:
    query = ["dpkg-query", "--show", "--showformat", "${Package}\t${Version}\t${Architecture}\n"]
    try:
        listed = subprocess.run(query, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return []
    rows = [line.split("\t") for line in sorted(listed.splitlines())]
    return [
        {"type": "library", "name": name, "version": version,
         "purl": f"pkg:deb/debian/{name}@{version}?arch={architecture}"}
        for name, version, architecture in rows
    ]  # fmt: skip


def _version(name: str) -> dict[str, str]:
    try:
        return {"version": importlib.metadata.version(name)}
    except importlib.metadata.PackageNotFoundError:
        return {}


if __name__ == "__main__":
    place = Path(sys.argv[1]) if len(sys.argv) > 1 else PLACE
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(json.dumps(bill(), indent=1) + "\n")
