/** Spending by day, notebook and GPU, idle money, the month's budget and the break-even, from rows by hour. Pure. */

import { parseUsd } from './money';
import { ReservedPrice, SpendingRow } from './protocol';

export interface IBar {
  label: string;
  usd: bigint;
  seconds: number;
}

export interface ISpent {
  today: bigint;
  week: bigint;
  month: bigint;
  /** Of the week: what containers cost that were ready while no cell ran in them. */
  idle: bigint;
  days: IBar[];
  notebooks: IBar[];
  gpus: IBar[];
  /** Idle money by notebook, only where there is any. */
  idlers: IBar[];
  kept: IKept[];
}

/** A GPU type of the week beside machines with it that are kept all week. */
export interface IKept {
  gpu: string;
  simulated: boolean;
  /** GPU seconds in use over the seconds of a week: above 1 where several were used at once. */
  ratio: number;
  usd: bigint;
  /** What as many kept machines as the use needs would have cost; null where no price is known. */
  reserved: bigint | null;
  machines: number;
  asOf: string;
  source: string;
}

const WEEK_SECONDS = 7 * 86400;
const WEEK_HOURS = 168n;

/** Midnight of the day that is `back` days before now, in this browser's time zone. Days have 23 to 25 hours. */
export function dayStart(now: Date, back: number): Date {
  return new Date(now.getFullYear(), now.getMonth(), now.getDate() - back);
}

/** Midnight of the first of this month, in this browser's time zone. */
export function monthStart(now: Date): Date {
  return new Date(now.getFullYear(), now.getMonth(), 1);
}

/** Since when rows are needed: for the seven days, and for the month. Unix seconds. */
export function neededSince(now: Date): number {
  return Math.min(dayStart(now, 6).getTime(), monthStart(now).getTime()) / 1000;
}

/** What charts show: today, the seven days that end with it, and the month. */
export function summary(rows: SpendingRow[], reserved: ReservedPrice[], now: Date, noGpu: string, locale?: string): ISpent {
  const starts = [6, 5, 4, 3, 2, 1, 0].map(back => dayStart(now, back).getTime() / 1000);
  const first = monthStart(now).getTime() / 1000;
  const days = starts.map(start => ({ label: dayLabel(start, locale), usd: 0n, seconds: 0 }));
  const notebooks = new Map<string, IBar>();
  const gpus = new Map<string, IBar>();
  const idlers = new Map<string, IBar>();
  const lastWeek: SpendingRow[] = [];
  let [week, month, idle] = [0n, 0n, 0n];
  for (const row of rows) {
    const usd = parseUsd(row.usd);
    month += row.hour_unix_seconds >= first ? usd : 0n;
    let day = -1;
    while (day + 1 < starts.length && row.hour_unix_seconds >= starts[day + 1]) {
      day += 1;
    }
    if (day < 0) {
      continue;
    }
    const gpu = (row.gpu || noGpu) + (row.simulated ? ' (simulated)' : '');
    for (const bar of [days[day], barOf(notebooks, row.notebook), barOf(gpus, gpu)]) {
      bar.usd += usd;
      bar.seconds += row.seconds ?? 0;
    }
    week += usd;
    lastWeek.push(row);
    const idleUsd = parseUsd(row.idle_usd);
    if (idleUsd > 0n) {
      const bar = barOf(idlers, row.notebook);
      bar.usd += idleUsd;
      bar.seconds += row.idle_seconds ?? 0;
      idle += idleUsd;
    }
  }
  return {
    today: days[days.length - 1].usd, week, month, idle, days, notebooks: largest(notebooks), gpus: largest(gpus),
    idlers: largest(idlers), kept: keptOf(lastWeek, reserved)
  };
}

/** Each GPU type of a week beside what keeping it all week costs. What has no GPU has no such machine. */
export function keptOf(rows: SpendingRow[], reserved: ReservedPrice[]): IKept[] {
  const found = new Map<string, { gpu: string; simulated: boolean; seconds: number; usd: bigint }>();
  for (const row of rows) {
    const [gpu, count] = (row.gpu ?? '').split(':');
    if (!gpu) {
      continue;
    }
    const key = `${gpu} ${!!row.simulated}`;
    const one = found.get(key) ?? { gpu, simulated: !!row.simulated, seconds: 0, usd: 0n };
    one.seconds += (row.seconds ?? 0) * Number(count ?? 1);
    one.usd += parseUsd(row.usd);
    found.set(key, one);
  }
  return [...found.values()]
    .sort((a, b) => (a.usd < b.usd ? 1 : -1))
    .map(({ gpu, simulated, seconds, usd }) => {
      const price = reserved.find(one => one.gpu === gpu);
      const ratio = seconds / WEEK_SECONDS;
      const machines = Math.max(1, Math.ceil(ratio));
      const cost = price ? parseUsd(price.usd_per_hour) * WEEK_HOURS * BigInt(machines) : null;
      return { gpu, simulated, ratio, usd, reserved: cost, machines, asOf: price?.as_of ?? '', source: price?.source ?? '' };
    });
}

function barOf(bars: Map<string, IBar>, label: string): IBar {
  let bar = bars.get(label);
  if (!bar) {
    bar = { label, usd: 0n, seconds: 0 };
    bars.set(label, bar);
  }
  return bar;
}

function largest(bars: Map<string, IBar>): IBar[] {
  return [...bars.values()].sort((a, b) => (a.usd === b.usd ? b.seconds - a.seconds : a.usd < b.usd ? 1 : -1));
}

function dayLabel(start: number, locale?: string): string {
  return new Date(start * 1000).toLocaleDateString(locale, { weekday: 'short', day: 'numeric' });
}
