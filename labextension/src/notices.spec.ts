import { idleNow, idleText, Told } from './notices';
import { RunRow, Status } from './protocol';

const session = (state: string, usd: string, last: number): any => ({ id: state + usd, state, container: usd ? { usd_per_second: usd } : null, last_used_unix_seconds: last });

test('idle is what holds a machine for a while and runs nothing', () => {
  const status = {
    sessions: [session('idle', '0.001', 100), session('idle', '0.0005', 150), session('idle', '0', 0), session('busy', '0.1', 0), session('parked', '', 0), session('idle', '1', 990)]
  } as Status;
  expect(idleNow(status, 1000)).toEqual({ count: 2, usdPerSecond: 1_500_000_000n });
  expect([idleText(status, 1000), idleText(status, 120), idleText(null, 0)]).toEqual(['$5.40/h', '', '']);
});

const run = (id: string, ended: number | null, more = {}): RunRow => ({
  id, schedule: 's', name: 'n', instant_unix_seconds: 1, state: 'succeeded', ended_unix_seconds: ended, tell_jupyter: true, ...more
});

test('each end is told once, the oldest first', () => {
  const told = new Told(100);
  const rows = [run('c', 130), run('b', 120), run('old', 50), run('on', null), run('quiet', 125, { tell_jupyter: false }), run('left', 126, { state: 'skipped' })];
  expect(told.runs(rows, 140).map(row => row.id)).toEqual(['b', 'c']);
  expect(told.runs(rows, 141)).toEqual([]);
  expect(told.mark).toBe(130);
  // One that ended a little before the last one that was told, and was seen after it.
  expect(told.runs([...rows, run('late', 129)], 142).map(row => row.id)).toEqual(['late']);
  expect(told.mark).toBe(130);
});

test('a page that comes back after long tells of a day at most', () => {
  expect(new Told(0).runs([run('a', 1000), run('b', 100_000)], 100_001).map(row => row.id)).toEqual(['b']);
});

test('cells and builds come with the status', () => {
  const told = new Told(10);
  const status = { ended: [{ id: 'x', kind: 'cell', title: 't', ended_unix_seconds: 12 }, { id: 'y', kind: 'build', title: 'u', ended_unix_seconds: 3 }] } as Status;
  expect(told.things(status, 20).map(one => one.id)).toEqual(['x']);
  expect(told.things(null, 20)).toEqual([]);
});
