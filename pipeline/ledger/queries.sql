-- The named queries of the ledger's readers, all on its views. A query starts at its `-- name:`; the
-- comment lines under that say what it answers. Values are bound as {name:Type}. What stands in
-- [brackets] is filled in by the code from lists of its own, never from what a user typed:
-- [source] is the narrowest view that has the columns, [where] conditions on bound values.

-- name: entries
-- The ledger with the columns of the daily views: what is asked when no day's sums can answer.
(SELECT *, toDate(occurred_at) AS date, if(estimated, requests, 0) AS estimated_requests FROM usage_ledger)

-- name: usage
-- What was used, by any dimensions: cost and tokens by port, user, group, organisation, model,
-- feature, kind, day and more. Amounts of different currencies are never added up.
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
    sum(u.estimated_requests) AS estimated_requests
FROM [source] AS u
WHERE [where]
GROUP BY [names]currency
ORDER BY [order]
LIMIT {limit:UInt32} OFFSET {offset:UInt32};

-- name: totals
-- The whole ledger in one row per currency.
SELECT
    u.currency AS currency,
    sum(u.entries) AS entries,
    sum(u.requests) AS requests,
    sum(u.total_tokens) AS total_tokens,
    sum(u.cost_nano) AS cost_nano,
    toDecimal128(sum(u.cost_nano), 9) / 1000000000 AS cost,
    sum(u.unpriced_requests) AS unpriced_requests,
    min(u.date) AS first_day,
    max(u.date) AS last_day
FROM usage_daily_users AS u
GROUP BY currency
ORDER BY currency;

-- name: top
-- The dearest ports, users, models or whatever else has a name, and how much they used.
SELECT
    [by]u.currency AS currency,
    sum(u.requests) AS requests,
    sum(u.total_tokens) AS total_tokens,
    sum(toInt128(u.cost_nano)) AS cost_nano,
    toDecimal128(sum(toInt128(u.cost_nano)), 9) / 1000000000 AS cost,
    sum(u.unpriced_requests) AS unpriced_requests
FROM [source] AS u
WHERE [by_value] != '' AND [where]
GROUP BY [names]currency
ORDER BY cost_nano DESC NULLS LAST, total_tokens DESC, [names]currency
LIMIT {limit:UInt32};

-- name: daily_series
-- One row for every day, days without usage included, with what the organisation pays for and what
-- users pay for apart. The cost of a day without requests is 0; one without any price is null.
SELECT
    days.date AS date,
    currencies.currency AS currency,
    sums.requests AS requests,
    sums.total_tokens AS total_tokens,
    if(sums.cells = 0, 0, sums.cost_nano) AS cost_nano,
    toDecimal128(if(sums.cells = 0, 0, sums.cost_nano), 9) / 1000000000 AS cost,
    sums.org_requests AS org_requests,
    toDecimal128(if(sums.org_cells = 0, 0, sums.org_cost_nano), 9) / 1000000000 AS org_cost,
    sums.user_requests AS user_requests,
    toDecimal128(if(sums.user_cells = 0, 0, sums.user_cost_nano), 9) / 1000000000 AS user_cost,
    sums.unpriced_requests AS unpriced_requests
FROM
(
    SELECT addDays({first_day:Date}, number) AS date
    FROM numbers(toUInt64(greatest(0, dateDiff('day', {first_day:Date}, {end_day:Date}))))
) AS days
CROSS JOIN
(
    SELECT DISTINCT arrayJoin([{currency:String}, u.currency]) AS currency
    FROM [source] AS u WHERE [where]
    UNION DISTINCT
    SELECT {currency:String} AS currency
) AS currencies
LEFT JOIN
(
    SELECT
        u.date AS date,
        u.currency AS currency,
        count() AS cells,
        countIf(u.billing_scope = 'org') AS org_cells,
        countIf(u.billing_scope = 'user') AS user_cells,
        sum(u.requests) AS requests,
        sum(u.total_tokens) AS total_tokens,
        sum(toInt128(u.cost_nano)) AS cost_nano,
        sumIf(u.requests, u.billing_scope = 'org') AS org_requests,
        sumIf(toInt128(u.cost_nano), u.billing_scope = 'org') AS org_cost_nano,
        sumIf(u.requests, u.billing_scope = 'user') AS user_requests,
        sumIf(toInt128(u.cost_nano), u.billing_scope = 'user') AS user_cost_nano,
        sum(u.unpriced_requests) AS unpriced_requests
    FROM [source] AS u
    WHERE [where]
    GROUP BY date, currency
) AS sums ON sums.date = days.date AND sums.currency = currencies.currency
ORDER BY date, currency
LIMIT {limit:UInt32};

-- name: month_on_month
-- A month beside the one before it, by a dimension, and the change. The cost of a month without
-- requests is 0; one without any price is null, and so is a change that cannot be known.
SELECT
    [by]u.currency AS currency,
    sumIf(u.requests, u.date >= {month:Date}) AS requests,
    sumIf(u.requests, u.date < {month:Date}) AS requests_before,
    sumIf(u.total_tokens, u.date >= {month:Date}) AS total_tokens,
    sumIf(u.total_tokens, u.date < {month:Date}) AS total_tokens_before,
    if(countIf(u.date >= {month:Date}) = 0, 0, sumIf(toInt128(u.cost_nano), u.date >= {month:Date}))
        AS cost_nano,
    if(countIf(u.date < {month:Date}) = 0, 0, sumIf(toInt128(u.cost_nano), u.date < {month:Date}))
        AS cost_nano_before,
    toDecimal128(cost_nano, 9) / 1000000000 AS cost,
    toDecimal128(cost_nano_before, 9) / 1000000000 AS cost_before,
    toDecimal128(cost_nano - cost_nano_before, 9) / 1000000000 AS cost_change,
    if(cost_nano_before > 0,
        toDecimal128(intDiv((cost_nano - cost_nano_before) * 10000, cost_nano_before), 2) / 100, NULL)
        AS change_pct
FROM [source] AS u
WHERE u.date >= addMonths({month:Date}, -1) AND u.date < addMonths({month:Date}, 1) AND [where]
GROUP BY [names]currency
ORDER BY abs(cost_nano - cost_nano_before) DESC NULLS LAST, [names]currency
LIMIT {limit:UInt32};

-- name: cost_percentiles
-- What one request costs, by a dimension: nearest-rank percentiles over all priced requests, each
-- with its corrections; voided ones are left out.
WITH corrected AS
(
    SELECT toDate(u.occurred_at), u.port_id, u.event_id
    FROM usage_ledger AS u WHERE u.entry_no > 0 AND [where]
)
SELECT
    [names]currency,
    count() AS priced_requests,
    quantilesExact(0.5, 0.9, 0.99)(cost_nano) AS percentiles,
    toDecimal128(percentiles[1], 9) / 1000000000 AS p50,
    toDecimal128(percentiles[2], 9) / 1000000000 AS p90,
    toDecimal128(percentiles[3], 9) / 1000000000 AS p99,
    toDecimal128(max(cost_nano), 9) / 1000000000 AS most
FROM
(
    SELECT [by]u.currency AS currency, assumeNotNull(toInt128(u.cost_nano)) AS cost_nano
    FROM [source] AS u
    WHERE u.entry_no = 0 AND u.cost_nano IS NOT NULL
        AND (u.date, u.port_id, u.event_id) NOT IN corrected AND [where]
    UNION ALL
    SELECT [by]u.currency AS currency, assumeNotNull(sum(toInt128(u.cost_nano))) AS cost_nano
    FROM [source] AS u
    WHERE (u.date, u.port_id, u.event_id) IN corrected AND [where]
    GROUP BY [names]currency, u.date, u.port_id, u.event_id
    HAVING sum(u.requests) > 0 AND countIf(u.cost_nano IS NOT NULL) > 0
)
GROUP BY [names]currency
ORDER BY percentiles[3] DESC, [names]currency
LIMIT {limit:UInt32};

-- name: unpriced_events
-- Events that still have no price, newest first: what a missing rate leaves open.
SELECT u.occurred_at AS occurred_at, u.port_id AS port_id, u.event_id AS event_id,
    u.provider AS provider, u.model AS model, u.kind AS kind, u.feature AS feature,
    u.total_tokens AS total_tokens, u.audio_seconds AS audio_seconds
FROM usage_ledger AS u
WHERE u.entry_no = 0 AND (toDate(u.occurred_at), u.port_id, u.event_id) IN
    (
        SELECT toDate(u.occurred_at), u.port_id, u.event_id
        FROM usage_ledger AS u
        WHERE u.unpriced_requests != 0 AND [where]
        GROUP BY 1, 2, 3
        HAVING sum(u.unpriced_requests) > 0
    )
    AND [where]
ORDER BY occurred_at DESC, port_id, event_id
LIMIT {limit:UInt32};

-- name: unpriced_models
-- Which models lack a rate, by how many requests it would price.
SELECT u.provider AS provider, u.model AS model, sum(u.unpriced_requests) AS unpriced_requests,
    minIf(u.date, u.unpriced_requests > 0) AS first_day,
    maxIf(u.date, u.unpriced_requests > 0) AS last_day
FROM [source] AS u
WHERE [where]
GROUP BY provider, model
HAVING unpriced_requests > 0
ORDER BY unpriced_requests DESC, provider, model
LIMIT {limit:UInt32};

-- name: scope_usage
-- What each of some scopes of one kind used in a span of days: what budgets are held against.
SELECT
    [scope] AS id,
    sum(u.total_tokens) AS tokens,
    sum(u.unpriced_requests) AS unpriced_requests,
    ifNull(sumIf(u.cost_nano, u.currency = {currency:String}), 0) AS cost_nano,
    sumIf(u.unpriced_requests, u.billing_scope = 'org') AS org_unpriced_requests,
    ifNull(sumIf(u.cost_nano, u.currency = {currency:String} AND u.billing_scope = 'org'), 0)
        AS org_cost_nano
FROM [source] AS u
WHERE u.date >= {first_day:Date} AND u.date < {end_day:Date} AND [wanted]
GROUP BY id
HAVING id != ''
ORDER BY id
LIMIT {limit:UInt32};

-- name: user_days
-- On which days and ports a user has entries, newest first: where the pages of user_events lie.
SELECT u.date AS date, sum(u.entries) AS entries, groupUniqArray(u.port_id) AS ports
FROM usage_daily_users AS u
WHERE [where]
GROUP BY date
ORDER BY date DESC
LIMIT {limit:UInt32};

-- name: user_events
-- The entries of a user, newest first, from a place on.
SELECT
    u.occurred_at AS occurred_at, u.port_id AS port_id, u.event_id AS event_id,
    u.entry_no AS entry_no, u.provider AS provider, u.model AS model, u.kind AS kind,
    u.feature AS feature, u.service AS service, u.billing_scope AS billing_scope,
    u.input_tokens AS input_tokens, u.output_tokens AS output_tokens,
    u.total_tokens AS total_tokens, u.audio_seconds AS audio_seconds,
    u.characters AS characters, u.images AS images, u.cost AS cost, u.currency AS currency,
    u.price_status AS price_status, u.rate_id AS rate_id,
    u.correction_reason AS correction_reason
FROM usage_ledger AS u
WHERE u.occurred_at >= toDateTime64({first_day:Date}, 6, 'UTC')
    AND u.occurred_at < toDateTime64({end_day:Date}, 6, 'UTC')
    AND u.port_id IN {ports:Array(String)} AND [where]
    AND (u.occurred_at, u.port_id, u.event_id, u.entry_no) <
        ({at:DateTime64(6, 'UTC')}, {port_id_at:String}, {event_id_at:String}, {entry_no_at:UInt64})
ORDER BY occurred_at DESC, port_id DESC, event_id DESC, entry_no DESC
LIMIT {limit:UInt32};

-- name: focus
-- Charges in the FinOps Open Cost and Usage Specification (FOCUS) 1.0, for a span of days.
SELECT *
FROM focus_charges AS c
WHERE c.ChargePeriodStart >= toDateTime({first_day:Date}, 'UTC')
    AND c.ChargePeriodStart < toDateTime({end_day:Date}, 'UTC')
ORDER BY c.ChargePeriodStart, c.SubAccountId, c.SkuId, c.x_UserId, c.ChargeClass
LIMIT {limit:UInt32};

-- name: as_of
-- When the ledger last took something in.
SELECT max(written_at) AS as_of FROM sink_manifests;
