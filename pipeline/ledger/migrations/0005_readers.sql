-- optional: roles for readers, where ClickHouse keeps users itself and this user may manage them
-- (the embedded server has users of its own). Names of the database in policies are filled in.
CREATE ROLE IF NOT EXISTS tallyport_reader;
CREATE ROLE IF NOT EXISTS tallyport_port_reader;

-- Who reads which ports. A name that is not here sees no port under the role below.
CREATE TABLE IF NOT EXISTS port_readers
(
    reader  String,
    port_id String
)
ENGINE = ReplacingMergeTree
ORDER BY (reader, port_id);

GRANT SELECT ON usage_ledger TO tallyport_reader, tallyport_port_reader;
GRANT SELECT ON usage_daily TO tallyport_reader, tallyport_port_reader;
GRANT SELECT ON usage_daily_users TO tallyport_reader, tallyport_port_reader;
GRANT SELECT ON usage_daily_ports TO tallyport_reader, tallyport_port_reader;
GRANT SELECT ON ai_usage_daily TO tallyport_reader, tallyport_port_reader;
GRANT SELECT ON focus_charges TO tallyport_reader, tallyport_port_reader;

-- A view reads with its caller's rights, so what lies under the views is granted as well.
GRANT SELECT ON ledger_entries TO tallyport_reader, tallyport_port_reader;
GRANT SELECT ON entries_daily TO tallyport_reader, tallyport_port_reader;
GRANT SELECT ON entries_users TO tallyport_reader, tallyport_port_reader;
GRANT SELECT ON entries_ports TO tallyport_reader, tallyport_port_reader;
GRANT SELECT ON entries_charges TO tallyport_reader, tallyport_port_reader;
GRANT SELECT ON rollup_daily TO tallyport_reader, tallyport_port_reader;
GRANT SELECT ON rollup_users TO tallyport_reader, tallyport_port_reader;
GRANT SELECT ON rollup_ports TO tallyport_reader, tallyport_port_reader;
GRANT SELECT ON rollup_charges TO tallyport_reader, tallyport_port_reader;
GRANT SELECT ON day_states TO tallyport_reader, tallyport_port_reader;
GRANT SELECT ON marked_days TO tallyport_reader, tallyport_port_reader;
GRANT SELECT ON day_marks TO tallyport_reader, tallyport_port_reader;
GRANT SELECT ON day_closings TO tallyport_reader, tallyport_port_reader;
GRANT SELECT ON port_readers TO tallyport_port_reader;

-- One policy for those who are limited and one for everybody else: on a table with a policy, users
-- without one may see nothing, as the server is configured.
CREATE ROW POLICY IF NOT EXISTS tallyport_own_ports
ON ledger_entries, rollup_daily, rollup_users, rollup_ports, rollup_charges FOR SELECT
USING port_id IN (SELECT port_id FROM $database.port_readers WHERE reader = currentUser())
TO tallyport_port_reader;
CREATE ROW POLICY IF NOT EXISTS tallyport_all_ports
ON ledger_entries, rollup_daily, rollup_users, rollup_ports, rollup_charges FOR SELECT
USING 1
TO ALL EXCEPT tallyport_port_reader;
CREATE ROW POLICY IF NOT EXISTS tallyport_own_name
ON port_readers FOR SELECT USING reader = currentUser() TO tallyport_port_reader;
CREATE ROW POLICY IF NOT EXISTS tallyport_all_names
ON port_readers FOR SELECT USING 1 TO ALL EXCEPT tallyport_port_reader;

-- Bounded in time, memory and rows, and never writing.
CREATE SETTINGS PROFILE IF NOT EXISTS tallyport_reader
SETTINGS readonly = 2, max_execution_time = 60 MAX 60, max_memory_usage = 1073741824 MAX 1073741824,
    max_result_rows = 1000000 MAX 1000000, max_threads = 4 MAX 4
TO tallyport_reader, tallyport_port_reader;
