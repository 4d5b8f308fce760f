import { parseUsd } from './money';
import { SpendingRow } from './protocol';
import { dayStart, summary } from './spending';

const NOW = new Date(2026, 10, 21, 15, 30);

function row(date: Date, usd: string, more: Partial<SpendingRow> = {}): SpendingRow {
  return { hour_unix_seconds: date.getTime() / 1000, notebook: 'a.ipynb', usd, seconds: 60, ...more };
}

test('hours fall into the days of this time zone', () => {
  const rows = [
    row(new Date(2026, 10, 21, 0), '1'), row(new Date(2026, 10, 20, 23), '2'), row(new Date(2026, 10, 15, 0), '4'),
    row(new Date(2026, 10, 14, 23), '8')
  ];
  const spent = summary(rows, NOW, 'no GPU', 'en');
  expect(spent.today).toBe(parseUsd('1'));
  expect(spent.week).toBe(parseUsd('7'));
  expect(spent.days.map(day => day.usd)).toEqual(['4', '0', '0', '0', '0', '2', '1'].map(parseUsd));
});

test('notebooks and GPUs come by cost, simulated ones apart', () => {
  const rows = [
    row(NOW, '1', { gpu: 'A100-40GB' }), row(NOW, '3', { gpu: 'A100-40GB', simulated: true, notebook: 'b.ipynb' }), row(NOW, '0.5')
  ];
  const spent = summary(rows, NOW, 'no GPU');
  expect(spent.gpus.map(bar => bar.label)).toEqual(['A100-40GB (simulated)', 'A100-40GB', 'no GPU']);
  expect(spent.notebooks.map(bar => [bar.label, bar.usd])).toEqual([['b.ipynb', parseUsd('3')], ['a.ipynb', parseUsd('1.5')]]);
});

test('a day back is midnight, whatever length days have', () => {
  expect(dayStart(new Date(2026, 2, 1, 5), 1)).toEqual(new Date(2026, 1, 28));
});
