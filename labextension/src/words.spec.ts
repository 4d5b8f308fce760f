import { ENGLISH, language } from './language';
import { ageText, fileName, gibText, gpuText, mean, sessionTitle, sizeText } from './words';

test('sizes', () => {
  expect([0, 999, 1000, 999_999, 1_234_567_890, 2e16].map(sizeText)).toEqual(['0 B', '999 B', '1.0 kB', '1.0 MB', '1.2 GB', '20.0 PB']);
  expect([512, 40960].map(gibText)).toEqual(['0.5 GiB', '40 GiB']);
});

test('durations', () => {
  expect([-3, 40, 61, 7300, 86400 * 3].map(ageText)).toEqual(['0 s', '40 s', '1 min', '2 h', '3 days']);
});

test('durations are in the language of JupyterLab', () => {
  language.trans = { __: (text, ...given) => `<${ENGLISH.__(text, ...given)}>`, _n: (_, many, count) => `<${count}: ${many}>` };
  try {
    expect([40, 61, 7300, 86400 * 3].map(ageText)).toEqual(['<40 s>', '<1 min>', '<2 h>', '<3: %1 days>']);
  } finally {
    language.trans = ENGLISH;
  }
});

test('names', () => {
  expect([fileName('/a/b.ipynb'), fileName('b'), fileName('a/')]).toEqual(['b.ipynb', 'b', 'a/']);
  expect(sessionTitle({ id: 's', notebook: '/x/n.ipynb', name: 'default', state: 'idle' })).toBe('n.ipynb');
  expect(sessionTitle({ id: 's', notebook: '/x/n.ipynb', name: 'train', state: 'idle' })).toBe('n.ipynb: train');
  const gpu = { index: 0, uuid: 'u', type: 'H100', name: 'n' };
  expect([gpuText([]), gpuText([gpu]), gpuText([gpu, gpu])]).toEqual(['', 'H100', 'H100 × 2']);
});

test('a mean of nothing is not known', () => {
  expect([mean([]), mean([null, undefined]), mean([1, null, 0])]).toEqual([null, null, 0.5]);
});
