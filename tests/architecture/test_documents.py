"""The documents say what the code says."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import pytest

from service.models import TRANSITIONS, JobStatus
from service.settings import Settings

from .walls import ROOT, SERVICE

ARCHITECTURE = (ROOT / "docs/architecture.md").read_text()
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


def drawn_moves(document: str) -> dict[str, set[str]]:
    """The arrows of the state diagram; `[*]` is the outside."""
    diagram = re.search(r"```mermaid\nstateDiagram-v2\n(.*?)```", document, re.DOTALL)
    assert diagram, "there is no state diagram"
    moves = defaultdict(set)
    for source, target in re.findall(r"^\s*(\S+) --> (\S+)", diagram[1], re.MULTILINE):
        moves[source].add(target)
    return moves


def test_the_state_diagram_draws_exactly_the_legal_moves() -> None:
    legal = {str(source): {str(target) for target in targets} or {"[*]"} for source, targets in TRANSITIONS.items()}
    assert drawn_moves(ARCHITECTURE) == legal | {"[*]": {str(JobStatus.PENDING)}}


def test_the_file_map_names_every_module_and_nothing_else() -> None:
    file_map = ARCHITECTURE.partition("## File map")[2]
    named = set(re.findall(r"`(service/\w+(?:\.py|/))`", file_map))
    present = {f"service/{path.name}" for path in SERVICE.glob("*.py")} - {"service/__init__.py"}
    present |= {f"service/{path.parent.name}/" for path in SERVICE.glob("*/__init__.py")}
    assert named == present


@pytest.mark.parametrize("setting", sorted(Settings.model_fields))
def test_every_setting_is_documented(setting: str) -> None:
    name = f"JOBSERVICE_{setting.upper()}"
    assert any(re.search(rf"\b{name}\b", document.read_text()) for document in DOCUMENTS), f"{name} is in no document"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_document_names_only_settings_that_exist(document: Path) -> None:
    # Clients have two of their own, and tests one.
    known = {f"JOBSERVICE_{name.upper()}" for name in Settings.model_fields} | {
        "JOBSERVICE_URL",
        "JOBSERVICE_API_KEY",
        "JOBSERVICE_FAILPOINTS",
    }
    assert set(re.findall(r"\bJOBSERVICE_[A-Z_]*[A-Z]\b", document.read_text())) <= known


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_between_documents_lead_somewhere(document: Path) -> None:
    targets = re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", document.read_text())
    assert [target for target in targets if not (document.parent / target).exists()] == []


def test_every_decision_record_has_the_next_number_and_the_same_parts() -> None:
    records = sorted((ROOT / "docs/adr").glob("*.md"))
    assert [record.name[:4] for record in records] == [f"{number:04d}" for number in range(1, len(records) + 1)]
    for record in records:
        text = record.read_text()
        assert text.startswith(f"# {int(record.name[:4])}. "), record.name
        assert re.findall(r"^## (.+)$", text, re.MULTILINE) == ["Context", "Decision", "Consequences"], record.name


def test_the_gate_runs_the_test_command_of_the_readme() -> None:
    lines = [line for line in (ROOT / ".ci/run").read_text().splitlines() if not line.startswith("#")]
    assert re.findall(r"\bmake (\w+)", "\n".join(lines)) == ["check", "test", "test"]
    assert re.search(r"^(\$ )?make test\b", (ROOT / "README.md").read_text(), re.MULTILINE)


def test_the_lock_names_no_address_and_pins_every_part_by_hash() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    assert "://" not in lock
    assert not re.search(r"^\s*-", re.sub(r"^\s+--hash=sha256:[0-9a-f]{64}.*$", "", lock, flags=re.MULTILINE), re.M)
    for requirement in re.split(r"\n(?=\S)", lock.strip()):
        assert re.match(r"[a-z0-9.-]+==[^ ]+ ", requirement), requirement[:60]
        assert "--hash=sha256:" in requirement, requirement[:60]


def test_make_help_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony
    described = set(re.findall(r"^([a-z-]+):.*?## \S", makefile, re.MULTILINE))
    assert described == set(phony[1].split())
