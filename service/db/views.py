"""The reporting contract: the `report_*` views, created anew after every migration."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Final

import sqlalchemy as sa

from service.db.view_versions import v2

# A view is added, or one changed, in a module for the next version; those before stay as they were promised.
_VIEWS: Final = v2.VIEWS

# 0 where a clock was put back between the two.
_SECONDS: Final[Mapping[str, str]] = {
    "sqlite": "CASE WHEN {end} < {start} THEN 0.0 ELSE round((julianday({end}) - julianday({start})) * 86400.0, 3) END",
    "postgresql": "CASE WHEN {end} < {start} THEN 0.0"
    " ELSE round(extract(epoch FROM {end} - {start}), 3)::double precision END",
}
_DURATION: Final = re.compile(r"\{seconds\((?P<start>[\w.]+), (?P<end>[\w.]+)\)\}")

_GRANTS: Final = """
    SELECT relname, CASE grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grantee)) END, is_grantable
    FROM pg_class, aclexplode(relacl)
    WHERE relnamespace = current_schema()::regnamespace AND relkind = 'v' AND privilege_type = 'SELECT'
          AND grantee <> relowner"""


@dataclasses.dataclass(frozen=True, slots=True)
class Grant:
    """Who else may read a view."""

    view: str
    grantee: str  # as SQL spells it
    may_grant: bool


def view_names() -> tuple[str, ...]:
    """Every view of the contract."""
    return tuple(_VIEWS)


def drop_views(connection: sa.Connection) -> Sequence[Grant]:
    """Take the views away, so that a migration may rebuild the tables beneath them; who might read them."""
    if connection.dialect.name == "postgresql":
        grants = [Grant(*row) for row in connection.exec_driver_sql(_GRANTS)]
    else:
        grants = []
    for name in _VIEWS:
        connection.exec_driver_sql(f"DROP VIEW IF EXISTS {name}")
    return [grant for grant in grants if grant.view in _VIEWS]


def create_views(connection: sa.Connection, grants: Sequence[Grant] = ()) -> None:
    """Make every view, which must not exist, and let those read them who might before."""
    seconds = _SECONDS[connection.dialect.name]
    for name, text in _VIEWS.items():
        connection.exec_driver_sql(f"CREATE VIEW {name} AS {_with_durations(text, seconds)}")
    for grant in grants:
        more = " WITH GRANT OPTION" if grant.may_grant else ""
        connection.exec_driver_sql(f"GRANT SELECT ON {grant.view} TO {grant.grantee}{more}")
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"COMMENT ON VIEW report_schema_version IS '{_fingerprint()}'")


def are_current(connection: sa.Connection) -> bool:
    """Whether the views are as `create_views` makes them. Only PostgreSQL knows; there a reader holds up a change."""
    if connection.dialect.name != "postgresql":
        return False
    made_of = "SELECT obj_description(to_regclass('report_schema_version'), 'pg_class')"
    return bool(connection.exec_driver_sql(made_of).scalar() == _fingerprint())


def _fingerprint() -> str:
    return hashlib.sha256(repr((sorted(_VIEWS.items()), _SECONDS["postgresql"])).encode()).hexdigest()


def _with_durations(text: str, seconds: str) -> str:
    return _DURATION.sub(lambda match: seconds.format(**match.groupdict()), text)
