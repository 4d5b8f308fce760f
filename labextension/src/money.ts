/** Money: exact decimal text on the wire, whole trillionths of a dollar here, rounded for people at the end. */

const DIGITS = 12;
const ONE = 10n ** BigInt(DIGITS);

/** Decimal text in US dollars as trillionths; what is no number is 0. */
export function parseUsd(text: string | undefined): bigint {
  const found = /^(-?)(\d*)(?:\.(\d*))?$/.exec(text ?? '');
  if (!found) {
    return 0n;
  }
  const whole = BigInt(found[2] || '0');
  const part = BigInt((found[3] ?? '').slice(0, DIGITS).padEnd(DIGITS, '0') || '0');
  const value = whole * ONE + part;
  return found[1] ? -value : value;
}

/** The sum of many amounts. */
export function sumUsd(texts: Iterable<string | undefined>): bigint {
  let sum = 0n;
  for (const text of texts) {
    sum += parseUsd(text);
  }
  return sum;
}

/** For a person: `$1.23`, `$0.0042`, `<$0.0001`; the same words as the command line's. */
export function usdText(amount: bigint): string {
  if (amount < 0n) {
    return '-' + usdText(-amount);
  }
  if (amount === 0n || amount >= ONE / 10n) {
    return '$' + rounded(amount, 2);
  }
  return amount >= ONE / 10000n ? '$' + rounded(amount, 4) : '<$0.0001';
}

/** A price per second as a price per hour. */
export function rateText(perSecond: bigint): string {
  return usdText(perSecond * 3600n) + '/h';
}

/** The share of one amount in another, 0 to 1. */
export function shareOf(amount: bigint, whole: bigint): number {
  return whole > 0n ? Number((amount * 10000n) / whole) / 10000 : 0;
}

function rounded(amount: bigint, digits: number): string {
  const step = 10n ** BigInt(DIGITS - digits);
  const units = (amount + step / 2n) / step;
  const base = 10n ** BigInt(digits);
  return `${units / base}.${(units % base).toString().padStart(digits, '0')}`;
}
