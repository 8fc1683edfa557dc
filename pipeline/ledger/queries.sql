-- The named queries of the ledger's readers, all on the views. A query starts at its `-- name:`.
-- Values are bound as {name:Type}; [by], [names] and [where] are filled in by usage.py from lists of its own.

-- name: usage
-- What was used, by the dimensions asked for. Amounts of different currencies are never added up.
SELECT
    [by]u.currency AS currency,
    sum(u.requests) AS requests,
    sum(u.input_tokens) AS input_tokens,
    sum(u.cached_input_tokens) AS cached_input_tokens,
    sum(u.output_tokens) AS output_tokens,
    sum(u.total_tokens) AS total_tokens,
    sum(u.characters) AS characters,
    sum(u.images) AS images,
    sum(u.audio_seconds) AS audio_seconds,
    sum(toInt128(u.cost_nano)) AS cost_nano,
    toDecimal128(sum(toInt128(u.cost_nano)), 9) / 1000000000 AS cost,
    sum(u.unpriced_requests) AS unpriced_requests,
    sumIf(u.requests, u.estimated) AS estimated_requests
FROM usage_ledger AS u
WHERE [where]
GROUP BY [names]currency
ORDER BY [order]
LIMIT {limit:UInt32};

-- name: totals
SELECT
    count() AS entries,
    sum(u.requests) AS requests,
    sum(u.total_tokens) AS total_tokens,
    sum(toInt128(u.cost_nano)) AS cost_nano,
    toDecimal128(sum(toInt128(u.cost_nano)), 9) / 1000000000 AS cost,
    sum(u.unpriced_requests) AS unpriced_requests,
    min(u.occurred_at) AS first_occurred_at,
    max(u.occurred_at) AS last_occurred_at
FROM usage_ledger AS u;

-- name: unpriced_events
-- Events without a price, newest first: what a missing rate leaves open.
SELECT u.occurred_at AS occurred_at, u.port_id AS port_id, u.event_id AS event_id,
    u.provider AS provider, u.model AS model, u.kind AS kind, u.feature AS feature,
    u.total_tokens AS total_tokens, u.audio_seconds AS audio_seconds
FROM usage_ledger AS u
WHERE u.price_status = 'unpriced' AND [where]
ORDER BY occurred_at DESC, port_id, event_id
LIMIT {limit:UInt32};

-- name: unpriced_models
-- Which models lack a rate, by how many requests it would price.
SELECT u.provider AS provider, u.model AS model, sum(u.unpriced_requests) AS unpriced_requests,
    min(u.occurred_at) AS first_occurred_at, max(u.occurred_at) AS last_occurred_at
FROM usage_ledger AS u
WHERE [where]
GROUP BY provider, model
HAVING unpriced_requests > 0
ORDER BY unpriced_requests DESC, provider, model
LIMIT {limit:UInt32};

-- name: top_users
SELECT u.user_id AS user_id, u.currency AS currency, sum(u.requests) AS requests,
    sum(u.total_tokens) AS total_tokens,
    toDecimal128(sum(toInt128(u.cost_nano)), 9) / 1000000000 AS cost,
    sum(u.unpriced_requests) AS unpriced_requests
FROM usage_ledger AS u
WHERE u.user_id != '' AND [where]
GROUP BY user_id, currency
ORDER BY cost DESC NULLS LAST, total_tokens DESC, user_id
LIMIT {limit:UInt32};
