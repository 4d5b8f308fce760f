import { ErrorInfo, ParameterShown } from './protocol';
import { conflictOf, differences, forecastText, freeName, kindOf, listed, mayBeEmpty, mounts, mountsText, toggled, typed, valueOf, withKind } from './schedule_text';

test('one kind of time is sent, the others stay in the form', () => {
  const text = { cron: '0 7 * * *', every: '15m', at: '2030-01-01T00:00', name: 'n' };
  expect(withKind(text, 'every')).toEqual({ cron: '', every: '15m', at: '', name: 'n' });
  expect([kindOf({}), kindOf({ every: '1h' }), kindOf({ at: 'x' }), kindOf({ cron: 'x' })]).toEqual(['cron', 'every', 'at', 'cron']);
});

test.each([
  ['str', '7', '7'], ['str', ' a ', ' a '], ['int', '7', 7], ['int', ' -7 ', -7], ['float', '7', 7], ['float', '1e-3', 0.001],
  ['bool', 'True', true], ['bool', 'false', false], ['list', '[1, "a"]', [1, 'a']], ['dict', '{"a": null}', { a: null }],
  ['', 'plain words', 'plain words'], ['', '[1]', [1]], ['', 'None', null]
])('a %s is %j', (type, text, value) => {
  expect(valueOf({ name: 'x', type }, text)).toEqual({ value });
});

test.each([['int', '7.5'], ['int', '1e3'], ['int', 'seven'], ['float', '"7"'], ['float', 'NaN'], ['bool', '1'], ['list', '{}'], ['dict', '[]'], ['dict', '{']])(
  'a %s is not %j', (type, text) => {
    expect(valueOf({ name: 'x', type }, text).problem).toBeTruthy();
  }
);

test('nothing typed is the default, and the empty text is a value of what may be text', () => {
  expect(['str', 'int', 'bool', ''].map(type => valueOf({ name: 'x', type }, undefined))).toEqual([{}, {}, {}, {}]);
  expect(['str', 'int', 'bool', ''].map(type => valueOf({ name: 'x', type }, ''))).toEqual([{ value: '' }, {}, {}, { value: '' }]);
  expect(['str', 'int', '', undefined].map(type => mayBeEmpty({ name: 'x', type }))).toEqual([true, false, true, true]);
  expect(valueOf({ name: 'x', type: 'int' }, '  ')).toEqual({});
});

test('a value is typed as it is read again', () => {
  const check = (parameter: ParameterShown, value: any): void => expect(valueOf(parameter, typed(parameter, value))).toEqual({ value });
  check({ name: 'x', type: 'str' }, '7');
  check({ name: 'x', type: 'int' }, 7);
  check({ name: 'x', type: 'dict' }, { a: [1] });
  check({ name: 'x' }, 'words');
  check({ name: 'x' }, '7');
  check({ name: 'x' }, null);
  check({ name: 'x', type: 'str' }, '');
  check({ name: 'x' }, '');
  expect(typed({ name: 'x' }, undefined)).toBeUndefined();
});

test('lists', () => {
  expect([listed(undefined), listed(' a, b,,')]).toEqual([[], ['a', 'b']]);
  expect([toggled('a,b:KEY', 'c', true), toggled('a,b:KEY', 'b', false), toggled('', 'a', false)]).toEqual(['a,b:KEY,c', 'a', '']);
  const text = '/data:one:ro,/out:two';
  expect(mounts(text)).toEqual([{ path: '/data', name: 'one', rest: ':ro' }, { path: '/out', name: 'two', rest: '' }]);
  expect(mountsText(mounts(text))).toBe(text);
  expect(mountsText([{ path: ' ', name: 'x', rest: '' }, { path: '/a', name: '', rest: '' }])).toBe('');
});

test('what differs between two texts', () => {
  expect(differences({ name: 'a', parameters: { x: 1, y: 2 } }, { name: 'a', parameters: { y: 2, x: 1 }, gpu: '' })).toEqual([]);
  expect(differences({ cron: '1', notify: [] }, { cron: '2', notify: ['jupyter'], retries: 1 })).toEqual(['cron', 'notify', 'retries']);
});

test('a name that is taken is told apart from a change by somebody else', () => {
  const taken = { code: 'request.conflict', message: 'm', detail: { schedule: 'sch-1' } } as ErrorInfo;
  expect(conflictOf(taken)).toEqual({ taken: 'sch-1' });
  expect(conflictOf({ code: 'request.conflict', message: 'm', detail: { revision: '3' } } as ErrorInfo)).toEqual({ changed: true });
  expect(conflictOf({ code: 'request.conflict', message: 'm' } as ErrorInfo)).toEqual({});
  expect([freeName('a', ['a']), freeName('a 2', ['a 2']), freeName('a', ['a', 'a 2', 'a 3']), freeName('2', ['2'])]).toEqual(['a 2', 'a 3', 'a 4', '2 2']);
});

test('a forecast is of runs that succeeded', () => {
  expect(forecastText(undefined)).toBeNull();
  expect(forecastText({ month_instants_count: 22 })).toBeNull();
  expect(forecastText({ runs_count: 5, run_usd: '0.367', month_usd: '8.07', month_instants_count: 22 })).toEqual({
    run: '$0.37', month: '$8.07', runs: 5, times: 22
  });
});
