// A subscriber of budget.state in another language: keeps the newest version of each state and
// prints everything it knows, once it has seen the state that it was told to wait for.
import { createRequire } from "node:module";
const require = createRequire(process.argv[2] + "/");
const { Kafka, logLevel } = require("kafkajs");

const [, , , broker, topic, lastKey] = process.argv;
const kafka = new Kafka({ brokers: [broker], logLevel: logLevel.NOTHING });
const consumer = kafka.consumer({ groupId: `${topic}-node`, readUncommitted: false });
const states = {};
const heartbeats = {};

await consumer.connect();
await consumer.subscribe({ topic, fromBeginning: true });
await consumer.run({
  eachMessage: async ({ message }) => {
    const key = message.key.toString();
    if (key.startsWith("!heartbeat|")) {
      heartbeats[key.slice("!heartbeat|".length)] = JSON.parse(message.value);
    } else if (message.value === null) {
      delete states[key];
    } else {
      const state = JSON.parse(message.value);
      if (!states[key] || states[key].version < state.version) states[key] = state;
    }
    if (lastKey in states && Object.keys(heartbeats).length === 2) {
      console.log(JSON.stringify({ states, heartbeats }));
      process.exit(0);
    }
  },
});
