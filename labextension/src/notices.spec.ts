import { idleNow, idleText, IStorage, ONE_BY_ONE, Shown, told } from './notices';
import { EndedThing, RunRow, Status } from './protocol';

const session = (state: string, usd: string, last: number): any => ({ id: state + usd, state, container: usd ? { usd_per_second: usd } : null, last_used_unix_seconds: last });

test('idle is what holds a machine for a while and runs nothing', () => {
  const status = {
    sessions: [session('idle', '0.001', 100), session('idle', '0.0005', 150), session('idle', '0', 0), session('busy', '0.1', 0), session('parked', '', 0), session('idle', '1', 990)]
  } as Status;
  expect(idleNow(status, 1000)).toEqual({ count: 2, usdPerSecond: 1_500_000_000n });
  expect([idleText(status, 1000), idleText(status, 120), idleText(null, 0)]).toEqual(['$5.40/h', '', '']);
});

class Place implements IStorage {
  kept = new Map<string, string>();
  full = false;
  getItem = (key: string): string | null => this.kept.get(key) ?? null;
  removeItem = (key: string): void => void this.kept.delete(key);
  setItem = (key: string, value: string): void => {
    if (this.full) {
      throw new Error('quota');
    }
    this.kept.set(key, value);
  };
}

const ends = (...ids: string[]): { id: string }[] => ids.map(id => ({ id }));

test('what was shown is not shown again by the next page, until the gateway has noted it', () => {
  const place = new Place();
  const first = new Shown(place, 'k');
  expect(first.fresh(ends('a', 'b'))).toEqual(ends('a', 'b'));
  expect(first.fresh(ends('a', 'b', 'c'))).toEqual(ends('c'));
  // The page is loaded again before its word reached the gateway; another window of this browser is open.
  const next = new Shown(place, 'k');
  expect(next.ids).toEqual(['a', 'b', 'c']);
  expect(next.fresh(ends('c', 'd'))).toEqual(ends('d'));
  next.noted(['a', 'b', 'c', 'd']);
  expect([next.ids, place.kept.size]).toEqual([[], 0]);
  expect(new Shown(place, 'other').ids).toEqual([]);
});

test('one that is shown while the word for others is under way is kept', () => {
  const shown = new Shown(new Place(), 'k');
  shown.fresh(ends('a'));
  const said = shown.ids;
  shown.fresh(ends('b'));
  shown.noted(said);
  expect(shown.ids).toEqual(['b']);
});

test('without a storage, with a full one or with another program\'s text in it, a page still tells each once', () => {
  const full = new Place();
  full.full = true;
  const odd = new Place();
  odd.kept.set('k', '{"a": 1');
  const numbers = new Place();
  numbers.kept.set('k', '[1, "z"]');
  for (const place of [null, full, odd, numbers]) {
    const shown = new Shown(place, 'k');
    expect(shown.fresh(ends('a'))).toEqual(ends('a'));
    expect(shown.fresh(ends('a'))).toEqual([]);
    expect(shown.ids.filter(id => id === 'a')).toEqual(['a']);
  }
});

const run = (id: string, ended: number, more = {}): RunRow => ({ id, schedule: 's', name: 'n', instant_unix_seconds: 1, state: 'succeeded', ended_unix_seconds: ended, ...more });
const thing = (id: string, ended: number, problem = ''): EndedThing => ({ id, kind: 'cell', title: 't', ended_unix_seconds: ended, problem });

test('few ends are told one by one', () => {
  expect(told({})).toEqual({ runs: [], things: [], more: 0, failed: 0 });
  const all = told({ runs: [run('b', 2), run('c', 3)], things: [thing('a', 1)] });
  expect([all.runs.map(one => one.id), all.things.map(one => one.id), all.more]).toEqual([['b', 'c'], ['a'], 0]);
});

test('of a night full of them the newest are told, and how many more there were', () => {
  const runs = Array.from({ length: 20 }, (_, at) => run(`r${at}`, at, at < 3 ? { state: 'failed' } : at === 3 ? { state: 'cancelled' } : {}));
  const all = told({ runs, things: [thing('x', -1, 'ValueError'), thing('y', 100)] });
  expect(all.runs.length + all.things.length + 1).toBe(ONE_BY_ONE);
  expect([all.runs[all.runs.length - 1].id, all.things.map(one => one.id)]).toEqual(['r19', ['y']]);
  expect([all.more, all.failed]).toEqual([22 - ONE_BY_ONE + 1, 4]);
});
