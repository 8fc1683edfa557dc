-- One row per ledger entry. Every key column is a function of the event that never changes, so a
-- row that is inserted twice replaces itself, and erasing a user never has to touch the key.
-- Money and audio time are integer nanos here; the views present them as decimals.
CREATE TABLE IF NOT EXISTS ledger_entries
(
    event_id              String,
    entry_no              UInt32,
    requests              Int8,
    unpriced_requests     Int8,
    occurred_at           DateTime64(6, 'UTC') CODEC(DoubleDelta, LZ4),
    recorded_at           DateTime64(3, 'UTC') CODEC(DoubleDelta, LZ4),
    port_id               String,
    organization_id       String,
    group_id              String,
    user_id               String,
    session_id            String,
    service               LowCardinality(String),
    feature               LowCardinality(String),
    kind                  LowCardinality(String),
    provider              LowCardinality(String),
    model                 LowCardinality(String),
    endpoint              LowCardinality(String),
    request_id            String,
    service_tier          LowCardinality(String),
    billing_scope         LowCardinality(String),
    input_tokens          Int64,
    cached_input_tokens   Int64,
    cache_write_tokens    Int64,
    cache_write_1h_tokens Int64,
    input_audio_tokens    Int64,
    input_image_tokens    Int64,
    output_tokens         Int64,
    reasoning_tokens      Int64,
    output_audio_tokens   Int64,
    characters            Int64,
    images                Int64,
    web_searches          Int64,
    total_tokens          Int64,
    audio_nano            Int64,
    cost_nano             Nullable(Int64),
    currency              LowCardinality(String),
    rate_id               LowCardinality(String),
    price_status          LowCardinality(String),
    estimated             Bool,
    self_hosted           Bool,
    cache_hit             Bool,
    reported_cost         String,
    tags                  Map(String, String),
    correction_id         String,
    correction_reason     String,
    epoch                 UInt32,
    source_topic          LowCardinality(String),
    source_partition      UInt32,
    source_offset         Int64,
    INDEX source_offset_range source_offset TYPE minmax GRANULARITY 1
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(occurred_at)
ORDER BY (toDate(occurred_at), port_id, event_id, entry_no)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

-- One row per run of source offsets that the ledger holds, written after the rows themselves.
-- The newest row of a partition says where the sink goes on.
CREATE TABLE IF NOT EXISTS sink_manifests
(
    epoch              UInt32,
    topic              LowCardinality(String),
    partition          UInt32,
    first_offset       Int64,
    next_offset        Int64,
    rows               UInt32,
    rejected           UInt32,
    duplicates         UInt32,
    forwarded          UInt32,
    days               Array(Date),
    priced_partition   UInt32,
    priced_next_offset Int64,
    written_at         DateTime64(3, 'UTC')
)
ENGINE = ReplacingMergeTree
ORDER BY (topic, partition, epoch, next_offset, first_offset)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

-- Which Kafka logs the entries came from. Offsets count from 0 again in each epoch.
CREATE TABLE IF NOT EXISTS log_epochs
(
    epoch      UInt32,
    id         String,
    created_at DateTime64(3, 'UTC'),
    cluster_id String,
    topic_ids  Map(String, String)
)
ENGINE = ReplacingMergeTree
ORDER BY (epoch, id)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;
