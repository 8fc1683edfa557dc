"""What a reader may run: SELECT, SHOW, DESCRIBE, EXISTS and EXPLAIN on the ledger's own tables.

The engine's readonly mode does not suffice: at 1 it still writes INTO OUTFILE, obeys SYSTEM and
reads files through the scalar function ``file``. So the statement is parsed by the engine's own
parser into a tree, and each node of the tree is judged before anything is analysed or run. What
is not known here to be harmless is refused.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, cast

from pipeline.ledger.server.errors import (
    ACCESS_DENIED,
    INTO_OUTFILE_NOT_ALLOWED,
    READONLY,
    TOO_DEEP_AST,
    QueryError,
)
from pipeline.ledger.server.port_rows import SYSTEM_TABLES_HIDDEN, VIEWS
from pipeline.ledger.server.users import READER, User

LEDGER_DATABASE: Final = "tallyport"


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_INFORMATION_SCHEMA: Final = frozenset({"information_schema", "INFORMATION_SCHEMA"})

SYSTEM_TABLES: Final = _words(
    """
    aggregate_function_combinators build_options collations columns contributors
    current_roles data_skipping_indices data_type_families database_engines databases
    dictionaries enabled_roles formats functions keywords licenses numbers numbers_mt one
    settings table_engines table_functions tables time_zones zeros zeros_mt
    """
)
# What would tell which id a pseudonym stands for.
_SECRET_TABLES: Final = frozenset({"pseudonym_keys"})
TABLE_FUNCTIONS: Final = _words(
    """
    numbers numbers_mt generateSeries generate_series values
    SQLStandardValues VALUES null view
    """
)
# Functions that reach files, the network, dictionaries, other tables by name, or the server.
_REFUSED_FUNCTIONS: Final = _words(
    """
    addresstoline addresstolinewithinlines addresstosymbol assigncentroid catboostevaluate
    chdb demangle evalmlmethod file filesystemavailable filesystemcapacity
    filesystemunreserved fuzzquery generateserialid getclienthttpheader getmacro
    getserversetting hascolumnintable ismergetreepartcoveredby joinget joingetornull
    logtrace mergetreepartinfo showcertificate timeseriesstoretags transactionid
    transactionlatestsnapshot transactionoldestsnapshot url zookeepersessionuptime
    """
)
_REFUSED_FUNCTION_PREFIXES: Final = ("ai", "dict", "naivebayes", "region", "zookeeper")
_NOT_THOSE: Final = frozenset({"aicompare"})
_SET_FUNCTIONS: Final = re.compile(r"(global)?(not)?(null)?in(ignoreset)?", re.IGNORECASE)

_EXPLAINED: Final = frozenset(
    f"EXPLAIN{kind}" for kind in ("", " AST", " SYNTAX", " QUERY TREE", " PIPELINE", " ESTIMATE")
)
_EXPLAINED_WITHOUT_READING: Final = frozenset({"EXPLAIN AST", "EXPLAIN SYNTAX"})
_STATEMENTS: Final = _words(
    """
    SelectWithUnionQuery SelectIntersectExceptQuery SelectQuery ExplainQuery ShowTablesQuery
    ShowColumnsQuery ShowIndexesQuery ShowIndexesColumns ShowSettingQuery ShowEngineQuery
    """
)
_NODES: Final = _words(
    """
    Asterisk ArrayJoin Collation ColumnsApplyTransformer ColumnsExceptTransformer
    ColumnsListMatcher ColumnsRegexpMatcher ColumnsReplaceTransformer
    ColumnsReplaceTransformerReplacement ColumnsTransformerList DataType ExpressionList
    Function Identifier InterpolateElement Literal NameTypePair OrderByElement
    QualifiedAsterisk QualifiedColumnsListMatcher QualifiedColumnsRegexpMatcher
    QueryParameter SampleRatio SelectIntersectExceptQuery SelectQuery SelectWithUnionQuery
    SetQuery Subquery TableExpression TableIdentifier TableJoin TablesInSelectQuery
    TablesInSelectQueryElement WindowDefinition WindowListElement WithElement
    """
)

_NAME = r"(?:`(?:[^`\\]|\\.)*`|\w+)"
_TABLE = rf"(?:(?P<database>{_NAME})\.)?(?P<table>{_NAME})"
_TAIL = r"(?: FORMAT \w+)?"
_DESCRIBED = re.compile(
    rf"(?:DESCRIBE TABLE|SHOW CREATE(?: TABLE| VIEW)?|EXISTS(?: TEMPORARY)?(?: TABLE| VIEW)?) "
    rf"{_TABLE}{_TAIL}"
)
_DESCRIBED_QUERY = re.compile(rf"DESCRIBE TABLE \((?P<query>.*)\){_TAIL}", re.DOTALL)
_HARMLESS = re.compile(
    rf"(?:SHOW FUNCTIONS(?: I?LIKE '(?:[^'\\]|\\.)*')?"
    rf"|SHOW ENGINES|SHOW SETTING \w+"
    rf"|SHOW CREATE DATABASE {LEDGER_DATABASE}"
    rf"|EXISTS DATABASE {_NAME}){_TAIL}"
)

Node = dict[str, Any]
Parse = Callable[[str], str]


def _denied(text: str) -> QueryError:
    return QueryError(ACCESS_DENIED, f"{READER}: Not enough privileges. {text}")


def not_a_read() -> QueryError:
    """The refusal of every statement that is not a read."""
    return QueryError(READONLY, f"{READER}: Cannot execute query in readonly mode.")


def load_tree(text: str) -> Node:
    """The parser's JSON as nested dictionaries.

    Raises:
        QueryError: the tree is too deep to be judged.
    """
    try:
        return cast(Node, json.loads(text))
    except RecursionError:
        raise QueryError(TOO_DEEP_AST, "The statement is nested too deeply.") from None


def _nodes(tree: Node) -> Iterator[Node]:
    """Every node of ``tree`` that has a type, whatever it stands in, but not what literals hold."""
    waiting: list[Any] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, list):
            waiting.extend(cast(list[Any], node))
        elif isinstance(node, dict):
            node = cast(Node, node)
            if "type" in node:
                yield node
            literal = node.get("type") == "Literal" or "field_type" in node
            waiting.extend(value for key, value in node.items() if not (literal and key == "value"))


class Judge:
    """Judges one reader's statement; ``asked_settings`` collects its SETTINGS clauses."""

    def __init__(
        self,
        user: User,
        database: str,
        parameters: Mapping[str, str],
        is_table: Callable[[str], bool],
    ) -> None:
        self._limited = bool(user.ports)
        self._database = database
        self._parameters = parameters
        self._is_table = is_table
        self._with_names: set[str] = set()
        self.asked_settings: list[tuple[str, str]] = []

    def judge(self, tree: Node) -> None:
        """Raises QueryError unless the statement of ``tree`` only reads what a reader may."""
        if tree.get("type") not in _STATEMENTS:
            raise not_a_read()
        if tree.get("type") == "ExplainQuery":
            self._judge_explain(tree)
        elif str(tree.get("type")).startswith("Show"):
            self._judge_show(tree)
        self._with_names = {
            str(node["name"]) for node in _nodes(tree) if node.get("type") == "WithElement"
        }
        for node in _nodes(tree):
            self._judge_node(node, root=tree)

    def judge_canonical(self, text: str, parse: Parse) -> None:
        """Judges a statement that the parser knows but gives no tree for, by its formatted text."""
        if _HARMLESS.fullmatch(text):
            return
        if (described := _DESCRIBED.fullmatch(text)) is not None:
            names = (described["database"], described["table"])
            self._judge_table([name.strip("`") for name in names if name is not None])
        elif (query := _DESCRIBED_QUERY.fullmatch(text)) is not None:
            self.judge(load_tree(parse(query["query"])))
        else:
            raise not_a_read()

    def _judge_explain(self, tree: Node) -> None:
        inner = tree.get("query")
        kinds = _EXPLAINED_WITHOUT_READING if self._limited else _EXPLAINED
        if tree.get("kind") not in kinds or "table_function" in tree:
            raise not_a_read()
        if not isinstance(inner, dict) or cast(Node, inner).get("type") not in _STATEMENTS:
            raise not_a_read()
        if not str(cast(Node, inner)["type"]).startswith("Select"):
            raise not_a_read()
        tree.pop("settings", None)  # options of EXPLAIN itself, which no query setting can be

    def _judge_show(self, tree: Node) -> None:
        named = tree.get("from") or tree.get("database")
        if isinstance(named, dict):
            named = ".".join(self._parts(cast(Node, named)))
        if named and named not in {LEDGER_DATABASE, "system", *_INFORMATION_SCHEMA}:
            raise _denied(f"To execute this query, it's necessary to have SHOW on {named}.*.")

    def _judge_node(self, node: Node, root: Node) -> None:
        if "out_file" in node:
            raise QueryError(INTO_OUTFILE_NOT_ALLOWED, "INTO OUTFILE is not allowed.")
        kind = str(node["type"])
        if node is not root and kind not in _NODES and kind not in ("SelectWithUnionQuery",):
            raise _denied(f"A reader's query must not contain {kind}.")
        if kind == "TableIdentifier":
            self._judge_table(self._parts(node))
        elif kind == "TableExpression":
            self._judge_table_expression(node)
        elif kind == "Function":
            self._judge_function(node)
        elif kind == "ColumnsApplyTransformer":
            self._judge_function_name(str(node.get("func_name", "")))
        elif kind == "SetQuery":
            self._judge_settings(node)

    def _judge_table_expression(self, node: Node) -> None:
        function = node.get("table_function")
        if function is None:
            return
        name = str(function.get("name")) if isinstance(function, dict) else "?"
        if name not in TABLE_FUNCTIONS:
            raise _denied(f"The table function {name} is not for readers.")

    def _judge_function(self, node: Node) -> None:
        name = str(node.get("name", ""))
        self._judge_function_name(name)
        if _SET_FUNCTIONS.fullmatch(name):
            arguments = cast(Node, node.get("arguments") or {}).get("children", [])
            for argument in cast(list[Node], arguments)[1:]:
                if argument.get("type") == "Identifier":
                    self._judge_table(self._parts(argument))

    def _judge_function_name(self, name: str) -> None:
        lower = name.lower()
        if lower in _REFUSED_FUNCTIONS or (
            lower.startswith(_REFUSED_FUNCTION_PREFIXES) and lower not in _NOT_THOSE
        ):
            raise _denied(f"The function {name} is not for readers.")

    def _judge_settings(self, node: Node) -> None:
        if set(node) - {"type", "changes", "is_standalone"} or node.get("is_standalone"):
            raise not_a_read()
        for change in cast(list[Node], node.get("changes", [])):
            value = cast(Node, change.get("value") or {}).get("value")
            self.asked_settings.append((str(change.get("name")), str(value)))

    def _parts(self, node: Node) -> list[str]:
        """The parts of an identifier, with ``{name:Identifier}`` filled in."""
        parts = [str(part) for part in node.get("name_parts") or [node.get("name", "")]]
        filled = [self._parameter(child) for child in cast(list[Node], node.get("children", []))]
        if len(filled) != parts.count(""):
            raise _denied("A name in the query cannot be resolved.")
        values = iter(filled)
        return [part or next(values) for part in parts]

    def _parameter(self, node: Node) -> str:
        value = self._parameters.get(str(node.get("name")), "")
        if node.get("type") != "QueryParameter" or not re.fullmatch(r"\w+", value):
            raise _denied("A name given as a parameter must be one plain word.")
        return value

    def _judge_table(self, parts: list[str]) -> None:
        database, table = ([self._database, *parts])[-2:] if len(parts) <= 2 else ("", "")
        if database in _INFORMATION_SCHEMA:
            return
        readable = table in VIEWS if self._limited else table not in _SECRET_TABLES
        if database == LEDGER_DATABASE and readable:
            return
        # The reader's own WITH name, unless a table has it too: that would be meant elsewhere.
        if len(parts) == 1 and table in self._with_names and not self._is_table(table):
            return
        hidden = SYSTEM_TABLES_HIDDEN if self._limited else frozenset[str]()
        if database == "system" and table in SYSTEM_TABLES - hidden:
            return
        raise _denied(
            "To execute this query, it's necessary to have the grant SELECT ON "
            f"{'.'.join(parts if len(parts) > 1 else [self._database, *parts])}."
        )
