// The ledger read with @clickhouse/client as a Node service reads it; prints one JSON object.
import { createRequire } from "node:module";
const require = createRequire(process.argv[2] + "/");
const { createClient, ClickHouseLogLevel } = require("@clickhouse/client");

const [, , , url, compressed, sinkUser, sinkPassword] = process.argv;
const options = {
  url,
  database: "tallyport",
  compression: { request: compressed === "1", response: compressed === "1" },
  log: { level: ClickHouseLogLevel.OFF },
};
const client = createClient(options);
const told = {};

async function refusal(work) {
  try {
    await work();
    return "done";
  } catch (error) {
    return error.type ?? error.code;
  }
}

told.ping = await client.ping();
const byPort = await client.query({
  query:
    "SELECT port_id, sum(requests) AS calls, toString(sum(cost)) AS spent FROM usage_daily " +
    "WHERE port_id IN ({ports:Array(String)}) AND date >= {from:Date} GROUP BY port_id ORDER BY port_id",
  query_params: { ports: ["harbor-7", "it's"], from: "2026-01-01" },
  format: "JSONEachRow",
});
told.byPort = await byPort.json();
told.queryId = byPort.query_id.length > 0;
told.values = await (
  await client.query({
    query: "SELECT {s:String} AS s, {n:Nullable(String)} AS n, {d:DateTime64(3)} AS d, {m:Map(String, UInt8)} AS m",
    query_params: { s: "it's \\ \t\n", n: null, d: new Date("2026-11-22T10:15:00.123Z"), m: { a: 1 } },
    format: "JSONEachRow",
  })
).json();
told.quoted = await (
  await client.query({
    query: "SELECT sum(cost) AS spent FROM usage_daily",
    clickhouse_settings: { output_format_json_quote_decimals: 1, max_execution_time: 20 },
    format: "JSON",
  })
).json();

let streamed = 0;
const stream = await client.query({ query: "SELECT number FROM numbers(200000)", format: "JSONEachRow" });
for await (const rows of stream.stream()) streamed += rows.length;
told.streamed = streamed;
told.csv = await (await client.query({ query: "SELECT 1 AS a", format: "CSVWithNames" })).text();

told.unknown = await refusal(() => client.query({ query: "SELECT nope FROM usage_daily", format: "JSON" }));
told.insert = await refusal(() => client.insert({ table: "t", values: [{ a: 1 }], format: "JSONEachRow" }));
told.ddl = await refusal(() => client.command({ query: "CREATE TABLE t (a Int8) ENGINE = Memory" }));
told.file = await refusal(() => client.query({ query: "SELECT * FROM url('http://x', 'CSV')" }));
told.cut = await refusal(async () => {
  const query =
    "SELECT throwIf(number > 900000) FROM numbers(950000) SETTINGS max_threads = 1, max_block_size = 1000";
  const cut = await client.query({ query, format: "JSONEachRow" });
  for await (const rows of cut.stream());
});
told.alive = (await (await client.query({ query: "SELECT 1 AS a", format: "JSON" })).json()).data;
await client.close();

const sink = createClient({ ...options, username: sinkUser, password: sinkPassword });
await sink.command({ query: "CREATE TABLE node (a UInt32, s String) ENGINE = MergeTree ORDER BY a" });
const values = Array.from({ length: 3000 }, (_, a) => ({ a, s: `it's ${a}` }));
told.inserted = (await sink.insert({ table: "node", values, format: "JSONEachRow" })).executed;
told.counted = await (
  await sink.query({ query: "SELECT toUInt32(count()) AS n, max(s) AS s FROM node", format: "JSONEachRow" })
).json();
await sink.command({ query: "DROP TABLE node" });
await sink.close();
console.log(JSON.stringify(told));
