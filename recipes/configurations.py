"""The configurations that come with the package."""

from pathlib import Path

_CONFIGS = Path(__file__).parent / "configs"


def configs() -> dict[str, Path]:
    """The configurations that come with the package, by name; that of a sweep is not one."""
    files = sorted(_CONFIGS.glob("*.yaml"))
    return {file.stem: file for file in files if file.stem != "sweep"}
