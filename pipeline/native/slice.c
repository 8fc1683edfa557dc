/* The usual events of a slice, from a record batch to the rows of a priced block.
 *
 * Six steps over all records of a slice, each a function of its own, called in this order from
 * slice.py, which decides between them what takes the interpreter: duplicates, prices, cells.
 *
 *   tp_scan      Kafka's record batch -> where the parts of each record stand
 *   tp_read      JSON, validity, age, home partition -> Event, and the key of its identity
 *   tp_models    which provider, model and service tier each has, so that a price is looked up once
 *   tp_price     what each costs, by the rate of its model
 *   tp_rows      the rows of a priced block, as MessagePack
 *   tp_add_up    sums by day and port, organisation, group; and by day and user
 *
 * Nothing is decided here that is not plain: what is not exactly of the usual kind is left to the
 * readers of pipeline/core, which state every rule. No memory is allocated or kept, nothing is read
 * or written beyond the arrays of the caller, and there is no state between two calls.
 */

#include <stdint.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

/* ---- The fields of an event, in the order of a row (pipeline/core/events.py) ---- */

enum { EVENT_ID, PORT_ID, PROVIDER, MODEL, USER_ID, ORGANIZATION_ID, GROUP_ID, SESSION_ID, SERVICE,
       ENDPOINT, REQUEST_ID, SERVICE_TIER, FEATURE, TEXTS };
enum { INPUT, CACHED_INPUT, CACHE_WRITE, CACHE_WRITE_1H, INPUT_AUDIO, INPUT_IMAGE, OUTPUT,
       REASONING, OUTPUT_AUDIO, CHARACTERS, IMAGES, WEB_SEARCHES, COUNTS };
enum { SELF_HOSTED, CACHE_HIT, ESTIMATED, FLAGS };

typedef struct { uint32_t at, length; } Text;  /* where it stands among the bytes of the slice */

typedef struct {
    Text texts[TEXTS];
    int64_t counts[COUNTS];
    int64_t occurred_at_us;
    Text tags;  /* what stands between their braces; as a list it would double the event */
    uint8_t kind, billing_scope, flags[FLAGS], tag_count;
} Event;

static const char *const KINDS[] = {"llm", "stt", "tts", "embedding", "image", "other"};
static const char *const BILLING_SCOPES[] = {"org", "user"};
static const char UNSPECIFIED[] = "unspecified";
enum { BILLED_TO_USER = 1 };

enum { MAX_ID = 128, MAX_TEXT = 256, MAX_EVENT_BYTES = 64 * 1024 };
enum { MAX_TAGS = 16, MAX_TAG_KEY = 64, MAX_TAG_VALUE = 256 };
static const int64_t MAX_COUNT = 10000000000;

typedef enum { A_TEXT, A_COUNT, A_FLAG, A_TIME, A_KIND, A_BILLING_SCOPE, A_TAGS } Type;

typedef struct { const char *name; uint8_t length, type, index; uint16_t least, most; } Field;

#define NAMED(name) name, sizeof(name) - 1
static const Field FIELDS[] = {
    {NAMED("event_id"), A_TEXT, EVENT_ID, 1, MAX_ID},
    {NAMED("occurred_at"), A_TIME, 0, 0, 0},
    {NAMED("port_id"), A_TEXT, PORT_ID, 1, MAX_ID},
    {NAMED("provider"), A_TEXT, PROVIDER, 1, MAX_ID},
    {NAMED("model"), A_TEXT, MODEL, 1, MAX_ID},
    {NAMED("user_id"), A_TEXT, USER_ID, 0, MAX_TEXT},
    {NAMED("organization_id"), A_TEXT, ORGANIZATION_ID, 0, MAX_TEXT},
    {NAMED("group_id"), A_TEXT, GROUP_ID, 0, MAX_TEXT},
    {NAMED("session_id"), A_TEXT, SESSION_ID, 0, MAX_TEXT},
    {NAMED("service"), A_TEXT, SERVICE, 0, MAX_TEXT},
    {NAMED("endpoint"), A_TEXT, ENDPOINT, 0, MAX_TEXT},
    {NAMED("request_id"), A_TEXT, REQUEST_ID, 0, MAX_TEXT},
    {NAMED("service_tier"), A_TEXT, SERVICE_TIER, 0, MAX_TEXT},
    {NAMED("feature"), A_TEXT, FEATURE, 0, MAX_ID},
    {NAMED("kind"), A_KIND, 0, 0, 0},
    {NAMED("billing_scope"), A_BILLING_SCOPE, 0, 0, 0},
    {NAMED("input_tokens"), A_COUNT, INPUT, 0, 0},
    {NAMED("cached_input_tokens"), A_COUNT, CACHED_INPUT, 0, 0},
    {NAMED("cache_write_tokens"), A_COUNT, CACHE_WRITE, 0, 0},
    {NAMED("cache_write_1h_tokens"), A_COUNT, CACHE_WRITE_1H, 0, 0},
    {NAMED("input_audio_tokens"), A_COUNT, INPUT_AUDIO, 0, 0},
    {NAMED("input_image_tokens"), A_COUNT, INPUT_IMAGE, 0, 0},
    {NAMED("output_tokens"), A_COUNT, OUTPUT, 0, 0},
    {NAMED("reasoning_tokens"), A_COUNT, REASONING, 0, 0},
    {NAMED("output_audio_tokens"), A_COUNT, OUTPUT_AUDIO, 0, 0},
    {NAMED("characters"), A_COUNT, CHARACTERS, 0, 0},
    {NAMED("images"), A_COUNT, IMAGES, 0, 0},
    {NAMED("web_searches"), A_COUNT, WEB_SEARCHES, 0, 0},
    {NAMED("self_hosted"), A_FLAG, SELF_HOSTED, 0, 0},
    {NAMED("cache_hit"), A_FLAG, CACHE_HIT, 0, 0},
    {NAMED("estimated"), A_FLAG, ESTIMATED, 0, 0},
    {NAMED("tags"), A_TAGS, 0, 0, 0},
};
enum { FIELD_COUNT = sizeof FIELDS / sizeof FIELDS[0], NO_FIELD = FIELD_COUNT };
/* audio_seconds and reported_cost are not here: events that have one are not usual. */

/* The first five fields of FIELDS are required. */
static const uint64_t REQUIRED = 0x1F;

/* ---- JSON ---- */

/* The names of the fields in quotes, as they stand in JSON, in words of eight bytes. */
enum { NAME_WORDS = 3 };
typedef struct { uint64_t words[NAME_WORDS], masks[NAME_WORDS]; uint8_t length; } Quoted;

typedef struct {
    const uint8_t *data;          /* of the whole slice */
    const uint8_t *at, *end;      /* of the record at hand */
    uint8_t following[FIELD_COUNT + 1];  /* which field followed each one last time */
    char day[10];                 /* the day of the time read last, and its number */
    int64_t day_number;
    const Quoted *quoted;
} Reader;

static void skip_space(Reader *r)
{
    while (r->at < r->end && (*r->at == ' ' || *r->at == '\n' || *r->at == '\r' || *r->at == '\t'))
        r->at++;
}

static int take(Reader *r, uint8_t letter)
{
    skip_space(r);
    if (r->at == r->end || *r->at != letter)
        return 0;
    r->at++;
    return 1;
}

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
/* How many of eight letters stand before the first quote, backslash, control or byte beyond ASCII;
 * 8 without one. A borrow can only mark letters behind the first of these. */
static int plain_letters(const uint8_t *at)
{
    const uint64_t ones = 0x0101010101010101u, highs = 0x8080808080808080u;
    uint64_t eight;
    memcpy(&eight, at, 8);
    uint64_t quote = (eight ^ ones * '"') - ones, backslash = (eight ^ ones * '\\') - ones;
    uint64_t special = (quote | backslash | (eight - ones * 0x20) | eight) & highs;
    return special ? __builtin_ctzll(special) / 8 : 8;
}
#else
static int plain_letters(const uint8_t *at)
{
    int count = 0;
    while (count < 8 && at[count] != '"' && at[count] != '\\' && at[count] >= 0x20
           && at[count] < 0x80)
        count++;
    return count;
}
#endif

/* A string of plain ASCII, without escapes; `at` stands behind its closing quote then. */
static int read_text(Reader *r, Text *text)
{
    if (!take(r, '"'))
        return 0;
    const uint8_t *from = r->at, *at = from;
    int plain = 8;
    while (plain == 8 && at + 8 <= r->end) {
        plain = plain_letters(at);
        at += plain;
    }
    while (at < r->end && *at != '"' && *at != '\\' && *at >= 0x20 && *at < 0x80)
        at++;
    if (at == r->end || *at != '"')
        return 0;
    text->at = (uint32_t)(from - r->data);
    text->length = (uint32_t)(at - from);
    r->at = at + 1;
    return 1;
}

static int read_count(Reader *r, int64_t *count)
{
    skip_space(r);
    const uint8_t *from = r->at;
    int64_t value = 0;
    while (r->at < r->end && (uint8_t)(*r->at - '0') < 10 && r->at - from < 11)
        value = value * 10 + (*r->at++ - '0');
    int64_t digits = r->at - from;
    if (!digits || value > MAX_COUNT || (*from == '0' && digits > 1))
        return 0;
    /* Twelve digits, a fraction or an exponent: what follows is no comma and no brace then. */
    *count = value;
    return 1;
}

static int read_flag(Reader *r, uint8_t *flag)
{
    skip_space(r);
    int64_t left = r->end - r->at;
    if (left >= 4 && !memcmp(r->at, "true", 4)) {
        *flag = 1;
        r->at += 4;
        return 1;
    }
    if (left >= 5 && !memcmp(r->at, "false", 5)) {
        *flag = 0;
        r->at += 5;
        return 1;
    }
    return 0;
}

static int read_choice(Reader *r, const char *const *choices, int count, uint8_t *choice)
{
    Text text;
    if (!read_text(r, &text))
        return 0;
    for (int i = 0; i < count; i++)
        if (strlen(choices[i]) == text.length
            && !memcmp(choices[i], r->data + text.at, text.length)) {
            *choice = (uint8_t)i;
            return 1;
        }
    return 0;
}

/* ---- Times: YYYY-MM-DDTHH:MM:SS, three, six or no digits of a fraction, Z or +00:00 ---- */

static int read_digits(const uint8_t *at, int count, int64_t *number)
{
    *number = 0;
    for (int i = 0; i < count; i++) {
        uint8_t digit = (uint8_t)(at[i] - '0');
        if (digit > 9)
            return 0;
        *number = *number * 10 + digit;
    }
    return 1;
}

/* Days since 1970-01-01 of the proleptic Gregorian calendar; 0 for no such day, or one before 1970.
 * Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", days_from_civil. */
static int read_day(const uint8_t *at, int64_t *number)
{
    static const uint8_t LENGTHS[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    int64_t year, month, day;
    if (!read_digits(at, 4, &year) || at[4] != '-' || !read_digits(at + 5, 2, &month)
        || at[7] != '-' || !read_digits(at + 8, 2, &day))
        return 0;
    if (year < 1970 || month < 1 || month > 12 || day < 1)
        return 0;
    int leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    if (day > LENGTHS[month - 1] + (month == 2 && leap))
        return 0;
    year -= month <= 2;
    int64_t era = year / 400, of_era = year - era * 400;
    int64_t of_year = (153 * (month + (month > 2 ? -3 : 9)) + 2) / 5 + day - 1;
    *number = era * 146097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719468;
    return 1;
}

static int read_time(Reader *r, int64_t *at_us)
{
    Text text;
    if (!read_text(r, &text) || text.length < 20)
        return 0;
    const uint8_t *at = r->data + text.at;
    int64_t length = text.length, hour, minute, second, fraction_us = 0;
    if (at[length - 1] == 'Z')
        length -= 1;
    else if (length >= 25 && !memcmp(at + length - 6, "+00:00", 6))
        length -= 6;
    else
        return 0;
    if (memcmp(at, r->day, 10)) {
        r->day[0] = 0;
        if (!read_day(at, &r->day_number))
            return 0;
        memcpy(r->day, at, 10);
    }
    if (at[10] != 'T' || !read_digits(at + 11, 2, &hour) || at[13] != ':'
        || !read_digits(at + 14, 2, &minute) || at[16] != ':' || !read_digits(at + 17, 2, &second)
        || hour > 23 || minute > 59 || second > 59)
        return 0;
    if (length == 19 + 4) {
        if (at[19] != '.' || !read_digits(at + 20, 3, &fraction_us))
            return 0;
        fraction_us *= 1000;
    } else if (length == 19 + 7) {
        if (at[19] != '.' || !read_digits(at + 20, 6, &fraction_us))
            return 0;
    } else if (length != 19) {
        return 0;
    }
    int64_t seconds = ((r->day_number * 24 + hour) * 60 + minute) * 60 + second;
    *at_us = seconds * 1000000 + fraction_us;
    return 1;
}

/* ---- Tags: an object of strings ---- */

static int same_text(const uint8_t *data, Text a, Text b)
{
    return a.length == b.length && !memcmp(data + a.at, data + b.at, a.length);
}

/* A key that none of the `count` before it is: of a repeated one Python has the last value at the
 * place of the first. */
static int read_tag_key(Reader *r, Text *keys, int count)
{
    Text *key = &keys[count];
    if (!read_text(r, key) || key->length > MAX_TAG_KEY)
        return 0;
    for (int i = 0; i < count; i++)
        if (same_text(r->data, keys[i], *key))
            return 0;
    return 1;
}

static int read_tag_list(Reader *r, uint8_t *found)
{
    Text keys[MAX_TAGS], value;
    int count = 0;
    do {
        if (count == MAX_TAGS || !read_tag_key(r, keys, count) || !take(r, ':')
            || !read_text(r, &value) || value.length > MAX_TAG_VALUE)
            return 0;
        count++;
    } while (take(r, ','));
    *found = (uint8_t)count;
    return take(r, '}');
}

static int read_tags(Reader *r, Event *e)
{
    if (!take(r, '{'))
        return 0;
    const uint8_t *from = r->at;
    e->tags.at = (uint32_t)(from - r->data);
    if (!take(r, '}') && !read_tag_list(r, &e->tag_count))
        return 0;
    e->tags.length = (uint32_t)(r->at - 1 - from);
    return 1;
}

/* ---- An event ---- */

static void quote_names(Quoted *quoted)
{
    for (int i = 0; i < FIELD_COUNT; i++) {
        uint8_t text[8 * NAME_WORDS] = {'"'}, mask[8 * NAME_WORDS] = {0};
        memcpy(text + 1, FIELDS[i].name, FIELDS[i].length);
        text[FIELDS[i].length + 1] = '"';
        quoted[i].length = (uint8_t)(FIELDS[i].length + 2);
        memset(mask, 0xff, quoted[i].length);
        memcpy(quoted[i].words, text, sizeof text);
        memcpy(quoted[i].masks, mask, sizeof mask);
    }
}

/* The field whose name comes next, most likely the one that came next last time too. */
static int read_field(Reader *r, int guess)
{
    skip_space(r);
    if (guess != NO_FIELD && r->end - r->at >= 8 * NAME_WORDS) {
        const Quoted *q = &r->quoted[guess];
        uint64_t word, other = 0;
        for (int i = 0; i < NAME_WORDS; i++) {
            memcpy(&word, r->at + 8 * i, 8);
            other |= (word ^ q->words[i]) & q->masks[i];
        }
        if (!other) {
            r->at += q->length;
            return guess;
        }
    }
    Text name;
    if (!read_text(r, &name))
        return NO_FIELD;
    for (int i = 0; i < FIELD_COUNT; i++)
        if (FIELDS[i].length == name.length
            && !memcmp(FIELDS[i].name, r->data + name.at, name.length))
            return i;
    return NO_FIELD;
}

static int read_value(Reader *r, const Field *field, Event *e)
{
    Text *text;
    switch ((Type)field->type) {
    case A_TEXT:
        text = &e->texts[field->index];
        return read_text(r, text) && text->length >= field->least && text->length <= field->most;
    case A_COUNT:
        return read_count(r, &e->counts[field->index]);
    case A_FLAG:
        return read_flag(r, &e->flags[field->index]);
    case A_TIME:
        return read_time(r, &e->occurred_at_us);
    case A_KIND:
        return read_choice(r, KINDS, sizeof KINDS / sizeof KINDS[0], &e->kind);
    case A_BILLING_SCOPE:
        return read_choice(r, BILLING_SCOPES, 2, &e->billing_scope);
    case A_TAGS:
        return read_tags(r, e);
    }
    return 0;
}

static int parts_fit(const Event *e)
{
    const int64_t *c = e->counts;
    return c[CACHED_INPUT] + c[CACHE_WRITE] + c[CACHE_WRITE_1H] + c[INPUT_AUDIO] + c[INPUT_IMAGE]
               <= c[INPUT]
           && c[REASONING] + c[OUTPUT_AUDIO] <= c[OUTPUT];
}

/* An object with known fields only, each once, all of the right type and within its bounds. */
static int read_event(Reader *r, Event *e)
{
    uint64_t seen = 0;
    int field = NO_FIELD;
    memset(e, 0, sizeof *e);
    if (!take(r, '{'))
        return 0;
    do {
        int former = field;
        field = read_field(r, r->following[former]);
        if (field == NO_FIELD || seen >> field & 1 || !take(r, ':')
            || !read_value(r, &FIELDS[field], e))
            return 0;
        r->following[former] = (uint8_t)field;
        seen |= (uint64_t)1 << field;
    } while (take(r, ','));
    if (!take(r, '}'))
        return 0;
    skip_space(r);
    return r->at == r->end && (seen & REQUIRED) == REQUIRED && parts_fit(e);
}

/* ---- The home partition: MurmurHash2 as Kafka's Java client has it (Utils.murmur2) ---- */

static uint32_t murmur2(const uint8_t *at, uint32_t length)
{
    const uint32_t m = 0x5bd1e995;
    uint32_t h = 0x9747b28c ^ length, left = length & 3;
    const uint8_t *end = at + (length - left);
    for (; at < end; at += 4) {
        uint32_t k = (uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16
                     | (uint32_t)at[3] << 24;
        k *= m;
        k ^= k >> 24;
        h = h * m ^ k * m;
    }
    if (left) {
        for (uint32_t i = 0; i < left; i++)
            h ^= (uint32_t)at[i] << 8 * i;
        h *= m;
    }
    h ^= h >> 13;
    h *= m;
    return h ^ h >> 15;
}

/* ---- The key of an identity: BLAKE2b (RFC 7693) of 16 bytes, keyed (pipeline/core/dedupe.py) ---- */

enum { BLOCK = 128, KEY_BYTES = 16 };
static const char HASH_KEY[] = "tallyport event id 1";

static const uint64_t BLAKE2B_IV[8] = {
    0x6a09e667f3bcc908u, 0xbb67ae8584caa73bu, 0x3c6ef372fe94f82bu, 0xa54ff53a5f1d36f1u,
    0x510e527fade682d1u, 0x9b05688c2b3e6c1fu, 0x1f83d9abfb41bd6bu, 0x5be0cd19137e2179u};

static const uint8_t SIGMA[12][16] = {
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15},
    {14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3},
    {11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4},
    {7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8},
    {9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13},
    {2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9},
    {12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11},
    {13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10},
    {6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5},
    {10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0},
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15},
    {14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3}};

static uint64_t turn(uint64_t word, int bits) { return word >> bits | word << (64 - bits); }

static uint64_t load64(const uint8_t *at)
{
    uint64_t word = 0;
    for (int i = 0; i < 8; i++)
        word |= (uint64_t)at[i] << 8 * i;
    return word;
}

#define MIX(a, b, c, d, x, y)                                                                     \
    (v[a] += v[b] + (x), v[d] = turn(v[d] ^ v[a], 32), v[c] += v[d], v[b] = turn(v[b] ^ v[c], 24), \
     v[a] += v[b] + (y), v[d] = turn(v[d] ^ v[a], 16), v[c] += v[d], v[b] = turn(v[b] ^ v[c], 63))

static void compress(uint64_t h[8], const uint8_t block[BLOCK], uint64_t hashed, int is_last)
{
    uint64_t v[16], m[16];
    for (int i = 0; i < 16; i++)
        m[i] = load64(block + 8 * i);
    memcpy(v, h, 64);
    memcpy(v + 8, BLAKE2B_IV, 64);
    v[12] ^= hashed;
    if (is_last)
        v[14] = ~v[14];
#pragma GCC unroll 12
    for (int round = 0; round < 12; round++) {
        const uint8_t *s = SIGMA[round];
        MIX(0, 4, 8, 12, m[s[0]], m[s[1]]);
        MIX(1, 5, 9, 13, m[s[2]], m[s[3]]);
        MIX(2, 6, 10, 14, m[s[4]], m[s[5]]);
        MIX(3, 7, 11, 15, m[s[6]], m[s[7]]);
        MIX(0, 5, 10, 15, m[s[8]], m[s[9]]);
        MIX(1, 6, 11, 12, m[s[10]], m[s[11]]);
        MIX(2, 7, 8, 13, m[s[12]], m[s[13]]);
        MIX(3, 4, 9, 14, m[s[14]], m[s[15]]);
    }
    for (int i = 0; i < 8; i++)
        h[i] ^= v[i] ^ v[i + 8];
}

/* The state after the block of the key, which all have in common. */
static void begin_key(uint64_t h[8])
{
    uint8_t block[BLOCK] = {0};
    memcpy(h, BLAKE2B_IV, 64);
    h[0] ^= 0x01010000u | (uint32_t)(sizeof HASH_KEY - 1) << 8 | KEY_BYTES;
    memcpy(block, HASH_KEY, sizeof HASH_KEY - 1);
    compress(h, block, BLOCK, 0);
}

/* LENGTH:PORT and the event's id behind it: three digits, a colon and twice MAX_ID at most. */
static void write_key(const uint64_t begun[8], const uint8_t *data, const Event *e, uint8_t *key)
{
    uint8_t message[3 * BLOCK] = {0};
    Text port = e->texts[PORT_ID], event = e->texts[EVENT_ID];
    uint64_t h[8], length = 0, done = 0;
    if (port.length >= 100)
        message[length++] = (uint8_t)('0' + port.length / 100);
    if (port.length >= 10)
        message[length++] = (uint8_t)('0' + port.length / 10 % 10);
    message[length++] = (uint8_t)('0' + port.length % 10);
    message[length++] = ':';
    memcpy(message + length, data + port.at, port.length);
    length += port.length;
    memcpy(message + length, data + event.at, event.length);
    length += event.length;
    memcpy(h, begun, 64);
    for (; length - done > BLOCK; done += BLOCK)
        compress(h, message + done, BLOCK + done + BLOCK, 0);
    compress(h, message + done, BLOCK + length, 1);
    for (int i = 0; i < KEY_BYTES; i++)
        key[i] = (uint8_t)(h[i / 8] >> 8 * (i % 8));
}

/* ---- Kafka's record batches (format 2), without their header ---- */

/* Where the parts of a record stand among the bytes of a slice; a length of -1 is null. */
typedef struct {
    int64_t offset, stamp_ms, key_at, key_length, value_at, value_length, headers_at, headers, end;
} Record;

static int read_varint(Reader *r, int64_t *value)
{
    uint64_t found = 0;
    for (int shift = 0; shift < 64 && r->at < r->end; shift += 7) {
        uint8_t byte = *r->at++;
        found |= (uint64_t)(byte & 0x7f) << shift;
        if (byte < 0x80) {
            *value = (int64_t)(found >> 1 ^ (0 - (found & 1)));
            return 1;
        }
    }
    return 0;
}

/* Bytes behind their length. One below 0, where there may be one, is null and becomes -1. */
static int read_bytes(Reader *r, int64_t *at, int64_t *length, int is_nullable)
{
    if (!read_varint(r, length) || *length > r->end - r->at || (*length < 0 && !is_nullable))
        return 0;
    *at = r->at - r->data;
    if (*length < 0)
        *length = -1;
    else
        r->at += *length;
    return 1;
}

static int read_record(Reader *r, Record *record)
{
    int64_t at, length, name_at;
    if (!read_bytes(r, &at, &length, 0) || !length)
        return 0;
    Reader inner = {.data = r->data, .at = r->data + at + 1, .end = r->data + at + length};
    if (!read_varint(&inner, &record->stamp_ms) || !read_varint(&inner, &record->offset)
        || !read_bytes(&inner, &record->key_at, &record->key_length, 1)
        || !read_bytes(&inner, &record->value_at, &record->value_length, 1)
        || !read_varint(&inner, &record->headers) || record->headers < 0)
        return 0;
    record->headers_at = inner.at - inner.data;
    for (int64_t i = 0; i < record->headers; i++)
        if (!read_bytes(&inner, &name_at, &length, 0) || !read_bytes(&inner, &at, &length, 1))
            return 0;
    record->end = inner.at - inner.data;
    return inner.at == inner.end;
}

/* Finds the `count` records of a batch. `stamp_ms` is the time of all of them, or with
 * `is_create_time` what theirs are added to. Returns 0 unless they fill the `length` bytes, and
 * their offsets rise: brokers take batches in which they do not. */
EXPORT int64_t tp_scan(const uint8_t *data, int64_t length, int64_t count, int64_t base_offset,
                       int64_t stamp_ms, int64_t is_create_time, Record *records)
{
    Reader r = {.data = data, .at = data, .end = data + length};
    for (int64_t i = 0; i < count; i++) {
        Record *record = &records[i];
        if (!read_record(&r, record))
            return 0;
        if (record->offset < 0 || record->offset > INT32_MAX)
            return 0;
        record->offset += base_offset;
        if (i && record->offset <= records[i - 1].offset)
            return 0;
        int64_t delta_ms = is_create_time ? record->stamp_ms : 0;
        record->stamp_ms = (int64_t)((uint64_t)stamp_ms + (uint64_t)delta_ms);
    }
    return r.at == r.end;
}

/* ---- The steps ---- */

typedef struct {
    int64_t partition, partitions;
    int64_t max_age_us, max_skew_us;
} Rules;

static const int64_t MAX_STAMP_MS = 253402300799999;  /* the year 9999 ends */

/* Sets `usual` to 1 for the records that became an Event and a key, to 0 for all others: those
 * without a value or with headers are among these. */
EXPORT void tp_read(const uint8_t *data, const Record *records, int64_t count, const Rules *rules,
                    Event *events, uint8_t *keys, uint8_t *usual)
{
    Quoted quoted[FIELD_COUNT];
    Reader r = {.data = data, .quoted = quoted};
    uint64_t begun[8];
    quote_names(quoted);
    memset(r.following, NO_FIELD, sizeof r.following);
    begin_key(begun);
    for (int64_t i = 0; i < count; i++) {
        Event *e = &events[i];
        int64_t length = records[i].value_length, stamp_ms = records[i].stamp_ms;
        usual[i] = 0;
        if (length < 0 || length > MAX_EVENT_BYTES || records[i].headers || stamp_ms < 0
            || stamp_ms > MAX_STAMP_MS || records[i].value_at > UINT32_MAX - MAX_EVENT_BYTES)
            continue;
        r.at = data + records[i].value_at;
        r.end = r.at + length;
        if (!read_event(&r, e))
            continue;
        int64_t age_us = stamp_ms * 1000 - e->occurred_at_us;
        if (age_us < -rules->max_skew_us || age_us > rules->max_age_us)
            continue;
        Text port = e->texts[PORT_ID];
        uint32_t hash = murmur2(data + port.at, port.length) & 0x7fffffff;
        if (hash % (uint32_t)rules->partitions != (uint32_t)rules->partition)
            continue;
        write_key(begun, data, e, keys + KEY_BYTES * i);
        usual[i] = 1;
    }
}

/* ---- Sorting events into groups ---- */

typedef struct { const uint8_t *data; Text texts[3]; int64_t day; } Name;

static uint64_t hash_name(const Name *name, uint64_t seed)
{
    const uint64_t m = 0x9e3779b97f4a7c15u;
    uint64_t h = seed ^ (uint64_t)name->day * m;
    for (int t = 0; t < 3; t++) {
        const uint8_t *at = name->data + name->texts[t].at;
        uint32_t left = name->texts[t].length;
        h = (h ^ left) * m;
        for (; left >= 8; left -= 8, at += 8) {
            uint64_t word;
            memcpy(&word, at, 8);
            h = turn((h ^ word) * m, 29);
        }
        uint64_t word = 0;
        memcpy(&word, at, left);
        h = turn((h ^ word) * m, 29);
    }
    return h ^ h >> 32;
}

static int same_name(const Name *a, const Name *b)
{
    if (a->day != b->day)
        return 0;
    for (int t = 0; t < 3; t++)
        if (a->texts[t].length != b->texts[t].length
            || memcmp(a->data + a->texts[t].at, b->data + b->texts[t].at, a->texts[t].length))
            return 0;
    return 1;
}

/* Open addressing over `slots`, of which there are `mask` + 1, a power of two and at least twice as
 * many as names; a slot holds a group's number plus one. */
typedef struct { uint32_t *slots; uint64_t mask, seed; Name *names; uint32_t count; } Groups;

static void begin_groups(Groups *g)
{
    memset(g->slots, 0, (g->mask + 1) * sizeof *g->slots);
    g->count = 0;
}

/* The number of the group of that name; a new one is the last. */
static uint32_t group_of(Groups *g, const Name *name)
{
    uint64_t slot = hash_name(name, g->seed) & g->mask;
    for (; g->slots[slot]; slot = (slot + 1) & g->mask)
        if (same_name(&g->names[g->slots[slot] - 1], name))
            return g->slots[slot] - 1;
    g->names[g->count] = *name;
    g->slots[slot] = ++g->count;
    return g->count - 1;
}

/* A provider, model and service tier, and when the first event that has them occurred. */
typedef struct { int64_t at[3], length[3], first_us; } Model;

/* Which of `models` each admitted event has. Returns how many there are. */
EXPORT int64_t tp_models(const uint8_t *data, const Event *events, const uint8_t *admitted,
                         int64_t count, Groups *groups, uint32_t *model_of, Model *models)
{
    begin_groups(groups);
    for (int64_t i = 0; i < count; i++) {
        if (!admitted[i])
            continue;
        const Text *texts = events[i].texts;
        Name name = {data, {texts[PROVIDER], texts[MODEL], texts[SERVICE_TIER]}, 0};
        uint32_t known = groups->count;
        model_of[i] = group_of(groups, &name);
        if (groups->count == known)
            continue;
        for (int t = 0; t < 3; t++) {
            models[known].at[t] = name.texts[t].at;
            models[known].length[t] = name.texts[t].length;
        }
        models[known].first_us = events[i].occurred_at_us;
    }
    return groups->count;
}

/* ---- Prices (pipeline/core/prices.py, Table.cost_nano) ---- */

enum { NOT_HERE, BY_COUNT, FIXED };
enum { PRICED, FREE, UNPRICED };
static const char *const STATUSES[] = {"priced", "free", "unpriced"};
/* A sum over as many events as a slice may have stays within 64 bits. */
static const int64_t MAX_COST_NANO = (int64_t)1 << 49;

/* What rules for one model from `since_us` until `until_us`. BY_COUNT: nanos over `denominator`
 * for the request and for one more of each count, up to `most_input`; a part of a whole has what it
 * costs more than that, or less. FIXED: `request` is the cost. */
typedef struct {
    int64_t type, since_us, until_us, most_input;
    int64_t request, per_count[COUNTS], denominator;
    int64_t status, estimated, name_at, name_length;
} Rate;

/* Whether something is counted, but no tokens: whether that has a price of its own, or must not
 * pass as a zero, is not for here. Parts of tokens are no more than their wholes. */
static int lacks_tokens(const int64_t *c)
{
    return !c[INPUT] && !c[OUTPUT] && (c[CHARACTERS] || c[IMAGES] || c[WEB_SEARCHES]);
}

static int cost_of(const Event *e, const Rate *rate, int64_t *cost_nano)
{
    const int64_t *c = e->counts;
    if (rate->type == NOT_HERE || e->flags[SELF_HOSTED] || e->flags[CACHE_HIT]
        || e->occurred_at_us < rate->since_us || e->occurred_at_us >= rate->until_us)
        return 0;
    if (rate->type == FIXED) {
        *cost_nano = rate->request;
        return 1;
    }
    if (c[INPUT] > rate->most_input || lacks_tokens(c))
        return 0;
    /* Each product is below 2^97: a count is at most MAX_COUNT. */
    __int128 total = rate->request;
    for (int i = 0; i < COUNTS; i++)
        total += (__int128)c[i] * rate->per_count[i];
    __int128 whole = total / rate->denominator;
    if (total < 0 || whole >= MAX_COST_NANO)
        return 0;
    int64_t cost = (int64_t)whole;
    __int128 twice = (total - whole * rate->denominator) * 2;
    if (twice > rate->denominator || (twice == rate->denominator && cost & 1))
        cost++;
    *cost_nano = cost;
    return 1;
}

/* What each admitted event costs. Clears `admitted` where it cannot be said here; returns how many
 * of those that stay are unpriced. */
EXPORT int64_t tp_price(const Event *events, uint8_t *admitted, int64_t count,
                        const uint32_t *model_of, const Rate *rates, int64_t *costs_nano)
{
    int64_t unpriced = 0;
    for (int64_t i = 0; i < count; i++) {
        if (!admitted[i])
            continue;
        const Rate *rate = &rates[model_of[i]];
        if (!cost_of(&events[i], rate, &costs_nano[i]))
            admitted[i] = 0;
        else
            unpriced += rate->status == UNPRICED;
    }
    return unpriced;
}

/* ---- Rows (MessagePack; pipeline/core/blocks.py) ---- */

static uint8_t *put_big_endian(uint8_t *to, uint64_t value, int bytes)
{
    for (int shift = 8 * (bytes - 1); shift >= 0; shift -= 8)
        *to++ = (uint8_t)(value >> shift);
    return to;
}

static uint8_t *put_int(uint8_t *to, int64_t value)
{
    uint64_t v = (uint64_t)value;
    if (v < 0x80) {
        *to++ = (uint8_t)v;
        return to;
    }
    int size = v <= 0xff ? 0 : v <= 0xffff ? 1 : v <= 0xffffffff ? 2 : 3;
    *to++ = (uint8_t)(0xcc + size);
    return put_big_endian(to, v, 1 << size);
}

static uint8_t *put_text(uint8_t *to, const void *from, uint32_t length)
{
    if (length < 32) {
        *to++ = (uint8_t)(0xa0 | length);
    } else if (length < 256) {
        *to++ = 0xd9;
        *to++ = (uint8_t)length;
    } else {
        *to++ = 0xda;
        to = put_big_endian(to, length, 2);
    }
    memcpy(to, from, length);
    return to + length;
}

static uint8_t *put_word(uint8_t *to, const char *word)
{
    return put_text(to, word, (uint32_t)strlen(word));
}

/* In the order in which they came, as Python has them. No longer than they were as JSON, which has
 * four quotes and a colon for each: at most two bytes stand before a key here, three before a value. */
static uint8_t *put_tags(uint8_t *to, const uint8_t *data, const Event *e)
{
    if (!e->tag_count) {
        *to++ = 0x80;
        return to;
    }
    Reader r = {.data = data, .at = data + e->tags.at, .end = data + e->tags.at + e->tags.length};
    Text text;
    if (e->tag_count < 16) {
        *to++ = (uint8_t)(0x80 | e->tag_count);
    } else {
        *to++ = 0xde;
        to = put_big_endian(to, e->tag_count, 2);
    }
    while (read_text(&r, &text)) {
        to = put_text(to, data + text.at, text.length);
        if (!take(&r, ':'))
            take(&r, ',');
    }
    return to;
}

enum { ROW_FIELDS = 40 };

static uint8_t *put_row(uint8_t *to, const uint8_t *data, const Event *e, const Record *record,
                        int64_t cost_nano, const Rate *rate, const uint8_t *names)
{
    const Text *t = e->texts;
    *to++ = 0xdc;
    to = put_big_endian(to, ROW_FIELDS, 2);
    to = put_text(to, data + t[EVENT_ID].at, t[EVENT_ID].length);
    to = put_int(to, e->occurred_at_us);
    for (int i = PORT_ID; i < FEATURE; i++)
        to = put_text(to, data + t[i].at, t[i].length);
    if (t[FEATURE].length)
        to = put_text(to, data + t[FEATURE].at, t[FEATURE].length);
    else
        to = put_word(to, UNSPECIFIED);
    to = put_word(to, KINDS[e->kind]);
    to = put_word(to, BILLING_SCOPES[e->billing_scope]);
    for (int i = 0; i < COUNTS; i++)
        to = put_int(to, e->counts[i]);
    *to++ = 0; /* audio_nano */
    for (int i = 0; i < FLAGS; i++)
        *to++ = e->flags[i] ? 0xc3 : 0xc2;
    *to++ = 0xa0; /* reported_cost */
    to = put_tags(to, data, e);
    to = put_int(to, record->offset);
    to = put_int(to, record->stamp_ms);
    if (rate->status == UNPRICED)
        *to++ = 0xc0;
    else
        to = put_int(to, cost_nano);
    to = put_text(to, names + rate->name_at, (uint32_t)rate->name_length);
    to = put_word(to, STATUSES[rate->status]);
    *to++ = rate->estimated ? 0xc3 : 0xc2;
    return to;
}

/* The most that a row has beside its event's texts and its rate's name. */
EXPORT int64_t tp_row_bytes(void)
{
    /* Three bytes before each text, nine for each number; the fixed words and what stands before
     * the tags are shorter than 64. */
    return 3 + 3 * (TEXTS + 4) + 9 * (COUNTS + 5) + 64 + ROW_FIELDS;
}

/* Writes the rows of the admitted events behind each other, and where each one ends. Returns how
 * many bytes. `rows` must have room for the values, and tp_row_bytes and a name for each. */
EXPORT int64_t tp_rows(const uint8_t *data, const Event *events, const uint8_t *admitted,
                       int64_t count, const Record *records, const int64_t *costs_nano, const uint32_t *model_of,
                       const Rate *rates, const uint8_t *names, uint8_t *rows, int64_t *ends)
{
    uint8_t *to = rows;
    for (int64_t i = 0; i < count; i++) {
        if (admitted[i])
            to = put_row(to, data, &events[i], &records[i], costs_nano[i], &rates[model_of[i]],
                         names);
        ends[i] = to - rows;
    }
    return to - rows;
}

/* ---- Sums ---- */

typedef struct {
    int64_t day, at[3], length[3], home;
    int64_t requests, tokens, cost_nano, unpriced, user_cost_nano, user_unpriced;
} Sum;

static void add_to(Groups *groups, Sum *sums, const Name *name, const Event *e, const Rate *rate,
                   int64_t cost_nano)
{
    uint32_t known = groups->count, number = group_of(groups, name);
    Sum *sum = &sums[number];
    if (groups->count > known) {
        memset(sum, 0, sizeof *sum);
        sum->day = name->day;
        for (int t = 0; t < 3; t++) {
            sum->at[t] = name->texts[t].at;
            sum->length[t] = name->texts[t].length;
        }
    }
    int unpriced = rate->status == UNPRICED;
    if (unpriced)
        cost_nano = 0;
    sum->requests += 1;
    sum->tokens += e->counts[INPUT] + e->counts[OUTPUT];
    sum->cost_nano += cost_nano;
    sum->unpriced += unpriced;
    if (e->billing_scope == BILLED_TO_USER) {
        sum->user_cost_nano += cost_nano;
        sum->user_unpriced += unpriced;
    }
}

static const int64_t DAY_US = 86400000000;

/* The partition that merges the scope of a user (pipeline/core/home.py). */
static int64_t home_of_user(const uint8_t *data, Text user, int64_t partitions)
{
    static const char kind[] = "user:";
    enum { KIND = sizeof kind - 1 };
    uint8_t scope[KIND + MAX_TEXT];
    memcpy(scope, kind, KIND);
    memcpy(scope + KIND, data + user.at, user.length);
    return (murmur2(scope, KIND + user.length) & 0x7fffffff) % partitions;
}

/* Sums of the admitted events by day and port, organisation and group into `shared`, by day and
 * user into `users` (of those who have one; these have a home among `partitions`). `counts` gets how
 * many there are of each. */
EXPORT void tp_add_up(const uint8_t *data, const Event *events, const uint8_t *admitted,
                      int64_t count, const int64_t *costs_nano, const uint32_t *model_of,
                      const Rate *rates, int64_t partitions, Groups *groups, Sum *shared,
                      Sum *users, int64_t counts[2])
{
    begin_groups(groups);
    for (int64_t i = 0; i < count; i++) {
        const Text *t = events[i].texts;
        if (!admitted[i])
            continue;
        Name name = {data, {t[PORT_ID], t[ORGANIZATION_ID], t[GROUP_ID]},
                     events[i].occurred_at_us / DAY_US};
        add_to(groups, shared, &name, &events[i], &rates[model_of[i]], costs_nano[i]);
    }
    counts[0] = groups->count;
    begin_groups(groups);
    for (int64_t i = 0; i < count; i++) {
        const Text *t = events[i].texts;
        if (!admitted[i] || !t[USER_ID].length)
            continue;
        Name name = {data, {t[USER_ID], {0, 0}, {0, 0}}, events[i].occurred_at_us / DAY_US};
        add_to(groups, users, &name, &events[i], &rates[model_of[i]], costs_nano[i]);
    }
    counts[1] = groups->count;
    for (int64_t i = 0; i < counts[1]; i++) {
        Text user = {(uint32_t)users[i].at[0], (uint32_t)users[i].length[0]};
        users[i].home = home_of_user(data, user, partitions);
    }
}

/* ---- Remembered ids (pipeline/core/dedupe_segment.py) ---- */

/* One table of ids: a filter in front of open addressing. `room` and the earliest and latest time
 * that fits say what may be added to the last one; `added` and `newest_ms` what was. */
typedef struct {
    uint64_t *filter, *high, *low;
    void *times;
    int64_t filter_words, slots, times_bytes, time_base_ms, earliest_ms, latest_ms;
    int64_t room, added, newest_ms;
} Segment;

static uint64_t scaled(uint64_t half, int64_t places) { return half * (uint64_t)places >> 32; }

static uint64_t *filter_word(const Segment *s, uint64_t high)
{
    return &s->filter[scaled(high & 0xffffffff, s->filter_words)];
}

static uint64_t filter_bits(uint64_t low)
{
    const uint64_t one = 1;
    return one << (low & 63) | one << (low >> 6 & 63) | one << (low >> 12 & 63);
}

static int64_t next_slot(const Segment *s, int64_t slot) { return slot + 1 == s->slots ? 0 : slot + 1; }

static int64_t time_at(const Segment *s, int64_t slot)
{
    int64_t distance = s->times_bytes == 4 ? ((const uint32_t *)s->times)[slot]
                                           : ((const int64_t *)s->times)[slot];
    return s->time_base_ms + distance;
}

static int holds(const Segment *s, uint64_t high, uint64_t low, int64_t at_ms, int64_t horizon_ms)
{
    if ((*filter_word(s, high) & filter_bits(low)) != filter_bits(low))
        return 0;
    for (int64_t slot = (int64_t)scaled(high >> 32, s->slots); s->high[slot];
         slot = next_slot(s, slot)) {
        if (s->high[slot] != high || s->low[slot] != low)
            continue;
        int64_t distance_ms = time_at(s, slot) - at_ms;
        if (distance_ms <= horizon_ms && -distance_ms <= horizon_ms)
            return 1;
    }
    return 0;
}

static void add_id(Segment *s, uint64_t high, uint64_t low, int64_t time_ms)
{
    int64_t slot = (int64_t)scaled(high >> 32, s->slots);
    while (s->high[slot])
        slot = next_slot(s, slot);
    *filter_word(s, high) |= filter_bits(low);
    s->high[slot] = high;
    s->low[slot] = low;
    if (s->times_bytes == 4)
        ((uint32_t *)s->times)[slot] = (uint32_t)(time_ms - s->time_base_ms);
    else
        ((int64_t *)s->times)[slot] = time_ms - s->time_base_ms;
    s->room--;
    s->added++;
    if (time_ms > s->newest_ms)
        s->newest_ms = time_ms;
}

/* Asks memory for what an id will be looked up and added at, some ids before it is its turn. */
static void fetch_ahead(const Segment *segments, int64_t count, uint64_t high)
{
    for (int64_t i = 0; i < count; i++)
        __builtin_prefetch(filter_word(&segments[i], high));
    if (count) {
        const Segment *open = &segments[count - 1];
        int64_t slot = (int64_t)scaled(high >> 32, open->slots);
        __builtin_prefetch(&open->high[slot]);
        __builtin_prefetch(&open->low[slot]);
        __builtin_prefetch((const uint8_t *)open->times + slot * open->times_bytes);
    }
}

/* Which ids are new (`admitted`), in order from number `from` on; these are added to the last of
 * `segments`. Stops before an id that does not fit there. Returns where it stopped. */
EXPORT int64_t tp_admit(Segment *segments, int64_t segment_count, const uint64_t *words,
                        const int64_t *times_ms, const int64_t *arrived_ms, int64_t count,
                        int64_t from, int64_t horizon_ms, uint8_t *admitted)
{
    enum { AHEAD = 12 };
    Segment *open = segment_count ? &segments[segment_count - 1] : 0;
    for (int64_t i = from; i < count; i++) {
        /* A high word of 0 marks a free slot. */
        uint64_t high = words[2 * i] ? words[2 * i] : 1, low = words[2 * i + 1];
        int known = 0;
        if (i + AHEAD < count)
            fetch_ahead(segments, segment_count, words[2 * (i + AHEAD)]);
        for (int64_t s = 0; s < segment_count && !known; s++)
            known = holds(&segments[s], high, low, arrived_ms[i], horizon_ms);
        admitted[i] = !known;
        if (known)
            continue;
        if (!open || !open->room || times_ms[i] < open->earliest_ms
            || times_ms[i] > open->latest_ms)
            return i;
        add_id(open, high, low, times_ms[i]);
    }
    return count;
}

/* ---- CRC-32C, which record batches are protected by ---- */

#if defined(__x86_64__) && defined(__GNUC__)
__attribute__((target("sse4.2")))
static uint32_t crc32c(const uint8_t *at, int64_t length)
{
    uint64_t crc = 0xffffffff;
    for (; length >= 8; length -= 8, at += 8) {
        uint64_t word;
        memcpy(&word, at, 8);
        crc = __builtin_ia32_crc32di(crc, word);
    }
    for (; length > 0; length--)
        crc = __builtin_ia32_crc32qi((uint32_t)crc, *at++);
    return (uint32_t)~crc;
}

/* The sum of some bytes; -1 where the processor has no instruction for it. */
EXPORT int64_t tp_crc32c(const uint8_t *data, int64_t length)
{
    return __builtin_cpu_supports("sse4.2") ? (int64_t)crc32c(data, length) : -1;
}
#else
EXPORT int64_t tp_crc32c(const uint8_t *data, int64_t length)
{
    (void)data, (void)length;
    return -1;
}
#endif

EXPORT int64_t tp_segment_bytes(void) { return sizeof(Segment); }
EXPORT int64_t tp_record_bytes(void) { return sizeof(Record); }
EXPORT int64_t tp_event_bytes(void) { return sizeof(Event); }
EXPORT int64_t tp_name_bytes(void) { return sizeof(Name); }
EXPORT int64_t tp_rate_bytes(void) { return sizeof(Rate); }
EXPORT int64_t tp_sum_bytes(void) { return sizeof(Sum); }
EXPORT int64_t tp_model_bytes(void) { return sizeof(Model); }
EXPORT const char *tp_source(void) { return TP_SOURCE; }
