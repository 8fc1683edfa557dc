"""What the user without a password may run, and everything it must not reach."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ledger.http_requests import ask
from tests.ledger_fixture import LedgerAddress

SECRET = "a-secret-in-a-file"
READONLY, LIMIT, DENIED, OUTFILE, SYNTAX = 164, 452, 497, 358, 62

NOT_READS = """
create table x (a Int8) engine=Memory
create temporary table x (a Int8)
create function f as x -> x
create database x
create view w as select 1
create dictionary d (a UInt8) primary key a source(file(path '{file}' format CSV)) layout(flat())
drop table t
drop database tallyport
truncate table t
alter table t delete where 1
delete from t where 1
update t set a = 1 where 1
insert into t values (9)
insert into t format CSV
insert into t select 1
insert into function file('{out}', 'CSV', 'a Int') values (1)
insert into function file('{out}', 'CSV', 'a Int') select 1
insert into t from infile '{file}' format CSV
optimize table t
system stop merges
system flush logs
system shutdown
system drop dns cache
/* select 1 */ system stop merges
-- select 1\\nsystem stop merges
#! select 1\\nsystem stop merges
set max_threads = 1
set readonly = 0
use system
kill query where 1
check table t
rename table t to u
exchange tables t and v
attach table t
detach table t
backup table t to File('{out}')
restore table t from File('{out}')
grant all on *.* to default
create user x
alter user default identified by 'x'
execute as default select 1
begin transaction
show processlist
show grants
show users
show access
show create user default
show create database system
describe file('{file}')
describe table url('{url}', 'CSV')
explain table override mysql('{host}', 'd', 't', 'u', 'p') columns (a int)
explain ast insert into t values (1)
explain ast system shutdown
explain insert into t select 1
explain create table x (a int) engine=Memory
explain current transaction
select 1 settings readonly = 0
select 1 settings allow_introspection_functions = 1
select 1 settings dialect = 'kusto'
select 1 settings output_format_schema = '{out}'
select 1 settings format_schema = '{file}'
select 1 settings param_x = 'a'
select 1 format Template settings format_template_resultset = '{file}'
select * from (select 1 settings max_untracked_memory = 0)
""".strip().split("\n")

LIFTED = """
select 1 settings max_execution_time = 0
select 1 settings max_memory_usage = 0
select 1 settings max_result_rows = 100000000
select * from (select 1 settings max_result_bytes = 0)
describe (select 1 settings max_threads = 1000)
""".strip().split("\n")

OUTFILES = """
select 1 into outfile '{out}'
select 1 INTO /* */ OUTFILE '{out}' format CSV
select 1 into outfile '{out}' truncate format CSV
(select 1) into outfile '{out}'
select 1 union all select 2 into outfile '{out}'
show tables into outfile '{out}'
show databases into outfile '{out}'
show columns from t into outfile '{out}'
explain select 1 into outfile '{out}'
explain select * from (select 1) into outfile '{out}'
""".strip().split("\n")

# The parser gives no tree for these; they are refused as a whole.
OUTFILES_OF_OTHERS = """
describe (select 1) into outfile '{out}'
describe t into outfile '{out}'
show create table t into outfile '{out}'
exists table t into outfile '{out}'
show functions into outfile '{out}'
""".strip().split("\n")

FILE_READERS = """
select {f}
select FILE('{file}')
select `file`('{file}')
select (select {f})
with {f} as x select x
with x as (select {f} as a) select a from x
with recursive r as (select {f} a union all select a from r limit 1) select * from r
select * from view(select {f})
select arrayMap(x -> {f}, [1])
select arrayMap(x -> file(x), ['{file}'])
select * apply(file) from (select '{file}' a)
select columns('a') apply(x -> file(x)) from (select '{file}' a)
select * replace({f} as a) from (select 1 a)
select 1 where {f} != ''
select 1 order by {f}
select 1 group by {f}
select 1 having {f} = ''
select 1 qualify {f} = ''
select 1 limit length({f})
select 1 limit (select length({f}))
select sum(1) over (partition by {f})
select sum(1) over w window w as (order by {f})
select * from numbers(length({f}))
select * from generateSeries(0, length({f}))
select * from values('a String', {f})
select * from (values ({f}))
select a from (select 1 a) array join [{f}] as b
select * from (select 1 a) x join (select 1 a) y on x.a = y.a and {f} = ''
select * from (select 1 a) union all select length({f})
select 1 intersect select length({f})
select 1 except select length({f})
select transform(1, [1], [{f}], '')
select cast({f} as String)
select {f}::String
select case when 1 then {f} else '' end
select [{f}][1]
select ({f}, 1).1
select if(1, {f}, '')
select interval length({f}) second
select exists(select {f})
select a from (select 1 a) order by a with fill from length({f}) to 10
select a from (select 1 a, '' b) order by a with fill interpolate (b as {f})
select a from (select 1 a) limit 1 by {f}
select a from (select 1 a) group by grouping sets (({f}), (a))
select distinct on ({f}) 1
select countIf({f} = '')
select count() filter (where {f} = '')
select quantile(length({f}))(1)
select * from file('{file}', 'LineAsString')
select * from file('{file}')
from file('{file}', 'LineAsString') select *
with x as (select * from file('{file}', 'LineAsString')) select * from x
select 1 in (select 1 from file('{file}', 'LineAsString'))
select * from numbers(1) where number in file('{file}')
show tables where name = {f}
explain select * from file('{file}', 'LineAsString')
explain query tree select {f}
explain syntax select {f}
explain ast select {f}
describe (select {f})
describe (select * from file('{file}', 'LineAsString'))
select * from executable('cat', 'CSV', 'a String', (select 1))
select * from filesystem('{folder}')
select * from sqlite('{file}', 't')
select * from eval('select 1')
select * from eval(concat('select fil', 'e(''{file}'')'))
select catboostEvaluate('{file}', 1)
select * from deltaLakeLocal('{folder}')
select * from icebergLocal('{folder}')
select * from python('x')
select * from arrowstream('x')
select filesystemAvailable()
""".strip().split("\n")

NETWORK = """
select * from url('{url}', 'CSV', 'a String')
select * from (select * from url('{url}', 'CSV', 'a String'))
select 1 in (select a from url('{url}', 'CSV', 'a Int'))
with x as (select * from url('{url}', 'CSV', 'a String')) select * from x
select * from view(select * from url('{url}', 'CSV', 'a String'))
select (select a from url('{url}', 'CSV', 'a String'))
explain estimate select * from url('{url}', 'CSV', 'a String')
describe (select * from url('{url}', 'CSV'))
select * from s3('{url}', 'CSV')
select * from s3Cluster('c', '{url}', 'CSV')
select * from gcs('{url}', 'CSV')
select * from urlCluster('c', '{url}', 'CSV')
select * from remote('{host}', 'system', 'one')
select * from remoteSecure('{host}', 'system.one')
select * from cluster('default', system.one)
select * from clusterAllReplicas('default', system.one)
select * from mysql('{host}', 'd', 't', 'u', 'p')
select * from postgresql('{host}', 'd', 't', 'u', 'p')
select * from mongodb('{host}', 'd', 't', 'u', 'p', 'a Int8')
select * from redis('{host}', 'a', 'a Int8')
select * from hdfs('hdfs://{host}/y', 'CSV')
select * from azureBlobStorage('{url}', 'y', 'z')
select * from deltaLake('{url}')
select * from iceberg('{url}')
select * from hudi('{url}')
select * from odbc('DSN=x', 'd', 't')
select * from jdbc('x', 'd', 't')
select hasColumnInTable('{host}', 'u', 'p', 'system', 'one', 'x')
select aiGenerate('x')
""".strip().split("\n")

OTHER_TABLES = """
select * from other.secret
select * from `other`.`secret`
select * from `other` . secret
select * from default.t
select * from default.`{file}`
select a from (select * from other.secret)
select (select a from other.secret)
with x as (select * from other.secret) select * from x
select 1 in other.secret
select 1 in (other.secret)
select in(1, other.secret)
select 1 not in other.secret
select 1 global in other.secret
select notIn(1, other.secret)
select globalNotIn(1, other.secret)
select nullIn(1, other.secret)
select inIgnoreSet(1, other.secret)
select 1 in default.`{file}`
select * from t join other.secret s on t.a = s.a
select * from t, other.secret
select 1 union all select a from other.secret
select * from merge('other', '.*')
select * from merge(other, 'secret')
select * from loop(other.secret)
select * from mergeTreeIndex('other', 'secret')
select * from dictionary('other.d')
select dictGet('other.d', 'a', 1)
select dictGetOrDefault('other.d', 'a', 1, 2)
select joinGet('other.secret', 'a', 1)
select joinGet(other.secret, 'a', 1)
explain select * from other.secret
describe other.secret
describe `other`.`secret`
show create table other.secret
exists table other.secret
show tables from other
show columns from secret from other
describe (select * from other.secret)
select * from system.processes
select * from system.query_log
select * from system.server_settings
select * from system.named_collections
select * from system.users
select * from system.stack_trace
select * from system.parts
select * from system.disks
select * from `system`.`disks`
select 'x' in system.disks
describe system.disks
select * from (explain select 1)
select * from viewExplain('EXPLAIN', '', (select 1))
select * from viewIfPermitted(select 1 else null('a Int8'))
select * from generateRandom('a Int8')
select addressToLine(1)
select getServerSetting('max_connections')
select logTrace('x')
""".strip().split("\n")

SEVERAL = """
select 1; drop table t
select 1; select 2
select $$a$$; system stop merges
select 1 /* ; */ ; -- \\n system stop merges
select 'x\\'; select '; system stop merges
""".strip().split("\n")

CASES = [
    (code, statement)
    for code, statements in (
        (READONLY, NOT_READS), (LIMIT, LIFTED), (OUTFILE, OUTFILES),
        (READONLY, OUTFILES_OF_OTHERS), (DENIED, FILE_READERS), (DENIED, NETWORK),
        (DENIED, OTHER_TABLES), (SYNTAX, SEVERAL),
    )
    for statement in statements
]  # fmt: skip

ALLOWED = Path(__file__).with_name("reader_queries.sql").read_text().split(";\n")


@pytest.fixture(scope="module")
def ledger(embedded_ledger: LedgerAddress) -> LedgerAddress:
    for statement in (
        "CREATE TABLE IF NOT EXISTS t (a Int64, s String, d DateTime64(6, 'UTC')) "
        "ENGINE = ReplacingMergeTree ORDER BY a",
        "TRUNCATE TABLE t",
        "INSERT INTO t SELECT number, toString(number % 3), 1700000000 + number FROM numbers(20)",
        "CREATE VIEW IF NOT EXISTS v AS SELECT a FROM t",
        "CREATE DATABASE IF NOT EXISTS other",
        "CREATE TABLE IF NOT EXISTS other.secret (a Int64) ENGINE = MergeTree ORDER BY a",
    ):
        assert ask(embedded_ledger, statement, write=True).status == 200, statement
    return embedded_ledger


@pytest.fixture(scope="module")
def outside() -> Iterator[socket.socket]:
    """A server on the network that nobody must call."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        yield listener


@pytest.mark.parametrize(("code", "statement"), CASES)
def test_refused(
    ledger: LedgerAddress, outside: socket.socket, tmp_path: Path, code: int, statement: str
) -> None:
    host = f"127.0.0.1:{outside.getsockname()[1]}"
    file, out = tmp_path / "in.txt", tmp_path / "out.txt"
    file.write_text(SECRET)
    for name, value in {
        "{f}": "file('{file}')", "{file}": str(file), "{folder}": str(tmp_path),
        "{out}": str(out), "{url}": f"http://{host}/x", "{host}": host, "\\n": "\n",
    }.items():  # fmt: skip
        statement = statement.replace(name, value)
    answer = ask(ledger, statement)
    assert answer.code == code, answer.text
    assert answer.status == {READONLY: 500, LIMIT: 500, OUTFILE: 500, DENIED: 403}.get(code, 400)
    assert answer.text.startswith(f"Code: {code}. DB::Exception: ")
    assert SECRET not in answer.text
    assert not out.exists()
    with pytest.raises(BlockingIOError):
        outside.accept()
    assert ask(ledger, "SELECT count() FROM t").text == "20\n"


@pytest.mark.parametrize("statement", ALLOWED)
def test_allowed(ledger: LedgerAddress, statement: str) -> None:
    answer = ask(ledger, statement)
    assert answer.status == 200, answer.text


@pytest.mark.parametrize(
    ("parameters", "code"),
    [
        ({"max_execution_time": "61"}, LIMIT),
        ({"max_memory_usage": "0"}, LIMIT),
        ({"readonly": "0"}, READONLY),
        ({"allow_ddl": "1"}, READONLY),
        ({"output_format_schema": "/tmp/x"}, READONLY),
        ({"output_format_no_such_thing": "1"}, 115),
        ({"database": "other"}, DENIED),
        ({"database": "system", "query": "SELECT * FROM disks"}, DENIED),
        ({"database": "nowhere"}, 81),
        ({"default_format": "DataFrame"}, 73),
        ({"default_format": "../x"}, 73),
        ({"query": "SELECT * FROM {t:Identifier}", "param_t": "other.secret"}, DENIED),
        ({"query": "SELECT * FROM {d:Identifier}.secret", "param_d": "other"}, DENIED),
        ({"query": "SELECT 1 IN {d:Identifier}.secret", "param_d": "other"}, DENIED),
        ({"query": "SELECT 1 IN {t:Identifier}", "param_t": "other.secret"}, DENIED),
        ({"query": "SELECT * FROM {t:Identifier}"}, DENIED),
        ({"query": "SELECT 1\0"}, SYNTAX),
    ],
)
def test_parameters_open_nothing(
    ledger: LedgerAddress, parameters: dict[str, str], code: int
) -> None:
    statement = "" if "query" in parameters else "SELECT * FROM t"
    if parameters.get("database") == "other":
        statement = "SELECT * FROM secret"
    assert ask(ledger, statement, **parameters).code == code


def test_the_database_default_is_the_ledger_for_a_reader(ledger: LedgerAddress) -> None:
    assert ask(ledger, "SELECT count() FROM t", database="default").text == "20\n"


def test_a_table_may_be_named_by_a_parameter(ledger: LedgerAddress) -> None:
    statement = "SELECT count() FROM {d:Identifier}.{t:Identifier}"
    assert ask(ledger, statement, param_d="tallyport", param_t="t").text == "20\n"


def test_a_settings_clause_may_lower_limits(ledger: LedgerAddress) -> None:
    answer = ask(ledger, "SELECT number FROM numbers(100) SETTINGS max_result_rows = 10")
    assert answer.code == 396


def test_limits_hold(ledger: LedgerAddress) -> None:
    too_many = ask(ledger, "SELECT number FROM numbers(1000001)", wait_end_of_query="1")
    assert too_many.code == 396
    too_much = ask(ledger, "SELECT groupArray(number) FROM numbers(1000000000)")
    assert too_much.code == 241
    too_long = ask(ledger, "SELECT sum(sleep(0.5)) FROM numbers(10) SETTINGS max_block_size = 1, "
                   "max_execution_time = 1", wait_end_of_query="1")  # fmt: skip
    assert (too_long.code, too_long.status) == (159, 408)


def test_a_huge_statement_is_refused(ledger: LedgerAddress) -> None:
    assert ask(ledger, "SELECT " + "1+" * 200_000 + "1").code == SYNTAX
    assert ask(ledger, "SELECT " + "(" * 5000 + "1" + ")" * 5000).status in (400, 500)
    assert ask(ledger, "SELECT 1").text == "1\n"


def test_without_a_password_only_this_machine_may_ask(ledger: LedgerAddress) -> None:
    assert ask(ledger, "SELECT 1", headers={"Host": "evil.example"}).code == DENIED
    assert ask(ledger, "SELECT 1", headers={"Origin": "http://evil.example"}).code == DENIED
    assert ask(ledger, "SELECT 1", headers={"Host": "localhost:8123"}).status == 200
    assert ask(ledger, "SELECT 1", headers={"Origin": "http://localhost:3000"}).status == 200


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT 1 INTO OUTFILE '{out}'",
        "INSERT INTO t FROM INFILE '{out}' FORMAT CSV",
        "EXPLAIN SELECT 1 INTO OUTFILE '{out}'",
    ],
)
def test_the_sink_gets_no_files_either(
    ledger: LedgerAddress, tmp_path: Path, statement: str
) -> None:
    out = tmp_path / "out.csv"
    answer = ask(ledger, statement.replace("{out}", str(out)), write=True)
    assert answer.code == OUTFILE, answer.text
    assert not out.exists()


def test_the_sink_sends_one_statement_at_a_time(ledger: LedgerAddress) -> None:
    assert ask(ledger, "SELECT 1; SELECT 2", write=True).code == SYNTAX
    assert ask(ledger, "SELECT 1;", write=True).text == "1\n"
