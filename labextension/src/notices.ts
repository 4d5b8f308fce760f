/** What is worth a word when nobody looks: what costs money and does nothing, and what has ended. */

import { parseUsd, rateText } from './money';
import { EndedThing, Ends, RunRow, Status } from './protocol';

/** Between two cells a session is idle too; after this long it is worth saying. */
export const IDLE_SECONDS = 60;

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

/** The part of the browser's storage that is used. */
export type IStorage = Pick<Storage, 'getItem' | 'setItem' | 'removeItem'>;

const MOST_SHOWN = 400; // the gateway takes at most 499 in a request

/** Ends that were shown and that the gateway has not noted yet. Which end was told to whom is the gateway's record, so that each is
 *  told once over windows, browsers and machines; this is for the moment between showing one and its word for it, in which a page
 *  may be closed. All windows of this browser have it together. */
export class Shown {
  constructor(private storage: IStorage | null, private key: string) {}

  get ids(): string[] {
    try {
      const kept = JSON.parse(this.storage?.getItem(this.key) ?? '[]');
      return [...new Set([...(Array.isArray(kept) ? kept.filter(id => typeof id === 'string') : []), ...this.own])].slice(-MOST_SHOWN);
    } catch {
      return [...this.own]; // not given by this browser, or not ours
    }
  }

  /** Those that were not shown yet; from now on they were. */
  fresh<T extends { id: string }>(all: T[]): T[] {
    const known = new Set(this.ids);
    const found = all.filter(one => !known.has(one.id));
    this.keep([...known, ...found.map(one => one.id)]);
    return found;
  }

  /** The gateway has noted them. */
  noted(ids: string[]): void {
    this.keep(this.ids.filter(id => !ids.includes(id)));
  }

  private keep(ids: string[]): void {
    this.own = new Set(ids);
    try {
      if (ids.length) {
        this.storage?.setItem(this.key, JSON.stringify(ids));
      } else {
        this.storage?.removeItem(this.key);
      }
    } catch {
      // Full, or not given: this page still knows.
    }
  }

  private own = new Set<string>();
}

/** More than these in one go are told as a number: a night's ends must not fill the screen. */
export const ONE_BY_ONE = 6;

/** Ends to be told one by one, the oldest first, and how many older ones there are, of which some failed. */
export function told(ends: Ends): { runs: RunRow[]; things: EndedThing[]; more: number; failed: number } {
  const all = [
    ...(ends.runs ?? []).map(run => ({ run, at: run.ended_unix_seconds ?? 0, failed: run.state !== 'succeeded' && run.state !== 'cancelled' })),
    ...(ends.things ?? []).map(thing => ({ thing, at: thing.ended_unix_seconds ?? 0, failed: !!thing.problem }))
  ].sort((a, b) => a.at - b.at);
  const rest = all.length > ONE_BY_ONE ? all.splice(0, all.length - ONE_BY_ONE + 1) : [];
  return {
    runs: all.flatMap(one => ('run' in one ? [one.run] : [])), things: all.flatMap(one => ('thing' in one ? [one.thing] : [])),
    more: rest.length, failed: rest.filter(one => one.failed).length
  };
}
