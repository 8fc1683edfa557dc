-- What decides beside the events, so that a Kafka that was lost can be given it back.
-- Every record of pricing.rates by its first place, with the bytes it had. A record that a restore
-- wrote again replaces itself here.
CREATE TABLE IF NOT EXISTS rate_records
(
    epoch       UInt32,
    offset      Int64,
    recorded_at DateTime64(3, 'UTC'),
    key         String,
    value       String
)
ENGINE = ReplacingMergeTree
ORDER BY (epoch, offset)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

-- Every policy that came into force under its key; an empty value where the key lost its own.
-- The newest place of a key says what is in force.
CREATE TABLE IF NOT EXISTS policy_records
(
    epoch       UInt32,
    offset      Int64,
    recorded_at DateTime64(3, 'UTC'),
    key         String,
    value       String
)
ENGINE = ReplacingMergeTree
ORDER BY (key, epoch, offset)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;
