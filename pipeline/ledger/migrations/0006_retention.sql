-- What left the ledger, and who was forgotten in it.

-- Months that were exported and dropped, by the log their entries came from: without this their
-- absence would look like loss. While a month is `leaving` its entries are in the ledger or in the
-- table leaving_MONTH, never in both; `kept` ones came back. The newest number counts.
CREATE TABLE IF NOT EXISTS dropped_months
(
    month             UInt32,
    epoch             UInt32,
    source_topic      String,
    source_partition  UInt32,
    state             LowCardinality(String),
    entries           UInt64,
    unpriced_requests Int64,
    cost_nano         Int128,
    last_offset       Int64,
    file              String,
    digest            String,
    number            UInt64,
    written_at        DateTime64(3, 'UTC')
)
ENGINE = ReplacingMergeTree(number)
ORDER BY (month, epoch, source_topic, source_partition)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

-- The key of all pseudonyms, made when somebody is first forgotten; the oldest one counts. Readers
-- are not let in here: with the key one could try which id a pseudonym stands for.
CREATE TABLE IF NOT EXISTS pseudonym_keys
(
    key        String,
    created_at DateTime64(6, 'UTC')
)
ENGINE = ReplacingMergeTree
ORDER BY (created_at, key)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

-- Users who are forgotten, by the pseudonym that stands for them; their ids are not kept.
CREATE TABLE IF NOT EXISTS forgotten_users
(
    pseudonym    String,
    forgotten_at DateTime64(3, 'UTC')
)
ENGINE = ReplacingMergeTree
ORDER BY pseudonym
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

-- The currency of all amounts; the oldest row counts. A ledger that has entries has theirs.
CREATE TABLE IF NOT EXISTS ledger_currency
(
    currency   String,
    written_at DateTime64(6, 'UTC')
)
ENGINE = MergeTree
ORDER BY written_at
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;
INSERT INTO ledger_currency (currency, written_at)
SELECT currency, toDateTime64(0, 6, 'UTC') FROM ledger_entries
WHERE currency != '' ORDER BY recorded_at LIMIT 1;
