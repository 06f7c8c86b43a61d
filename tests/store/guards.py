"""What no statement may do to a job, as triggers: the database itself then stops the statement that tries."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

from service.db.schema import quoted
from service.models import TERMINAL

_FORBIDDEN = {
    "a terminal row changed": f"OLD.status IN ({quoted(*TERMINAL)})",
    "a fence fell": "NEW.fence < OLD.fence",
}


def install_guards(path: Path) -> None:
    """Add the triggers to the database file."""
    engine = sa.create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        for number, (what, condition) in enumerate(_FORBIDDEN.items()):
            connection.exec_driver_sql(
                f"CREATE TRIGGER guard_{number} BEFORE UPDATE ON jobs WHEN {condition} "
                f"BEGIN SELECT RAISE(ABORT, '{what}'); END"
            )
    engine.dispose()
