"""What a run found, to compare it with another's."""

from typing import Any

from engine.records import Run

CIRCUMSTANCES = ("seconds", "reused")


def content(run: Run) -> dict[str, Any]:
    """All that a run found, without its circumstances."""
    certificates, report = run.need_certificates(), run.need_report()
    return {
        "certificates": certificates.to_json(double_precision=15),
        "poison": (run.directory / "poison.safetensors").read_bytes(),
        "victims": {path.name: path.read_bytes() for path in (run.directory / "victims").iterdir()},
        "report": {key: value for key, value in report.items() if key not in CIRCUMSTANCES},
    }
