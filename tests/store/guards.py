"""What no statement may do to a job, as triggers: the database itself then stops the statement that tries."""

from __future__ import annotations

from service.db.schema import quoted
from service.models import TERMINAL
from tests.conftest import sql

_FORBIDDEN = {
    "a terminal row changed": f"OLD.status IN ({quoted(*TERMINAL)})",
    "a fence fell": "NEW.fence < OLD.fence",
}


def install_guards(url: str) -> None:
    """Add the triggers to a database."""
    for number, (what, condition) in enumerate(_FORBIDDEN.items()):
        begin = f"CREATE TRIGGER guard_{number} BEFORE UPDATE ON jobs"
        if url.startswith("sqlite"):
            sql(url, f"{begin} WHEN {condition} BEGIN SELECT RAISE(ABORT, '{what}'); END")
            continue
        refusal = f"RAISE EXCEPTION '{what}' USING ERRCODE = 'integrity_constraint_violation'"
        sql(url, f"CREATE FUNCTION guard_{number}() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN {refusal}; END$$")
        sql(url, f"{begin} FOR EACH ROW WHEN ({condition}) EXECUTE FUNCTION guard_{number}()")
