// Amounts and times as people read them. Money arrives as decimal strings and is never a float here.

const NANO = 1_000_000_000n;
const whole = new Intl.NumberFormat("en");

/** The nanos of a plain decimal string; null when it is none or has more than nine decimals. */
export function parseNano(text) {
  const found = /^([+-]?)(\d{0,12})(?:\.(\d*))?$/.exec(text.trim());
  if (!found || (found[2] === "" && !found[3])) return null;
  const decimals = (found[3] ?? "").replace(/0+$/, "");
  if (decimals.length > 9) return null;
  const nano = BigInt(found[2] || "0") * NANO + BigInt(decimals.padEnd(9, "0") || "0");
  return found[1] === "-" ? -nano : nano;
}

/** An amount of a unit as a BigInt: tokens, or nanos. */
export function amountOf(value, unit) {
  if (value === null || value === undefined) return null;
  return unit === "cost" ? parseNano(String(value)) : BigInt(value);
}

export function money(text, currency) {
  if (text === null || text === undefined) return "no price";
  const nano = parseNano(text);
  if (nano === null) return `${text} ${currency}`;
  const size = nano < 0n ? -nano : nano;
  const digits = size === 0n || size >= NANO / 100n ? 2 : 6;
  const step = 10n ** BigInt(9 - digits);
  const rounded = (size + step / 2n) / step;
  const scale = 10n ** BigInt(digits);
  const text2 = `${whole.format(rounded / scale)}.${String(rounded % scale).padStart(digits, "0")}`;
  const sign = nano < 0n ? "−" : "";
  const symbol = { USD: "$", EUR: "€", GBP: "£", JPY: "¥" }[currency];
  return symbol ? `${sign}${symbol}${text2}` : `${sign}${text2} ${currency}`;
}

export function count(value) {
  return value === null || value === undefined ? "–" : whole.format(BigInt(value)).replace("-", "−");
}

/** A large number in few characters: 12.5M. The exact one belongs beside it, as a title. */
export function compact(value) {
  const number = Number(value);
  return new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 }).format(number);
}

export function amount(value, unit, currency) {
  if (value === null || value === undefined) return "–";
  return unit === "cost" ? money(String(value), currency) : `${count(value)} tokens`;
}

/** Used of a cap in whole percent, rounded down; null without a cap. */
export function percent(used, cap) {
  if (used === null || cap === null) return null;
  if (cap <= 0n) return used >= cap ? 100 : 0;
  return Number((used < 0n ? 0n : used) * 100n / cap);
}

export function day(text) {
  return new Date(`${text}T00:00:00Z`).toLocaleDateString("en-GB", {
    day: "numeric", month: "short", timeZone: "UTC",
  });
}

export function time(text) {
  if (!text) return "–";
  const at = new Date(text);
  const date = at.toLocaleDateString("en-GB", { day: "2-digit", month: "short", year: "numeric", timeZone: "UTC" });
  const clock = at.toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit", timeZone: "UTC" });
  return `${date}, ${clock} UTC`;
}

export function ago(text, now = Date.now()) {
  if (!text) return "never";
  const seconds = Math.max(0, Math.round((now - new Date(text).getTime()) / 1000));
  if (seconds < 2) return "now";
  if (seconds < 120) return `${seconds} s ago`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min ago`;
  if (seconds < 172_800) return `${Math.round(seconds / 3600)} h ago`;
  return `${Math.round(seconds / 86_400)} days ago`;
}

export const PERIODS = { day: "day", week: "week", month: "month", "rolling-30d": "rolling 30 days" };
export const A_PERIOD = { day: "a day", week: "a week", month: "a month", "rolling-30d": "in rolling 30 days" };
export const UNITS = { tokens: "tokens", cost: "cost" };
export const STATUSES = {
  ok: "Within limits",
  "soft-cap-exceeded": "Warned",
  "hard-cap-exceeded": "Blocked",
  disabled: "Switched off",
  "no-policy": "No budget",
};
