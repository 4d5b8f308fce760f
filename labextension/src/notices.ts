/** What is worth a word when nobody looks: what costs money and does nothing, and what has ended. */

import { parseUsd, rateText } from './money';
import { EndedThing, RunRow, Status } from './protocol';

/** Between two cells a session is idle too; after this long it is worth saying. */
export const IDLE_SECONDS = 60;
/** What ended longer ago is in the lists, and is not told any more. */
export const OLDEST_SECONDS = 86_400;

/** Sessions that hold a machine and run nothing, and what they cost a second together. */
export function idleNow(status: Status | null, now: number): { count: number; usdPerSecond: bigint } {
  const idle = (status?.sessions ?? []).filter(
    session =>
      session.state === 'idle' && parseUsd(session.container?.usd_per_second) > 0n &&
      now - (session.last_used_unix_seconds || session.created_unix_seconds || now) >= IDLE_SECONDS
  );
  return { count: idle.length, usdPerSecond: idle.reduce((sum, session) => sum + parseUsd(session.container?.usd_per_second), 0n) };
}

/** The rate of what is idle, "" where nothing is. */
export function idleText(status: Status | null, now: number): string {
  const idle = idleNow(status, now);
  return idle.count ? rateText(idle.usdPerSecond) : '';
}

/** Tells each thing once. `since` is the end of the last one that was told, over page loads. */
export class Told {
  constructor(public since: number) {}

  /** Runs that ended and are to be told, the oldest first. Those that were skipped are not: the next one was asked for. */
  runs(rows: RunRow[], now: number): RunRow[] {
    return this.fresh(
      rows.filter(row => row.tell_jupyter && row.state !== 'skipped' && row.ended_unix_seconds), row => row.id, row => row.ended_unix_seconds!, now
    );
  }

  /** Detached cells and builds, likewise. */
  things(status: Status | null, now: number): EndedThing[] {
    return this.fresh(status?.ended ?? [], thing => thing.id, thing => thing.ended_unix_seconds ?? 0, now);
  }

  private fresh<T>(all: T[], key: (one: T) => string, ended: (one: T) => number, now: number): T[] {
    const found = all.filter(one => ended(one) > this.since - 1 && now - ended(one) < OLDEST_SECONDS && !this.seen.has(key(one)));
    found.sort((a, b) => ended(a) - ended(b));
    for (const one of found) {
      this.seen.add(key(one));
      this.latest = Math.max(this.latest, ended(one));
    }
    return found;
  }

  /** What is to be remembered for the next page. */
  get mark(): number {
    return Math.max(this.since, this.latest);
  }

  private seen = new Set<string>();
  private latest = 0;
}
