import { visibleRows } from './windowed';

test('only rows in sight are made, and the heights add up', () => {
  for (const top of [0, 10, 4000, 49_600, 1e9, -50]) {
    const view = visibleRows(500, 100, top, 400);
    expect(view.end - view.first).toBeLessThanOrEqual(15);
    expect(view.before + (view.end - view.first) * 100 + view.after).toBe(50_000);
  }
  expect(visibleRows(500, 100, 1e9, 400).end).toBe(500);
  expect(visibleRows(0, 100, 0, 400)).toEqual({ first: 0, end: 0, before: 0, after: 0 });
});
