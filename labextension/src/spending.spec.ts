import { parseUsd } from './money';
import { SpendingRow } from './protocol';
import { dayStart, keptOf, neededSince, summary } from './spending';

const NOW = new Date(2026, 10, 21, 15, 30);

function row(date: Date, usd: string, more: Partial<SpendingRow> = {}): SpendingRow {
  return { hour_unix_seconds: date.getTime() / 1000, notebook: 'a.ipynb', usd, seconds: 60, ...more };
}

test('hours fall into the days of this time zone', () => {
  const rows = [
    row(new Date(2026, 10, 21, 0), '1'), row(new Date(2026, 10, 20, 23), '2'), row(new Date(2026, 10, 15, 0), '4'),
    row(new Date(2026, 10, 14, 23), '8')
  ];
  const spent = summary(rows, [], NOW, 'no GPU', 'en');
  expect(spent.today).toBe(parseUsd('1'));
  expect(spent.week).toBe(parseUsd('7'));
  expect(spent.days.map(day => day.usd)).toEqual(['4', '0', '0', '0', '0', '2', '1'].map(parseUsd));
});

test('notebooks and GPUs come by cost, simulated ones apart', () => {
  const rows = [
    row(NOW, '1', { gpu: 'A100-40GB' }), row(NOW, '3', { gpu: 'A100-40GB', simulated: true, notebook: 'b.ipynb' }), row(NOW, '0.5')
  ];
  const spent = summary(rows, [], NOW, 'no GPU');
  expect(spent.gpus.map(bar => bar.label)).toEqual(['A100-40GB (simulated)', 'A100-40GB', 'no GPU']);
  expect(spent.notebooks.map(bar => [bar.label, bar.usd])).toEqual([['b.ipynb', parseUsd('3')], ['a.ipynb', parseUsd('1.5')]]);
});

test('a day back is midnight, whatever length days have', () => {
  expect(dayStart(new Date(2026, 2, 1, 5), 1)).toEqual(new Date(2026, 1, 28));
});

test('the month has its own sum, and rows are asked for from the earlier of both', () => {
  const rows = [row(new Date(2026, 10, 1, 0), '1'), row(new Date(2026, 9, 31, 23), '2'), row(NOW, '4')];
  const spent = summary(rows, [], NOW, 'no GPU');
  expect([spent.month, spent.week]).toEqual([parseUsd('5'), parseUsd('4')]);
  expect(neededSince(NOW)).toBe(new Date(2026, 10, 1).getTime() / 1000);
  expect(neededSince(new Date(2026, 10, 3))).toBe(new Date(2026, 9, 28).getTime() / 1000);
});

test('idle money is of the week and named by notebook', () => {
  const rows = [
    row(NOW, '1', { idle_usd: '0.25', idle_seconds: 30 }), row(NOW, '3', { notebook: 'b.ipynb', idle_usd: '0.5', idle_seconds: 9 }),
    row(NOW, '2', { notebook: 'c.ipynb' }), row(new Date(2026, 10, 14), '8', { idle_usd: '8' })
  ];
  const spent = summary(rows, [], NOW, 'no GPU');
  expect(spent.idle).toBe(parseUsd('0.75'));
  expect(spent.idlers.map(bar => [bar.label, bar.usd])).toEqual([['b.ipynb', parseUsd('0.5')], ['a.ipynb', parseUsd('0.25')]]);
});

test('a kept machine is beside what the same GPU cost, as many as its use needs', () => {
  const WEEK = 7 * 86400;
  const prices = [{ gpu: 'H100', usd_per_hour: '3.49', as_of: '2026-10-07', source: 'a list' }];
  const [h100, t4] = keptOf(
    [row(NOW, '400', { gpu: 'H100', seconds: WEEK / 2 }), row(NOW, '300', { gpu: 'H100:2', seconds: WEEK / 2 }), row(NOW, '1', { gpu: 'T4', seconds: 7 }), row(NOW, '9')],
    prices
  );
  expect([h100.ratio, h100.machines, h100.usd, h100.reserved]).toEqual([1.5, 2, parseUsd('700'), parseUsd('1172.64')]);
  expect([t4.gpu, t4.reserved]).toEqual(['T4', null]);
});

test('simulated GPUs have their own line', () => {
  const found = keptOf([row(NOW, '1', { gpu: 'T4', simulated: true }), row(NOW, '2', { gpu: 'T4' })], []);
  expect(found.map(one => [one.gpu, one.simulated])).toEqual([['T4', false], ['T4', true]]);
});
