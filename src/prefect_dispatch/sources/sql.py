"""Items from the rows that a query yields."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict, Field

from prefect_dispatch.databases import database
from prefect_dispatch.errors import JobError, SourceError
from prefect_dispatch.sources.plain import plain_row
from prefect_dispatch.sources.tables import Columns

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path

    from sqlalchemy import Connection, TextClause

    from prefect_dispatch.models import Item

FETCHED = 1000
"""How many rows are in memory at once."""

Value = str | int | float | bool | None


class Sql(Columns):
    """The rows of a query, read in batches; their order doesn't matter.

    The connection is a block of Prefect's (`prefect-sqlalchemy`), so that no password stands in a job. The
    database is asked to allow no writing, and what the query did is rolled back. Dates, times, decimals and
    UUIDs become text; binary values, durations and NaN are refused by name.

    Example:
        >>> Sql(sql="select id from t where year = :year", key="id", connection="lake", params={"year": 9}).key
        'id'
    """

    model_config = ConfigDict(title="SQL", json_schema_extra={"description": "The rows that a query yields."})

    sql: str = Field(min_length=1, title="Query", json_schema_extra={"position": -1})
    r"""One query; `:name` stands for a value of `params`, and `\:` for a colon before a word."""
    key: str = Field(min_length=1, json_schema_extra={"position": 1})
    """The column whose value names the item."""
    connection: str = Field(min_length=1, json_schema_extra={"position": 0})
    """The name of a block of type SQLAlchemy Connector."""
    params: dict[str, Value | tuple[Value, ...]] = Field(
        default_factory=dict, title="Parameters", json_schema_extra={"position": 4}
    )
    """The values of `:name` in the query; a list is for `in :name`."""

    def where(self, root: Path) -> str:  # noqa: ARG002 -- one signature for all sources
        """Return the words that name this source."""
        return f"the query on connection {self.connection!r}"

    def stream(self, root: Path) -> Iterator[Item]:
        """Yield one item for each row, in whatever order they come.

        Args:
            root: The job's own folder, which doesn't matter.

        Raises:
            SourceError: If there is no such connection, the database refuses the query, or a row can't be an item.
        """
        with closing(self._rows(self.where(root))) as rows:
            yield from self.items(rows)

    def _rows(self, where: str) -> Generator[tuple[str, dict[str, object]], None, None]:
        try:
            with database(self.connection) as engine, engine.connect() as connection:
                result = _read_only(connection).execute(self._bound())
                names = list(result.keys()) if result.returns_rows else []
                self.check_columns(names, where)
                for number, row in enumerate(result, 1):
                    place = f"{where}, row {number}"
                    yield place, plain_row(dict(zip(names, row, strict=True)), place)
        except SourceError:
            raise
        except JobError as error:
            raise SourceError(str(error)) from None

    def check_columns(self, names: list[str], where: str) -> None:
        """Check the head of a table.

        Raises:
            SourceError: If a column is missing or there twice, or there are none.
        """
        if not names:
            raise SourceError(f"{where} yields no rows; write one that does, a `select` for instance.")
        super().check_columns(names, where)

    def _bound(self) -> TextClause:
        from sqlalchemy import bindparam, text  # noqa: PLC0415 -- only those who have a database need it

        query = text(self.sql)
        names: set[str] = set(query.compile().params)
        if wrong := sorted(names ^ self.params.keys()):
            what = "no value in `params`" if wrong[0] in names else "no place in the query"
            raise SourceError(f"The query: :{wrong[0]} has {what}. In a text, write a colon before a word as \\:.")
        lists = {name for name, value in self.params.items() if isinstance(value, tuple)}
        bound: Any = [bindparam(name, self.params[name], expanding=name in lists) for name in names]
        return query.bindparams(*bound)


def _read_only(connection: Connection) -> Connection:
    options: dict[str, Any] = {"stream_results": True, "yield_per": FETCHED}
    if connection.dialect.name == "postgresql":
        options["postgresql_readonly"] = True
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("PRAGMA query_only = ON")
    return connection.execution_options(**options)
