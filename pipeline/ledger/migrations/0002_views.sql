-- The reading views. Their columns are stable; the tables behind them are not.
-- FINAL makes a row that was inserted twice count once, also before the parts are merged.
-- Sums of nanos are taken in 128 bits: a 64-bit sum wraps without a word.
CREATE VIEW IF NOT EXISTS usage_ledger AS
SELECT
    e.event_id AS event_id,
    e.entry_no AS entry_no,
    e.requests AS requests,
    e.unpriced_requests AS unpriced_requests,
    e.occurred_at AS occurred_at,
    e.recorded_at AS recorded_at,
    e.port_id AS port_id,
    e.organization_id AS organization_id,
    e.group_id AS group_id,
    e.user_id AS user_id,
    e.session_id AS session_id,
    e.service AS service,
    e.feature AS feature,
    e.kind AS kind,
    e.provider AS provider,
    e.model AS model,
    e.endpoint AS endpoint,
    e.request_id AS request_id,
    e.service_tier AS service_tier,
    e.billing_scope AS billing_scope,
    e.input_tokens AS input_tokens,
    e.cached_input_tokens AS cached_input_tokens,
    e.cache_write_tokens AS cache_write_tokens,
    e.cache_write_1h_tokens AS cache_write_1h_tokens,
    e.input_audio_tokens AS input_audio_tokens,
    e.input_image_tokens AS input_image_tokens,
    e.output_tokens AS output_tokens,
    e.reasoning_tokens AS reasoning_tokens,
    e.output_audio_tokens AS output_audio_tokens,
    e.characters AS characters,
    e.images AS images,
    e.web_searches AS web_searches,
    e.total_tokens AS total_tokens,
    toDecimal128(e.audio_nano, 9) / 1000000000 AS audio_seconds,
    e.cost_nano AS cost_nano,
    toDecimal128(e.cost_nano, 9) / 1000000000 AS cost,
    e.currency AS currency,
    e.rate_id AS rate_id,
    e.price_status AS price_status,
    e.estimated AS estimated,
    e.reported_cost AS reported_cost,
    e.tags AS tags,
    e.correction_id AS correction_id,
    e.correction_reason AS correction_reason,
    e.source_topic AS source_topic,
    e.source_partition AS source_partition,
    e.source_offset AS source_offset
FROM ledger_entries AS e FINAL;

CREATE VIEW IF NOT EXISTS usage_daily AS
SELECT
    toDate(e.occurred_at) AS date,
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
    toDecimal128(sum(toInt128(e.audio_nano)), 9) / 1000000000 AS audio_seconds,
    sum(toInt128(e.cost_nano)) AS cost_nano,
    toDecimal128(sum(toInt128(e.cost_nano)), 9) / 1000000000 AS cost,
    sum(e.unpriced_requests) AS unpriced_requests,
    sumIf(e.requests, e.estimated) AS estimated_requests
FROM ledger_entries AS e FINAL
GROUP BY date, port_id, organization_id, group_id, user_id, service, feature, kind, provider,
    model, billing_scope, service_tier, currency;

CREATE VIEW IF NOT EXISTS ai_usage_daily AS
SELECT
    toDate(e.occurred_at) AS usage_date,
    e.user_id AS user_id,
    e.organization_id AS organization_id,
    e.feature AS request_type,
    sum(e.total_tokens) AS total_tokens,
    sum(e.input_tokens) AS total_input,
    sum(e.output_tokens) AS total_output,
    sum(e.requests) AS request_count,
    toDecimal128(sum(toInt128(e.cost_nano)), 9) / 1000000000 AS total_cost
FROM ledger_entries AS e FINAL
GROUP BY usage_date, user_id, organization_id, request_type;

-- After the FinOps Open Cost and Usage Specification (FOCUS). Columns named x_… are ours. A charge
-- is a Correction when it restates a billing period that had ended when it was booked.
CREATE VIEW IF NOT EXISTS focus_charges AS
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
    d.model AS ResourceId,
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
    toDecimal128(d.cost_nano, 9) / 1000000000 AS BilledCost,
    BilledCost AS EffectiveCost,
    BilledCost AS ContractedCost,
    BilledCost AS ListCost,
    d.currency AS BillingCurrency,
    'Usage' AS ChargeCategory,
    if(d.restated, 'Correction', NULL) AS ChargeClass,
    'Usage-Based' AS ChargeFrequency,
    concat(d.model, ' by ', if(d.user_id = '', 'no user', d.user_id)) AS ChargeDescription,
    d.user_id AS x_UserId,
    d.requests AS x_Requests,
    d.unpriced_requests AS x_UnpricedRequests
FROM
(
    SELECT
        toDate(e.occurred_at) AS day,
        e.port_id AS port_id,
        e.provider AS provider,
        e.model AS model,
        e.user_id AS user_id,
        e.currency AS currency,
        e.entry_no > 0 AND toStartOfMonth(e.recorded_at) > toStartOfMonth(e.occurred_at) AS restated,
        sum(e.total_tokens) AS tokens,
        sum(toInt128(e.audio_nano)) AS audio_nano,
        sum(e.characters) AS characters,
        sum(e.images) AS images,
        sum(e.requests) AS requests,
        sum(e.unpriced_requests) AS unpriced_requests,
        sum(toInt128(e.cost_nano)) AS cost_nano
    FROM ledger_entries AS e FINAL
    GROUP BY day, port_id, provider, model, user_id, currency, restated
) AS d;
