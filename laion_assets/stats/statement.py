"""What a SQL statement reads of the catalog's views, from DuckDB's own parse of it.

A view with a condition on `crawl` and `segment` in the same SELECT is read in the partitions that
meet the condition. A SELECT that only counts partitions' rows is rewritten to add up the numbers
that the catalog has. What is not recognised here may read everything: it costs more, that is all.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import duckdb

from laion_assets.stats.partitions import quoted
from laion_assets.tables import KEY_COLUMNS

Node = dict[str, Any]

NAMES: Final = "_names"
"""Table that conditions are about: crawl and segment of each partition of an asset."""
ROWS: Final = "_rows_of_"
"""Beginning of the name of a view's table of its partitions' crawl, segment and rows."""

_NO_FILES: Final = ("unnest", "range", "generate_series", "duckdb_", "pragma_")
"""Beginnings of the names of functions that read no file."""
_TESTS: Final = frozenset(
    {"COLUMN_REF", "CONSTANT", "COMPARISON", "CONJUNCTION", "OPERATOR", "BETWEEN", "CAST", "TYPE"}
)
"""Classes of expressions whose value depends on nothing but their parts."""


@dataclass(frozen=True)
class Macro:
    """The words of a macro's text, and of its parameters' defaults."""

    words: frozenset[str]
    defaults: frozenset[str]


@dataclass(frozen=True)
class Names:
    """What the names in a statement stand for."""

    views: frozenset[str]
    """Views over files."""
    derived: Mapping[str, str | None]
    """Any other view or table -> the view whose rows it has; None if it has none of a file."""
    macros: Mapping[str, Macro]


@dataclass
class Reading:
    """What a statement reads."""

    sql: str
    """The statement, or one with the same answer that costs less."""
    views: dict[str, list[str] | None] = field(default_factory=dict)
    """View -> queries of :data:`NAMES` for the partitions whose files are read; None: all."""
    counts: dict[str, list[str] | None] = field(default_factory=dict)
    """The same for those whose :data:`ROWS` are read."""
    by_path: bool = False
    """Whether it may read files by another way than a view."""
    first: int | None = None
    """Number of rows that it takes from the beginning of the one view that it reads; None: all."""
    reads: int = 0
    """Number of times that it names a view."""

    def add(self, view: str, keys: str | None, *, counts: bool = False) -> None:
        self.reads += 1
        kind = self.counts if counts else self.views
        known = kind.setdefault(view, [])
        kind[view] = None if keys is None or known is None else [*known, keys]


def reading_of(connection: duckdb.DuckDBPyConnection, sql: str, names: Names) -> Reading:
    """Return what a statement reads. ``connection``: any; it parses the statement."""
    walk = _Walk(connection, names, Reading(sql))
    parsed = walk.parsed(sql)
    if parsed["error"]:
        walk.may_read_all()
    else:
        walk.withs = {
            entry["key"].lower()
            for node in _nodes(parsed)
            for entry in node.get("cte_map", {}).get("map", ())
        }
        walk.look(parsed)
        if walk.counts:
            walk.reading.sql = walk.text(parsed)
        if walk.reading.reads > 1:
            walk.reading.first = None
    return walk.reading


class _Walk:
    """One walk through a parsed statement, which changes the SELECTs that only count."""

    def __init__(
        self, connection: duckdb.DuckDBPyConnection, names: Names, reading: Reading
    ) -> None:
        self._connection, self._names, self.reading = connection, names, reading
        self.withs: Collection[str] = ()
        """Names that a WITH gives."""
        self.counts = False
        """Whether a SELECT was changed."""

    def parsed(self, sql: str) -> Node:
        (row,) = self._connection.execute("select json_serialize_sql(?)", [sql]).fetchall()
        parsed: Node = json.loads(row[0])
        return parsed

    def text(self, parsed: Node) -> str:
        sql = "select json_deserialize_sql(?)"
        return str(self._connection.execute(sql, [json.dumps(parsed)]).fetchall()[0][0])

    def may_read_all(self) -> None:
        self.reading.by_path = True
        self.reading.reads += 2
        self.reading.views = dict.fromkeys(self._names.views)

    def look(self, part: object) -> None:
        """Note what is read anywhere in a part of the statement."""
        if isinstance(part, dict):
            kind = part.get("type")
            if kind == "SELECT_NODE" and part["from_table"]["type"] == "BASE_TABLE":
                self._select(part)
                part = {name: value for name, value in part.items() if name != "from_table"}
            elif kind == "BASE_TABLE":
                self._table(part, None)
            elif kind == "TABLE_FUNCTION":
                self._function(part["function"])
            part = list(part.values())
        if isinstance(part, list):
            for item in part:
                self.look(item)

    def _select(self, select: Node) -> None:
        """Note what a SELECT from one table reads of it."""
        table = select["from_table"]
        name = table["table_name"].lower()
        if select["sample"] or table["sample"] or table["column_name_alias"]:
            # A sample is drawn before conditions apply, and a column may have another one's name.
            self._table(table, None)
            return
        known = {name, table["alias"].lower()}
        conditions = [part for part in _all_of(select["where_clause"]) if _of_keys(part, known)]
        keys = self._keys(table, conditions) if conditions else None
        if name not in self._names.views or name in self.withs:
            self._table(table, keys)
            return
        counts = _only_counts(select, known)
        self.reading.add(name, keys, counts=counts)
        if len(conditions) == len(_all_of(select["where_clause"])):
            self.reading.first = _first(select)
        if counts:
            table["alias"] = table["alias"] or name
            table["qualified_name"] = {"path": [ROWS + name]}
            table |= {"table_name": ROWS + name, "schema_name": "", "catalog_name": ""}
            rows = self.parsed('select cast(coalesce(sum("rows"), 0) as bigint)')
            _replace_counts(select, rows["statements"][0]["node"]["select_list"][0])
            self.counts = True

    def _keys(self, table: Node, conditions: list[Node]) -> str:
        """The query of :data:`NAMES` with a SELECT's conditions."""
        parsed = self.parsed(f"select crawl, segment from {NAMES} as t where true and true")
        select = parsed["statements"][0]["node"]
        select["from_table"]["alias"] = table["alias"] or table["table_name"]
        select["where_clause"]["children"] = [*conditions, *select["where_clause"]["children"]]
        return self.text(parsed)

    def _table(self, table: Node, keys: str | None) -> None:
        """Note a name in a FROM: a view, a table, a WITH, or the path of a file."""
        name, names = table["table_name"].lower(), self._names
        view = names.derived.get(name, name)
        if name in self.withs:
            keys = None  # Within its own WITH, a name is still that of the view.
        if view in names.views:
            self.reading.add(view, keys)
        elif name not in names.derived and name not in self.withs and not table["schema_name"]:
            self.may_read_all()

    def _function(self, function: Node) -> None:
        """Note a function in a FROM: most are macros."""
        name = function["function_name"].lower()
        if name.startswith(_NO_FILES):
            return
        macro = self._names.macros.get(name)
        given = function["arguments"]
        if macro is None or any(item["expression"]["class"] != "CONSTANT" for item in given):
            self.may_read_all()
            return
        texts = {item["name"].lower(): _text(item["expression"]) for item in given}
        known = {*self._names.views, *self._names.derived}
        asked = {_text(item["expression"]).lower() for item in given} & known
        keys = None
        if "crawls" in texts:
            pattern = quoted(texts["crawls"])
            keys = f"select crawl, segment from {NAMES} where crawl glob {pattern}"
        for word in macro.words | (asked or macro.defaults):
            view = self._names.derived.get(word, word)
            if view in self._names.views:
                self.reading.add(view, keys)


def _nodes(part: object) -> Iterator[Node]:
    """Every object of a parsed statement, or of a part of one."""
    if isinstance(part, dict):
        yield part
        part = list(part.values())
    if isinstance(part, list):
        for item in part:
            yield from _nodes(item)


def _all_of(condition: Node | None) -> list[Node]:
    """The conditions that must all hold."""
    if condition is None:
        return []
    if condition["type"] == "CONJUNCTION_AND":
        return [part for child in condition["children"] for part in _all_of(child)]
    return [condition]


def _text(constant: Node) -> str:
    return str(constant["literal"].get("text"))


def _is_count(node: Node) -> bool:
    return (
        node.get("class") == "FUNCTION"
        and node["function_name"] == "count_star"
        and not node["distinct"]
        and not node["order_bys"]["orders"]
    )


def _of_keys(part: object, known: Collection[str], others: Collection[str] = ()) -> bool:
    """Whether expressions depend on a row's crawl and segment alone.

    ``known``: names of the row's table. ``others``: what else they may name; ``*`` is all of that.
    """
    for node in _nodes(part):
        kind = node.get("class")
        if kind == "COLUMN_REF":
            *table, column = (name.lower() for name in node["column_names"])
            named = column in KEY_COLUMNS and (not table or (len(table) == 1 and table[0] in known))
            if not named and not (column in others and not table):
                return False
        elif kind == "STAR":
            if "*" not in others:
                return False
        elif kind == "FUNCTION":
            if not node["is_operator"]:
                return False
        elif kind is not None and kind not in _TESTS:
            return False
    return True


def _only_counts(select: Node, known: Collection[str]) -> bool:
    """Whether a SELECT from one view is about the number of each partition's rows alone."""
    items = select["select_list"]
    if select["qualify"]:
        return False
    for item in items:
        if not item["alias"] and not _is_count(item) and any(map(_is_count, _nodes(item))):
            return False  # It would lose the name that DuckDB gives it.
    if not (
        any(map(_is_count, _nodes(items)))
        or select["group_expressions"]
        or any(modifier["type"] == "DISTINCT_MODIFIER" for modifier in select["modifiers"])
    ):
        return False  # It has a row for each of the view's.
    own = {name: select[name] for name in ("where_clause", "group_expressions", "having")}
    aliases = {"*", *(item["alias"].lower() for item in items if item["alias"])}
    return _of_keys(_without_counts([items, own]), known) and _of_keys(
        _without_counts(select["modifiers"]), known, aliases
    )


def _first(select: Node) -> int | None:
    """How many rows a SELECT takes as they come: the LIMIT of one that names columns alone."""
    plain = all(
        item["class"] == "COLUMN_REF"
        or (item["class"] == "STAR" and not item.get("replace_list") and not item.get("expr"))
        for item in select["select_list"]
    )
    other = ("group_expressions", "having", "qualify")
    limits = select["modifiers"]
    if not plain or any(select[name] for name in other) or len(limits) != 1:
        return None
    if select["aggregate_handling"] != "STANDARD_HANDLING" or not limits[0].get("limit"):
        return None  # GROUP BY ALL names no expressions; an OFFSET alone leaves all that follow.
    parts = [limits[0].get("limit"), limits[0].get("offset")]
    numbers = [part["literal"] for part in parts if part and part["class"] == "CONSTANT"]
    if (
        limits[0].get("limit_type") != "ROW_COUNT"
        or len(numbers) != sum(map(bool, parts))
        or any(number["kind"] != "INTEGER" for number in numbers)
    ):
        return None
    return sum(int(number["text"]) for number in numbers)


def _without_counts(part: Any) -> Any:
    """A part of a statement with each ``count(*)`` replaced by its filter."""
    if isinstance(part, dict):
        if _is_count(part):
            return _without_counts(part["filter"])
        return {name: _without_counts(value) for name, value in part.items()}
    return [_without_counts(item) for item in part] if isinstance(part, list) else part


def _replace_counts(select: Node, rows: Node) -> None:
    """Put ``rows``, a sum, in the place of each ``count(*)``."""
    for item in select["select_list"]:
        if _is_count(item):
            item["alias"] = item["alias"] or "count_star()"
    parts = [select[name] for name in ("select_list", "having", "modifiers")]
    for node in [node for node in _nodes(parts) if _is_count(node)]:
        total = copy.deepcopy(rows) | {"alias": node["alias"]}
        total["child"]["children"][0]["filter"] = node["filter"]
        node.clear()
        node.update(total)
