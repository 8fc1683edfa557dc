-- Daily rollups. A day is closed while one generation of its sums counts everything that the ledger
-- has of it; every other day is open and summed from the ledger when somebody asks.

-- Who may be about to change a day's rows: written before they are inserted, by each process under
-- a name of its own. The sum of the newest numbers grows with every mark.
CREATE TABLE IF NOT EXISTS day_marks
(
    day       Date,
    owner     String,
    number    UInt64,
    marked_at DateTime64(3, 'UTC')
)
ENGINE = ReplacingMergeTree(number)
ORDER BY (day, owner)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

-- The days the ledger had before there were marks.
INSERT INTO day_marks (day, owner, number, marked_at)
SELECT DISTINCT toDate(occurred_at), 'migration', 1, now64(3, 'UTC') FROM ledger_entries;

-- One row for each generation: with marks 0 before it is built, with the day's marks when it is
-- complete. It counts as long as the day has exactly these marks.
CREATE TABLE IF NOT EXISTS day_closings
(
    day        Date,
    generation UInt64,
    marks      UInt64,
    written_at DateTime64(3, 'UTC')
)
ENGINE = ReplacingMergeTree(marks)
ORDER BY (day, generation)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

CREATE VIEW IF NOT EXISTS marked_days AS
SELECT day, sum(number) AS marks
FROM (SELECT day, owner, max(number) AS number FROM day_marks GROUP BY day, owner)
GROUP BY day;

-- Every day that was ever marked, with the generation that counts, or 0 while it is open.
CREATE VIEW IF NOT EXISTS day_states AS
SELECT day, max(generation) AS generation
FROM
(
    SELECT day, toUInt64(0) AS generation FROM marked_days
    UNION ALL
    SELECT day, generation FROM day_closings
    WHERE (day, marks) IN (SELECT day, marks FROM marked_days)
)
GROUP BY day;

-- The sums of each day straight from the ledger: what a generation is built from, and what an open
-- day shows. FINAL makes a row that was inserted twice count once; nanos are summed in 128 bits.
CREATE VIEW IF NOT EXISTS entries_daily AS
SELECT
    toDate(e.occurred_at) AS day,
    e.port_id AS port_id,
    e.organization_id AS organization_id,
    e.group_id AS group_id,
    e.user_id AS user_id,
    e.service AS service,
    e.feature AS feature,
    e.kind AS kind,
    e.provider AS provider,
    e.model AS model,
    e.billing_scope AS billing_scope,
    e.service_tier AS service_tier,
    e.currency AS currency,
    count() AS entries,
    sum(e.requests) AS requests,
    sum(e.input_tokens) AS input_tokens,
    sum(e.cached_input_tokens) AS cached_input_tokens,
    sum(e.cache_write_tokens) AS cache_write_tokens,
    sum(e.cache_write_1h_tokens) AS cache_write_1h_tokens,
    sum(e.input_audio_tokens) AS input_audio_tokens,
    sum(e.input_image_tokens) AS input_image_tokens,
    sum(e.output_tokens) AS output_tokens,
    sum(e.reasoning_tokens) AS reasoning_tokens,
    sum(e.output_audio_tokens) AS output_audio_tokens,
    sum(e.characters) AS characters,
    sum(e.images) AS images,
    sum(e.web_searches) AS web_searches,
    sum(e.total_tokens) AS total_tokens,
    sum(toInt128(e.audio_nano)) AS audio_nano,
    sum(toInt128(e.cost_nano)) AS cost_nano,
    sum(e.unpriced_requests) AS unpriced_requests,
    sumIf(e.requests, e.estimated) AS estimated_requests
FROM ledger_entries AS e FINAL
GROUP BY day, port_id, organization_id, group_id, user_id, service, feature, kind, provider,
    model, billing_scope, service_tier, currency;

CREATE VIEW IF NOT EXISTS entries_users AS
SELECT
    toDate(e.occurred_at) AS day,
    e.port_id AS port_id,
    e.organization_id AS organization_id,
    e.group_id AS group_id,
    e.user_id AS user_id,
    e.billing_scope AS billing_scope,
    e.currency AS currency,
    count() AS entries,
    sum(e.requests) AS requests,
    sum(e.input_tokens) AS input_tokens,
    sum(e.cached_input_tokens) AS cached_input_tokens,
    sum(e.output_tokens) AS output_tokens,
    sum(e.characters) AS characters,
    sum(e.images) AS images,
    sum(e.total_tokens) AS total_tokens,
    sum(toInt128(e.audio_nano)) AS audio_nano,
    sum(toInt128(e.cost_nano)) AS cost_nano,
    sum(e.unpriced_requests) AS unpriced_requests,
    sumIf(e.requests, e.estimated) AS estimated_requests
FROM ledger_entries AS e FINAL
GROUP BY day, port_id, organization_id, group_id, user_id, billing_scope, currency;

CREATE VIEW IF NOT EXISTS entries_ports AS
SELECT
    toDate(e.occurred_at) AS day,
    e.port_id AS port_id,
    e.feature AS feature,
    e.kind AS kind,
    e.provider AS provider,
    e.model AS model,
    e.billing_scope AS billing_scope,
    e.currency AS currency,
    count() AS entries,
    sum(e.requests) AS requests,
    sum(e.input_tokens) AS input_tokens,
    sum(e.cached_input_tokens) AS cached_input_tokens,
    sum(e.output_tokens) AS output_tokens,
    sum(e.characters) AS characters,
    sum(e.images) AS images,
    sum(e.total_tokens) AS total_tokens,
    sum(toInt128(e.audio_nano)) AS audio_nano,
    sum(toInt128(e.cost_nano)) AS cost_nano,
    sum(e.unpriced_requests) AS unpriced_requests,
    sumIf(e.requests, e.estimated) AS estimated_requests
FROM ledger_entries AS e FINAL
GROUP BY day, port_id, feature, kind, provider, model, billing_scope, currency;

-- Charges as a bill shows them: `restated` is what was booked after its month had ended.
CREATE VIEW IF NOT EXISTS entries_charges AS
SELECT
    toDate(e.occurred_at) AS day,
    e.port_id AS port_id,
    e.user_id AS user_id,
    e.provider AS provider,
    e.model AS model,
    e.currency AS currency,
    e.entry_no > 0 AND toStartOfMonth(e.recorded_at) > toStartOfMonth(e.occurred_at) AS restated,
    sum(e.requests) AS requests,
    sum(e.characters) AS characters,
    sum(e.images) AS images,
    sum(e.total_tokens) AS total_tokens,
    sum(toInt128(e.audio_nano)) AS audio_nano,
    sum(toInt128(e.cost_nano)) AS cost_nano,
    sum(e.unpriced_requests) AS unpriced_requests
FROM ledger_entries AS e FINAL
GROUP BY day, port_id, user_id, provider, model, currency, restated;

-- The same sums, kept. Rows of a generation count while day_states names it.
CREATE TABLE IF NOT EXISTS rollup_daily
(
    generation            UInt64,
    day                   Date,
    port_id               String,
    organization_id       String,
    group_id              String,
    user_id               String,
    service               LowCardinality(String),
    feature               LowCardinality(String),
    kind                  LowCardinality(String),
    provider              LowCardinality(String),
    model                 LowCardinality(String),
    billing_scope         LowCardinality(String),
    service_tier          LowCardinality(String),
    currency              LowCardinality(String),
    entries               UInt64,
    requests              Int64,
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
    audio_nano            Int128,
    cost_nano             Nullable(Int128),
    unpriced_requests     Int64,
    estimated_requests    Int64
)
ENGINE = MergeTree
PARTITION BY toYYYYMM(day)
ORDER BY (day, port_id, user_id)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

CREATE TABLE IF NOT EXISTS rollup_users
(
    generation          UInt64,
    day                 Date,
    port_id             String,
    organization_id     String,
    group_id            String,
    user_id             String,
    billing_scope       LowCardinality(String),
    currency            LowCardinality(String),
    entries             UInt64,
    requests            Int64,
    input_tokens        Int64,
    cached_input_tokens Int64,
    output_tokens       Int64,
    characters          Int64,
    images              Int64,
    total_tokens        Int64,
    audio_nano          Int128,
    cost_nano           Nullable(Int128),
    unpriced_requests   Int64,
    estimated_requests  Int64
)
ENGINE = MergeTree
PARTITION BY toYYYYMM(day)
ORDER BY (day, port_id, user_id)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

CREATE TABLE IF NOT EXISTS rollup_ports
(
    generation          UInt64,
    day                 Date,
    port_id             String,
    feature             LowCardinality(String),
    kind                LowCardinality(String),
    provider            LowCardinality(String),
    model               LowCardinality(String),
    billing_scope       LowCardinality(String),
    currency            LowCardinality(String),
    entries             UInt64,
    requests            Int64,
    input_tokens        Int64,
    cached_input_tokens Int64,
    output_tokens       Int64,
    characters          Int64,
    images              Int64,
    total_tokens        Int64,
    audio_nano          Int128,
    cost_nano           Nullable(Int128),
    unpriced_requests   Int64,
    estimated_requests  Int64
)
ENGINE = MergeTree
PARTITION BY toYYYYMM(day)
ORDER BY (day, port_id)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

-- Only the charges that have a restated part; all others are sums of rollup_daily.
CREATE TABLE IF NOT EXISTS rollup_charges
(
    generation        UInt64,
    day               Date,
    port_id           String,
    user_id           String,
    provider          LowCardinality(String),
    model             LowCardinality(String),
    currency          LowCardinality(String),
    restated          Bool,
    requests          Int64,
    characters        Int64,
    images            Int64,
    total_tokens      Int64,
    audio_nano        Int128,
    cost_nano         Nullable(Int128),
    unpriced_requests Int64
)
ENGINE = MergeTree
PARTITION BY toYYYYMM(day)
ORDER BY (day, port_id, user_id)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

-- The reading views. The scalar in WITH (open days, generations that count) is taken once for
-- each query, so that a day is in one branch only.
CREATE OR REPLACE VIEW usage_daily AS
WITH
    (
        SELECT (groupArrayIf(day, generation = 0), groupArrayIf(generation, generation != 0))
        FROM day_states
    ) AS days
SELECT
    d.day AS date,
    d.port_id AS port_id,
    d.organization_id AS organization_id,
    d.group_id AS group_id,
    d.user_id AS user_id,
    d.service AS service,
    d.feature AS feature,
    d.kind AS kind,
    d.provider AS provider,
    d.model AS model,
    d.billing_scope AS billing_scope,
    d.service_tier AS service_tier,
    d.currency AS currency,
    d.requests AS requests,
    d.input_tokens AS input_tokens,
    d.cached_input_tokens AS cached_input_tokens,
    d.cache_write_tokens AS cache_write_tokens,
    d.cache_write_1h_tokens AS cache_write_1h_tokens,
    d.input_audio_tokens AS input_audio_tokens,
    d.input_image_tokens AS input_image_tokens,
    d.output_tokens AS output_tokens,
    d.reasoning_tokens AS reasoning_tokens,
    d.output_audio_tokens AS output_audio_tokens,
    d.characters AS characters,
    d.images AS images,
    d.web_searches AS web_searches,
    d.total_tokens AS total_tokens,
    toDecimal128(d.audio_nano, 9) / 1000000000 AS audio_seconds,
    d.cost_nano AS cost_nano,
    toDecimal128(d.cost_nano, 9) / 1000000000 AS cost,
    d.unpriced_requests AS unpriced_requests,
    d.estimated_requests AS estimated_requests
FROM
(
    SELECT * EXCEPT (generation) FROM rollup_daily WHERE generation IN days.2
    UNION ALL
    SELECT * FROM entries_daily WHERE day IN days.1
) AS d;

CREATE OR REPLACE VIEW usage_daily_users AS
WITH
    (
        SELECT (groupArrayIf(day, generation = 0), groupArrayIf(generation, generation != 0))
        FROM day_states
    ) AS days
SELECT
    d.day AS date,
    d.port_id AS port_id,
    d.organization_id AS organization_id,
    d.group_id AS group_id,
    d.user_id AS user_id,
    d.billing_scope AS billing_scope,
    d.currency AS currency,
    d.entries AS entries,
    d.requests AS requests,
    d.input_tokens AS input_tokens,
    d.cached_input_tokens AS cached_input_tokens,
    d.output_tokens AS output_tokens,
    d.characters AS characters,
    d.images AS images,
    d.total_tokens AS total_tokens,
    toDecimal128(d.audio_nano, 9) / 1000000000 AS audio_seconds,
    d.cost_nano AS cost_nano,
    toDecimal128(d.cost_nano, 9) / 1000000000 AS cost,
    d.unpriced_requests AS unpriced_requests,
    d.estimated_requests AS estimated_requests
FROM
(
    SELECT * EXCEPT (generation) FROM rollup_users WHERE generation IN days.2
    UNION ALL
    SELECT * FROM entries_users WHERE day IN days.1
) AS d;

CREATE OR REPLACE VIEW usage_daily_ports AS
WITH
    (
        SELECT (groupArrayIf(day, generation = 0), groupArrayIf(generation, generation != 0))
        FROM day_states
    ) AS days
SELECT
    d.day AS date,
    d.port_id AS port_id,
    d.feature AS feature,
    d.kind AS kind,
    d.provider AS provider,
    d.model AS model,
    d.billing_scope AS billing_scope,
    d.currency AS currency,
    d.entries AS entries,
    d.requests AS requests,
    d.input_tokens AS input_tokens,
    d.cached_input_tokens AS cached_input_tokens,
    d.output_tokens AS output_tokens,
    d.characters AS characters,
    d.images AS images,
    d.total_tokens AS total_tokens,
    toDecimal128(d.audio_nano, 9) / 1000000000 AS audio_seconds,
    d.cost_nano AS cost_nano,
    toDecimal128(d.cost_nano, 9) / 1000000000 AS cost,
    d.unpriced_requests AS unpriced_requests,
    d.estimated_requests AS estimated_requests
FROM
(
    SELECT * EXCEPT (generation) FROM rollup_ports WHERE generation IN days.2
    UNION ALL
    SELECT * FROM entries_ports WHERE day IN days.1
) AS d;

CREATE OR REPLACE VIEW ai_usage_daily AS
SELECT
    u.date AS usage_date,
    u.user_id AS user_id,
    u.organization_id AS organization_id,
    u.feature AS request_type,
    sum(u.total_tokens) AS total_tokens,
    sum(u.input_tokens) AS total_input,
    sum(u.output_tokens) AS total_output,
    sum(u.requests) AS request_count,
    sum(u.cost) AS total_cost
FROM usage_daily AS u
GROUP BY usage_date, user_id, organization_id, request_type;

-- After the FinOps Open Cost and Usage Specification (FOCUS) 1.0; columns named x_… are ours. What
-- restates a billing period that had ended when it was booked is a Correction. What has no price has
-- no BilledCost: the specification wants a number there, but 0 would be a lie.
CREATE OR REPLACE VIEW focus_charges AS
WITH
    (
        SELECT (groupArrayIf(day, generation = 0), groupArrayIf(generation, generation != 0))
        FROM day_states
    ) AS days,
    restated_keys AS
    (
        SELECT day, port_id, user_id, provider, model, currency
        FROM rollup_charges WHERE generation IN days.2
    )
SELECT
    'tallyport' AS BillingAccountId,
    'tallyport' AS BillingAccountName,
    toDateTime(toStartOfMonth(d.day), 'UTC') AS BillingPeriodStart,
    toDateTime(addMonths(toStartOfMonth(d.day), 1), 'UTC') AS BillingPeriodEnd,
    toDateTime(d.day, 'UTC') AS ChargePeriodStart,
    toDateTime(addDays(d.day, 1), 'UTC') AS ChargePeriodEnd,
    d.port_id AS SubAccountId,
    d.port_id AS SubAccountName,
    'AI and Machine Learning' AS ServiceCategory,
    'Generative AI' AS ServiceSubcategory,
    d.provider AS ServiceName,
    d.provider AS ProviderName,
    d.provider AS PublisherName,
    d.provider AS InvoiceIssuerName,
    concat(d.provider, '/', d.model) AS SkuId,
    concat(d.provider, '/', d.model, '/', d.currency) AS SkuPriceId,
    d.model AS ResourceId,
    d.model AS ResourceName,
    'Model' AS ResourceType,
    multiIf(
        d.tokens != 0, toDecimal128(d.tokens, 9),
        d.audio_nano != 0, toDecimal128(d.audio_nano, 9) / 1000000000,
        d.characters != 0, toDecimal128(d.characters, 9),
        d.images != 0, toDecimal128(d.images, 9),
        toDecimal128(d.requests, 9)) AS ConsumedQuantity,
    multiIf(
        d.tokens != 0, 'Tokens',
        d.audio_nano != 0, 'Seconds',
        d.characters != 0, 'Characters',
        d.images != 0, 'Images',
        'Requests') AS ConsumedUnit,
    ConsumedQuantity AS PricingQuantity,
    ConsumedUnit AS PricingUnit,
    'Standard' AS PricingCategory,
    CAST(NULL, 'Nullable(Decimal(38, 9))') AS ListUnitPrice,
    CAST(NULL, 'Nullable(Decimal(38, 9))') AS ContractedUnitPrice,
    toDecimal128(d.cost_nano, 9) / 1000000000 AS BilledCost,
    BilledCost AS EffectiveCost,
    BilledCost AS ContractedCost,
    BilledCost AS ListCost,
    d.currency AS BillingCurrency,
    'Usage' AS ChargeCategory,
    if(d.restated, 'Correction', NULL) AS ChargeClass,
    'Usage-Based' AS ChargeFrequency,
    concat(d.model, ' by ', if(d.user_id = '', 'no user', d.user_id)) AS ChargeDescription,
    CAST(NULL, 'Nullable(String)') AS CommitmentDiscountCategory,
    CAST(NULL, 'Nullable(String)') AS CommitmentDiscountId,
    CAST(NULL, 'Nullable(String)') AS CommitmentDiscountName,
    CAST(NULL, 'Nullable(String)') AS CommitmentDiscountStatus,
    CAST(NULL, 'Nullable(String)') AS CommitmentDiscountType,
    CAST(NULL, 'Nullable(String)') AS AvailabilityZone,
    CAST(NULL, 'Nullable(String)') AS RegionId,
    CAST(NULL, 'Nullable(String)') AS RegionName,
    '{}' AS Tags,
    d.user_id AS x_UserId,
    d.requests AS x_Requests,
    d.unpriced_requests AS x_UnpricedRequests
FROM
(
    SELECT
        r.day AS day, r.port_id AS port_id, r.user_id AS user_id, r.provider AS provider,
        r.model AS model, r.currency AS currency, false AS restated,
        sum(r.requests) AS requests, sum(r.characters) AS characters, sum(r.images) AS images,
        sum(r.total_tokens) AS tokens, sum(r.audio_nano) AS audio_nano,
        sum(r.cost_nano) AS cost_nano, sum(r.unpriced_requests) AS unpriced_requests
    FROM rollup_daily AS r
    WHERE r.generation IN days.2
        AND (r.day, r.port_id, r.user_id, r.provider, r.model, r.currency) NOT IN restated_keys
    GROUP BY day, port_id, user_id, provider, model, currency
    UNION ALL
    SELECT
        c.day, c.port_id, c.user_id, c.provider, c.model, c.currency, c.restated, c.requests,
        c.characters, c.images, c.total_tokens, c.audio_nano, c.cost_nano, c.unpriced_requests
    FROM rollup_charges AS c
    WHERE c.generation IN days.2
    UNION ALL
    SELECT
        e.day, e.port_id, e.user_id, e.provider, e.model, e.currency, e.restated, e.requests,
        e.characters, e.images, e.total_tokens, e.audio_nano, e.cost_nano, e.unpriced_requests
    FROM entries_charges AS e
    WHERE e.day IN days.1
) AS d;
