-- A correction names its event by port and id, whatever the day, and is taken once by its own id.
-- Parts that are there already are read as before, until they are merged.
ALTER TABLE ledger_entries ADD INDEX IF NOT EXISTS event_ids event_id TYPE bloom_filter GRANULARITY 1;

ALTER TABLE ledger_entries ADD INDEX IF NOT EXISTS corrected entry_no TYPE minmax GRANULARITY 1;
