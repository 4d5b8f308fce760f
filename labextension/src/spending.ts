/** Spending by day, notebook and GPU, from rows by hour. Pure. */

import { parseUsd } from './money';
import { SpendingRow } from './protocol';

export interface IBar {
  label: string;
  usd: bigint;
  seconds: number;
}

export interface ISpent {
  today: bigint;
  week: bigint;
  days: IBar[];
  notebooks: IBar[];
  gpus: IBar[];
}

/** Midnight of the day that is `back` days before now, in this browser's time zone. Days have 23 to 25 hours. */
export function dayStart(now: Date, back: number): Date {
  return new Date(now.getFullYear(), now.getMonth(), now.getDate() - back);
}

/** What charts show: today, and the seven days that end with it. */
export function summary(rows: SpendingRow[], now: Date, noGpu: string, locale?: string): ISpent {
  const starts = [6, 5, 4, 3, 2, 1, 0].map(back => dayStart(now, back).getTime() / 1000);
  const days = starts.map(start => ({ label: dayLabel(start, locale), usd: 0n, seconds: 0 }));
  const notebooks = new Map<string, IBar>();
  const gpus = new Map<string, IBar>();
  let week = 0n;
  for (const row of rows) {
    let day = -1;
    while (day + 1 < starts.length && row.hour_unix_seconds >= starts[day + 1]) {
      day += 1;
    }
    if (day < 0) {
      continue;
    }
    const usd = parseUsd(row.usd);
    const gpu = (row.gpu || noGpu) + (row.simulated ? ' (simulated)' : '');
    for (const bar of [days[day], barOf(notebooks, row.notebook), barOf(gpus, gpu)]) {
      bar.usd += usd;
      bar.seconds += row.seconds ?? 0;
    }
    week += usd;
  }
  return { today: days[days.length - 1].usd, week, days, notebooks: largest(notebooks), gpus: largest(gpus) };
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
